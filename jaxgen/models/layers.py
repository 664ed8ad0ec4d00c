"""Layers that models are made of: stacks of cells, embeddings, state vectors, dropout, and checks of sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.cells import CELLS
from jaxgen.cells.base import Cell
from jaxgen.cells.precision import PRECISIONS
from jaxgen.cells.unroll import FORMS, unroll, unroll_projected
from jaxgen.errors import UsageError, check_options, choose
from jaxgen.types import Array, Carry, Key

#: Largest vocabulary of one-hot inputs for which a table is made: it takes V x V ones and zeros to make.
ONE_HOT_TABLE = 4_096


def check_sizes(what: str, sizes: Mapping[str, tuple[Any, int]]) -> None:
    """Raise ``UsageError`` unless every ``name: (size, least)`` is a whole number of at least ``least``.

    ``what`` names the thing that has them, for example ``"encoder"``.
    """
    for name, (size, least) in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
            raise UsageError(f"The {what}'s `{name}` is {size!r}: it must be a whole number of {least} or more.")


def check_rates(what: str, rates: Mapping[str, float]) -> None:
    """Raise ``UsageError`` unless every rate of dropout is at least 0 and less than 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"The {what}'s `{name}` is {rate!r}: it must be at least 0 and less than 1.")


def is_jaxgen_cell(cell: Callable[..., Any]) -> bool:
    """Whether ``cell``, a class or a ``functools.partial`` of one, makes jaxgen cells."""
    kind = getattr(cell, "func", cell)
    return isinstance(kind, type) and issubclass(kind, Cell)


def cell_name(cell: Callable[..., Any]) -> str:
    """What ``cell``, a class or a ``functools.partial`` of one, is called in messages."""
    kind = getattr(cell, "func", cell)
    return getattr(kind, "__name__", str(kind))


def check_form_and_precision(cell: Callable[..., Any], form: str, precision: str) -> None:
    """Raise ``UsageError`` unless ``form`` and ``precision`` exist and ``cell`` knows the precision."""
    choose(str(form), FORMS, "form")
    choose(str(precision), PRECISIONS, "precision")
    if precision != "float32" and not is_jaxgen_cell(cell):
        raise UsageError(
            f"The precision {precision!r} takes a jaxgen cell, and {cell_name(cell)} is none: "
            'leave it at "float32", or use a cell of CELLS or one of your own.'
        )


def dropout(x: Array, rate: float, row_keys: Key) -> Array:
    """Inverted dropout of ``x`` [T, B, D] with one key per row [B].

    A row's mask depends on its own key alone, never on the batch around it or on how rows are spread over
    devices (Srivastava et al., JMLR 15, 2014).
    """
    shape = (x.shape[0], *x.shape[2:])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape), out_axes=1)(row_keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Stack(nn.Module):
    """``cells`` run one above the other, with dropout on what each passes upwards.

    Dropout acts on the non-recurrent connections only: between layers and above the last one
    (Zaremba, Sutskever & Vinyals 2014, arXiv:1409.2329, section 3.2). It is off unless ``row_keys`` are given.
    ``form`` is that of ``unroll``.
    """

    cells: Sequence[nn.RNNCellBase]
    dropout: float = 0.0
    form: str = "auto"

    def __call__(
        self,
        x: Array,
        carries: Sequence[Carry],
        *,
        projected: bool = False,
        reset: Array | None = None,
        valid: Array | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: Key | None = None,
    ) -> tuple[tuple[Carry, ...], Array]:
        """``x`` [T, B, D], one carry a layer -> the new carries and the last layer's outputs [T, B, H].

        With ``projected``, ``x`` [T, B, K] is already ``cells[0].project(...)`` of the input. ``reset``, ``valid``
        [T, B] and ``initial`` (one a layer) are as in ``jaxgen.cells.run``; ``row_keys`` [B] switches dropout on.
        """
        for name, states in {"carries": carries, "initial": initial}.items():
            if states is not None and len(states) != len(self.cells):
                raise UsageError(f"Got {len(states)} `{name}` for {len(self.cells)} layers: give one a layer.")
        masks: dict[str, Any] = {"reset": reset, "valid": valid}
        after = []
        for layer, (cell, carry) in enumerate(zip(self.cells, carries)):
            start = None if initial is None else initial[layer]
            if projected and layer == 0 and isinstance(cell, Cell):
                carry, x = unroll_projected(cell, carry, x, **masks, initial=start, form=self.form)
            else:
                carry, x = unroll(cell, x, carry, **masks, initial=start, time_major=True, form=self.form)
            after.append(carry)
            if row_keys is not None and self.dropout > 0:
                x = dropout(x, self.dropout, jax.vmap(lambda key, n=layer: jax.random.fold_in(key, n))(row_keys))
        return tuple(after), x


class Embedding(nn.Module):
    """A vector of ``width`` for each of ``vocab_size`` tokens; ``width=0`` stands for one-hot vectors.

    ``stddev`` is that of the initial values; ``dropout`` drops units of every occurrence of a token by itself.
    """

    vocab_size: int
    width: int
    dropout: float = 0.0
    stddev: float = 1.0

    def setup(self) -> None:
        if self.width:
            init = nn.initializers.normal(self.stddev)
            self.embedding = self.param("embedding", init, (self.vocab_size, self.width), jnp.float32)

    def __call__(self, tokens: Array) -> Array:
        """The vectors of ``tokens``: int32 [...] -> [..., D]."""
        if self.width == 0:
            return jax.nn.one_hot(tokens, self.vocab_size, dtype=jnp.float32)
        return jnp.asarray(self.embedding)[tokens]

    def table(self, cell: nn.RNNCellBase, beside: int = 0) -> Array | None:
        """What ``cell`` makes of every token, [V, K]; ``None`` where that cannot be had or would take too much.

        ``project(E)[tokens] == project(E[tokens])``: whoever looks up more tokens than there are in the vocabulary
        saves the difference. The cell's input has ``beside`` further features behind the vector, zero here.
        """
        if not isinstance(cell, Cell) or (self.width == 0 and self.vocab_size > ONE_HOT_TABLE):
            return None
        return cell.project(pad_features(self(jnp.arange(self.vocab_size)), beside))

    def read(
        self,
        tokens: Array,
        cells: Sequence[nn.RNNCellBase],
        row_keys: Key | None = None,
        tables: Sequence[Array | None] | None = None,
        beside: int = 0,
    ) -> tuple[list[Any], bool]:
        """The input of each of ``cells`` from tokens [T, B], and whether it is projected already.

        Projected inputs are [T, B, K], others [T, B, D + beside]. ``row_keys`` [B] switches dropout on; ``tables``
        are those of ``table``, made earlier.
        """
        dropping = row_keys is not None and self.dropout > 0  # of every occurrence anew, which no table can hold
        if tables is None and self.vocab_size < tokens.size:
            tables = [self.table(cell, beside) for cell in cells]
        if tables is not None and all(table is not None for table in tables) and not dropping:
            return [jnp.asarray(table)[tokens] for table in tables], True
        x = dropped(self(tokens), self.dropout, row_keys)
        return [pad_features(x, beside)] * len(cells), False


def pad_features(x: Array, beside: int) -> Array:
    """x [..., D] with ``beside`` zeros behind."""
    return x if not beside else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, beside)])


def dropped(x: Array, rate: float, row_keys: Key | None) -> Array:
    """``dropout`` of x [T, B, D] where there are keys [B] for it, else ``x``."""
    return x if row_keys is None or rate == 0 else dropout(x, rate, row_keys)


def drop_tokens(tokens: Array, rate: float, unknown: int, row_keys: Key | None) -> Array:
    """``tokens`` [B, T], of which a share of ``rate`` is ``unknown``; a row's by its own key, and none without keys."""
    if row_keys is None or rate == 0:
        return tokens
    hide = jax.vmap(lambda key: jax.random.bernoulli(key, rate, tokens.shape[1:]))(row_keys)
    return jnp.where(hide, jnp.asarray(unknown, tokens.dtype), tokens)


def fold_in_rows(row_keys: Key | None, number: int) -> Key | None:
    """The keys [B] of the use ``number`` of a row's key; none from none."""
    return None if row_keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(row_keys)


def state_size(like: Carry) -> int:
    """How many numbers one row of a state has; every leaf of ``like`` has B in front."""
    return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(like))


def unflatten_state(flat: Array, like: Carry) -> Carry:
    """``flat`` [..., S] in the structure of ``like``: its leaves [B, ...] with the leading axes of ``flat`` for B."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(math.prod(leaf.shape[1:]) for leaf in leaves))
    parts = zip(jnp.split(flat, ends[:-1], axis=-1), leaves)
    shaped = [part.astype(leaf.dtype).reshape(*flat.shape[:-1], *leaf.shape[1:]) for part, leaf in parts]
    return jax.tree.unflatten(structure, shaped)


def cell_factory(cell: str, cell_options: dict[str, Any]) -> Any:
    """What makes the cell of this name in ``CELLS`` with these options of its own, called with ``features``.

    Raises ``UsageError`` for a name or an option that does not exist.
    """
    kind = CELLS[choose(cell, CELLS, "cell")]
    reserved = ("features", "parent", "name", "param_dtype", "precision")
    check_options(kind, cell_options, f"cell {cell!r}", reserved=reserved)
    return partial(kind, **cell_options) if cell_options else kind
