"""Cells with parameters inside the step, and the options of the nonlinear cells."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import Affine, Cell, Weights, forms_of, unroll
from jaxgen.cells.mogrifier import Mogrifier
from jaxgen.cells.slstm import SLSTM
from jaxgen.errors import UsageError

B, T, D, H = 2, 5, 3, 4
VALID = np.arange(T) < np.array([[T], [3]])


class Unrolled(nn.Module):
    cell: nn.RNNCellBase

    def __call__(self, x, **options):
        return unroll(self.cell, x, **options)


def data(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def random_params(cell):
    shapes = jax.eval_shape(Unrolled(cell).init, jax.random.key(0), data(0, B, T, D))["params"]["cell"]
    return jax.tree.map(lambda a: data(1, *a.shape), shapes)


def apply(cell, params, x, **options):
    return Unrolled(cell).apply({"params": {"cell": params}}, x, **options)


def close(actual, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), actual, expected)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class Deep(Cell):
    """A transition with a hidden layer (Pascanu et al. 2014, arXiv:1312.6026): h' = tanh(tanh(x + h W) U + c)."""

    def setup(self):
        self.input = Affine(self.features)
        shape = (self.features, self.features)
        self.kernel, self.upper = (self.param(name, nn.initializers.normal(0.5), shape) for name in ("kernel", "upper"))
        self.shift = self.param("shift", nn.initializers.normal(0.5), (self.features,))

    def project(self, x):
        return self.input(x)

    def weights(self):
        return Weights(self.kernel, extra=({"matrix": self.upper}, self.shift))

    @nn.nowrap
    def pointwise(self, carry, z, u, upper, shift):
        h = jnp.tanh(jnp.tanh(z + u) @ upper["matrix"] + jnp.broadcast_to(shift, u.shape))
        return h, h


def products_in_loops(jaxpr, inside=False):
    """The shapes of all matrix products inside the loops of a program."""
    for equation in jaxpr.eqns:
        if inside and equation.primitive.name == "dot_general":
            yield tuple(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products_in_loops(inner, inside or equation.primitive.name == "scan")


def test_the_gradient_of_a_matrix_inside_the_step_is_computed_outside_the_loop():
    cell = Deep(H)
    params, x = random_params(cell), data(2, B, T, D)

    def loss(params, form):
        carry, ys = apply(cell, params, x, form=form, valid=VALID, reset=np.roll(VALID, 2, 1))
        return jnp.sum(jnp.sin(ys)) + jnp.sum(carry**2)

    both = [jax.jit(jax.value_and_grad(partial(loss, form=form)))(params) for form in ("scan", "fused")]
    close(*both)
    assert "fused" in forms_of(cell)
    inside = {
        form: set(products_in_loops(jax.make_jaxpr(jax.grad(partial(loss, form=form)))(params).jaxpr))
        for form in ("scan", "fused")
    }
    assert (H, H) in inside["scan"]
    assert inside["fused"] == {(B, H)}


@pytest.mark.parametrize(("rounds", "rank"), [(1, 0), (4, 2)])
def test_a_mogrifier_of_other_rounds_and_a_low_rank(rounds, rank):
    cell = Mogrifier(H, rounds=rounds, rank=rank)
    params, x = random_params(cell), data(2, B, T, D)

    def matrix(name):
        return params[f"{name}_left"] @ params[f"{name}_right"] if rank else params[name]

    c, h, ys = np.zeros((B, H)), np.zeros((B, H)), []
    for x_t in np.swapaxes(x, 0, 1):
        for number in range(1, rounds + 1):
            if number % 2:
                x_t = 2 * sigmoid(h @ matrix(f"q{number}")) * x_t
            else:
                h = 2 * sigmoid(x_t @ matrix(f"r{number}")) * h
        i, f, g, o = np.split(x_t @ params["input_kernel"] + h @ params["recurrent_kernel"] + params["bias"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    close(jax.jit(partial(apply, cell))(params, x), ((c, h), np.stack(ys, axis=1)))


def test_a_mogrifier_that_never_had_an_input_is_an_lstm_at_its_bias():
    cell = Mogrifier(H)
    start = (data(3, B, H), data(4, B, H))
    module = Unrolled(cell)
    options = {"carry": start, "length": T}
    shapes = jax.eval_shape(lambda key: module.init(key, None, **options), jax.random.key(0))
    params = jax.tree.map(lambda a: data(1, *a.shape), shapes)
    (c, h), _ = module.apply(params, None, **options)
    inner, (cw, hw) = params["params"]["cell"], start
    for _ in range(T):  # the state's rounds have the factor 2 sigmoid(0) = 1
        i, f, g, o = np.split(hw @ inner["recurrent_kernel"] + inner["bias"], 4, axis=1)
        cw = sigmoid(f) * cw + sigmoid(i) * np.tanh(g)
        hw = sigmoid(o) * np.tanh(cw)
    close((c, h), (cw, hw))


def test_heads_of_an_slstm_connect_only_their_own_units():
    cell = SLSTM(H, heads=2)
    params, x = random_params(cell), data(2, B, T, D)
    assert params["recurrent_kernel"].shape == (2, H // 2, 2 * H)
    dense = np.zeros((H, 4, H), np.float32)
    for head, block in enumerate(params["recurrent_kernel"]):
        part = slice(head * H // 2, (head + 1) * H // 2)
        dense[part, :, part] = block.reshape(H // 2, 4, H // 2)
    whole = {**params, "recurrent_kernel": dense.reshape(1, H, 4 * H)}
    run = jax.jit(apply, static_argnums=0)
    close(run(cell, params, x), run(SLSTM(H), whole, x))
    with pytest.raises(UsageError, match="heads"):
        random_params(SLSTM(H, heads=3))


def test_an_slstm_neither_overflows_nor_forgets_exactly():
    """Input gates of exp(+-200), which float32 cannot hold: the output stays between those of the two inputs."""
    cell = SLSTM(H)
    params = jax.tree.map(np.zeros_like, random_params(cell))
    params["input"]["kernel"][0, :H] = 1.0  # the first input is the logarithm of the input gate
    params["input"]["kernel"][1, 2 * H : 3 * H] = 1.0  # the second goes to the candidate
    params["input"]["bias"][H : 2 * H] = 30.0  # forget nothing
    x = np.array([[[200, 2, 0], [-200, -2, 0], [200, -2, 0]], [[-200, 2, 0], [-200, -2, 0], [200, -2, 0]]], np.float32)

    def total(params):
        ys = apply(cell, params, x)[1]
        return jnp.sum(ys), ys

    (_, ys), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    close(2 * ys[:, :, 0], np.tanh(2) * np.array([[1, 1, 0], [0, 0, -1]]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
