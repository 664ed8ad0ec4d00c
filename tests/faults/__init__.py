"""Faults that jaxgen must survive. ``python -m tests.faults`` injects them and writes a table of the results.

To add a fault, add a ``Fault`` to one of the modules here, or a module and a line in ``FAULTS``.
"""

from __future__ import annotations

from . import (
    damage,
    disk,
    diverging,
    environment,
    full_runs,
    hostile,
    interrupts,
    kills,
    refusals,
    several,
    terminal,
    texts,
)
from .fault import Fault

FAULTS: tuple[Fault, ...] = (
    *kills.FAULTS,
    *interrupts.FAULTS,
    *several.FAULTS,
    *disk.FAULTS,
    *full_runs.FAULTS,
    *damage.FAULTS,
    *diverging.FAULTS,
    *refusals.FAULTS,
    *hostile.FAULTS,
    *terminal.FAULTS,
    *environment.FAULTS,
    *texts.FAULTS,
)
