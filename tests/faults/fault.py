"""What a fault is: one thing that goes wrong, put into a real folder or done to a real process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Unavailable(Exception):
    """The fault cannot be made here (no root, no such system call); the text says what is missing."""


@dataclass(frozen=True)
class Fault:
    """``inject(folder, draw)`` makes the fault once, in an empty folder, with what is random taken from ``draw``.

    It returns in a few words what happened, the same words for the same outcome, and raises ``AssertionError`` where
    something was lost, silently wrong or told by a traceback, and ``Unavailable`` where it cannot be made. The default
    suite tries it once unless it is ``slow``; the slow one and ``python -m tests.faults`` as often as ``times`` says.
    """

    name: str
    required: str
    inject: Callable[[Path, np.random.Generator], str]
    times: int = 10
    slow: bool = False
