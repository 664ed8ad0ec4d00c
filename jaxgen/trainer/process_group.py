"""The interface between the processes that train one run, and its implementation for a single process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from jaxgen.trainer.signals import StopSignals
from jaxgen.training.step import StepMetrics, TrainState

T = TypeVar("T")


class StopFlag:
    """Whether a signal asked the run to stop. With several processes, all of them see it after the same step."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def inputs(self) -> tuple[Any, ...]:
        """Further arguments of the compiled training steps, which carry the flag to the other processes."""
        return ()

    def read(self, log: Any) -> StepMetrics:
        """The metrics in the output of the compiled training steps; records the flag that came with them."""
        metrics: StepMetrics = log
        return metrics

    @property
    def is_set(self) -> bool:
        """Whether the training loop must stop."""
        return self.signals.received is not None

    def agree(self) -> int | None:
        """The signal that any process received. All processes must call this at the same place."""
        return self.signals.received


class ProcessGroup:
    """The processes that train one run; this one is number ``index`` of ``count``.

    Process 0 is the main one: it writes the run directory and reports; the others only compute. All take the same path
    through the program. Everything that could make their paths differ (a signal, a missing file) is agreed on first,
    because an exchange that one process skips blocks the others forever.

    This base class is the group of a single process. ``jaxgen.distributed.processes`` has the group of several.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count
        #: Whether all processes are about to end for the same reason, so that none need wait for the others.
        self.ends_together = False

    @property
    def is_single(self) -> bool:
        return self.count == 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def all_gather(self, value: T) -> list[T]:
        """The JSON ``value`` of each process, in their order."""
        return [value]

    def broadcast_json(self, value: T) -> T:
        """The JSON ``value`` of the main process."""
        return value

    def broadcast_tree(self, tree: T) -> T:
        """The arrays of the main process; the others pass any arrays of the same shapes and types."""
        return tree

    def gather_state(self, state: TrainState, devices: int) -> TrainState:
        """``state`` with all rows of its carry, which is sharded over ``devices`` devices of all processes."""
        return state

    @contextmanager
    def all_or_none(self) -> Iterator[dict[str, str]]:
        """Barrier: an exception on any process is raised on all of them.

        Yields a dictionary for values that must be the same on all processes, by name (``processes.MUST_AGREE``).
        """
        yield {}

    def stop_flag(self, signals: StopSignals, devices: int) -> StopFlag:
        """The flag that stops all processes when one of them receives a signal."""
        return StopFlag(signals)

    def translate_errors(self) -> AbstractContextManager[None]:
        """A context in which a failed exchange raises an error that says what happened."""
        return nullcontext()
