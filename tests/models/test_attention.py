"""Attention: the papers' equations in NumPy, and padding that has exactly no weight."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import ATTENTIONS
from jaxgen.models.attention import masked_softmax

B, T, S, M, H = 4, 3, 5, 6, 7
COUNTS = np.array([5, 3, 1, 0])
VALID = np.arange(S)[None, :] < COUNTS[:, None]
FAST = {"xla_backend_optimization_level": 0}


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def make(name, dtype=np.float32):
    """An attention and random parameters."""
    attention = ATTENTIONS[name](H, param_dtype=dtype)

    def whole(attention, values, valid, query):
        return attention.attend(attention.weights(), attention.build_memory(values, valid), query)

    shapes = jax.eval_shape(partial(attention.init, method=whole), jax.random.key(0), *data(dtype=dtype))["params"]
    params = jax.tree.map(lambda leaf: normal(3, *leaf.shape, dtype=dtype), shapes)
    return partial(attention.apply, method=whole), params


def data(values=None, valid=VALID, dtype=np.float32):
    return normal(1, B, S, M, dtype=dtype) if values is None else values, valid, normal(2, B, T, H, dtype=dtype)


@pytest.fixture(scope="module", params=ATTENTIONS)
def attending(request):
    """``(values, valid, query) -> (contexts, weights)``, compiled, and the gradients of its sum in all it reads."""
    apply, params = make(request.param)
    run = jax.jit(lambda *inputs: apply({"params": params}, *inputs), compiler_options=FAST)

    def total(params, values, query, valid):
        contexts, weights = apply({"params": params}, values, valid, query)
        return jnp.sum(jnp.sin(contexts)) + jnp.sum(weights**2)

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2)), compiler_options=FAST)
    return run, lambda values, valid, query: grad(params, values, query, valid)


def general(params, h, v):
    return h @ (v @ params["projection"]["kernel"]) / np.sqrt(h.size)


def additive(params, h, v):
    return params["vector"] @ np.tanh(h @ params["query_kernel"] + v @ params["projection"]["kernel"])


@pytest.mark.parametrize(("name", "score"), [("general", general), ("additive", additive)])
def test_contexts_and_weights_are_those_of_the_paper(name, score):
    with jax.enable_x64(True):
        apply, params = make(name, np.float64)
        values, valid, query = data(dtype=np.float64)
        contexts, weights = jax.jit(apply, compiler_options=FAST)({"params": params}, values, valid, query)
    for b in range(B):
        for t in range(T):
            raised = np.exp([score(params, query[b, t], values[b, s]) for s in range(COUNTS[b])])
            shares = raised / raised.sum()
            np.testing.assert_allclose(weights[b, t, : COUNTS[b]], shares, rtol=1e-10)
            np.testing.assert_allclose(contexts[b, t], shares @ values[b, : COUNTS[b]], rtol=1e-10)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        apply, params = make(name, np.float64)
        values, valid, query = data(dtype=np.float64)
        to_contexts, to_weights = normal(5, B, T, M, dtype=np.float64), normal(6, B, T, S, dtype=np.float64)

        def loss(inputs):
            params, values, query = inputs
            contexts, weights = apply({"params": params}, values, valid, query)
            return jnp.sum(contexts * to_contexts) + jnp.sum(weights * to_weights)

        value_and_grad = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)
        inputs = (params, values, query)
        direction = jax.tree.map(lambda a: normal(7, *a.shape, dtype=np.float64), inputs)
        moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-5 * d, inputs, direction) for s in (1, -1)]
        difference = (value_and_grad(moved[0])[0] - value_and_grad(moved[1])[0]) / 2e-5
        slopes = jax.tree.map(lambda g, d: jnp.sum(g * d), value_and_grad(inputs)[1], direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), difference, rtol=1e-7)


def test_padding_has_exactly_no_weight_and_the_others_have_all_of_it(attending):
    weights = np.asarray(attending[0](*data())[1])
    assert (weights[~np.broadcast_to(VALID[:, None, :], weights.shape)] == 0).all()
    np.testing.assert_allclose(weights.sum(-1)[:3], 1, atol=1e-6)


def test_nothing_to_look_at_gives_the_context_zero(attending):
    contexts, weights = attending[0](*data())
    assert (np.asarray(contexts)[3] == 0).all()
    assert (np.asarray(weights)[3] == 0).all()


@pytest.mark.parametrize("junk", [0, 1e30, np.inf, np.nan])
def test_what_stands_in_padding_changes_no_bit_of_values_and_gradients(attending, junk):
    values, valid, query = data()
    other = np.where(VALID[:, :, None], values, np.float32(junk))
    for run in attending:
        jax.tree.map(np.testing.assert_array_equal, run(values, valid, query), run(other, valid, query))


def test_gradients_into_padding_are_exactly_zero_and_all_are_finite(attending):
    _, values, _ = grads = attending[1](*data(values=np.where(VALID[:, :, None], normal(1, B, S, M), np.nan)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert (np.asarray(values)[~VALID] == 0).all()


def test_how_much_padding_there_is_changes_rounding_alone(attending):
    values, valid, query = data()
    valid = valid & (np.arange(S) < 3)[None, :]
    short, long = attending[0](values[:, :3], valid[:, :3], query), attending[0](values, valid, query)
    np.testing.assert_allclose(short[0], long[0], atol=1e-6)
    np.testing.assert_allclose(short[1], np.asarray(long[1])[..., :3], atol=1e-6)


def test_without_a_mask_all_places_are_there(attending):
    values, _, query = data()
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6),
        attending[0](values, None, query),
        attending[0](values, np.ones((B, S), bool), query),
    )


def test_no_row_and_no_step_sees_another(attending):
    values, valid, query = data(valid=np.ones((B, S), bool))
    a = attending[0](values, valid, query)
    for inputs, here in (
        ((np.concatenate([values[:1], normal(8, B - 1, S, M)]), valid, query), np.s_[0]),
        ((values, valid, np.concatenate([query[:, :1], normal(9, B, T - 1, H)], axis=1)), np.s_[:, 0]),
    ):
        b = attending[0](*inputs)
        jax.tree.map(lambda x, y, here=here: np.testing.assert_array_equal(x[here], y[here]), a, b)
        assert np.any(a[0] != b[0])


def test_a_softmax_of_scores_far_apart_is_exact_and_its_gradient_finite():
    scores = np.array([[1e30, -1e30, 3e4], [-3e38, -3e38, 0.0]], np.float32)
    valid = np.array([[True, True, True], [True, True, False]])
    shares, backward = jax.vjp(lambda scores: masked_softmax(scores, valid), scores)
    np.testing.assert_array_equal(shares, [[1, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(backward(jnp.eye(2, 3))[0], [[0, 0, 0], [-0.25, 0.25, 0]])


@pytest.mark.parametrize("junk", [np.inf, -np.inf, np.nan, 3e38])
def test_scores_in_padding_may_be_anything(junk):
    valid = np.array([True, True, False])

    def loss(scores):
        shares = masked_softmax(scores, valid)
        return jnp.sum(shares * jnp.arange(3.0)), shares

    (_, shares), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(np.array([1.0, 1.0, junk], np.float32))
    np.testing.assert_array_equal(shares, [0.5, 0.5, 0])
    np.testing.assert_allclose(grad, [-0.25, 0.25, 0], atol=1e-7)
