"""Non-finite values are never checkpointed; with ``--on-nan rollback`` training returns to the last good checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxgen.errors import DivergedError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.trainer.progress_state import ProgressState
from jaxgen.trainer.schedule import EvalSchedule

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
