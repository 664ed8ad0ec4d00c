"""Flax's own cells in our ``unroll``: parameter tree, values and gradients of ``nn.RNN``, and our masks."""

from __future__ import annotations

from functools import cache

import pytest
from flax import linen as nn

from jaxgen.testing.cells import SHARED_CHECKS, Subject
from jaxgen.testing.checking import name_of

FOREIGN = {cell.__name__: cell for cell in (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell)}


@cache
def subject(name: str) -> Subject:
    return Subject(FOREIGN[name])


#: Cells that go through the same code as the others.
SLOW = {"LSTMCell", "MGUCell", "SimpleCell"}


@pytest.mark.parametrize("check", SHARED_CHECKS, ids=name_of)
@pytest.mark.parametrize("name", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in FOREIGN])
def test_a_flax_cell_keeps_the_contract(name, check):
    check(subject(name))
