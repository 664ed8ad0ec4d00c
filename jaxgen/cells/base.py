"""The base class of cells: pure functions for one time step, and the Linen module that owns their parameters.

Most recurrent cells are one matrix product and a pointwise function. With ``z = project(x)`` (the input's part of the
pre-activations, computed for all steps at once) and ``u = hidden(carry) @ W + b`` (the state's part, the only product
inside the loop), a cell is ``pointwise(carry, z, u) -> (carry, y)``. Cells with parameters inside the step get them as
further arguments (``Weights.extra``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Float, PyTree, Shaped

from jaxgen.cells.precision import matmul
from jaxgen.errors import UsageError, check_int
from jaxgen.types import Array, ArrayLike, Carry, DType, Key

Initializer = Callable[..., Array]


class Weights(NamedTuple):
    """The arrays that a matrix-and-pointwise recurrence reads at every step.

    ``extra`` are further arguments of ``pointwise``, for cells with parameters inside the step.
    """

    kernel: Float[Array, "H K"]
    bias: Float[Array, "K"] | None = None
    extra: tuple[PyTree, ...] = ()


@dataclass(frozen=True)
class Form:
    """A way to compute a cell over time. All forms of a cell give the same values and gradients, up to rounding.

    Args:
        run: ``(cell, weights, carry, z, *, reset, valid, initial, reverse) -> (carry, ys)``, time-major, with the
            arguments of ``jaxgen.cells.run``. The cell is unbound: its fields can be read, its parameters cannot.
        applies: ``(cell, weights) -> bool``, whether the form can compute this cell.
        needs: what ``applies`` requires, for error messages.
        suits: ``(cell, platform) -> bool``, whether ``form="auto"`` takes it for this cell on ``cpu``, ``gpu`` or
            ``tpu``.
    """

    run: Callable[..., tuple[Carry, Array]]
    applies: Callable[[Any, PyTree], bool]
    needs: str
    suits: Callable[[Any, str], bool]


def promote(a: DType, b: DType) -> DType:
    """The common dtype of ``a`` and ``b``, even if implicit promotion is disabled."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def promote_state(dtype: DType) -> DType:
    """The state's dtype for parameters of ``dtype``: at least float32, so that long sums stay precise."""
    return promote(dtype, jnp.float32)


def orthogonal(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Float[Array, "H K"]:
    """An orthogonal matrix (Saxe et al. 2014, arXiv:1312.6120), computed in at least float32, as QR requires."""
    return nn.initializers.orthogonal()(key, shape, promote_state(dtype)).astype(dtype)


def per_gate(init: Initializer, gates: int) -> Initializer:
    """An initialiser of [..., gates * H] kernels that applies ``init`` to each [..., H] block with its own key."""

    def initialise(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Float[Array, "..."]:
        block = (*shape[:-1], shape[-1] // gates)
        # A loop, since several batched decompositions at once can wait for each other's threads without end on a CPU.
        blocks = lax.map(lambda key: init(key, block, dtype), jax.random.split(key, gates))
        return jnp.moveaxis(blocks, 0, -2).reshape(*block[:-1], -1)

    return initialise


def name_arrays(carry: Carry) -> dict[str, Array]:
    """The arrays of a carry by name: ``h`` if there is one, else the names of its fields, or their numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    if len(leaves) == 1:
        return {"h": leaves[0][1]}
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def check_groups(cell: Cell, option: str, least: int = 1) -> int:
    """The field ``option`` of ``cell``, the number of groups of equal size that its units form.

    Raises:
        UsageError: It is no integer of at least ``least``, or it does not divide the units. 0 stands for a default.
    """
    name = type(cell).__name__
    groups = check_int(f"The option `{option}` of the cell {name}", getattr(cell, option), least)
    if groups and cell.features % groups:
        other = "another number" if least else "another number, or 0"
        raise UsageError(
            f"The cell {name} got {groups} {option} for {cell.features} units: `{option}` must divide the units; "
            f"choose {other}."
        )
    return groups


class Affine(nn.Module):
    """``x @ kernel + bias``, with ``kernel`` and ``bias`` multiplied by an optional constant ``scale``.

    Scaling the weights costs one product over the weights and none over the activations. ``x=None`` returns the bias
    alone, for unrolling without an input; without ``use_bias`` it is zero. ``precision`` is passed to ``matmul``.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    param_dtype: DType = jnp.float32
    precision: str = "float32"

    @nn.compact
    def __call__(
        self, x: Shaped[ArrayLike, "*batch D"] | None, scale: Float[Array, "K"] | None = None
    ) -> Float[Array, "*batch K"] | Float[Array, "K"]:
        bias = jnp.zeros(self.features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        if scale is not None:
            bias = bias * scale
        if x is None:
            return bias
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        if scale is not None:
            kernel = kernel * scale[None, :]
        dtype = promote(x.dtype, kernel.dtype)
        # One flat product: XLA's CPU backend is faster on [B*T, D] than on [B, T, D].
        flat = matmul(x.reshape(-1, x.shape[-1]).astype(dtype), kernel, self.precision) + bias.astype(dtype)[None, :]
        return flat.reshape(*x.shape[:-1], self.features)


class Cell(nn.RNNCellBase):
    """One time step of a recurrence over a state of ``features`` units.

    A subclass declares its parameters in ``setup``, the map ``self.input`` of the input among them (``affine``), and
    implements ``weights`` and ``pointwise``; and ``project`` if the input enters in another way. A cell that is not
    one matrix product and a pointwise function overrides ``step`` instead of ``pointwise``.

    ``pointwise``, ``step`` and ``hidden`` are pure: they may read the cell's fields but not its parameters, which reach
    them through ``weights`` and ``z``. ``unroll`` calls them on an unbound copy of the cell, where reading a parameter
    raises an error instead of leaking a tracer.

    Models create a cell with ``cell(features=H)``. For a precision other than float32 they replace the field
    ``precision`` (one of ``PRECISIONS``), which ``affine`` uses. ``zoneout`` and
    ``recurrent_dropout`` are rates of the noise that ``unroll`` adds (``jaxgen.cells.noise``).

    Example:
        >>> class Leaky(jaxgen.Elman):  # h' = (h + tanh(x W_x + b + h W_h)) / 2
        ...     def pointwise(self, carry, z, u):
        ...         h = (carry + jnp.tanh(z + u)) / 2
        ...         return h, h
        >>> y, params = nn.RNN(Leaky(4)).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> y.shape
        (2, 5, 4)
    """

    #: Whether labels and encoders can set the state, by a linear map to all its numbers. If not, it starts from zeros.
    starts_from_vectors: ClassVar[bool] = True
    #: Forms of this class besides those in ``jaxgen.cells.FORMS``, or in place of those of the same name.
    forms: ClassVar[Mapping[str, Form]] = {}

    features: int
    param_dtype: DType = jnp.float32
    precision: str = "float32"
    zoneout: float = 0.0
    recurrent_dropout: float = 0.0

    def project(self, x: Shaped[ArrayLike, "*batch D"] | None) -> Float[Array, "*batch K"] | Float[Array, "K"]:
        """The input's part of the pre-activations, bias included; for ``None`` the bias alone.

        By default the map ``self.input``, which ``setup`` creates with ``affine``.
        """
        return self.input(x)

    @nn.nowrap
    def affine(self, features: int, **fields: Any) -> Affine:
        """A linear map of the cell's ``param_dtype`` and ``precision``; ``fields`` are further ones of ``Affine``."""
        return Affine(features, param_dtype=self.param_dtype, precision=self.precision, **fields)

    def weights(self) -> PyTree:
        """The arrays that ``step`` reads at every time step (``Weights`` for most cells)."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `weights`.")

    @staticmethod
    def hidden(carry: Carry) -> Float[Array, "*batch H"]:
        """The part of the carry that is multiplied by the recurrent matrix."""
        return carry

    @nn.nowrap
    def num_gates(self, shape: tuple[int, ...]) -> int:
        """How many gates lie side by side in the columns of a kernel of this shape; optimizers may treat each alone."""
        return shape[-1] // self.features if shape[-1] % self.features == 0 else 1

    @staticmethod
    def summary(carry: Carry) -> PyTree:
        """What an encoder passes to a decoder: the whole carry, or arrays ``[*batch, ...]`` of fewer numbers."""
        return carry

    @nn.nowrap
    def state_arrays(self, carry: Carry) -> dict[str, Array]:
        """What to show of a carry, by name: its arrays, or the numbers of them that a step has written.

        The values are parts of the carry, without arithmetic, for any leading axes.
        """
        return name_arrays(carry)

    @nn.nowrap
    def gates(self, weights: PyTree, carry: Carry, z: Float[Array, "*batch K"]) -> dict[str, Array]:
        """The gates of a step by name, each from 0 to 1; none by default. The arguments are those of ``step``."""
        return {}

    @nn.nowrap
    def pointwise(
        self, carry: Carry, z: Float[Array, "*batch K"], u: Float[Array, "*batch K"], *extra: PyTree
    ) -> tuple[Carry, Float[Array, "*batch H"]]:
        """The cell's equations: the new carry and the output. ``extra`` is that of ``weights()``, none by default.

        Like ``z``, the input may have any number of leading axes, and they must not be mixed.
        """
        return self.forward_with_residuals(carry, z, u, *extra)[:2]

    @nn.nowrap
    def clamp_state(self, values: Carry) -> Carry:
        """Map arrays of arbitrary real numbers, in the shape of a state, to valid states.

        The default is the identity, which is right for unbounded states.
        """
        return values

    @nn.nowrap
    def product(self, weights: Weights, carry: Carry) -> Float[Array, "*batch K"]:
        """The state's part of the pre-activations: the one matrix product of a step."""
        h = self.hidden(carry)
        u = matmul(h, weights.kernel, self.precision)
        if weights.bias is not None:
            u = u + jnp.broadcast_to(weights.bias.astype(h.dtype), u.shape)
        return u

    @nn.nowrap
    def step(
        self, weights: PyTree, carry: Carry, z: Float[Array, "*batch K"]
    ) -> tuple[Carry, Float[Array, "*batch H"]]:
        """One time step as a pure function of its arguments: the new carry and the output."""
        return self.pointwise(*self.pointwise_args(weights, carry, z))

    @nn.nowrap
    def pointwise_args(self, weights: Weights, carry: Carry, z: Float[Array, "*batch K"]) -> tuple[PyTree, ...]:
        """The arguments of ``pointwise`` in a step."""
        dtype = self.hidden(carry).dtype
        extra = jax.tree.map(lambda a: a.astype(dtype), weights.extra)
        return carry, z.astype(dtype), self.product(weights, carry), *extra

    # Optional hand-written derivatives. A cell implements all three of these methods instead of ``pointwise``, or none;
    # one with ``extra`` weights implements ``extra_vjp`` too.

    @nn.nowrap
    def forward_with_residuals(
        self, carry: Carry, z: Float[Array, "*batch K"], u: Float[Array, "*batch K"], *extra: PyTree
    ) -> tuple[Carry, Float[Array, "*batch H"], PyTree]:
        """``pointwise``, and the residuals that ``precompute_vjp`` needs, a pytree of [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} implements neither `pointwise` nor `step`.")

    @nn.nowrap
    def precompute_vjp(self, before: Carry, after: Carry, residuals: PyTree) -> PyTree:
        """The factors of ``vjp_step`` for all steps at once.

        Args:
            before: the carries before each step, [T, B, ...], with any values in padding.
            after: the carries after each step.
            residuals: the residuals of each step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no derivatives of its own.")

    @nn.nowrap
    def vjp_step(self, dcarry: Carry, dy: Float[Array, "*batch H"], factors: PyTree, *extra: PyTree) -> PyTree:
        """One backward step: the gradients of the old carry, z and u, from those of the new carry and the output.

        A cell with ``extra`` weights returns a fourth value: what ``extra_vjp`` needs of each step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no derivatives of its own.")

    @nn.nowrap
    def extra_vjp(self, residuals: PyTree, dz: Float[Array, "T *batch K"], kept: PyTree) -> PyTree:
        """The gradients of ``extra`` from all steps at once; in padding everything is zero.

        Args:
            residuals: the residuals of each step, [T, B, ...].
            dz: the gradients of z.
            kept: the fourth value of ``vjp_step``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no derivatives of its own.")

    def __call__(self, carry: Carry, x: Shaped[ArrayLike, "*batch D"]) -> tuple[Carry, Float[Array, "*batch H"]]:
        """One step on a raw input, as ``flax.linen.RNN`` and ``nn.Bidirectional`` call it."""
        if self.zoneout:
            raise UsageError(f"Zoneout of {type(self).__name__} needs `jaxgen.unroll`: a call of the cell has none.")
        z = self.project(x)  # first: some cells learn the width of their input here
        return self.step(self.weights(), carry, z)

    @nn.nowrap
    def initialize_carry(self, rng: Key, input_shape: tuple[int, ...]) -> Carry:
        """The zero state for inputs of shape [..., D]; ``rng`` is part of Flax's interface and is not used."""
        del rng
        return jnp.zeros((*input_shape[:-1], self.features), promote_state(self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        """Part of Flax's interface."""
        return 1
