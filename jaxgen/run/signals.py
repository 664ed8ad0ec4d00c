"""Ctrl-C, SIGTERM, a closed terminal: the first asks the loop to stop behind the current call, the second ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar

from jaxgen.interrupts import again, collecting, importing

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


class AtOnce(StopSignals):
    """While entered, each of ``STOPPING`` raises ``Stopped`` where the program is, or as soon as it can be heard."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if importing(frame) or collecting(frame):
            again(number)
            return
        self.received = self.received or number
        raise Stopped(number)
