"""How many steps a run has."""

from __future__ import annotations

import sys
import time
from typing import Any

from jaxgen.errors import UsageError
from jaxgen.run.saved import SavedRun
from jaxgen.run.trainer import Trainer
from jaxgen.store.config import MAX_STEPS, TrainConfig

#: Calls of the compiled step that ``--minutes`` times for every shape of batches, after one that compiles.
MEASURED_CALLS = 3
#: Share of the time of ``--minutes`` kept for evaluations, checkpoints and samples.
OVERHEAD = 0.15


def planned(config: TrainConfig, data: Any) -> int | None:
    """The number of steps that the settings name; ``None`` when it is to be measured.

    Raises ``UsageError`` for epochs of more steps than a run has.
    """
    if config.minutes is not None:
        return None
    if config.epochs is not None:
        steps = max(1, round(config.epochs * data.batches.steps_per_epoch))
        if steps > MAX_STEPS:
            raise UsageError(
                f"--epochs {config.epochs:g} of {data.batches.steps_per_epoch:,} steps are {steps:,} steps, and a run "
                f"has at most {MAX_STEPS:,}: give fewer epochs."
            )
        return steps
    return config.presets[config.preset][1]["steps"] if config.steps is None else config.steps


def prolonged(saved: SavedRun, config: TrainConfig, data: Any) -> int:
    """The number of steps of a resumed run; the horizon of its schedule stays what it was."""
    then, now = ((c.steps, c.epochs, c.minutes) for c in (saved.config, config))
    if now in (then, (None, None, None)):
        return saved.resolved["steps"]
    steps = planned(config, data)
    if steps is None:
        raise UsageError(
            f"--minutes {config.minutes:g} cannot be measured in a run that goes on: name the new length with --steps "
            f"(it is {saved.resolved['steps']} now)."
        )
    return steps


def measured(trial: Trainer, began: float) -> int:
    """How many steps fit into ``--minutes``, by timing a few calls of a trainer that is thrown away.

    A step takes what those of each shape take, as often as an epoch has them. What compiling them took is lost twice:
    the run compiles them again, with a schedule of another horizon.
    """
    seconds, steps, compiling = 0.0, 0, 0.0
    trial.begin()
    for step, often in trial.data.batches.shapes():
        first, together = trial.time_call(step)
        usual = sorted(trial.time_call(step)[0] for _ in range(MEASURED_CALLS))[MEASURED_CALLS // 2]
        compiling += max(0.0, first - usual) * together
        seconds, steps = seconds + often * usual, steps + often
    left = (trial.config.minutes or 0.0) * 60 * (1 - OVERHEAD) - (time.perf_counter() - began) - compiling
    each = max(seconds / steps, sys.float_info.min)  # a coarse clock may see no time pass
    return max(1, int(min(left / each, MAX_STEPS)))
