"""Signals that stop a run (Ctrl-C, SIGTERM, a closed terminal): the first lets it save, the second ends it at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from jaxgen.errors import flags_are_shown

#: Seconds after which a signal that came at a bad moment is sent again.
RETRY_SECONDS = 0.02


def importing(frame: FrameType | None) -> bool:
    """Whether the signal interrupted the import of a module. NumPy turns an exception raised then into another."""
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def resend(number: int) -> None:
    """Send a signal to this process again, a little later."""
    timer = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextmanager
def resend_lost() -> Iterator[None]:
    """Send a signal again if its exception was lost.

    Python drops exceptions raised in a callback of the garbage collector, such as JAX's, and in finalizers.
    """
    former = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            resend(getattr(unraisable.exc_value, "number", signal.SIGINT))
        else:
            former(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = former


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C reliable: it ends the process while modules load, and else raises ``KeyboardInterrupt``.

    Does nothing where Ctrl-C already has another handler.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        with resend_lost():
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if importing(frame):
        os._exit(128 + number)
    raise KeyboardInterrupt


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a run. SIGHUP comes when its terminal closes, unless it is ignored (``nohup``)."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


class StopSignals:
    """While entered, keeps the first of ``stop_signals`` in ``received``; a second one acts as usual.

    In the child of a launcher (``watch``), later signals do nothing: a signal to a whole process group reaches both,
    and the launcher forwards its own.
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
            self._former = {number: signal.signal(number, self._receive) for number in stop_signals()}
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


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; everything is saved. As Python's Ctrl-C, it is not an ``Exception``.

    ``exit_code`` is 128 + the signal's ``number``. ``run`` is the path of the run to continue, if there is one, and
    ``flags`` are further flags of that command.
    """

    def __init__(self, number: int, where: str, run: str | None = None, flags: str = "") -> None:
        how = f"jaxgen.train(run={run!r}, resume=True)"
        if flags_are_shown():
            how = f"python train.py --run {shlex.quote(run or '')} --resume auto{flags}"
        super().__init__(f"Stopped {where}.{'' if run is None else f' Continue with: {how}'}")
        self.number, self.exit_code = number, 128 + number


class _RaiseOnSignal(StopSignals):
    def __init__(self, where: str, run: str | None, flags: str) -> None:
        super().__init__()
        self._stopped = where, run, flags

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if importing(frame):
            resend(number)
        else:
            raise Interrupted(number, *self._stopped)


@contextmanager
def raise_on_signal(where: str, run: str | None = None, flags: str = "") -> Iterator[None]:
    """A context that a signal ends at once with ``Interrupted``; the arguments are those of it."""
    with resend_lost(), _RaiseOnSignal(where, run, flags):
        yield
