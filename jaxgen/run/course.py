"""The course of a run: its optimiser and the schedule of its learning rate, from the settings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import optax

from jaxgen.run.compiled import KEPT
from jaxgen.store.config import TrainConfig
from jaxgen.training import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule

#: Share of the peak learning rate that is left at the last step, unless ``--final-lr`` says otherwise.
FINAL_LR = 0.02


def plan_optimizer(
    config: TrainConfig, horizon: int, scale: float = 1.0
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule with its horizon frozen, and the optimiser that follows it. Raises ``UsageError``.

    ``scale`` multiplies the learning rate, of which the compiled step makes constants: another one is another step.
    """
    final = FINAL_LR if config.final_lr is None else config.final_lr
    warmup = min(config.warmup, horizon // 10)  # a short run must not be all warm-up
    options = dict(config.optimizer_options)
    if config.optimizer == "adamw":
        options["weight_decay"] = config.weight_decay
    # The entries themselves, beside their names: who registers another under a known name gets the other.
    entries = (OPTIMIZERS.get(config.optimizer), SCHEDULES.get(config.schedule))
    chosen = (config.optimizer, tuple(sorted(options.items())), config.clip)
    return _optimizer(entries, *chosen, config.schedule, config.lr * scale, warmup, horizon, final)


@lru_cache(maxsize=KEPT)
def _optimizer(
    entries: tuple[Any, ...],
    name: str,
    options: tuple[Any, ...],
    clip: float,
    course: str,
    lr: float,
    warmup: int,
    horizon: int,
    final: float,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The same objects for the same settings, so that what is compiled with them is shared."""
    del entries
    schedule = make_schedule(course, lr=lr, warmup=warmup, horizon=horizon, final=final)
    return schedule, make_optimizer(name, schedule, clip=clip, options=dict(options))
