"""Regular expressions as automata: over the characters of a vocabulary, and over its tokens. In NumPy, on the host."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxgen.errors import UsageError

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

    ``re`` checks the pattern, and decides which characters a class has. The rest is Thompson's construction and that of
    subsets.

    Raises:
        UsageError: As ``token_automaton``.
    """
    nodes = _Nodes(pattern)
    begin, end = nodes.add(), nodes.add()
    try:
        flags = re.compile(pattern).flags
        prefix = [nodes.reading(re.escape(char), 0) for char in before]
        nodes.following([*prefix, _Reader(pattern, nodes).alternatives(flags, outermost=True)])(begin, end)
    except (re.error, OverflowError, RecursionError) as problem:
        raise UsageError(f"The pattern {pattern!r} is no regular expression of Python: {problem}.") from None
    return nodes.determinize(begin, end, alphabet)


#: Connects two nodes of an automaton with the texts that a part of a pattern matches.
Connect = Callable[[int, int], None]
#: A single character, an escape or a class.
CHARACTER = re.compile(
    r"""\\(?: x.. | u.{4} | U.{8} | N\{[^}]*\} | 0[0-7]{0,2} | [1-3][0-7]{2} | [^0-9AbBZ] )
    | \[\^?\]?(?: \\. | [^\]\\] )*\]
    | [^\\()^$*+?]""",
    re.DOTALL | re.VERBOSE,
)
REPETITION = re.compile(r"([*+?]|\{(?!\})(?P<least>[0-9]*)(?P<comma>,?)(?P<most>[0-9]*)\})(?P<possessive>\+?)\??")
GROUP = re.compile(r"\((?:\?(?:P<\w+>|(?P<on>[aiLmsux]*)(?:-(?P<off>[imsx]+))?:)|(?!\?))")
NOTHING = re.compile(r"\(\?(?:#[^)]*|[aiLmsux]+)\)")  # comments, and flags of the whole pattern
SPACES = re.compile(r"(?:\s|#.*)*")


class _Reader:
    """Reads a pattern that ``re`` has accepted."""

    def __init__(self, pattern: str, nodes: _Nodes) -> None:
        self._pattern, self._nodes, self._at = pattern, nodes, 0

    def _take(self, what: re.Pattern[str] | str) -> re.Match[str] | None:
        """Go on behind ``what``, if it is next."""
        found = re.compile(what).match(self._pattern, self._at)
        self._at = self._at if found is None else found.end()
        return found

    def alternatives(self, flags: int, outermost: bool = False) -> Connect:
        """Read what stands between |, up to ) or the end."""
        choices = [self._sequence(flags, outermost)]
        while self._take(r"\|"):
            choices.append(self._sequence(flags, outermost))
        return self._nodes.either(choices)

    def _sequence(self, flags: int, outermost: bool) -> Connect:
        parts: list[Connect] = []
        while True:
            while self._take(NOTHING) or (flags & re.VERBOSE and self._take(SPACES)[0]):  # type: ignore[index]
                pass
            if outermost and not parts:
                self._take(r"\^|\\A")  # the whole text has to match anyway
            if outermost:
                self._take(r"(?:\$|\\Z)(?=\||\Z)")
            if self._pattern[self._at : self._at + 1] in ("", "|", ")"):
                return self._nodes.following(parts)
            part = self._part(flags)
            if flags & re.VERBOSE:
                self._take(SPACES)
            if times := self._take(REPETITION):
                if times["possessive"]:
                    raise self._refused("possessive repetitions")
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(times[1], (0, None))
                if times[1][0] == "{":
                    least = int(times["least"] or 0)
                    most = least if not times["comma"] else int(times["most"]) if times["most"] else None
                part = self._nodes.repeated(part, least, most)
            parts.append(part)

    def _part(self, flags: int) -> Connect:
        if found := self._take(CHARACTER):
            return self._nodes.reading(found[0], flags & ~re.VERBOSE)
        group = self._take(GROUP)
        if group is None:
            inside = self._pattern[self._at] == "("
            raise self._refused(
                "lookaround or another special group" if inside else "^, $, \\b or a backreference inside"
            )
        on, off = (sum(re.RegexFlag[letter.upper()] for letter in group[which] or "") for which in ("on", "off"))
        kept = flags & ~(re.ASCII | re.UNICODE) if on & (re.ASCII | re.UNICODE) else flags
        inner = self.alternatives((kept | on) & ~off)
        self._take(r"\)")
        return inner

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            f"The pattern {self._pattern!r} has {what}, which cannot be followed token by token: write it with "
            "characters, classes, groups, | and repetitions."
        )


class _Nodes:
    """A nondeterministic automaton: nodes with empty transitions, and some that read one character."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._empty: list[list[int]] = []
        self._reads: list[list[tuple[int, int]]] = []  # (which set of characters, the next node)
        self._sets: dict[tuple[str, int], int] = {}
        self._matchers: list[re.Pattern[str]] = []

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

    def reading(self, part: str, flags: int) -> Connect:
        """A character that the pattern ``part`` matches."""
        key = part, flags
        if key not in self._sets:
            self._sets[key] = len(self._matchers)
            self._matchers.append(re.compile(part, flags))
        which = self._sets[key]
        return lambda begin, end: self._reads[begin].append((which, end))

    def following(self, parts: Sequence[Connect]) -> Connect:
        """The parts one after the other."""

        def connect(begin: int, end: int) -> None:
            for part in parts:
                after = self.add()
                part(begin, after)
                begin = after
            self._empty[begin].append(end)

        return connect

    def either(self, choices: Sequence[Connect]) -> Connect:
        """One of the choices."""

        def connect(begin: int, end: int) -> None:
            for choice in choices:
                choice(begin, end)

        return connect

    def repeated(self, part: Connect, least: int, most: int | None) -> Connect:
        """The part ``least`` to ``most`` times; which number it prefers makes no difference."""

        def connect(begin: int, end: int) -> None:
            for number in itertools.count() if most is None else range(most):
                if number >= least:
                    self._empty[begin].append(end)
                after = self.add()
                if most is None and number == least:
                    self._empty[begin].append(after)
                    part(after, after)
                    begin = after
                    break
                part(begin, after)
                begin = after
            self._empty[begin].append(end)

        return connect

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
