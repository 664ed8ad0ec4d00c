"""Flax NNX: jaxgen's modules in NNX, and NNX cells in jaxgen's models, give the same values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxgen import (
    CELLS,
    GRU,
    LSTM,
    LanguageModel,
    LanguageTask,
    Stack,
    create_state,
    make_optimizer,
    train_steps,
    unroll,
)
from jaxgen.types import Batch

B, T, D, H, V = 2, 5, 3, 4, 7


class Gate(nnx.Module):
    """h' = (1 - f) h + f tanh(n), an NNX cell of one's own."""

    def __init__(self, inputs: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.gates = nnx.Linear(inputs + features, 2 * features, rngs=rngs)
        self.decay = nnx.Param(jnp.full(features, 0.5))

    def __call__(self, carry, x):
        f, n = jnp.split(self.gates(jnp.concatenate([x, carry], axis=-1)), 2, axis=-1)
        f = nnx.sigmoid(f) * self.decay[None]
        h = (1 - f) * carry + f * jnp.tanh(n)
        return h, h


class NNXCell(nn.RNNCellBase):
    """A cell of ``docs/nnx.md`` around an NNX class."""

    features: int
    kind: type[nnx.Module] = Gate

    @nn.compact
    def __call__(self, carry, x):
        return nnx.bridge.ToLinen(self.kind, args=(x.shape[-1], self.features), name="nnx")(carry, x)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


class NNXGRU(NNXCell):
    kind: type[nnx.Module] = nnx.GRUCell


def close(ours, theirs) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def plain(state: nnx.State):
    """A state of NNX as the nested dictionary of Linen."""
    return nnx.to_pure_dict(state)


def test_a_cell_and_layers_in_nnx_compute_and_learn_what_they_do_in_linen():
    stack, x = Stack([LSTM(H), GRU(H)]), jax.random.normal(jax.random.key(1), (T, B, D))
    carries = [cell.initialize_carry(jax.random.key(0), (B, D)) for cell in stack.cells]
    module = nnx.bridge.ToNNX(stack, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(module, x, carries)
    params = plain(nnx.state(module, nnx.Param))
    ours = jax.jit(jax.value_and_grad(lambda p, x: (stack.apply({"params": p}, x, carries)[1] ** 2).sum()))
    theirs = nnx.jit(nnx.value_and_grad(lambda m, x: (m(x, carries)[1] ** 2).sum()))
    value, grads = theirs(module, x)
    close(ours(params, x), (value, plain(grads)))
    assert set(params) == {"cells_0", "cells_1"}


@pytest.mark.parametrize("face", [NNXCell, NNXGRU])
def test_an_nnx_cell_in_unroll_is_a_loop_over_its_steps(face):
    """Values and gradients against a loop over the NNX module itself."""
    cell, x = face(H), jax.random.normal(jax.random.key(1), (B, T, D))
    start = jax.random.normal(jax.random.key(2), (B, H))
    reset = jnp.zeros((B, T), bool).at[1, 2].set(True)
    variables = nn.RNN(cell).init(jax.random.key(0), x)["params"]["cell"]
    module = cell.kind(D, H, rngs=nnx.Rngs(3))
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, variables["nnx"])
    nnx.update(module, state)

    def ours(params, x):
        return nn.apply(lambda cell: unroll(cell, x, start, reset=reset), cell)({"params": params})

    def loop(module, x):
        carry, out = start, []
        for t in range(T):
            carry, y = module(jnp.where(reset[:, t, None], 0.0, carry), x[:, t])
            out.append(y)
        return carry, jnp.stack(out, axis=1)

    def loss(run):
        return lambda weights, x: (run(weights, x)[1] ** 2).sum()

    close(jax.jit(ours)(variables, x), nnx.jit(loop)(module, x))
    (dparams, dx) = jax.jit(jax.grad(loss(ours), argnums=(0, 1)))(variables, x)
    (dmodule, dx_loop) = nnx.jit(nnx.grad(loss(loop), argnums=(0, 1)))(module, x)
    close((dparams["nnx"], dx), (plain(dmodule), dx_loop))


def test_a_language_model_of_nnx_cells_carries_its_state_and_shows_its_parameters():
    model = LanguageModel(V, cell=NNXCell, hidden=H, layers=2)
    tokens = jax.random.randint(jax.random.key(1), (B, 2 * T), 0, V)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    gates = params["params"]["stack"]["cells_1"]["nnx"]
    assert jax.tree.map(jnp.shape, gates) == {
        "decay": (H,),
        "gates": {"bias": (2 * H,), "kernel": (2 * H, 2 * H)},
    }
    apply = jax.jit(model.apply)
    carry, whole = apply(params, tokens)
    middle, first = apply(params, tokens[:, :T])
    last, second = apply(params, tokens[:, T:], middle)
    close((carry, whole), (last, jnp.concatenate([first, second], axis=1)))
    # Decoding: the same function, one token at a time.
    state, logits = apply(params, tokens[:, :1])
    for t in range(1, 2 * T):
        state, logits = apply(params, tokens[:, t : t + 1], state)
    close((carry, whole[:, -1:]), (state, logits))


def test_a_language_model_of_nnx_cells_learns_a_text_of_three_letters(monkeypatch):
    monkeypatch.setitem(CELLS, "nnx", NNXCell)
    task = LanguageTask.build(vocab_size=3, cell="nnx", cell_options={}, hidden=8, layers=1)
    optimizer, key, steps = make_optimizer("adamw", optax.constant_schedule(0.03)), jax.random.key(0), 60
    ids = np.broadcast_to((np.arange(steps * T + 1) % 3).astype(np.int32), (B, steps * T + 1))
    windows = [ids[:, i : i + steps * T].reshape(B, steps, T).swapaxes(0, 1) for i in (0, 1)]
    batches = Batch(*windows, np.zeros((steps, B, T), bool), np.ones((steps, B, T), bool))

    def train(batches):
        return train_steps(task, optimizer, key, create_state(task, optimizer, key, B), batches, steps)

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam computes `float ** int32`
        _, log = jax.jit(train)(batches)
    assert log.loss[0] > 0.9
    assert log.loss[-1] < 0.3
