"""Overlap of texts with references: BLEU, CIDEr-D and exact matches.

All metrics count words: ``caption_words`` converts a text to lower case and drops punctuation. Programs with another
tokenization report other values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from jaxgen.errors import DataError
from jaxgen.metrics.diversity import ngrams, units

#: The longest n-grams of both metrics.
ORDERS = 4
#: Standard deviation, in words, of CIDEr-D's length penalty.
SIGMA = 6.0

#: A text as its words.
Words = Sequence[Hashable]
_Counts = Counter[tuple[Hashable, ...]]
_Vector = dict[tuple[Hashable, ...], float]


class Bleu(NamedTuple):
    """Corpus BLEU and its components."""

    scores: tuple[float, ...]  # BLEU-1, BLEU-2, …, 0 to 100
    precisions: tuple[float, ...]  # of 1-grams, 2-grams, …, 0 to 1
    brevity: float  # the penalty, 0 to 1
    length: int  # words of all hypotheses
    reference_length: int  # words of the references nearest in length


def caption_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return units(text.lower())


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]], orders: int = ORDERS) -> Bleu:
    """Returns corpus BLEU-1 to BLEU-``orders`` of hypotheses with at least one reference each, without smoothing.

    BLEU-n = BP · (p_1 ⋯ p_n)^(1/n). p_n is the share of all hypotheses' n-grams that are matched, each at most as often
    as in the one reference that has it most often. BP = exp(min(0, 1 - r/c)) for c words in all hypotheses and r in
    the references nearest to each in length, of two as near the shorter (Papineni et al., ACL 2002, section 2.3).
    Raises ``DataError`` without hypotheses, and for one without references.
    """
    _check(hypotheses, references)
    matched, total = [0] * orders, [0] * orders
    length = nearest = 0
    for hypothesis, known in zip(hypotheses, references):
        length += len(hypothesis)
        nearest += min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in known)[1]
        for n in range(1, orders + 1):
            counts = Counter(ngrams(hypothesis, n))
            most: _Counts = Counter()
            for reference in known:
                most |= Counter(ngrams(reference, n))
            matched[n - 1] += (counts & most).total()
            total[n - 1] += counts.total()
    precisions = tuple(hits / there if there else 0.0 for hits, there in zip(matched, total))
    brevity = math.exp(min(0.0, 1 - nearest / length)) if length else 0.0
    scores = tuple(100 * brevity * _geometric_mean(precisions[:n]) for n in range(1, orders + 1))
    return Bleu(scores, precisions, brevity, length, nearest)


def cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]], orders: int = ORDERS) -> list[float]:
    """Returns CIDEr-D of each hypothesis, 0 to 10; that of the corpus is their mean.

    For n = 1 … ``orders``, a text becomes the vector g of its n-grams, each counted and multiplied with log(N / df):
    N is the number of hypotheses, df that of those in any of whose references the n-gram occurs (1 if in none). The
    similarity of a hypothesis h and a reference r is

        exp(-(|h| - |r|)² / 2σ²) · Σ min(g_h, g_r) · g_r / (‖g_h‖ ‖g_r‖),    |·| in words, σ = 6,

    0 where a vector is. The score is ten times its mean over the orders and over the references (Vedantam, Zitnick &
    Parikh, CVPR 2015, sections 4 and 7). Document frequencies come from the references given, so scores of different
    sets do not compare; with a single hypothesis all weights, and the score, are 0. Raises ``DataError`` as ``bleu``.
    """
    _check(hypotheses, references)
    known = [[_all_orders(reference, orders) for reference in group] for group in references]
    frequency: _Counts = Counter()
    for group in known:
        frequency.update(set().union(*(counts for vectors in group for counts in vectors)))
    scores = []
    for hypothesis, texts, group in zip(hypotheses, references, known):
        own = [_weighted(counts, frequency, len(known)) for counts in _all_orders(hypothesis, orders)]
        total = 0.0
        for text, vectors in zip(texts, group):
            penalty = math.exp(-((len(hypothesis) - len(text)) ** 2) / (2 * SIGMA**2))
            other = [_weighted(counts, frequency, len(known)) for counts in vectors]
            total += penalty * math.fsum(map(_clipped_cosine, own, other))
        scores.append(10 * total / (orders * len(texts)))
    return scores


def exact_match(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Returns the share of hypotheses whose words equal those of a reference; raises ``DataError`` as ``bleu``."""
    _check(hypotheses, references)
    pairs = zip(hypotheses, references)
    return sum(any(list(text) == list(known) for known in group) for text, group in pairs) / len(hypotheses)


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns ``bleu_1`` to ``bleu_4`` (0 to 100), ``cider`` (0 to 10) and ``exact`` (0 to 1) of texts."""
    texts = [caption_words(text) for text in hypotheses]
    known = [[caption_words(text) for text in group] for group in references]
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu(texts, known).scores, 1)}
    return scores | {"cider": math.fsum(cider(texts, known)) / len(texts), "exact": exact_match(texts, known)}


def _check(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise DataError(
            f"There are {len(hypotheses)} texts to compare with {len(references)} groups of references: "
            "give one text or more, and a group for each."
        )
    bare = [place for place, group in enumerate(references) if not group]
    if bare:
        raise DataError(f"Text {bare[0]} (counted from 0) has no reference to compare it with: give one or more.")


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def _all_orders(text: Words, orders: int) -> list[_Counts]:
    return [Counter(ngrams(text, n)) for n in range(1, orders + 1)]


def _weighted(counts: _Counts, frequency: _Counts, total: int) -> _Vector:
    return {gram: count * math.log(total / max(frequency[gram], 1)) for gram, count in counts.items()}


def _clipped_cosine(hypothesis: _Vector, reference: _Vector) -> float:
    norms = _norm(hypothesis.values()) * _norm(reference.values())
    both = hypothesis.keys() & reference.keys()
    return (
        math.fsum(min(hypothesis[gram], reference[gram]) * reference[gram] for gram in both) / norms if norms else 0.0
    )


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values))
