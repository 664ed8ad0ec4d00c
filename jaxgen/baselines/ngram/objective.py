"""Language modelling by counting: an n-gram model behind the functions that the recurrent one has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.baselines.ngram.model import NGram
from jaxgen.tasks.language.objective import Scored, Totals
from jaxgen.types import Array, Batch, Key, Params


@dataclass(frozen=True)
class NGramTask:
    """A back-off n-gram model with its loss and its decoding functions; everything here is pure.

    Its parameters are counted (``jaxgen.baselines.fit``): no gradient leads to them.
    """

    model: NGram

    is_random = False

    @classmethod
    def build(cls, *, vocab_size: int, order: int, nodes: int, contexts: int) -> NGramTask:
        """The task from plain values: the longest n-gram, and the sizes of the tree that was counted."""
        return cls(NGram(vocab_size, order, nodes, contexts))

    def resolved_options(self) -> dict[str, Any]:
        """Options of ``build`` that a rule has chosen: none."""
        return {}

    def init(self, key: Key) -> Params:
        """Parameters of a model that has counted nothing."""
        return self.model.init(key)

    def initial_carry(self, rows: int) -> Array:
        return self.model.initial_carry(rows)

    def loss(self, params: Params, carry: Array, batch: Batch, row_keys: Key | None = None) -> tuple[Array, Totals]:
        """Summed cross-entropy of ``batch`` ([B, T] fields) from ``carry``, and the carry it ends in."""
        del row_keys
        tokens, targets, reset, mask = (jnp.asarray(field) for field in batch)
        carries = self.model.read(params, carry, tokens, reset)
        nll = -self.model.log_probability(params, carries, targets)
        return carries[:, -1], Totals(jnp.sum(jnp.where(mask, nll, 0.0)), jnp.sum(mask, dtype=jnp.float32))

    def evaluate(self, params: Params, carry: Array, batch: Batch) -> tuple[Array, Totals]:
        """What an evaluation sums up: the loss."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> Params:
        """Decoding reads the parameters as they are."""
        return params

    def prefill(self, params: Params, carry: Array, logits: Array, tokens: Array, valid: Array) -> tuple[Array, Array]:
        """Read a chunk of prompt: ``tokens`` and ``valid`` [R, P] -> the carry and next-token logits [R, V].

        Valid tokens come first in a row. A row without any keeps its carry and the ``logits`` given.
        """
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        carries = self.model.read(params, carry, tokens)
        last = carries[jnp.arange(tokens.shape[0]), jnp.maximum(count - 1, 0)]
        some = (count > 0)[:, None]
        return jnp.where(some, last, carry), jnp.where(some, self.model.logits(params, last), logits)

    def step(self, params: Params, carry: Array, token: Array) -> tuple[Array, Array]:
        """One decoding step: ``token`` [R] -> the new carry and next-token log-probabilities [R, V]."""
        return self.model.step(params, carry, token)

    def score(
        self,
        params: Params,
        carry: Array,
        tokens: Array,
        targets: Array,
        reset: Array,
        valid: Array,
        initial: Array,
        *,
        top: int = 0,
    ) -> tuple[Array, Scored]:
        """The log-probability of each of ``targets`` [R, T] behind ``tokens``; as ``LanguageTask.score``."""

        def one(carry: Array, now: tuple[Array, ...]) -> tuple[Array, Scored]:
            token, target, reset, valid = now
            carry = jnp.where(reset[:, None], initial, carry)
            carry = jnp.where(valid[:, None], self.model.read(params, carry, token[:, None])[:, 0], carry)
            logp = jnp.where(valid, self.model.log_probability(params, carry, target), 0.0)
            if not top:  # no row of the whole vocabulary is laid out
                return carry, Scored(logp, jnp.zeros((*target.shape, 0), jnp.int32), jnp.zeros((*target.shape, 0)))
            likeliest, ids = lax.top_k(self.model.logits(params, carry), top)
            return carry, Scored(logp, ids.astype(jnp.int32), likeliest)

        carry, scored = lax.scan(one, carry, tuple(field.T for field in (tokens, targets, reset, valid)))
        return carry, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), scored)
