"""The n-gram task: loss and decoding of its model, with the interface of the recurrent task."""

from __future__ import annotations

import inspect
from functools import partial

import jax
import numpy as np
import pytest

from jaxgen.baselines.ngram import fit
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.registry import BASELINES, objective
from jaxgen.types import Batch

B, T, V, EOS = 3, 5, 6, 2
RNG = np.random.default_rng(0)
TASK, PARAMS = fit(RNG.integers(3, V, 60), V, 3, EOS)
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
    primed, logits = jax.jit(TASK.prefill)(PARAMS, carry, given, TOKENS, valid)
    for b, count in enumerate([T, 2]):
        state, found = walk(before, TOKENS[b, :count])
        np.testing.assert_array_equal(primed[b], state[0])
        np.testing.assert_array_equal(logits[b], found[-1])
    np.testing.assert_array_equal(primed[2], before[0])
    np.testing.assert_array_equal(logits[2], given[2])


@pytest.mark.parametrize("top", [pytest.param(0, marks=pytest.mark.runs), 4])
def test_scores_are_those_of_the_steps_with_resets_steps_that_are_not_valid_and_the_likeliest(top):
    reset, valid = RNG.random((B, T)) < 0.4, RNG.random((B, T)) < 0.7
    initial, before = (walk(TASK.initial_carry(1), [token])[0] for token in (5, 4))
    assert np.any(initial)
    starts = np.repeat(initial, B, axis=0)
    score = jax.jit(partial(TASK.score, top=top))
    carry, found = score(PARAMS, np.repeat(before, B, axis=0), TOKENS, TARGETS, reset, valid, starts)
    for b in range(B):
        state = before
        for t in range(T):
            state = initial if reset[b, t] else state
            if not valid[b, t]:
                assert found.logp[b, t] == 0
                continue
            state, (logp,) = walk(state, TOKENS[b, t : t + 1])
            np.testing.assert_allclose(found.logp[b, t], logp[TARGETS[b, t]], rtol=1e-5)
            likeliest = np.argsort(-logp, kind="stable")[:top]
            np.testing.assert_array_equal(found.top[b, t], likeliest)
            np.testing.assert_allclose(found.top_logp[b, t], logp[likeliest], rtol=1e-5)
        np.testing.assert_array_equal(carry[b], state[0])


#: What is called of a model that knows labels or features, or of one that has hidden outputs, alone.
RECURRENT_ONLY = {"initial_states", "outputs"}
PUBLIC = [
    name
    for name in vars(LanguageTask)
    if not name.startswith("_") and name not in RECURRENT_ONLY and callable(getattr(LanguageTask, name))
]


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("kind", [objective("language", name) for name in BASELINES["language"]])
def test_a_baseline_is_called_as_the_recurrent_task_is(kind, name):
    mine, others = (
        [(each.kind, each.default) for each in inspect.signature(getattr(task, name)).parameters.values()]
        for task in (kind, LanguageTask)
    )
    if name == "build":  # of options by name, which are the model's own
        named = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        assert {how for how, _ in mine + others} <= named
    else:
        assert mine == others


def test_a_baseline_says_whether_training_is_random():
    assert [objective("language", name).is_random for name in BASELINES["language"]] == [False]
