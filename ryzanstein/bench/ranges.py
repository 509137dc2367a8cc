"""Lists of numbers as llama-bench takes them: `512`, `1,2,4`, `1-4`, `128-1024*2`, `0-2048+512`."""

from __future__ import annotations

import re

from ryzanstein.config import check_integer
from ryzanstein.errors import ValidationError

__all__ = ["parse_numbers"]

_ITEM = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
_MOST_VALUES = 256


def parse_numbers(option: str, text: str, minimum: int, maximum: int | None = None) -> list[int]:
    """Return the numbers that `text` names, in its order, each once.

    Args:
        option: what the text was given for, for messages.
        text: numbers and ranges `first-last`, `first-last+step`, `first-last*factor`, separated by
            commas. A range ends with its greatest number that does not exceed `last`.
        minimum: the least number allowed.
        maximum: the greatest, or None.

    Raises:
        ValidationError: not such a list, a number outside the limits, or too many numbers.

    Example:
        >>> parse_numbers("-p", "1,128-1000*2", 1)
        [1, 128, 256, 512]
    """
    numbers: dict[int, None] = {}
    for item in text.split(","):
        for number in _expand(option, item.strip()):
            numbers[check_integer(option, number, minimum, maximum)] = None
            if len(numbers) > _MOST_VALUES:
                raise ValidationError(f"{option} {text} names more than {_MOST_VALUES} numbers")
    return list(numbers)


def _expand(option: str, item: str) -> range | list[int]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValidationError(
            f"{option} takes numbers and ranges such as 512, 1,2,4, 1-4, 128-1024*2 or 0-2048+512, "
            f"got {item!r}"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    operator, operand = match[3] or "+", int(match[4] or 1)
    if last < first:
        raise ValidationError(f"{option} {item}: {last} is less than {first}")
    if operator == "+":
        if operand == 0:
            raise ValidationError(f"{option} {item}: a step of 0 never arrives")
        return range(first, last + 1, operand)
    if first == 0 or operand < 2:
        raise ValidationError(f"{option} {item}: multiplying {first} by {operand} never arrives")
    numbers = [first]
    while numbers[-1] * operand <= last:
        numbers.append(numbers[-1] * operand)
    return numbers
