"""Automata of regular expressions agree with ``re``, and know how many tokens complete a match."""

import itertools
import random
import re

import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.sampling.automaton import NEVER, START, compile_pattern, token_automaton

ALPHABET = "abcAB 1_é\n"
PATTERNS = [
    *(
        "[A-Z][a-z]+",
        "(ab|cc)*x?",
        "a{2,4}b",
        "(?i)ab+c?",
        r"\w+( \w+)*",
        r"[^a\n]*",
        "a|b|",
        "",
        "(a|b)*?c",
        "(?s:.)*",
    ),
    *(
        r"(?x) a [b #]+ ( c ) * # ab",
        r"\x41\101?[]a]",
        "[^]a]{,2}a{}",
        "(?P<n>a)(?-i:B)(?#c)",
        r"^a|b\Z",
        "_{1,}?[\\]a-c]",
    ),
    *("(?i:a)B", "^ab$", r"\d+_?", "(?:ab){0,2}c", "(?a:\\w)+", ".é", "(a|ab)(c|bcd)?", "((a*)*b)*"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_what_re_matches(pattern):
    automaton, draw = compile_pattern(pattern, sorted(ALPHABET)), random.Random(0)
    short = ["".join(each) for length in range(4) for each in itertools.product(ALPHABET, repeat=length)]
    long = ["".join(draw.choices(ALPHABET, k=draw.randint(4, 8))) for _ in range(200)]
    for text in short + long:
        at = START
        for char in text:
            at = automaton.table[at, automaton.classes[char]]
        assert bool(automaton.accepts[at]) == (re.fullmatch(pattern, text) is not None), text


def test_the_fewest_tokens_to_a_match_are_those_of_the_vocabulary():
    pieces = ("", "", "a", "b", "ab", "aba")
    steps = {
        pattern: int(token_automaton(pattern, pieces).steps[START]) for pattern in ("ababa", "b*", "a+c", "aab|bb")
    }
    assert steps == {"ababa": 2, "b*": 0, "a+c": NEVER, "aab|bb": 2}


def test_a_state_that_only_missing_tokens_leave_is_never_completed():
    found = token_automaton("a(bc|d)", ("a", "b", "d"))
    (after_b,) = {
        int(found.table[found.table[START, c], d]) for c in found.columns[0, :1] for d in found.columns[0, 1:2]
    }
    assert found.steps[after_b] == NEVER
    assert found.steps[START] == 2


def test_text_that_belongs_to_the_prompt_comes_before_the_match():
    found = token_automaton("cat", (" cat", "cat"), " ")
    ends = []
    for token in range(2):
        at = np.int32(START)
        for kind in found.columns[:, token]:
            at = found.table[at, kind]
        ends.append(int(found.steps[at]))
    assert ends == [0, NEVER]


@pytest.mark.parametrize(
    "pattern",
    ["(", "a(?=b)", r"(a)\1", r"\bx", "a^b", "(?>a)b", "a++", "(a)(?(1)b|x)", "(^a)", "(a{99}){99}", "[ab]*a.{9}"],
)
def test_what_an_automaton_cannot_read_is_refused(pattern, monkeypatch):
    monkeypatch.setattr("jaxgen.sampling.automaton.MAX_NODES", 1000)
    monkeypatch.setattr("jaxgen.sampling.automaton.MAX_STATES", 100)
    with pytest.raises(UsageError, match="pattern"):
        compile_pattern(pattern, "abx")
