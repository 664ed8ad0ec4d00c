"""What texts are like, in numbers: how varied, how repetitive, whether they run in a circle, which words they know."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

#: Letters, digits and underscores, with apostrophes inside; case is kept.
WORD = re.compile(r"\w+(?:['’]\w+)*")
#: What n-grams can be made of.
UNITS = ("word", "character")
#: Share of white space from which a text counts as one of words. English has a sixth, Chinese a hundredth.
SPACED = 0.05
#: How often a cycle must come round, and how many symbols it must fill, to be more than a coincidence: "ee", "1000".
ROUNDS, LEAST = 3, 32


class Cycle(NamedTuple):
    """The tail of a sequence from ``start`` on repeats its first ``period`` symbols."""

    period: int
    start: int


def natural_unit(texts: Iterable[str]) -> str:
    """``word`` for texts that put spaces between words, else ``character``; from the first 100,000 characters."""
    spaces = there = 0
    for text in texts:
        part = text[: 100_000 - there]
        spaces += sum(map(str.isspace, part))
        there += len(part)
        if there >= 100_000:
            break
    return "word" if spaces >= SPACED * max(there, 1) else "character"


def units(text: str, unit: str = "word", *, before: str = "", cut: bool = False) -> list[str]:
    """The words or the characters of ``text``, white space left out.

    ``before`` is what stood in front of it: a word that began there is its last word's and whole. With ``cut`` the text
    was broken off, and a word that touches its end is left out, being perhaps half of one.
    """
    if unit == "character":
        return [c for c in text if not c.isspace()]
    whole = before + text
    found = [match for match in WORD.finditer(whole) if match.end() > len(before)]
    if cut and found and found[-1].end() == len(whole):
        found.pop()
    return [match[0] for match in found]


def ngrams(sequence: Sequence[Hashable], n: int) -> Iterable[tuple[Hashable, ...]]:
    """All runs of ``n`` neighbours, in order."""
    return zip(*(sequence[i:] for i in range(n)))


def distinct(texts: Iterable[Sequence[Hashable]], n: int) -> float | None:
    """Distinct-n: of all n-grams of all texts, the share that are different ones. ``None`` without any n-gram.

    1 is all different. It falls with the amount of text, so only amounts alike compare. Li et al. 2016
    (arXiv:1510.03055), distinct-1 and distinct-2 of the evaluation; they divide by the number of tokens.
    """
    seen: set[tuple[Hashable, ...]] = set()
    count = 0
    for text in texts:
        seen.update(ngrams(text, n))
        count += max(len(text) - n + 1, 0)
    return len(seen) / count if count else None


def seq_rep(texts: Iterable[Sequence[Hashable]], n: int = 4) -> float | None:
    """Seq-rep-n: the share of a text's n-grams that it has had already, the mean over texts long enough for one.

    0 repeats nothing. ``None`` where no text is long enough. Welleck et al. 2020 (arXiv:1908.04319), seq-rep-n of
    the evaluation.
    """
    shares = [1 - len(set(ngrams(text, n))) / (len(text) - n + 1) for text in texts if len(text) >= n]
    return sum(shares) / len(shares) if shares else None


def known_share(texts: Iterable[Sequence[str]], vocabulary: Collection[str]) -> float | None:
    """The share of all words that are in ``vocabulary``, each occurrence counted; ``None`` without any word."""
    words = [word for text in texts for word in text]
    return sum(word in vocabulary for word in words) / len(words) if words else None


def find_cycle(sequence: Sequence[Hashable], *, rounds: int = ROUNDS, least: int = LEAST) -> Cycle | None:
    """The cycle that a sequence ends in: the one that fills most of it, by its smallest period; ``None`` without one.

    Exact: ``sequence[i] == sequence[i + period]`` for every i from ``start`` on, and not for the one before. It has
    come round ``rounds`` times and fills ``least`` symbols at least.
    """
    size, found, longest = len(sequence), None, 0
    for period, agreed in enumerate(_agreements(list(reversed(sequence))), start=1):
        tail = agreed + period
        if tail > longest and tail >= max(rounds * period, least):
            found, longest = Cycle(period, size - tail), tail
    return found


def _agreements(sequence: Sequence[Hashable]) -> list[int]:
    """For each shift from 1, how far the sequence agrees with itself so shifted: the Z function, O(N)."""
    size = len(sequence)
    z = [0] * size
    left = right = 0  # the agreement that reaches furthest: what lies in it is known from the beginning
    for shift in range(1, size):
        run = min(right - shift, z[shift - left]) if shift < right else 0
        while shift + run < size and sequence[run] == sequence[shift + run]:
            run += 1
        z[shift] = run
        if shift + run > right:
            left, right = shift, shift + run
    return z[1:]
