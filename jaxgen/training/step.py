"""The training and evaluation steps: pure functions; the caller applies jit and donation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxgen.training.state import TrainState
from jaxgen.types import Array, Batch, Carry, Key, Params


class StepMetrics(NamedTuple):
    """Scalars of one step (or, stacked, of several)."""

    loss: Array  # mean negative log-likelihood of the batch, nats a target
    grad_norm: Array  # global norm before clipping
    targets: Array  # how many


def row_keys(key: Key, step: Array, rows: int) -> Key:
    """One dropout key a row: a function of (seed, step, row) alone."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(jnp.arange(rows))


def train_step(
    task: Any, optimizer: optax.GradientTransformation, key: Key, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """One update. ``task`` and ``optimizer`` are static, ``key`` seeds dropout.

    No gradient flows into the carry that comes in (truncated backpropagation through time, Williams & Peng 1990).
    """
    keys = row_keys(key, state.step, batch.tokens.shape[0]) if task.has_dropout else None

    def mean_loss(params: Params) -> tuple[Array, tuple[Carry, Array]]:
        carry, totals = task.loss(params, state.carry, batch, keys)
        return totals.nll / jnp.maximum(totals.targets, 1.0), (carry, totals.targets)

    with jax.threefry_partitionable(True):  # a user's JAX settings must not change what a seed drops
        (loss, (carry, count)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(loss, optax.tree.norm(grads), count)
    return TrainState(state.step + 1, params, opt_state, carry), metrics


def train_steps(
    task: Any, optimizer: optax.GradientTransformation, key: Key, state: TrainState, batches: Batch, count: Array
) -> tuple[TrainState, StepMetrics]:
    """The first ``count`` of the K stacked ``batches`` ([K, B, T] fields), in one call.

    ``count`` is traced, so that one compilation serves every number of steps up to K; the metrics are [K], zero
    beyond ``count``.
    """
    length = batches.tokens.shape[0]
    empty = StepMetrics(*(jnp.zeros(length, jnp.float32) for _ in StepMetrics._fields))

    def body(i: Array, loop: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
        state, log = loop
        batch = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), batches)
        state, metrics = train_step(task, optimizer, key, state, batch)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), log, metrics)

    return lax.fori_loop(0, count, body, (state, empty))


def eval_step(task: Any, params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Any]:
    """The loss totals of one batch with dropout off, and the carry it ends in."""
    return task.loss(params, carry, batch, None)
