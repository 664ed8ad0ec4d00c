"""Texts stored as UTF-8 behave like any sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.data.sources import CompactStrings

TEXTS = ["one", "", "zwei €", "\U0001f389", "half \ud83c", "a byte \udcff", "one"]


@given(st.lists(st.text(st.characters(), max_size=5), max_size=9))
def test_texts_come_back_as_they_were(texts):
    found = CompactStrings(texts)
    assert list(found) == texts
    assert [found[i] for i in range(len(found))] == texts
    assert len(found) == len(texts)


def test_it_is_indexed_and_cut_like_a_list():
    found = CompactStrings(TEXTS)
    assert (found[-1], found[2:4], found[::-2]) == (TEXTS[-1], TEXTS[2:4], TEXTS[::-2])
    for beyond in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError):
            found[beyond]
    assert "zwei €" in found
    assert "drei" not in found


def test_a_selection_of_a_selection_is_in_the_order_asked_for():
    found = CompactStrings(TEXTS).take(np.array([6, 4, 2, 1]))
    assert list(found) == [TEXTS[6], TEXTS[4], TEXTS[2], TEXTS[1]]
    assert list(found.take(np.array([3, 0]))) == [found[3], found[0]] == [TEXTS[1], TEXTS[6]]
    assert list(found.take(np.arange(0))) == []


def test_a_selection_is_not_extended():
    with pytest.raises(TypeError, match="extended"):
        CompactStrings(TEXTS).take(np.arange(2)).extend(["more"])
