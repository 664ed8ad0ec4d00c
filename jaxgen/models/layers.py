"""Parts of the models: checks, cell factories, dropout, stacks of layers, embeddings, state vectors."""

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
from jaxgen.cells.base import Cell, name_arrays
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.noise import takes_recurrent_dropout, takes_weight_dropout, takes_zoneout
from jaxgen.cells.precision import PRECISIONS
from jaxgen.cells.unroll import choose_form, known_forms, unroll, unroll_projected
from jaxgen.errors import UsageError, check_int, check_options, choose, listed
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


#: Fields of a cell that its model sets.
SET_BY_MODEL = ("features", "parent", "name", "param_dtype", "precision", "zoneout", "recurrent_dropout")


def cell_factory(name: str, options: Mapping[str, PyTree]) -> CellFactory:
    """The factory of the registered cell ``name`` with these options.

    Raises ``UsageError`` for an unknown name or option.
    """
    kind = CELLS[choose(name, CELLS, "cell")]
    options = read_options(kind, options, f"cell {name!r}", SET_BY_MODEL)
    return partial(kind, **options) if options else kind


def cell_pattern(pattern: str, options: Mapping[str, PyTree]) -> tuple[CellFactory, ...]:
    """The factories of the cells of a pattern such as ``"gru,gru,lstm"``; each gets the ``options`` that it has.

    Raises ``UsageError`` for an unknown name, and for an option that none of the cells has.
    """
    names = [choose(name.strip(), CELLS, "cell") for name in pattern.split(",")]
    fields = {name: {f.name for f in dataclasses.fields(CELLS[name])} - set(SET_BY_MODEL) for name in names}
    if unknown := set(options) - set().union(*fields.values()):
        raise UsageError(
            f"None of the cells {', '.join(fields)} has an option {listed(sorted(unknown))}: leave it out."
        )
    return tuple(
        cell_factory(name, {option: value for option, value in options.items() if option in fields[name]})
        for name in names
    )


def read_options(
    kind: type, options: Mapping[str, PyTree], what: str, reserved: Sequence[str] = ()
) -> dict[str, PyTree]:
    """``options`` in the types of the fields of ``kind``: 4.0 as 4 for ``int``, "true" as ``True`` for ``bool``.

    Command lines have only numbers and texts. Raises ``UsageError`` for an unknown option or a value of another type;
    ``what`` names the thing that has the options.
    """
    check_options(kind, options, what, reserved=reserved)
    types = {field.name: str(getattr(field.type, "__name__", field.type)) for field in dataclasses.fields(kind)}
    return {
        name: _read_option(f"The option {name!r} of the {what}", value, types[name]) for name, value in options.items()
    }


def _read_option(what: str, value: PyTree, kind: str) -> PyTree:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "bool" and str(value).lower() in ("true", "1", "1.0", "false", "0", "0.0"):
        return str(value).lower() in ("true", "1", "1.0")
    if kind == "int" and number and value == round(value):
        return int(value)
    if kind == "float" and number:
        return float(value)
    wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    if kind in wanted:
        raise UsageError(f"{what} is {value!r}: give {wanted[kind]}.")
    return value


def make_cell(factory: CellFactory, features: int, precision: str = "float32", **options: Any) -> nn.RNNCellBase:
    """A cell from ``factory(features=..., **options)``; its ``precision`` is replaced unless it is to be float32."""
    cell = factory(features=features, **options)
    return cell if precision == "float32" else cell.clone(precision=precision)


def require_jaxgen_cells(factories: Sequence[CellFactory], what: str) -> None:
    """Raise ``UsageError`` unless all ``factories``, classes or ``functools.partial`` of such, make jaxgen cells.

    ``what`` names what needs them, and begins the message.
    """
    for factory in factories:
        kind = getattr(factory, "func", factory)
        if not (isinstance(kind, type) and issubclass(kind, Cell)):
            name = getattr(kind, "__name__", str(kind))
            raise UsageError(f"{what} needs a cell of CELLS or a subclass of `Cell`, which {name} is not.")


# --- dropout


def dropout(
    x: Shaped[Array, "T B *features"], rate: float, row_keys: RowKeys | None, locked: bool = False
) -> Shaped[Array, "T B *features"]:
    """Inverted dropout (Srivastava et al., JMLR 15, 2014), or ``x`` itself without ``row_keys``.

    With ``locked`` there is one mask for all T steps (Gal & Ghahramani 2016, arXiv:1512.05287). A row's mask depends on
    its own key only: neither the rest of the batch nor the number of devices changes it.
    """
    if row_keys is None or rate == 0:
        return x
    shape = (1 if locked else x.shape[0], *x.shape[2:])
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

#: What a ``Stack`` sows into ``intermediates``: the outputs of its last layer before dropout.
UNDROPPED = "undropped"


def is_block(layer: nn.Module) -> bool:
    """Whether a layer is a block (``jaxgen.models.blocks``) and not a cell."""
    return not isinstance(layer, nn.RNNCellBase)


def unroll_layer(
    layer: Any, x: Shaped[Array, "T B _"], carry: Carry, projected: bool, row_keys: RowKeys | None, **options: Any
) -> tuple[Carry, Shaped[Array, "T B H"]]:
    """Run a block, or ``unroll`` a cell, time-major; with ``projected``, ``x`` is ``cell.project(input)`` already.

    ``row_keys`` switch on the dropout inside a block and the noise inside a cell.
    """
    if is_block(layer):
        return layer(x, carry, row_keys=row_keys, **options)
    options["row_keys"] = cell_keys(layer, row_keys)
    if projected:
        return unroll_projected(layer, carry, x, **options)
    return unroll(layer, x, carry, time_major=True, **options)


def cell_keys(cell: nn.Module, row_keys: RowKeys | None) -> RowKeys | None:
    """The keys of the noise inside a cell; ``None`` if it has none."""
    noisy = isinstance(cell, Cell) and max(cell.zoneout, cell.recurrent_dropout) > 0
    return fold_in_rows(row_keys, 2) if noisy else None  # the branches of a block have 0 and 1


def cell_state(layer: Any, carry: Carry) -> Carry:
    """The part of a layer's carry that conditions and encoders set: a cell's own, without what a block adds."""
    return layer.cell_state(carry) if is_block(layer) else carry


def clamp_state(layer: Any, values: Carry) -> Carry:
    """``Cell.clamp_state`` of a layer's cell; the same values for other Linen cells."""
    return layer.clamp_state(values) if hasattr(layer, "clamp_state") else values


def state_arrays(layer: Any, carry: Carry) -> dict[str, Array]:
    """``Cell.state_arrays`` of a layer; the arrays of the carry of other Linen cells."""
    return layer.state_arrays(carry) if hasattr(layer, "state_arrays") else name_arrays(carry)


class Stack(nn.Module):
    """Recurrent layers, each a cell or a block, with dropout on what a cell passes upwards.

    Dropout acts between layers and above the last one, never on the recurrent connections
    (Zaremba, Sutskever & Vinyals 2014, arXiv:1409.2329, section 3.2). It is off unless ``row_keys`` are given; with
    ``locked`` its mask is the same at all steps. A block has its own dropout, and a cell its own noise. ``form`` is
    that of ``unroll``, or several with commas between them, one for each layer, repeated. With ``all_outputs`` the
    outputs are those of all layers side by side.

    Example:
        >>> stack, x = jaxgen.Stack([jaxgen.GRU(4), jaxgen.GRU(4)]), jnp.ones((5, 2, 3))  # time, batch, features
        >>> carries = [cell.initialize_carry(jax.random.key(0), (2, 3)) for cell in stack.cells]
        >>> (carries, y), params = stack.init_with_output(jax.random.key(0), x, carries)
        >>> y.shape
        (5, 2, 4)
    """

    cells: Sequence[nn.Module]
    dropout: float = 0.0
    form: str = "auto"
    locked: bool = False
    all_outputs: bool = False

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
        after, outputs, forms = [], [], self.form.split(",")
        for layer in range(lowest, len(self.cells)):
            cell, carry, start = self.cells[layer], carries[layer], None if initial is None else initial[layer]
            keys = fold_in_rows(row_keys, layer)
            masks = {"reset": reset, "valid": valid, "initial": start, "form": forms[layer % len(forms)]}
            carry, x = unroll_layer(cell, x, carry, projected and layer == 0, keys, **masks)
            after.append(carry)
            if layer + 1 == len(self.cells):
                self.sow("intermediates", UNDROPPED, x)
            x = x if is_block(cell) else dropout(x, self.dropout, keys, self.locked)
            outputs.append(x)
        return tuple(after), jnp.concatenate(outputs, axis=-1) if self.all_outputs and outputs else x


class Embedding(nn.Module):
    """A vector of ``width`` for each token, or a one-hot vector if ``width`` is 0.

    ``stddev`` is that of the initial values. ``dropout`` drops units of every occurrence of a token independently, with
    ``locked`` the same units of all tokens of a row. ``row_dropout`` drops the whole vector of a token, at all of its
    occurrences in a row (Gal & Ghahramani 2016, arXiv:1512.05287, section 4.2).
    """

    vocab_size: int
    width: int
    dropout: float = 0.0
    stddev: float = 1.0
    locked: bool = False
    row_dropout: float = 0.0

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

    def table(self, cell: nn.Module) -> Shaped[Array, "V K"] | None:
        """The input projection of ``cell`` for every token; ``None`` for layers without one, or if it is too large.

        ``project(E)[tokens] == project(E[tokens])``, so a table saves work for more tokens than the vocabulary has.
        """
        if not isinstance(cell, Cell) or (self.width == 0 and self.vocab_size > ONE_HOT_TABLE):
            return None
        return cell.project(self(jnp.arange(self.vocab_size)))

    def inputs(
        self,
        tokens: Int[ArrayLike, "T B"],
        cells: Sequence[nn.Module],
        row_keys: RowKeys | None = None,
        tables: Sequence[Shaped[ArrayLike, "V K"] | None] | None = None,
    ) -> tuple[list[Shaped[Array, "T B _"]], bool]:
        """The input of each of ``cells`` for ``tokens``, and whether it is projected already.

        Args:
            tokens: token ids.
            cells: the cells or blocks of the first layer, one for each direction.
            row_keys: switch dropout on.
            tables: the ``table`` of each cell, where the caller has them.

        Returns:
            Projected inputs [T, B, K] and ``True``, or embedded tokens [T, B, D] and ``False``.
        """
        dropping = (
            row_keys is not None and max(self.dropout, self.row_dropout) > 0
        )  # differs between occurrences, so no table can hold it
        if tables is None and self.vocab_size < tokens.size and not dropping:
            tables = [self.table(cell) for cell in cells]
        if tables is not None and all(table is not None for table in tables) and not dropping:
            return [jnp.asarray(table)[tokens] for table in tables], True
        x = self._drop_rows(self(tokens), tokens, row_keys)
        return [dropout(x, self.dropout, row_keys, self.locked)] * len(cells), False

    def _drop_rows(
        self, x: Float[Array, "T B D"], tokens: Int[ArrayLike, "T B"], row_keys: RowKeys | None
    ) -> Float[Array, "T B D"]:
        if row_keys is None or self.row_dropout == 0:
            return x
        kept = 1.0 - self.row_dropout
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, kept, (self.vocab_size,)))(fold_in_rows(row_keys, 0))
        there = keep[jnp.arange(x.shape[1])[None], jnp.asarray(tokens)]
        return jnp.where(there[..., None], x / kept, jnp.zeros_like(x))


# --- models

#: The fields for noise inside cells, each with the condition under which a cell can have it.
NOISE: dict[str, Callable[[nn.RNNCellBase], bool]] = {
    "recurrent_dropout": takes_recurrent_dropout,
    "weight_dropout": takes_weight_dropout,
    "zoneout": takes_zoneout,
}


class RecurrentModel(nn.Module):
    """Base class of the models that read tokens: the fields that they share.

    Args:
        vocab_size: number of tokens.
        cell: called as ``cell(features=hidden)`` for each layer and direction: a class of ``CELLS``, a
            ``functools.partial`` of one, or a factory of any Linen ``RNNCellBase``. Several are repeated over the
            layers from the lowest upwards.
        block: makes the block around each cell (``jaxgen.models.blocks``); ``None``: a layer is the cell alone.
        hidden: units of a layer in one direction.
        layers: number of recurrent layers.
        embed: width of the embedding. ``None``: as wide as the state. 0: the first layer reads one-hot vectors.
        dropout: rate of dropout on what a layer passes upwards (``Stack``), with blocks on what a branch adds.
        embed_dropout: rate of dropout on the embedded tokens.
        embed_row_dropout: rate at which a row loses the embedding of a token, at all of its occurrences.
        locked_dropout: the masks of ``dropout`` and ``embed_dropout`` are the same at all steps.
        recurrent_dropout: rate of dropout on the state before it meets the recurrent matrix, with one mask for all
            steps, in the cells that have such a matrix (``jaxgen.cells.noise``).
        zoneout: rate at which units keep their old state, in the cells that can (``jaxgen.cells.noise``).
        weight_dropout: rate at which the training step drops recurrent weights (``jaxgen.training.step``).
        form: how recurrences are computed (``jaxgen.unroll``); several with commas between them are repeated as cells.
        precision: of all matrix products (``jaxgen.cells.PRECISIONS``). Other than ``float32`` it needs a jaxgen cell,
            whose field ``precision`` is replaced.

    Raises:
        UsageError: for values that cannot be used.
    """

    vocab_size: int
    cell: CellFactory | tuple[CellFactory, ...] = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    embed_dropout: float = 0.0
    embed_row_dropout: float = 0.0
    form: str = "auto"
    precision: str = "float32"
    block: Callable[..., nn.Module] | None = None
    locked_dropout: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, ["vocab_size", "hidden", "layers"])
        check_sizes(self, [] if self.embed is None else ["embed"], least=0)
        check_rates(self, ["dropout", "embed_dropout", "embed_row_dropout", *NOISE])
        choose(str(self.precision), PRECISIONS, "precision")
        if self.precision != "float32":
            require_jaxgen_cells(self.cells_of_pattern, f"The precision {self.precision!r}")
        for form, cell in self._forms:
            choose(form, ["auto", *known_forms(cell)], "form")
        for name, can in NOISE.items():
            if getattr(self, name) and not any(can(cell) for _, cell in self._forms):
                kinds = sorted({type(cell).__name__ for _, cell in self._forms})
                raise UsageError(f"`{name}` is not defined for {listed(kinds)}: set it to 0, or use another cell.")
        super().__post_init__()

    @property
    def cells_of_pattern(self) -> tuple[CellFactory, ...]:
        """The factories of the cells, which the layers repeat."""
        return self.cell if isinstance(self.cell, tuple) else (self.cell,)

    @property
    def cell_kinds(self) -> list[Any]:
        """The class of each layer's cell, or the function that makes it."""
        pattern = [getattr(factory, "func", factory) for factory in self.cells_of_pattern]
        return [pattern[layer % len(pattern)] for layer in range(self.layers)]

    @property
    def vector_layers(self) -> list[bool]:
        """Which layers can start from vectors (``Cell.starts_from_vectors``)."""
        return [getattr(kind, "starts_from_vectors", True) for kind in self.cell_kinds]

    @property
    def width(self) -> int:
        """Width of the embedding; 0 for one-hot vectors."""
        return self.hidden if self.embed is None else self.embed

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        rates = (self.dropout, self.embed_dropout, self.embed_row_dropout, self.recurrent_dropout, self.zoneout)
        return max(rates) > 0

    @nn.nowrap
    def make_embedding(self, stddev: float) -> Embedding:
        """The embedding, with initial values of this standard deviation."""
        drops = self.embed_dropout, stddev, self.locked_dropout, self.embed_row_dropout
        return Embedding(self.vocab_size, self.width, *drops)

    @nn.nowrap
    def make_layers(self) -> list[nn.Module]:
        """A cell for each layer, or a block that contains it."""
        pattern = self.cells_of_pattern
        cells = [self._with_noise(pattern[layer % len(pattern)]) for layer in range(self.layers)]
        if self.block is None:
            return [make_cell(cell, self.hidden, self.precision) for cell in cells]
        shared = {"layers": self.layers, "dropout": self.dropout, "precision": self.precision}
        if self.locked_dropout:
            shared["locked"] = True
        return [self.block(cell=cell, features=self.hidden, layer=i, **shared) for i, cell in enumerate(cells)]

    @nn.nowrap
    def _with_noise(self, factory: CellFactory) -> CellFactory:
        """A factory of the same cell with the noise that it can have."""
        rates = {name: getattr(self, name) for name in ("zoneout", "recurrent_dropout") if getattr(self, name)}
        if not rates:
            return factory
        cell = make_cell(factory, self.hidden, parent=None)
        return partial(factory, **{name: rate for name, rate in rates.items() if NOISE[name](cell)})

    @property
    def _forms(self) -> list[tuple[str, nn.RNNCellBase]]:
        """The form of each cell of the pattern, with an unbound cell."""
        forms, pattern = str(self.form).split(","), self.cells_of_pattern
        return [(forms[i % len(forms)], make_cell(cell, self.hidden)) for i, cell in enumerate(pattern)]

    @nn.nowrap
    def chosen_form(self) -> str:
        """The form that ``form`` resolves to for this model's cells on JAX's default device."""
        chosen = [choose_form(form, cell) for form, cell in self._forms]
        return chosen[0] if len(set(chosen)) == 1 else ",".join(chosen)


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
