"""What the registered linear cells promise beyond the contract: their options, initial values and limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.cells.rglru import RGLRU
from jaxgen.errors import UsageError
from tests.contracts.equations import EQUATIONS

B, H = 3, 6


def made(cell, width=H, scale=0.5):
    """The cell's parameters, drawn at random, a carry and an input."""
    draw = np.random.default_rng(0)
    carry = cell.initialize_carry(jax.random.key(0), (B, width))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.zeros((B, width)))["params"]
    normal = jax.tree.map(lambda a: draw.normal(0, scale, a.shape).astype(np.float32), (shapes, carry))
    return *normal, draw.normal(size=(B, width)).astype(np.float32)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_rglru_has_block_diagonal_gates_and_reads_an_input_of_its_own_width_as_it_is(blocks):
    cell = RGLRU(H, blocks=blocks)
    params, carry, x = made(cell)
    assert set(params) == {"decay", "input_gate", "recurrence_gate"}
    assert params["input_gate"]["kernel"].shape == (blocks, H // blocks, H // blocks)
    got, y = cell.apply({"params": params}, carry, x)
    expected, _ = EQUATIONS["rglru"]({**params, "input": {"kernel": np.eye(H)}}, carry, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(got, y)


def test_rglru_starts_with_decays_between_0_9_and_0_999():
    decay = RGLRU(512).init(jax.random.key(0), jnp.zeros((1, 512)), jnp.zeros((1, 512)))["params"]["decay"]
    smallest = 1 / (1 + np.exp(np.float64(decay))) ** 8
    assert 0.9 <= smallest.min() < 0.91
    assert 0.99 < smallest.max() <= 0.99901
    assert abs(smallest.mean() - 0.9495) < 0.01


@pytest.mark.parametrize("gate", [-300.0, -30.0, -15.0])
def test_rglru_is_exact_where_nothing_decays(gate):
    """The gate's bias alone decides: with -300 the decay factor is 1 and the square root 0, where it has no slope."""
    cell = RGLRU(H)
    params, carry, x = made(cell)
    params["recurrence_gate"] = {"kernel": np.zeros((1, H, H), np.float32), "bias": np.full(H, gate, np.float32)}

    def new_input(params, x):
        return jnp.sum(cell.apply({"params": params}, jnp.zeros_like(carry), x)[0])

    value, (in_params, in_x) = jax.value_and_grad(new_input, (0, 1))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((in_params, in_x)))
    wide = jax.tree.map(np.float64, params)
    log_a = -8 * np.log1p(np.exp(wide["decay"])) / (1 + np.exp(-gate))
    i = 1 / (1 + np.exp(-(x @ wide["input_gate"]["kernel"][0] + wide["input_gate"]["bias"])))
    b = np.sqrt(-np.expm1(2 * log_a)) * i * x
    np.testing.assert_allclose(value, b.sum(), rtol=1e-5, atol=1e-30)
    # d b / d log_a = -a^2 / (1 - a^2) b, and d log_a / d bias = (1 - r) log_a.
    slope = np.exp(2 * log_a) / np.expm1(2 * log_a) * log_a / (1 + np.exp(gate)) * b
    got, largest = in_params["recurrence_gate"]["bias"], np.abs(slope).max()
    np.testing.assert_allclose(got, slope.sum(0), rtol=1e-5, atol=1e-6 * largest + 1e-30)


def test_rglru_has_blocks_of_equal_size():
    with pytest.raises(UsageError, match="blocks"):
        made(RGLRU(H, blocks=4))
