"""The recorder of a training run: its directory, its lock, its checkpoints and its callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax

from jaxgen.errors import CheckpointError, counted
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.tasks.base import TaskData
from jaxgen.trainer.callbacks import Callback, EarlyStopping, Emit, Emitter, LogWriter, ModelCard, Note, Plots
from jaxgen.trainer.trackers import Tracker, make_trackers
from jaxgen.training.data_parallel import MAX_PARAMETERS_PER_TOKEN
from jaxgen.training.step import TrainState
from jaxgen.types import Params


class NullRecorder:
    """Records nothing: the recorder of all processes but the main one, and of steps that are only timed."""

    callbacks: Sequence[Callback] = ()
    store: CheckpointStore | None = None
    #: Why a loop over the trainer stops the run.
    loop_reason: str | None = None

    def __enter__(self) -> NullRecorder:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def call(self, method: str, *args: Any) -> None:
        """Call a method of all ``callbacks``, in order."""
        for callback in self.callbacks:
            getattr(callback, method)(*args)

    @property
    def stop_reason(self) -> str | None:
        """Why a loop over the trainer or a callback stops the run, the first that does; None if none does."""
        reasons = (self.loop_reason, *(each.stop_reason for each in self.callbacks))
        return next((reason for reason in reasons if reason is not None), None)

    def truncate_after(self, step: int) -> None:
        """Drop all checkpoints and records after ``step``."""

    def save(
        self, step: int, state: TrainState, host: Mapping[str, Any], metric: float | None = None, keep: bool = False
    ) -> None:
        """Save a checkpoint.

        Args:
            step: the number of training steps taken.
            state: the state, all its rows on this host.
            host: the state of the host, as JSON.
            metric: the value that decides which checkpoint is best (lower is better); None if there is none.
            keep: keep the earlier checkpoints too.
        """

    def best_params(self, step: int, params: Params) -> tuple[int, Params]:
        """The step and weights of the best checkpoint; the given ones, which are the last, if none is better."""
        return step, params


class Recorder(NullRecorder):
    """Writes a run directory and holds its lock while entered."""

    store: CheckpointStore

    def __init__(self, run: RunDirectory, callbacks: Sequence[Callback], run_digest: str) -> None:
        self.run, self.callbacks = run, callbacks
        self.store = CheckpointStore(run.checkpoints_path, run_digest=run_digest)
        self._saved = self.store.names()  # the checkpoints that the trainer knows
        self._entered = ExitStack()

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(RunLock.training(self.run.path))
            if self.store.names() != self._saved:
                raise CheckpointError(
                    f"The checkpoints of the run {self.run} have changed since this trainer was made: another "
                    "process trained the run, or removed some. Resume the run, and train with the trainer that this "
                    "returns."
                )
            self.loop_reason = None
            for callback in self.callbacks:
                callback.stop_reason, callback.emit = None, partial(self.call, "on_note")
            stack.callback(self.call, "wait")
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._entered.close()

    def truncate_after(self, step: int) -> None:
        RunLock.check(self.run.path)
        self.store.truncate(step)
        self._saved = self.store.names()
        self.call("truncate_after", step)

    def save(
        self, step: int, state: TrainState, host: Mapping[str, Any], metric: float | None = None, keep: bool = False
    ) -> None:
        if keep:
            self.store.keep_latest = max(self.store.keep_latest, len(self.store.steps()) + 1)
        RunLock.check(self.run.path)
        self.store.save(step, state, host, metric)
        self._saved = self.store.names()
        RunLock.check(self.run.path)  # if the folder was replaced meanwhile, the checkpoint is not the run's

    def best_params(self, step: int, params: Params) -> tuple[int, Params]:
        best = self.store.best()
        if best is None or best == step:
            return step, params
        try:
            return best, self.store.restore_params(best, params)[0]
        except DamagedCheckpointError as error:
            self.call("on_note", Note(f"WARNING: {error} The report is of step {step:,} instead, the last."))
            return step, params


def make_recorder(
    run: RunDirectory, data: TaskData, resolved: Mapping[str, Any], emit: Emit, callbacks: Sequence[Callback] = ()
) -> Recorder:
    """The recorder of a run: its files, early stopping and trackers if asked for, ``emit``, and ``callbacks``.

    A tracker among ``callbacks`` replaces that of the same name in ``--log``.
    """
    own = {each.NAME for each in callbacks if isinstance(each, Tracker)}
    trackers = make_trackers([name for name in data.config.log if name not in own])
    patience = data.config.patience
    stopping = [] if patience is None else [EarlyStopping(patience)]
    standard = [LogWriter(run), *stopping, Plots(run, data), ModelCard(run, data), Emitter(emit)]
    return Recorder(run, [*standard, *trackers, *callbacks], resolved["run_digest"])


def run_summary(config: TrainConfig, data: TaskData, resolved: Mapping[str, Any], processes: int) -> dict[str, str]:
    """The lines that describe a run when it starts: label -> text."""
    devices = resolved["devices"]
    spread = f", the batch spread over {devices}" if devices > 1 else ""
    here = jax.device_count()
    if (
        devices == 1 < here
        and config.devices is None
        and resolved["parameters"] > MAX_PARAMETERS_PER_TOKEN * data.tokens_per_step
    ):
        spread = f", one of {here}: the model is large for its batch (--devices {here} spreads it)"
    return {
        **data.summary(),
        "model": f"{config.layers_pattern or config.cell} {config.layers}x{config.hidden}"
        + ("" if config.block == "plain" else f" in {config.block} blocks")
        + f", {resolved['parameters']:,} parameters",
        "training": f"{counted(resolved['steps'], 'step')} of "
        f"{counted(data.units_per_step, data.UNIT.removesuffix('s'))}, "
        f"{config.optimizer} at {config.lr:g}, {config.schedule}",
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()}){spread}"
        + ("" if processes == 1 else f" devices of {processes} processes"),
    }
