"""Gated linear attention: chunks give what single steps give, also where decay factors are near 0 and near 1."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import choose_form, forms_of, unroll
from jaxgen.cells.gla import CHUNK, GLA
from jaxgen.errors import UsageError

B, D, H = 2, 3, 8
FAST = {"xla_backend_optimization_level": 0}


class Over(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, **options):
        return unroll(self.cell, x, time_major=True, **options)


def random(tree, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: draw.normal(size=a.shape), tree)


@pytest.mark.parametrize(("steps", "reverse"), [(CHUNK + 3, True)])
def test_chunks_have_the_values_and_gradients_of_step_by_step(steps, reverse):
    with jax.enable_x64(True):
        module = Over(GLA(H, heads=2, param_dtype=jnp.float64))
        x = np.random.default_rng(0).normal(size=(steps, B, D))
        carry = random(module.cell.initialize_carry(jax.random.key(0), (B, D)), 1)
        initial = random(carry, 2)
        params = jax.jit(module.init)(jax.random.key(0), x)
        params["params"]["cell"]["decay"]["bias"] -= np.linspace(0, 800, 4)  # decay factors from 1 to e^-50
        reset, valid = (np.random.default_rng(n).random((steps, B)) < share for n, share in ((3, 0.2), (4, 0.7)))

        def value(form, params, x, carry, initial):
            masks = {"reset": reset, "valid": valid, "initial": initial}
            out = module.apply(params, x, carry=carry, form=form, reverse=reverse, **masks)
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(out)), out

        compute = partial(jax.jit, static_argnums=0, compiler_options=FAST)
        compute = compute(jax.value_and_grad(value, (1, 2, 3, 4), has_aux=True))
        got, expected = (compute(form, params, x, carry, initial) for form in ("chunked", "scan"))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * (1 + np.abs(b).max()))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [-400.0, 0.0, 60.0, 1e4])
def test_chunks_are_as_precise_as_single_steps_over_4096_steps(bias):
    """The error of float32 against float64, where decay factors are near 0, in between and near 1."""
    x = np.random.default_rng(0).normal(size=(4096, 1, D)).astype(np.float32)

    def gradient(form, dtype):
        module = Over(GLA(H, heads=2, param_dtype=dtype))
        params = jax.tree.map(lambda a: a.astype(dtype), Over(GLA(H, heads=2)).init(jax.random.key(0), x[:2]))
        params["params"]["cell"]["decay"]["bias"] += bias
        value = lambda params, x: jnp.sum(jnp.sin(module.apply(params, x, form=form)[1]))  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.value_and_grad(value, (0, 1)))(params, x.astype(dtype)))

    with jax.enable_x64(True):
        exact = gradient("sequential", jnp.float64)
        errors = {
            form: [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(gradient(form, jnp.float32), exact)]
            for form in ("sequential", "chunked")
        }
    for chunked, sequential in zip(errors["chunked"], errors["sequential"], strict=True):
        assert chunked <= 4 * max(sequential, 1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_states_of_all_steps_are_never_held_unless_one_asks_for_it(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert {"sequential", "parallel"} <= set(forms_of(GLA(H)))
    assert choose_form("auto", GLA(H)) == "chunked"


def test_heads_that_do_not_divide_the_units_are_refused():
    with pytest.raises(UsageError):
        GLA(H, heads=3)
