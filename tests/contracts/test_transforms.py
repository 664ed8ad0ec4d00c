"""Every registered transform keeps the contract. A new one: a line in ``TRANSFORMS``, one here, a reference."""

from __future__ import annotations

from functools import cache

import pytest

from jaxgen.sampling.transforms import (
    TRANSFORMS,
    Bias,
    EpsilonCutoff,
    EtaCutoff,
    Force,
    FrequencyPenalty,
    MinLength,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
    WordsFrom,
)
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.sampling.transforms.temperature import Temperature
from jaxgen.testing.checking import name_of
from jaxgen.testing.transforms import CHECKS, EOS, PAD, Case, Subject

from .transform_references import REFERENCES

CASES = {
    "forbid": Case(lambda v: [Forbid((v - 1,)), Forbid(tuple(range(v - 1)))], lambda v: [Forbid(())]),
    "regex": Case(
        lambda v: [Regex("[a-e]*"), Regex("(c|dd?|[^x]{3,})*"), Regex("(?i)C{0,2}e?[^c]*")],
        lambda v: [Regex("(?s).*")] if v > 2 else [],  # padding, which two tokens have, never matches
    ),
    "words-from": Case(lambda v: [WordsFrom(("c", "dec")), WordsFrom(("abc", "ed", "e"))], lambda v: []),
    "bias": Case(lambda v: [Bias(((PAD, 40.0), (v - 1, -1.5))), Bias(((1, 1.0), (1, 2.0)))], lambda v: [Bias(())]),
    "repetition-penalty": Case(
        lambda v: [RepetitionPenalty(p) for p in (1.3, 0.01, 100.0)], lambda v: [RepetitionPenalty(1.0)]
    ),
    "presence-penalty": Case(lambda v: [PresencePenalty(p) for p in (1.5, -2.0)], lambda v: [PresencePenalty(0.0)]),
    "frequency-penalty": Case(lambda v: [FrequencyPenalty(p) for p in (0.7, -2.0)], lambda v: [FrequencyPenalty(0.0)]),
    # The window is shorter than the text.
    "no-repeat-ngram": Case(lambda v: [NoRepeatNgram(n, 8) for n in (2, 1, 3, 4)], lambda v: [NoRepeatNgram(8, 8)]),
    "min-length": Case(lambda v: [MinLength(n) for n in (3, 1, 99)], lambda v: [MinLength(0)]),
    "force": Case(lambda v: [Force((1, v - 1)), Force((PAD, EOS, PAD))], lambda v: [Force(())]),
    "temperature": Case(
        lambda v: [Temperature(x) for x in (0.7, 1e-6, 1e6)], lambda v: [Temperature(1.0), Temperature((1.0, 1.0))]
    ),
    "top-k": Case(lambda v: [TopK(k) for k in (4, 1, 12)], lambda v: [TopK(v), TopK(10**9)]),
    "top-p": Case(lambda v: [TopP(p) for p in (0.8, 1e-30, 0.99)], lambda v: [TopP(1.0)]),
    "min-p": Case(lambda v: [MinP(p) for p in (0.1, 0.6, 1.0)], lambda v: [MinP(0.0)]),
    "typical-p": Case(lambda v: [TypicalP(p) for p in (0.6, 1e-30, 0.95)], lambda v: [TypicalP(1.0)]),
    "epsilon-cutoff": Case(lambda v: [EpsilonCutoff(e) for e in (0.03, 0.3, 1.0)], lambda v: [EpsilonCutoff(0.0)]),
    "eta-cutoff": Case(lambda v: [EtaCutoff(e) for e in (0.03, 0.3, 1.0)], lambda v: [EtaCutoff(0.0)]),
}
#: Those that change logits; the others only take tokens out.
CHANGING = {"bias", "repetition-penalty", "presence-penalty", "frequency-penalty", "temperature"}
#: The transforms are compiled without XLA's optimisations anyhow (FAST).
pytestmark = pytest.mark.usefixtures("quick_compiles")


@cache
def subject(name: str) -> Subject:
    return Subject(TRANSFORMS[name], CASES[name], REFERENCES[name], cuts=name not in CHANGING)


#: The lanes of checks that compile much. Uncompiled, every operation is compiled by itself.
LANES = {
    "compiled_or_not_it_gives_the_same": pytest.mark.slow,
    "it_agrees_with_the_reference_in_a_vocabulary_of_two": pytest.mark.runs,
    "it_agrees_with_the_reference_in_a_vocabulary_of_50_000": pytest.mark.runs,
}
MARKED = [pytest.param(check, marks=LANES.get(name_of(check), ()), id=name_of(check)) for check in CHECKS]


@pytest.mark.parametrize("check", MARKED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_registered_transform_keeps_the_contract(name, check):
    check(subject(name))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_registered_transform_has_options_to_try_and_a_reference(name):
    assert name in CASES, f"{name} has no options to try it with: write them in CASES of test_transforms.py."
    assert name in REFERENCES, (
        f"{name} has no reference: write it in NumPy, a few lines, as a function (transform, row, prompt, drawn, "
        "eos) -> row in tests/contracts/transform_references.py, and name it in REFERENCES."
    )


def test_there_is_no_case_and_no_reference_without_a_transform():
    assert list(CASES) == list(REFERENCES) == list(TRANSFORMS)


def test_the_transforms_are_in_the_order_that_is_documented():
    """What may never be drawn, what goes by the text or the step, the temperature, what leaves out the unlikely."""
    names = list(TRANSFORMS)
    assert names[:4] == ["forbid", "regex", "words-from", "bias"]
    cut_offs = names[names.index("temperature") + 1 :]
    assert cut_offs == ["top-k", "top-p", "min-p", "typical-p", "epsilon-cutoff", "eta-cutoff"]
    text = ["repetition-penalty", "presence-penalty", "frequency-penalty", "no-repeat-ngram", "min-length", "force"]
    assert names[4:] == [*text, "temperature", *cut_offs]
