from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein import ValidationError
from ryzanstein.bench.ranges import parse_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = st.integers(0, 10**6)
Item = tuple[str, list[int]]


def powers(first: int, last: int, factor: int) -> Iterator[int]:
    return takewhile(lambda n: n <= last, (first * factor**i for i in range(64)))


@st.composite
def items(draw: st.DrawFn) -> Item:
    """A number or a range as text, and the numbers it stands for."""
    kind = draw(st.sampled_from(["number", "range", "+", "*"]))
    first = draw(st.integers(1, 10**6))
    if kind == "number":
        return str(first), [first]
    if kind == "range":
        last = first + draw(st.integers(0, 20))
        return f"{first}-{last}", list(range(first, last + 1))
    if kind == "+":
        step = draw(st.integers(1, 1000))
        last = first + step * draw(st.integers(0, 20)) + draw(st.integers(0, step - 1))
        return f"{first}-{last}+{step}", list(range(first, last + 1, step))
    last = draw(st.integers(first, 10**9 - 1))
    factor = draw(st.integers(2, 1000))
    return f"{first}-{last}*{factor}", list(powers(first, last, factor))


@given(st.lists(items(), min_size=1, max_size=6))
def test_lists_are_their_items_in_order_without_repeats(parts: list[Item]) -> None:
    text = ",".join(part for part, _ in parts)
    expected = dict.fromkeys(number for _, numbers in parts for number in numbers)
    assert parse_numbers("-p", text, 0) == list(expected)


@given(st.text(alphabet="0123456789-+*, x", max_size=12))
def test_any_text_is_a_list_of_numbers_or_refused(text: str) -> None:
    try:
        numbers = parse_numbers("-p", text, 0)
    except ValidationError:
        return
    assert numbers
    assert len(set(numbers)) == len(numbers)


@given(SMALL, SMALL, SMALL)
def test_limits_hold_for_every_number(number: int, minimum: int, maximum: int) -> None:
    if minimum <= number <= maximum:
        assert parse_numbers("-t", str(number), minimum, maximum) == [number]
    else:
        with pytest.raises(ValidationError, match="-t must be"):
            parse_numbers("-t", str(number), minimum, maximum)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "takes numbers"),
        ("1,", "takes numbers"),
        ("-5", "takes numbers"),
        ("4-", "takes numbers"),
        ("1-4/2", "takes numbers"),
        ("1.5", "takes numbers"),
        ("9999999999", "takes numbers"),
        ("9-1", "1 is less than 9"),
        ("1-9+0", "a step of 0"),
        ("1-9*1", "multiplying 1 by 1"),
        ("0-9*2", "multiplying 0 by 2"),
        ("1-999999999", "more than 256"),
    ],
)
def test_nonsense_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse_numbers("-p", text, 0)
