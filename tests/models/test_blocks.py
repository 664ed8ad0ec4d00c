"""Blocks: their equations in NumPy, masks, states and gradients, and models that contain them."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jaxgen.cells import Elman
from jaxgen.models import CausalConv, GriffinBlock, ResidualBlock

B, T, H, V = 3, 7, 4, 6
#: Which steps are padding: none, a hole and a tail, all of them.
VALID = np.array([[1] * 7, [0, 1, 0, 0, 1, 1, 0], [0] * 7], bool).T
#: Resets in the middle, at the first and the last step, and in padding.
RESET = np.array([[0, 0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]], bool).T
FAST = {"xla_backend_optimization_level": 0}
draw = np.random.default_rng(0)


def normal(*shape):
    return draw.normal(size=shape).astype(np.float32)


def like(tree, scale=0.7):
    return jax.tree.map(lambda a: scale * normal(*a.shape), tree)


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def apply(module, params, *args, **kwargs):
    return module.apply({"params": params}, *args, **kwargs)


def close(got, wanted, tolerance=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, wanted)


# --- the convolution


def convolve_by_hand(params, x, tail, reset, valid, initial, timed):
    """Step by step: the last inputs in a list for each row."""
    k, ys, after = params["kernel"].shape[0], np.zeros_like(x), np.zeros_like(tail)
    for b in range(x.shape[1]):
        last = list(tail[b])
        for t in range(x.shape[0]):
            if reset[t, b]:
                last = list(initial[t, b] if timed else initial[b])
            if valid[t, b]:
                window = [*last, x[t, b]]
                ys[t, b] = sum(w * a for w, a in zip(params["kernel"], window)) + params["bias"]
                last = window[1:]
        after[b] = np.reshape(last, (k - 1, x.shape[-1]))
    return after, ys


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("width", "steps"), [(1, T), (2, T), (4, T), (4, 2), (3, 0)])
def test_the_convolution_equals_a_loop_over_steps(width, steps, reverse):
    module = CausalConv(H, width)
    params = {"kernel": normal(width, H), "bias": normal(H)}
    x, tail, per_row, per_step = normal(T, B, H), *(normal(*n, B, width - 1, H) for n in ((), (), (T,)))
    x, per_step, reset, valid = (a[:steps] for a in (x, per_step, RESET, VALID))
    flip = (lambda a: a[::-1]) if reverse else (lambda a: a)
    run = jax.jit(partial(module.apply, {"params": params}, reverse=reverse), compiler_options=FAST)
    for initial, timed in ((per_row, False), (per_step, True)):
        after, ys = run(x, tail, reset=reset, valid=valid, initial=initial)
        masks = flip(reset), flip(valid), flip(initial) if timed else initial
        wanted = convolve_by_hand(params, flip(x), tail, *masks, timed)
        close((after, np.where(valid[..., None], ys, 0)), (wanted[0], flip(wanted[1])))
    plain = convolve_by_hand(params, flip(x), tail, np.zeros_like(reset), np.ones_like(valid), None, False)
    close(run(x, tail), (plain[0], flip(plain[1])))


# --- the equations


def rms(x, p):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * p["scale"]


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def affine(x, p):
    return x @ p["kernel"] + p["bias"]


def elman_by_hand(p, x, h):
    ys = []
    for z in affine(x, p["input"]):
        h = np.tanh(z + h @ p["recurrent_kernel"])
        ys.append(h)
    return h, np.stack(ys)


def test_the_equations_of_a_residual_block():
    block = ResidualBlock(Elman, H, norm="layer", mlp=1.5, conv=0, layers=2)
    x, h = normal(T, B, H), normal(B, H)
    p = like(jax.eval_shape(block.init, jax.random.key(0), x, h)["params"])
    after, ys = elman_by_hand(p["recurrence"], layer_norm(x, p["cell_norm"]), h)
    middle = x + affine(ys, p["output"])
    wanted = middle + affine(gelu(affine(layer_norm(middle, p["mlp_norm"]), p["up"])), p["down"])
    assert p["up"]["kernel"].shape == (H, 6)
    close(apply(block, p, x, h), (after, wanted))


def test_the_equations_of_a_griffin_block_which_is_the_last():
    block = GriffinBlock(Elman, H, expand=1.5)
    x, carry = normal(T, B, H), (normal(B, 3, 6), normal(B, 6))
    p = like(jax.eval_shape(block.init, jax.random.key(0), x, carry)["params"])
    u, gate = np.split(affine(rms(x, p["cell_norm"]), p["input"]), 2, axis=-1)
    whole = np.ones((T, B), bool)
    tail, u = convolve_by_hand(p["convolution"], u, carry[0], ~whole, whole, None, False)
    state, ys = elman_by_hand(p["recurrence"], u, carry[1])
    middle = x + affine(ys * gelu(gate), p["output"])
    a, b = np.split(affine(rms(middle, p["mlp_norm"]), p["up"]), 2, axis=-1)
    assert a.shape[-1] == 3 * H
    wanted = rms(middle + affine(gelu(a) * b, p["down"]), p["final_norm"])
    close(apply(block, p, x, carry), ((tail, state), wanted))
