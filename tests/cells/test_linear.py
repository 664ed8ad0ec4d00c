"""Linear recurrences: every form gives the values and gradients of the plain scan, for states of any kind."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxgen.cells import Affine, LinearCell, forms_of, unroll
from jaxgen.cells.attention import Attention
from jaxgen.cells.gla import GLA
from jaxgen.cells.linear import CHUNK
from jaxgen.cells.mingru import MinGRU

B, D, H = 2, 3, 4


class Rotating(LinearCell):
    """A complex state, turned by the input."""

    complex_state = True

    def setup(self):
        self.input = Affine(3 * self.features, param_dtype=self.param_dtype)

    def project(self, x):
        return self.input(x)

    @nn.nowrap
    def coefficients(self, weights, z):
        angle, decay, x = jnp.split(z, 3, axis=-1)
        radius = nn.sigmoid(decay)
        return lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle)), lax.complex(x, -x)

    @nn.nowrap
    def read(self, weights, state, z):
        return state.real + 2 * state.imag


class TwoStates(LinearCell):
    """A matrix whose rows decay together, and a vector."""

    def setup(self):
        self.input = Affine(4 * self.features, param_dtype=self.param_dtype)
        self.mix = self.param("mix", nn.initializers.lecun_normal(), (self.features, self.features), self.param_dtype)

    def project(self, x):
        return self.input(x)

    def weights(self):
        return self.mix

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        zeros = super().initialize_carry(rng, input_shape)
        return {"matrix": jnp.zeros((*zeros.shape, 2), zeros.dtype), "vector": zeros}

    @nn.nowrap
    def coefficients(self, weights, z):
        decay, k, v, x = jnp.split(z, 4, axis=-1)
        a = nn.sigmoid(decay)
        return {"matrix": a[..., None], "vector": a}, {"matrix": k[..., None] * v[..., :2][..., None, :], "vector": x}

    @nn.nowrap
    def read(self, weights, state, z):
        return jnp.sum(state["matrix"], axis=-1) + state["vector"] @ weights


class Over(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, **options):
        return unroll(self.cell, x, time_major=True, **options)


def random(tree, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: draw.normal(size=a.shape), tree)


@pytest.mark.parametrize(  # of the cells of the registry, tests/contracts/test_cells.py asks the same
    ("kind", "steps", "reverse"),
    [
        (TwoStates, 1, False),
        (TwoStates, CHUNK, True),
        (TwoStates, CHUNK + 1, True),
        (TwoStates, 2 * CHUNK + 3, False),
        (Rotating, 2 * CHUNK + 3, True),
    ],
)
def test_every_form_has_the_values_and_gradients_of_the_plain_scan(kind, steps, reverse):
    with jax.enable_x64(True):
        module = Over(kind(H, param_dtype=jnp.float64))
        x = np.random.default_rng(0).normal(size=(steps, B, D))
        carry = random(module.cell.initialize_carry(jax.random.key(0), (B, D)), 1)
        initial = random(jax.tree.map(lambda a: jnp.zeros((steps, *a.shape)), carry), 2)
        params = jax.jit(module.init)(jax.random.key(0), x)
        reset, valid = (np.random.default_rng(n).random((steps, B)) < share for n, share in ((3, 0.1), (4, 0.8)))

        def value(form, params, x, carry, initial):
            masks = {"reset": reset, "valid": valid, "initial": initial}
            out = module.apply(params, x, carry=carry, form=form, reverse=reverse, **masks)
            return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(out)), out

        compute = jax.jit(jax.value_and_grad(value, (1, 2, 3, 4), has_aux=True), static_argnums=0)
        expected = compute("scan", params, x, carry, initial)
        forms = forms_of(module.cell)
        assert {"sequential", "chunked", "parallel"} <= set(forms)
        for form in forms:
            got = compute(form, params, x, carry, initial)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), got, expected)


@pytest.mark.parametrize("kind", [MinGRU, Rotating, GLA, partial(Attention, window=2)])
@pytest.mark.parametrize(("steps", "rows"), [(0, B), (0, 0), (1, 0), (65, 0)])
def test_there_may_be_no_steps_and_no_rows_in_every_form(kind, steps, rows):
    x, cell = jnp.zeros((steps, rows, D)), kind(H)
    params = jax.eval_shape(Over(cell).init, jax.random.key(0), jnp.zeros((2, B, D)))
    for form in forms_of(cell):
        assert jax.eval_shape(partial(Over(cell).apply, form=form), params, x)[1].shape == (steps, rows, H)
