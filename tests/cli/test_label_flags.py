"""``--label`` and ``--features`` on every command line, and in an interactive session."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import labelled
import pytest

from jaxgen.cli.sampling_flags import read_label_weights
from jaxgen.errors import UsageError
from jaxgen.tasks.language.conditioning import Conditioning

SHORT = ("--length", 6, "--greedy")


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Path:
    """A run with labels and numbers."""
    return labelled.train(tmp_path_factory.mktemp("labelled"))


def test_a_label_and_a_number_write_their_text(sample, known):
    done = sample("--run", known, "--label", "first", "--features", 3, *SHORT)
    assert (done.code, done.out) == (0, "aaa\n")
    assert "note" not in done.err


def test_without_a_label_a_note_names_those_there_are(sample, known):
    done = sample("--run", known, *SHORT)
    assert done.code == 0
    assert "without --label (first, second)" in done.err


def test_weights_and_negative_numbers_are_read(sample, known):
    done = sample("--run", known, "--label", "first:1", "second:3", "--features", -1.5, "--json", *SHORT)
    assert done.code == 0, done.err
    assert json.loads(done.out)["condition"] == {"labels": {"first": 0.25, "second": 0.75}, "features": [-1.5]}


def test_what_json_wrote_is_replayed(sample, replay, known, here):
    flags = ("--label", "second:0.5", "first:0.5", "--length", 6, "--num-samples", 2, "--json")
    (here / "s.jsonl").write_text(sample("--run", known, *flags).out)
    done = replay("s.jsonl")
    assert done.code == 0, done.out + done.err
    assert done.out.count("identical") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--label", "fist"), "'first'"),
        (("--label", "fist:1", "first:2"), "Unknown label 'fist'"),
        (
            ("--label", "first", "second"),
            "'first'",
        ),
        (("--label", "first:1", "first:2"), "names 'first' twice"),
        (("--label", "first:much"), "'first:much'"),
        (("--label", "first:-1", "second:2"), "above 0"),
        (("--features", 1, 2), "size"),
        (("--features", "nan"), "finite"),
        (("--label",), "--label"),
        (("--features",), "--features"),
        (("--state", "s.npz", "--label", "first"), "--label"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(sample, known, flags, said):
    done = sample("--run", known, *flags)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize("flags", [("--label", "Sports"), ("--features", 1)])
def test_a_run_that_knows_nothing_refuses_both(sample, score, evaluate, run, flags):
    for done in (sample("--run", run, *flags), score("--run", run, "--text", "the", *flags)):
        assert (done.code, done.out) == (2, "")
        assert "labels" in done.err
    assert evaluate("--run", run, "--no-plot", *flags, flags="").code == 2


def test_a_state_goes_on_without_a_note(sample, known, here):
    sample("--run", known, "--label", "first", "--features", 3, "--prompt", "a", "--save-state", "s.npz", *SHORT)
    done = sample("--run", known, "--state", "s.npz", *SHORT)
    assert (done.out, "note" in done.err) == ("aa\n", False)


def test_scores_are_under_the_label(score, known):
    def total(*flags) -> float:
        done = score("--run", known, "--text", "aa", "--json", *flags)
        assert done.code == 0, done.err
        return json.loads(done.out.splitlines()[0])["logp"]

    right, wrong, mean = total("--label", "first"), total("--label", "second"), total()
    assert right > mean > wrong
    ranked = score("--run", known, "--label", "second", "--features", 1, "--candidates", "a", "b").out.splitlines()
    assert ranked[1].split()[-1] == "'b'"


def test_an_evaluation_says_under_what_it_drew(evaluate, known):
    little = "--num-samples 4 --length 6 --temperature 0"
    done = evaluate("--run", known, "--no-plot", flags=little)
    assert done.code == 0, done.err
    assert "validation texts" in done.err
    assert "validation" in done.out
    mixed = evaluate("--run", known, "--no-plot", "--label", "first:1", "second:1", flags=little)
    assert "first:0.5 second:0.5" in mixed.err
    assert "validation " not in mixed.out


def test_a_session_changes_the_label_for_the_next_text(sample, known, monkeypatch):
    lines = ["/label first", "/features 2", "", "/label second", "/new", "", "/settings", "/label off", "/features"]
    lines += ["/label fist", "/label"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join([*lines, ""]).encode())))
    done = sample("--run", known, "--interactive", *SHORT)
    assert done.code == 0, done.err
    assert done.out == "aa\nbb\n"
    said = done.err.splitlines()
    assert [line for line in said if line.startswith(("/label", "/features"))] == [
        "/label second",
        "/features 2",
        "/features 2",
        "/label off",
    ]
    assert any("Unknown label 'fist'" in line for line in said)


def test_a_session_of_a_run_that_knows_nothing_has_no_such_command(sample, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/label first\n")))
    assert "Unknown command '/label'" in sample("--run", run, "--interactive", "--length", 3).err


def test_training_says_what_it_knows_and_shows_a_text_of_each_label(train, here):
    table = labelled.write_table(here, copies=4)
    flags = "--text-column text --label-column kind --cell elman --hidden 4 --batch-size 2 --seq-len 4 --steps 2"
    done = train("--data", table, "--run", "r", flags=flags + " --eval-every 2")
    assert done.code == 0, done.err
    shown = done.out + done.err
    for said in ("2, from ", "first, temperature 0.8", "second, temperature 0.8", "unconditioned", "--label"):
        assert said in shown


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--text-column text --label-column sort", 3, "'sort'"),
        ("--text-column text --feature-columns kind", 3, "'kind'"),
        ("--text-column text --label-column kind --layout stream", 2, "--layout stream"),
        ("--text-column text --label-column kind --model ngram", 2, "--label-column"),
    ],
)
def test_training_refuses_what_it_cannot_read(train, here, flags, code, said):
    done = train("--data", labelled.write_table(here, copies=4), flags=flags)
    assert done.code == code
    assert said in " ".join(done.err.split())


def test_a_label_may_have_a_colon():
    known = Conditioning(("a:b", "c"), (0.5, 0.5))
    assert read_label_weights(["a:b"], known) == {"a:b": 1.0}
    assert read_label_weights(["a:b:2", "c:1"], known) == {"a:b": 2.0, "c": 1.0}
    with pytest.raises(UsageError, match="Unknown label"):
        read_label_weights(["a:1"], known)
