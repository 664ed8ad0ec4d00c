"""Language modelling: many to many, aligned. What the model is, what its loss is, and how decoding is primed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import UsageError
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.layers import cell_factory
from jaxgen.types import Array, Batch, Carry, ConditionedBatch, DecodeWeights, Key, Params


class Totals(NamedTuple):
    """Sums over the targets that count, so that batches of different sizes add up."""

    nll: Array  # summed negative log-likelihood, nats
    targets: Array  # how many


class Scored(NamedTuple):
    """What the model gave each target: log-probabilities in nats, float32, with the n likeliest tokens, best first."""

    logp: Array  # [R, T]
    top: Array  # int32 [R, T, n]
    top_logp: Array  # [R, T, n]


#: Logits that scoring has in memory at once, at most: those of a chunk of words are hundreds of megabytes.
MAX_LOGITS = 1 << 22


@dataclass(frozen=True)
class LanguageTask:
    """A language model with its loss and its decoding functions; everything here is pure."""

    model: LanguageModel

    @classmethod
    def build(cls, *, vocab_size: int, cell: str, cell_options: dict[str, Any], **sizes: Any) -> LanguageTask:
        """The task from plain values: a name in ``CELLS``, the cell's own options, and the model's sizes."""
        return cls(LanguageModel(vocab_size, cell_factory(cell, cell_options), **sizes))

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.model.apply({"params": params}, *args, **kwargs)

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.model.dropout > 0 or self.model.embed_dropout > 0

    def resolved_options(self) -> dict[str, Any]:
        """Options of ``build`` that a rule has chosen for this model on this device."""
        return {"form": self.model.chosen_form()}

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def initial_carry(self, rows: int) -> tuple[Carry, ...]:
        return self.model.initial_carry(rows)

    def loss(
        self, params: Params, carry: Carry, batch: Batch | ConditionedBatch, row_keys: Key | None = None
    ) -> tuple[tuple[Carry, ...], Totals]:
        """Summed cross-entropy of ``batch`` ([B, T] fields) from ``carry``, and the carry it ends in.

        A reset begins from zeros, or from the state that the model makes of the document's condition. Raises
        ``UsageError`` for a batch that lacks the conditions of a model with them, or has some for one without.
        """
        batch, initial = self._begun(params, batch)
        tokens, targets, reset, mask = (jnp.swapaxes(jnp.asarray(field), 0, 1) for field in batch)
        masks = {"reset": reset, "initial": initial, "row_keys": row_keys}
        carry, states = self._apply(params, tokens, carry, **masks, method=LanguageModel.states)
        logits = self._apply(params, states, method=LanguageModel.logits)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return carry, Totals(jnp.sum(jnp.where(mask, nll, 0.0)), jnp.sum(mask, dtype=jnp.float32))

    def _begun(self, params: Params, batch: Batch | ConditionedBatch) -> tuple[Batch, tuple[Carry, ...] | None]:
        """The batch itself, and the state [T, B, H] that a reset at each position would begin from, if not zeros."""
        if isinstance(batch, ConditionedBatch) != bool(self.model.condition):
            raise UsageError(
                f"A model with conditions of width {self.model.condition} got a {type(batch).__name__}: give "
                "`Conditioned` batches to a model that begins from conditions, and plain ones to one that does not."
            )
        if not isinstance(batch, ConditionedBatch):
            return batch, None
        by_time = jnp.swapaxes(jnp.asarray(batch.condition), 0, 1)
        return batch.batch, self._apply(params, by_time, method=LanguageModel.initial_states)

    def evaluate(
        self, params: Params, carry: Carry, batch: Batch | ConditionedBatch
    ) -> tuple[tuple[Carry, ...], Totals]:
        """What an evaluation sums up: the loss without dropout."""
        return self.loss(params, carry, batch)

    def initial_states(self, prepared: DecodeWeights, condition: Array) -> tuple[Carry, ...]:
        """The state of texts of which ``condition`` [R, C] is known and nothing has been read."""
        states: tuple[Carry, ...] = self._apply(prepared.params, condition, method=LanguageModel.initial_states)
        return states

    def prepare(self, params: Params) -> DecodeWeights:
        """Everything decoding can compute once: the first layer's product for every token."""
        return DecodeWeights(params, self._apply(params, method=LanguageModel.token_table))

    def prefill(
        self, prepared: DecodeWeights, carry: Carry, logits: Array, tokens: Array, valid: Array
    ) -> tuple[tuple[Carry, ...], Array]:
        """Read a chunk of prompt: ``tokens`` and ``valid`` [R, P] -> the carry and next-token logits [R, V].

        Valid tokens come first in a row. A row without any keeps its carry and the ``logits`` given.
        """
        carry, states = self._apply(
            prepared.params, tokens.T, carry, valid=valid.T, table=prepared.table, method=LanguageModel.states
        )
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        last = states[jnp.maximum(count - 1, 0), jnp.arange(tokens.shape[0])]
        new = self._apply(prepared.params, last, method=LanguageModel.logits)
        return carry, jnp.where((count > 0)[:, None], new, logits)

    def step(self, prepared: DecodeWeights, carry: Carry, token: Array) -> tuple[tuple[Carry, ...], Array]:
        """One decoding step: ``token`` [R] -> the new carry and next-token logits [R, V]."""
        carry, logits = self._apply(prepared.params, token[:, None], carry, table=prepared.table)
        return carry, jax.lax.squeeze(logits, (1,))

    def score(
        self,
        prepared: DecodeWeights,
        carry: Carry,
        tokens: Array,
        targets: Array,
        reset: Array,
        valid: Array,
        initial: Carry,
        *,
        top: int = 0,
    ) -> tuple[tuple[Carry, ...], Scored]:
        """Read a chunk, ``tokens`` [R, T], and give the log-probability of each of its ``targets`` [R, T].

        A row goes on from ``carry``, and from ``initial`` where ``reset`` [R, T] says so. A step that is not ``valid``
        [R, T] reads nothing, and its log-probability is 0. ``top`` is how many likeliest tokens are given too; of
        equally likely ones the lowest id comes first.
        """
        rows, steps = tokens.shape
        carry, states = self._apply(
            prepared.params,
            tokens.T,
            carry,
            reset=reset.T,
            valid=valid.T,
            initial=initial,
            table=prepared.table,
            method=LanguageModel.states,
        )

        def one(block: tuple[Array, Array]) -> Scored:
            logits = self._apply(prepared.params, block[0], method=LanguageModel.logits)
            total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            chosen = jnp.take_along_axis(logits, block[1][:, None], axis=-1)
            likeliest, ids = jax.lax.top_k(logits, top)
            return Scored((chosen - total)[:, 0], ids.astype(jnp.int32), likeliest - total)

        size = rows * steps
        while size % 2 == 0 and size * self.model.vocab_size > MAX_LOGITS:
            size //= 2
        blocks = states.reshape(-1, size, states.shape[-1]), targets.T.reshape(-1, size)
        scored = jax.lax.map(one, blocks)
        by_row = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(steps, rows, *a.shape[2:]), 0, 1), scored)
        return carry, by_row._replace(logp=jnp.where(valid, by_row.logp, 0.0))
