"""Regular expressions as automata: over the characters of a vocabulary, and over its tokens. In NumPy, on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from re import _compiler, _parser, error  # type: ignore[attr-defined]
from re import _constants as op  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import UsageError

#: Flags of which a part of a pattern has one.
ALPHABETS = op.SRE_FLAG_ASCII | op.SRE_FLAG_UNICODE | op.SRE_FLAG_LOCALE
#: The most states of an automaton, and of the one with empty transitions that it is made of.
MAX_STATES, MAX_NODES = 1 << 14, 1 << 17
#: The number of tokens that no text has: what cannot be completed.
NEVER = 2**30
#: The state in which no text matches, and the one before the first character.
DEAD, START = 0, 1


class CharacterAutomaton(NamedTuple):
    """A deterministic automaton that reads characters by their class; ``DEAD`` and ``START`` are states 0 and 1."""

    classes: dict[str, int]  # of every character of the alphabet
    table: np.ndarray  # int32 [states, classes]: the state after a character
    accepts: np.ndarray  # bool [states]


class TokenAutomaton(NamedTuple):
    """A ``CharacterAutomaton`` for the tokens of a vocabulary.

    ``table`` has two more classes: one that changes no state, for the places after the end of a token, and one that
    always leads to ``DEAD``, for tokens that are never drawn.
    """

    table: np.ndarray  # int32 [states, classes + 2]
    columns: np.ndarray  # int32 [longest token, tokens]: the class of each character of each token
    steps: np.ndarray  # int32 [states]: the fewest tokens that complete a match from here; 0: it is complete


@lru_cache(maxsize=8)
def token_automaton(pattern: str, pieces: tuple[str, ...], before: str = "") -> TokenAutomaton:
    """Return the automaton that accepts the texts of tokens that match ``pattern`` as ``re.fullmatch`` does.

    States from which no tokens of the vocabulary complete a match have ``NEVER`` as their ``steps``.

    Args:
        pattern: A regular expression of Python's ``re``, without lookaround, backreferences, word boundaries, atomic
            groups and possessive repetitions.
        pieces: The text of each token; empty for those that are never drawn.
        before: A text before the match, which the first tokens have as well.

    Raises:
        UsageError: The pattern is none, has what an automaton cannot read, or needs too many states.
    """
    automaton = compile_pattern(pattern, sorted({*"".join(pieces), *before}), before)
    same = automaton.table.shape[1]
    longest = max(map(len, pieces), default=0) or 1
    columns = np.full((len(pieces), longest), same, np.int32)
    for token, piece in enumerate(pieces):
        columns[token, : max(len(piece), 1)] = [automaton.classes[char] for char in piece] or same + 1
    states = np.arange(len(automaton.table), dtype=np.int32)
    table = np.column_stack([automaton.table, states, np.zeros_like(states)])
    return TokenAutomaton(table, np.ascontiguousarray(columns.T), _steps(table, columns, automaton.accepts))


def _steps(table: np.ndarray, columns: np.ndarray, accepts: np.ndarray) -> np.ndarray:
    """The fewest tokens to an accepting state, for each state that tokens reach."""
    before: dict[int, list[int]] = {}
    found, waiting = {START}, [START]
    while waiting:
        state = waiting.pop()
        for after in _after_tokens(state, table, columns):
            before.setdefault(after, []).append(state)
            if after not in found:
                found.add(after)
                waiting.append(after)
    steps = np.full(len(table), NEVER, np.int32)
    reached = [state for state in found if accepts[state]]
    distance = 0
    while reached:
        steps[reached] = distance
        distance += 1
        reached = [state for state in {s for each in reached for s in before.get(each, ())} if steps[state] == NEVER]
    return steps


def _after_tokens(state: int, table: np.ndarray, columns: np.ndarray) -> list[int]:
    """The states after each single token, without ``DEAD``."""
    tokens, at = np.arange(len(columns)), np.full(len(columns), state, np.int32)
    for place in range(columns.shape[1]):  # most tokens lead to ``DEAD`` at once
        at = table[at, columns[tokens, place]]
        tokens, at = tokens[at != DEAD], at[at != DEAD]
    return [int(each) for each in np.unique(at)]


def compile_pattern(pattern: str, alphabet: Sequence[str], before: str = "") -> CharacterAutomaton:
    """Return the automaton of ``before`` and then ``pattern``, for texts of these characters.

    Python's own parser reads the pattern, and its matcher decides which characters a class has, so that both are those
    of ``re``. The rest is Thompson's construction and that of subsets.

    Raises:
        UsageError: As ``token_automaton``.
    """
    try:
        parsed = _parser.parse(pattern)
    except (error, OverflowError, RecursionError) as problem:
        raise UsageError(f"The pattern {pattern!r} is no regular expression of Python: {problem}.") from None
    nodes = _Nodes(pattern)
    begin, end = nodes.add(), nodes.add()
    at = begin
    for char in before:
        after = nodes.add()
        nodes.read(at, after, (op.LITERAL, ord(char)), 0)
        at = after
    nodes.connect(_without_anchors(parsed), parsed.state.flags, at, end)
    return nodes.determinize(begin, end, alphabet)


def _without_anchors(parsed: Any) -> list[Any]:
    """The parts of a pattern without ^ and $ around the whole, which match there anyway."""
    parts = list(parsed)
    if parts and parts[0] in ((op.AT, op.AT_BEGINNING), (op.AT, op.AT_BEGINNING_STRING)):
        parts = parts[1:]
    if parts and parts[-1] in ((op.AT, op.AT_END), (op.AT, op.AT_END_STRING)):
        parts = parts[:-1]
    return parts


class _Nodes:
    """A nondeterministic automaton: nodes with empty transitions, and some that read one character."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._empty: list[list[int]] = []
        self._reads: list[list[tuple[int, int]]] = []  # (which set of characters, the next node)
        self._sets: dict[Any, int] = {}
        self._matchers: list[Any] = []

    def add(self) -> int:
        """Add a node, and return its number."""
        if len(self._empty) >= MAX_NODES:
            raise self._too_large()
        self._empty.append([])
        self._reads.append([])
        return len(self._empty) - 1

    def _too_large(self) -> UsageError:
        return UsageError(
            f"The pattern {self._pattern[:60]!r} needs more than {MAX_STATES:,} states: repeat less in it, or give "
            "fewer words."
        )

    def read(self, begin: int, end: int, part: Any, flags: int) -> None:
        """Go from ``begin`` to ``end`` with a character that ``part``, which matches one character, matches."""
        key = repr(part), flags
        if key not in self._sets:
            state = _parser.State()
            state.flags, state.str = flags, ""
            self._sets[key] = len(self._matchers)
            self._matchers.append(_compiler.compile(_parser.SubPattern(state, [part])))
        self._reads[begin].append((self._sets[key], end))

    def connect(self, parts: Sequence[Any], flags: int, begin: int, end: int) -> None:
        """Go from ``begin`` to ``end`` with the texts that ``parts``, one after the other, match."""
        for part in parts:
            after = self.add()
            self._connect(part, flags, begin, after)
            begin = after
        self._empty[begin].append(end)

    def _connect(self, part: Any, flags: int, begin: int, end: int) -> None:
        kind, value = part
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            self.read(begin, end, part, flags)
        elif kind is op.BRANCH:
            for parts in value[1]:
                self.connect(parts, flags, begin, end)
        elif kind is op.SUBPATTERN:
            _, more, less, parts = value
            kept = flags & ~ALPHABETS if more & ALPHABETS else flags
            self.connect(parts, (kept | more) & ~less, begin, end)
        elif kind in (op.MAX_REPEAT, op.MIN_REPEAT):  # which text they prefer makes no difference
            least, most, parts = value
            self._repeat(int(least), None if most == op.MAXREPEAT else int(most), parts, flags, begin, end)
        else:
            names = {op.AT: "^, $ or \\b inside", op.ASSERT: "lookaround", op.ASSERT_NOT: "lookaround"}
            raise UsageError(
                f"The pattern {self._pattern!r} has {names.get(kind, str(kind).lower())}, which cannot be followed "
                "token by token: write it with characters, classes, groups, | and repetitions."
            )

    def _repeat(self, least: int, most: int | None, parts: Sequence[Any], flags: int, begin: int, end: int) -> None:
        for _ in range(least):
            after = self.add()
            self.connect(parts, flags, begin, after)
            begin = after
        if most is None:
            loop = self.add()
            self._empty[begin].append(loop)
            self.connect(parts, flags, loop, loop)
            begin = loop
        else:
            for _ in range(most - least):
                after = self.add()
                self._empty[begin].append(end)
                self.connect(parts, flags, begin, after)
                begin = after
        self._empty[begin].append(end)

    def _closure(self, nodes: Iterator[int]) -> frozenset[int]:
        found, waiting = set[int](), list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += self._empty[node]
        return frozenset(node for node in found if self._reads[node] or not self._empty[node])

    def determinize(self, begin: int, end: int, alphabet: Sequence[str]) -> CharacterAutomaton:
        """Return the deterministic automaton (subset construction); characters in the same sets are one class."""
        sets_of_char = [tuple(i for i, each in enumerate(self._matchers) if each.match(char)) for char in alphabet]
        sets_of = sorted(set(sets_of_char))
        classes = {char: sets_of.index(sets) for char, sets in zip(alphabet, sets_of_char)}
        subsets = [frozenset[int](), self._closure(iter([begin]))]
        numbers, rows = {subset: number for number, subset in enumerate(subsets)}, list[list[int]]()
        while len(rows) < len(subsets):
            targets: dict[int, list[int]] = {}
            for node in subsets[len(rows)]:
                for which, after in self._reads[node]:
                    targets.setdefault(which, []).append(after)
            row = []
            for sets in sets_of:
                subset = self._closure(node for which in sets for node in targets.get(which, ()))
                if subset not in numbers:
                    if len(subsets) >= MAX_STATES:
                        raise self._too_large()
                    numbers[subset] = len(subsets)
                    subsets.append(subset)
                row.append(numbers[subset])
            rows.append(row)
        table = np.array(rows, np.int32).reshape(len(rows), len(sets_of))
        return CharacterAutomaton(classes, table, np.array([end in subset for subset in subsets]))
