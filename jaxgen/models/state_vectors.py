"""States as flat vectors: what a linear map makes, in the shape of a cell's carry."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp

from jaxgen.types import Array, Carry


def count_state(like: Carry) -> int:
    """How many numbers one row of a state has; every leaf of ``like`` has B in front."""
    return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(like))


def shape_state(flat: Array, like: Carry) -> Carry:
    """``flat`` [..., S] in the structure of ``like``: its leaves [B, ...] with the leading axes of ``flat`` for B."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(math.prod(leaf.shape[1:]) for leaf in leaves))
    parts = zip(jnp.split(flat, ends[:-1], axis=-1), leaves)
    shaped = [part.astype(leaf.dtype).reshape(*flat.shape[:-1], *leaf.shape[1:]) for part, leaf in parts]
    return jax.tree.unflatten(structure, shaped)
