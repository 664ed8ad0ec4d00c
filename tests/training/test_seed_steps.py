"""Steps of several runs in one call are the steps of each run alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen.data.batches import Tokens, make_batches
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.training.data_parallel import make_mesh
from jaxgen.training.seeds import seed_train_steps
from jaxgen.training.step import create_state, train_steps
from jaxgen.training.windows import HOST_BATCHES, DeviceText, Windows

B, T, SEEDS = 4, 6, (3, 5)


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def both_ways(cell, number, mesh=None, shares_text=True, dtype=jnp.float32):
    """The losses [seed, step] and the parameters of ``number`` steps, each seed alone and all together."""
    ids = np.random.default_rng(0).integers(3, 20, 400)
    task = jaxgen.LanguageTask(jaxgen.LanguageModel(20, jaxgen.CELLS[cell], hidden=8, dropout=0.2))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    sources = [make_batches("stream", Tokens(ids, None, 400, 400), B, T, seed) for seed in SEEDS]
    given = [InputPipeline(each, number, 1, B, ProcessGroup()).next(0, number) for each in sources]
    keys = [jax.random.key(seed, impl="threefry2x32") for seed in SEEDS]
    begin = jax.jit(partial(create_state, task, optimizer, rows=B))
    states = [jax.tree.map(partial(to, dtype), begin(key)) for key in keys]
    read = DeviceText(None, 0) if isinstance(given[0], Windows) else HOST_BATCHES
    alone = jax.jit(partial(train_steps, task, optimizer, read=read))
    apart = [alone(key, state, batches, number) for key, state, batches in zip(keys, states, given)]
    index = stack([each.window_index for each in given])
    batches = Windows(given[0].text, index, given[0].offsets) if shares_text else stack(given)
    steps = seed_train_steps(task, optimizer, read, shares_text, mesh)
    together = jax.jit(lambda *args: steps(*args, None))(jnp.stack(keys), stack(states), batches, number)
    losses = (stack([log.loss for _, log in apart]), together[1].loss)
    return losses, (stack([state.params for state, _ in apart]), together[0].params)


def to(dtype, leaf):
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@pytest.mark.parametrize("shares_text", [True, False])
def test_twenty_steps_in_float32_agree_to_1e_5(shares_text):
    losses, params = both_ways("elman", 20, shares_text=shares_text)
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=0), *params)
    assert not np.allclose(losses[0][0], losses[0][1], atol=1e-3)  # the seeds differ


@pytest.mark.parametrize("cell", [name for name in jaxgen.CELLS if name != "lru"])  # which is not for float64
def test_two_hundred_steps_in_float64_agree_to_1e_8(cell):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        losses, params = both_ways(cell, 200, dtype=jnp.float64)
        np.testing.assert_allclose(*losses, atol=1e-8, rtol=0)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-8, rtol=0), *params)


@pytest.mark.skipif("jax.local_device_count() < 2")
def test_runs_that_are_spread_over_devices_are_the_same_runs():
    losses, params = both_ways("elman", 20, make_mesh(2))
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=0), *params)
