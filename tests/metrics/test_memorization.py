"""The longest copied span equals the one found by dynamic programming, however samples are grouped."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen import metrics as copying
from jaxgen.metrics import Place, Span, find_place, longest_copies

GENERAL = settings(max_examples=50, deadline=None, derandomize=True)


def slow_span(sample, texts):
    """The first of the longest common substrings, by the table of common suffixes."""
    best = Span(0, 0)
    ending = [0] * (len(sample) + 1)
    for text in texts:
        before = [0] * (len(text) + 1)
        for i, a in enumerate(sample, start=1):
            now = [0] * (len(text) + 1)
            for j, b in enumerate(text, start=1):
                now[j] = before[j - 1] + 1 if a == b else 0
            before = now
            ending[i] = max(ending[i], *now)
    for end, length in enumerate(ending):
        best = Span(end - length, length) if length > best.length else best
    return best


@pytest.mark.parametrize("symbols", ["ab", "abc", "aé漢𝄞"])
@GENERAL
@given(data=st.data())
def test_spans_are_those_of_dynamic_programming(symbols, data):
    text = st.text(symbols, max_size=60)
    samples = data.draw(st.lists(text, max_size=3))
    texts = data.draw(st.lists(text, max_size=2))
    assert longest_copies(samples, texts) == [slow_span(sample, texts) for sample in samples]


def test_spans_reach_over_no_boundary():
    assert longest_copies(["abc", "def"], ["abcdef"]) == [Span(0, 3), Span(0, 3)]
    assert longest_copies(["abcdef"], ["abc", "def"]) == [Span(0, 3)]
    assert longest_copies(["", "xyz", "a\0b"], ["a\0bc"]) == [Span(0, 0), Span(0, 0), Span(0, 3)]


def test_batches_change_nothing(monkeypatch):
    pick = random.Random(0)
    samples = ["".join(pick.choices("abc", k=pick.randint(0, 30))) for _ in range(20)]
    text = "".join(pick.choices("abc", k=300))
    whole = longest_copies(samples, [text])
    monkeypatch.setattr(copying, "BATCH", 25)  # shorter than some samples
    assert longest_copies(samples, [text]) == whole


def test_a_place_is_the_first_one():
    assert find_place("ab", ["xb", "xabab", "ab"]) == Place(1, 1)
    assert find_place("abc", ["ab", "c"]) is None


@pytest.mark.slow
def test_spans_of_long_texts_are_those_of_a_window_slid_over_them():
    pick = random.Random(1)
    text = "".join(pick.choices("abcd", k=200_000))
    samples = []
    for _ in range(20):
        at = pick.randrange(len(text) - 400)
        samples.append("".join(pick.choice("abcd") if pick.random() < 0.02 else c for c in text[at : at + 400]))
    for sample, span in zip(samples, longest_copies(samples, [text])):
        start = longest = 0
        for end in range(1, len(sample) + 1):
            while sample[start:end] not in text:
                start += 1
            longest = max(longest, end - start)
        assert span.length == longest
        assert sample[span.start : span.start + span.length] in text
