"""Attention as a cell: all steps at once and step by step, the window, the heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import unroll
from jaxgen.cells.attention import CHUNK, Attention
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


@pytest.mark.parametrize(("steps", "window", "reverse"), [(CHUNK + 5, 3, True), (4, 6, False)])
def test_all_steps_at_once_have_the_values_and_gradients_of_step_by_step(steps, window, reverse):
    with jax.enable_x64(True):
        module = Over(Attention(H, window=window, heads=2, param_dtype=jnp.float64))
        x = np.random.default_rng(0).normal(size=(steps, B, D))
        carry = random(module.cell.initialize_carry(jax.random.key(0), (B, D)), 1)
        initial = random(carry, 2)
        params = jax.jit(module.init)(jax.random.key(0), x)
        reset, valid = (np.random.default_rng(n).random((steps, B)) < share for n, share in ((3, 0.3), (4, 0.7)))

        def value(form, params, x, carry, initial):
            masks = {"reset": reset, "valid": valid, "initial": initial}
            out = module.apply(params, x, carry=carry, form=form, reverse=reverse, **masks)
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(out)), out

        compute = partial(jax.jit, static_argnums=0, compiler_options=FAST)
        compute = compute(jax.value_and_grad(value, (1, 2, 3, 4), has_aux=True))
        got, expected = (compute(form, params, x, carry, initial) for form in ("parallel", "scan"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), got, expected)


def test_from_the_beginning_it_is_causal_attention_with_a_bias_by_distance():
    steps, heads = 6, 4
    module = Over(Attention(H, heads=heads))
    x = np.random.default_rng(0).normal(size=(steps, B, D)).astype(np.float32)
    params = module.init(jax.random.key(0), x)
    ys = module.apply(params, x)[1]
    z = x @ params["params"]["cell"]["input"]["kernel"]
    q, k, v = (jnp.swapaxes(a, 0, 1).reshape(B, steps, heads, -1) for a in jnp.split(z, 3, axis=-1))
    distance = np.arange(steps)[:, None] - np.arange(steps)
    bias = -np.float32([[[1 / 4]], [[1 / 16]], [[1 / 64]], [[1 / 256]]]) * distance[None]
    expected = jax.nn.dot_product_attention(q, k, v, jnp.asarray(bias[None], jnp.float32), is_causal=True)
    np.testing.assert_allclose(jnp.swapaxes(ys, 0, 1), expected.reshape(B, steps, H), rtol=1e-5, atol=1e-6)


def test_a_step_sees_as_many_steps_as_the_window_has():
    module = Over(Attention(H, window=3))
    x = np.random.default_rng(0).normal(size=(6, B, D)).astype(np.float32)
    params = module.init(jax.random.key(0), x)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(module.apply(params, x)[1][4]))))(x)
    assert [bool(np.any(slope)) for slope in slopes] == [False, False, True, True, True, False]


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": -1}, {"window": 0}])
def test_heads_and_windows_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError):
        Attention(H, **options)
