from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.engine.stop import StopMatcher


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The meaning: grow the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def test_holds_back_only_what_may_be_a_stop() -> None:
    matcher = StopMatcher(["<end>", "###"])
    assert matcher.feed("a < b <e") == "a < b "
    assert matcher.feed("nd #") == "<end "
    assert matcher.feed("#") == ""
    assert matcher.feed("x##") == "##x"
    assert not matcher.matched
    assert matcher.feed("#more") == ""
    assert matcher.matched
    assert matcher.feed("ignored") == ""
    assert matcher.flush() == ""


def test_flush_returns_an_unfinished_stop() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.feed("sto") == ""
    assert matcher.flush() == "sto"


def test_without_stops_everything_passes() -> None:
    assert StopMatcher([]).feed("text") == "text"


@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    text = "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()
    assert (text, matcher.matched) == cut("".join(pieces), stops)
