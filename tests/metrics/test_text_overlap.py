"""BLEU and CIDEr-D: compared with sacrebleu, a slow second implementation, and cases counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import DataError
from jaxgen.metrics import bleu, caption_scores, cider, units

GENERAL = settings(max_examples=100, deadline=None, derandomize=True)
texts = st.lists(st.sampled_from("abc"), max_size=8)
#: Hypotheses with a group of references each.
corpora = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


def split(corpus):
    return [hypothesis for hypothesis, _ in corpus], [group for _, group in corpus]


def test_bleu_by_hand():
    hypothesis = units("the the the the the the the")  # the example of Papineni et al., section 2.1
    references = [units("the cat is on the mat"), units("there is a cat on the mat")]
    assert bleu([hypothesis], [references]) == [pytest.approx(200 / 7), 0, 0, 0]


def test_the_brevity_penalty_takes_the_nearest_reference_and_of_two_the_shorter():
    assert bleu([list("aaaa")], [[list("aaaaaa"), list("aa"), list("aaaaaaaaa")]]) == pytest.approx([100] * 4)
    assert bleu([list("aaaa")], [[list("aaaaaa")]]) == pytest.approx([100 * math.exp(1 - 6 / 4)] * 4)


def test_bleu_is_that_of_the_whole_corpus_and_no_mean():
    found = bleu([list("ab"), list("cccc")], [[list("ab")], [list("dddd")]])
    assert found[:2] == [pytest.approx(100 * 2 / 6), pytest.approx(100 * math.sqrt(2 / 6 * 1 / 4))]


@GENERAL
@given(corpus=corpora, order=st.integers(1, 4))
def test_bleu_is_sacrebleus(corpus, order):
    metrics = pytest.importorskip("sacrebleu.metrics")
    hypotheses, references = split(corpus)
    most = max(map(len, references))
    streams = [[" ".join(group[i]) if i < len(group) else None for group in references] for i in range(most)]
    theirs = metrics.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    wanted = theirs.corpus_score([" ".join(text) for text in hypotheses], streams)
    assert bleu(hypotheses, references)[order - 1] == pytest.approx(wanted.score, abs=1e-9)


def slow_cider(hypotheses, references):
    """The equations of section 7 as arrays over every n-gram there is."""
    scores = np.zeros(len(hypotheses))
    for n in (1, 2, 3, 4):

        def grams(text, n=n):
            return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

        everything = [*hypotheses, *(text for group in references for text in group)]
        axis = sorted({gram for text in everything for gram in grams(text)})
        df = [sum(any(gram in grams(text) for text in group) for group in references) for gram in axis]
        idf = np.log(len(references) / np.maximum(df, 1)) if axis else np.zeros(0)

        def vector(text, axis=axis, idf=idf, grams=grams):
            return np.array([grams(text).count(gram) for gram in axis]) * idf if axis else np.zeros(0)

        for i, (hypothesis, group) in enumerate(zip(hypotheses, references)):
            for reference in group:
                h, r = vector(hypothesis), vector(reference)
                norms = np.linalg.norm(h) * np.linalg.norm(r)
                similarity = np.minimum(h, r) @ r / norms if norms > 0 else 0.0
                distance = len(hypothesis) - len(reference)
                scores[i] += 10 / 4 / len(group) * np.exp(-(distance**2) / 72) * similarity
    return scores


@GENERAL
@given(corpus=corpora)
def test_cider_is_what_its_equations_say(corpus):
    hypotheses, references = split(corpus)
    np.testing.assert_allclose(cider(hypotheses, references), slow_cider(hypotheses, references), atol=1e-9)


def test_cider_by_hand():
    a, b = units("red circle left"), units("blue square right")
    # Alike for n = 1, 2, 3, and there is no 4-gram: 10 · 3 / 4.
    assert cider([a, b], [[a], [b]]) == pytest.approx([7.5, 7.5])
    assert cider([b, a], [[a], [b]]) == [0, 0]
    # The reference has a word more: cosines 3 / √12, 2 / √6, 1 / √2, 0 and the penalty exp(-1/72).
    cosines = 3 / math.sqrt(12) + 2 / math.sqrt(6) + 1 / math.sqrt(2)
    assert cider([a, b], [[[*a, "of"]], [b]])[0] == pytest.approx(10 / 4 * math.exp(-1 / 72) * cosines)
    # A word three times is clipped to the reference's one: 1 · 1 / (3 · 1), for n = 1 alone, two words longer.
    assert cider([["red"] * 3, b], [[["red"]], [b]])[0] == pytest.approx(10 / 4 * math.exp(-4 / 72) / 3)


def test_words_that_all_references_have_count_nothing():
    assert cider([["a"], ["a"]], [[["a"]], [["a"]]]) == [0, 0]
    assert cider([["a"]], [[["a"]]]) == [0]


def test_each_reference_counts_the_same():
    a, b, c = [list(4 * letter) for letter in "abc"]
    both, one, none = (cider([a, c], [group, [c]])[0] for group in ([a, a], [a, b], [b, b]))
    assert (both, one, none) == (pytest.approx(10), pytest.approx(5), 0)


def test_captions_are_compared_in_lower_case_without_punctuation():
    assert caption_scores(["A man's dog, on GRASS ."], [["a man's dog on grass"]])["bleu_4"] == pytest.approx(100)


def test_all_scores_of_texts_have_names():
    scores = caption_scores(["A cat sits down.", "two dogs ran"], [["a dog", "a cat sits down"], ["Two dogs, running"]])
    words = [["a", "cat", "sits", "down"], ["two", "dogs", "ran"]]
    known = [[["a", "dog"], words[0]], [["two", "dogs", "running"]]]
    wanted = bleu(words, known)
    assert [scores[f"bleu_{n}"] for n in (1, 2, 3, 4)] == list(wanted)
    assert scores["cider"] == pytest.approx(sum(cider(words, known)) / 2)
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"]


@pytest.mark.parametrize("measure", [bleu, cider])
def test_texts_without_references_are_refused(measure):
    with pytest.raises(DataError, match="0 texts"):
        measure([], [])
    with pytest.raises(DataError, match="2 texts"):
        measure([["a"], ["b"]], [[["a"]]])
    with pytest.raises(DataError, match="2 groups"):
        measure([["a"], ["b"]], [[["a"]], []])


def test_texts_without_words_score_nothing():
    assert set(caption_scores([""], [["a cat"]]).values()) == {0}
