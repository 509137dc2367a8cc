from __future__ import annotations

import json
import tracemalloc
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from templates import FAMILIES, SPECIAL_TOKENS

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
    # Of models of images and text, whose tokenizers may have one of their own.
    (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert rendered(named) == "named"
    assert rendered(None) == "processor"
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


LOOP = "{% for i in range(100000) %}"
DOUBLING = (
    "{% set ns = namespace(v=['x']) %}{% for i in range(64) %}{% set ns.v = XX %}{% endfor %}"
)


@pytest.mark.parametrize(
    "source",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        LOOP + "{{ 'x' * 1000000 }}{% endfor %}",
        LOOP
        + "{% set x %}"
        + "{{ messages[0].content * 100000 }}" * 9
        + "{% endset %}{% endfor %}",
        LOOP + "{{ range(100000) | list | length }}{% endfor %}",
        LOOP + "{{ range(100000) | map('string') | map('upper') | list }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% for i in range(9) recursive %}{% if loop.depth < 90 %}{{ loop(range(9)) }}{% endif %}"
        "{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [0] * 10**9 }}",
        "{{ 9 ** 99999 }}",
        "{% set ns = namespace(n=9) %}" + LOOP + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%(a)*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ ('x' * 100000).replace('x', 'x' * 100000) }}",
        "{{ ('x' * 100000) | replace('x', 'x' * 100000) }}",
        "{{ ('x' * 100000).join('x' * 100000) }}",
        "{{ range(100000) | join('x' * 100000) }}",
        "{{ ('\\n' * 100000) | indent(100000) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        DOUBLING.replace("XX", "ns.v + ns.v"),
        DOUBLING.replace("XX", "ns.v ~ ns.v"),
        DOUBLING.replace("XX", "[ns.v, ns.v]"),
        DOUBLING.replace("XX", "(ns.v, ns.v)"),
        DOUBLING.replace("XX", "{1: ns.v, 2: ns.v}"),
        DOUBLING.replace("XX", "dict(a=ns.v, b=ns.v)"),
        "{% set x = 'x' * 10000000 %}{{ x" + " ~ x" * 1000 + " }}",
    ],
)
def test_what_would_not_end_or_not_fit_is_stopped(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ryzanstein.template_sandbox._MAX_CPU_SECONDS", 0.1)
    tracemalloc.start()
    try:
        with pytest.raises(ValidationError, match="chat template was stopped: it "):
            ChatTemplate(source).render([USER])
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10**9) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ '\\t'.expandtabs(10**9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages | attr('__class__') }}{{ (messages | attr('__class__')).mro() }}",
        "{{ lipsum(n=10**9) }}",
    ],
)
def test_what_the_sandbox_refuses(source: str) -> None:
    with pytest.raises(ValidationError, match="chat template failed on the messages: "):
        ChatTemplate(source).render([USER])


@pytest.mark.parametrize("name", ["center", "batch(9)", "slice(9)", "sum", "round", "striptags"])
def test_filters_that_no_chat_template_needs_do_not_exist(name: str) -> None:
    with pytest.raises(CorruptFileError, match="does not parse, line 1: No filter named"):
        ChatTemplate("{{ 'x' | " + name + " }}")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x" * (1 << 20) + "y", "has 1048577 characters"),
        ("{{ " + "(" * 100000 + " }}", "does not compile: "),
        ("{% if 1 %}" * 100000, "does not compile: "),
        ("{{ " + "9" * 5000 + " }}", "does not compile: "),
        (LOOP * 30 + "{% endfor %}" * 30, "does not compile: "),
    ],
)
def test_templates_that_cannot_be_read(source: str, wanted: str) -> None:
    with pytest.raises(CorruptFileError, match=wanted):
        ChatTemplate(source)


def test_an_endless_message_of_a_template_is_cut() -> None:
    with pytest.raises(ValidationError) as raised:
        ChatTemplate("{{ raise_exception('x' * 1000000) }}").render([USER])
    assert len(str(raised.value)) < 1000


def test_a_long_conversation_renders() -> None:
    messages = [{"role": "user", "content": "a word " * 1000}] * 1000
    assert len(ChatTemplate(LLAMA_LIKE).render(messages)) > 7_000_000


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen2",
            "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("qwen3", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        ("gemma", "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
        ("mistral", "<s>[INST] hi [/INST]"),
        ("falcon", "User: hi\nAssistant:"),
    ],
)
def test_families_of_models(family: str, expected: str) -> None:
    template = ChatTemplate(FAMILIES[family], SPECIAL_TOKENS)
    assert template.render([USER]) == expected
