"""Tiny runs, compiled quickly and once a worker."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick(quick_compiles):
    """What these tests ask does not depend on how well XLA optimises."""
