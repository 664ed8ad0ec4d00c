"""At which steps a run stops to look at itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import optax

from jaxgen.jitted import KEPT
from jaxgen.runs.config import TrainConfig
from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule


@dataclass(frozen=True)
class EvalSchedule:
    """Steps between evaluations and between samples (0: none before the end), and the last step."""

    evaluation: int
    sample: int
    last: int

    @classmethod
    def of(cls, config: TrainConfig, horizon: int, last: int) -> EvalSchedule:
        """What the settings say; by default ten evaluations, each with a sample."""
        evaluation = max(1, horizon // 10) if config.eval_every is None else config.eval_every
        return cls(evaluation, evaluation if config.sample_every is None else config.sample_every, last)

    def following(self, step: int) -> int:
        """The next boundary behind ``step``."""
        return min([self.last, *((step // n + 1) * n for n in (self.evaluation, self.sample) if n)])

    def evaluates(self, step: int) -> bool:
        return _due(step, self.evaluation)

    def samples(self, step: int) -> bool:
        return _due(step, self.sample)

    def is_boundary(self, step: int) -> bool:
        """Whether a run that is never stopped saves there."""
        return step == 0 or self.evaluates(step) or self.samples(step)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


#: Share of the peak learning rate that is left at the last step, unless ``--final-lr`` says otherwise.
FINAL_LR = 0.02


def build_optimizer(
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
