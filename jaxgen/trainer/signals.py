"""Ctrl-C, SIGTERM, a closed terminal: the first asks the loop to stop behind the current call, the second ends."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

#: Seconds after which a signal that came at a bad moment comes once more.
SOON = 0.02


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded where a signal came. NumPy makes another exception of one that comes then."""
    return any("importlib._bootstrap" in each.f_code.co_filename for each in _stack(frame))


def collecting(frame: FrameType | None) -> bool:
    """Whether Python calls something because it collects garbage where a signal came, as JAX has it do: what is raised
    in there is printed and forgotten."""
    called = {getattr(each, "__code__", None) for each in gc.callbacks}
    return any(each.f_code in called for each in _stack(frame))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def again(number: int) -> None:
    """Send this process a signal once more, soon."""
    timer = threading.Timer(SOON, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches the program wherever it is: it ends the process while modules load, and else raises
    ``KeyboardInterrupt`` until that is not lost. Where Ctrl-C means something else already, nothing is changed."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = sys.unraisablehook
    sys.unraisablehook = _Again(former)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(sys.unraisablehook, _Again):
            sys.unraisablehook = former


def _interrupt(number: int, frame: FrameType | None) -> None:
    if importing(frame):
        os._exit(128 + number)
    raise KeyboardInterrupt


@dataclass(frozen=True)
class _Again:
    """An unraisable hook that sends an interrupt which was lost once more."""

    former: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            again(getattr(unraisable.exc_value, "number", signal.SIGINT))
        else:
            self.former(unraisable)


#: What asks a run to stop; SIGHUP comes when its terminal closes, where the system has it.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignals:
    """While entered, remembers the first of ``STOPPING`` in ``received``; a second one acts as usual.

    A SIGHUP that is ignored (``nohup``) stays so. Where another process watches over this one (``watch``), further
    signals do nothing here: who signals a whole group reaches both, and the other passes on what it gets.
    """

    _watched: ClassVar[StopSignals | None] = None

    def __init__(self) -> None:
        self.received: int | None = None if self._watched is None else self._watched.received
        self._former: dict[int, Any] = {}

    @classmethod
    def watch(cls) -> None:
        """From here on another process watches over this one, and a signal waits for the next ``StopSignals``.

        It would end this process alone, while others count on it.
        """
        cls._watched = cls().__enter__()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in STOPPING:
                if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._watched is None:
            self._restore()

    def _restore(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def __exit__(self, *exc: object) -> None:
        self._restore()


class Stopped(KeyboardInterrupt):
    """A signal came while there was nothing to wait for; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class RaiseOnSignal(StopSignals):
    """While entered, each of ``STOPPING`` raises ``Stopped`` where the program is, or as soon as it can be heard."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if importing(frame) or collecting(frame):
            again(number)
            return
        self.received = self.received or number
        raise Stopped(number)
