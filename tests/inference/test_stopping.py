"""Stop strings: the same end however the text is split into pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.inference.text_stream import StopStrings


def reference(text: str, strings: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first string to be complete ends the text in front of itself, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [s for s in strings if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def fed(pieces: list[str], strings: list[str]) -> tuple[str, str | None]:
    return fed_to(StopStrings(strings), pieces)


def fed_to(stop: StopStrings, pieces: Iterable[str]) -> tuple[str, str | None]:
    text = ""
    for piece in pieces:
        certain, found = stop.feed(piece)
        text += certain
        if found is not None:
            return text, found
    return text + stop.flush(), None


@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=8),
    strings=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_end_does_not_depend_on_how_the_text_is_cut(pieces, strings):
    text = "".join(pieces)
    assert fed(pieces, strings) == fed(list(text), strings) == fed([text], strings) == reference(text, strings)


def test_what_could_begin_a_stop_string_is_held_back_and_nothing_else():
    stop = StopStrings(["END", "\n\n"])
    assert [stop.feed(piece)[0] for piece in ("one E", "N", "E", "x\n", "y")] == ["one ", "", "EN", "Ex", "\ny"]


@pytest.mark.parametrize(
    ("pieces", "text", "string"),
    [
        (["abc", "def"], "ab", "cd"),  # over two pieces
        (["abcdef"], "ab", "cd"),  # ends inside a piece
        (["cd"], "", "cd"),  # nothing but
        (["c", "c", "d"], "c", "cd"),  # begins twice
    ],
)
def test_a_stop_string_is_found_across_and_inside_pieces(pieces, text, string):
    assert fed(pieces, ["cd"]) == (text, string)


def test_many_long_strings_take_few_steps_for_a_character():
    strings = ["a" * 999 + "b", *("c" + "a" * 998 + chr(100 + i) for i in range(63))]
    stop, text, calls = StopStrings(strings), "a" * 998 + "b" + "a" * 1000 + "b", Counter()

    class Counted(str):
        def __getitem__(self, place):
            calls["all"] += 1
            return super().__getitem__(place)

    stop.strings = tuple(map(Counted, strings))
    assert fed_to(stop, text) == ("a" * 998 + "b" + "a", strings[0])
    assert calls["all"] < 4 * len(text) * len(strings)
