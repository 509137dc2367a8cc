from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from ryzanstein import CorruptFileError, ModelLoadError, ValidationError
from ryzanstein.chat_template import ChatTemplate
from ryzanstein.loaders.model_files import open_files

if TYPE_CHECKING:
    from pathlib import Path

USER = {"role": "user", "content": "hi"}
LLAMA_LIKE = """{{ bos_token }}{% for message in messages %}
{% if message.role not in ("user", "assistant", "system") %}
{{ raise_exception("unknown role " + message.role) }}
{% endif %}
<|{{ message.role }}|>{{ message.content | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def test_a_typical_template() -> None:
    template = ChatTemplate(LLAMA_LIKE, {"bos_token": "<s>", "eos_token": "</s>"})
    messages = [{"role": "system", "content": " Be brief. "}, USER]
    expected = "<s><|system|>Be brief.</s>\n<|user|>hi</s>\n"
    assert template.render(messages, add_generation_prompt=False) == expected
    assert template.render(messages) == expected + "<|assistant|>"


def test_raise_exception_becomes_a_validation_error() -> None:
    with pytest.raises(ValidationError, match="template rejects the messages: unknown role robot"):
        ChatTemplate(LLAMA_LIKE).render([{"role": "robot", "content": ""}])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'a': '<é>'} | tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{{ tools is none }} {{ documents is none }} {{ undefined_name }}", "True True "),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", "3"),
    ],
)
def test_what_hugging_face_templates_rely_on(source: str, expected: str) -> None:
    assert ChatTemplate(source).render([USER]) == expected


def test_strftime_now() -> None:
    text = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([USER])
    datetime.strptime(text, "%Y-%m-%d")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[3].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% include 'x' %}",
    ],
)
def test_the_sandbox_and_failures_are_validation_errors(source: str) -> None:
    with pytest.raises(ValidationError, match="chat template failed on the messages: "):
        ChatTemplate(source).render([USER])


def test_syntax_error() -> None:
    with pytest.raises(CorruptFileError, match="the chat template does not parse, line 2: "):
        ChatTemplate("\n{% if %}")


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([], "messages is empty"),
        ("hi", 'messages must be a list of {"role": ..., "content": ...}, got \'hi\''),
        ({"role": "user"}, "messages must be a list"),
        (3, "messages must be a list"),
        (["hi"], r"messages\[0\] needs a string 'role'"),
        ([USER, {"role": "user"}], r"messages\[1\] needs a string 'content'"),
        ([{"role": 1, "content": "x"}], r"messages\[0\] needs a string 'role'"),
        ([{"role": "user", "content": None}], r"messages\[0\] needs a string 'content'"),
    ],
)
def test_malformed_messages(messages: Any, wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        ChatTemplate("x").render(messages)


def test_sources_in_a_directory(tmp_path: Path) -> None:
    assert ChatTemplate.from_files(open_files(tmp_path)) is None
    config = tmp_path / "tokenizer_config.json"

    def rendered(chat_template: object) -> str:
        config.write_text(json.dumps({"chat_template": chat_template}))
        template = ChatTemplate.from_files(open_files(tmp_path), {"bos_token": "<s>"})
        assert template is not None
        return template.render([USER])

    assert rendered("one {{ bos_token }}") == "one <s>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
    assert rendered(named) == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered("one") == "file"


def test_a_list_without_a_default_is_no_template(tmp_path: Path) -> None:
    stored = {"chat_template": [{"name": "tool_use", "template": "x"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored))
    assert ChatTemplate.from_files(open_files(tmp_path)) is None


def test_malformed_sources(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(CorruptFileError, match="chat_template must be a string or a list"):
        ChatTemplate.from_files(open_files(tmp_path))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CorruptFileError, match=r"chat_template\.jinja is not UTF-8"):
        ChatTemplate.from_files(open_files(tmp_path))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat_template.jinja").symlink_to("/proc/self/mem")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja cannot be read: "):
        ChatTemplate.from_files(open_files(tmp_path))
