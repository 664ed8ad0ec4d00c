"""``jaxgen score --adapt``, ``sample.py --adapt-to``: what they write, and exit codes."""

from __future__ import annotations

import json

import pytest

from jaxgen.inference.adaptation import Adaptation, NeuralCache
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer

TEXT = "The cat sat on a mat.\nDogs ran over hills.\n" * 5


@pytest.fixture(autouse=True)
def text(here):
    (here / "a.txt").write_text(TEXT)


def test_scores_are_those_of_the_options(score, run):
    done = score("--run", run, "a.txt", "--json", "--adapt", "--adapt-segment", 16, "--cache", 50, "--temperature", 1.1)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    options = {"adapt": Adaptation(segment=16), "cache": NeuralCache(50), "temperature": 1.1}
    assert found["logp"] == Scorer(Sampler.load(run), **options).score(TEXT).logp
    assert found["adapt"] == {"rate": 0.001, "decay": 0.01, "segment": 16}
    assert found["cache"] == {"size": 50, "weight": 0.1, "sharpness": 0.3}
    assert found["temperature"] == 1.1


def test_the_validation_text_of_the_run_is_scored(score, run):
    found = json.loads(score("--run", run, "--validation", "--json").out)
    (text,) = LoadedRun.open(run).validation()
    assert found["logp"] == Scorer(Sampler.load(run)).score(text).logp
    assert found["chars"] == len(text)
    assert score("--run", run, "--validation", "a.txt").code == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--adapt-rate 0.001", "--adapt"),
        ("--cache-weight 0.1", "--cache"),
        ("--adapt --lanes 4", "--lanes"),
        ("--adapt --state cold", "--state"),
        ("--adapt --lines", "--lines"),
        ("--adapt --adapt-rate nan", "rate"),
        ("--adapt --adapt-segment 0", "segment"),
        ("--cache -5", "cache"),
        ("--temperature 0", "temperature"),
        ("--fit", "--holdout"),
    ],
)
def test_flags_that_cannot_be_used_exit_with_2(score, run, flags, word):
    done = score("--run", run, "a.txt", *flags.split())
    assert (done.code, done.out) == (2, "")
    assert word in done.err


def test_a_text_is_drawn_after_adapting_to_a_file_and_replayed(sample, replay, run, here):
    args = ("--run", run, "--prompt", "The ", "--length", 30)
    adapted = sample(*args, "--adapt-to", "a.txt", "--adapt-rate", 0.05, "--save-state", "s")
    assert adapted.code == 0, adapted.err
    assert "a.txt" in adapted.err
    assert adapted.out != sample(*args).out
    again = sample("--run", run, "--state", "s", "--length", 30)
    assert "The " + again.out == adapted.out
    for name, flags in (("one", ("--adapt-to", "a.txt", "--adapt-rate", 0.05)), ("two", ("--state", "s"))):
        (here / name).write_text(sample(*args, *flags, "--json").out)
        assert replay(name).code == 0
    (here / "a.txt").write_text("changed")
    assert replay("one").code == 3


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--adapt-to", "none.txt"), 3),
        (("--adapt-to", "short.txt"), 2),
        (("--adapt-to", "other.txt"), 2),
        (("--adapt-to", "a.txt", "--adapt-rate", "2"), 2),
        (("--adapt-segment", "8"), 2),
    ],
)
def test_a_file_or_a_flag_that_cannot_be_used_ends_the_command(sample, run, here, flags, code):
    (here / "short.txt").write_text("The cat")
    (here / "other.txt").write_text("§" * 200)
    done = sample("--run", run, *flags)
    assert (done.code, done.out) == (code, "")
