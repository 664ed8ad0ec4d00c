"""Diversity of texts: distinct n-grams, repetition, cycles and known words."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

#: Letters, digits and underscores, with apostrophes inside; case is kept.
WORD = re.compile(r"\w+(?:['’]\w+)*")
#: Units of n-grams.
UNITS = ("word", "character")
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
    spaces = there = 0
    for text in texts:
        part = text[: 100_000 - there]
        spaces += sum(map(str.isspace, part))
        there += len(part)
        if there >= 100_000:
            break
    return "word" if spaces >= WORD_SPACING * max(there, 1) else "character"


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
    (arXiv:1510.03055), distinct-1 and distinct-2 of the evaluation; they divide by the number of tokens.
    """
    seen: set[tuple[Hashable, ...]] = set()
    count = 0
    for text in texts:
        seen.update(ngrams(text, n))
        count += max(len(text) - n + 1, 0)
    return len(seen) / count if count else None


def seq_rep(texts: Iterable[Sequence[Hashable]], n: int = 4) -> float | None:
    """Returns seq-rep-n: the share of a text's n-grams that repeat earlier ones, averaged over the texts.

    0 means no repetition. ``None`` if no text is long enough. Welleck et al. 2020 (arXiv:1908.04319), seq-rep-n of
    the evaluation.
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
    left = right = 0  # the agreement that reaches furthest: what lies in it is known from the beginning
    for shift in range(1, size):
        run = min(right - shift, z[shift - left]) if shift < right else 0
        while shift + run < size and sequence[run] == sequence[shift + run]:
            run += 1
        z[shift] = run
        if shift + run > right:
            left, right = shift, shift + run
    return z[1:]
