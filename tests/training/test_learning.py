"""Every cell memorizes a short text."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from jaxgen.cells import CELLS
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.step import create_state, train_steps
from jaxgen.types import Batch

B, T, STEPS = 4, 8, 60
#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}


def alphabet_batches():
    """ "abcabc…" in B lanes that each go on from window to window, as token ids 0, 1, 2."""
    begins = (STEPS * T + 1) * np.arange(B)[None, :, None] + T * np.arange(STEPS)[:, None, None]
    ids = ((begins + np.arange(T + 1)[None, None, :]) % 3).astype(np.int32)
    return Batch(ids[..., :-1], ids[..., 1:], np.zeros((STEPS, B, T), bool), np.ones((STEPS, B, T), bool))


SLOW = {"elman", "elman-relu", "gru"}  # the same code but for the cell, which keeps the contract


@pytest.mark.runs
@pytest.mark.parametrize("cell", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CELLS])
def test_a_cell_learns_a_text_of_three_letters_in_60_steps(cell):
    task = LanguageTask.build(vocab_size=3, cell=cell, cell_options={}, hidden=8, layers=1)
    optimizer = make_optimizer("adamw", optax.constant_schedule(0.03))
    key = jax.random.key(0)

    def train(batches):
        return train_steps(task, optimizer, key, create_state(task, optimizer, key, B), batches, STEPS)

    _, log = jax.jit(train, compiler_options=FAST)(alphabet_batches())
    assert log.loss[0] > 0.9
    assert log.loss[-1] < 0.3
