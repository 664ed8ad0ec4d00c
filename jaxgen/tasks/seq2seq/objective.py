"""Texts written from something else: one to many and many to many, unaligned. Loss and decoding for any encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.models.decoder import EncoderDecoder
from jaxgen.models.layers import fold_in_rows
from jaxgen.types import Array, Carry, DecodeWeights, Key, Objective, Params, Seq2SeqBatch

#: The id that stands in front of a text and behind it, that of every tokenizer.
EOS = 2


class Seq2SeqTotals(NamedTuple):
    """Sums over the targets that count, so that batches of different sizes add up."""

    nll: Array  # summed negative log-likelihood, nats
    targets: Array  # how many
    correct: Array  # how many were the likeliest token
    objective: Objective  # in training with label smoothing the smoothed cross-entropy, else that of ``nll``


@dataclass(frozen=True)
class Seq2SeqTask:
    """An encoder and a decoder with their loss and their decoding functions; everything here is pure.

    ``scheduled_sampling`` switches scheduled sampling on; its probability is in the batches.
    ``label_smoothing`` is the share of the training target spread evenly over the vocabulary (Szegedy et al. 2016,
    arXiv:1512.00567, section 7); evaluation is without. Decoding begins behind the token ``eos``.
    """

    model: EncoderDecoder
    scheduled_sampling: bool = False
    label_smoothing: float = 0.0
    eos: int = EOS

    #: What an answer to an input is: a text, written token by token.
    ANSWER: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"`label_smoothing` is {self.label_smoothing!r}: it must be at least 0 and less than 1; 0 is without."
            )
        vocab = self.model.decoder.vocab_size
        if not 0 <= self.eos < vocab:
            raise UsageError(f"The token {self.eos} begins and ends texts, and ids go from 0 to {vocab - 1}.")

    def _apply(self, params: Params, *args: Any, method: str, **kwargs: Any) -> Any:
        return self.model.apply({"params": params}, *args, method=method, **kwargs)

    @property
    def is_random(self) -> bool:
        """Whether training does what evaluation does not, for which it takes ``row_keys``."""
        return self.model.has_dropout or self.scheduled_sampling or self.label_smoothing > 0

    def resolved_options(self) -> dict[str, Any]:
        """Options of ``build`` that a rule has chosen for this model on this device."""
        return {"form": self.model.decoder.chosen_form()}

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        return self.model.init(key, self.model.encoder.example(), jnp.zeros((1, 1), jnp.int32))["params"]

    def initial_carry(self, rows: int) -> tuple[()]:
        """Nothing: every text begins afresh."""
        del rows
        return ()

    def loss(
        self, params: Params, carry: tuple[()], batch: Seq2SeqBatch, row_keys: Key | None = None
    ) -> tuple[tuple[()], Seq2SeqTotals]:
        """Summed cross-entropy of the targets that count. ``row_keys`` [B] are there in training alone.

        With them dropout is on, labels are smoothed, and with ``scheduled_sampling`` the decoder reads its own
        predictions with the probabilities ``batch.scheduled_sampling_prob``.
        """
        tokens, targets, mask = (jnp.asarray(field) for field in (batch.tokens, batch.targets, batch.mask))
        start, memory = self._apply(params, batch.inputs, row_keys, method="init_decoder")
        if self.scheduled_sampling and row_keys is not None:
            tokens = self._mixed(params, tokens, start, memory, jnp.asarray(batch.scheduled_sampling_prob), row_keys)
        written = self._apply(params, tokens, start, memory, row_keys, method="decode")
        logits = self._apply(params, written.features, method="logits")
        total = jax.nn.logsumexp(logits, axis=-1)
        nll = aim = total - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        if self.label_smoothing and row_keys is not None:
            even = total - jnp.mean(logits, axis=-1)
            aim = (1 - self.label_smoothing) * nll + self.label_smoothing * even
        correct = mask & (jnp.argmax(logits, axis=-1) == targets)
        each = (jnp.where(mask, nll, 0.0), mask, correct, jnp.where(mask, aim, 0.0))
        summed, count, right, loss = (jnp.sum(one, dtype=jnp.float32) for one in each)
        return carry, Seq2SeqTotals(summed, count, right, Objective(loss, count))

    def _mixed(
        self, params: Params, tokens: Array, start: tuple[Carry, ...], memory: Any, prob: Array, row_keys: Key
    ) -> Array:
        """``tokens`` [B, T], each but the first replaced by the model's own prediction with probability ``prob`` [B].

        Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) in two passes (Duckworth et al. 2019,
        arXiv:1906.04331): predictions are the likeliest tokens of a pass that reads the text itself, without gradient,
        by the same network (the same units dropped). Tokens are drawn row by row.
        """
        if tokens.shape[1] < 2:
            return tokens

        def mix(_: None) -> Array:
            # The likeliest has no gradient anyway; said at once, nothing is prepared for one.
            known = lax.stop_gradient((params, start, memory))
            written = self._apply(known[0], tokens[:, :-1], *known[1:], row_keys, method="decode")
            likeliest = jnp.argmax(self._apply(known[0], written.features, method="logits"), axis=-1)
            draw = lambda key: jax.random.uniform(key, (tokens.shape[1] - 1,))  # noqa: E731
            replaced = jax.vmap(draw)(fold_in_rows(row_keys, 2)) < prob[:, None]
            mixed = jnp.where(replaced, likeliest.astype(tokens.dtype), tokens[:, 1:])
            return jnp.concatenate([tokens[:, :1], mixed], axis=1)

        return lax.cond(jnp.any(prob > 0), mix, lambda _: tokens, None)  # a schedule begins and may end with zeros

    def evaluate(self, params: Params, carry: tuple[()], batch: Seq2SeqBatch) -> tuple[tuple[()], Seq2SeqTotals]:
        """What an evaluation sums up."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> DecodeWeights:
        """Everything decoding can compute once: the first layer's product for every token."""
        return DecodeWeights(params, self._apply(params, method="token_table"))

    def init_decoder(self, prepared: DecodeWeights, inputs: Any) -> tuple[Any, tuple[Carry, ...], Array]:
        """Read ``inputs``, R rows in every leaf -> memory, carry and the logits [R, V] of the first token.

        Every leaf of the memory and of the carry has R in front. The memory stays the same while a text is written.
        """
        carry, memory = self._apply(prepared.params, inputs, method="init_decoder")
        first = jnp.full(jax.tree.leaves(carry)[0].shape[0], self.eos, jnp.int32)
        return memory, *self.step((prepared, memory), carry, first)

    def step(
        self, weights: tuple[DecodeWeights, Any], carry: tuple[Carry, ...], token: Array
    ) -> tuple[tuple[Carry, ...], Array]:
        """One decoding step with the weights ``(prepared, memory)``: ``token`` [R] -> carry and logits [R, V]."""
        return self._step(weights, carry, token)[:2]

    def attention_weights(self, prepared: DecodeWeights, inputs: Any, tokens: Array) -> Array:
        """Where each step looks that reads ``tokens`` [R, T], written from ``inputs``: weights of places [R, T, S].

        Raises ``UsageError`` for a model without attention.
        """
        if self.model.decoder.attention == "none":
            raise UsageError('This model was made with the attention "none" and looks nowhere: train one with another.')
        start, memory = self._apply(prepared.params, inputs, method="init_decoder")
        weights: Any = self._apply(prepared.params, tokens, start, memory, method="decode").weights
        return weights

    def _step(
        self, weights: tuple[DecodeWeights, Any], carry: tuple[Carry, ...], token: Array
    ) -> tuple[tuple[Carry, ...], Array, Array | None]:
        prepared, memory = weights
        written = self._apply(prepared.params, token[:, None], carry, memory, table=prepared.table, method="decode")
        features, places = jax.tree.map(lambda a: jnp.squeeze(a, 1), (written.features, written.weights))
        return written.carry, self._apply(prepared.params, features, method="logits"), places
