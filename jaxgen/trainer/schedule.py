"""The steps at which a run evaluates, and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import optax

from jaxgen.jitted import CACHE_SIZE
from jaxgen.runs.config import TrainConfig
from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule


@dataclass(frozen=True)
class EvalSchedule:
    """Steps between evaluations and between samples (0: only at the end), and the last step of the run."""

    evaluation: int
    sample: int
    last: int

    @classmethod
    def of(cls, config: TrainConfig, horizon: int, last: int) -> EvalSchedule:
        """The schedule of the settings; by default ten evaluations, each with a sample."""
        evaluation = max(1, horizon // 10) if config.eval_every is None else config.eval_every
        return cls(evaluation, evaluation if config.sample_every is None else config.sample_every, last)

    def following(self, step: int) -> int:
        """The next boundary after ``step``."""
        return min([self.last, *((step // n + 1) * n for n in (self.evaluation, self.sample) if n)])

    def evaluates(self, step: int) -> bool:
        return _due(step, self.evaluation)

    def samples(self, step: int) -> bool:
        return _due(step, self.sample)

    def is_boundary(self, step: int) -> bool:
        """Whether an uninterrupted run saves a checkpoint at ``step``."""
        return step == 0 or self.evaluates(step) or self.samples(step)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


#: Share of the peak learning rate at the last step, unless ``--final-lr`` is given.
FINAL_LR = 0.02


def build_optimizer(
    config: TrainConfig, horizon: int, scale: float = 1.0
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate over ``horizon`` steps, and the optimizer that follows it. Raises ``UsageError``.

    Equal settings give the same objects, so that they share compiled functions. ``scale`` multiplies the learning rate;
    another scale compiles another training step, in which the learning rates are constants.
    """
    options = dict(config.optimizer_options)
    if config.optimizer == "adamw":
        options["weight_decay"] = config.weight_decay
    return _cached_optimizer(
        # The registry entries beside their names: another entry registered under a known name is another optimizer.
        entries=(OPTIMIZERS.get(config.optimizer), SCHEDULES.get(config.schedule)),
        optimizer=config.optimizer,
        options=tuple(sorted(options.items())),
        clip=config.clip,
        schedule=config.schedule,
        lr=config.lr * scale,
        warmup=min(config.warmup, horizon // 10),  # a short run must not be all warm-up
        horizon=horizon,
        final=FINAL_LR if config.final_lr is None else config.final_lr,
    )


@lru_cache(maxsize=CACHE_SIZE)
def _cached_optimizer(
    entries: tuple[Any, ...], optimizer: str, options: tuple[Any, ...], clip: float, schedule: str, **rates: Any
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    learning_rate = make_schedule(schedule, **rates)
    return learning_rate, make_optimizer(optimizer, learning_rate, clip=clip, options=dict(options))
