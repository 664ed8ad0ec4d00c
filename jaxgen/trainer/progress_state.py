"""What the host knows of a run's progress, and how an interrupted run ends."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError, DivergedError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.trainer.evaluate import EvalSchedule


@dataclass
class ProgressState:
    """What the host remembers between evaluations; saved exactly, with every checkpoint."""

    loss_sum: float = 0.0  # nats since the last row of metrics
    loss_count: float = 0.0  # targets since then
    best: float | None = None  # ``Metric.cost`` of the best evaluation
    best_step: int = 0
    bad_evals: int = 0  # since the best one
    seconds: float = 0.0  # of training, over all starts
    rollbacks: int = 0  # the learning rate follows from it

    @classmethod
    def read(cls, host: Mapping[str, Any], run: object) -> ProgressState:
        """The progress in the host record of a checkpoint of ``run``. Raises ``CheckpointError`` for other records."""
        defaults = asdict(cls())
        if host.keys() - defaults.keys() or any(
            isinstance(value, bool)
            or not isinstance(value, (int, float) if isinstance(defaults[name], (float, type(None))) else int)
            for name, value in host.items()
            if not (name == "best" and value is None)
        ):
            raise CheckpointError(f"A checkpoint of the run {run} was not saved by this jaxgen. Copy the run again.")
        return cls(**host)

    def evaluated(self, step: int, cost: float) -> None:
        """Note an evaluation: a new best, or one more without an improvement."""
        if self.best is None or cost < self.best:
            self.best, self.best_step, self.bad_evals = cost, step, 0
        else:
            self.bad_evals += 1


#: Weight of the earlier calls beside the next one.
DECAY = 0.8


class Throughput:
    """Units per second, a mean over calls in which the latest count most.

    Calls during which something was compiled are left out: a step is compiled for every shape of batches, and the host
    compiles while the device computes the call before.
    """

    def __init__(self) -> None:
        self._shapes: set[Any] = set()
        self._compiled = False
        self._units = self._seconds = 0.0
        self._with_compilation = 0.0

    def dispatched(self, batches: Any) -> None:
        """A call on ``batches`` was dispatched."""
        shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(batches))
        self._compiled |= shapes not in self._shapes
        self._shapes.add(shapes)

    def completed(self, units: float, seconds: float) -> None:
        """The results of a call on ``units`` arrived, ``seconds`` after those of the call before."""
        seconds = max(seconds, 1e-9)
        if self._compiled:
            self._with_compilation = units / seconds
        else:
            self._units = DECAY * self._units + units
            self._seconds = DECAY * self._seconds + seconds
        self._compiled = False

    @property
    def measured(self) -> float | None:
        """Units per second; None until a call has compiled nothing."""
        return self._units / self._seconds if self._seconds else None

    @property
    def estimate(self) -> float:
        """``measured``; until that is known, the speed with compilation, which is too low."""
        return self.measured or self._with_compilation


class Interrupted(Exception):
    """A signal stopped the run; everything is saved. ``exit_code`` is 128 + the signal's number.

    ``run`` is the path of the run to continue, if there is one.
    """

    def __init__(self, signal_number: int, where: str, run: str | None = None) -> None:
        command = "" if run is None else f" Continue with: python train.py --run {shlex.quote(run)} --resume auto"
        super().__init__(f"Stopped {where}.{command}")
        self.exit_code = 128 + signal_number


#: The largest number of rollbacks in one run, and the factor on the learning rate for each of them.
MAX_ROLLBACKS, ROLLBACK_SCALE = 5, 0.5


def check_finite(state: Any, diverged: Callable[[str], DivergedError]) -> None:
    """Raise ``diverged(message)`` if any floating-point leaf of ``state`` is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) and not np.isfinite(leaf).all():
            raise diverged(f"{jax.tree_util.keystr(path).lstrip('.')} is no longer finite")


def nan_recovery(
    store: CheckpointStore, schedule: EvalSchedule, progress: ProgressState, like: Any, warn: Callable[[str], None]
) -> tuple[int, Any, ProgressState] | None:
    """Read the last good checkpoint that an uninterrupted run has too: one of an evaluation or a sample.

    Args:
        store: the checkpoints of the run.
        schedule: the steps at which an uninterrupted run saves.
        progress: the present one; its number of rollbacks is kept, so that a killed run repeats none.
        like: the shapes and types of the state.
        warn: called with a sentence for each damaged checkpoint.

    Returns:
        Its step, its state and its progress with one more rollback, or ``None`` if no checkpoint is good.
    """
    steps = store.steps()
    for step in reversed([step for step in steps if schedule.is_boundary(step)] or steps):
        try:
            state, host = store.restore(step, like)
        except DamagedCheckpointError as damage:
            warn(f"WARNING: {damage}")
            continue
        saved = ProgressState.read(host, store.directory.parent)
        return step, state, replace(saved, rollbacks=progress.rollbacks + 1)
    return None
