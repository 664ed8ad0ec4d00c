"""A decoder conditioned on an encoder, and the two together: a language model with an initial state and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from jaxgen.cells.base import Affine
from jaxgen.cells.noise import with_noise
from jaxgen.cells.precision import matmul
from jaxgen.cells.scan import run
from jaxgen.errors import UsageError, choose
from jaxgen.models.attention import ATTENTIONS, Memory
from jaxgen.models.encoder import DecoderInput
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.layers import (
    RecurrentModel,
    cell_keys,
    check_rates,
    drop_tokens,
    dropout,
    fold_in_rows,
    require_jaxgen_cells,
    shared_fields,
    state_size,
    unflatten_state,
)
from jaxgen.types import Array, ArrayLike, Carry, RowKeys


class DecoderOutput(NamedTuple):
    """What ``Decoder.decode`` computes for T tokens; ``Decoder.logits`` maps ``features`` to logits."""

    carry: tuple[Carry, ...]
    features: Shaped[Array, "B T H"]
    weights: Shaped[Array, "B T S"] | None  # attention weights; ``None`` without attention


class ContextKernel(nn.Module):
    """The matrix that maps an attention context to a cell's pre-activations, scaled as by ``Cell.project``."""

    @nn.compact
    def __call__(self, rows: int, columns: int) -> Float[ArrayLike, "M K"]:
        return self.param("kernel", nn.initializers.lecun_normal(), (rows, columns), jnp.float32)


class Decoder(RecurrentModel):
    """A ``LanguageModel`` that starts from the final states of an encoder and may attend to a ``Memory``.

    - ``general`` attention (Luong, Pham & Manning 2015, arXiv:1508.04025, sections 3 and 3.1) uses the top layer's
      outputs as queries, after the recurrence, so training is as parallel as without attention. (No input feeding,
      section 3.3.)
    - ``additive`` attention (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473, sections 3.1 and A.2.2) uses the first
      layer's state before each step as the query and adds the context, times a matrix, to that step's pre-activations.
      It needs a jaxgen cell and always runs the first layer with the plain scan.

    With attention the output layer reads tanh([context; state] W), Luong's attentional vector, H wide.

    Args:
        attention: a name in ``ATTENTIONS``, or ``none``: the decoder then sees the source only in its initial state.
        token_dropout: in training, the rate at which tokens other than the first are replaced by ``unknown``, so that
            the decoder has to rely on the encoder (Bowman et al. 2016, arXiv:1511.06349, section 3.1).
        unknown: the token that replaces dropped ones.

    The other fields are those of ``LanguageModel``.
    """

    token_dropout: float = 0.0
    unknown: int = 1
    attention: str = "none"
    tie: bool = False

    def __post_init__(self) -> None:
        choose(str(self.attention), ["none", *ATTENTIONS], "attention")
        if self._attends_in_recurrence:
            what = f"The attention {self.attention!r} adds to the first cell's pre-activations: it"
            require_jaxgen_cells(self.cells_of_pattern[:1], what)
            if self.block is not None:
                raise UsageError(f"{what} needs the block 'plain'. Use that block, or the attention 'general'.")
        if self.attention == "none" and not any(self.vector_layers):
            raise UsageError(
                "This decoder would not see its source: none of its layers can start from the encoder's final states, "
                "and it does not attend to the encoder: choose --attention general, another cell, or --layers-pattern."
            )
        check_rates(self, ["token_dropout"])
        LanguageModel(**shared_fields(self, LanguageModel), parent=None)  # checks the other fields
        super().__post_init__()

    @property
    def _attends_in_recurrence(self) -> bool:
        return self.attention in ATTENTIONS and ATTENTIONS[self.attention].in_recurrence

    def setup(self) -> None:
        self.language = LanguageModel(**shared_fields(self, LanguageModel))
        sizes = [state_size(state) for state in self.language.cell_states(1)]
        self.bridge = [Affine(size, precision=self.precision) for size in sizes]
        if self.attention != "none":
            self.attending = ATTENTIONS[self.attention](self.hidden, precision=self.precision)
            self.combine = Affine(self.hidden, precision=self.precision)
        if self._attends_in_recurrence:
            self.context_kernel = ContextKernel()

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return super().has_dropout or self.token_dropout > 0

    def token_table(self) -> Shaped[Array, "V K"] | None:
        return self.language.token_table()

    def logits(self, features: Shaped[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        return self.language.logits(features)

    def init_decoder(
        self,
        finals: Sequence[PyTree],
        values: Shaped[ArrayLike, "B S M"] | None,
        valid: Bool[ArrayLike, "B S"] | None = None,
    ) -> tuple[tuple[Carry, ...], PyTree]:
        """The initial carry, and the ``Memory`` to attend to (``()`` without attention).

        Every array of a cell's state is tanh(f W + b), with f the concatenation of all final arrays of one encoder
        layer, so encoder and decoder may differ in cell, size, directions and layers (Bahdanau et al. 2015, appendix
        A.2.2, where f is the backward direction only). Layers are matched from the top downwards; if the encoder has
        fewer, its lowest layer is used for the rest. A layer that cannot start from vectors starts from zeros.

        Args:
            finals: a pytree of arrays [B, ...] for each layer of the encoder, the lowest first.
            values: the vectors to attend to.
            valid: false in padding; ``None``: there is no padding.
        """
        rows, unmatched = jax.tree.leaves(finals)[0].shape[0], self.layers - len(finals)
        states = []
        for layer, (bridge, like) in enumerate(zip(self.bridge, self.language.cell_states(rows))):
            if not self.vector_layers[layer]:
                states.append(like)
                continue
            given = [leaf.reshape(rows, -1) for leaf in jax.tree.leaves(finals[max(0, layer - unmatched)])]
            states.append(unflatten_state(jnp.tanh(bridge(jnp.concatenate(given, axis=-1))), like))
        carry = self.language.start(states, rows)
        if self.attention == "none":
            return carry, ()
        if values is None:
            raise UsageError(
                f"The attention {self.attention!r} needs source positions to look at, and the encoder gives none: "
                'use the attention "none", or an encoder that gives values.'
            )
        return carry, self.attending.build_memory(values, valid)

    def decode(
        self,
        tokens: Int[ArrayLike, "B T"],
        carry: Sequence[Carry],
        memory: PyTree = (),
        row_keys: RowKeys | None = None,
        table: Shaped[ArrayLike, "V K"] | None = None,
    ) -> DecoderOutput:
        """Read ``tokens`` from a carry and a memory of ``init_decoder``; a decoding step is the case T = 1.

        ``row_keys`` switch dropout on. ``table`` is a ``token_table()`` computed earlier.
        """
        tokens = jnp.asarray(tokens)
        if row_keys is not None and self.token_dropout > 0:
            rest = drop_tokens(tokens[:, 1:], self.token_dropout, self.unknown, fold_in_rows(row_keys, self.layers + 1))
            tokens = jnp.concatenate([tokens[:, :1], rest], axis=1)
        tokens = tokens.T
        if self._attends_in_recurrence:
            after, states, context, weights = self._decode_with_context(tokens, carry, memory, row_keys, table)
        else:
            after, states = self.language.states(tokens, carry, row_keys=row_keys, table=table)
        states = jnp.swapaxes(states, 0, 1)
        if self.attention == "none":
            return DecoderOutput(after, states, None)
        if not self._attends_in_recurrence:
            context, weights = self.attending.attend(self.attending.weights(), memory, states)
        both = jnp.concatenate([context, states.astype(context.dtype)], axis=-1)
        return DecoderOutput(after, jnp.tanh(self.combine(both)), weights)

    def _decode_with_context(
        self,
        tokens: Int[Array, "T B"],
        carry: Sequence[Carry],
        memory: Memory,
        row_keys: RowKeys | None,
        table: Shaped[ArrayLike, "V K"] | None,
    ) -> tuple[tuple[Carry, ...], Shaped[Array, "T B H"], Shaped[Array, "B T M"], Shaped[Array, "B T S"]]:
        """The layers with a context added to the first one's pre-activations.

        Returns the carry, the top layer's outputs, the contexts and the attention weights.
        """
        first: Any = self.language.stack.cells[0]  # a ``Cell``: ``__post_init__`` refuses others
        tables = None if table is None else [table]
        (z,), projected = self.language.embedder.inputs(tokens, [first], fold_in_rows(row_keys, self.layers), tables)
        z = z if projected else first.project(z)
        pure, attending = first.clone(parent=None), self.attending.clone(parent=None)
        kernel = self.context_kernel(memory.values.shape[-1], z.shape[-1])
        keys = cell_keys(first, fold_in_rows(row_keys, 0))
        noisy, state, z, _, own_carry = with_noise(pure, carry[0], z, None, keys)
        kernel = jnp.pad(kernel, ((0, 0), (0, z.shape[-1] - kernel.shape[-1])))  # nothing is added to masks of noise

        def step(weights: PyTree, state: Carry, z_t: Array) -> tuple[Carry, tuple[Array, Array, Array]]:
            recurrent, scoring, kernel, memory = weights
            context, shares = attending.attend(scoring, memory, pure.hidden(own_carry(state))[:, None, :])
            context, shares = jnp.squeeze(context, 1), jnp.squeeze(shares, 1)
            state, y = noisy.step(recurrent, state, z_t + matmul(context, kernel, self.precision).astype(z_t.dtype))
            return state, (y, context, shares)

        constant = (first.weights(), self.attending.weights(), kernel, memory)
        state, (x, contexts, shares) = run(step, constant, state, z)
        x = dropout(x, self.dropout, fold_in_rows(row_keys, 0), self.locked_dropout)
        upper, x = self.language.stack(x, carry, row_keys=row_keys, lowest=1)
        return (own_carry(state), *upper), x, jnp.swapaxes(contexts, 0, 1), jnp.swapaxes(shares, 0, 1)


@runtime_checkable
class EncoderProtocol(Protocol):
    """The interface of encoders for ``EncoderDecoder``: any Linen module with these methods."""

    @property
    def has_dropout(self) -> bool: ...

    def example(self) -> PyTree:
        """Inputs of one row, from which the parameters get their shapes."""
        ...

    def encode(self, inputs: PyTree, row_keys: RowKeys | None = None) -> DecoderInput:
        """Read ``inputs``, a pytree with B in front; the rows must be independent of each other."""
        ...


class EncoderDecoder(nn.Module):
    """An encoder (``EncoderProtocol``) and the ``Decoder`` that starts from its final states.

    ``Seq2SeqTask`` calls the methods by name, so a subclass may override any of them.
    """

    encoder: EncoderProtocol
    decoder: Decoder

    @property
    def has_dropout(self) -> bool:
        """Whether ``row_keys`` change anything."""
        return self.encoder.has_dropout or self.decoder.has_dropout

    def init_decoder(self, inputs: PyTree, row_keys: RowKeys | None = None) -> tuple[tuple[Carry, ...], PyTree]:
        """Encode ``inputs`` and return the decoder's initial carry and memory (``Decoder.init_decoder``)."""
        source = self.encoder.encode(inputs, row_keys=fold_in_rows(row_keys, 0))
        return self.decoder.init_decoder(source.finals, source.values, source.valid)

    def decode(
        self,
        tokens: Int[ArrayLike, "B T"],
        carry: Sequence[Carry],
        memory: PyTree,
        row_keys: RowKeys | None = None,
        table: Shaped[ArrayLike, "V K"] | None = None,
    ) -> DecoderOutput:
        return self.decoder.decode(tokens, carry, memory, fold_in_rows(row_keys, 1), table)

    def logits(self, features: Shaped[Array, "*batch H"]) -> Float[Array, "*batch V"]:
        return self.decoder.logits(features)

    def token_table(self) -> Shaped[Array, "V K"] | None:
        return self.decoder.token_table()

    def __call__(
        self, inputs: PyTree, tokens: Int[ArrayLike, "B T"], row_keys: RowKeys | None = None
    ) -> Float[Array, "B T V"]:
        """The logits of each next token of ``tokens``, given ``inputs``."""
        return self.logits(self.decode(tokens, *self.init_decoder(inputs, row_keys), row_keys).features)
