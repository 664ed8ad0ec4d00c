"""What every model of ``LanguageTask`` must do (``LanguageModelProtocol``): all functions of the task agree on it.

``check_loss_score_prefill_and_step_agree`` raises ``AssertionError`` for a model that is trained as one thing and
sampled as another. ``test_language_models.py`` runs it and shows that it can fail.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.types import Batch

B, T, PROMPT = 3, 8, 4
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def random_params(task, *, scale=0.6):
    """Random weights, large enough that everything matters."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    normal = np.random.default_rng(0).normal
    return jax.tree.map(lambda a: normal(0, scale, a.shape).astype(a.dtype), shapes)


def check_loss_score_prefill_and_step_agree(task, params) -> None:
    """The log-likelihood of a text is the same in training, in evaluation, in scoring, and token by token."""
    ids = np.random.default_rng(1).integers(0, task.model.vocab_size, (B, T + 1)).astype(np.int32)
    tokens, targets = ids[:, :-1], ids[:, 1:]
    nothing, all_ = np.zeros((B, T), bool), np.ones((B, T), bool)
    start, batch = task.initial_carry(B), Batch(tokens, targets, nothing, all_)

    carry, totals = jax.jit(task.loss)(params, start, batch)
    close(jax.jit(task.evaluate)(params, start, batch)[1].nll, totals.nll)

    weights = jax.jit(task.prepare)(params)
    scored_carry, scored = jax.jit(task.score)(weights, start, tokens, targets, nothing, all_, start)
    close(-scored.logp.sum(), totals.nll)
    jax.tree.map(close, scored_carry, carry)

    logits = jnp.zeros((B, task.model.vocab_size))
    state = jax.jit(task.prefill)(weights, start, logits, tokens[:, :PROMPT], all_[:, :PROMPT])
    step = jax.jit(task.step)
    for t in range(PROMPT, T + 1):
        logp = jax.nn.log_softmax(state[1], axis=-1)
        close(logp[np.arange(B), targets[:, t - 1]], scored.logp[:, t - 1])
        if t < T:
            state = step(weights, state[0], tokens[:, t])
    jax.tree.map(close, state[0], carry)
