"""The progress of a run as the host records it, and recovery from non-finite values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Annotated, Any

import jax
import numpy as np
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from jaxgen.fsutil import STRICT, load_strict
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import LogRecord
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.runtime import MIN_SECONDS
from jaxgen.trainer.evaluate import EvalSchedule


def _as_record(value: object) -> object:
    return LogRecord(**value) if isinstance(value, dict) else value


@dataclass(config=STRICT)
class ProgressState:
    """The progress of a run, saved with every checkpoint."""

    loss_sum: float = 0.0  # nats since the last row of metrics
    loss_count: float = 0.0  # targets since then
    best: float | None = None  # ``Metric.cost`` of the best evaluation
    best_step: int = 0
    bad_evals: int = 0  # since the best one
    seconds: float = 0.0  # of training, over all starts
    rollbacks: int = 0  # the learning rate follows from it
    costs: list[list[float]] = field(default_factory=list)  # with --average: step and cost of the weights without it
    average: bool = False  # the last evaluation preferred the average: it is the weights of checkpoints
    stopped: str = ""  # why a callback stopped the run
    limits: list[int | None] = field(default_factory=list)  # its steps and patience then; others continue it
    log: Annotated[LogRecord, BeforeValidator(_as_record)] = field(default_factory=LogRecord)

    @classmethod
    def read(cls, host: Mapping[str, Any]) -> ProgressState:
        """The progress in the host record of a checkpoint. Raises ``CheckpointError`` for other records."""
        return load_strict(cls, host, "progress in a checkpoint")

    def add(self, losses: np.ndarray, counts: np.ndarray, seconds: float) -> None:
        """Add the losses [K] of some steps, with the number of targets of each."""
        for loss, count in zip(losses.tolist(), counts.tolist()):
            self.loss_sum += loss * count
            self.loss_count += count
        self.seconds += seconds

    def evaluated(self, step: int, cost: float) -> None:
        """Note an evaluation: a new best, or one more without an improvement."""
        if self.best is None or cost < self.best:
            self.best, self.best_step, self.bad_evals = cost, step, 0
        else:
            self.bad_evals += 1


#: Factor on the weight of earlier calls, for each later one.
DECAY = 0.8


class Throughput:
    """Units per second, a mean over calls in which the latest count most.

    Calls during which something was compiled are left out: a step is compiled for every shape of batches, and the host
    compiles while the device computes the call before.
    """

    def __init__(self) -> None:
        self._shapes: set[Any] = set()
        self._compiled = False
        self._units = self._seconds = self._total = 0.0

    def dispatched(self, batches: Any) -> None:
        """A call on ``batches`` was dispatched."""
        shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(batches))
        self._compiled |= shapes not in self._shapes
        self._shapes.add(shapes)

    def completed(self, units: float, seconds: float) -> None:
        """The results of a call on ``units`` arrived, ``seconds`` after those of the call before."""
        if not self._compiled:
            self._units = DECAY * self._units + units
            self._seconds = DECAY * self._seconds + seconds
            self._total += seconds
        self._compiled = False

    @property
    def measured(self) -> float | None:
        """Units per second; None until calls that compiled nothing took ``MIN_SECONDS``."""
        return self._units / self._seconds if self._total >= MIN_SECONDS else None


#: The largest number of rollbacks in one run, and the factor on the learning rate for each of them.
MAX_ROLLBACKS, ROLLBACK_SCALE = 5, 0.5


def nonfinite_leaf(state: Any) -> str | None:
    """The path of the first floating-point leaf of ``state`` that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) and not np.isfinite(leaf).all():
            return jax.tree_util.keystr(path).lstrip(".")
    return None


def nan_recovery(
    store: CheckpointStore, schedule: EvalSchedule, progress: ProgressState, state: Any, warn: Callable[[str], None]
) -> tuple[int | None, Any, ProgressState]:
    """Read the last good checkpoint that an uninterrupted run has too: one of an evaluation or a sample.

    Args:
        store: the checkpoints of the run.
        schedule: the steps at which an uninterrupted run saves.
        progress: the present one; its number of rollbacks is kept, so that a killed run repeats none.
        state: the present one, for its shapes and types.
        warn: called with a sentence for each damaged checkpoint.

    Returns:
        Its step, its state and its progress with one more rollback. If no checkpoint is good, None instead of a step.
    """
    steps = store.steps()
    for step in reversed([step for step in steps if schedule.is_boundary(step)] or steps):
        try:
            restored, host = store.restore(step, state)
        except DamagedCheckpointError as damage:
            warn(f"WARNING: {damage}")
            continue
        return step, restored, replace(ProgressState.read(host), rollbacks=progress.rollbacks + 1)
    return None, state, progress
