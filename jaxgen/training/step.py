"""The training and evaluation steps: pure functions; the caller applies jit and donation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches
from jaxgen.types import Array, Carry, Key, Objective, Params


class TrainState(NamedTuple):
    """Everything a resumed run needs from the device. Keys are no part of it: they follow from (seed, step)."""

    step: Array  # int32, number of steps taken
    params: Params
    opt_state: Any
    carry: Carry  # the recurrent state handed from one window to the next


def create_state(task: Any, optimizer: optax.GradientTransformation, key: Key, rows: int) -> TrainState:
    """A fresh state for ``task`` with ``rows`` rows a batch."""
    with jax.threefry_partitionable(True):  # a user's JAX settings must not change what a seed means
        params = jax.jit(task.init)(key)  # one compilation instead of one an operation
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), task.initial_carry(rows))


class StepMetrics(NamedTuple):
    """Scalars of one step (or, stacked, of several)."""

    loss: Array  # mean negative log-likelihood of the batch, nats a target
    grad_norm: Array  # global norm before clipping
    targets: Array  # how many


def row_keys(key: Key, step: Array, rows: int, first: Array | int = 0) -> Key:
    """One dropout key a row, the rows counted from ``first``: a function of (seed, step, row) alone."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(first + jnp.arange(rows))


def train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    key: Key,
    state: TrainState,
    batch: Any,
    axis: str | None = None,
) -> tuple[TrainState, StepMetrics]:
    """One update. ``task`` and ``optimizer`` are static, ``key`` seeds dropout.

    ``batch`` is what the task's ``loss`` reads, a tree of arrays with B rows each. The mean of ``nll`` is minimised, or
    the ``objective`` if the task's totals have one; reported is the mean of ``nll``, which an evaluation reports too.

    No gradient flows into the carry that comes in (truncated backpropagation through time, Williams & Peng 1990).

    Inside ``shard_map``, ``axis`` names the mesh axis over which the rows of ``batch`` and of the carry are spread:
    the update is that of all rows together, and the same on every device.
    """
    rows, params = jax.tree.leaves(batch)[0].shape[0], state.params
    first: Array | int = 0
    if axis is not None:
        # Each device differentiates its own copy; differentiating the shared one would sum the gradients by itself,
        # leaf by leaf, and a mean over devices after that would count them twice.
        params = jax.tree.map(lambda a: lax.pcast(a, axis, to="varying"), params)
        # Keyed by its place in the whole batch, a row drops the same units anywhere.
        first = lax.axis_index(axis) * rows
    keys = row_keys(key, state.step, rows, first) if task.is_random else None

    def summed_loss(params: Params) -> tuple[Array, Any]:
        carry, totals = task.loss(params, state.carry, batch, keys)
        aim = getattr(totals, "objective", Objective(totals.nll, totals.targets))
        return aim.loss, (carry, aim.weight, totals.nll, totals.targets)

    with jax.threefry_partitionable(True):  # a user's JAX settings must not change what a seed drops
        (_, (carry, weight, nll, count)), grads = jax.value_and_grad(summed_loss, has_aux=True)(params)
    if axis is not None:
        weight, nll, count, grads = _summed((weight, nll, count, grads), axis)
    share = 1 / jnp.maximum(weight, 1.0)
    grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(nll / jnp.maximum(count, 1.0), optax.tree.norm(grads), count)
    return TrainState(state.step + 1, params, opt_state, carry), metrics


def _summed(tree: Any, axis: str) -> Any:
    """The sum over devices, in one exchange: two that wait for each other's threads can stop for ever on a CPU."""
    with jax.numpy_dtype_promotion("standard"):  # of several types the widest travels
        flat, restore = ravel_pytree(tree)
    return restore(lax.psum(flat, axis))


def train_steps(
    task: Any,
    optimizer: optax.GradientTransformation,
    key: Key,
    state: TrainState,
    batches: Any,
    count: Array,
    axis: str | None = None,
    read: HostBatches | DeviceText = HOST_BATCHES,
) -> tuple[TrainState, StepMetrics]:
    """The first ``count`` of K ``batches``, in one call: a batch whose leaves have K in front, or ``Windows`` that
    ``read`` turns into batches.

    ``count`` is traced, so that one compilation serves every number of steps up to K; the metrics are [K], zero
    beyond ``count``.
    """
    length = read.count(batches)
    if length == 1:  # no loop: inside one, XLA's CPU backend computes convolutions twenty times slower
        state, metrics = train_step(task, optimizer, key, state, read(batches, 0), axis)
        return state, jax.tree.map(lambda one: one[None], metrics)
    empty = StepMetrics(*(jnp.zeros(length, jnp.float32) for _ in StepMetrics._fields))

    def body(i: Array, loop: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
        state, log = loop
        state, metrics = train_step(task, optimizer, key, state, read(batches, i), axis)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), log, metrics)

    return lax.fori_loop(0, count, body, (state, empty))


def eval_step(task: Any, params: Params, carry: Carry, batch: Any, axis: str | None = None) -> tuple[Carry, Any]:
    """What ``task.evaluate`` sums up over one batch, and the carry it ends in. ``axis`` as in ``train_step``."""
    carry, totals = task.evaluate(params, carry, batch)
    return carry, totals if axis is None else _summed(totals, axis)
