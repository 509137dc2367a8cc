"""A conversation to the prompt its model was trained on, by the template the model ships."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from ryzanstein.errors import CorruptFileError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ryzanstein.loaders.model_files import ModelFiles

__all__ = ["ChatTemplate", "find_template"]


# Ten times the longest published template.
_MAX_SOURCE_CHARACTERS = 1 << 20
# A template can raise a text as long as any it can make.
_MAX_MESSAGE_CHARACTERS = 500


class _TemplateRaisedError(Exception):
    """The template called raise_exception."""


def _raise_exception(message: object) -> NoReturn:
    raise _TemplateRaisedError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


class ChatTemplate:
    """A model's chat template, rendered in a sandbox with bounded time and memory.

    Args:
        source: jinja2 text.
        special_tokens: names the template may use ("bos_token", ...) and their text.

    Raises:
        CorruptFileError: the template is not valid jinja2, or absurdly long or deep.

    Example:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}")
        >>> template.render([{"role": "user", "content": "hi"}])
        'hi;'
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        # Imported here because it costs 40 ms that a model without a template need not pay.
        from jinja2 import TemplateSyntaxError

        from ryzanstein.template_sandbox import TemplateEnvironment

        if len(source) > _MAX_SOURCE_CHARACTERS:
            raise CorruptFileError(
                f"the chat template has {len(source)} characters; at most "
                f"{_MAX_SOURCE_CHARACTERS} are read"
            )
        self._environment = TemplateEnvironment()
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CorruptFileError(
                f"the chat template does not parse, line {error.lineno}: {error.message}"
            ) from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise CorruptFileError(f"the chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_files(
        cls, files: ModelFiles, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate | None:
        """Return the template of chat_template.jinja, tokenizer_config.json or chat_template.json,
        if there is one.

        Raises:
            CorruptFileError: the file or the template does not parse.
        """
        source = find_template(files)
        return None if source is None else cls(source, special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt for a conversation.

        Args:
            messages: mappings with "role" and "content".
            add_generation_prompt: end with the beginning of the assistant's next message.

        Raises:
            ValidationError: a malformed message, one that the template does not accept, or a
                template that takes more time or memory than a chat template needs.
        """
        from ryzanstein.template_sandbox import TemplateLimitError

        _check_messages(messages)
        try:
            with self._environment.limits():
                return self._template.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    **self._special_tokens,
                )
        except _TemplateRaisedError as error:
            raise ValidationError(
                f"the model's chat template rejects the messages: "
                f"{error!s:.{_MAX_MESSAGE_CHARACTERS}}"
            ) from error
        except TemplateLimitError as error:
            raise ValidationError(f"the model's chat template was stopped: {error}") from error
        except Exception as error:  # a template can raise whatever an expression can
            raise ValidationError(
                f"the model's chat template failed on the messages: "
                f"{error!s:.{_MAX_MESSAGE_CHARACTERS}}"
            ) from error


def find_template(files: ModelFiles) -> str | None:
    """Return a model's chat template as text, None where it has none.

    Raises:
        CorruptFileError: a file that may hold it does not parse.
    """
    source = files.read_text("chat_template.jinja")
    if source is not None:
        return source
    # The last is what models of images and text were published with.
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = (files.read_json(name) or {}).get("chat_template")
        if isinstance(value, list):
            named = {i.get("name"): i.get("template") for i in value if isinstance(i, dict)}
            value = named.get("default")
        if value is not None and not isinstance(value, str):
            raise CorruptFileError(
                f"{files.where(name)}: chat_template must be a string or a list of named "
                f"templates, found {type(value).__name__}"
            )
        if value is not None:
            return value
    return None


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
