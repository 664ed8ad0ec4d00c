"""The batch spread over several devices, cores of a CPU or accelerators alike: one exchange of gradients a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.training.step import TrainState, eval_step, train_steps
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches, WindowIndex, Windows
from jaxgen.types import Carry, Params

#: The mesh axis over which rows are spread.
BATCH_AXIS = "rows"
#: Fewer rows than these leave a device idle more than they keep it busy.
LEAST_ROWS = 8
#: With more parameters than these for each token of a batch, exchanging gradients takes longer than a second device
#: saves: at 3,900 (8,000 words each way, 2,048 read and written) a step on two cores took 205 ms, on one device 176;
#: at 730 (10,000 words to read) 31 and 34.
MOST_LOAD = 3000

_WHOLE, _SPREAD, _SPREAD_BATCHES = PartitionSpec(), PartitionSpec(BATCH_AXIS), PartitionSpec(None, BATCH_AXIS)
_PARTS: Any = {"step": _WHOLE, "params": _WHOLE, "opt_state": _WHOLE, "carry": _SPREAD}
_STATE = TrainState(**_PARTS)
_PLACES: Any = {"start": _SPREAD_BATCHES, "stop": _SPREAD_BATCHES, "fresh": _WHOLE}
_TEXT: Any = _WHOLE
_SPREAD_WINDOWS = Windows(_TEXT, WindowIndex(**_PLACES), _TEXT)


def data_parallel_size(rows: int, there: int, load: float = 0.0) -> int:
    """How many of the devices that are ``there`` a batch of ``rows`` is spread over.

    The largest divisor of ``rows`` that is at most ``there`` and leaves each at least ``LEAST_ROWS``; else one. One
    also where ``load``, the number of parameters for each token of a batch, is above ``MOST_LOAD``.
    """
    if load > MOST_LOAD:
        return 1
    fair = [n for n in range(1, there + 1) if rows % n == 0 and rows // n >= LEAST_ROWS]
    return max(fair, default=1)


def make_mesh(devices: int) -> Mesh:
    """The first ``devices`` devices of this process in a row."""
    return _in_a_row(jax.local_devices()[:devices])


def make_global_mesh(devices: int) -> Mesh:
    """``devices`` devices in a row, as many of each process: those of process 0 first."""
    each = devices // jax.process_count()
    return _in_a_row([d for n in range(jax.process_count()) for d in jax.local_devices(process_index=n)[:each]])


def _in_a_row(devices: list[jax.Device]) -> Mesh:
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shard_state(mesh: Mesh, state: TrainState) -> TrainState:
    """``state`` on the devices of ``mesh``: a part of the carry on each, everything else on all."""
    everything_else = replicate(mesh, state._replace(carry=None))
    return everything_else._replace(carry=_placed(mesh, _SPREAD, state.carry))


def shard_evaluation(mesh: Mesh, params: Params, carry: Carry) -> tuple[Params, Carry]:
    """What an evaluation begins with on the devices of ``mesh``: ``params`` on all, a part of ``carry`` on each."""
    return replicate(mesh, params), _placed(mesh, _SPREAD, carry)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """A batch, which every process has whole, with its rows spread over the devices of ``mesh``."""
    return _placed(mesh, _SPREAD, batch)


def shard_windows(mesh: Mesh, windows: Windows) -> Windows:
    """K batches as windows of a text that is on all devices already: a part of the places on each."""
    start, stop = _placed(mesh, _SPREAD_BATCHES, (windows.window_index.start, windows.window_index.stop))
    return windows._replace(window_index=WindowIndex(start, stop, _placed(mesh, _WHOLE, windows.window_index.fresh)))


def shard_local_batches(mesh: Mesh, batches: Any) -> Any:
    """K batches of which every process has its share of the rows alone, [K, B / processes, ...], on all devices."""
    where = NamedSharding(mesh, _SPREAD_BATCHES)
    return jax.tree.map(lambda share: jax.make_array_from_process_local_data(where, share), batches)


def shard_local_rows(mesh: Mesh, share: Any) -> jax.Array:
    """A row for each device of ``mesh``, of which every process has those of its own."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, _SPREAD), share)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Where an array lies that every device of ``mesh`` has whole."""
    return NamedSharding(mesh, _WHOLE)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """``tree`` on every device of ``mesh``."""
    return _placed(mesh, _WHOLE, tree)


def _placed(mesh: Mesh, how: PartitionSpec, tree: Any) -> Any:
    """``tree``, which every process has whole, on the devices of ``mesh``; nothing is sent between processes."""
    where = NamedSharding(mesh, how)
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def put(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, where, lambda part: array[part])

    return jax.tree.map(put, tree)


def shard_train_steps(
    task: Any, optimizer: optax.GradientTransformation, mesh: Mesh, read: HostBatches | DeviceText = HOST_BATCHES
) -> Callable:
    """``train_steps`` over the devices of ``mesh``: ``(key, state, batches, count) -> (state, metrics)``.

    The rows of the batch must divide by the number of devices. Equal to one device up to the order of float
    additions, and to itself bit for bit. On a CPU, let no two such functions be in flight at once: wait for the
    results of one before calling the next (``jaxgen.jitted.one_at_a_time``).
    """
    batches = _SPREAD_WINDOWS if isinstance(read, DeviceText) else _SPREAD_BATCHES
    return jax.shard_map(
        partial(train_steps, task, optimizer, axis=BATCH_AXIS, read=read),
        mesh=mesh,
        in_specs=(_WHOLE, _STATE, batches, _WHOLE),
        out_specs=(_STATE, _WHOLE),
    )


def shard_train_steps_with_stop_flag(
    task: Any, optimizer: optax.GradientTransformation, mesh: Mesh, read: HostBatches | DeviceText = HOST_BATCHES
) -> Callable:
    """``shard_train_steps`` that also tell all devices what any was asked.

    ``(key, state, batches, count, asked) -> (state, (metrics, asked))``: ``asked`` has a whole number for each device,
    and the largest comes back.
    """
    batches = _SPREAD_WINDOWS if isinstance(read, DeviceText) else _SPREAD_BATCHES

    def steps(key: Any, state: TrainState, batches: Any, count: Any, asked: Any) -> Any:
        state, log = train_steps(task, optimizer, key, state, batches, count, axis=BATCH_AXIS, read=read)
        # Behind the steps: two exchanges that wait for each other's threads can stop for ever on a CPU.
        asked, _ = lax.optimization_barrier((asked, log.loss))
        return state, (log, lax.pmax(asked[0], BATCH_AXIS))

    return jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(_WHOLE, _STATE, batches, _WHOLE, _SPREAD),
        out_specs=(_STATE, (_WHOLE, _WHOLE)),
    )


def shard_eval_step(task: Any, mesh: Mesh) -> Callable:
    """``eval_step`` over the devices of ``mesh``: ``(params, carry, batch) -> (carry, totals)``; one at a time too."""
    return jax.shard_map(
        partial(eval_step, task, axis=BATCH_AXIS),
        mesh=mesh,
        in_specs=(_WHOLE, _SPREAD, _SPREAD),
        out_specs=(_SPREAD, _WHOLE),
    )


def unreplicate(tree: Any) -> Any:
    """The first device's copy of what all devices of a mesh hold alike, without copying it."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)
