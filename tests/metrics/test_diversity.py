"""Diversity metrics: tiny examples computed by hand and by their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.metrics import Cycle, distinct, find_cycle, known_share, natural_unit, seq_rep, units

GENERAL = settings(max_examples=100, deadline=None, derandomize=True)
sequences = st.lists(st.text("ab", max_size=12), max_size=4)


def test_distinct_n_by_hand():
    texts = [["the", "cat", "the", "cat"], ["the", "dog"]]
    assert distinct(texts, 1) == 3 / 6
    assert distinct(texts, 2) == 3 / 4  # the cat, cat the, the dog; "cat the" does not reach from text to text
    assert distinct(texts, 3) == 2 / 2
    assert distinct(texts, 5) is None
    assert distinct([], 1) is None


def test_seq_rep_n_by_hand():
    assert seq_rep([list("abcabcab")], 3) == pytest.approx(1 - 3 / 6)
    assert seq_rep([list("abcabcab"), list("abcd"), list("ab")], 3) == pytest.approx((0.5 + 0) / 2)
    assert seq_rep([list("ab")], 3) is None


@GENERAL
@given(texts=sequences, n=st.integers(1, 4))
def test_the_shares_are_those_of_counted_substrings(texts, n):
    grams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in texts]
    everything = [gram for found in grams for gram in found]
    assert distinct(texts, n) == (len(set(everything)) / len(everything) if everything else None)
    again = [sum(gram in found[:i] for i, gram in enumerate(found)) / len(found) for found in grams if found]
    assert seq_rep(texts, n) == (pytest.approx(sum(again) / len(again)) if again else None)


def test_known_words_are_counted_with_their_repetitions():
    assert known_share([["a", "x", "a"], ["b"]], {"a", "b"}) == 3 / 4
    assert known_share([[]], {"a"}) is None


def test_words_keep_apostrophes_and_case_and_characters_leave_white_space_out():
    assert units("Don't  stop,\nIt’s 2nd_rate!") == ["Don't", "stop", "It’s", "2nd_rate"]
    assert units(" 你 好\n", "character") == ["你", "好"]


@pytest.mark.parametrize(
    ("text", "before", "cut", "words"),
    [
        ("the cat sat", "", False, ["the", "cat", "sat"]),
        ("the cat sa", "", True, ["the", "cat"]),
        ("the cat sat ", "", True, ["the", "cat", "sat"]),
        ("the", "", True, []),
        ("ther day", "ano", False, ["another", "day"]),
        (" day", "another", False, ["day"]),
        ("", "another", False, []),
    ],
)
def test_a_word_broken_off_is_left_out_and_one_begun_in_the_prompt_is_whole(text, before, cut, words):
    assert units(text, before=before, cut=cut) == words


def test_marks_and_joiners_stay_in_their_words_and_are_none_of_their_own():
    text = "हिन्दी भाषा, cafe\u0301 می\u200cخواهم ❤\ufe0f 👨\u200d👩"
    assert units(text) == ["हिन्दी", "भाषा", "cafe\u0301", "می\u200cخواهم"]


def test_text_without_spaces_is_measured_in_characters():
    assert natural_unit(["the cat sat\n"] * 3) == "word"
    assert natural_unit(["春眠不觉晓处处闻啼鸟夜来风雨声花落知多少春眠不觉晓\n"]) == "character"
    assert natural_unit(["the cat " * 20_000, "春" * 200_000]) == "word"  # a beginning is enough


def slow_cycle(sequence, rounds, least):
    """The tail that reaches furthest back among all periods, tried one by one."""
    best = None
    for period in range(1, len(sequence)):
        start = len(sequence) - period
        while start > 0 and sequence[start - 1] == sequence[start - 1 + period]:
            start -= 1
        tail = len(sequence) - start
        if tail >= max(rounds * period, least) and (best is None or start < best[1]):
            best = (period, start)
    return best


def test_a_cycle_by_hand():
    assert find_cycle(list("xyabcabcab"), rounds=2, least=1) == Cycle(period=3, start=2)
    assert find_cycle(list("xyabcabcab"), rounds=3, least=1) is None
    assert find_cycle(list("xyabcabcab"), rounds=2, least=9) is None
    assert find_cycle([1] * 40) == Cycle(1, 0)  # by its smallest period
    assert find_cycle(list("ab" * 20 + "c")) is None  # it was left again
    assert find_cycle([]) is None


@GENERAL
@given(
    head=st.text("ab", max_size=8),
    turn=st.text("ab", min_size=1, max_size=6),
    times=st.integers(0, 5),
    rest=st.text("ab", max_size=3),
    rounds=st.integers(1, 4),
    least=st.integers(1, 12),
)
def test_cycles_are_those_of_a_search_through_all_periods(head, turn, times, rest, rounds, least):
    sequence = head + turn * times + rest
    assert find_cycle(sequence, rounds=rounds, least=least) == slow_cycle(sequence, rounds, least)
