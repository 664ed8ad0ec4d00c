"""A non-finite loss, gradient or weight, injected into the state of a real run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import DivergedError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import trainer
from jaxgen.trainer.callbacks import Note
from jaxgen.trainer.evaluate import build_rates
from jaxgen.trainer.progress_state import MAX_ROLLBACKS
from jaxgen.trainer.run import resume, start
from jaxgen.training.schedules import SCHEDULES

from .fault import Fault

STEPS, EVERY = 24, 6
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "hills"]
Spoil = Callable[[Any, Any], tuple[Any, Any]]


def book(folder: Path) -> Path:
    """A little text, made where it is missing."""
    path = folder / "book.txt"
    if not path.exists():
        path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 160)) + "\n")
    return path


def settings(folder: Path, run: str, **more: Any) -> Any:
    """A run of a second on a little text."""
    sizes = {"hidden": 8, "batch_size": 4, "seq_len": 8, "lr": 0.02, "warmup": 3, "cell": "elman", "dropout": 0.2}
    rhythm = {"steps": STEPS, "eval_every": EVERY, "sample_every": 8}
    return DATA["language"].Config(
        **{"data": (str(book(folder)),), "run": str(folder / run), **sizes, **rhythm, **more}
    )


def weight(value: float) -> Spoil:
    """One number of the first array of weights becomes ``value``; the loss stays what it was."""

    def spoil(state: Any, log: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(state.params)
        leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(value)
        return state._replace(params=jax.tree.unflatten(tree, leaves)), log

    return spoil


def figure(name: str, value: float) -> Spoil:
    """The loss or the norm of the gradient becomes ``value``."""
    return lambda state, log: (state, log._replace(**{name: jnp.full_like(getattr(log, name), value)}))


def spoiled(spoil: Spoil, step: int, times: int) -> Any:
    """While entered, calls that end at ``step`` or beyond are spoiled until the run went back ``times`` times."""
    set_progress = trainer.RunTrainer.set_progress

    def spoiling_progress(self: Any, progress: Any) -> Any:
        set_progress(self, progress)
        steps, rollbacks = self._train_steps, progress.rollbacks

        def spoiling(*args: Any) -> Any:
            state, log = steps(*args)
            return spoil(state, log) if rollbacks < times and int(state.step) >= step else (state, log)

        self._train_steps = spoiling
        return self

    return mock.patch.multiple(trainer.RunTrainer, set_progress=spoiling_progress)


def spoils(draw: np.random.Generator) -> tuple[Spoil, str]:
    """What is spoiled, and how the message begins."""
    value = [math.nan, math.inf, -math.inf][draw.integers(3)]
    return [
        (figure("loss", value), "The loss"),
        (figure("grad_norm", abs(value)), "The gradient norm"),
        (weight(value), "params"),
    ][draw.integers(3)]


def traces(run: Path) -> dict[str, Any]:
    """What a run left that no clock wrote."""
    store = CheckpointStore(run / "checkpoints")
    rows = [
        {name: value for name, value in row.items() if name not in ("tokens_per_second", "seconds")}
        for row in MetricsLog(run / "metrics.jsonl").read()
    ]
    host = {name: value for name, value in store.host().items() if name != "seconds"}
    return {
        "digests": [(step, store.digest(step)) for step in {store.latest(), store.best()}],
        "host": host,
        "metrics": rows,
        "samples": (run / "samples.txt").read_bytes(),
        "report": RunDirectory(run).read_json("report.json"),
    }


def check_kept(run: Path) -> None:
    """Every checkpoint is of finite numbers, and no row of metrics stands for another."""
    store = CheckpointStore(run / "checkpoints")
    for step in store.steps():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(store.restore(step)[0])), step
    assert all(row["step"] <= store.latest() for row in MetricsLog(run / "metrics.jsonl").read())


def stopping(folder: Path, draw: np.random.Generator) -> str:
    """Without --on-nan a run stops, and what it had is still there."""
    spoil, what = spoils(draw)
    with spoiled(spoil, int(draw.integers(EVERY + 1, STEPS + 1)), times=1), pytest.raises(DivergedError) as error:
        start(settings(folder, "run")).train()
    message = str(error.value)
    assert error.value.exit_code == 5
    assert message.startswith(what)
    assert all(part in message for part in ("at step", "learning rate", "gradient norm", "is kept", "--on-nan"))
    check_kept(folder / "run")
    resume(str(folder / "run")).train()
    start(settings(folder, "whole")).train()
    assert traces(folder / "run") == traces(folder / "whole")
    return "stopped with exit 5; all checkpoints are finite, and resuming continues bit for bit"


def going_back(folder: Path, draw: np.random.Generator) -> str:
    """With --on-nan rollback it goes back and on, killed or stopped in between or not."""
    spoil, what = spoils(draw)
    step, times = int(draw.integers(EVERY + 1, STEPS + 1)), int(draw.integers(1, 4))
    deaths = sorted(draw.integers(1, STEPS, size=3))
    notes: list[str] = []

    def listen(event: Any) -> None:
        if isinstance(event, Note) and "rollback" in event.text:
            notes.append(event.text)

    def die(event: Any) -> None:
        if deaths and getattr(event, "step", 0) >= deaths[0]:
            deaths.pop(0)
            raise RuntimeError("killed")

    with spoiled(spoil, step, times), mock.patch.object(trainer, "MAX_STEPS_PER_CALL", 3):
        start(settings(folder, "whole", on_nan="rollback"), listen).train()
        run = start(settings(folder, "run", on_nan="rollback"), die)
        while True:
            try:
                run.train()
                break
            except RuntimeError:
                run = resume(str(folder / "run"), emit=die)
    assert len(notes) == times
    assert all(f"rollback {number} of 5" in note and what in note for number, note in enumerate(notes, start=1))
    store = CheckpointStore(folder / "whole" / "checkpoints")
    rows = MetricsLog(store.directory.parent / "metrics.jsonl").read()
    assert [row["step"] for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
    assert store.host()["rollbacks"] == times
    rate = float(SCHEDULES["cosine"](STEPS - 1, build_rates(settings(folder, "whole"), STEPS)))
    assert rows[-1]["learning_rate"] == pytest.approx(rate * 0.5**times)
    assert traces(folder / "run") == traces(folder / "whole")
    return "rolled back, lowered the learning rate and continued; same result when killed in between, bit for bit"


def never_ending(folder: Path, draw: np.random.Generator) -> str:
    """What comes again and again ends the run all the same."""
    notes: list[Any] = []
    spoil, _ = spoils(draw)
    with spoiled(spoil, EVERY + 2, times=99), pytest.raises(DivergedError):
        start(settings(folder, "run", on_nan="rollback"), notes.append).train()
    assert sum(isinstance(note, Note) and "rollback" in note.text for note in notes) == MAX_ROLLBACKS
    check_kept(folder / "run")
    return "rolled back five times, then stopped with exit 5"


FAULTS = (
    Fault(
        "NaN or infinite loss, gradient or weight",
        "exit 5 before anything is saved, naming step, learning rate and gradient norm; the last good checkpoint stays",
        stopping,
    ),
    Fault(
        "the same with `--on-nan rollback`",
        "rolls back, lowers the learning rate and continues, also when killed in between",
        going_back,
    ),
    Fault("the same repeatedly with `--on-nan rollback`", "ends with exit 5", never_ending, times=3),
)
