"""Zoneout and dropout on the recurrent state: equations, forms, gradients, and what a mask depends on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import CELLS, forms_of, unroll
from jaxgen.cells.noise import takes_recurrent_dropout, takes_zoneout, with_noise
from jaxgen.errors import UsageError
from tests.contracts.equations import EQUATIONS

B, T, D, H = 3, 5, 3, 4
VALID = np.arange(T) < np.array([[T], [4], [0]])
RESET = np.arange(T) == np.array([[3], [0], [2]])
KEYS = jax.random.split(jax.random.key(3), B)
BOTH = {"zoneout": 0.4, "recurrent_dropout": 0.3}
#: Compiles faster.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(jit, static_argnums=0)
def run(module, params, x, carry, keys):
    return module.apply(params, x, carry=carry, row_keys=keys)


@partial(jit, static_argnums=0)
def masks(module, params, x, carry):
    """How much each unit keeps, and the mask of the state or ``None``."""
    _, (_, mask), z, _, _ = module.apply(params, x, carry, KEYS, method="noise")
    return z[..., -H:], mask


class Unrolled(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, **options):
        return unroll(self.cell, x, **options)

    def noise(self, x, carry, keys):
        return with_noise(self.cell.clone(parent=None), carry, jnp.swapaxes(self.cell.project(x), 0, 1), None, keys)


def draw(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 0.7, shape).astype(dtype)


def case(name, dtype=np.float32, **rates):
    """A cell with noise, random parameters, an input and a carry."""
    module = Unrolled(CELLS[name](features=H, **rates, param_dtype=dtype))
    x = draw(1, B, T, D, dtype=dtype)
    carry = jax.tree.map(lambda a: draw(2, *a.shape, dtype=dtype), module.cell.initialize_carry(KEYS[0], (B, D)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return module, jax.tree.map(lambda a: draw(3, *a.shape, dtype=dtype), shapes), x, carry


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def by_hand(name, params, x, carry, keep, mask):
    """The equations with masks: ``keep`` [T, B, H] is how much each unit keeps, ``mask`` multiplies what W_h reads."""
    inner, ys = params["params"]["cell"], []
    for t in range(T):
        masked = (carry[0], carry[1] * mask) if isinstance(carry, tuple) else carry
        new, _ = EQUATIONS[name](inner, masked, x[:, t])
        carry = jax.tree.map(lambda old, new, t=t: keep[t] * old + (1 - keep[t]) * new, carry, new)
        ys.append(carry[1] if isinstance(carry, tuple) else carry)
    return carry, np.stack(ys, axis=1)


@pytest.mark.parametrize(("name", "rates"), [("lstm", BOTH), ("mingru", {"zoneout": 0.4})])
def test_a_unit_that_zoneout_keeps_has_its_old_state_and_one_mask_stands_before_the_matrix(name, rates):
    module, params, x, carry = case(name, **rates)
    keep, mask = masks(module, params, x, carry)
    keep = np.asarray(keep)
    assert set(np.unique(keep)) == {0, 1}
    mask = np.ones((B, H)) if mask is None else np.asarray(mask)
    assert name == "mingru" or set(np.unique(mask)) == {0, np.float32(1 / 0.7)}
    got = run(module, params, x, carry, KEYS)
    close(got, by_hand(name, params, x, carry, keep, mask))


@pytest.mark.parametrize(("name", "rates"), [("lstm", BOTH), ("mingru", {"zoneout": 0.4})])
def test_without_keys_a_state_is_the_mean_over_the_masks_of_zoneout(name, rates):
    module, params, x, carry = case(name, **rates)
    got = run(module, params, x, carry, None)
    close(got, by_hand(name, params, x, carry, np.full((T, 1, 1), 0.4), 1.0))


def value_and_gradients(module, form, params, x, carry):
    def value(params, x, carry):
        options = {"row_keys": KEYS, "reset": RESET, "valid": VALID, "initial": jax.tree.map(jnp.sin, carry)}
        out = module.apply(params, x, carry=carry, form=form, **options)
        return sum(jnp.sum(jnp.sin(leaf + 0.3)) for leaf in jax.tree.leaves(out)), out

    return jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(params, x, carry)


@pytest.mark.parametrize(
    ("name", "rates", "form"),
    [("lstm", BOTH, "fused"), pytest.param("mingru", {"zoneout": 0.4}, "sequential", marks=pytest.mark.slow)],
)
def test_every_form_has_the_values_and_gradients_of_the_scan(name, rates, form):
    module, *inputs = case(name, **rates)
    plain, other = (jit(partial(value_and_gradients, module, form))(*inputs) for form in ("scan", form))
    close(other, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_with_all_the_noise_it_can_have_has_equal_forms(name):
    cell = CELLS[name](features=H)
    can = {"zoneout": takes_zoneout(cell), "recurrent_dropout": takes_recurrent_dropout(cell)}
    module, *inputs = case(name, **{field: BOTH[field] for field in BOTH if can[field]})
    plain = jit(partial(value_and_gradients, module, "scan"))(*inputs)
    for form in forms_of(module.cell):
        close(jit(partial(value_and_gradients, module, form))(*inputs), plain)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True):
        module, *inputs = case("lstm", np.float64, **BOTH)
        function = jit(partial(value_and_gradients, module, "fused"))
        _, gradients = function(*inputs)
        direction = jax.tree.map(lambda a: draw(4, *a.shape, dtype=np.float64), tuple(inputs))
        ends = (
            function(*jax.tree.map(lambda a, d, e=e: a + e * d, tuple(inputs), direction))[0][0] for e in (1e-6, -1e-6)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradients, direction)))
        upper, lower = ends
        np.testing.assert_allclose((upper - lower) / 2e-6, slope, rtol=1e-6)


def test_the_noise_of_a_row_depends_on_its_own_key_only():
    module, params, x, carry = case("lstm", **BOTH)
    _, whole = run(module, params, x, carry, KEYS)
    others = np.array([1, 0, 1])  # row 1 among other rows, in another place
    _, moved = run(module, params, *jax.tree.map(lambda a: a[others], (x, carry, KEYS)))
    close(moved[0], whole[1])
    _, other_keys = run(module, params, x, carry, jnp.roll(KEYS, 1))
    assert np.abs(other_keys - whole).max(axis=(1, 2)).min() > 1e-3


def test_without_rates_keys_change_no_bit():
    module, params, x, carry = case("lstm")
    with_keys, without = (run(module, params, x, carry, keys) for keys in (KEYS, None))
    jax.tree.map(np.testing.assert_array_equal, with_keys, without)


@pytest.mark.slow
def test_an_unroll_without_input_has_noise_too():
    module, params, _, carry = case("gru", **BOTH)
    run = jit(
        lambda keys, form: module.apply(params, None, carry=carry, length=T, row_keys=keys, form=form), static_argnums=1
    )
    close(run(KEYS, "fused"), run(KEYS, "scan"))
    assert np.abs(run(KEYS, "scan")[1] - run(None, "scan")[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "rates", "word"),
    [("mingru", {"recurrent_dropout": 0.1}, "recurrent"), ("lstm", {"zoneout": 1.0}, "less than 1")],
)
def test_noise_that_a_cell_cannot_have_is_refused(name, rates, word):
    module, params, x, _ = case("mingru" if name == "mingru" else "lstm")
    module = Unrolled(CELLS[name](features=H, **rates))
    with pytest.raises(UsageError, match=word):
        module.apply(params, x, row_keys=KEYS)


def test_one_call_of_a_cell_with_zoneout_says_that_unroll_is_needed():
    module, params, x, carry = case("lstm", zoneout=0.1)
    with pytest.raises(UsageError, match="unroll"):
        module.cell.apply({"params": params["params"]["cell"]}, carry, x[:, 0])
