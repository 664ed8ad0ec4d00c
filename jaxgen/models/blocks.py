"""Blocks: what stands around the cell of a layer. To add a block, add a class and a line in ``BLOCKS``.

A layer of a model is a cell, or a block that contains any cell and has the same place in the stack. The blocks here are
pre-norm residual blocks (Xiong et al. 2020, arXiv:2002.04745)::

    x = x + out(gate * cell(conv(in(norm(x)))))
    x = x + mlp(norm(x))

The last block ends with one more normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from jaxgen.cells.base import Affine, promote
from jaxgen.cells.scan import Masks, expand_mask, has_time_axis, mask_rows
from jaxgen.cells.unroll import unroll
from jaxgen.errors import UsageError, check_int, choose
from jaxgen.models.layers import (
    CellFactory,
    cell_factory,
    cell_keys,
    cell_pattern,
    clamp_state,
    dropout,
    fold_in_rows,
    make_cell,
    read_options,
    state_arrays,
)
from jaxgen.types import Array, ArrayLike, Carry, Key, RowKeys

#: Creates the block of a layer; called as ``factory(cell=..., features=..., layer=..., layers=..., dropout=...,
#: precision=...)``, with ``--locked-dropout`` also with ``locked=True``.
BlockFactory = Callable[..., nn.Module]

#: A wider convolution is a typing error: each of its inputs is a step in the compiled program.
MAX_CONV = 64


class Norm(nn.Module):
    """scale * x / sqrt(mean(x^2) + 1e-6) over the features (root mean square: Zhang & Sennrich 2019, arXiv:1910.07467).

    With ``center``, the same of x - mean(x), plus a bias (layer normalisation: Ba, Kiros & Hinton 2016,
    arXiv:1607.06450).
    """

    center: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "T B D"]) -> Float[Array, "T B D"]:
        if self.center:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale.astype(x.dtype)[None, None]
        if self.center:
            bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
            y = y + bias.astype(x.dtype)[None, None]
        return y


#: Normalisations by name.
NORMS: dict[str, Callable[[], nn.Module]] = {"layer": partial(Norm, center=True), "rms": Norm}


class CausalConv(nn.Module):
    """A convolution over time of each feature alone: y_t = bias + sum_j kernel[width - 1 - j] * x_{t-j}.

    The carry holds the last ``width - 1`` inputs, the latest last. Padding is skipped as if it were not there. At first
    y_t is close to x_t.
    """

    features: int
    width: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T B H"],
        carry: Float[Array, "B tail H"],
        *,
        reset: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        initial: Carry | None = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "B tail H"], Float[Array, "T B H"]]:
        """The carry after all steps, and the outputs. The masks are those of ``jaxgen.cells.run``."""
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        kernel = self.param("kernel", _near_identity, (self.width, self.features), jnp.float32)
        dtype = promote(x.dtype, carry.dtype)
        x, carry, bias, kernel, initial = jax.tree.map(lambda a: a.astype(dtype), (x, carry, bias, kernel, initial))
        reset, valid = (None if mask is None else jnp.asarray(mask, bool) for mask in (reset, valid))
        if reverse:
            x, reset, valid = jax.tree.map(lambda a: jnp.flip(a, 0), (x, reset, valid))
            if initial is not None and has_time_axis(initial, carry):
                initial = jnp.flip(initial, 0)
        masks = Masks.create(carry, reset, valid, initial)
        x = x if masks.valid is None else mask_rows(masks.valid, x)

        # The j-th last input as each step sees it, and as the step after the last one would see it: the (j-1)-th last
        # input as the step before saw it, but after a reset the initial one, and after padding unchanged.
        steps, seen, tail = x.shape[0], x, []
        y = x * kernel[-1][None, None] + bias[None, None]
        source = None if masks.valid is None else _last_changes(masks.valid, masks.reset)
        for j in range(1, self.width):
            seen = jnp.concatenate([carry[None, :, -j], seen[:steps]])
            if masks.reset is not None and masks.initial is not None:
                fresh = jnp.where(expand_mask(masks.reset, seen), masks.initial[..., -j, :], seen[:-1])
                seen = jnp.concatenate([fresh, seen[-1:]])
            if source is not None:
                seen = jnp.take_along_axis(seen, source, axis=0, mode="promise_in_bounds")
            y = y + seen[:-1] * kernel[-1 - j][None, None]
            tail.append(seen[-1])
        after = jnp.stack(tail[::-1], axis=1) if tail else carry
        return after, jnp.flip(y, 0) if reverse else y


def _near_identity(key: Key, shape: tuple[int, int], dtype: Any) -> Float[Array, "width H"]:
    return nn.initializers.normal(0.1)(key, shape, dtype).at[-1].add(1.0)


def _last_changes(valid: Bool[Array, "T B"], reset: Bool[Array, "T B"] | None) -> Int[Array, "T+1 B 1"]:
    """For each step, and for one more, the last step up to it at which earlier inputs changed.

    They change after a valid step, and by a reset.
    """
    changed = jnp.pad(valid, ((1, 0), (0, 0)), constant_values=True)
    if reset is not None:
        changed = changed | jnp.pad(reset, ((0, 1), (0, 0)))
    index = jnp.arange(changed.shape[0], dtype=jnp.int32)[:, None]
    return jax.lax.cummax(jnp.where(changed, index, 0), axis=0)[:, :, None]


class Block(nn.Module):
    """Base class of blocks: a cell, and what a layer must have besides ``__call__``.

    A subclass makes its cell with ``self.make_cell()`` in ``setup``, and defines ``__call__`` with the arguments of
    ``ResidualBlock.__call__``: it runs over time, time-major. Its further fields are options. A subclass whose carry is
    more than that of the cell overrides ``initialize_carry``, ``cell_state``, ``start`` and ``clamp_state``.

    Args:
        cell: called as ``cell(features=...)``.
        features: width of the output.
        layer: the number of this layer, from 0.
        layers: the number of layers of the model.
        dropout: rate of dropout.
        locked: the mask of dropout is the same at all steps.
        precision: of all matrix products.
    """

    cell: CellFactory
    features: int
    layer: int = 0
    layers: int = 1
    dropout: float = 0.0
    locked: bool = False
    precision: str = "float32"

    @property
    def inner(self) -> int:
        """Width of the cell."""
        return self.features

    @nn.nowrap
    def make_cell(self, **options: Any) -> nn.RNNCellBase:
        """The cell; with ``parent=None`` an unbound one."""
        return make_cell(self.cell, self.inner, self.precision, **options)

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Carry:
        """The carry before inputs of shape [..., D]."""
        return self.make_cell(parent=None).initialize_carry(rng, (*input_shape[:-1], self.inner))

    @nn.nowrap
    def cell_state(self, carry: Carry) -> Carry:
        """The cell's part of the carry, which conditions and encoders set."""
        return carry

    @nn.nowrap
    def start(self, state: Carry) -> Carry:
        """The carry that starts with this state of the cell; its leaves may have more axes in front."""
        return state

    @nn.nowrap
    def state_arrays(self, carry: Carry) -> dict[str, Array]:
        """``state_arrays`` of the cell."""
        return state_arrays(self.make_cell(parent=None), self.cell_state(carry))

    @nn.nowrap
    def clamp_state(self, values: Carry) -> Carry:
        """``Cell.clamp_state`` of the cell's part of a carry."""
        return clamp_state(self.make_cell(parent=None), values)


class ResidualBlock(Block):
    """A pre-norm residual block: the cell in one branch, a two-layer network in the other.

    - ``in`` is a linear map to ``expand * features``; it is left out if there is neither ``conv`` nor ``gate``, because
      a cell has an input map of its own.
    - ``conv`` is a ``CausalConv``.
    - ``gate`` is gelu(a second linear map of norm(x)).
    - ``out`` is a linear map. It and the last map of ``mlp`` start smaller by the square root of the number of branches
      in the model, so that the sum over all layers starts with the variance of one (Radford et al. 2019, section 2.3).

    Dropout acts on what the branches add. An input of another width than ``features`` goes through a linear map first.

    Args:
        norm: a name in ``NORMS``.
        mlp: width of the two-layer network, as a multiple of ``features``; 0: there is none.
        glu: the network is gelu(x A) * (x B) instead of gelu(x A) (Shazeer 2020, arXiv:2002.05202).
        conv: width of the convolution; 0: there is none.
        gate: whether there is a gate.
        expand: width of the cell, as a multiple of ``features``.
        exact_gelu: gelu is x times the normal distribution function, and not its approximation by tanh.

    The other fields are those of ``Block``. The carry is that of the cell, or with ``conv`` the pair (last inputs of
    the convolution, that of the cell).

    Raises:
        UsageError: for values that cannot be used.
    """

    norm: str = "rms"
    mlp: float = 2.0
    glu: bool = False
    conv: int = 4
    gate: bool = False
    expand: float = 1.0
    exact_gelu: bool = False

    def __post_init__(self) -> None:
        what = f"The {type(self).__name__}'s option"
        choose(self.norm, NORMS, "norm")
        check_int(f"{what} `conv`", self.conv, 0, MAX_CONV)
        for name, least in (("mlp", 0.0), ("expand", 1 / self.features)):
            if not least <= getattr(self, name) <= 64:
                raise UsageError(f"{what} `{name}` is {getattr(self, name)!r}: give a number from {least:.3g} to 64.")
        super().__post_init__()

    @property
    def inner(self) -> int:
        """Width of the cell."""
        return max(1, round(self.expand * self.features))

    def setup(self) -> None:
        branches = self.layers * (2 if self.mlp else 1)
        small = nn.initializers.variance_scaling(1 / branches, "fan_in", "truncated_normal")
        affine = partial(Affine, precision=self.precision)
        self.widen = affine(self.features)  # without parameters unless it is used
        self.cell_norm = NORMS[self.norm]()
        if self.conv or self.gate:
            self.input = affine(self.inner * (2 if self.gate else 1))
        if self.conv:
            self.convolution = CausalConv(self.inner, self.conv)
        self.recurrence = self.make_cell()
        self.output = affine(self.features, kernel_init=small)
        if self.mlp:
            self.mlp_norm = NORMS[self.norm]()
            self.up = affine(max(1, round(self.mlp * self.features)) * (2 if self.glu else 1))
            self.down = affine(self.features, kernel_init=small)
        if self.layer + 1 == self.layers:
            self.final_norm = NORMS[self.norm]()

    def __call__(
        self,
        x: Shaped[Array, "T B _"],
        carry: Carry,
        *,
        reset: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        initial: Carry | None = None,
        reverse: bool = False,
        row_keys: RowKeys | None = None,
        form: str = "auto",
    ) -> tuple[Carry, Shaped[Array, "T B _"]]:
        """Run over time: the new carry, and the outputs, zero in padding.

        ``reset``, ``valid``, ``initial`` and ``reverse`` are those of ``jaxgen.cells.run``, ``form`` is that of
        ``jaxgen.unroll``. ``row_keys`` switch dropout on.
        """
        masks: dict[str, Any] = {"reset": reset, "valid": valid, "reverse": reverse}
        if valid is not None:
            x = mask_rows(jnp.asarray(valid, bool), x)
        if x.shape[-1] != self.features:
            x = self.widen(x)
        y, gate = self.cell_norm(x), None
        if self.conv or self.gate:
            y = self.input(y)
        if self.gate:
            y, gate = jnp.split(y, 2, axis=-1)
        if self.conv:
            (tail, state), (start_tail, start) = carry, (None, None) if initial is None else initial
            tail, y = self.convolution(y, tail, initial=start_tail, **masks)
        else:
            state, start = carry, initial
        keys = cell_keys(self.recurrence, row_keys)
        state, y = unroll(self.recurrence, y, state, initial=start, time_major=True, form=form, row_keys=keys, **masks)
        if gate is not None:
            y = y * self._gelu(gate)
        x = x + dropout(self.output(y), self.dropout, fold_in_rows(row_keys, 0), self.locked)
        if self.mlp:
            y = self.down(self._activate(self.up(self.mlp_norm(x))))
            x = x + dropout(y, self.dropout, fold_in_rows(row_keys, 1), self.locked)
        if self.layer + 1 == self.layers:
            x = self.final_norm(x)
        return (tail, state) if self.conv else state, x if valid is None else mask_rows(jnp.asarray(valid, bool), x)

    @nn.nowrap
    def _gelu(self, a: Array) -> Array:
        return jax.nn.gelu(a, approximate=not self.exact_gelu)

    @nn.nowrap
    def _activate(self, a: Array) -> Array:
        if not self.glu:
            return self._gelu(a)
        a, b = jnp.split(a, 2, axis=-1)
        return self._gelu(a) * b

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Carry:
        return self._with_tail(super().initialize_carry(rng, input_shape), input_shape[:-1])

    @nn.nowrap
    def _with_tail(self, state: Carry, batch: tuple[int, ...]) -> Carry:
        return (jnp.zeros((*batch, self.conv - 1, self.inner), jnp.float32), state) if self.conv else state

    @nn.nowrap
    def cell_state(self, carry: Carry) -> Carry:
        return carry[1] if self.conv else carry

    @nn.nowrap
    def start(self, state: Carry) -> Carry:
        single = super().initialize_carry(jax.random.key(0), (self.features,))
        leaf, like = jax.tree.leaves(state)[0], jax.tree.leaves(single)[0]
        return self._with_tail(state, leaf.shape[: leaf.ndim - like.ndim])

    @nn.nowrap
    def state_arrays(self, carry: Carry) -> dict[str, Array]:
        """Those of the cell, and the inputs that the convolution keeps."""
        kept = {"conv": carry[0]} if self.conv else {}
        return super().state_arrays(carry) | kept

    @nn.nowrap
    def clamp_state(self, values: Carry) -> Carry:
        state = super().clamp_state(self.cell_state(values))
        return (values[0], state) if self.conv else state


class GriffinBlock(ResidualBlock):
    """The block of Griffin (De et al. 2024, arXiv:2402.19427, section 2): gate, convolution and a gated network.

    The cell is as wide as the block, as in RecurrentGemma; the paper has ``expand`` 4/3.
    """

    mlp: float = 3.0
    glu: bool = True
    conv: int = 4
    gate: bool = True


#: Blocks by name; ``None``: a layer is the cell alone.
BLOCKS: dict[str, type[nn.Module] | None] = {"griffin": GriffinBlock, "plain": None, "residual": ResidualBlock}


def block_factory(name: str, options: Mapping[str, PyTree]) -> BlockFactory | None:
    """The factory of the registered block ``name`` with these options; ``None`` for ``plain``.

    Raises ``UsageError`` for an unknown name or option.
    """
    kind = BLOCKS[choose(name, BLOCKS, "block")]
    if kind is None:
        if options:
            raise UsageError(f"The block 'plain' has no options, but got {', '.join(options)}: choose another block.")
        return None
    reserved = ("cell", "features", "layer", "layers", "dropout", "locked", "precision", "parent", "name")
    options = read_options(kind, options, f"block {name!r}", reserved=reserved)
    return partial(kind, **options) if options else kind


def layers_from_names(
    *,
    cell: str,
    cell_options: Mapping[str, PyTree],
    layers_pattern: str | None = None,
    block: str = "plain",
    block_options: Mapping[str, PyTree] | None = None,
    **others: PyTree,
) -> dict[str, Any]:
    """The fields ``cell`` and ``block`` of a model, and ``others`` as they are.

    Args:
        cell: a name in ``CELLS``.
        cell_options: the cell's own options. With a pattern, those of the cells that have them.
        layers_pattern: names of cells with commas between them, one for each layer, repeated from the lowest upwards.
            They take the place of ``cell``.
        block: a name in ``BLOCKS``.
        block_options: the block's own options.
        others: returned as they are.

    Raises:
        UsageError: for an unknown name or option.
    """
    if layers_pattern is None:
        others["cell"] = cell_factory(cell, cell_options)
    else:
        others["cell"] = cell_pattern(layers_pattern, cell_options)
    return {"block": block_factory(block, block_options or {}), **others}
