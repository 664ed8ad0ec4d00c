"""Runs of several seeds that are trained together: each is an ordinary run, resumable bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from builders import language_config

import jaxgen
from jaxgen.cli.train import main
from jaxgen.errors import DivergedError, UsageError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import read_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.classify.data import ClassifyConfig
from jaxgen.trainer import seeds as module
from jaxgen.trainer.callbacks import Evaluated, Note, Progress
from jaxgen.trainer.run import start
from jaxgen.trainer.seeds import resume_seeds, train_seeds
from jaxgen.trainer.signals import Interrupted, StopSignals

TIMINGS = ("tokens_per_second", "seconds")
SEEDS = (0, 7)


def settings(book: Path, run: Path, **more: Any) -> Any:
    return language_config(book, run, **{"steps": 20, "eval_every": 5, "sample_every": 0, "dropout": 0.2, **more})


def arrays(run: Path) -> dict[str, bytes]:
    state, _ = CheckpointStore(run / "checkpoints").restore(None)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name.removesuffix("_spread") not in TIMINGS}
        for row in MetricsLog(run / "metrics.jsonl").read()
    ]


def traces(folder: Path) -> list[Any]:
    """All that the runs left that no clock wrote."""
    found = [(arrays(folder / f"seed-{seed}"), rows(folder / f"seed-{seed}")) for seed in SEEDS]
    return [found, rows(folder), (folder / "report.json").read_bytes()]


@pytest.fixture(scope="module")
def whole(book, tmp_path_factory, quick):
    """Two runs that were trained together."""
    folder = tmp_path_factory.mktemp("seeds") / "both"
    with quick():
        train_seeds(settings(book, folder), SEEDS)
    return folder


@pytest.mark.runs
def test_each_seed_is_the_run_that_it_is_alone(whole, book, tmp_path):
    for seed in SEEDS:
        start(settings(book, tmp_path / f"{seed}", seed=seed, devices=1)).train()
        alone, together = rows(tmp_path / f"{seed}"), rows(whole / f"seed-{seed}")
        for a, b in zip(alone, together, strict=True):
            assert a == pytest.approx(b, abs=1e-5, rel=1e-5)  # a perplexity can be large
        assert read_config(RunDirectory(whole / f"seed-{seed}"))["resolved"]["seeds"]["vmapped"] == [*SEEDS]
    assert jaxgen.load(whole / "seed-7").generate("the", length=5)


@pytest.mark.runs
def test_the_folder_has_means_and_spreads(whole):
    record, report = (json.loads((whole / name).read_text()) for name in ("seeds.json", "report.json"))
    assert record["vmapped"] is report["vmapped"] is True
    losses = [json.loads((whole / f"seed-{seed}" / "report.json").read_text())["val_loss"] for seed in SEEDS]
    assert report["mean"]["val_loss"] == pytest.approx(np.mean(losses))
    assert report["mean"]["val_loss_spread"] == pytest.approx(np.std(losses, ddof=1))
    each = [rows(whole / f"seed-{seed}")[-1]["val_loss"] for seed in SEEDS]
    assert rows(whole)[-1]["val_loss"] == pytest.approx(np.mean(each))
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.runs
def test_the_same_command_has_the_same_bits(whole, book, tmp_path):
    train_seeds(settings(book, tmp_path / "again"), SEEDS)
    assert traces(tmp_path / "again") == traces(whole)


def stopping_after(step, monkeypatch):
    """An ``emit`` that asks for a stop, as a signal does, once ``step`` is reported."""
    made = []

    class Signals(StopSignals):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(module, "StopSignals", Signals)

    def emit(event):
        if isinstance(event, Progress) and event.step >= step:
            made[-1].received = 2

    return emit


@pytest.mark.runs
@pytest.mark.parametrize("ahead", [False, True])
def test_resumed_runs_are_those_that_nothing_stopped(ahead, whole, book, tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("jaxgen.trainer.trainer.MAX_STEPS_PER_CALL", 2)
        with pytest.raises(Interrupted) as stop:
            train_seeds(settings(book, folder), SEEDS, stopping_after(7, patch))
    assert str(folder) in str(stop.value)
    if ahead:  # as if the process was killed after the first run had saved more than the second
        CheckpointStore(folder / "seed-7" / "checkpoints").truncate(5)
    resume_seeds(folder)
    assert traces(folder) == traces(whole)


@pytest.mark.runs
def test_a_seed_that_stops_early_or_diverges_leaves_the_others_alone(whole, book, tmp_path, monkeypatch):
    read = module.RunTrainer.read_metrics

    def broken(self, stop, log, number, step, clock):
        if self.config.seed == 7 and step > 10:
            log = log._replace(loss=np.full_like(log.loss, np.nan))
        return read(self, stop, log, number, step, clock)

    monkeypatch.setattr(module.RunTrainer, "read_metrics", broken)
    with pytest.raises(DivergedError, match="seed 7"):
        train_seeds(settings(book, tmp_path / "one"), SEEDS)
    assert (arrays(tmp_path / "one" / "seed-0"), rows(tmp_path / "one" / "seed-0")) == traces(whole)[0][0]
    assert json.loads((tmp_path / "one" / "report.json").read_text())["seeds"] == [0]


@pytest.mark.runs
def test_batches_of_several_widths_are_trained_one_after_the_other(tmp_path):
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"{'a b ' * (n % 30 + 1)},{'xy'[n % 2]}\n" for n in range(80)))
    sizes = {
        "data": str(texts),
        "hidden": 4,
        "cell": "elman",
        "buckets": 2,
        "steps": 2,
        "batch_size": 4,
        "run": str(tmp_path / "run"),
    }
    seen: list[Any] = []
    train_seeds(ClassifyConfig(text_column="text", label_column="label", **sizes), (0, 1), seen.append)
    assert any("--buckets" in event.text or "buckets" in event.text for event in seen if isinstance(event, Note))
    assert json.loads((tmp_path / "run" / "seeds.json").read_text())["vmapped"] is False
    assert json.loads((tmp_path / "run" / "report.json").read_text())["mean"]["seeds"] == 2


@pytest.mark.runs
def test_the_command_trains_continues_and_shows_means(book, tmp_path, capsys):
    sizes = f"--data {book} --preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8".split()
    folder = tmp_path / "three"
    assert main([*sizes, "--steps", "4", "--seeds", "3", "--run", str(folder)]) == 0
    assert "±" in capsys.readouterr().out
    assert main([*sizes, "--seeds", "3", "--run", str(folder)]) == 2
    assert main(["--run", str(folder), "--resume", "auto", "--seeds", "2"]) == 2
    assert main(["--run", str(folder), "--resume", "auto", "--steps", "6"]) == 0
    reports = [json.loads((folder / f"seed-{seed}" / "report.json").read_text()) for seed in range(3)]
    assert [report["step"] for report in reports] == [6, 6, 6]


@pytest.mark.parametrize(
    ("seeds", "more"),
    [((), {}), ((1, 1), {}), ((0, 1), {"model": "ngram"}), ((0, 1, 2), {"devices": 2}), ((0, 1), {"minutes": 1.0})],
)
def test_what_cannot_be_trained_with_several_seeds_is_refused(seeds, more, book, tmp_path):
    with pytest.raises(UsageError):
        train_seeds(
            settings(book, tmp_path / "run", **({} if "minutes" not in more else {"steps": None}), **more), seeds
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["0", "x", "1,x", "-3", "1001"])
def test_wrong_seeds_are_refused_before_anything_is_read(given):
    assert main(["--data", "nowhere.txt", "--seeds", given]) in (2, 3)


def test_evaluations_of_several_runs_are_shown_as_their_mean(tmp_path):
    record = module.Seeds(task="language", config={}, seeds=[3, 4], vmapped=True, devices=1)
    seen: list[Any] = []
    events = module.SeedEvents(seen.append, tmp_path, record)
    for place, loss in enumerate((1.0, 2.0)):
        row = {"step": 5, "train_loss": 1.0, "val_loss": loss}
        events.of(place)(Evaluated(row, 5, 0, ""))
        events.of(place)(Note("a note"))
    events.show()
    *notes, shown = seen
    assert [note.text for note in notes] == ["Seed 3: a note", "Seed 4: a note"]
    assert (shown.row["val_loss"], shown.row["seeds"]) == (1.5, 2)
    assert shown.row["val_loss_spread"] == pytest.approx(2**-0.5)
