"""The state of a text as a value: what a model knows after some tokens, to keep, continue, branch and mix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.store.arrays import load_arrays, save_arrays
from jaxgen.types import Array, Carry


@dataclass(frozen=True, eq=False)
class State:
    """What a model knows after ``tokens``: its layers' state, of one row, and the logits [1, V] of the next token."""

    carry: Carry
    logits: Array
    tokens: np.ndarray

    def repeated(self, rows: int) -> tuple[Carry, Array]:
        """The carry and logits of so many rows that all stand here."""
        return jax.tree.map(lambda a: jnp.repeat(a, rows, axis=0), (self.carry, self.logits))


def interpolate(a: State, b: State, weight: float) -> State:
    """The state ``weight`` of the way from ``a`` (0) to ``b`` (1), each number on a straight line.

    The logits follow the same line. Where the output layer reads the last layer's state itself, as with LSTM, GRU and
    Elman, they are just those of the state in between. The tokens are those of the nearer end.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"A weight of {weight} lies outside two states: give a number from 0 (the first) to 1.")
    shapes = [jax.tree.map(jnp.shape, (state.carry, state.logits)) for state in (a, b)]
    if shapes[0] != shapes[1]:
        raise UsageError("These two states belong to models of other shapes: take both from one model.")
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(a.carry)):
        raise UsageError("The states of this model are no numbers with others in between: take a recurrent model.")
    carry, logits = jax.tree.map(lambda x, y: (1 - weight) * x + weight * y, (a.carry, a.logits), (b.carry, b.logits))
    return State(carry, logits, (a if weight < 0.5 else b).tokens)


def save_state(path: str | Path, state: State, about: dict[str, Any]) -> None:
    """Write ``state`` to a file, with what it belongs to (``about``: JSON values)."""
    leaves = jax.tree.leaves((state.carry, state.logits))
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    save_arrays(Path(path), arrays | {"tokens": np.asarray(state.tokens, np.int32)}, about)


def load_state(path: str | Path, like: tuple[Carry, Array]) -> tuple[State, dict[str, Any]]:
    """The state in a file and what it belongs to; ``like`` is a carry and logits of the right shapes.

    Raises ``CheckpointError`` for a file that is missing, damaged, or of another model.
    """
    arrays, about = load_arrays(Path(path))
    wanted, structure = jax.tree.flatten(like)
    names = [f"leaf{i}" for i in range(len(wanted))]
    fits = set(arrays) == {*names, "tokens"} and arrays["tokens"].ndim == 1 and arrays["tokens"].dtype == np.int32
    if not fits or any(
        (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype) for name, leaf in zip(names, wanted)
    ):
        raise CheckpointError(f"The state in {path} is not one of this model. Make it anew with --save-state.")
    carry, logits = jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in names])
    return State(carry, logits, arrays["tokens"]), about
