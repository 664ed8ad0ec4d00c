"""Building blocks of the models: checks, cell factories, dropout, stacks of cells, embeddings, state vectors."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, PyTree, Shaped

from jaxgen.cells import CELLS
from jaxgen.cells.base import Cell
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.precision import PRECISIONS
from jaxgen.cells.unroll import choose_form, known_forms, unroll, unroll_projected
from jaxgen.errors import UsageError, check_int, check_options, choose
from jaxgen.types import Array, ArrayLike, Carry, RowKeys

#: Creates the cells of a model; called as ``factory(features=...)``.
CellFactory = Callable[..., nn.RNNCellBase]

#: Largest vocabulary for which one-hot inputs get a token table: computing it takes a V x V identity matrix.
ONE_HOT_TABLE = 4_096


# --- checks


def check_sizes(module: nn.Module, names: Sequence[str], least: int = 1) -> None:
    """Raise ``UsageError`` unless each of these fields of ``module`` is a whole number of at least ``least``."""
    for name in names:
        check_int(f"The {type(module).__name__}'s `{name}`", getattr(module, name), least)


def check_rates(module: nn.Module, names: Sequence[str]) -> None:
    """Raise ``UsageError`` unless each of these fields of ``module`` is at least 0 and less than 1."""
    for name in names:
        rate = getattr(module, name)
        if not 0 <= rate < 1:
            kind = type(module).__name__
            raise UsageError(f"The {kind}'s `{name}` is {rate!r}: it must be at least 0 and less than 1.")


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
    """A cell from ``factory(features=...)``; its field ``precision`` is replaced unless it is to be float32."""
    cell = factory(features=features)
    return cell if precision == "float32" else cell.clone(precision=precision)


def require_jaxgen_cells(factory: CellFactory, what: str) -> None:
    """Raise ``UsageError`` unless ``factory``, a class or a ``functools.partial`` of one, makes jaxgen cells.

    ``what`` names what needs them, and begins the message.
    """
    kind = getattr(factory, "func", factory)
    if not (isinstance(kind, type) and issubclass(kind, Cell)):
        name = getattr(kind, "__name__", str(kind))
        raise UsageError(f"{what} needs a cell of CELLS or a subclass of `Cell`, which {name} is not.")


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


def unroll_layer(
    cell: Any, x: Shaped[Array, "T B _"], carry: Carry, projected: bool, **options: Any
) -> tuple[Carry, Shaped[Array, "T B H"]]:
    """``unroll`` of one layer, time-major; with ``projected``, ``x`` is ``cell.project(input)`` already."""
    if projected:
        return unroll_projected(cell, carry, x, **options)
    return unroll(cell, x, carry, time_major=True, **options)


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
        lowest: int = 0,
    ) -> tuple[tuple[Carry, ...], Shaped[Array, "T B H"]]:
        """Run the layers over time; return their new carries and the outputs of the last one.

        ``reset``, ``valid`` and ``initial`` are those of ``jaxgen.cells.run``; ``carries`` and ``initial`` have a state
        for each layer. ``row_keys`` switch dropout on.

        Args:
            x: the input [T, B, D], or with ``projected`` already ``cells[0].project(input)`` [T, B, K].
            projected: whether ``x`` is projected.
            lowest: the first layer to run, for a caller that runs the layers below itself.
        """
        for name, states in {"carries": carries, "initial": initial}.items():
            if states is not None and len(states) != len(self.cells):
                raise UsageError(f"Got {len(states)} `{name}` for {len(self.cells)} layers: give one for each layer.")
        after = []
        for layer in range(lowest, len(self.cells)):
            cell, carry, start = self.cells[layer], carries[layer], None if initial is None else initial[layer]
            masks = {"reset": reset, "valid": valid, "initial": start}
            carry, x = unroll_layer(cell, x, carry, projected and layer == 0, form=self.form, **masks)
            after.append(carry)
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
        """The input projection of ``cell`` for every token; ``None`` for cells without one, or if it is too large.

        ``project(E)[tokens] == project(E[tokens])``, so a table saves work for more tokens than the vocabulary has.
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


# --- models


class RecurrentModel(nn.Module):
    """Base class of the models that read tokens: the fields that they share.

    Args:
        vocab_size: number of tokens.
        cell: called as ``cell(features=hidden)`` for each layer and direction: a class of ``CELLS``, a
            ``functools.partial`` of one, or a factory of any Linen ``RNNCellBase``.
        hidden: units of a layer in one direction.
        layers: number of recurrent layers.
        embed: width of the embedding. ``None``: as wide as the state. 0: the first layer reads one-hot vectors.
        dropout: rate of dropout on what a layer passes upwards (``Stack``).
        embed_dropout: rate of dropout on the embedded tokens.
        form: how recurrences are computed (``jaxgen.unroll``).
        precision: of all matrix products (``jaxgen.cells.PRECISIONS``). Other than ``float32`` it needs a jaxgen cell,
            whose field ``precision`` is replaced.

    Raises:
        UsageError: for values that cannot be used.
    """

    vocab_size: int
    cell: CellFactory = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    embed_dropout: float = 0.0
    form: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_sizes(self, ["vocab_size", "hidden", "layers"])
        check_sizes(self, [] if self.embed is None else ["embed"], least=0)
        check_rates(self, ["dropout", "embed_dropout"])
        choose(str(self.precision), PRECISIONS, "precision")
        if self.precision != "float32":
            require_jaxgen_cells(self.cell, f"The precision {self.precision!r}")
        choose(str(self.form), ["auto", *known_forms(make_cell(self.cell, self.hidden))], "form")
        super().__post_init__()

    @property
    def width(self) -> int:
        """Width of the embedding; 0 for one-hot vectors."""
        return self.hidden if self.embed is None else self.embed

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.dropout > 0 or self.embed_dropout > 0

    @nn.nowrap
    def make_cells(self) -> list[nn.RNNCellBase]:
        """A cell for each layer."""
        return [make_cell(self.cell, self.hidden, self.precision) for _ in range(self.layers)]

    @nn.nowrap
    def chosen_form(self) -> str:
        """The form that ``form`` resolves to for this model's cell on JAX's default device."""
        return choose_form(self.form, make_cell(self.cell, self.hidden))


def shared_fields(module: nn.Module, kind: type[nn.Module]) -> dict[str, PyTree]:
    """The fields that ``module`` shares with ``kind``, for a module that wraps a module of that class."""
    names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.name in names}


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
