"""What trackers are sent, and when: with a tracker of our own, and with CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from builders import language_config
from tracked import checkpoint, end, make_run, rows, start_tracker

import jaxgen
from jaxgen.callbacks import CSV, Tracker
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.trainer.callbacks import Note
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trackers import TRACKERS, figures, make_trackers


class Memory(Tracker):
    """Keeps what it is sent; fails in what is ``broken``."""

    NAME = "memory"

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self.broken, self.known, self.sent, self.texts, self.ends = {*broken}, [], [], [], []

    def do(self, what):
        print("trackers print")
        if what in self.broken:
            raise ConnectionError("no network\nand a second line")

    def open(self, run, settings, known):
        self.do("open")
        self.known.append((settings["cell"], dict(known)))
        return {"id": "seven"}

    def log_row(self, step, row):
        self.do(f"row {step}")
        assert "step" not in row
        self.sent.append((step, row.get("val_loss", "report")))

    def log_samples(self, step, samples):
        self.texts += [(step, title) for title, _ in samples]

    def close(self, complete):
        self.ends.append(complete)


@pytest.mark.runs
def test_a_run_sends_its_rows_samples_and_report_and_goes_on_when_it_is_resumed(book, tmp_path, capsys):
    run, memory, later = tmp_path / "run", Memory(), Memory("row 2")
    later.NAME = "later"
    settings = language_config(book, run, steps=2, eval_every=1, sample_every=1)
    told = []
    start(settings, told.append, [memory, later]).train()
    assert memory.known == later.known == [("elman", {})]
    assert memory.sent == [*rows(run), (2, "report")]
    assert later.sent == rows(run)[:1]
    assert {step for step, _ in memory.texts} == {1, 2}
    assert memory.ends == [True]
    assert later.ends == [False]
    assert sum("later failed" in event.text for event in told if isinstance(event, Note)) == 1
    again = Memory()
    resume(str(run), settings.model_copy(update={"steps": 3}), callbacks=[again]).train()
    assert again.known == [("elman", {"id": "seven"})]
    assert again.sent == [*rows(run)[2:], (3, "report")]
    assert capsys.readouterr().out == "", "standard output is jaxgen's"


def test_a_tracker_that_is_given_later_gets_all_rows(tmp_path):
    run = make_run(tmp_path, 3)
    memory = start_tracker(Memory(), run, 3)
    assert memory.sent == rows(run)


def test_after_the_loss_of_a_checkpoint_its_steps_are_sent_again(tmp_path):
    run = make_run(tmp_path, 3)
    start_tracker(Memory(), run, 3).wait()
    MetricsLog(run / "metrics.jsonl").truncate(1)
    memory = start_tracker(Memory(), run, 1)
    checkpoint(memory, run, 2)
    assert memory.sent == rows(run)[1:]


def test_going_back_during_training_sends_the_steps_behind_again(tmp_path):
    run = make_run(tmp_path, 2)
    memory = start_tracker(Memory(), run, 2)
    memory.truncate_after(1)
    MetricsLog(run / "metrics.jsonl").truncate(1)
    for step in (2, 3):
        checkpoint(memory, run, step)
    assert [step for step, _ in memory.sent] == [1, 2, 2, 3]


@pytest.mark.parametrize("broken", ["open", "row 2"])
def test_a_tracker_that_fails_is_reported_once_and_what_is_missing_is_sent_at_the_end(broken, tmp_path):
    run, told = make_run(tmp_path, 1), []
    memory = start_tracker(Memory(broken), run, 1, told)
    for step in (2, 3):
        checkpoint(memory, run, step)
    memory.broken.clear()
    end(memory, 3)
    (note,) = told
    assert "memory failed: ConnectionError no network. " in note.text
    assert memory.sent == [*rows(run), (3, "report")]
    assert memory.ends == [True]


def test_a_tracker_that_keeps_failing_is_reported_once(tmp_path):
    run, told = make_run(tmp_path, 1), []
    end(start_tracker(Memory("open"), run, 1, told), 1)
    assert len(told) == 1
    (run / "trackers.json").write_text("[")
    end(start_tracker(Memory(), run, 1, told), 1)
    assert "trackers.json" in told[1].text


def test_a_table_of_the_rows_has_each_step_once(tmp_path):
    run = make_run(tmp_path, 2)
    table = start_tracker(CSV(), run, 2)
    table.truncate_after(1)
    MetricsLog(run / "metrics.jsonl").truncate(1)
    checkpoint(table, run, 2)
    end(table, 2)
    with (run / "metrics.csv").open(newline="") as file:
        assert [(int(row["step"]), float(row["val_loss"])) for row in csv.DictReader(file)] == rows(run)
    assert not (run / "trackers.json").exists()


@pytest.mark.runs
def test_a_baseline_is_sent_too(book, tmp_path):
    memory = Memory()
    config = LanguageConfig(data=str(book), run=str(tmp_path / "run"), model="ngram", batch_size=2, log="csv")
    start(config, callbacks=[memory]).train()
    assert memory.sent == [*rows(tmp_path / "run"), (0, "report")]
    assert (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.runs
def test_a_tracker_in_callbacks_replaces_that_of_its_name(book, tmp_path):
    mine = CSV()
    trainer = start(language_config(book, tmp_path / "run", log="csv"), callbacks=[mine])
    assert [each for each in trainer.recorder.callbacks if isinstance(each, CSV)] == [mine]


def test_trackers_have_names_that_do_not_repeat():
    assert list(TRACKERS) == sorted(TRACKERS)
    assert [type(each) for each in make_trackers(("csv", "csv"))] == [CSV]
    with pytest.raises(jaxgen.UsageError, match="'csv'"):
        make_trackers(("cvs",))


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "acmelog").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Memory, "PACKAGE", "acmelog")
    with pytest.raises(jaxgen.UsageError, match="acmelog"):
        Memory()


def test_the_figures_of_a_report_are_its_numbers():
    report = {"loss": 1.5, "speed": None, "labels": {"a": {"f1": 0.5}, "names": ["a"]}, "exact": True}
    assert figures({"final": report}) == {"final/loss": 1.5, "final/labels/a/f1": 0.5}


def test_rows_without_a_step_are_left_out(tmp_path):
    run = make_run(tmp_path, 1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"val_loss": 1.0}\n')
    assert start_tracker(Memory(), Path(run), 1).sent == rows(run)[:1]
