"""Typed reads from a configuration object; every failure names the file and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein.errors import CorruptFileError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields"]

_REMEDY = "download the checkpoint's config.json again"


class Fields:
    """One JSON object of a configuration file, with checked access."""

    def __init__(self, values: Mapping[str, object], file: str, prefix: str = "") -> None:
        self.values = values
        self._file = file
        self._prefix = prefix

    def with_defaults(self, defaults: Mapping[str, object]) -> Fields:
        """Return the same object with these values for fields that are absent."""
        return Fields({**defaults, **self.values}, self._file, self._prefix)

    def name(self, key: str) -> str:
        """Return the file and full field name, for errors."""
        return f"{self._file}: field '{self._prefix}{key}'"

    def has(self, key: str) -> bool:
        """Return whether the field is there and not null."""
        return self.values.get(key) is not None

    def _required(self, key: str) -> object:
        if key not in self.values:
            raise ModelLoadError(f"{self.name(key)} is missing; add it, or {_REMEDY}")
        return self.values[key]

    def _wrong(self, key: str, expected: str, found: object) -> CorruptFileError:
        text = repr(found)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return CorruptFileError(
            f"{self.name(key)} must be {expected}, found {shown}; correct it, or {_REMEDY}"
        )

    def integer(self, key: str, maximum: int) -> int:
        """Return an integer in [1, maximum]."""
        value = self._required(key)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self._wrong(key, f"an integer from 1 to {maximum}", value)
        return value

    def number(self, key: str, minimum: float, maximum: float) -> float:
        """Return a number in [minimum, maximum]."""
        value = self._required(key)
        # bool is an int, and not a number anyone meant
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and minimum <= value <= maximum
        ):
            return float(value)
        raise self._wrong(key, f"a number from {minimum:g} to {maximum:g}", value)

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false; an absent or null field is the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; an absent or null field is the default, where there is one."""
        value = self.values.get(key) if default is not None else self._required(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings, or None where the field is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong(key, "a list of strings", value)
        items = tuple(item for item in value if isinstance(item, str))
        if len(items) != len(value):
            raise self._wrong(key, "a list of strings", value)
        return items

    def numbers(self, key: str, minimum: float, maximum: float) -> tuple[float, ...]:
        """Return a list of numbers, each in [minimum, maximum]."""
        value = self._required(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of numbers", value)
        named = {str(index): item for index, item in enumerate(value)}
        items = Fields(named, self._file, f"{self._prefix}{key}.")
        return tuple(items.number(index, minimum, maximum) for index in named)

    def section(self, key: str) -> Fields | None:
        """Return a nested object, or None where the field is absent, null or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return Fields(value, self._file, f"{self._prefix}{key}.") if value else None
