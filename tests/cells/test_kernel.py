"""The kernel form beside the plain scan: in a simulated TPU, in blocks of rows, and at the limits of its memory.

The contract (tests/contracts/test_cells.py) compares it with the plain scan as it does every form.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.pallas import tpu as pltpu

from jaxgen.cells import CELLS, LRU, LSTM, choose_form, forms_of, kernel, unroll
from jaxgen.errors import UsageError

B, T, D, H = 5, 4, 3, 8
#: The largest number of units, in steps of 128, that trains in the kernel form with 128 rows (docs/scale.md).
LARGEST = {
    ("lstm", "float32"): 1920,
    ("lstm", "bfloat16"): 2688,
    ("gru", "float32"): 2176,
    ("gru", "bfloat16"): 3200,
}


class Unrolled(nn.Module):
    cell: nn.RNNCellBase
    form: str

    def __call__(self, x, carry=None, **options):
        return unroll(self.cell, x, carry, form=self.form, **options)


def data(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def value_and_gradients(kind, form, reverse=False):
    """A number that every output has a part in, and its gradients, with padding and resets to a state of each row."""
    module = Unrolled(kind(features=H), form)
    x, zeros = data(1, B, T, D), module.cell.initialize_carry(jax.random.key(0), (B, D))
    carry, initial = (jax.tree.map(lambda a, seed=seed: data(seed, *a.shape), zeros) for seed in (2, 3))
    reset = np.random.default_rng(4).random((B, T)) < 0.3
    valid = np.arange(T) < np.array([[T], [2], [0], [3], [T]])
    params = jax.tree.map(lambda a: 0.4 * data(5, *a.shape), jax.eval_shape(module.init, jax.random.key(5), x, carry))

    @jax.jit
    def both(params, x, carry, initial):
        def value(*point):
            out = module.apply(*point[:-1], initial=point[-1], reset=reset, valid=valid, reverse=reverse)
            return sum(jnp.sum(jnp.sin(leaf + 0.3)) for leaf in jax.tree.leaves(out))

        return jax.value_and_grad(value, argnums=(0, 1, 2, 3))(params, x, carry, initial)

    return both(params, x, carry, initial)


def assert_as_the_plain_scan(kind, **options):
    plain = value_and_gradients(kind, "scan", **options)
    found = value_and_gradients(kind, "kernel", **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, plain)


LATER = [name for name in CELLS if "kernel" in forms_of(CELLS[name](features=H)) and name != "lstm"]
#: Another product, complex numbers, and a state of three arrays; `pytest -m slow` has the others.
TOLD_APART = {"gru", "lru", "slstm"}


@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        *(pytest.param(name, marks=pytest.mark.runs if name in TOLD_APART else pytest.mark.slow) for name in LATER),
    ],
)
def test_a_simulated_tpu_computes_what_the_plain_scan_does(name, monkeypatch):
    """Its memory begins as NaN, and reading outside of an array is an error."""
    monkeypatch.setattr(kernel, "INTERPRETER", pltpu.InterpretParams())
    assert_as_the_plain_scan(CELLS[name])


@pytest.mark.parametrize(("kind", "reverse"), [(LSTM, False), pytest.param(LRU, True, marks=pytest.mark.runs)])
def test_the_last_block_of_rows_may_be_a_part_of_one(kind, reverse, monkeypatch):
    monkeypatch.setattr(kernel, "INTERPRETER", True)
    monkeypatch.setattr(kernel, "block_rows", lambda *_: 2)
    assert_as_the_plain_scan(kind, reverse=reverse)


def lower_gradients(kind, units, precision="float32", rows=160, steps=3):
    """A function that lowers the gradients of a layer for a TPU; calling this traces them."""
    module = Unrolled(kind(features=units, precision=precision), "kernel")
    x = jax.ShapeDtypeStruct((rows, steps, 128), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)

    def value(params, x):
        return jnp.sum(module.apply(params, x)[1])

    return partial(jax.jit(jax.grad(value)).trace(params, x).lower, lowering_platforms=("tpu",))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, precision) for name in ("lstm", "gru") for precision in ("float32", "bfloat16")),
        *(pytest.param(name, "float32", marks=pytest.mark.runs) for name in LATER if name != "gru"),
    ],
)
def test_it_lowers_to_a_kernel_in_each_direction_for_a_tpu(name, precision):
    text = lower_gradients(CELLS[name], 256, precision)().as_text()
    assert text.count("tpu_custom_call") >= 2


@pytest.mark.parametrize(("name", "precision"), LARGEST)
def test_a_cell_that_is_too_large_for_the_memory_is_told_to_use_the_scan(name, precision):
    largest = LARGEST[name, precision]
    lower_gradients(CELLS[name], largest, precision)
    with pytest.raises(UsageError, match="scan"):
        lower_gradients(CELLS[name], largest + 128, precision)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_auto_never_chooses_it(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    cells = [kind(features=H) for kind in CELLS.values()]
    assert any("kernel" in forms_of(cell) for cell in cells)
    assert "kernel" not in {choose_form("auto", cell) for cell in cells}


class Matrix(LSTM):
    """A carry of another rank."""

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return tuple(a[..., None] for a in super().initialize_carry(rng, input_shape))


def test_a_carry_of_matrices_has_no_kernel_form():
    assert "kernel" not in forms_of(Matrix(H))
