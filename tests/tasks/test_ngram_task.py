"""The n-gram task: the loss and the decoding functions of its model, with the interface of the recurrent one."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest

from jaxgen.baselines import fit
from jaxgen.tasks import LanguageTask, NGramTask
from jaxgen.types import Batch

B, T, V, EOS = 3, 5, 6, 2
RNG = np.random.default_rng(0)
MODEL, PARAMS = fit(RNG.integers(3, V, 60), V, 3, EOS)
TASK = NGramTask(MODEL)
TOKENS, TARGETS = RNG.integers(3, V, (2, B, T)).astype(np.int32)


def walk(carry, tokens):
    """Log-probabilities [V] after each of ``tokens``, one step at a time."""
    found = []
    for token in tokens:
        carry, logits = STEP(PARAMS, carry, np.array([token], np.int32))
        found.append(np.asarray(logits[0]))
    return carry, found


STEP = jax.jit(TASK.step)


def test_the_loss_is_that_of_the_steps_with_resets_and_a_mask():
    reset, mask = RNG.random((2, B, T)) < 0.4
    carry, totals = jax.jit(TASK.loss)(PARAMS, TASK.initial_carry(B), Batch(TOKENS, TARGETS, reset, mask))
    nll = 0.0
    for b in range(B):
        state = TASK.initial_carry(1)
        for t in range(T):
            state, (logp,) = walk(TASK.initial_carry(1) if reset[b, t] else state, TOKENS[b, t : t + 1])
            nll -= logp[TARGETS[b, t]] * mask[b, t]
        np.testing.assert_array_equal(carry[b], state[0])
    np.testing.assert_allclose(totals.nll, nll, rtol=1e-5)
    assert totals.targets == mask.sum()


def test_priming_reads_what_is_valid_and_leaves_rows_without_it_alone():
    valid = np.arange(T)[None] < np.array([T, 2, 0])[:, None]
    before = walk(TASK.initial_carry(1), [3, 4])[0]
    carry, given = np.repeat(before, B, axis=0), RNG.normal(size=(B, V)).astype(np.float32)
    primed, logits = jax.jit(TASK.prime)(PARAMS, carry, given, TOKENS, valid)
    for b, count in enumerate([T, 2]):
        state, found = walk(before, TOKENS[b, :count])
        np.testing.assert_array_equal(primed[b], state[0])
        np.testing.assert_array_equal(logits[b], found[-1])
    np.testing.assert_array_equal(primed[2], before[0])
    np.testing.assert_array_equal(logits[2], given[2])


@pytest.mark.parametrize("name", ["loss", "prime", "step"])
def test_arguments_come_in_the_order_of_the_recurrent_task(name):
    mine, others = (len(inspect.signature(getattr(kind, name)).parameters) for kind in (NGramTask, LanguageTask))
    assert mine == others
