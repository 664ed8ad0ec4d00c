"""Which part of a text is copied from others: the longest common substring, exactly, in linear time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

#: Characters that one automaton is made of: some 105 MB (benchmarks/copies.py). The texts are read
#: once for each.
BATCH = 200_000


class Span(NamedTuple):
    """``length`` characters of a text from ``start`` on; with length 0, none."""

    start: int
    length: int


class Place(NamedTuple):
    """Character ``at`` of text number ``text``, both from 0."""

    text: int
    at: int


def longest_copies(samples: Sequence[str], texts: Sequence[str]) -> list[Span]:
    """For each sample the longest span that occurs in one of ``texts``; of several equally long the first.

    Time is linear in both, the memory beside them bounded (unless one sample alone is longer than ``BATCH``).
    """
    return [span for batch in _batches(samples) for span in _longest(batch, texts)]


def find_place(span: str, texts: Iterable[str]) -> Place | None:
    """Where ``span`` occurs first in ``texts``."""
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
    # What stands between two samples occurs in no text, so that no span can reach over it.
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
    """The suffix automaton of a sequence: the smallest one that reads all its substrings, and nothing else.

    A state stands for substrings that end in the same places; the longest has ``lengths[state]`` symbols, and
    ``links[state]`` is the state of its longest suffix that ends in more places. ``states[i]`` is that of the first
    i + 1 symbols. Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
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
        # Of the substrings of ``old`` the shorter ones now end in one place more: they get a state of their own.
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
        """For each state, how long the longest suffix of its substrings is that occurs in one of ``texts``."""
        best = self._visited(texts)
        shortest_first = sorted(range(1, len(best)), key=self.lengths.__getitem__)
        # Where a substring was met, its suffixes were: whole those of the links.
        for state in reversed(shortest_first):
            link = self.links[state]
            if best[state] and link:
                best[link] = self.lengths[link]
        for state in shortest_first:
            if not best[state]:
                best[state] = best[self.links[state]]
        return best

    def _visited(self, texts: Iterable[str]) -> list[int]:
        """For each state, the length of the longest of its substrings at which reading ``texts`` came by, or 0."""
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
