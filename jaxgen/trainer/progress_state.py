"""What the host of a run remembers, and how a run says that it was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxgen.errors import CheckpointError


@dataclass
class ProgressState:
    """What the host remembers between evaluations; saved with every checkpoint, exactly."""

    loss_sum: float = 0.0  # summed nats since the last row of metrics
    loss_count: float = 0.0
    best: float | None = None  # what an evaluation cost at the best step (``Metric.cost``)
    best_step: int = 0
    bad_evals: int = 0
    seconds: float = 0.0  # spent training, all starts together
    rollbacks: int = 0  # how often training went back; the learning rate follows from it

    @classmethod
    def read(cls, host: Mapping[str, Any], run: object) -> ProgressState:
        """What a checkpoint of ``run`` remembers; ``CheckpointError`` unless it is just that."""
        usual = asdict(cls())
        if host.keys() - usual.keys() or any(
            isinstance(value, bool)
            or not isinstance(value, (int, float) if isinstance(usual[name], (float, type(None))) else int)
            for name, value in host.items()
            if not (name == "best" and value is None)
        ):
            raise CheckpointError(f"A checkpoint of the run {run} was not saved by this jaxgen. Copy the run again.")
        return cls(**host)


class Interrupted(Exception):
    """A signal asked to stop; everything is saved. ``exit_code`` is 128 + the signal's number.

    ``run`` is the one to continue, if there is one.
    """

    def __init__(self, signal_number: int, where: str, run: str | None = None) -> None:
        command = "" if run is None else f" Continue with: python train.py --run {shlex.quote(run)} --resume auto"
        super().__init__(f"Stopped {where}.{command}")
        self.exit_code = 128 + signal_number
