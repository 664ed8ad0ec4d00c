"""Memorization: the longest part of a text that is copied from other texts, exactly and in linear time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

#: Characters of samples per automaton, about 105 MB (benchmarks/copies.py). The texts are read once for each.
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
    return [span for batch in _batches(samples) for span in _longest(batch, texts)]


def find_place(span: str, texts: Iterable[str]) -> Place | None:
    """Returns where ``span`` first occurs in ``texts``."""
    found = ((number, text.find(span)) for number, text in enumerate(texts))
    return next((Place(number, at) for number, at in found if at >= 0), None)


def _batches(samples: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for sample in samples:
        if batch and size + len(sample) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(sample)
        size += len(sample)
    if batch:
        yield batch


def _longest(samples: Sequence[str], texts: Sequence[str]) -> list[Span]:
    # The separator of samples occurs in no text, so no span can cross it.
    automaton = Automaton(symbol for sample in samples for symbol in (*sample, None))
    matched = automaton.matched(texts)
    spans, begin = [], 0
    for sample in samples:
        best = Span(0, 0)
        for end in range(1, len(sample) + 1):
            length = matched[automaton.states[begin + end - 1]]
            if length > best.length:
                best = Span(end - length, length)
        spans.append(best)
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
