"""Sequence to sequence (one to many; many to many, unaligned): loss and decoding functions for any encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from jaxgen.errors import UsageError
from jaxgen.models.decoder import EncoderDecoder
from jaxgen.models.layers import fold_in_rows
from jaxgen.types import Array, Carry, DecodeWeights, Key, Objective, Params, Seq2SeqBatch

#: The token before and after a text. It has the same id in every tokenizer.
EOS = 2


class Seq2SeqTotals(NamedTuple):
    """Sums over the targets that count, so totals of batches of different sizes can be added."""

    nll: Array  # summed negative log-likelihood, nats
    targets: Array  # number of targets
    correct: Array  # number of targets that were the most probable token
    objective: Objective  # the cross-entropy with label smoothing in training, else equal to ``nll``


@dataclass(frozen=True)
class Seq2SeqTask:
    """An encoder and a decoder with their loss and their decoding functions. All methods are pure.

    Attributes:
        model: the encoder and the decoder.
        use_scheduled_sampling: whether to use scheduled sampling. Its probability is part of the batch.
        label_smoothing: the fraction of the training target spread evenly over the vocabulary (Szegedy et al. 2016,
            arXiv:1512.00567, section 7); not used in evaluation.
        eos: the first token that the decoder reads, and the one that ends a text.
    """

    model: EncoderDecoder
    use_scheduled_sampling: bool = False
    label_smoothing: float = 0.0
    eos: int = EOS

    #: Prediction returns a text, generated token by token.
    ANSWER: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"`label_smoothing` is {self.label_smoothing!r}: it must be at least 0 and less than 1; 0 turns it off."
            )
        vocab = self.model.decoder.vocab_size
        if not 0 <= self.eos < vocab:
            raise UsageError(f"`eos` is {self.eos}: give a token id from 0 to {vocab - 1}.")

    def _apply(self, params: Params, *args: Any, method: str, **kwargs: Any) -> Any:
        return self.model.apply({"params": params}, *args, method=method, **kwargs)

    @property
    def is_random(self) -> bool:
        """Whether training needs ``row_keys``, because its loss differs from that of an evaluation."""
        return self.model.has_dropout or self.use_scheduled_sampling or self.label_smoothing > 0

    @property
    def weight_dropout(self) -> float:
        """The rate at which the training step drops recurrent weights of both networks: the decoder's."""
        return self.model.decoder.weight_dropout

    def resolved_options(self) -> dict[str, str]:
        """Return the options of ``build`` whose value was resolved for this model on this device."""
        return {"form": self.model.decoder.chosen_form()}

    def init(self, key: Key) -> Params:
        """Return initial parameters."""
        return self.model.init(key, self.model.encoder.example(), jnp.zeros((1, 1), jnp.int32))["params"]

    def initial_carry(self, rows: int) -> tuple[()]:
        """Return an empty carry: texts do not continue each other."""
        del rows
        return ()

    def loss(
        self, params: Params, carry: tuple[()], batch: Seq2SeqBatch, row_keys: Key | None = None
    ) -> tuple[tuple[()], Seq2SeqTotals]:
        """Return the summed cross-entropy of the targets that count.

        ``row_keys`` [B] are given in training only. They enable dropout and label smoothing and, with
        ``use_scheduled_sampling``, let the decoder read its own predictions with the probabilities
        ``batch.scheduled_sampling_prob``.
        """
        tokens, targets, mask = (jnp.asarray(field) for field in (batch.tokens, batch.targets, batch.mask))
        start, memory = self._apply(params, batch.inputs, row_keys, method="init_decoder")
        if self.use_scheduled_sampling and row_keys is not None:
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
        """Replace each of ``tokens`` [B, T] but the first by the model's prediction with probability ``prob`` [B].

        This is scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) in two passes (Duckworth et al. 2019,
        arXiv:1906.04331). The predictions are the most probable tokens of a first pass over the original text, with the
        same dropout mask and without gradient. Random numbers are drawn per row.
        """
        if tokens.shape[1] < 2:
            return tokens

        def mix(_: None) -> Array:
            # The argmax has no gradient anyway; stopping it here also keeps JAX from saving residuals.
            known = lax.stop_gradient((params, start, memory))
            written = self._apply(known[0], tokens[:, :-1], *known[1:], row_keys, method="decode")
            probable = jnp.argmax(self._apply(known[0], written.features, method="logits"), axis=-1)
            draw = lambda key: jax.random.uniform(key, (tokens.shape[1] - 1,))  # noqa: E731
            replaced = jax.vmap(draw)(fold_in_rows(row_keys, 2)) < prob[:, None]
            mixed = jnp.where(replaced, probable.astype(tokens.dtype), tokens[:, 1:])
            return jnp.concatenate([tokens[:, :1], mixed], axis=1)

        return lax.cond(jnp.any(prob > 0), mix, lambda _: tokens, None)  # schedules begin, and may end, with 0

    def evaluate(self, params: Params, carry: tuple[()], batch: Seq2SeqBatch) -> tuple[tuple[()], Seq2SeqTotals]:
        """Return the totals of ``batch`` without dropout and label smoothing."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> DecodeWeights:
        """Return the weights for decoding: the parameters, and the first layer's projection of every token."""
        return DecodeWeights(params, self._apply(params, method="token_table"))

    def init_decoder(self, prepared: DecodeWeights, inputs: PyTree) -> tuple[PyTree, tuple[Carry, ...], Array]:
        """Encode ``inputs``; return the memory, the carry, and the logits [B, V] of the first token.

        The first axis of every leaf of ``inputs``, memory and carry is B. The memory is constant during decoding.
        """
        carry, memory = self._apply(prepared.params, inputs, method="init_decoder")
        first = jnp.full(jax.tree.leaves(carry)[0].shape[0], self.eos, jnp.int32)
        return memory, *self.step((prepared, memory), carry, first)

    def step(
        self, weights: tuple[DecodeWeights, Any], carry: tuple[Carry, ...], token: Array
    ) -> tuple[tuple[Carry, ...], Array]:
        """Run one decoding step with ``weights = (prepared, memory)`` on ``token`` [B]; return carry, logits [B, V]."""
        prepared, memory = weights
        written = self._apply(prepared.params, token[:, None], carry, memory, table=prepared.table, method="decode")
        features = jnp.squeeze(written.features, 1)
        return written.carry, self._apply(prepared.params, features, method="logits")

    def attention_weights(self, prepared: DecodeWeights, inputs: PyTree, tokens: Array) -> Array:
        """Return the attention weights [B, T, S] of the steps that read ``tokens`` [B, T], generated from ``inputs``.

        Raises:
            UsageError: for a model without attention.
        """
        if self.model.decoder.attention == "none":
            raise UsageError('This model has no attention weights: train one with an attention other than "none".')
        start, memory = self._apply(prepared.params, inputs, method="init_decoder")
        weights: Any = self._apply(prepared.params, tokens, start, memory, method="decode").weights
        return weights
