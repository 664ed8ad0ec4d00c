"""The n-gram language model with the methods of ``LanguageTask``."""

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
    """A back-off n-gram model with its loss and its decoding functions. All methods are pure.

    Its parameters are counted (``jaxgen.baselines.ngram.kneser_ney.fit``), not trained by gradients.
    """

    model: NGram

    is_random = False

    @classmethod
    def build(cls, *, vocab_size: int, order: int, nodes: int, contexts: int) -> NGramTask:
        """Build the task from plain values: the longest n-gram, and the sizes of the counted tree."""
        return cls(NGram(vocab_size, order, nodes, contexts))

    def resolved_options(self) -> dict[str, Any]:
        """Return the resolved options of ``build``: none."""
        return {}

    def init(self, key: Key) -> Params:
        """Return the parameters of a model without counts."""
        return self.model.init(key)

    def initial_carry(self, rows: int) -> Array:
        return self.model.initial_carry(rows)

    def loss(self, params: Params, carry: Array, batch: Batch, row_keys: Key | None = None) -> tuple[Array, Totals]:
        """Return the carry after ``batch`` and the summed cross-entropy, starting from ``carry``."""
        del row_keys
        tokens, targets, reset, mask = (jnp.asarray(field) for field in batch)
        carries = self.model.read(params, carry, tokens, reset)
        nll = -self.model.log_probability(params, carries, targets)
        return carries[:, -1], Totals(jnp.sum(jnp.where(mask, nll, 0.0)), jnp.sum(mask, dtype=jnp.float32))

    def evaluate(self, params: Params, carry: Array, batch: Batch) -> tuple[Array, Totals]:
        """Return the loss; there is no dropout."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> Params:
        """Return ``params``: decoding needs no preparation."""
        return params

    def prefill(self, params: Params, carry: Array, logits: Array, tokens: Array, valid: Array) -> tuple[Array, Array]:
        """Read a chunk of the prompt, ``tokens`` and ``valid`` [R, P]; return the carry and next-token logits [R, V].

        Valid tokens come first in each row. A row without valid tokens keeps its carry and the given ``logits``.
        """
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        carries = self.model.read(params, carry, tokens)
        last = carries[jnp.arange(tokens.shape[0]), jnp.maximum(count - 1, 0)]
        some = (count > 0)[:, None]
        return jnp.where(some, last, carry), jnp.where(some, self.model.logits(params, last), logits)

    def step(self, params: Params, carry: Array, token: Array) -> tuple[Array, Array]:
        """Run one decoding step on ``token`` [R]; return the new carry and next-token log-probabilities [R, V]."""
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
        """Return the log-probability of each of ``targets`` [R, T] given ``tokens``, as ``LanguageTask.score`` does."""

        def one(carry: Array, now: tuple[Array, ...]) -> tuple[Array, Scored]:
            token, target, reset, valid = now
            carry = jnp.where(reset[:, None], initial, carry)
            carry = jnp.where(valid[:, None], self.model.read(params, carry, token[:, None])[:, 0], carry)
            logp = jnp.where(valid, self.model.log_probability(params, carry, target), 0.0)
            if not top:  # avoids computing the logits of the whole vocabulary
                return carry, Scored(logp, jnp.zeros((*target.shape, 0), jnp.int32), jnp.zeros((*target.shape, 0)))
            likeliest, ids = lax.top_k(self.model.logits(params, carry), top)
            return carry, Scored(logp, ids.astype(jnp.int32), likeliest)

        carry, scored = lax.scan(one, carry, tuple(field.T for field in (tokens, targets, reset, valid)))
        return carry, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), scored)
