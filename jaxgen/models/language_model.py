"""A recurrent language model, and the protocol that models of the language task follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from jaxgen.cells.precision import dot_general, matmul, matmul_transposed
from jaxgen.errors import UsageError
from jaxgen.models.layers import (
    RecurrentModel,
    Stack,
    cell_state,
    check_sizes,
    clamp_state,
    fold_in_rows,
    is_block,
    state_arrays,
    state_size,
    unflatten_state,
)
from jaxgen.types import Array, ArrayLike, Carry, RowKeys


@runtime_checkable
class LanguageModelProtocol(Protocol):
    """The interface of models for ``LanguageTask``: any Linen module with these fields and methods.

    Training, prefill, decoding and scoring all call ``states`` and then ``logits``, by name: a subclass of
    ``LanguageModel`` that overrides one of the methods is used with its override everywhere. The task calls
    ``__call__(tokens)`` only to initialise the parameters; it must touch all of them.

    ``initial_carry`` and ``chosen_form`` are called on the unbound module (``flax.linen.nowrap``).
    """

    vocab_size: int
    condition: int

    def init(self, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    def apply(self, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    @property
    def has_dropout(self) -> bool: ...

    def initial_carry(self, batch: int) -> tuple[Carry, ...]: ...

    def chosen_form(self) -> str: ...

    def states(
        self,
        tokens: Int[ArrayLike, "T B"],
        carry: Sequence[Carry] | None = None,
        reset: Bool[ArrayLike, "T B"] | None = None,
        valid: Bool[ArrayLike, "T B"] | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: RowKeys | None = None,
        table: Shaped[ArrayLike, "V K"] | None = None,
    ) -> tuple[tuple[Carry, ...], Shaped[Array, "T B H"]]: ...

    def logits(self, hidden: Shaped[Array, "*batch H"]) -> Float[Array, "*batch V"]: ...

    def token_table(self) -> Shaped[Array, "V K"] | None: ...

    def initial_states(self, condition: Float[ArrayLike, "*batch condition"]) -> tuple[Carry, ...]: ...


class LanguageModel(RecurrentModel):
    """Embedding, ``layers`` recurrent layers of ``hidden`` units, and a linear output over the vocabulary.

    To change what the model computes, override ``states`` or ``logits``; ``__call__`` is the two of them.

    Args:
        tie: use the embedding as the output matrix (Press & Wolf 2017, arXiv:1608.05859). With ``embed`` different from
            ``hidden``, a matrix projects the outputs of the layers to the width of the embedding first.
        skip_connections: the output layer reads the outputs of all layers, not only of the last (Graves 2013,
            arXiv:1308.0850, section 2).
        softmaxes: the prediction is a mixture of this many softmaxes, whose weights and inputs are functions of the
            outputs (Yang et al. 2018, arXiv:1711.03953).
        soft_cap: limits every logit to this number, as ``soft_cap * tanh(logit / soft_cap)`` (Gemma Team 2024,
            arXiv:2408.00118, section 2); 0: no limit.
        condition: width of the vectors that ``initial_states`` reads; 0 for none.

    The other fields are those of ``RecurrentModel``.

    Example:
        >>> model = jaxgen.LanguageModel(vocab_size=30, cell=jaxgen.GRU, hidden=8)
        >>> tokens = jnp.zeros((2, 5), jnp.int32)  # batch, time
        >>> (carry, logits), params = model.init_with_output(jax.random.key(0), tokens)
        >>> logits.shape
        (2, 5, 30)
    """

    tie: bool = False
    soft_cap: float = 0.0
    condition: int = 0
    skip_connections: bool = False
    softmaxes: int = 1

    def __post_init__(self) -> None:
        check_sizes(self, ["condition"], least=0)
        check_sizes(self, ["softmaxes"])
        if not 0 <= self.soft_cap < float("inf"):
            raise UsageError(f"The model's `soft_cap` is {self.soft_cap!r}: give a number above 0, or 0 for no limit.")
        if self.tie and self.width == 0:
            raise UsageError("`tie` uses the embedding as the output matrix, and `embed` 0 is none: leave one out.")
        if self.condition and not any(self.vector_layers):
            raise UsageError(
                "This model has a condition, but none of its layers can start from one, as attention cannot: choose "
                "another cell, or mix cells with --layers-pattern."
            )
        if type(self).__call__ is not LanguageModel.__call__:
            raise UsageError(
                f"{type(self).__name__} overrides `__call__`, which training and decoding do not use: "
                "override `states` or `logits` instead."
            )
        super().__post_init__()

    def setup(self) -> None:
        # Inputs of a cell should have unit variance; rows of an output matrix (with ``tie``) should have unit length.
        self.embedder = self.make_embedding(self.width**-0.5 if self.tie else 1.0)
        nn.share_scope(self, self.embedder)  # the parameter is ``embedding``, not ``embedder/embedding``
        if self.width:
            self.embedder.matrix()  # initial values depend on the order of creation: the embedding comes first
        self.stack = self.make_stack()
        dense = partial(nn.Dense, dot_general=dot_general(self.precision))
        if self.tie:
            self.output_bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab_size,))
        else:
            self.output = dense(self.vocab_size)
        read = self.width if self.tie else self.hidden  # what the output matrix reads
        if self.softmaxes > 1:
            self.output_latent = dense(self.softmaxes * read)
            self.output_prior = dense(self.softmaxes, use_bias=False)
        elif self._projects:
            self.output_projection = dense(self.width, use_bias=False)
        if self.condition:
            width = state_size(self.cell_states(1))
            self.condition_kernel = self.param(
                "condition_kernel", nn.initializers.lecun_normal(), (self.condition, width), jnp.float32
            )
            self.condition_bias = self.param("condition_bias", nn.initializers.zeros_init(), (width,), jnp.float32)

    @property
    def _projects(self) -> bool:
        """Whether a matrix projects what the layers return to the width of the tied embedding."""
        width = self.hidden * (self.layers if self.skip_connections else 1)
        return self.tie and self.softmaxes == 1 and self.width != width

    @nn.nowrap
    def make_stack(self) -> Stack:
        """The layers. A subclass may build others."""
        return Stack(self.make_layers(), self.dropout, self.form, self.locked_dropout, self.skip_connections)

    @nn.nowrap
    def _layers(self) -> Sequence[Any]:
        return (self.make_stack() if self.scope is None else self.stack).cells

    @nn.nowrap
    def initial_carry(self, batch: int) -> tuple[Carry, ...]:
        """The zero state of ``batch`` rows, one carry for each layer."""
        layers = self._layers()
        widths = [self.width or self.vocab_size, *[self.hidden] * (len(layers) - 1)]
        return tuple(layer.initialize_carry(jax.random.key(0), (batch, width)) for layer, width in zip(layers, widths))

    @nn.nowrap
    def cell_states(self, batch: int) -> tuple[Carry, ...]:
        """The zero state of the cell of each layer: the part of ``initial_carry`` that ``start`` sets.

        It is ``()`` for cells that cannot start from vectors.
        """
        layers = zip(self._layers(), self.initial_carry(batch), self.vector_layers)
        return tuple(cell_state(layer, carry) if sets else () for layer, carry, sets in layers)

    @nn.nowrap
    def start(self, states: Sequence[Carry], batch: int) -> tuple[Carry, ...]:
        """The carries that start with these states of the cells, in the shape of ``cell_states``.

        Layers that cannot start from vectors start from zeros, for ``batch`` rows.
        """
        layers = zip(self._layers(), states, self.initial_carry(batch), self.vector_layers)
        return tuple(
            zeros if not sets else layer.start(state) if is_block(layer) else state
            for layer, state, zeros, sets in layers
        )

    @nn.nowrap
    def state_arrays(self, carry: Sequence[Carry]) -> list[dict[str, Array]]:
        """The arrays of the state of each layer by name (``Cell.state_arrays``)."""
        return [state_arrays(layer, each) for layer, each in zip(self._layers(), carry)]

    def initial_states(self, condition: Float[ArrayLike, "*batch condition"]) -> tuple[Carry, ...]:
        """The initial state for each condition vector, one carry for each layer.

        A linear map of the vector for each array of a cell's state, clamped to its range (``Cell.clamp_state``).
        """
        if not self.condition:
            raise UsageError("This model has no conditions: create it with `condition`, the width of their vectors.")
        flat = (
            matmul(jnp.asarray(condition).reshape(-1, self.condition), self.condition_kernel)
            + self.condition_bias[None, :]
        )
        states = unflatten_state(flat.reshape(*condition.shape[:-1], -1), self.cell_states(1))
        carries = self.start(states, condition.shape[-2] if condition.ndim > 1 else 1)
        return tuple(clamp_state(layer, carry) for layer, carry in zip(self._layers(), carries))

    def token_table(self) -> Shaped[Array, "V K"] | None:
        """The first layer's input projection of every token (``Embedding.table``); ``None`` for cells without one."""
        return self.embedder.table(self.stack.cells[0])

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        carry: Sequence[Carry] | None = None,
        *,
        reset: Bool[ArrayLike, "B T"] | None = None,
        valid: Bool[ArrayLike, "B T"] | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: RowKeys | None = None,
        table: Shaped[ArrayLike, "V K"] | None = None,
    ) -> tuple[tuple[Carry, ...], Float[Array, "B T V"]]:
        """The carry after ``tokens`` and the logits of each next token.

        ``reset``, ``valid`` and ``initial`` are those of ``jaxgen.unroll``. ``carry`` (default: zeros) and ``initial``
        have a state for each layer. ``row_keys`` switch dropout on. ``table`` is a ``token_table()`` computed earlier.
        """
        reset, valid = (None if mask is None else mask.T for mask in (reset, valid))
        if initial is not None:  # a state for each step, [B, T, H] -> [T, B, H]
            swap = lambda a, like: jnp.swapaxes(a, 0, 1) if a.ndim > like.ndim else a  # noqa: E731
            initial = jax.tree.map(swap, tuple(initial), self.initial_carry(tokens.shape[0]))
        carry, hidden = self.states(tokens.T, carry, reset, valid, initial, row_keys, table)
        return carry, jnp.swapaxes(self.logits(hidden), 0, 1)

    def states(
        self,
        tokens: Int[ArrayLike, "T B"],
        carry: Sequence[Carry] | None = None,
        reset: Bool[ArrayLike, "T B"] | None = None,
        valid: Bool[ArrayLike, "T B"] | None = None,
        initial: Sequence[Carry] | None = None,
        row_keys: RowKeys | None = None,
        table: Shaped[ArrayLike, "V K"] | None = None,
    ) -> tuple[tuple[Carry, ...], Shaped[Array, "T B H"]]:
        """``__call__`` without the output layer and time-major: the carry and the last layer's outputs.

        With ``skip_connections``, the outputs of all layers side by side.
        """
        if carry is None:
            carry = self.initial_carry(tokens.shape[1])
        tables = None if table is None else [table]
        (x,), projected = self.embedder.inputs(
            tokens, self.stack.cells[:1], fold_in_rows(row_keys, self.layers), tables
        )
        return self.stack(x, carry, projected=projected, reset=reset, valid=valid, initial=initial, row_keys=row_keys)

    def logits(self, hidden: Shaped[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        """The output layer, in float32; the logarithm of a mixture of softmaxes."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.softmaxes > 1:
            latent = jnp.tanh(self.output_latent(flat)).reshape(flat.shape[0] * self.softmaxes, -1)
            each = jax.nn.log_softmax(self._output(latent)).reshape(flat.shape[0], self.softmaxes, self.vocab_size)
            prior = jax.nn.log_softmax(self.output_prior(flat).astype(jnp.float32))
            logits = jax.nn.logsumexp(prior[:, :, None] + each, axis=1)
        else:
            logits = self._output(self.output_projection(flat) if self._projects else flat)
        return logits.reshape(*hidden.shape[:-1], self.vocab_size)

    def _output(self, features: Shaped[Array, "N H"]) -> Float[Array, "N V"]:
        """The output matrix, and the limit of the logits."""
        if self.tie:
            logits = matmul_transposed(features, self.embedder.matrix(), self.precision) + self.output_bias[None, :]
        else:
            logits = self.output(features)
        logits = logits.astype(jnp.float32)
        return self.soft_cap * jnp.tanh(logits / self.soft_cap) if self.soft_cap else logits
