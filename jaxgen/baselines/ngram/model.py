"""A back-off n-gram model as pure functions of arrays: next-token probabilities from a tree of n-grams."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.types import Array, Key, Params

#: Number of a context's children that are written into the logits at once.
WINDOW = 128


@dataclass(frozen=True)
class NGram:
    """p(token | the previous ``order`` - 1 tokens), from the tree counted by ``jaxgen.baselines.ngram.kneser_ney.fit``.

    A node of the tree is an n-gram. Its children are the n-grams one token longer; they are contiguous and sorted by
    their last token. Node 0 is the empty n-gram and node 1 + w the token w. The parameters are

    - ``token`` int32 [nodes]: the last token of each node,
    - ``logp`` float32 [nodes]: its log-probability given the tokens before it, in nats,
    - ``first`` int32 [contexts + 1]: the first child of each node that may have children, and the end of the last list,
    - ``backoff`` float32 [contexts]: added to the log-probability of a token that is not a child of the node.

    The carry, int32 [B, order - 1], has the nodes of the last token, the last two tokens, and so on (0 if less text has
    been read, or if the context is not in the tree). The node of the last k + 1 tokens is a child of the previous node
    of the last k tokens, so each length needs a single search per step.
    """

    vocab_size: int
    order: int
    nodes: int
    contexts: int

    def __post_init__(self) -> None:
        sizes = {"vocab_size": self.vocab_size, "order": self.order, "nodes": self.nodes, "contexts": self.contexts}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UsageError(f"An n-gram model cannot have {name} {size!r}: give a whole number from 1.")

    def init(self, key: Key) -> Params:
        """Return the parameters of a model without counts: all tokens are equally likely."""
        del key
        nodes, contexts = jnp.arange(self.nodes, dtype=jnp.int32), jnp.full(self.contexts + 1, self.nodes, jnp.int32)
        logp = jnp.full(self.nodes, -jnp.log(float(self.vocab_size)), jnp.float32)
        return {"backoff": jnp.zeros(self.contexts, jnp.float32), "first": contexts, "logp": logp, "token": nodes}

    def initial_carry(self, rows: int) -> Array:
        """Return the carry before any input."""
        return jnp.zeros((rows, self.order - 1), jnp.int32)

    def read(self, params: Params, carry: Array, tokens: Array, reset: Array | None = None) -> Array:
        """Return the carry after each of ``tokens`` [B, T], nodes [B, T, order - 1].

        ``reset`` [B, T] clears the carry before a step. All steps are looked up at once: the nodes of k + 1 tokens
        follow from those of k tokens one step before.
        """
        lengths = [tokens + 1]
        for k in range(self.order - 2):
            before = jnp.concatenate([carry[:, k : k + 1], lengths[-1][:, :-1]], axis=1)
            if reset is not None:
                before = jnp.where(reset, 0, before)
            lengths.append(self.child(params, before, tokens))
        return jnp.stack(lengths, axis=-1)[..., : self.order - 1]

    def child(self, params: Params, node: Array, token: Array) -> Array:
        """Return the child of each ``node`` that ends in ``token`` (same shape), by bisection; 0 if there is none."""
        low, end = params["first"][node], params["first"][node + 1]

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = low + (high - low) // 2
            beyond = (low < high) & (params["token"].at[middle].get(mode="clip") < token)
            return jnp.where(beyond, middle + 1, low), jnp.where(beyond, high, middle)

        low, _ = lax.fori_loop(0, self.vocab_size.bit_length(), halve, (low, end))
        found = (low < end) & (params["token"].at[low].get(mode="clip") == token)
        return jnp.where(found, low, 0)

    def log_probability(self, params: Params, carry: Array, token: Array) -> Array:
        """Return the log-probability of ``token`` [...] for carries [..., order - 1], without computing all logits."""
        backoff = self._backoff(params, carry)
        logp = params["logp"][token + 1] + backoff[0]
        for k in range(self.order - 1):
            child = self.child(params, carry[..., k], token)
            logp = jnp.where(child > 0, params["logp"][child] + backoff[k + 1], logp)
        return logp

    def logits(self, params: Params, carry: Array) -> Array:
        """Return the log-probability of every next token, [B, order - 1] -> [B, V]."""
        backoff = self._backoff(params, carry)
        logits = params["logp"][None, 1 : self.vocab_size + 1] + backoff[0][:, None]
        for k in range(self.order - 1):
            logits = self._children(params, carry[:, k], backoff[k + 1], logits)
        return logits

    def _backoff(self, params: Params, carry: Array) -> list[Array]:
        """Return, for each context length from 0, the summed back-off weights of the longer contexts in ``carry``."""
        sums = [jnp.zeros(carry.shape[:-1], jnp.float32)]
        for k in reversed(range(self.order - 1)):
            sums.append(sums[-1] + params["backoff"][carry[..., k]])
        return sums[::-1]

    def _children(self, params: Params, node: Array, backoff: Array, logits: Array) -> Array:
        """Overwrite ``logits`` [B, V] at the tokens that are children of each row's ``node`` [B]."""
        begin, end = params["first"][node], params["first"][node + 1]
        width = min(self.vocab_size, WINDOW)
        rows, window = jnp.arange(node.shape[0])[:, None], jnp.arange(width, dtype=jnp.int32)[None, :]

        def place(i: Array | int, logits: Array) -> Array:
            at = begin[:, None] + (i * width + window)
            token = jnp.where(at < end[:, None], params["token"].at[at].get(mode="clip"), self.vocab_size)
            return logits.at[rows, token].set(params["logp"].at[at].get(mode="clip") + backoff[:, None], mode="drop")

        if width == self.vocab_size:
            return place(0, logits)
        return lax.fori_loop(0, -(-jnp.max(end - begin) // width), place, logits)

    def step(self, params: Params, carry: Array, token: Array) -> tuple[Array, Array]:
        """Run one step on ``token`` [B]; return the new carry and the log-probabilities [B, V] of the next token."""
        carry = self.read(params, carry, token[:, None])[:, 0]
        return carry, self.logits(params, carry)
