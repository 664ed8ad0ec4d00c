"""Metrics of generated texts (overlap with references, diversity, copies of training text) and of classification.

BLEU and CIDEr-D of captions count lower-case words without punctuation: programs with another tokenization report
other values.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import DataError
from jaxgen.text import WORD

#: The longest n-grams of BLEU and CIDEr-D.
ORDERS = 4
#: Standard deviation, in words, of CIDEr-D's length penalty.
SIGMA = 6.0

#: A text as its words.
Words = Sequence[Hashable]
_Counts = Counter[tuple[Hashable, ...]]
_Vector = dict[tuple[Hashable, ...], float]


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]], orders: int = ORDERS) -> list[float]:
    """Returns corpus BLEU-1 to BLEU-``orders``, 0 to 100, without smoothing. Each text has one reference or more.

    BLEU-n = BP · (p_1 ⋯ p_n)^(1/n). p_n is the share of all hypotheses' n-grams that are matched, each at most as often
    as in the one reference that has it most often. BP = exp(min(0, 1 - r/c)). c is the number of words of all
    hypotheses, r that of the references nearest to each in length, the shorter of two equally near (Papineni et al.,
    ACL 2002, section 2.3).
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
    precisions = [hits / there if there else 0.0 for hits, there in zip(matched, total)]
    brevity = math.exp(min(0.0, 1 - nearest / length)) if length else 0.0
    return [100 * brevity * _geometric_mean(precisions[:n]) for n in range(1, orders + 1)]


def cider(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]], orders: int = ORDERS) -> list[float]:
    """Returns CIDEr-D of each hypothesis, 0 to 10; that of the corpus is their mean.

    For n = 1 … ``orders``, a text becomes the vector g of its n-grams, each counted and multiplied with log(N / df):
    N is the number of hypotheses, df the number of those with the n-gram in a reference, at least 1. The similarity of
    a hypothesis h and a reference r is

        exp(-(|h| - |r|)² / 2σ²) · Σ min(g_h, g_r) · g_r / (‖g_h‖ ‖g_r‖),    |·| in words, σ = 6,

    and 0 if a vector is 0. The score is ten times its mean over the orders and the references (Vedantam, Zitnick &
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


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns ``bleu_1`` to ``bleu_4`` (0 to 100) and ``cider`` (0 to 10) of the lower-case words of texts."""
    texts = [units(text.lower()) for text in hypotheses]
    known = [[units(text.lower()) for text in group] for group in references]
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu(texts, known), 1)}
    return scores | {"cider": math.fsum(cider(texts, known)) / len(texts)}


def _check(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise DataError(
            f"{len(hypotheses)} texts cannot be compared with {len(references)} groups of references: give one text or "
            "more, and a group of one reference or more for each."
        )


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def _all_orders(text: Words, orders: int) -> list[_Counts]:
    return [Counter(ngrams(text, n)) for n in range(1, orders + 1)]


def _weighted(counts: _Counts, frequency: _Counts, total: int) -> _Vector:
    return {gram: count * math.log(total / max(frequency[gram], 1)) for gram, count in counts.items()}


def _clipped_cosine(hypothesis: _Vector, reference: _Vector) -> float:
    vectors = (hypothesis, reference)
    norms = math.prod(math.sqrt(math.fsum(value * value for value in vector.values())) for vector in vectors)
    both = hypothesis.keys() & reference.keys()
    overlap = math.fsum(min(hypothesis[gram], reference[gram]) * reference[gram] for gram in both)
    return overlap / norms if norms else 0.0


#: Share of white space from which words are the unit of a text. English has a sixth, Chinese a hundredth.
WORD_SPACING = 0.05
#: How often a cycle must repeat, and how many symbols it must cover, not to be a coincidence such as "ee" or "1000".
ROUNDS, LEAST = 3, 32


class Cycle(NamedTuple):
    """From ``start`` on, a sequence repeats ``period`` symbols until its end."""

    period: int
    start: int


def natural_unit(texts: Iterable[str]) -> str:
    """Returns ``word`` for texts with spaces between words, else ``character``; looks at 100,000 characters."""
    start = ""
    for text in texts:
        start += text[: 100_000 - len(start)]
        if len(start) >= 100_000:
            break
    spaces = sum(map(str.isspace, start))
    return "word" if spaces >= WORD_SPACING * max(len(start), 1) else "character"


def units(text: str, unit: str = "word", *, before: str = "", cut: bool = False) -> list[str]:
    """Returns the words or the characters of ``text``, without white space.

    ``before`` is the preceding text: a word that begins there and ends in ``text`` is returned whole. With ``cut``, the
    text was truncated, and a word that touches its end is dropped because it may be incomplete.
    """
    if unit == "character":
        return [c for c in text if not c.isspace()]
    whole = before + text
    found = [match for match in WORD.finditer(whole) if match.end() > len(before)]
    if cut and found and found[-1].end() == len(whole):
        found.pop()
    return [match[0] for match in found]


def ngrams(sequence: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    """Returns all n-grams, in order."""
    return zip(*(sequence[i:] for i in range(n)))


def distinct(texts: Iterable[Sequence[Hashable]], n: int) -> float | None:
    """Returns distinct-n, the number of different n-grams divided by that of all; ``None`` without any.

    1 means that all differ. It decreases with the amount of text, so compare equal amounts only. Li et al. 2016
    (arXiv:1510.03055) divide by the number of tokens instead.
    """
    seen: set[tuple[Hashable, ...]] = set()
    count = 0
    for text in texts:
        seen.update(ngrams(text, n))
        count += max(len(text) - n + 1, 0)
    return len(seen) / count if count else None


def seq_rep(texts: Iterable[Sequence[Hashable]], n: int = 4) -> float | None:
    """Returns seq-rep-n: the share of a text's n-grams that repeat earlier ones, averaged over the texts.

    0 means no repetition. ``None`` if no text is long enough. Welleck et al. 2020 (arXiv:1908.04319).
    """
    shares = [1 - len(set(ngrams(text, n))) / (len(text) - n + 1) for text in texts if len(text) >= n]
    return sum(shares) / len(shares) if shares else None


def known_share(texts: Iterable[Sequence[str]], vocabulary: Collection[str]) -> float | None:
    """Returns the share of word occurrences that are in ``vocabulary``; ``None`` without any word."""
    words = [word for text in texts for word in text]
    return sum(word in vocabulary for word in words) / len(words) if words else None


def find_cycle(sequence: Sequence[Hashable], *, rounds: int = ROUNDS, least: int = LEAST) -> Cycle | None:
    """Returns the longest cycle at the end of a sequence, with its smallest period; ``None`` if there is none.

    Exact: ``sequence[i] == sequence[i + period]`` for every i from ``start`` on, but not for the one before. The cycle
    repeats at least ``rounds`` times and covers at least ``least`` symbols.
    """
    size, found, longest = len(sequence), None, 0
    for period, agreed in enumerate(_agreements(list(reversed(sequence))), start=1):
        tail = agreed + period
        if tail > longest and tail >= max(rounds * period, least):
            found, longest = Cycle(period, size - tail), tail
    return found


def _agreements(sequence: Sequence[Hashable]) -> list[int]:
    """Returns for each shift from 1 how far the sequence agrees with itself: the Z function, O(N)."""
    size = len(sequence)
    z = [0] * size
    left = right = 0  # the furthest-reaching match with the beginning, from which ``z`` inside it is known
    for shift in range(1, size):
        run = min(right - shift, z[shift - left]) if shift < right else 0
        while shift + run < size and sequence[run] == sequence[shift + run]:
            run += 1
        z[shift] = run
        if shift + run > right:
            left, right = shift, shift + run
    return z[1:]


#: Characters of samples per automaton, about 105 MB (benchmarks/copies.py). The texts are read once for each automaton.
BATCH = 200_000


class Span(NamedTuple):
    """``length`` characters of a text from ``start`` on; none if the length is 0."""

    start: int
    length: int


class Place(NamedTuple):
    """Character ``at`` of text number ``text``, both from 0."""

    text: int
    at: int


def longest_copies(samples: Sequence[str], texts: Sequence[str]) -> list[Span]:
    """Returns for each sample the longest span that occurs in one of ``texts``; the first of equally long ones.

    Takes linear time, and bounded memory unless a single sample is longer than ``BATCH``.
    """
    ends = itertools.accumulate(map(len, samples))
    batches = itertools.groupby(zip(ends, samples), key=lambda each: each[0] // BATCH)
    return [span for _, batch in batches for span in _longest([sample for _, sample in batch], texts)]


def find_place(span: str, texts: Iterable[str]) -> Place | None:
    """Returns where ``span`` first occurs in ``texts``."""
    found = ((number, text.find(span)) for number, text in enumerate(texts))
    return next((Place(number, at) for number, at in found if at >= 0), None)


def _longest(samples: Sequence[str], texts: Sequence[str]) -> list[Span]:
    # The separator of samples occurs in no text, so no span can cross it.
    automaton = Automaton(symbol for sample in samples for symbol in (*sample, None))
    matched = automaton.matched(texts)
    spans, begin = [], 0
    for sample in samples:
        lengths = [matched[state] for state in automaton.states[begin : begin + len(sample)]]
        longest = max(lengths, default=0)
        spans.append(Span(lengths.index(longest) + 1 - longest if longest else 0, longest))
        begin += len(sample) + 1
    return spans


class Automaton:
    """The suffix automaton of a sequence: the smallest automaton that accepts exactly its substrings.

    A state stands for substrings that end at the same positions. The longest of them has ``lengths[state]`` symbols,
    and ``links[state]`` is the state of its longest suffix that ends at more positions. ``states[i]`` is the state of
    the first i + 1 symbols. Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
    """

    def __init__(self, symbols: Iterable[str | None]) -> None:
        self.arcs: list[dict[str | None, int]] = [{}]
        self.links, self.lengths = [-1], [0]
        self.states: list[int] = []
        last = 0
        for symbol in symbols:
            last = self._extend(last, symbol)
            self.states.append(last)

    def _extend(self, last: int, symbol: str | None) -> int:
        new = self._add({}, self.lengths[last] + 1, 0)
        while last >= 0 and symbol not in self.arcs[last]:
            self.arcs[last][symbol] = new
            last = self.links[last]
        if last < 0:
            return new
        old = self.arcs[last][symbol]
        if self.lengths[old] == self.lengths[last] + 1:
            self.links[new] = old
            return new
        # The shorter substrings of ``old`` now end at one more position: they get their own state.
        shorter = self._add(dict(self.arcs[old]), self.lengths[last] + 1, self.links[old])
        self.links[old] = self.links[new] = shorter
        while last >= 0 and self.arcs[last].get(symbol) == old:
            self.arcs[last][symbol] = shorter
            last = self.links[last]
        return new

    def _add(self, arcs: dict[str | None, int], length: int, link: int) -> int:
        self.arcs.append(arcs)
        self.lengths.append(length)
        self.links.append(link)
        return len(self.arcs) - 1

    def matched(self, texts: Iterable[str]) -> list[int]:
        """Returns for each state the length of the longest suffix of its substrings that occurs in ``texts``."""
        best = self._visited(texts)
        shortest_first = sorted(range(1, len(best)), key=self.lengths.__getitem__)
        # If a substring occurred, so did its suffixes: those of the links, in full length.
        for state in reversed(shortest_first):
            link = self.links[state]
            if best[state] and link:
                best[link] = self.lengths[link]
        for state in shortest_first:
            if not best[state]:
                best[state] = best[self.links[state]]
        return best

    def _visited(self, texts: Iterable[str]) -> list[int]:
        """Returns for each state the longest match with which reading ``texts`` visited it, or 0."""
        arcs, links, lengths = self.arcs, self.links, self.lengths
        best = [0] * len(arcs)
        for text in texts:
            state = length = 0
            for symbol in text:
                after = arcs[state].get(symbol)
                if after is None:
                    while state >= 0 and symbol not in arcs[state]:
                        state = links[state]
                    length = lengths[state] if state >= 0 else -1
                    after = arcs[state][symbol] if state >= 0 else 0
                state = after
                length += 1
                if length > best[state]:
                    best[state] = length
        return best


#: Most labels for which the whole matrix is shown; with more, only the most common mistakes.
MAX_MATRIX_LABELS = 12
#: Number of mistakes shown.
MAX_MISTAKES = 8


def classification_metrics(confusion: np.ndarray, calibration: np.ndarray) -> dict[str, Any]:
    """Returns metrics of a confusion matrix [C, C] (true, predicted) and of confidence bins [N, 3].

    Macro-F1 is the mean over the labels that occur as true or predicted ones. Precision, recall and F1 are 0 where they
    are undefined. The calibration error is ECE (Guo et al., ICML 2017, equation 3): the distance between confidence and
    accuracy of a bin, averaged over rows.
    """
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = (right / np.maximum(each, 1) for each in (given, true))
    f1 = 2 * right / np.maximum(true + given, 1)
    occurs = (true + given) > 0
    rows, confidence, correct = calibration.T
    total = max(confusion.sum(), 1)
    labels = [
        {"precision": float(p), "recall": float(r), "f1": float(f), "texts": int(n)}
        for p, r, f, n in zip(precision, recall, f1, true)
    ]
    return {
        "accuracy": float(right.sum() / total),
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "calibration_error": float(np.abs(confidence - correct).sum() / max(rows.sum(), 1)),
        "labels": labels,
    }


def confusion_lines(confusion: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the matrix [C, C] (true, predicted) as labelled lines; columns are numbered like the labels, from 1.

    With more than ``MAX_MATRIX_LABELS`` labels, returns the most common mistakes instead.
    """
    if len(labels) > MAX_MATRIX_LABELS:
        return [("mistakes", line) for line in mistakes(confusion, labels)[:MAX_MISTAKES]]
    width = max(len(str(int(confusion.max(initial=0)))), len(str(len(labels)))) + 2
    rows = [("true \\ predicted", "".join(f"{n:>{width}}" for n in range(1, len(labels) + 1)))]
    return rows + [
        (f"{n} {label}", "".join(f"{int(count):>{width}}" for count in row))
        for n, (label, row) in enumerate(zip(labels, confusion), 1)
    ]


def mistakes(confusion: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Returns which label was mistaken for which and how often, the most common first."""
    wrong = confusion * (1 - np.eye(len(labels)))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = (divmod(int(place), len(labels)) for place in order)
    return [f"{int(wrong[true, given]):,} of {labels[true]} taken for {labels[given]}" for true, given in pairs]


def confusion_text(confusion: np.ndarray, labels: Sequence[str]) -> str:
    """Returns the whole matrix [C, C] (true, predicted) as tab-separated text with the labels."""
    clean = [" ".join(label.split()) for label in labels]
    rows = ["\t".join(["true \\ predicted", *clean])]
    rows += ["\t".join([label, *(str(int(count)) for count in row)]) for label, row in zip(clean, confusion)]
    return "\n".join(rows) + "\n"
