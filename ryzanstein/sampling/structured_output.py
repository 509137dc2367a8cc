"""What a text must look like, as the caller says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ryzanstein.errors import ValidationError

__all__ = ["StructuredOutput", "normal_choice", "normal_schema"]


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What a text must look like.

    Args:
        kind: "json_schema", "regex", "grammar" (in Lark's notation) or "choice" (a JSON list).
        source: the text of it.
    """

    kind: Literal["json_schema", "regex", "grammar", "choice"]
    source: str


def normal_schema(value: object) -> str:
    """Return a JSON schema as text; its properties keep their order.

    Raises:
        ValidationError: it is neither text nor a mapping that JSON can hold.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValidationError(f"json_schema must be a dict or a text, got {value!r}")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValidationError(f"json_schema is not JSON: {error}") from error


def normal_choice(value: object) -> tuple[str, ...]:
    """Return the texts to choose from.

    Raises:
        ValidationError: there are none, or one is not a text or empty.
    """
    texts = None if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValidationError(f"choice must be a list of non-empty strings, got {value!r}")
    return texts
