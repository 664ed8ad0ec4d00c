"""What is particular to one cell: its options, its initial values, and Flax's cell with the same equations."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import CELLS, GRU, LSTM, Elman, ElmanReLU
from jaxgen.errors import UsageError

B, D, H = 3, 4, 5


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_an_unknown_elman_activation_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="tanh"):
        Elman(H, activation="tahn").init(jax.random.key(0), jnp.zeros((B, H)), jnp.ones((B, D)))


def test_elman_with_relu_is_the_relu_cell():
    params = {"input": {"kernel": normal(3, D, H), "bias": normal(4, H)}, "recurrent_kernel": normal(5, H, H)}
    carry, x = normal(1, B, H), normal(2, B, D)
    a, b = (
        jax.jit(cell.apply)({"params": params}, carry, x)[1] for cell in (ElmanReLU(H), Elman(H, activation="relu"))
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("cell", "expected"), [(LSTM(H), 1.0), (LSTM(H, forget_bias=2.5), 2.5)])
def test_the_forget_gate_alone_begins_with_a_bias(cell, expected):
    carry = (jnp.zeros((B, H)),) * 2
    bias = jax.jit(lambda key: cell.init(key, carry, jnp.ones((B, D)))["params"]["input"]["bias"])(jax.random.key(0))
    np.testing.assert_array_equal(bias, np.repeat([0, expected, 0, 0], H))


def test_the_forget_bias_is_a_parameter_that_training_may_change():
    cell, carry, x = LSTM(H), (normal(1, B, H), normal(2, B, H)), normal(3, B, D)
    bias = normal(4, 4 * H)
    bias[H : 2 * H] = -100  # forget everything
    params = {"input": {"kernel": normal(5, D, 4 * H), "bias": bias}, "recurrent_kernel": normal(6, H, 4 * H)}
    forgot = jax.jit(cell.apply)({"params": params}, carry, x)
    fresh = jax.jit(cell.apply)({"params": params}, (jnp.zeros((B, H)), carry[1]), x)
    np.testing.assert_array_equal(forgot[1], fresh[1])


def test_each_gates_recurrent_matrix_begins_orthogonal():
    params = jax.jit(GRU(H).init)(jax.random.key(0), jnp.zeros((B, H)), jnp.ones((B, D)))["params"]
    for block in np.split(np.asarray(params["recurrent_kernel"]), 3, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-5)


def test_the_two_arrays_of_an_lstm_state_can_be_donated_together():
    c, h = LSTM(H).initialize_carry(jax.random.key(0), (B, D))
    assert c.unsafe_buffer_pointer() != h.unsafe_buffer_pointer()


def flax_lstm(params):
    """The parameter tree of ``nn.OptimizedLSTMCell`` as one of ``LSTM``: the biases stand on the recurrent side."""
    inner = [params[f"i{gate}"]["kernel"] for gate in "ifgo"]
    outer = [params[f"h{gate}"] for gate in "ifgo"]
    return {
        "input": {"kernel": np.concatenate(inner, 1), "bias": np.concatenate([p["bias"] for p in outer])},
        "recurrent_kernel": np.concatenate([p["kernel"] for p in outer], 1),
    }


def flax_gru(params):
    """The parameter tree of ``nn.GRUCell`` as one of ``GRU``."""
    inner = [params[f"i{gate}"] for gate in "rzn"]
    return {
        "input": {
            "kernel": np.concatenate([p["kernel"] for p in inner], 1),
            "bias": np.concatenate([p["bias"] for p in inner]),
        },
        "recurrent_kernel": np.concatenate([params[f"h{gate}"]["kernel"] for gate in "rzn"], 1),
        "recurrent_bias": params["hn"]["bias"],
    }


def flax_simple(params):
    """The parameter tree of ``nn.SimpleCell`` as one of ``Elman``."""
    return {"input": params["i"], "recurrent_kernel": params["h"]["kernel"]}


@pytest.mark.parametrize(
    ("ours", "theirs", "convert"),
    [
        (LSTM, nn.OptimizedLSTMCell, flax_lstm),
        (LSTM, nn.LSTMCell, flax_lstm),
        (GRU, nn.GRUCell, flax_gru),
        (Elman, nn.SimpleCell, flax_simple),
        (ElmanReLU, partial(nn.SimpleCell, activation_fn=nn.relu), flax_simple),
    ],
    ids=["lstm-optimized", "lstm", "gru", "elman", "elman-relu"],
)
def test_a_cell_equals_flax_own_with_the_same_weights(ours, theirs, convert):
    cell = theirs(H)
    state = cell.initialize_carry(jax.random.key(0), (B, D))
    carry = jax.tree.map(lambda a: normal(1, *a.shape), state)
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.ones((B, D)))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(structure, [0.5 * normal(2 + n, *leaf.shape) for n, leaf in enumerate(leaves)])
    expected = jax.jit(cell.apply)({"params": params}, carry, normal(9, B, D))
    actual = jax.jit(ours(H).apply)({"params": convert(params)}, carry, normal(9, B, D))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


def decompositions(jaxpr):
    """The shapes of the matrices that are decomposed somewhere in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("qr", "geqrf", "householder_product", "svd", "eigh"):
            yield equation.invars[0].aval.shape
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from decompositions(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from decompositions(inner.jaxpr)


@pytest.mark.parametrize("name", CELLS)
def test_initial_values_need_no_batched_decomposition(name):
    """On a CPU with two threads, two of them at the same time waited for each other without end."""
    cell = CELLS[name](8)
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), (B, 8)))
    program = jax.make_jaxpr(cell.init)(jax.random.key(0), carry, jnp.ones((B, 8)))
    assert all(len(shape) == 2 for shape in decompositions(program.jaxpr))
