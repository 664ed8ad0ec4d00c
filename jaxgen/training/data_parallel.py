"""Data parallelism over the cores of a CPU or several accelerators: one all-reduce of gradients a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxgen.training.schedules import Rates
from jaxgen.training.step import StepMetrics, TrainState, apply_gradients, eval_step, sum_gradients, train_steps
from jaxgen.training.task import Task
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches, WindowIndex, Windows
from jaxgen.types import Array, ArrayLike, Carry, Key, Params

#: The mesh axis over which the rows of a batch are sharded.
BATCH_AXIS = "rows"
#: With fewer rows than this a device is idle most of the time.
MIN_ROWS_PER_DEVICE = 8
#: With more parameters than this for each token of a batch, the all-reduce takes longer than a second device saves. A
#: step took 205 ms on two cores and 176 ms on one with 3,900 parameters a token, and 31 ms and 34 ms with 730.
MAX_PARAMETERS_PER_TOKEN = 3000

_REPLICATED, _SHARDED, _SHARDED_BATCHES = PartitionSpec(), PartitionSpec(BATCH_AXIS), PartitionSpec(None, BATCH_AXIS)
# The partition specs of these structures.
_STATE = TrainState(step=_REPLICATED, params=_REPLICATED, opt_state=_REPLICATED, carry=_SHARDED)  # type: ignore[arg-type]
_INDEX = WindowIndex(start=_SHARDED_BATCHES, stop=_SHARDED_BATCHES, fresh=_SHARDED_BATCHES)  # type: ignore[arg-type]
_SHARDED_WINDOWS = Windows(_REPLICATED, _INDEX, offsets=_REPLICATED, conditions=_REPLICATED)  # type: ignore[arg-type]


def data_parallel_size(rows: int, available: int, load: float = 0.0) -> int:
    """The number of devices, of those ``available``, over which a batch of ``rows`` rows is sharded.

    The largest divisor of ``rows`` that is at most ``available`` and gives each device ``MIN_ROWS_PER_DEVICE`` or more.
    One if there is none, or if ``load``, the number of parameters for each token of a batch, is above
    ``MAX_PARAMETERS_PER_TOKEN``.
    """
    if load > MAX_PARAMETERS_PER_TOKEN:
        return 1
    fair = [n for n in range(1, available + 1) if rows % n == 0 and rows // n >= MIN_ROWS_PER_DEVICE]
    return max(fair, default=1)


def make_mesh(devices: int) -> Mesh:
    """A mesh of the first ``devices`` devices of this process."""
    return _mesh(jax.local_devices()[:devices])


def make_global_mesh(devices: int) -> Mesh:
    """A mesh of ``devices`` devices, the same number of each process, those of process 0 first."""
    each = devices // jax.process_count()
    return _mesh([d for n in range(jax.process_count()) for d in jax.local_devices(process_index=n)[:each]])


def _mesh(devices: list[jax.Device]) -> Mesh:
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shard_state(mesh: Mesh, state: TrainState) -> TrainState:
    """``state`` on the devices of ``mesh``: the carry sharded, everything else replicated."""
    everything_else = replicate(mesh, state._replace(carry=None))
    return everything_else._replace(carry=_placed(mesh, _SHARDED, state.carry))


def shard_evaluation(mesh: Mesh, params: Params, carry: Carry) -> tuple[Params, Carry]:
    """What an evaluation needs on the devices of ``mesh``: ``params`` replicated, ``carry`` sharded."""
    return replicate(mesh, params), _placed(mesh, _SHARDED, carry)


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Shard the rows of a batch that every process has whole."""
    return _placed(mesh, _SHARDED, batch)


def shard_windows(mesh: Mesh, windows: Windows) -> Windows:
    """Shard the window indices of a text that is already replicated."""
    return windows._replace(window_index=_placed(mesh, _SHARDED_BATCHES, windows.window_index))


def shard_local_batches(mesh: Mesh, batches: PyTree) -> PyTree:
    """Stacked batches, of which each process has only its own rows, as global arrays."""
    where = NamedSharding(mesh, _SHARDED_BATCHES)
    return jax.tree.map(lambda share: jax.make_array_from_process_local_data(where, share), batches)


def shard_local_rows(mesh: Mesh, share: PyTree) -> jax.Array:
    """An array with a row for each device of ``mesh``, of which each process has those of its devices."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, _SHARDED), share)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is replicated over ``mesh``."""
    return NamedSharding(mesh, _REPLICATED)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """``tree`` on every device of ``mesh``."""
    return _placed(mesh, _REPLICATED, tree)


def _placed(mesh: Mesh, how: PartitionSpec, tree: PyTree) -> PyTree:
    """Place ``tree``, which every process has whole, on the devices of ``mesh``, without communication."""
    where = NamedSharding(mesh, how)
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def put(leaf: ArrayLike) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return jax.tree.map(put, tree)


def shard_train_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    read: HostBatches | DeviceText = HOST_BATCHES,
    accumulate: int = 1,
) -> Callable:
    """``train_steps`` over the devices of ``mesh``: ``(key, state, batches, count, rates=None) -> (state, metrics)``.

    The number of rows must be divisible by the number of devices. The results equal those of one device up to the
    order of float additions, and are reproducible bit for bit. On a CPU no two such functions may be in flight at once:
    wait for the results of one before calling the next (``jaxgen.jitted.one_at_a_time``).
    """
    batches = _SHARDED_WINDOWS if isinstance(read, DeviceText) else _SHARDED_BATCHES
    steps = jax.shard_map(
        partial(train_steps, task, optimizer, axis=BATCH_AXIS, read=read, accumulate=accumulate),
        mesh=mesh,
        in_specs=(_REPLICATED, _STATE, batches, _REPLICATED, _REPLICATED),
        out_specs=(_STATE, _REPLICATED),
    )

    def sharded_train_steps(
        key: Key, state: TrainState, batches: PyTree, count: Array, rates: Rates | None = None
    ) -> tuple[TrainState, StepMetrics]:
        return steps(key, state, batches, count, rates)

    return sharded_train_steps


def shard_train_steps_with_stop_flag(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    read: HostBatches | DeviceText = HOST_BATCHES,
    accumulate: int = 1,
) -> Callable:
    """``shard_train_steps`` that also exchange a stop flag between all devices.

    ``(key, state, batches, count, rates, stop) -> (state, (metrics, stop))``: ``stop`` has an integer for each device;
    the largest is returned.
    """
    batches = _SHARDED_WINDOWS if isinstance(read, DeviceText) else _SHARDED_BATCHES

    def steps(key: Key, state: TrainState, batches: PyTree, count: Array, rates: Rates | None, stop: Array) -> PyTree:
        state, log = train_steps(task, optimizer, key, state, batches, count, rates, BATCH_AXIS, read, accumulate)
        # After the steps: on a CPU two exchanges in flight may run in another order on each process, or deadlock. No
        # number of targets is negative, but XLA does not know that: a barrier is removed before the order is chosen.
        stop = jnp.maximum(stop, (log.targets[0] < 0).astype(stop.dtype))
        return state, (log, lax.pmax(stop[0], BATCH_AXIS))

    return jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(_REPLICATED, _STATE, batches, _REPLICATED, _REPLICATED, _SHARDED),
        out_specs=(_STATE, (_REPLICATED, _REPLICATED)),
    )


# --- parameters and optimizer state sharded too


def full_sharding(mesh: Mesh, state: TrainState) -> TrainState:
    """How to shard every array of ``state``: the carry by rows, the others along their longest axis that can be.

    Arrays without an axis whose size is divisible by the number of devices are replicated.
    """

    def along(leaf: Array) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        axes: list[str | None] = [None] * leaf.ndim
        if fitting:
            axes[max(fitting, key=lambda axis: leaf.shape[axis])] = BATCH_AXIS
        return NamedSharding(mesh, PartitionSpec(*axes))

    carry = jax.tree.map(lambda _: NamedSharding(mesh, _SHARDED), state.carry)
    return jax.tree.map(along, state._replace(carry=None))._replace(carry=carry)


def fully_shard_train_step(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, accumulate: int = 1
) -> Callable:
    """``train_step`` for a state that is sharded as ``full_sharding`` says: ``(key, state, batch, rates=None)``.

    Each device gathers the parameters for its rows of ``batch``, the gradients are summed over devices, and each device
    updates its share of the parameters and the optimizer state, which it keeps (as FSDP does; Rajbhandari et al. 2020,
    arXiv:1910.02054). The results equal those of one device up to the order of float additions. Between steps a device
    stores 1 / N of everything but the batch.
    """
    gradients = jax.shard_map(
        partial(sum_gradients, task, axis=BATCH_AXIS, accumulate=accumulate),
        mesh=mesh,
        in_specs=(_REPLICATED, _REPLICATED, _REPLICATED, _SHARDED, _SHARDED),
        out_specs=(_SHARDED, _REPLICATED),
    )

    def step(key: Key, state: TrainState, batch: PyTree, rates: Rates | None = None) -> tuple[TrainState, StepMetrics]:
        carry, sums = gradients(key, state.step, state.params, state.carry, batch)
        after, metrics = apply_gradients(optimizer, state._replace(carry=carry), sums, rates=rates)
        return lax.with_sharding_constraint(after, full_sharding(mesh, state)), metrics

    return step


def shard_eval_step(task: Task, mesh: Mesh) -> Callable:
    """``eval_step`` over ``mesh``: ``(params, carry, batch) -> (carry, totals)``; on a CPU one at a time too."""
    return jax.shard_map(
        partial(eval_step, task, axis=BATCH_AXIS),
        mesh=mesh,
        in_specs=(_REPLICATED, _SHARDED, _SHARDED),
        out_specs=(_SHARDED, _REPLICATED),
    )


def unreplicate(tree: PyTree) -> PyTree:
    """The first device's copy of a replicated ``tree``, without a transfer."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)
