"""A text read whole: recurrent layers in one direction or in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.base import Cell
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.unroll import choose_form, unroll, unroll_projected
from jaxgen.models.layers import Embedding, check_form_and_precision, check_rates, check_sizes, dropped, fold_in_rows
from jaxgen.types import Array, ArrayLike, Carry, Key, TokenRows


class Encoded(NamedTuple):
    """What an encoder makes of B texts of at most S tokens."""

    #: Of the last layer, [B, S, M]; both directions beside each other, zero in padding.
    outputs: Array
    #: The state in which every layer and direction ends: the forward one at the last token, the backward one at the
    #: first. ``finals[layer][direction]`` is a carry with B in front.
    finals: tuple[tuple[Carry, ...], ...]


class DecoderInput(NamedTuple):
    """What a decoder may begin from (``jaxgen.models.EncoderDecoder``); B in front of every array."""

    finals: tuple[Any, ...]  # for each layer of the encoder, the lowest first, any pytree of [B, ...]
    values: Array | None = None  # [B, S, M], the places that attention looks at
    valid: Array | None = None  # bool [B, S], false in padding; None: there is none


class Encoder(nn.Module):
    """Embedding and ``layers`` recurrent layers of ``hidden`` units a direction (M = ``hidden``, or twice that).

    With ``bidirectional`` every layer reads the outputs of the one below from both ends, and gives both readings side
    by side (Schuster & Paliwal 1997, IEEE Transactions on Signal Processing 45; stacked as in Graves, Jaitly & Mohamed
    2013). The backward reading of a padded row begins at its last token.

    ``cell`` is called as ``cell(features=hidden)`` for each layer and direction: a class of ``CELLS``, a
    ``functools.partial`` of one, or any Linen ``RNNCellBase``. ``embed=None`` makes the embedding as wide as the state;
    ``embed=0`` feeds one-hot vectors straight into the cell. ``dropout`` acts on what a layer passes upwards, the last
    one's outputs included and final states not (``Stack``), ``embed_dropout`` on the embeddings; both are off unless
    ``row_keys`` are given. ``embed_stddev`` is that of the embedding's initial values: small ones keep what has hardly
    been seen from mattering. ``form`` is that of ``unroll``, ``precision`` that of all matrix products
    (``jaxgen.cells.PRECISIONS``); other than ``float32`` it takes a jaxgen cell. Sizes that cannot be used raise
    ``UsageError``.
    """

    vocab_size: int
    cell: Callable[..., nn.RNNCellBase] = LSTM
    hidden: int = 256
    layers: int = 1
    embed: int | None = None
    dropout: float = 0.0
    embed_dropout: float = 0.0
    embed_stddev: float = 1.0
    bidirectional: bool = False
    form: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[Any, int]] = {name: (getattr(self, name), 1) for name in ("vocab_size", "hidden")}
        check_sizes("encoder", sizes | {"layers": (self.layers, 1), "embed": (self.width, 0)})
        check_rates("encoder", {"dropout": self.dropout, "embed_dropout": self.embed_dropout})
        check_form_and_precision(self.cell, self.form, self.precision)
        super().__post_init__()

    @property
    def width(self) -> int:
        """Of the embedding; 0 for one-hot vectors."""
        return self.hidden if self.embed is None else self.embed

    @property
    def features(self) -> int:
        """M, the width of the outputs."""
        return self.hidden * (2 if self.bidirectional else 1)

    def setup(self) -> None:
        more = {} if self.precision == "float32" else {"precision": self.precision}  # Flax's cells know no such field
        self.embedding = Embedding(self.vocab_size, self.width, self.embed_dropout, self.embed_stddev)
        self.forwards = [self.cell(features=self.hidden, **more) for _ in range(self.layers)]
        if self.bidirectional:
            self.backwards = [self.cell(features=self.hidden, **more) for _ in range(self.layers)]

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or self.embed_dropout > 0

    @nn.nowrap
    def chosen_form(self) -> str:
        """What ``form`` comes to for this encoder's cell, on the device that JAX computes on by default."""
        return choose_form(self.form, self.cell(features=self.hidden, parent=None))

    def __call__(
        self,
        tokens: ArrayLike,
        valid: ArrayLike | None = None,
        row_keys: Key | None = None,
        drop_outputs: bool = True,
    ) -> Encoded:
        """``tokens`` and ``valid`` [B, S], false in padding (``None``: there is none) -> outputs and final states.

        What stands in padding changes no bit. A row without a token ends in zeros. ``row_keys`` [B] switches dropout
        on; a row's units depend on its own key alone. Without ``drop_outputs`` the last layer's outputs stay whole.
        """
        tokens = jnp.asarray(tokens).T
        if valid is not None:
            valid = jnp.asarray(valid, bool).T
            tokens = jnp.where(valid, tokens, 0)
        layers = list(zip(self.forwards, *([self.backwards] if self.bidirectional else [])))
        inputs, projected = self.embedding.read(tokens, layers[0], fold_in_rows(row_keys, self.layers))
        finals: list[tuple[Carry, ...]] = []
        for layer, cells in enumerate(layers):
            read = [
                self._unroll(cell, x, projected and layer == 0, valid, bool(direction))
                for direction, (cell, x) in enumerate(zip(cells, inputs))
            ]
            finals.append(tuple(final for final, _ in read))
            x = jnp.concatenate([ys for _, ys in read], axis=-1)
            if drop_outputs or layer + 1 < self.layers:
                x = dropped(x, self.dropout, fold_in_rows(row_keys, layer))
            inputs = [x] * len(cells)
        return Encoded(jnp.swapaxes(x, 0, 1), tuple(finals))

    def encode(self, inputs: TokenRows, row_keys: Key | None = None) -> DecoderInput:
        """``__call__`` as a decoder takes it."""
        encoded = self(inputs.tokens, inputs.valid, row_keys)
        return DecoderInput(encoded.finals, encoded.outputs, jnp.asarray(inputs.valid, bool))

    @nn.nowrap
    def example(self) -> TokenRows:
        """Inputs of one row, by which parameters get their shapes."""
        return TokenRows(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))

    def _unroll(
        self, cell: nn.RNNCellBase, x: Array, projected: bool, valid: Array | None, reverse: bool
    ) -> tuple[Carry, Array]:
        """The final state and the outputs [S, B, H] of one layer in one direction; x is [S, B, ...]."""
        options: dict[str, Any] = {"valid": valid, "reverse": reverse, "form": self.form}
        if not (projected and isinstance(cell, Cell)):
            return unroll(cell, x, **options, time_major=True)
        start = cell.initialize_carry(jax.random.key(0), (x.shape[1], self.width or self.vocab_size))
        return unroll_projected(cell, start, x, **options)
