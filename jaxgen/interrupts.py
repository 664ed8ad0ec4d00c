"""Ctrl-C where an exception would be lost, or turned into another."""

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
from typing import Any

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
