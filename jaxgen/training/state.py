"""What a training step reads and returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.types import Array, Carry, Key, Params


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
