"""Data parallelism: the numbers of one device, and the same bits every time."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, MinGRU
from jaxgen.models import GriffinBlock, LanguageModel
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.collectives import share_work, sum_over_devices
from jaxgen.training.data_parallel import (
    data_parallel_size,
    full_sharding,
    fully_shard_train_step,
    make_mesh,
    shard_eval_step,
    shard_state,
    shard_train_steps,
    unreplicate,
)
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.step import create_state, eval_step, train_steps
from jaxgen.types import Batch

V, B, T, K = 7, 4, 5, 3
KEY = jax.random.key(1, impl="threefry2x32")
OPTIMIZER = make_optimizer("sgd", optax.constant_schedule(0.5), clip=0.5, options={"momentum": 0.9})
TASKS = {
    "lstm": LanguageTask(LanguageModel(V, hidden=6, dropout=0.3, embed_dropout=0.2)),
    "noise inside": LanguageTask(
        LanguageModel(
            V, hidden=6, embed_dropout=0.2, locked_dropout=True, recurrent_dropout=0.2, zoneout=0.3, weight_dropout=0.3
        )
    ),
    "blocks": LanguageTask(
        LanguageModel(V, (GRU, MinGRU), hidden=6, layers=2, dropout=0.3, zoneout=0.3, block=GriffinBlock)
    ),
    "tied, of Flax": LanguageTask(LanguageModel(V, nn.GRUCell, hidden=6, dropout=0.3, tie=True)),
}
pytestmark = pytest.mark.skipif("jax.local_device_count() < 2", reason="needs two devices")


def fresh(task):
    return jax.jit(partial(create_state, task, OPTIMIZER, rows=B))(KEY)


def batches():
    """Rows that end and begin anew at places of their own, one of them empty."""
    draw = np.random.default_rng(2)
    ids = draw.integers(0, V, (K, B, T + 1)).astype(np.int32)
    mask = np.arange(T) < draw.integers(0, T + 1, (K, B, 1))
    mask[:, 1] = False
    return Batch(ids[..., :-1], ids[..., 1:], draw.random((K, B, T)) < 0.2, mask)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def spread(task):
    return jax.jit(shard_train_steps(task, OPTIMIZER, make_mesh(2))), shard_state(make_mesh(2), fresh(task))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "name", ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != "lstm")]
)
def test_micro_batches_take_the_steps_of_the_whole_batch(name, devices):
    task = TASKS[name]
    whole = jax.jit(partial(train_steps, task, OPTIMIZER))(KEY, fresh(task), batches(), K)
    if devices == 1:
        parts = jax.jit(partial(train_steps, task, OPTIMIZER, accumulate=4))(KEY, fresh(task), batches(), K)
    else:
        steps = jax.jit(shard_train_steps(task, OPTIMIZER, make_mesh(2), accumulate=2))
        parts = steps(KEY, shard_state(make_mesh(2), fresh(task)), batches(), K)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), host(parts), host(whole))


@pytest.mark.parametrize(
    "name", ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != "lstm")]
)
def test_two_devices_take_the_steps_of_one(name):
    task = TASKS[name]
    alone = jax.jit(partial(train_steps, task, OPTIMIZER))(KEY, fresh(task), batches(), K)
    steps, state = spread(task)
    together = steps(KEY, state, batches(), K)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), host(together), host(alone))
    again = steps(KEY, state, batches(), K)
    jax.tree.map(np.testing.assert_array_equal, host(again), host(together))


def test_a_step_exchanges_once():
    steps, state = spread(TASKS["lstm"])
    assert steps.lower(KEY, state, batches(), K).as_text().count("stablehlo.all_reduce") == 1


def test_numbers_of_several_types_are_summed_in_one_exchange_and_keep_their_types():
    def total(tree):
        return sum_over_devices(jax.tree.map(lambda a: jax.lax.pcast(a, "rows", to="varying"), tree), "rows")

    whole = jax.sharding.PartitionSpec()
    summed = jax.jit(jax.shard_map(total, mesh=make_mesh(2), in_specs=whole, out_specs=whole))
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.float32(0.1)}
    with jax.numpy_dtype_promotion("strict"):
        got = summed(tree)
        assert summed.lower(tree).as_text().count("stablehlo.all_reduce") == 1
    assert {name: leaf.dtype.name for name, leaf in got.items()} == {"a": "bfloat16", "b": "float32"}
    np.testing.assert_array_equal(got["a"].astype(jnp.float32), [0, 2, 4])
    np.testing.assert_allclose(got["b"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_device_does_a_part_of_shared_work_and_has_all_results(number):
    def results(x):
        return share_work([partial(jnp.multiply, x, i + 1) for i in range(number)], range(number), "rows")

    whole = jax.sharding.PartitionSpec()
    shared = jax.jit(jax.shard_map(results, mesh=make_mesh(2), in_specs=whole, out_specs=whole))
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(shared(x), [(i + 1) * x for i in range(number)])
    assert shared.lower(x).as_text().count("stablehlo.multiply") == number


def test_two_devices_share_the_matrices_of_muon_and_take_the_steps_of_one():
    task, optimizer = TASKS["lstm"], make_optimizer("muon", optax.constant_schedule(0.1), options={"refresh": 2})
    state = jax.jit(partial(create_state, task, optimizer, rows=B))(KEY)
    alone = jax.jit(partial(train_steps, task, optimizer))(KEY, state, batches(), K)
    steps = jax.jit(shard_train_steps(task, optimizer, make_mesh(2)))
    together = steps(KEY, shard_state(make_mesh(2), state), batches(), K)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), host(together), host(alone))


@pytest.mark.parametrize(
    ("name", "accumulate"), [("lstm", 1), *(pytest.param(name, 2, marks=pytest.mark.slow) for name in TASKS)]
)
def test_devices_that_each_store_a_share_of_the_parameters_take_the_steps_of_one(name, accumulate):
    task, mesh = TASKS[name], make_mesh(2)
    step = jax.jit(fully_shard_train_step(task, OPTIMIZER, mesh, accumulate), donate_argnums=1)
    state = jax.device_put(fresh(task), full_sharding(mesh, fresh(task)))
    for k in range(K):
        state, _ = step(KEY, state, jax.tree.map(lambda field, k=k: field[k], batches()))
    alone, _ = jax.jit(partial(train_steps, task, OPTIMIZER))(KEY, fresh(task), batches(), K)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), host(state), host(alone))
    for stored in (state.params, state.opt_state):
        leaves = [leaf for leaf in jax.tree.leaves(stored) if any(size % 2 == 0 for size in leaf.shape)]
        assert leaves
        assert all(leaf.addressable_data(0).size == leaf.size // 2 for leaf in leaves)


def test_two_devices_evaluate_as_one():
    task = TASKS["lstm"]
    batch, state = jax.tree.map(lambda field: field[0], batches()), fresh(task)
    alone = jax.jit(partial(eval_step, task))(state.params, state.carry, batch)
    together = jax.jit(shard_eval_step(task, make_mesh(2)))(state.params, state.carry, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), host(together), host(alone))


def test_all_devices_hold_the_same_weights_after_training_and_one_copy_can_be_had():
    steps, state = spread(TASKS["lstm"])
    params = steps(KEY, state, batches(), K)[0].params
    for leaf, one in zip(jax.tree.leaves(params), jax.tree.leaves(unreplicate(params))):
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, one)
        assert len(one.devices()) == 1


@pytest.mark.parametrize(
    ("rows", "there", "devices"),
    [(64, 2, 2), (15, 2, 1), (14, 2, 1), (16, 2, 2), (64, 16, 8), (50, 4, 2), (45, 8, 5), (64, 1, 1), (7, 8, 1)],
)
def test_the_rule_takes_the_largest_divisor_that_leaves_each_device_enough_rows(rows, there, devices):
    assert data_parallel_size(rows, there) == devices


def test_a_batch_with_many_parameters_for_each_of_its_tokens_stays_on_one_device():
    assert data_parallel_size(64, 2, load=100.0) == 2
    assert data_parallel_size(64, 2, load=3_900.0) == 1
