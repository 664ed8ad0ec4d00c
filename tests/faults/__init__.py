"""Faults that jaxgen must survive, each really made: ``python -m tests.faults`` writes what happened.

A further fault is a ``Fault`` in one of the modules here; a further module is one line in ``FAULTS``.
"""

from __future__ import annotations

from . import diverging, kills
from .fault import Fault

FAULTS: tuple[Fault, ...] = (*diverging.FAULTS, *kills.FAULTS)
