"""The step of dynamic evaluation follows its equation, and segments are read in order."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.dynamic_evaluation import AdaptedState, Rates, adapt_step, dynamic_evaluation

TRAINED = {"w": jnp.array([0.5, -2.0]), "b": jnp.array(0.25)}
XS = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
RATES = Rates(0.05, 0.1)


def read(params, carry, x):
    """A loss with a state: (w x + b + carry)^2; the output is the prediction."""
    found = jnp.sum(params["w"] * x) + params["b"] + carry
    return found**2, (0.5 * found, found)


run = jax.jit(partial(dynamic_evaluation, read))


def start():
    return AdaptedState.start(TRAINED, np.float32(0.0))


def by_hand(rate, decay):
    """The same in float64, with the derivatives written out."""
    w0, b0 = np.array(TRAINED["w"], float), float(TRAINED["b"])
    w, b, carry, outputs = w0, b0, 0.0, []
    mean_w, mean_b = np.zeros(2), 0.0
    for step, x in enumerate(np.float64(XS), start=1):
        found = w @ x + b + carry
        outputs.append(found)
        carry, dw, db = 0.5 * found, 2 * found * x, 2 * found
        mean_w, mean_b = 0.999 * mean_w + 0.001 * dw**2, 0.999 * mean_b + 0.001 * db**2
        scale = 1 - 0.999**step
        w = w - rate * dw / (np.sqrt(mean_w / scale) + 1e-3) + decay * (w0 - w)
        b = b - rate * db / (np.sqrt(mean_b / scale) + 1e-3) + decay * (b0 - b)
    return outputs, w, b


def test_the_outputs_and_the_weights_are_those_of_the_equation():
    outputs, w, b = by_hand(*RATES)
    state, found = run(TRAINED, start(), XS, len(XS), RATES)
    np.testing.assert_allclose(found, outputs, rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], b, rtol=1e-5)
    assert state.step == len(XS)


def test_it_is_a_loop_of_single_steps():
    state, step = start(), jax.jit(partial(adapt_step, read))
    for x in XS:
        state, _ = step(TRAINED, state, x, RATES)
    whole, _ = run(TRAINED, start(), XS, len(XS), RATES)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), state, whole)


@pytest.mark.parametrize("rates", [Rates(0.0, 0.0), None])
def test_without_a_rate_the_weights_do_not_change_by_a_bit(rates):
    state, _ = run(TRAINED, start(), XS, len(XS), rates)
    jax.tree.map(np.testing.assert_array_equal, state.params, TRAINED)


def test_only_count_segments_are_read():
    state, found = run(TRAINED, start(), XS, 2, RATES)
    assert state.step == 2
    assert found[2:].tolist() == [0, 0, 0, 0]
    rest, more = run(TRAINED, state, np.roll(XS, -2, axis=0), 4, RATES)
    whole, wanted = run(TRAINED, start(), XS, 6, RATES)
    np.testing.assert_array_equal([*found[:2], *more[:4]], wanted)
    jax.tree.map(np.testing.assert_array_equal, rest, whole)
