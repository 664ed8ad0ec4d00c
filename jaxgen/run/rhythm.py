"""At which steps a run stops to look at itself."""

from __future__ import annotations

from dataclasses import dataclass

from jaxgen.store.config import TrainConfig


@dataclass(frozen=True)
class Rhythm:
    """Steps between evaluations and between samples (0: none before the end), and the last step."""

    evaluation: int
    sample: int
    last: int

    @classmethod
    def of(cls, config: TrainConfig, horizon: int, last: int) -> Rhythm:
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
