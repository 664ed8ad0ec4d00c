"""Building blocks of the models: checks, cell factories, dropout, stacks of cells, embeddings, state vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, PyTree, Shaped

from jaxgen.cells import CELLS
from jaxgen.cells.base import Cell
from jaxgen.cells.precision import PRECISIONS
from jaxgen.cells.unroll import FORMS, unroll, unroll_projected
from jaxgen.errors import UsageError, check_options, choose
from jaxgen.types import Array, ArrayLike, Carry, RowKeys

#: What makes the cells of a model; called as ``factory(features=...)``.
CellFactory = Callable[..., nn.RNNCellBase]

#: Largest vocabulary for which one-hot inputs get a token table: making it takes a V x V identity matrix.
ONE_HOT_TABLE = 4_096


# --- checks


def check_sizes(what: str, sizes: Mapping[str, tuple[object, int]]) -> None:
    """Raise ``UsageError`` unless every ``name: (size, minimum)`` is a whole number of at least ``minimum``.

    ``what`` names the module, for example ``"encoder"``.
    """
    for name, (size, minimum) in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < minimum:
            raise UsageError(f"The {what}'s `{name}` is {size!r}: it must be a whole number of {minimum} or more.")


def check_rates(what: str, rates: Mapping[str, float]) -> None:
    """Raise ``UsageError`` unless every rate is at least 0 and less than 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"The {what}'s `{name}` is {rate!r}: it must be at least 0 and less than 1.")


def check_recurrence(cell: CellFactory, form: str, precision: str) -> None:
    """Raise ``UsageError`` unless ``form`` and ``precision`` exist and the cells support the precision."""
    choose(str(form), FORMS, "form")
    choose(str(precision), PRECISIONS, "precision")
    if precision != "float32" and not makes_jaxgen_cells(cell):
        raise UsageError(
            f"The precision {precision!r} needs a jaxgen cell, which {cell_name(cell)} is not: "
            'use the precision "float32", or a cell of CELLS or a subclass of `Cell`.'
        )


# --- cells


def cell_factory(name: str, options: Mapping[str, PyTree]) -> CellFactory:
    """The factory of the registered cell ``name`` with these options.

    Raises ``UsageError`` for an unknown name or option.
    """
    kind = CELLS[choose(name, CELLS, "cell")]
    reserved = ("features", "parent", "name", "param_dtype", "precision")
    check_options(kind, options, f"cell {name!r}", reserved=reserved)
    return partial(kind, **options) if options else kind


def make_cell(factory: CellFactory, features: int, precision: str = "float32") -> nn.RNNCellBase:
    """A cell of ``factory``, which gets ``features`` and nothing else."""
    cell = factory(features=features)
    return cell if precision == "float32" else cell.clone(precision=precision)


def makes_jaxgen_cells(factory: CellFactory) -> bool:
    """Whether ``factory``, a class or a ``functools.partial`` of one, makes jaxgen cells."""
    kind = getattr(factory, "func", factory)
    return isinstance(kind, type) and issubclass(kind, Cell)


def cell_name(factory: CellFactory) -> str:
    """The name of the class that ``factory`` makes, for messages."""
    kind = getattr(factory, "func", factory)
    return getattr(kind, "__name__", str(kind))


# --- dropout


def dropout(x: Shaped[Array, "T B *features"], rate: float, row_keys: RowKeys | None) -> Shaped[Array, "T B *features"]:
    """Inverted dropout (Srivastava et al., JMLR 15, 2014), or ``x`` itself without ``row_keys``.

    A row's mask depends on its own key only: neither the rest of the batch nor the number of devices changes it.
    """
    if row_keys is None or rate == 0:
        return x
    shape = (x.shape[0], *x.shape[2:])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape), out_axes=1)(row_keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_tokens(tokens: Int[Array, "B T"], rate: float, unknown: int, row_keys: RowKeys | None) -> Int[Array, "B T"]:
    """Replace each of ``tokens`` by ``unknown`` with probability ``rate``; no token without ``row_keys``."""
    if row_keys is None or rate == 0:
        return tokens
    hide = jax.vmap(lambda key: jax.random.bernoulli(key, rate, tokens.shape[1:]))(row_keys)
    return jnp.where(hide, jnp.asarray(unknown, tokens.dtype), tokens)


def fold_in_rows(row_keys: RowKeys | None, number: int) -> RowKeys | None:
    """Fold ``number`` into each row's key; ``None`` stays ``None``."""
    return None if row_keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(row_keys)


# --- layers


class Stack(nn.Module):
    """Recurrent layers, with dropout on what each passes upwards.

    Dropout acts between layers and above the last one, never on the recurrent connections
    (Zaremba, Sutskever & Vinyals 2014, arXiv:1409.2329, section 3.2). It is off unless ``row_keys`` are given.
    ``form`` is that of ``unroll``.
    """

    cells: Sequence[nn.RNNCellBase]
    dropout: float = 0.0
    form: str = "auto"

    def __call__(
        self,
        x: Shaped[Array, "T B _"],
        carries: Sequence[Carry],
        *,
        projected: bool = False,
        reset: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: RowKeys | None = None,
    ) -> tuple[tuple[Carry, ...], Shaped[Array, "T B H"]]:
        """Run all layers over time.

        Args:
            x: the input [T, B, D], or with ``projected`` already ``cells[0].project(input)`` [T, B, K].
            carries: one for each layer.
            projected: whether ``x`` is projected.
            reset: as in ``jaxgen.cells.run``, [T, B].
            valid: as in ``jaxgen.cells.run``, [T, B].
            initial: as in ``jaxgen.cells.run``, one for each layer.
            row_keys: switch dropout on.

        Returns:
            The new carries and the outputs of the last layer.
        """
        for name, states in {"carries": carries, "initial": initial}.items():
            if states is not None and len(states) != len(self.cells):
                raise UsageError(f"Got {len(states)} `{name}` for {len(self.cells)} layers: give one a layer.")
        after = []
        for layer, (cell, carry) in enumerate(zip(self.cells, carries)):
            start = None if initial is None else initial[layer]
            if projected and layer == 0 and isinstance(cell, Cell):
                carry, x = unroll_projected(cell, carry, x, reset=reset, valid=valid, initial=start, form=self.form)
            else:
                carry, x = unroll(
                    cell, x, carry, reset=reset, valid=valid, initial=start, time_major=True, form=self.form
                )
            after.append(carry)
            if row_keys is not None and self.dropout > 0:
                x = dropout(x, self.dropout, fold_in_rows(row_keys, layer))
        return tuple(after), x


class Embedding(nn.Module):
    """A vector of ``width`` for each token, or a one-hot vector if ``width`` is 0.

    ``stddev`` is that of the initial values. ``dropout`` drops units of every occurrence of a token independently.
    """

    vocab_size: int
    width: int
    dropout: float = 0.0
    stddev: float = 1.0

    def setup(self) -> None:
        if self.width:
            init = nn.initializers.normal(self.stddev)
            self.embedding = self.param("embedding", init, (self.vocab_size, self.width), jnp.float32)

    def __call__(self, tokens: Int[ArrayLike, "*batch"]) -> Float[Array, "*batch D"]:
        """The vectors of ``tokens``."""
        if self.width == 0:
            return jax.nn.one_hot(tokens, self.vocab_size, dtype=jnp.float32)
        return jnp.asarray(self.embedding)[tokens]

    def matrix(self) -> Float[Array, "V D"]:
        """The embedding matrix; there is none for one-hot vectors."""
        return jnp.asarray(self.embedding)

    def table(self, cell: nn.RNNCellBase) -> Shaped[Array, "V K"] | None:
        """The input projection of ``cell`` for every token; ``None`` for cells without one and if it is too large.

        ``project(E)[tokens] == project(E[tokens])``, so looking up more tokens than the vocabulary has saves work.
        """
        if not isinstance(cell, Cell) or (self.width == 0 and self.vocab_size > ONE_HOT_TABLE):
            return None
        return cell.project(self(jnp.arange(self.vocab_size)))

    def inputs(
        self,
        tokens: Int[ArrayLike, "T B"],
        cells: Sequence[nn.RNNCellBase],
        row_keys: RowKeys | None = None,
        tables: Sequence[Shaped[ArrayLike, "V K"] | None] | None = None,
    ) -> tuple[list[Shaped[Array, "T B _"]], bool]:
        """The input of each of ``cells`` for ``tokens``, and whether it is projected already.

        Args:
            tokens: token ids.
            cells: the cells of the first layer, one for each direction.
            row_keys: switch dropout on.
            tables: the ``table`` of each cell, where the caller has them.

        Returns:
            Projected inputs [T, B, K] and ``True``, or embedded tokens [T, B, D] and ``False``.
        """
        dropping = row_keys is not None and self.dropout > 0  # differs between occurrences, so no table can hold it
        if tables is None and self.vocab_size < tokens.size and not dropping:
            tables = [self.table(cell) for cell in cells]
        if tables is not None and all(table is not None for table in tables) and not dropping:
            return [jnp.asarray(table)[tokens] for table in tables], True
        return [dropout(self(tokens), self.dropout, row_keys)] * len(cells), False


# --- states as vectors


def state_size(like: Carry) -> int:
    """The number of scalars in one row of a state; every leaf of ``like`` has B in front."""
    return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(like))


def unflatten_state(flat: Shaped[Array, "*batch size"], like: Carry) -> Carry:
    """Split vectors into states with the structure of ``like``, whose leaves are [B, ...]."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(math.prod(leaf.shape[1:]) for leaf in leaves))
    parts = zip(jnp.split(flat, ends[:-1], axis=-1), leaves)
    shaped = [part.astype(leaf.dtype).reshape(*flat.shape[:-1], *leaf.shape[1:]) for part, leaf in parts]
    return jax.tree.unflatten(structure, shaped)
