"""Many blocks of rows in one compiled call, each computed as it is by itself: more texts a second, and the same bits.

``lax.map`` goes through the blocks one after the other inside the call, so every product has the rows that it has by
itself. On a CPU the blocks are shared out over its devices, which exchange nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.training.data_parallel import BATCH_AXIS, make_mesh

#: From so many blocks on they go together, and at most so many of one row.
LEAST, MOST = 64, 256
#: Beyond these a call would take seconds, or its states much memory.
MOST_PARAMETERS, MOST_STATE = 2_000_000, 2**17


def count_together(blocks: int, rows: int) -> int:
    """How many of ``blocks`` of so many rows go into one call: a power of two, so that few sizes are compiled, or 1."""
    if blocks < LEAST or rows * LEAST > MOST:
        return 1
    return min(1 << (blocks - 1).bit_length(), 1 << ((MOST // rows).bit_length() - 1))


def is_small(weights: Any, transforms: Any) -> bool:
    """Whether a call of many blocks is soon done and takes little memory: each block has its own ``transforms``."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(transforms))
    return parameters <= MOST_PARAMETERS and state <= MOST_STATE


def count_sharing(together: int) -> int:
    """Over how many devices the blocks of a call are shared out."""
    there = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return min(1 << (there.bit_length() - 1), together)


def device_layout(weights: Any, state: Any, keys: Any, together: int, devices: int) -> tuple[Any, Any, Any]:
    """What a call reads: ``weights`` on all devices, ``state`` for each block, ``keys`` [blocks * R] by block."""
    states = jax.tree.map(lambda a: jnp.broadcast_to(a, (together, *a.shape)), state)
    keys = keys.reshape(together, -1)
    if devices == 1:
        beside = next(iter(jax.tree.leaves(weights)[0].devices()))
        return weights, *jax.device_put((states, keys), beside)
    mesh = make_mesh(devices)
    everywhere, shared = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(BATCH_AXIS)))
    return jax.device_put(weights, everywhere), *jax.device_put((states, keys), shared)
