"""What the devices of a mesh axis exchange inside ``shard_map``: sums, and work that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree


def sum_over_devices(tree: PyTree, axis: str) -> PyTree:
    """The sum over devices, in one all-reduce: on a CPU two in flight can deadlock."""
    with jax.numpy_dtype_promotion("standard"):  # several types become the widest
        flat, restore = ravel_pytree(tree)
    return restore(lax.psum(flat, axis))


def share_work(work: Sequence[Callable[[], PyTree]], costs: Sequence[float], axis: str | None) -> list[PyTree]:
    """The results of functions without arguments, each called on one device only.

    Args:
        work: the functions.
        costs: how long each takes, in any unit; the most expensive is assigned first, to the device with least work.
        axis: the mesh axis inside ``shard_map``; without one, or with one device, every function is called here.

    Returns:
        The result of each function, the same on every device.
    """
    devices = 1 if axis is None else lax.axis_size(axis)
    if axis is None or devices == 1:
        return [each() for each in work]
    totals, owners = [0.0] * devices, [0] * len(work)
    for i in sorted(range(len(work)), key=lambda i: -costs[i]):
        owners[i] = totals.index(min(totals))
        totals[owners[i]] += costs[i]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: [f() for f in work]))

    def part_of(device: int) -> list[PyTree]:
        return [each() if owner == device else zero for each, owner, zero in zip(work, owners, zeros)]

    parts = [partial(part_of, device) for device in range(devices)]
    shared: list[PyTree] = sum_over_devices(lax.switch(lax.axis_index(axis), parts), axis)
    return shared
