"""Signals that stop a run (Ctrl-C, SIGTERM, a closed terminal): the first lets it save, the second ends it at once."""

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

#: Seconds after which a signal that came at a bad moment is sent again.
RETRY_SECONDS = 0.02


def importing(frame: FrameType | None) -> bool:
    """Whether the signal interrupted the import of a module. NumPy turns an exception raised then into another."""
    return any("importlib._bootstrap" in each.f_code.co_filename for each in _stack(frame))


def collecting(frame: FrameType | None) -> bool:
    """Whether the signal interrupted a callback of the garbage collector, such as JAX's. Exceptions raised in one are
    printed and dropped."""
    callbacks = {getattr(each, "__code__", None) for each in gc.callbacks}
    return any(each.f_code in callbacks for each in _stack(frame))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def resend(number: int) -> None:
    """Send a signal to this process again, a little later."""
    timer = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C reliable: it ends the process while modules load, and else raises ``KeyboardInterrupt``, again if the
    first one is lost. Does nothing where Ctrl-C already has another handler."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = sys.unraisablehook
    sys.unraisablehook = _ResendLost(former)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(sys.unraisablehook, _ResendLost):
            sys.unraisablehook = former


def _interrupt(number: int, frame: FrameType | None) -> None:
    if importing(frame):
        os._exit(128 + number)
    raise KeyboardInterrupt


@dataclass(frozen=True)
class _ResendLost:
    """An unraisable hook that sends a lost interrupt again."""

    former: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            resend(getattr(unraisable.exc_value, "number", signal.SIGINT))
        else:
            self.former(unraisable)


#: The signals that stop a run. SIGHUP comes when its terminal closes; not all systems have it.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignals:
    """While entered, keeps the first of ``STOP_SIGNALS`` in ``received``; a second one acts as usual.

    An ignored SIGHUP (``nohup``) stays ignored. In the child of a launcher (``watch``), later signals do nothing: a
    signal to a whole process group reaches both, and the launcher forwards its own.
    """

    _watched: ClassVar[StopSignals | None] = None

    def __init__(self) -> None:
        self.received: int | None = None if self._watched is None else self._watched.received
        self._former: dict[int, Any] = {}

    @classmethod
    def watch(cls) -> None:
        """A launcher watches this process from now on. A signal is kept for the next ``StopSignals``.

        Otherwise it would end this process alone, while the other processes wait for it.
        """
        cls._watched = cls().__enter__()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in STOP_SIGNALS:
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
    """A signal came within ``RaiseOnSignal``; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class RaiseOnSignal(StopSignals):
    """While entered, each of ``STOP_SIGNALS`` raises ``Stopped`` at once, or as soon as the exception is not lost."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if importing(frame) or collecting(frame):
            resend(number)
            return
        self.received = self.received or number
        raise Stopped(number)
