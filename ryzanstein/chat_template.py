"""A conversation to the prompt its model was trained on, by the template the model ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from ryzanstein.errors import CorruptFileError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Environment, nodes
    from jinja2.parser import Parser

    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["ChatTemplate"]


class _TemplateRaisedError(Exception):
    """The template called raise_exception."""


def _raise_exception(message: object) -> NoReturn:
    raise _TemplateRaisedError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML, which would show in the prompt.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _environment() -> Environment:
    # Imported here because it costs 40 ms that a model without a template need not pay.
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accepts `{% generation %}`, which marks assistant text for training, as if absent."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A model's chat template, rendered in a sandbox.

    Args:
        source: jinja2 text.
        special_tokens: names the template may use ("bos_token", ...) and their text.

    Raises:
        CorruptFileError: the template is not valid jinja2.

    Example:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}")
        >>> template.render([{"role": "user", "content": "hi"}])
        'hi;'
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise CorruptFileError(
                f"the chat template does not parse, line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_files(
        cls, files: ModelFiles, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate | None:
        """Return the template of chat_template.jinja or tokenizer_config.json, if there is one.

        Raises:
            CorruptFileError: the file or the template does not parse.
        """
        source = _find_source(files)
        return None if source is None else cls(source, special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt for a conversation.

        Args:
            messages: mappings with "role" and "content".
            add_generation_prompt: end with the beginning of the assistant's next message.

        Raises:
            ValidationError: a malformed message, or one that the template does not accept.
        """
        from jinja2 import TemplateError

        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except _TemplateRaisedError as error:
            raise ValidationError(
                f"the model's chat template rejects the messages: {error}"
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValidationError(
                f"the model's chat template failed on the messages: {error}"
            ) from error


def _find_source(files: ModelFiles) -> str | None:
    source = files.read_text("chat_template.jinja")
    if source is not None:
        return source
    name = "tokenizer_config.json"
    value = (files.read_json(name) or {}).get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise CorruptFileError(
            f"{files.where(name)}: chat_template must be a string or a list of named templates, "
            f"found {type(value).__name__}"
        )
    return value


def _check_messages(messages: object) -> None:
    if isinstance(messages, str | Mapping) or not hasattr(messages, "__iter__"):
        raise ValidationError(
            f'messages must be a list of {{"role": ..., "content": ...}}, got {messages!r}'
        )
    items = list(messages)
    if not items:
        raise ValidationError("messages is empty; give at least one message")
    for index, message in enumerate(items):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise ValidationError(f"messages[{index}] needs a string {key!r}, got {message!r}")
