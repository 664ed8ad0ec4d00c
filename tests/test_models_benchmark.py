"""The comparison of cells: each call trains one missing entry, and what is missing is shown as such."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import machine, models
from jaxgen.cells import CELLS
from jaxgen.models.blocks import BLOCKS
from jaxgen.tasks.classify import data as labelled
from jaxgen.tasks.classify.sequences import SEQUENCES, sequences
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.data import LanguageData
from tests.builders import write

TINY = {"hidden": 4, "batch_size": 4, "seq_len": 8, "devices": 1}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the program with a plan of a text, of two seeds, and a set of sequences; returns what it prints."""
    (tmp_path / "text.txt").write_text("the cat sat on a mat\n" * 150)  # long enough for windows of 256
    text = {"data": [str(tmp_path / "text.txt")], "cell": "elman", "block": "plain", "layers": 1, "lr": 1e-3, **TINY}
    entries = [models.Entry(f"60s-elman-{seed}", "60 s", "language", {**text, "seed": seed}, 60.0) for seed in (0, 1)]
    steps = {"data": ["parity"], "cell": "elman", "seed": 0, "steps": 2, "hidden": 4, "devices": 1}
    entries += [models.Entry("parity-elman-0", "sequences", "classify", {**steps, "preset": "sequences"})]
    monkeypatch.setattr(models, "plan", lambda: iter(entries))
    small = {**labelled.LABELLED_SETS, "parity": lambda seed: sequences("parity", seed, train=64, val=8, test=8)}
    monkeypatch.setattr(labelled, "LABELLED_SETS", small)
    about = {"entry": entries[0].identity(seed=False), "tokens_per_second": 1000, "machine": machine.facts()}
    measured = {"60s-elman": {"steps": 12, **about}}
    write(tmp_path / "results" / models.STEPS, json.dumps(measured))
    page = tmp_path / "models.md"
    marks = ("60 s", "sequences", "published", "machines", "picture")
    page.write_text("top\n" + "".join(f"<!-- {mark} -->\nold\n<!-- end of {mark} -->\n" for mark in marks))

    def run(*flags):
        places = ["--results", str(tmp_path / "results"), "--page", str(page), "--picture", str(tmp_path / "m.png")]
        monkeypatch.setattr(sys, "argv", ["models", *flags, *places])
        models.main()
        return capsys.readouterr().out

    return run


def pretend(entry, steps):
    """The result of an entry that is not trained."""
    return {"entry": entry.identity(), "steps": steps, "figures": {}}


def saved(folder):
    return sorted(path.name for path in (folder / "results").glob("*") if path.name != models.STEPS)


def test_the_plan_has_every_cell_on_text_and_one_of_each_kind_on_every_set_of_sequences():
    entries = list(models.plan())
    assert len({entry.name for entry in entries}) == len(entries)
    assert {*models.RECIPES} & {*CELLS} >= {"elman"}
    for seed in models.SEEDS:
        mine = [entry for entry in entries if entry.settings["seed"] == seed]
        assert {entry.settings["cell"] for entry in mine if entry.table == "60 s"} == {*CELLS}
        asked = {(entry.settings["cell"], *entry.settings["data"]) for entry in mine if entry.table == "sequences"}
        assert asked == {(cell, name) for cell in models.ON_SEQUENCES for name in SEQUENCES}
    assert {*models.ON_SEQUENCES} <= {*CELLS}
    assert {recipe.block for recipe in models.IN_BLOCKS} == {*BLOCKS}
    page = models.PAGE.read_text()
    assert all(page.count(f"<!-- {entry.table} -->") == 1 for entry in entries)


@pytest.mark.parametrize("former", ["", "old\n", "old\n\nolder\n"])
def test_what_stands_between_two_marks_is_replaced_and_nothing_else(former):
    page = f"a\n<!-- x -->\n{former}<!-- end of x -->\nb <!-- y -->\n"
    assert models.between(page, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb <!-- y -->\n"
    with pytest.raises(SystemExit, match="lacks"):
        models.between(page, "y", "new")


@pytest.mark.slow
def test_each_call_trains_one_missing_entry_and_the_page_shows_what_is_there(call, tmp_path):
    assert call("--list").count("missing") == 3
    call("--next")
    assert saved(tmp_path) == ["60s-elman-0.json"]
    first = json.loads((tmp_path / "results" / "60s-elman-0.json").read_text())
    assert first["steps"] == 12
    assert first["parameters"] > 0
    assert first["figures"]["val_loss"] > 0
    call("--write")
    page = (tmp_path / "models.md").read_text()
    assert page.startswith("top\n")
    assert "1 of 2" in page
    assert "old" not in page
    assert not (tmp_path / "m.png").exists(), "no set of sequences is there yet"

    call("--next")
    call("--next")
    assert call("--list").count("missing") == 0
    assert "Nothing" in call("--next")
    call("--write")
    page = (tmp_path / "models.md").read_text()
    assert "2 of 2" in page
    assert "±" in page
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results" / "parity-elman-0.json").read_text())
    assert [*models.lengths_of(results["figures"])] == [*SEQUENCES["parity"].tested]


def test_an_interrupted_entry_leaves_nothing(call, tmp_path, monkeypatch):
    def stopped(entry, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        call("--next")
    assert saved(tmp_path) == []
    monkeypatch.setattr(models, "train", pretend)
    call("--next")
    assert saved(tmp_path) == ["60s-elman-0.json"]


def test_an_entry_with_other_settings_than_in_the_plan_is_missing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "train", pretend)
    call("--next")
    path = tmp_path / "results" / "60s-elman-0.json"
    result = json.loads(path.read_text())
    result["entry"]["settings"]["lr"] = 5.0
    path.write_text(json.dumps(result))
    assert call("--list").count("missing") == 3


def test_changes_that_are_not_committed_and_other_steps_are_refused_for_the_kept_results(call, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "RESULTS", (tmp_path / "results").resolve())
    monkeypatch.setattr(models, "train", lambda entry, steps: pytest.fail("nothing may be trained"))
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab")
    with pytest.raises(SystemExit, match="--steps"):
        call("--next", "--steps", "1")
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab+")
    with pytest.raises(SystemExit, match="Commit"):
        call("--next")


def test_an_entry_with_other_steps_than_were_measured_is_missing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "train", pretend)
    call("--next")
    assert call("--list").count("missing") == 2
    path = tmp_path / "results" / models.STEPS
    path.write_text(path.read_text().replace('"steps": 12', '"steps": 13'))
    assert call("--list").count("missing") == 3
    path.unlink()
    with pytest.raises(SystemExit, match="--measure"):
        call("--next")


@pytest.mark.runs
def test_the_steps_stand_for_the_time_of_the_first_machine(call, tmp_path, monkeypatch):
    """A configuration that takes twice as long as the recipe of its cell gets half of its speed, on any machine."""
    text = next(models.plan())
    slower = replace(text, name="150s-elman-plain-0", table="150 s", seconds=150.0)
    monkeypatch.setattr(models, "plan", lambda: iter([text, slower]))
    times = {text.name: (0.5, 100), slower.name: (1.0, 100)}
    monkeypatch.setattr(models, "seconds_per_step", lambda entry: times[entry.name])
    known = {text.configuration: {"entry": text.identity(seed=False), "steps": 600}}
    (tmp_path / "results" / models.STEPS).write_text(json.dumps(known))
    call("--measure")
    found = models.read_steps(tmp_path / "results")[slower.configuration]
    assert found["steps"] == 600 * 150 / 60 / 2
    assert found["tokens_per_second"] == found["steps"] * 100 / 150


@pytest.mark.runs
@pytest.mark.parametrize("parameters", [9_000, 60_000])
def test_the_width_is_the_multiple_of_32_nearest_to_the_wanted_parameters(book, parameters):
    config = LanguageConfig(data=(str(book),), cell="lstm", seq_len=8, batch_size=2)
    vocab = LanguageData.load(config).tokenizer.vocab_size

    def size(hidden):  # embedding, LSTM, output
        return vocab * hidden + 4 * hidden * (2 * hidden + 1) + (hidden + 1) * vocab

    nearest = min(range(32, 512, 32), key=lambda hidden: abs(size(hidden) - parameters))
    assert models.nearest_hidden(config, parameters) == nearest
