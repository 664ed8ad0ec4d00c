"""Mixtures on the command line: flags, the numbers that are printed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.mixture import read_members

FLAGS = "--model ngram --batch-size 4 --seq-len 8 --holdout 0.2"


@pytest.fixture
def runs(train, book):
    """Two n-gram runs that held out the same text."""
    for order in (2, 4):
        assert train("--data", book, "--run", f"n{order}", flags=f"{FLAGS} --order {order}").code == 0
    return ["n2", "n4"]


@pytest.mark.parametrize("fit", ["weights", "gate"])
def test_fitted_numbers_are_printed_and_give_the_same_text_again(runs, sample, score, replay, fit):
    fitted = sample("--mix", *runs, "--mix-fit", fit, "--length", 30, "--json")
    assert fitted.code == 0, fitted.err
    flags = re.search(r"^(--mix .*)$", fitted.err, re.MULTILINE)[1].split()
    again = sample(*flags, "--length", 30, "--json")
    assert again.out == fitted.out
    Path("mixed.jsonl").write_text(again.out)
    assert replay("mixed.jsonl").code == 0
    assert replay("mixed.jsonl", "--run", "n2").code == 2
    (line,) = map(json.loads, score(*flags, "--text", "The cat", "--json").out.splitlines())
    assert (line["run"], line["mix"]) == (None, json.loads(again.out)["mix"])


def test_a_mixture_is_evaluated_and_has_no_plot_of_its_own(runs, evaluate):
    done = evaluate("--mix", "n2:1", "n4:3", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [each["run"] for each in found["mix"]["members"]] == runs
    assert found["validation"]["texts"] >= 1
    assert not list(Path().glob("n?/quality.png"))


def test_runs_and_weights_are_read_from_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd:1").mkdir()
    assert read_members(["a:1", "b/c:0.25"], "--mix") == (["a", "b/c"], [1.0, 0.25])
    assert read_members(["pretrained:shakespeare", "odd:1"], "--mix") == (["pretrained:shakespeare", "odd:1"], None)
    assert read_members(["pretrained:shakespeare:2", "odd:1:3"], "--mix") == (
        ["pretrained:shakespeare", "odd:1"],
        [2.0, 3.0],
    )
    with pytest.raises(UsageError, match="weight"):
        read_members(["a:1", "b"], "--mix")


@pytest.mark.parametrize(
    "flags",
    [
        "--mix {run}",
        "--mix {run}:1 {run}:0",
        "--mix {run}:1 {run}:-1",
        "--mix {run}:1 {run}",
        "--mix {run} {run} --run {run}",
        "--mix-fit",
        "--mix-gate 1 2",
        "--mix {run}:1 {run}:1 --mix-fit",
        "--mix {run} {run} --mix-fit gate --mix-gate 1 2 3 4",
        "--mix {run} {run} --mix-gate 1 2 3",
        "--mix {run} {run} --mix-fit",  # held out nothing
    ],
)
def test_flags_that_make_no_mixture_are_refused(run, sample, score, flags):
    for command in (sample, score):
        done = command(*flags.format(run=run).split(), *(["--text", "The cat"] if command is score else []))
        assert (done.code, "Traceback" in done.err) == (2, False), done.err


def test_a_member_that_is_no_run_is_missing(run, sample):
    assert sample("--mix", run, "nowhere").code == 4
