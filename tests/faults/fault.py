"""A fault: one thing that goes wrong, injected into a real folder or a real process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Unavailable(Exception):
    """The fault cannot be injected here (no root, no such system call); the message says what is missing."""


@dataclass(frozen=True)
class Fault:
    """One fault. ``inject(folder, draw)`` injects it once in an empty folder; ``draw`` is its source of randomness.

    ``inject`` returns the result in a few words. It raises ``AssertionError`` if something was lost, silently wrong or
    ended in a traceback, and ``Unavailable`` if the fault cannot be injected. `pytest -m runs` injects each fault once
    unless it is ``slow``; `pytest -m slow` and ``python -m tests.faults`` inject it ``times`` times.
    """

    name: str
    required: str
    inject: Callable[[Path, np.random.Generator], str]
    times: int = 10
    slow: bool = False
