"""A run that is stopped anywhere and resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import pytest
from builders import language_config
from edited import edit

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.runtime import processor_name
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import trainer
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Progress, Started
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import Interrupted

Config = DATA["language"].Config
STEPS = 24
TIMINGS = ("tokens_per_second", "seconds")
LAYOUTS = {
    "stream": {"dropout": 0.3, "cell": "elman"},
    "two devices": {"dropout": 0.2, "cell": "elman", "batch_size": 16, "devices": min(2, jax.local_device_count())},
    "documents": {"dropout": 0.2, "documents": "line", "layout": "documents"},
    "average": {
        "average": "ema",
        "average_options": {"decay": 0.8},
        "cell": "elman",
        "batch_size": 16,
        "lr": 0.3,
        "schedule": "constant",
        "devices": min(2, jax.local_device_count()),
    },
    "schedule-free": {"cell": "elman", "optimizer": "schedule-free", "schedule": "constant"},
}


def settings(book: Path, run: Path, **more: Any) -> Any:
    sizes = {"hidden": 8, "batch_size": 4, "seq_len": 8, "lr": 0.02, "warmup": 3, "eval_every": 8, "sample_every": 12}
    return Config(**{"data": (str(book),), "run": str(run), "steps": STEPS, "patience": 3, **sizes, **more})


def arrays(run: Path, step: int) -> dict[str, tuple[Any, ...]]:
    state, _ = CheckpointStore(run / "checkpoints").restore(step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for path, leaf in leaves}


def traces(run: Path) -> dict[str, Any]:
    """Everything a run left that no clock wrote: the last and the best state, what the host knew, its logs."""
    store = CheckpointStore(run / "checkpoints")
    last, best = store.latest(), store.best()
    host = {name: value for name, value in store.host(last).items() if name not in TIMINGS}
    rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in MetricsLog(run / "metrics.jsonl").read()]
    return {
        "last": (last, arrays(run, last)),
        "best": (best, arrays(run, best)),
        "host": host,
        "metrics": rows,
        "samples": (run / "samples.txt").read_bytes(),
        "report": (run / "report.json").read_bytes(),
    }


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An ``emit`` that asks for a stop, as a signal does, once ``number`` steps have been reported."""

    class Signals(trainer.StopSignals):
        def __init__(self) -> None:
            super().__init__()
            signals.append(self)

    signals: list[Signals] = []
    monkeypatch.setattr(trainer, "StopSignals", Signals)

    def emit(event: Any) -> None:
        if isinstance(event, Progress) and event.step >= number:
            signals[-1].received = 2

    return emit


@pytest.fixture(scope="module")
def whole(book: Path, tmp_path_factory: pytest.TempPathFactory):
    """layout -> the folder of a run that nothing stopped."""
    done: dict[str, Path] = {}

    def train(layout: str) -> Path:
        if layout not in done:
            path = tmp_path_factory.mktemp("whole") / "run"
            start(settings(book, path, **LAYOUTS[layout])).train()
            done[layout] = path
        return done[layout]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_stopped_again_and_again_equals_one_that_was_not(layout, whole, book, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(trainer, "MAX_STEPS_PER_CALL", 3)
    stopped = []
    with pytest.raises(Interrupted) as first:
        start(settings(book, run, **LAYOUTS[layout]), stop_at(2, monkeypatch)).train()
    stopped.append(CheckpointStore(run / "checkpoints").latest())
    for number in (9, 17):
        with pytest.raises(Interrupted):
            resume(str(run), emit=stop_at(number, monkeypatch)).train()
        stopped.append(CheckpointStore(run / "checkpoints").latest())
    monkeypatch.undo()
    resume(str(run)).train()  # with another number of steps a call
    assert first.value.exit_code == 128 + 2
    assert stopped == [6, 12, 22]
    assert traces(run) == traces(whole(layout))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_final_evaluation_says_that_training_is_saved(number, whole, book, tmp_path, monkeypatch):
    run, layout = tmp_path / "run", "stream"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.RunTrainer, "_report", lambda *_: signal.raise_signal(number))
        with pytest.raises(Interrupted, match="final evaluation") as stopped:
            start(settings(book, run, **LAYOUTS[layout])).train()
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "as it was before"
    resume(str(run)).train()
    assert traces(run) == traces(whole(layout))


def test_a_signal_during_the_evaluation_of_the_last_step_is_not_lost(whole, book, tmp_path):
    run = tmp_path / "run"

    def emit(event: Any) -> None:
        if isinstance(event, Evaluated) and event.row["step"] == STEPS:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved") as stopped:
        start(settings(book, run, **LAYOUTS["stream"]), emit).train()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    resume(str(run)).train()
    assert traces(run) == traces(whole("stream"))


def truncate_largest(checkpoint: Path) -> None:
    victim = max(checkpoint.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])


def test_a_finished_run_whose_best_checkpoint_is_damaged_reports_on_the_best_that_is_left(book, tmp_path):
    run = tmp_path / "run"
    still = settings(book, run, steps=4, eval_every=2, sample_every=0, lr=1e-30)  # the first remains the best
    assert start(still).train().best_step == 2
    truncate_largest(run / "checkpoints" / "00000002")
    events: list[Any] = []
    assert resume(str(run), emit=events.append).train().best_step == 4
    note, finished = (event.text for event in events if isinstance(event, Note))
    assert "step 2" in note
    assert "finished" in finished
    assert "--steps 8" in finished
    assert "step 4" in note


def test_a_best_checkpoint_that_is_damaged_while_training_goes_on_leaves_a_report_on_the_last(book, tmp_path):
    run, notes = tmp_path / "run", []

    def emit(event: Any) -> None:
        if isinstance(event, Evaluated) and event.row["step"] == 4:
            truncate_largest(run / "checkpoints" / "00000002")
        if isinstance(event, Note):
            notes.append(event.text)

    assert start(settings(book, run, steps=4, eval_every=2, sample_every=0, lr=1e-30), emit).train().best_step == 4
    note = notes[-1]
    assert "step 2" in note
    assert "step 4" in note


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param("between evaluations", marks=pytest.mark.slow),
        "after a sample, unsaved",
        "after an evaluation, unsaved",
        Finished,
    ],
)
def test_a_run_that_crashed_anywhere_equals_one_that_did_not(crash, whole, book, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def emit(event: Any) -> None:
        between = crash == "between evaluations" and isinstance(event, Progress) and event.step == 16
        if between or (isinstance(crash, type) and isinstance(event, crash)):
            raise RuntimeError("crash")

    def save(self: Any, step: int, *more: Any, **options: Any) -> None:
        if step == (12 if "sample" in crash else 16):  # the log has an entry that no checkpoint stands for
            raise RuntimeError("crash")
        former(self, step, *more, **options)

    former = trainer.RunTrainer.save
    if "unsaved" in str(crash):
        monkeypatch.setattr(trainer.RunTrainer, "save", save)
    with pytest.raises(RuntimeError, match="crash"):
        start(settings(book, run, **LAYOUTS["stream"]), emit).train()
    monkeypatch.undo()
    resume(str(run)).train()
    assert traces(run) == traces(whole("stream"))


def test_a_run_stopped_before_its_first_evaluation_begins_again(whole, book, tmp_path):
    run = tmp_path / "run"
    start(settings(book, run, **LAYOUTS["stream"]))  # the folder is there, nothing was trained
    with pytest.raises(CheckpointError, match="--resume auto"):
        LoadedRun.open(run).params()
    events: list[Any] = []
    resume(str(run), emit=events.append).train()
    assert next(e for e in events if isinstance(e, Started)).first_step == 0
    assert traces(run) == traces(whole("stream"))


@pytest.mark.parametrize("step", [0, STEPS])
def test_a_run_without_its_checkpoints_is_refused_and_never_begun_anew(step, whole, book, tmp_path):
    run = tmp_path / "run"
    if step:
        shutil.copytree(whole("stream"), run)
    else:
        start(settings(book, run))
    shutil.rmtree(run / "checkpoints")
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match="checkpoint"):
        resume(str(run))
    assert sorted(run.rglob("*")) == before


def test_a_start_that_failed_in_front_of_its_configuration_is_repeated(whole, book, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def failed(*_: Any) -> None:
        raise RuntimeError("failed")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["jaxgen.trainer.run"], "write_config", failed)
        with pytest.raises(RuntimeError, match="failed"):
            start(settings(book, run, seed=5))
    assert not run.exists()
    start(settings(book, run, **LAYOUTS["stream"])).train()
    assert traces(run) == traces(whole("stream"))


def test_checkpoints_of_a_run_that_lost_its_configuration_are_left_alone(whole, book, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    for path in run.iterdir():
        if path.name != "checkpoints":
            path.unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(UsageError, match="not empty"):
        start(settings(book, run))
    assert sorted(run.rglob("*")) == before


def test_a_run_begun_with_anothers_weights_begins_again_with_the_same(whole, book, tmp_path):
    other, run = Path(shutil.copytree(whole("stream"), tmp_path / "other")), tmp_path / "run"
    first = start(settings(book, run, init_from=str(other), cell="elman", dropout=0.3)).state.params
    shutil.rmtree(other)
    again = resume(str(run)).state.params
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    finished = resume(str(run)).train()
    after = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    assert finished.step == STEPS
    assert after == before


def test_two_runs_with_the_same_settings_leave_the_same(whole, book, tmp_path):
    start(settings(book, tmp_path / "again", **LAYOUTS["stream"])).train()
    assert traces(tmp_path / "again") == traces(whole("stream"))


def test_another_seed_begins_with_other_weights(book, tmp_path):
    one, other = (start(settings(book, tmp_path / f"{seed}", seed=seed)).state.params for seed in (0, 1))
    assert not np.array_equal(one["embedding"], other["embedding"])


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    steps = CheckpointStore(run / "checkpoints").steps()
    files = (run / "checkpoints" / f"{STEPS:08d}").glob("*.safetensors")
    victim = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    events: list[Any] = []
    resume(str(run), emit=events.append).train()
    notes = [event.text for event in events if isinstance(event, Note)]
    before = steps[steps.index(STEPS) - 1]
    assert len(notes) == 1
    assert f"step {STEPS}" in notes[0]
    assert f"step {before}" in notes[0]
    assert traces(run) == traces(whole("stream"))


def test_more_steps_go_on_behind_the_frozen_schedule(whole, book, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    before = MetricsLog(run / "metrics.jsonl").read()
    longer = settings(book, run, **LAYOUTS["stream"]).model_copy(update={"steps": STEPS + 5})
    told: list[Any] = []
    assert resume(str(run), longer, told.append).train().step == STEPS + 5
    notes = [event.text for event in told if isinstance(event, Note)]
    assert any(f"step {STEPS}" in note and "--init-from" in note for note in notes)
    rows = MetricsLog(run / "metrics.jsonl").read()
    resolved = RunDirectory(run).read_json("config.json")["resolved"]
    assert rows[:-1] == before
    assert rows[-1]["step"] == STEPS + 5
    assert rows[-1]["learning_rate"] == pytest.approx(0.02 * 0.02)  # the decay has ended and stays
    assert (resolved["horizon"], resolved["steps"]) == (STEPS, STEPS + 5)


@pytest.fixture(scope="module")
def another(book, tmp_path_factory) -> Path:
    """A run of the same shapes as ``whole("stream")``."""
    run = tmp_path_factory.mktemp("another") / "run"
    start(settings(book, run, **LAYOUTS["stream"], seed=1)).train()
    return run


@pytest.mark.parametrize("step", [STEPS, "best"])
def test_a_checkpoint_of_another_run_is_refused_wherever_it_is_read(step, whole, another, book, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    store = CheckpointStore(run / "checkpoints")
    name = f"{store.best() if step == 'best' else step:08d}"
    shutil.rmtree(run / "checkpoints" / name)
    shutil.copytree(another / "checkpoints" / f"{STEPS:08d}", run / "checkpoints" / name)
    content = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fresh = settings(book, tmp_path / "new", **LAYOUTS["stream"], init_from=str(run))
    for ask in (lambda: resume(str(run)), lambda: Sampler.load(run), lambda: start(fresh)):
        with pytest.raises(CheckpointError, match="holds"):
            ask()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == content


def test_the_settings_of_another_run_do_not_fit_its_checkpoints(whole, another, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    shutil.copy(another / "config.json", run)
    with pytest.raises(CheckpointError, match="another run"):
        Sampler.load(run)


def test_an_edited_log_is_a_warning_that_names_the_line(whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    notes: list[str] = []

    def emit(event: Any) -> None:
        notes.extend([event.text] if isinstance(event, Note) else [])

    resume(str(run), emit=emit)
    assert notes == []
    for edited in (json.dumps({**json.loads(lines[1]), "val_loss": 0.5}), "", "no row"):
        notes.clear()
        (run / "metrics.jsonl").write_text("".join([lines[0], edited + "\n", *lines[2:]]))
        resume(str(run), emit=emit)
        assert len(notes) == 1
        assert all(part in notes[0] for part in ("WARNING", "metrics.jsonl", "line 2"))


def test_a_run_that_goes_on_keeps_its_new_length(whole, book, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    resume(str(run), settings(book, run, **LAYOUTS["stream"]).model_copy(update={"steps": STEPS + 5}))
    assert resume(str(run)).total_steps == STEPS + 5


def test_other_settings_are_refused_by_name(whole, book, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    other = settings(book, run, **LAYOUTS["stream"]).model_copy(update={"hidden": 16, "lr": 0.5})
    with pytest.raises(UsageError, match=r"--hidden .*--lr "):
        resume(str(run), other)


def test_changed_data_are_refused_with_both_digests(book, tmp_path):
    copy = tmp_path / "copy.txt"
    shutil.copy(book, copy)
    start(settings(copy, tmp_path / "run"))
    then = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["data"]["sha256"]
    copy.write_text(copy.read_text().replace("cat", "cow"))
    with pytest.raises(DataError) as error:
        resume(str(tmp_path / "run"))
    digests = [word.rstrip(".,") for word in str(error.value).split() if len(word.rstrip(".,")) == 64]
    assert digests[0] == then
    assert len(set(digests)) == 2
    told: list[Any] = []
    resume(str(tmp_path / "run"), emit=told.append, data_changed="accept")
    assert all(part in told[0].text for part in ("WARNING", *digests))
    resume(str(tmp_path / "run"), emit=told.append)  # it was accepted once
    assert len(told) == 1
    with pytest.raises(UsageError, match="--data-changed"):
        resume(str(tmp_path / "run"), data_changed="yes")


def test_data_that_were_moved_are_found_where_they_are_now(whole, book, tmp_path):
    first, moved = tmp_path / "first.txt", tmp_path / "moved.txt"
    shutil.copy(book, first)
    start(settings(first, tmp_path / "run", **LAYOUTS["stream"]))
    first.rename(moved)
    with pytest.raises(DataError):
        resume(str(tmp_path / "run"))
    resume(str(tmp_path / "run"), settings(moved, tmp_path / "run", **LAYOUTS["stream"]))
    resume(str(tmp_path / "run")).train()
    assert traces(tmp_path / "run") == traces(whole("stream"))


@pytest.mark.parametrize(
    ("keys", "then", "now"),
    [
        (["versions", "jaxlib"], "0.0.1", jaxlib.__version__),
        (["processor"], "Abacus 3000 (0123456789ab)", processor_name()),
        (["device"], "Abacus 3000", jax.devices()[0].device_kind),
        (["environment", "XLA_FLAGS"], "--xla_cpu_enable_fast_math=true", "its default"),
    ],
)
def test_a_run_that_goes_on_with_other_versions_or_elsewhere_says_so(keys, then, now, whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    edit(run, "resolved", *keys, value=then)
    told: list[Any] = []
    resume(str(run), emit=told.append)
    (note,) = (event.text for event in told if isinstance(event, Note))
    assert f"started with {keys[-1]} {then} and continues with {now}" in note


def test_a_run_that_goes_on_with_another_flag_of_the_compiler_says_so(whole, tmp_path, monkeypatch):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    flags = "--xla_cpu_enable_fast_math=true --xla_dump_to=/tmp --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)  # read by XLA only when a process starts
    told: list[Any] = []
    resume(str(run), emit=told.append)
    (note,) = (event.text for event in told if isinstance(event, Note))
    assert "--xla_backend_optimization_level=0 --xla_cpu_enable_fast_math=true" in note
    assert "xla_dump" not in note


def test_a_run_that_goes_on_where_it_began_says_nothing(whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    told: list[Any] = []
    resume(str(run), emit=told.append)
    edit(run, "resolved", "processor", value=None)  # a run from before it was written down
    resume(str(run), emit=told.append)
    assert not [event for event in told if isinstance(event, Note)]


def test_a_run_with_damaged_checkpoints_only_is_refused(whole, tmp_path):
    run = Path(shutil.copytree(whole("stream"), tmp_path / "run"))
    for manifest in (run / "checkpoints").glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace("best_step", "best_stop"))
    with pytest.raises(CheckpointError, match=r"checkpoints.* good"):
        resume(str(run))


@pytest.mark.slow
def test_patience_ends_a_run_and_survives_a_stop(book, tmp_path, monkeypatch):
    """A learning rate too small for float32 leaves the weights alone: no evaluation is better than the first."""
    still = {"lr": 1e-30, "eval_every": 3, "sample_every": 0, "patience": 2, "steps": 20, "cell": "elman"}
    whole = start(settings(book, tmp_path / "whole", **still)).train()
    monkeypatch.setattr(trainer, "MAX_STEPS_PER_CALL", 1)
    with pytest.raises(Interrupted):
        start(settings(book, tmp_path / "run", **still), stop_at(7, monkeypatch)).train()
    monkeypatch.undo()
    run = resume(str(tmp_path / "run")).train()
    assert (whole.step, whole.best_step) == (9, 3)
    assert (run.step, run.best_step) == (9, 3)
    assert resume(str(tmp_path / "run")).train().step == 9, "the stopped run went on"
    rows = [[row["step"] for row in MetricsLog(tmp_path / name / "metrics.jsonl").read()] for name in ("whole", "run")]
    assert rows[0] == rows[1] == [3, 6, 9]


def test_a_resumed_run_reads_the_header_as_its_first_start_did(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "".join(f"so be it {n}\n" for n in range(30)))
    config = language_config(table, tmp_path / "run", text_column="1", steps=2, eval_every=0)
    start(config).train()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["header"] == "yes"
    with table.open("a") as file:
        file.write("text\n")  # now the first row looks like data
    corpus = resume(str(tmp_path / "run"), data_changed="accept").data.corpus
    assert corpus.train.doc_starts.size + corpus.val.doc_starts.size == 31
