"""Mixtures of language models: the weighted sum of the probabilities that several models give the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxgen.tasks.language.objective import Scored
from jaxgen.training.task import PromptedTask
from jaxgen.types import Array, ArrayLike, Carry, Params


@dataclass(frozen=True)
class MixtureTask:
    """A mixture of language models with one vocabulary. All methods are pure.

        p(token) = sum_m w_m p_m(token),    w = softmax(bias + slope * log max_v p_m(v))

    Each p_m is normalised. With slopes of 0 the weights are constant: ``bias`` is their logarithm. Otherwise the weight
    of a member depends on how sure it is of its most probable token (a gate, as in a mixture of experts: Jacobs et al.
    1991). The parameters are ``members``, a tuple of those of each, and ``bias`` and ``slope`` [M]. The carry is the
    tuple of the members' carries.

    Args:
        members: The models, with the interface of ``LanguageTask``.
        gated: Whether slopes may differ from 0.
    """

    members: tuple[PromptedTask, ...]
    gated: bool = False

    def initial_carry(self, rows: int) -> tuple[Carry, ...]:
        """Return the carry before any input."""
        return tuple(member.initial_carry(rows) for member in self.members)

    def initial_states(self, weights: Params, condition: Float[ArrayLike, "B condition"]) -> tuple[Carry, ...]:
        """Return the carry before any input, given the condition of each row."""
        pairs = zip(self.members, weights["members"])
        return tuple(member.initial_states(own, condition) for member, own in pairs)

    def prepare(self, params: Params) -> Params:
        """Return the weights for decoding: those of each member."""
        pairs = zip(self.members, params["members"])
        return {**params, "members": tuple(member.prepare(own) for member, own in pairs)}

    def log_weights(self, params: Params, confidence: Float[Array, "*B M"]) -> Float[Array, "*B M"]:
        """Return log w, given the log-probability of each member's most probable token."""
        bias, slope = (jnp.broadcast_to(each, confidence.shape) for each in (params["bias"], params["slope"]))
        return jax.nn.log_softmax(bias + slope * confidence if self.gated else bias, axis=-1)

    def mix(self, params: Params, logits: Sequence[Float[Array, "B V"]]) -> Float[Array, "B V"]:
        """Return the log-probabilities of the mixture, given the logits of each member."""
        logp = jnp.stack([jax.nn.log_softmax(each.astype(jnp.float32), axis=-1) for each in logits], axis=1)
        weights = self.log_weights(params, jnp.max(logp, axis=-1))
        return jax.nn.logsumexp(logp + weights[..., None], axis=1)

    def prefill(
        self,
        weights: Params,
        carry: tuple[Carry, ...],
        logits: Float[ArrayLike, "B V"],
        tokens: Int[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
    ) -> tuple[tuple[Carry, ...], Float[Array, "B V"]]:
        """Read a chunk of the prompt, as ``LanguageTask.prefill`` does."""
        each = zip(self.members, weights["members"], carry)
        carries, found = zip(*(member.prefill(own, state, logits, tokens, valid) for member, own, state in each))
        return carries, jnp.where(jnp.any(valid, axis=1)[:, None], self.mix(weights, found), logits)

    def step(
        self, weights: Params, carry: tuple[Carry, ...], token: Int[Array, "B"]
    ) -> tuple[tuple[Carry, ...], Float[Array, "B V"]]:
        """Run one decoding step; return the new carry and the log-probabilities of the next token."""
        each = zip(self.members, weights["members"], carry)
        carries, found = zip(*(member.step(own, state, token) for member, own, state in each))
        return carries, self.mix(weights, found)

    def score(
        self,
        weights: Params,
        carry: tuple[Carry, ...],
        tokens: Int[ArrayLike, "B T"],
        targets: Int[ArrayLike, "B T"],
        reset: Bool[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
        initial: tuple[Carry, ...],
        *,
        top: int = 0,
    ) -> tuple[tuple[Carry, ...], Scored]:
        """Read a chunk of tokens and return the log-probability of each target, as ``LanguageTask.score`` does.

        With ``top``, the distributions are mixed step by step; else the members' scores are enough.
        """
        if top:
            return self._score_by_step(weights, carry, (tokens, targets, reset, valid), initial, top)
        carries, scores = [], []
        for member, own, state, first in zip(self.members, weights["members"], carry, initial):
            most = 1 if self.gated else 0
            state, scored = member.score(own, state, tokens, targets, reset, valid, first, top=most)
            carries.append(state)
            scores.append(scored)
        logp = jnp.stack([each.logp for each in scores], axis=-1)
        confidence = jnp.stack([each.top_logp[..., 0] for each in scores], axis=-1) if self.gated else logp
        mixed = jax.nn.logsumexp(logp + self.log_weights(weights, confidence), axis=-1)
        nothing = jnp.zeros((*targets.shape, 0))
        return tuple(carries), Scored(jnp.where(valid, mixed, 0.0), nothing.astype(jnp.int32), nothing)

    def _score_by_step(
        self, weights: Params, carry: Carry, fields: tuple[ArrayLike, ...], initial: Carry, top: int
    ) -> tuple[tuple[Carry, ...], Scored]:
        def one(carry: Carry, now: tuple[Array, ...]) -> tuple[Carry, Scored]:
            token, target, reset, valid = now
            carry = select_rows(reset, initial, carry)
            after, logp = self.step(weights, carry, token)
            best, ids = jax.lax.top_k(logp, top)
            own = jnp.take_along_axis(logp, target[:, None], axis=-1)[:, 0]
            return select_rows(valid, after, carry), Scored(jnp.where(valid, own, 0.0), ids.astype(jnp.int32), best)

        carry, scored = jax.lax.scan(one, carry, tuple(jnp.asarray(field).T for field in fields))
        return carry, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), scored)


def select_rows(where: Bool[Array, "B"], a: Carry, b: Carry) -> Carry:
    """Return the rows of ``a`` where ``where`` is true, and else those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)
