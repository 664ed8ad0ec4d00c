"""Decode many blocks of rows in one compiled call, with the same bits as one block at a time.

``lax.map`` goes through the blocks inside the call, so that every matrix product has as many rows as without it. On a
CPU the blocks are distributed over its devices, which exchange nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.training.data_parallel import BATCH_AXIS, make_mesh
from jaxgen.types import Array

#: Fewer blocks are decoded one call each; a call has at most so many rows.
MIN_BLOCKS, MAX_ROWS = 64, 256
#: Beyond these sizes a call would take seconds, or its states much memory.
MAX_PARAMETERS, MAX_STATE_BYTES = 2_000_000, 2**17

Tree = TypeVar("Tree")
#: A pytree of arrays.
Arrays = Any


def blocks_per_call(blocks: int, rows: int) -> int:
    """How many of ``blocks`` of ``rows`` rows one call decodes: 1 or a power of two, so that few sizes are compiled."""
    if blocks < MIN_BLOCKS or rows * MIN_BLOCKS > MAX_ROWS:
        return 1
    return min(1 << (blocks - 1).bit_length(), 1 << ((MAX_ROWS // rows).bit_length() - 1))


def is_small(weights: Arrays, transforms: Arrays) -> bool:
    """Whether a call of many blocks takes little time and memory; every block has its own states of transforms."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(transforms))
    return parameters <= MAX_PARAMETERS and state <= MAX_STATE_BYTES


def count_devices(blocks: int) -> int:
    """Over how many devices the blocks of a call are distributed: a power of two."""
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return min(1 << (devices.bit_length() - 1), blocks)


def device_layout(weights: Tree, state: Arrays, keys: Array, blocks: int, devices: int) -> tuple[Tree, Arrays, Array]:
    """The inputs of a call on its devices: ``weights`` on all, ``state`` once a block, ``keys`` [blocks * R] by block.

    Args:
        weights: What the model reads.
        state: The state that every block starts from.
        keys: The PRNG keys of all rows.
        blocks: Blocks of the call.
        devices: Devices that share them.
    """
    states = jax.tree.map(lambda a: jnp.broadcast_to(a, (blocks, *a.shape)), state)
    keys = keys.reshape(blocks, -1)
    if devices == 1:
        weights_device = next(iter(jax.tree.leaves(weights)[0].devices()))
        return weights, *jax.device_put((states, keys), weights_device)
    mesh = make_mesh(devices)
    replicated, sharded = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(BATCH_AXIS)))
    return jax.device_put(weights, replicated), *jax.device_put((states, keys), sharded)
