"""Learning-rate range test: a short training in which the rate rises (Smith 2017, arXiv:1506.01186)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxgen.errors import DataError, counted
from jaxgen.plots import Picture, draw_rates
from jaxgen.runs.config import TrainConfig
from jaxgen.trainer.callbacks import Emit
from jaxgen.trainer.run import trial

#: Steps of a test, and the rates of its first and last step; the rates between are spaced evenly in their logarithm.
STEPS, LOWEST, HIGHEST = 150, 1e-5, 1.0
#: The loss of a rate is the mean over so many neighbours on each side.
NEIGHBOURS = 4
#: The test ends when the loss exceeds that of the first step by this factor: higher rates are worse still.
DIVERGED = 1.5


class RateTest(NamedTuple):
    """The losses of a training in which the learning rate rose, and the rate that they suggest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # smoothed
    suggestion: float

    def plot(self) -> Picture:
        """The losses over the rates."""
        return Picture.drawn(lambda file: draw_rates(self.rates, self.losses, self.suggestion, file))

    def __repr__(self) -> str:
        return f"<jaxgen.RateTest: suggestion {self.suggestion:.2g}, {counted(len(self.rates), 'rate')}>"


def find_lr(
    config: TrainConfig, emit: Emit | None = None, watch: Callable[[int, float, float], None] | None = None
) -> RateTest:
    """Try learning rates from ``LOWEST`` to ``HIGHEST`` in one short training, which leaves nothing behind.

    Args:
        config: The settings; ``lr``, ``schedule`` and the number of steps do not matter.
        emit: Receives the events of reading the data.
        watch: Called with step, rate and loss after every step.

    Raises:
        UsageError, DataError, CheckpointError: As ``jaxgen.start``.

    Example:
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, batch_size=4, seq_len=8)
        >>> found = jaxgen.find_lr(config)
        >>> 1e-5 < found.suggestion < 1
        True
        >>> found.plot()
        <jaxgen.Picture: 1000 x 600 pixels>
    """
    trainer = trial(config, emit)
    rates, losses = np.geomspace(LOWEST, HIGHEST, STEPS), list[float]()
    for step, rate in enumerate(rates):
        loss = trainer.try_step(step, rate)
        if not loss < DIVERGED * (losses[0] if losses else math.inf):  # also if it is not a number
            break
        losses.append(loss)
        if watch is not None:
            watch(step, rate, loss)
    if len(losses) < 2 * NEIGHBOURS + 1:
        raise DataError(f"The loss is {loss:.4g} at the lowest learning rate, {LOWEST:g}: check the data.")
    smooth = smoothed(np.asarray(losses))
    return RateTest(tuple(rates[: len(smooth)].tolist()), tuple(smooth.tolist()), suggest(rates[: len(smooth)], smooth))


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Each loss as the mean over itself and its neighbours, so that falls and rises stay where they are."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    first = np.maximum(np.arange(len(losses)) - NEIGHBOURS, 0)
    after = np.minimum(np.arange(len(losses)) + NEIGHBOURS + 1, len(losses))
    return (sums[after] - sums[first]) / (after - first)


def suggest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the loss falls steepest, before it is lowest."""
    lowest = max(int(np.argmin(losses)), 1)
    falls = np.diff(losses[: lowest + 1])
    return float(rates[int(np.argmin(falls)) + 1])
