"""A text written from what an encoder has read: a language model whose state begins there, and which may look back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.base import Affine, Cell
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.precision import matmul
from jaxgen.cells.scan import run
from jaxgen.cells.unroll import unroll
from jaxgen.errors import UsageError, choose
from jaxgen.models.attention import ATTENTIONS, Memory
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.layers import cell_name, check_rates, drop_tokens, dropped, fold_in_rows, is_jaxgen_cell
from jaxgen.types import Array, Carry, Key

#: The fields that are those of the language model.
LANGUAGE = (
    "vocab_size",
    "cell",
    "hidden",
    "layers",
    "embed",
    "dropout",
    "embed_dropout",
    "tie",
    "form",
    "precision",
)


class DecoderOutput(NamedTuple):
    """What a decoder makes of T tokens; ``Decoder.logits`` makes logits of ``features``."""

    carry: tuple[Carry, ...]
    features: Array  # [B, T, H]
    weights: Array | None  # [B, T, S], where each step has looked; None without attention


class ContextKernel(nn.Module):
    """The matrix [M, K] by which a context enters a cell's pre-activations, in the units of ``Cell.project``."""

    @nn.compact
    def __call__(self, rows: int, columns: int) -> Array:
        return self.param("kernel", nn.initializers.lecun_normal(), (rows, columns), jnp.float32)


class Decoder(nn.Module):
    """A ``LanguageModel`` (its fields are those) that begins where an encoder ended and may attend to a ``Memory``.

    ``attention`` names how (``ATTENTIONS``), or is ``none``: then all that is known of the source is the first state.

    - ``general`` (Luong, Pham & Manning 2015, arXiv:1508.04025, sections 3 and 3.1) attends with the top layer's state,
      behind the recurrence, so that training runs over all steps as without it. (No input feeding, section 3.3.)
    - ``additive`` (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473, sections 3.1 and A.2.2) attends with the first
      layer's state before each step and adds the context, times a matrix, to that step's pre-activations. It takes a
      jaxgen cell and runs that layer by the plain scan.

    In training a share ``token_dropout`` of the tokens but the first is read as ``unknown`` (Bowman et al. 2016,
    arXiv:1511.06349, section 3.1), so that more has to come from what the encoder has read.

    With either the output layer sees tanh([context; state] W), Luong's attentional vector, H wide. Sizes that cannot be
    used raise ``UsageError``.
    """

    vocab_size: int
    cell: Callable[..., nn.RNNCellBase] = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    embed_dropout: float = 0.0
    token_dropout: float = 0.0
    unknown: int = 1
    attention: str = "none"
    tie: bool = False
    form: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose(str(self.attention), ["none", *ATTENTIONS], "attention")
        if self._feeds and not is_jaxgen_cell(self.cell):
            raise UsageError(
                f"The attention {self.attention!r} adds to a cell's pre-activations, which takes a jaxgen cell, and "
                f"{cell_name(self.cell)} is none: use a cell of CELLS or one of your own, or another attention."
            )
        check_rates("decoder", {"token_dropout": self.token_dropout})
        self._model(parent=None)  # what it refuses is refused before anything is traced
        super().__post_init__()

    @nn.nowrap
    def _model(self, **options: Any) -> LanguageModel:
        sizes = {name: getattr(self, name) for name in LANGUAGE}
        return LanguageModel(**sizes, **options)

    @property
    def _feeds(self) -> bool:
        return self.attention in ATTENTIONS and ATTENTIONS[self.attention].in_recurrence

    def setup(self) -> None:
        self.language = self._model()
        states = [jax.tree.leaves(state) for state in self._model(parent=None).initial_carry(1)]
        self.bridge = [Affine(sum(leaf.size for leaf in state), precision=self.precision) for state in states]
        if self.attention != "none":
            self.attending = ATTENTIONS[self.attention](self.hidden, precision=self.precision)
            self.combine = Affine(self.hidden, precision=self.precision)
        if self._feeds:
            self.context_kernel = ContextKernel()

    @nn.nowrap
    def chosen_form(self) -> str:
        """What ``form`` comes to for this decoder's cell, on the device that JAX computes on by default."""
        return self._model(parent=None).chosen_form()

    @property
    def has_dropout(self) -> bool:
        return max(self.dropout, self.embed_dropout, self.token_dropout) > 0

    def token_table(self) -> Array | None:
        """``LanguageModel.token_table``."""
        return self.language.token_table()

    def logits(self, features: Array) -> Array:
        """The output layer: features [..., H] -> float32 logits [..., V]."""
        return self.language.logits(features)

    def init_decoder(
        self, finals: Sequence[Any], values: Array | None, valid: Array | None = None
    ) -> tuple[Carry, Any]:
        """The state in which to begin and what to attend to (``()`` without attention), from what an encoder has read.

        Every array of a layer's state is h = tanh(f W + b), with f all arrays in which one layer of the encoder ended,
        side by side, so that encoder and decoder may differ in cell, size, directions and layers (Bahdanau et al. 2015,
        appendix A.2.2, where f is the backward reading alone). ``finals`` has any pytree of [B, ...] for each layer of
        the encoder, the lowest first. Layers are matched from the top downwards; where the encoder has fewer, its
        lowest serves all that are left.

        ``values`` [B, S, M] with ``valid`` [B, S] (``None``: all of them) are what attention looks at.
        """
        rows, unmatched = jax.tree.leaves(finals)[0].shape[0], self.layers - len(finals)
        carry = []
        for layer, (bridge, like) in enumerate(zip(self.bridge, self._model(parent=None).initial_carry(rows))):
            given = [leaf.reshape(rows, -1) for leaf in jax.tree.leaves(finals[max(0, layer - unmatched)])]
            flat = jnp.tanh(bridge(jnp.concatenate(given, axis=-1)))
            leaves, structure = jax.tree.flatten(like)
            ends = list(itertools.accumulate(leaf.size // rows for leaf in leaves))
            parts = zip(jnp.split(flat, ends[:-1], axis=-1), leaves)
            carry.append(jax.tree.unflatten(structure, [part.astype(a.dtype).reshape(a.shape) for part, a in parts]))
        if self.attention == "none":
            return tuple(carry), ()
        if values is None:
            raise UsageError(
                f"The attention {self.attention!r} needs places to look at, and the encoder gives none: "
                'use the attention "none", or an encoder that gives outputs.'
            )
        return tuple(carry), self.attending.build_memory(values, valid)

    def decode(
        self,
        tokens: Array,
        carry: Sequence[Carry],
        memory: Any = (),
        row_keys: Key | None = None,
        table: Array | None = None,
    ) -> DecoderOutput:
        """``tokens`` [B, T] from a state and with a memory as ``init_decoder`` gives them.

        Decoding is the case T = 1. ``row_keys`` [B] switches dropout on; ``table`` is a ``token_table()`` made earlier.
        """
        tokens = jnp.asarray(tokens)
        if row_keys is not None and self.token_dropout > 0:
            rest = drop_tokens(tokens[:, 1:], self.token_dropout, self.unknown, fold_in_rows(row_keys, self.layers + 1))
            tokens = jnp.concatenate([tokens[:, :1], rest], axis=1)
        tokens = tokens.T
        if self._feeds:
            after, states, context, weights = self._feed(tokens, carry, memory, row_keys, table)
        else:
            after, states = self.language.states(tokens, carry, row_keys=row_keys, table=table)
        states = jnp.swapaxes(states, 0, 1)
        if self.attention == "none":
            return DecoderOutput(after, states, None)
        if not self._feeds:
            context, weights = self.attending.attend(self.attending.weights(), memory, states)
        both = jnp.concatenate([context, states.astype(context.dtype)], axis=-1)
        return DecoderOutput(after, jnp.tanh(self.combine(both)), weights)

    def _feed(
        self, tokens: Array, carry: Sequence[Carry], memory: Memory, row_keys: Key | None, table: Array | None
    ) -> tuple[tuple[Carry, ...], Array, Array, Array]:
        """The layers with a context added to the first one's pre-activations.

        Returns the carry, the top layer's states [T, B, H], contexts [B, T, M] and their weights [B, T, S].
        """
        cells: Any = self.language.stack.cells
        first, *upper = cells
        z = self._projected(first, tokens, fold_in_rows(row_keys, self.layers), table)
        pure, attending = first.clone(parent=None), self.attending.clone(parent=None)
        kernel = self.context_kernel(memory.values.shape[-1], z.shape[-1])

        def step(weights: Any, state: Carry, z_t: Array) -> tuple[Carry, tuple[Array, Array, Array]]:
            recurrent, scoring, kernel, memory = weights
            context, shares = attending.attend(scoring, memory, pure.hidden(state)[:, None, :])
            context, shares = jnp.squeeze(context, 1), jnp.squeeze(shares, 1)
            state, y = pure.step(recurrent, state, z_t + matmul(context, kernel, self.precision).astype(z_t.dtype))
            return state, (y, context, shares)

        constant = (first.weights(), self.attending.weights(), kernel, memory)
        state, (x, contexts, shares) = run(step, constant, carry[0], z)
        after = [state]
        for layer, (cell, state) in enumerate(zip(upper, carry[1:]), start=1):
            x = dropped(x, self.dropout, fold_in_rows(row_keys, layer - 1))
            state, x = unroll(cell, x, state, time_major=True, form=self.form)
            after.append(state)
        x = dropped(x, self.dropout, fold_in_rows(row_keys, self.layers - 1))
        return tuple(after), x, jnp.swapaxes(contexts, 0, 1), jnp.swapaxes(shares, 0, 1)

    def _projected(self, cell: Cell, tokens: Array, row_keys: Key | None, table: Array | None) -> Array:
        """The tokens' part of the first layer's pre-activations, [T, B, K]."""
        dropping = row_keys is not None and self.embed_dropout > 0
        if table is None and self.vocab_size < tokens.size and not dropping:
            table = self.token_table()
        if table is not None and not dropping:
            return jnp.asarray(table)[tokens]
        return cell.project(dropped(self.language.embedded(tokens), self.embed_dropout, row_keys))


class EncoderDecoder(nn.Module):
    """``decoder`` writes from what ``encoder`` has read.

    An encoder is any Linen module with

    - ``encode(inputs, row_keys=None) -> DecoderInput``, where ``inputs`` is a pytree of arrays with B in front and
      ``row_keys`` [B] switch dropout on. The rows must be independent of each other;
    - ``example() -> inputs`` of one row, by which parameters get their shapes;
    - ``has_dropout``, whether ``row_keys`` change anything.
    """

    encoder: Any
    decoder: Decoder

    @property
    def has_dropout(self) -> bool:
        return self.encoder.has_dropout or self.decoder.has_dropout

    def init_decoder(self, inputs: Any, row_keys: Key | None = None) -> tuple[tuple[Carry, ...], Any]:
        """Read ``inputs`` -> the state in which the decoder begins and its memory (``Decoder.init_decoder``)."""
        source = self.encoder.encode(inputs, row_keys=fold_in_rows(row_keys, 0))
        return self.decoder.init_decoder(source.finals, source.values, source.valid)

    def decode(
        self,
        tokens: Array,
        carry: Sequence[Carry],
        memory: Any,
        row_keys: Key | None = None,
        table: Array | None = None,
    ) -> DecoderOutput:
        """``Decoder.decode`` of ``tokens`` [B, T]."""
        return self.decoder.decode(tokens, carry, memory, fold_in_rows(row_keys, 1), table)

    def logits(self, features: Array) -> Array:
        """``Decoder.logits``: features [..., H] -> float32 logits [..., V]."""
        return self.decoder.logits(features)

    def token_table(self) -> Array | None:
        """``Decoder.token_table``."""
        return self.decoder.token_table()

    def __call__(self, inputs: Any, tokens: Array, row_keys: Key | None = None) -> Array:
        """Logits [B, T, V] of what follows each of ``tokens`` [B, T] when written from ``inputs``."""
        return self.logits(self.decode(tokens, *self.init_decoder(inputs, row_keys), row_keys).features)
