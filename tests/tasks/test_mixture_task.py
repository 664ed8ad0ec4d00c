"""The mixture task: its probabilities are the weighted sums of its members', in every function."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from jaxgen.baselines.ngram import fit
from jaxgen.tasks.language.mixture import MixtureTask
from jaxgen.tasks.language.objective import LanguageTask

B, T, V, EOS = 2, 4, 6, 2
RNG = np.random.default_rng(0)
COUNTED, COUNTS = fit(RNG.integers(3, V, 60), V, 3, EOS)
NETWORK = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=4, layers=1)
MEMBERS = COUNTED, NETWORK
TOKENS, TARGETS = RNG.integers(3, V, (2, B, T)).astype(np.int32)
MIXED = {
    "fixed": (MixtureTask(MEMBERS), np.log([0.3, 0.7]), np.zeros(2)),
    "gated": (MixtureTask(MEMBERS, gated=True), np.array([0.4, -0.2]), np.array([1.5, 0.7])),
}


@cache
def own_params():
    """The parameters of each member."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0))
    return COUNTS, jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(1).normal(size=a.shape), a.dtype), shapes)


@pytest.fixture(scope="module", params=["fixed", pytest.param("gated", marks=pytest.mark.runs)])
def mixed(request):
    """The task, its weights for decoding, and the scores of its members given their confidences [M]."""
    task, bias, slope = MIXED[request.param]
    params = {"members": own_params(), "bias": np.float32(bias), "slope": np.float32(slope)}
    return task, jax.jit(task.prepare)(params), lambda confidence: bias + slope * confidence


@cache
def read_alone():
    """``(tokens) -> (log-probabilities [M, V] of the token after them)``, by the members alone."""
    weights = [jax.jit(member.prepare)(own) for member, own in zip(MEMBERS, own_params())]
    steps = [jax.jit(member.step) for member in MEMBERS]

    @cache
    def read(tokens):
        carries = [member.initial_carry(1) for member in MEMBERS]
        for token in tokens:
            one = np.array([token], np.int32)
            carries, logits = zip(*(step(own, carry, one) for step, own, carry in zip(steps, weights, carries)))
        return np.stack([log_softmax(np.float64(each[0])) for each in logits])

    return read


def expected(scores, tokens):
    """The mixture after ``tokens``, by brute force in float64, [V]."""
    logp = read_alone()(tuple(tokens.tolist()))
    weights = np.exp(log_softmax(scores(logp.max(axis=1))))
    return np.log(weights @ np.exp(logp))


def test_a_step_gives_the_weighted_sum_of_the_probabilities(mixed):
    task, weights, scores = mixed
    carry = task.initial_carry(B)
    step = jax.jit(task.step)
    for t in range(T):
        carry, logp = step(weights, carry, TOKENS[:, t])
        for b in range(B):
            np.testing.assert_allclose(logp[b], expected(scores, TOKENS[b, : t + 1]), atol=1e-5)
    np.testing.assert_allclose(logsumexp(np.float64(logp), axis=1), 0, atol=1e-6)


def test_a_prompt_is_read_as_by_steps_and_rows_without_tokens_stay(mixed):
    task, weights, scores = mixed
    valid = np.arange(T)[None] < np.array([3, 0])[:, None]
    given = RNG.normal(size=(B, V)).astype(np.float32)
    carry, logits = jax.jit(task.prefill)(weights, task.initial_carry(B), given, TOKENS, valid)
    np.testing.assert_allclose(logits[0], expected(scores, TOKENS[0, :3]), atol=1e-5)
    np.testing.assert_array_equal(logits[1], given[1])
    for now, before in zip(jax.tree.leaves(carry), jax.tree.leaves(task.initial_carry(B))):
        np.testing.assert_array_equal(now[1], before[1])


@pytest.mark.parametrize("top", [pytest.param(0, marks=pytest.mark.runs), 2])
def test_scores_are_those_of_the_steps_with_resets_and_a_mask(mixed, top):
    task, weights, scores = mixed
    reset, valid = np.array([[0, 0, 1, 0], [0] * 4], bool), np.array([[1] * 4, [1, 1, 0, 0]], bool)
    initial = task.initial_carry(B)
    _, scored = jax.jit(task.score, static_argnames="top")(
        weights, initial, TOKENS, TARGETS, reset, valid, initial, top=top
    )
    for b, t in np.argwhere(valid):
        logp = expected(scores, TOKENS[b, 2 if reset[b, 2] and t >= 2 else 0 : t + 1])
        np.testing.assert_allclose(scored.logp[b, t], logp[TARGETS[b, t]], atol=1e-5)
        np.testing.assert_allclose(scored.top_logp[b, t], np.sort(logp)[::-1][:top], atol=1e-5)
        assert scored.top.shape == (B, T, top)
    assert not np.asarray(scored.logp)[~valid].any()
