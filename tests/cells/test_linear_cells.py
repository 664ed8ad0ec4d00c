"""What the registered linear cells promise beyond the contract: their options, initial values and limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.cells import CELLS, LinearCell, unroll
from jaxgen.cells.lru import LRU
from jaxgen.cells.minlstm import MinLSTM
from jaxgen.cells.rglru import RGLRU
from jaxgen.cells.sru import SRU
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


def test_sru_passes_on_an_input_of_its_own_width_as_it_is():
    cell = SRU(H)
    params, carry, x = made(cell)
    assert set(params) == {"input"}
    expected = EQUATIONS["sru"]({**params, "skip": {"kernel": np.eye(H)}}, carry, x)
    for a, b in zip(cell.apply({"params": params}, carry, x), expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [-100.0, -20.0, 0.0, 40.0])
def test_minlstm_scales_its_gates_also_where_both_are_almost_closed(level):
    """At -100, float32 has no digits for the gates themselves."""
    f, i, n = np.full(H, level), level + np.linspace(-3, 3, H), np.ones(H)
    z = np.concatenate([f, i, n])
    a, b = MinLSTM(H, parent=None).coefficients((), jnp.asarray(z, jnp.float32))
    sf, si = 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-i))
    np.testing.assert_allclose(a, sf / (sf + si), rtol=1e-5)
    np.testing.assert_allclose(b, si / (sf + si) * 1.5, rtol=1e-5)


def test_lru_starts_on_the_ring_that_is_asked_for():
    cell = LRU(512, r_min=0.8, r_max=0.9, max_angle=0.5)
    params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), (1, 4)), jnp.zeros((1, 4)))["params"]
    radius = np.exp(-np.exp(np.float64(params["log_rate"])))
    assert 0.8 <= radius.min() < 0.805
    assert 0.895 < radius.max() <= 0.90001
    # Uniform on the ring, so that its area grows with the square of the radius.
    assert abs((radius**2).mean() - (0.8**2 + 0.9**2) / 2) < 0.01
    angle = np.exp(params["log_angle"])
    assert 0 < angle.min() < 0.01
    assert 0.49 < angle.max() <= 0.5
    np.testing.assert_allclose(np.exp(params["log_gain"]), np.sqrt(1 - radius**2), rtol=1e-5)


def test_the_state_of_an_lru_has_the_variance_of_its_input():
    """After many steps over white noise, with the initial gain (section 3.4 of the paper)."""
    cell, x = LRU(64, r_min=0.5, r_max=0.95), np.random.default_rng(0).normal(size=(60, 16, 32)).astype(np.float32)
    params = cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), (16, 32)), x[0])
    (real, imag), _ = cell.apply(params, x, method=lambda cell, x: unroll(cell, x, time_major=True))
    assert abs(float(jnp.mean(real**2 + imag**2)) - 1) < 0.1


@pytest.mark.parametrize("options", [{"r_min": 0.9, "r_max": 0.5}, {"r_max": 1.5}, {"max_angle": 0.0}])
def test_lru_has_a_ring_within_the_unit_circle(options):
    with pytest.raises(UsageError, match="r_min"):
        made(LRU(H, **options))


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if issubclass(cell, LinearCell)])
def test_parameters_and_states_are_real(name):
    params, carry, _ = made(CELLS[name](features=H))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((params, carry)))
