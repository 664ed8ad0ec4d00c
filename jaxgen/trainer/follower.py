"""A process that trains along with others: it computes, and leaves the run's folder and the screen to the first."""

from __future__ import annotations

from typing import Any

from jaxgen.errors import DivergedError
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.tasks.base import Example
from jaxgen.trainer.events import Finished, ignore
from jaxgen.trainer.progress_state import Interrupted
from jaxgen.trainer.trainer import Trainer
from jaxgen.training.step import TrainState


class Follower(Trainer):
    """A ``Trainer`` that takes part in all that is computed together, and keeps no record of it."""

    def __init__(self, config: TrainConfig, data: Any, task: Any, run: RunDirectory, resolved: dict[str, Any]) -> None:
        super().__init__(config.model_copy(update={"tensorboard": False}), data, task, run, resolved, ignore)

    def train(self) -> Finished:
        """As a ``Trainer``, without the lock of the run, which the leader has."""
        return self._train()

    def forget_beyond(self, step: int) -> None:
        """Nothing was kept."""

    def _store(self, step: int, whole: TrainState, metric: float | None) -> None:
        pass

    def _save_between(self, step: int) -> None:
        self._save(step, None)

    def _report(self, params: Any, final: bool) -> dict[str, Any]:
        return self._measured(params, final)

    def _write_row(self, step: int, report: dict[str, Any]) -> None:
        pass

    def _show(self, step: int) -> list[Example]:
        return []

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(f"{what} at step {step:,}: process 0 of the job says more.")

    def _interrupted(self, number: int, where: str) -> Interrupted:
        return Interrupted(number, f"{where} by process 0 of the job")

    def _best(self, step: int) -> tuple[int | None, Any]:
        return None, self._current().params

    def _conclude(self, step: int, best: int | None, params: Any, report: dict[str, Any] | None) -> Finished:
        return Finished("", step, best or step, self._measured(params, final=True) if report is None else report)
