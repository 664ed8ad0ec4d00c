"""Runs of a classifier: number of compiled shapes, choice of the best step, exact resuming."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen import jitted
from jaxgen.errors import DataError, UsageError
from jaxgen.inference.predictor import Predictor
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import MAX_STEPS
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.classify.data import ClassifyConfig, ClassifyData
from jaxgen.trainer import callbacks as pictures
from jaxgen.trainer import minutes, trainer
from jaxgen.trainer import run as length
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Started
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.trainer.run import resume, start

CLOCKS = ("texts_per_second", "seconds")
WORDS = {"sea": ["fish", "wave", "ship", "salt"], "land": ["tree", "road", "hill", "cow"], "sky": ["cloud", "bird"]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts of 1 to 6 words, of which one kind is rare."""
    pick = random.Random(0)
    rows = []
    for number in range(60):
        label = "sky" if number % 10 == 0 else ("sea", "land")[number % 2]
        words = [pick.choice([*WORDS[label], "the", "a", "on"]) for _ in range(pick.randint(0, 5))]
        rows.append(f"{' '.join([pick.choice(WORDS[label]), *words])},{label}")
    path = tmp_path_factory.mktemp("data") / "kinds.csv"
    path.write_text("text,kind\n" + "\n".join(rows) + "\n")
    return str(path)


def settings(table: str, run: Path, **more: Any) -> ClassifyConfig:
    sizes = {"cell": "elman", "hidden": 8, "batch_size": 8, "lr": 0.02, "warmup": 3, "devices": 1, "level": "word"}
    drop = {"dropout": 0.2, "embed_dropout": 0.1, "token_dropout": 0.1, "min_count": 1, "class_weights": "balanced"}
    steps = {"steps": 24, "eval_every": 8, "sample_every": 12, "patience": 3, "buckets": 2, "val_rows": 12}
    columns = {"data": (table,), "text_column": ("text",), "label_column": "kind"}
    return ClassifyConfig(**{**columns, "run": str(run), **sizes, **drop, **steps, **more})


def traces(run: Path) -> dict[str, Any]:
    """Everything a run left that no clock wrote."""
    store = CheckpointStore(run / "checkpoints")
    steps = store.latest(), store.best()
    leaves = [jax.tree_util.tree_leaves_with_path(store.restore(step)[0]) for step in steps]
    rows = [*MetricsLog(run / "metrics.jsonl").read(), store.host(steps[0])]
    files = ("samples.txt", "report.json", "confusion.txt")
    return {
        "steps": steps,
        "states": [[(str(path), np.asarray(leaf).tobytes()) for path, leaf in each] for each in leaves],
        "rows": [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows],
        "files": [(run / name).read_bytes() for name in files],
    }


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory, loss_plots) -> tuple[Path, list[Any]]:
    """A run that nothing stopped, and what it told."""
    events: list[Any] = []
    run = tmp_path_factory.mktemp("whole") / "run"
    with loss_plots():
        start(settings(table, run), events.append).train()
    return run, events


def test_a_run_leaves_figures_samples_and_pictures(whole):
    run, events = whole
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert [row["step"] for row in rows] == [8, 16, 24]
    figures = ("val_loss", "val_accuracy", "val_macro_f1", "val_calibration_error", "train_loss")
    assert all(np.isfinite(row[name]) for row in rows for name in figures)
    assert {path.name for path in run.iterdir()} >= {"confusion.png", "confusion.txt", "report.json"}
    with Image.open(run / "loss.png") as drawn:
        assert drawn.size == (1000, 800)
    report = json.loads((run / "report.json").read_text())
    assert sum(map(sum, report["val_confusion"])) == 12
    assert [*report["val_labels"]] == ["land", "sea", "sky"]
    assert (run / "samples.txt").read_text().count("->") == 3
    told = [event.headline for event in events if isinstance(event, Evaluated)]
    assert told[0] == f"accuracy {rows[0]['val_accuracy']:.1%}, macro-F1 {rows[0]['val_macro_f1']:.3f}"
    facts = next(event.facts for event in events if isinstance(event, Started))
    assert facts["texts"].startswith("48 to train on, 12 ")


def test_a_picture_of_the_report_that_cannot_be_written_is_told_and_the_run_is_complete(whole, table, tmp_path):
    events: list[Any] = []
    run = start(settings(table, tmp_path / "run"), events.append)
    (tmp_path / "run" / "confusion.png").mkdir()
    run.train()
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert str(tmp_path / "run" / "confusion.png") in note
    assert isinstance(events[-1], Finished)
    assert (tmp_path / "run" / "report.json").read_bytes() == (whole[0] / "report.json").read_bytes()


def test_the_report_is_that_of_the_best_step(whole):
    run, _ = whole
    report = json.loads((run / "report.json").read_text())
    rows = {row["step"]: row for row in MetricsLog(run / "metrics.jsonl").read()}
    assert report["val_accuracy"] == rows[report["best_step"]]["val_accuracy"] == max(
        row["val_accuracy"] for row in rows.values()
    )  # fmt: skip


def test_a_trained_run_tells_kinds_apart(table, tmp_path):
    start(settings(table, tmp_path / "run", steps=60, eval_every=30, val_data=(table,), val_rows=None)).train()
    given = ["fish wave the ship", "cow on the hill", "bird a cloud"]
    assert [answer["label"] for answer in Predictor.load(tmp_path / "run").predict(given)] == ["sea", "land", "sky"]


@pytest.mark.parametrize("buckets", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_no_more_shapes_are_compiled_than_there_are_buckets(buckets, table, tmp_path):
    few = {"buckets": buckets, "hidden": 10 + buckets, "steps": 20, "eval_every": 10, "sample_every": 0}
    run = start(settings(table, tmp_path / "run", level="char", lowercase=True, **few))
    evaluating, predicting = jitted.jit_eval_step(run.task, 1), jitted.jit_predict(run.task)
    assert run._train_steps._cache_size() == evaluating._cache_size() == 0  # no other test has this size
    run.train()
    shapes = {run.data.batches.batch(step).inputs.tokens.shape for step in range(20)}
    assert len(shapes) == buckets
    assert run._train_steps._cache_size() == buckets
    assert 1 <= evaluating._cache_size() <= buckets
    assert predicting._cache_size() <= 3  # of the three texts that are shown


def test_the_speed_told_is_that_of_steps_that_compiled_nothing(table, tmp_path, monkeypatch):
    """Of a clock on which a step takes a second and compiling one for another shape a hundred."""
    run = start(settings(table, tmp_path / "run", level="char", lowercase=True, steps=16))
    clock, seen, train = [0.0], set(), run._train_steps

    class Waited:
        def __init__(self, losses: Any) -> None:
            self.losses = losses

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            clock[0] += 1
            return np.asarray(self.losses)

    def ticking(key: Any, state: Any, given: Any, *more: Any) -> Any:
        width = given.inputs.tokens.shape[-1]
        clock[0] += 0 if width in seen else 100
        seen.add(width)
        state, log = train(key, state, given, *more)
        return state, log._replace(loss=Waited(log.loss))

    monkeypatch.setattr(run, "_train_steps", ticking)
    monkeypatch.setattr(run.inputs, "steps_in_call", lambda step: 1)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    run.train()
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert (len(seen), clock[0]) == (2, 216)
    assert [row["texts_per_second"] for row in rows] == [8, 8]


def test_minutes_are_measured_for_every_shape_without_its_compilation(table, tmp_path, monkeypatch):
    """Of a clock on which a step takes a second, or three for the wider shape, and compiling it a hundred."""
    data = ClassifyData.load(settings(table, tmp_path / "run", level="char", lowercase=True))
    widths = [data.batches.batch(step).inputs.tokens.shape[1] for step in range(data.batches.steps_per_epoch)]
    takes = {width: 1.0 + 2.0 * (width > min(widths)) for width in {*widths}}
    clock, seen = [0.0], set()

    def time_call(step: int) -> float:
        compiling = 0.0 if widths[step] in seen else 100.0
        seen.add(widths[step])
        clock[0] += 2 * takes[widths[step]] + compiling
        return takes[widths[step]] + compiling / 2

    def takes_seconds(first: float, later: float) -> Any:
        """Work whose first call, which compiles, takes longer."""
        waits = [first]

        def work() -> None:
            clock[0] += waits.pop() if waits else later

        return work

    parts = [takes_seconds(50, 4), takes_seconds(0, 0), takes_seconds(20, 2)], [takes_seconds(40, 8)] * 2
    trial = SimpleNamespace(
        time_call=time_call,
        data=data,
        config=SimpleNamespace(minutes=60.0),
        group=ProcessGroup(),
        report_parts=lambda: parts,
    )
    monkeypatch.setattr(minutes, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    costs = minutes.measure(trial, began=0.0)
    usual = np.mean([takes[width] for width in widths])
    assert costs == pytest.approx((usual, 4, 2, 8 + 8 + minutes.ENDING))


def test_epochs_of_more_steps_than_a_run_has_are_refused(table, tmp_path):
    config = settings(table, tmp_path / "run", steps=None, epochs=1e6)
    data = SimpleNamespace(batches=SimpleNamespace(steps_per_epoch=2000))
    assert length.num_steps(config, data) == MAX_STEPS
    data.batches.steps_per_epoch += 1
    with pytest.raises(UsageError, match="epochs"):
        length.num_steps(config, data)


def test_two_devices_give_what_one_gives_but_for_rounding(table, whole, tmp_path):
    if jax.local_device_count() < 2:
        pytest.skip("there is one device")
    start(settings(table, tmp_path / "run", devices=2)).train()
    for one, two in zip(traces(whole[0])["rows"][:-1], traces(tmp_path / "run")["rows"][:-1]):
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, rtol=1e-3, err_msg=name)


def test_patience_and_the_best_step_go_by_accuracy_and_not_by_the_loss(table, tmp_path, monkeypatch):
    """The loss falls at every evaluation; the accuracy does not after the second. The picture says so, too."""
    accuracies, losses = iter([0.5, 0.7, 0.69, 0.6, 0.9]), iter([4.0, 3.0, 2.0, 1.0, 0.5])

    def scripted(self: Any, totals: Any, final: bool = False, report: Any = ClassifyData.report) -> dict[str, Any]:
        row = report(self, totals, final)
        return row if final else row | {"val_accuracy": next(accuracies), "val_loss": next(losses)}

    drawn = []
    monkeypatch.setattr(ClassifyData, "report", scripted)
    monkeypatch.setattr(pictures, "draw_losses", lambda rows, path, title, target, best: drawn.append(best))
    run = start(settings(table, tmp_path / "run", steps=20, eval_every=4, sample_every=0, patience=2)).train()
    assert (run.step, run.best_step) == (16, 8)
    assert drawn[-1][:2] == (8, "val_accuracy")


def test_a_run_begins_from_the_weights_of_another(table, whole, tmp_path):
    source = CheckpointStore(whole[0] / "checkpoints")
    begun = start(settings(table, tmp_path / "run", init_from=str(whole[0])))
    shapes = jax.eval_shape(begun.task.init, jax.random.key(0))
    theirs, _ = source.restore_params(source.best(), shapes)
    jax.tree.map(np.testing.assert_array_equal, begun.state.params, theirs)


def test_a_label_that_the_weights_do_not_know_leaves_no_folder_behind(table, whole, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(Path(table).read_text() + "a comet,space\nthe moon,space\n")
    with pytest.raises(DataError, match="'space'"):
        start(settings(str(other), tmp_path / "run", init_from=str(whole[0])))
    assert not (tmp_path / "run").exists()


def test_changed_data_and_changed_settings_are_not_resumed(table, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_text(Path(table).read_text())
    start(settings(str(copy), tmp_path / "run"))
    with pytest.raises(UsageError, match="--pooling"):
        resume(str(tmp_path / "run"), settings(str(copy), tmp_path / "run", pooling="mean"))
    copy.write_text(copy.read_text().replace("fish", "crab"))
    with pytest.raises(DataError, match="changed"):
        resume(str(tmp_path / "run"))
