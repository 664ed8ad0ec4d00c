"""Faults that jaxgen must survive, each really made: ``python -m tests.faults`` writes what happened.

A further fault is a ``Fault`` in one of the modules here; a further module is one line in ``FAULTS``.
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
