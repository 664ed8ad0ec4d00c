"""The training and evaluation steps: pure functions; the caller applies jit and donation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Float, Int, PyTree

from jaxgen.cells.noise import is_recurrent
from jaxgen.training.collectives import sum_over_devices
from jaxgen.training.schedules import Rates
from jaxgen.training.task import Totals, Trainable
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches
from jaxgen.types import Array, Carry, Key, Objective, Params, RowKeys


class TrainState(NamedTuple):
    """Everything a resumed run needs from the device. Keys are not part of it: they follow from (seed, step).

    Example:
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(30, jaxgen.Elman, hidden=8))
        >>> jaxgen.create_state(task, optax.adam(1e-3), jax.random.key(0), rows=2)._fields
        ('step', 'params', 'opt_state', 'carry')
    """

    step: Int[Array, ""]  # number of steps taken
    params: Params
    opt_state: optax.OptState
    carry: Carry  # the recurrent state passed from one window to the next

    def __repr__(self) -> str:
        parameters = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        known = not isinstance(self.step, jax.core.Tracer) and not getattr(self.step, "is_deleted", bool)()
        return f"<jaxgen.TrainState: {f'step {self.step}, ' if known else ''}{parameters:,} parameters>"


def create_state(task: Trainable, optimizer: optax.GradientTransformation, key: Key, rows: int) -> TrainState:
    """The initial state of ``task`` for batches of ``rows`` rows.

    Example:
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(30, jaxgen.Elman, hidden=8))
        >>> state = jaxgen.create_state(task, optax.adam(1e-3), jax.random.key(0), rows=2)
        >>> int(state.step)
        0
    """
    with jax.threefry_partitionable(True):  # the user's JAX settings must not change the result
        params = jax.jit(task.init)(key)  # one compilation instead of one for each operation
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), task.initial_carry(rows))


class StepMetrics(NamedTuple):
    """Scalars of one step (or, stacked, of several)."""

    loss: Float[Array, "..."]  # mean negative log-likelihood of the batch, nats per target
    grad_norm: Float[Array, "..."]  # global norm before clipping
    targets: Float[Array, "..."]  # how many targets count


#: Folded into the key of a step for what all rows share: no row has this number.
NO_ROW = 2**32 - 1


def at_step(key: Key, step: Int[Array, ""] | int) -> Key:
    """The key of a step."""
    return jax.random.fold_in(key, step)


def row_keys(key: Key, step: Int[Array, ""] | int, rows: int, first: Int[Array, ""] | int = 0) -> RowKeys:
    """One dropout key for each row, counted from ``first``: a function of (seed, step, row) only."""
    here = at_step(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(here, row))(first + jnp.arange(rows))


def drop_weights(params: Params, rate: float, key: Key) -> Params:
    """Dropout on the entries of every recurrent matrix: DropConnect in the form of Merity et al. (2018,
    arXiv:1708.02182, section 2), one mask for all rows and time steps.

    The rest of the cell needs to know nothing of it, because the matrices are changed before they are used.
    """

    def drop(path: tuple[Any, ...], leaf: Array, key: Key) -> Array:
        if not is_recurrent(path):
            return leaf
        keep = jax.random.bernoulli(key, 1.0 - rate, leaf.shape)
        return jnp.where(keep, leaf / (1.0 - rate), jnp.zeros_like(leaf))

    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [drop(path, leaf, k) for (path, leaf), k in zip(leaves, keys)])


def train_step(
    task: Trainable,
    optimizer: optax.GradientTransformation,
    key: Key,
    state: TrainState,
    batch: PyTree,
    axis: str | None = None,
    rates: Rates | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, StepMetrics]:
    """One update of the parameters.

    Minimises the mean of ``nll``, or the ``objective`` if the task's totals have one; reports the mean of ``nll``, as
    evaluations do. No gradient flows into the incoming carry (truncated backpropagation through time, Williams & Peng
    1990).

    Args:
        task: static.
        optimizer: static.
        key: seeds dropout, together with the step and the row; that of weights with the step alone.
        state: the state before the step.
        batch: what ``task.loss`` reads, a pytree of arrays with B rows each.
        axis: inside ``shard_map``, the mesh axis over which the rows of ``batch`` and of the carry are sharded. The
            update is that of all rows, and the same on every device.
        rates: what the learning rate of an optimizer with a named schedule depends on (``make_optimizer``).
        accumulate: static. The rows are split into this many micro-batches, whose gradients are computed one after the
            other and summed: the update is that of the whole batch, up to the order of float additions, with the
            memory of one micro-batch. It must divide the number of rows (on each device).

    Returns:
        The state after the step, and its metrics.

    Example:
        >>> corpus, optimizer, key = jaxgen.prepare(["book.txt"]), optax.adam(1e-3), jax.random.key(0)
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(corpus.tokenizer.vocab_size, jaxgen.Elman, hidden=8))
        >>> batches = jaxgen.make_batches("stream", corpus.train, batch_size=2, seq_len=8, seed=0)
        >>> state = jaxgen.create_state(task, optimizer, key, rows=2)
        >>> state, metrics = jax.jit(partial(jaxgen.train_step, task, optimizer, key))(state, batches.batch(0))
        >>> int(state.step), bool(metrics.loss > 0)
        (1, True)
    """
    carry, sums = sum_gradients(task, key, state.step, state.params, state.carry, batch, axis, accumulate)
    return apply_gradients(optimizer, state._replace(carry=carry), sums, axis, rates)


class Sums(NamedTuple):
    """What a batch adds up to, over all devices."""

    weight: Float[Array, ""]  # by which the gradients are divided
    nll: Float[Array, ""]
    targets: Float[Array, ""]
    grads: Params


def sum_gradients(
    task: Trainable,
    key: Key,
    step: Int[Array, ""],
    params: Params,
    carry: Carry,
    batch: PyTree,
    axis: str | None = None,
    accumulate: int = 1,
) -> tuple[Carry, Sums]:
    """The first half of ``train_step``: the carry after ``batch``, and the sums of losses and gradients."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    first: Array | int = 0
    if axis is not None:
        # Each device differentiates its own copy. Differentiating the replicated parameters would sum the gradients
        # over devices leaf by leaf, and the mean over devices below would then count them twice.
        params = jax.tree.map(lambda a: lax.pcast(a, axis, to="varying"), params)
        # The key follows from the place in the whole batch, so dropout does not depend on the number of devices.
        first = lax.axis_index(axis) * rows
    keys = row_keys(key, step, rows, first) if task.is_random else None

    def summed_loss(
        params: Params, carry: Carry, batch: PyTree, keys: RowKeys | None
    ) -> tuple[Array, tuple[Carry, tuple[Array, Array, Array]]]:
        if rate := getattr(task, "weight_dropout", 0.0):
            params = drop_weights(params, rate, jax.random.fold_in(at_step(key, step), NO_ROW))
        carry, totals = task.loss(params, carry, batch, keys)
        aim = getattr(totals, "objective", Objective(totals.nll, totals.targets))
        return aim.loss, (carry, (aim.weight, totals.nll, totals.targets))

    def sums_of(carry: Carry, batch: PyTree, keys: RowKeys | None) -> tuple[Carry, Sums]:
        (_, (carry, totals)), grads = jax.value_and_grad(summed_loss, has_aux=True)(params, carry, batch, keys)
        weight, nll, count = totals
        return carry, Sums(weight, nll, count, grads)

    with jax.threefry_partitionable(True):  # the user's JAX settings must not change dropout
        parts = carry, batch, keys
        carry, sums = sums_of(*parts) if accumulate == 1 else _in_turn(sums_of, parts, accumulate, axis)
    return carry, sums if axis is None else sum_over_devices(sums, axis)


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    sums: Sums,
    axis: str | None = None,
    rates: Rates | None = None,
) -> tuple[TrainState, StepMetrics]:
    """The second half of ``train_step``: the update, for a ``state`` that has the new carry already."""
    weight, nll, count, grads = sums
    share = 1 / jnp.maximum(weight, 1.0)
    grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
    given = {"axis": axis} if rates is None else {"axis": axis, "rates": rates}
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, state.opt_state, state.params, **given)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(nll / jnp.maximum(count, 1.0), optax.tree.norm(grads), count)
    return TrainState(state.step + 1, params, opt_state, state.carry), metrics


def _in_turn(
    sums_of: Callable[..., tuple[Carry, PyTree]], rows: PyTree, number: int, axis: str | None
) -> tuple[Carry, PyTree]:
    """Apply ``sums_of`` to ``number`` equal parts of the rows; return their carries joined and the sums of the rest."""
    parts = jax.tree.map(lambda a: jnp.asarray(a).reshape(number, -1, *a.shape[1:]), rows)
    _, like = jax.eval_shape(sums_of, *jax.tree.map(lambda a: a[0], parts))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    if axis is not None:  # each device has sums of its own
        nothing = jax.tree.map(lambda a: lax.pcast(a, axis, to="varying"), nothing)

    def add(sums: PyTree, part: PyTree) -> tuple[PyTree, Carry]:
        carry, more = sums_of(*part)
        return jax.tree.map(jnp.add, sums, more), carry

    sums, carries = lax.scan(add, nothing, parts)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), carries), sums


def train_steps(
    task: Trainable,
    optimizer: optax.GradientTransformation,
    key: Key,
    state: TrainState,
    batches: PyTree,
    count: Array,
    rates: Rates | None = None,
    axis: str | None = None,
    read: HostBatches | DeviceText = HOST_BATCHES,
    accumulate: int = 1,
) -> tuple[TrainState, StepMetrics]:
    """Train on the first ``count`` of several batches, in one call.

    Args:
        task: static.
        optimizer: static.
        key: as in ``train_step``.
        state: the state before the steps.
        batches: what ``read`` turns into batches: stacked batches, or ``Windows`` of a text.
        count: how many batches to use. It is traced, so its value does not recompile.
        rates: as in ``train_step``; traced too.
        axis: as in ``train_step``.
        read: how to get a batch from ``batches``.
        accumulate: as in ``train_step``.

    Returns:
        The state after the steps, and the metrics of each batch, zero beyond ``count``.

    Example:
        >>> corpus, optimizer, key = jaxgen.prepare(["book.txt"]), optax.adam(1e-3), jax.random.key(0)
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(corpus.tokenizer.vocab_size, jaxgen.Elman, hidden=8))
        >>> batches = jaxgen.make_batches("stream", corpus.train, batch_size=2, seq_len=8, seed=0)
        >>> stacked = jax.tree.map(lambda *rows: np.stack(rows), *map(batches.batch, range(3)))
        >>> state = jaxgen.create_state(task, optimizer, key, rows=2)
        >>> state, metrics = jax.jit(partial(jaxgen.train_steps, task, optimizer, key))(state, stacked, 3)
        >>> int(state.step), metrics.loss.shape
        (3, (3,))
    """
    length = read.count(batches)
    if length == 1:  # without a loop, in which XLA's CPU backend computes convolutions twenty times slower
        state, metrics = train_step(task, optimizer, key, state, read(batches, 0), axis, rates, accumulate)
        return state, jax.tree.map(lambda one: one[None], metrics)
    empty = StepMetrics(*(jnp.zeros(length, jnp.float32) for _ in StepMetrics._fields))

    def body(i: Array, loop: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
        state, log = loop
        state, metrics = train_step(task, optimizer, key, state, read(batches, i), axis, rates, accumulate)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one.astype(all_.dtype)), log, metrics)

    return lax.fori_loop(0, count, body, (state, empty))


def eval_step(
    task: Trainable, params: Params, carry: Carry, batch: PyTree, axis: str | None = None
) -> tuple[Carry, Totals]:
    """The carry after an evaluation batch and its totals. ``axis`` as in ``train_step``."""
    carry, totals = task.evaluate(params, carry, batch)
    return carry, totals if axis is None else sum_over_devices(totals, axis)
