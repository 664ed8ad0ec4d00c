"""Numbers that are none: never saved, and with ``--on-nan rollback`` gone back behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxgen.errors import DivergedError
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.trainer.events import Note
from jaxgen.trainer.progress_state import ProgressState

if TYPE_CHECKING:
    from jaxgen.trainer.trainer import Trainer

#: How often ``--on-nan rollback`` goes back in one run, and what it multiplies the learning rate by each time.
MAX_ROLLBACKS, ROLLBACK_SCALE = 5, 0.5


def check_finite(state: Any, diverged: Callable[[str], DivergedError]) -> None:
    """Raise what ``diverged`` makes of a name unless all that a checkpoint would hold is finite: it is never saved."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) and not np.isfinite(leaf).all():
            raise diverged(f"{jax.tree_util.keystr(path).lstrip('.')} is no longer finite")


def nan_recovery(trainer: Trainer, error: DivergedError) -> int:
    """Go back to the last good checkpoint with half the learning rate; raises ``error`` where that must not be.

    Only to one of an evaluation or a sample, which a run that was never stopped has too. Logs and patience go back
    with it; how often it was done does not, so that a run that is killed in between comes to the same.
    """
    if trainer.config.on_nan != "rollback" or trainer.done.rollbacks >= MAX_ROLLBACKS:
        trainer.team.ends_together = True
        raise error
    state, found = _last_good(trainer)
    if found is None:
        trainer.team.ends_together = True
        raise error
    rollbacks, step = trainer.done.rollbacks + 1, found["step"]
    trainer.recall(replace(ProgressState(**found["done"]), rollbacks=rollbacks)).go_on(state)
    with trainer.team.together():
        trainer.forget_beyond(step)
    rate = f"{ROLLBACK_SCALE**rollbacks:g} of what it would be"
    what = str(error).split(". ")[0]
    trainer.emit(
        Note(
            f"WARNING: {what}. Going back to step {step:,} with a learning rate of {rate} "
            f"(rollback {rollbacks} of {MAX_ROLLBACKS} at most)."
        )
    )
    return step


def _last_good(trainer: Trainer) -> tuple[Any, dict[str, Any] | None]:
    """The state of the last good checkpoint of a boundary, its step and what the host remembered, if there is one.

    Of several processes the leader reads it for all.
    """
    state = trainer.whole()
    found = None
    if trainer.team.leads:
        state, found = _read(trainer, jax.eval_shape(lambda state: state, state)) or (state, None)
    found = trainer.team.told(found)
    return (state if found is None else trainer.team.shared(state)), found


def _read(trainer: Trainer, like: Any) -> tuple[Any, dict[str, Any]] | None:
    steps = trainer.store.steps()
    for step in reversed([step for step in steps if trainer.rhythm.is_boundary(step)] or steps):
        try:
            state, host = trainer.store.restore(step, like)
        except DamagedCheckpointError as damage:
            trainer.emit(Note(f"WARNING: {damage}"))
            continue
        return state, {"step": step, "done": asdict(ProgressState.read(host, trainer.run.path))}
    return None
