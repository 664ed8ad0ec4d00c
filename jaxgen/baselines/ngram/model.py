"""A back-off n-gram model (Markov chain) as pure functions of arrays: what a tree of n-grams says of the next token."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.types import Array, Key, Params

#: Successors of a context that are laid out at once.
WINDOW = 128


@dataclass(frozen=True)
class NGram:
    """p(token | the ``order`` - 1 tokens before it), from the tree that ``jaxgen.baselines.fit`` counts.

    A node of the tree is an n-gram, its children those one token longer, which lie one behind the other and in order.
    Node 0 is none, node 1 + w the token w. The parameters are

    - ``token`` int32 [nodes]: the last token of each,
    - ``logp`` float32 [nodes]: its log-probability after the tokens before, in nats,
    - ``first`` int32 [contexts + 1]: the first child of each node that may have any (and the end of the last one's),
    - ``backoff`` float32 [contexts]: what is added to the log-probability of a token that is no child of it.

    The carry, int32 [B, order - 1], has the nodes of the last token, the last two, and so on (0 where the text that was
    read is shorter, or such a context has never been seen). The node of the last k + 1 tokens is a child of what was
    the node of the last k, so that a step needs one look into the tree, whatever the order.
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
        """Parameters of a model that has seen nothing: every token is equally likely."""
        del key
        nodes, contexts = jnp.arange(self.nodes, dtype=jnp.int32), jnp.full(self.contexts + 1, self.nodes, jnp.int32)
        logp = jnp.full(self.nodes, -jnp.log(float(self.vocab_size)), jnp.float32)
        return {"backoff": jnp.zeros(self.contexts, jnp.float32), "first": contexts, "logp": logp, "token": nodes}

    def initial_carry(self, rows: int) -> Array:
        """The carry before anything is read."""
        return jnp.zeros((rows, self.order - 1), jnp.int32)

    def read(self, params: Params, carry: Array, tokens: Array, reset: Array | None = None) -> Array:
        """The carry behind each of ``tokens`` [B, T]: nodes [B, T, order - 1]. ``reset`` [B, T] forgets before a step.

        All steps are looked up at once: the nodes of k + 1 tokens follow from those of k tokens one step before.
        """
        lengths = [tokens + 1]
        for k in range(self.order - 2):
            before = jnp.concatenate([carry[:, k : k + 1], lengths[-1][:, :-1]], axis=1)
            if reset is not None:
                before = jnp.where(reset, 0, before)
            lengths.append(self.child(params, before, tokens))
        return jnp.stack(lengths, axis=-1)[..., : self.order - 1]

    def child(self, params: Params, node: Array, token: Array) -> Array:
        """The child of each ``node`` that ends in ``token`` (of one shape), by bisection; 0 where there is none."""
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
        """What ``logits`` has at ``token`` [...], for carries [..., order - 1], without the rest of the vocabulary."""
        backoff = self._backoff(params, carry)
        logp = params["logp"][token + 1] + backoff[0]
        for k in range(self.order - 1):
            child = self.child(params, carry[..., k], token)
            logp = jnp.where(child > 0, params["logp"][child] + backoff[k + 1], logp)
        return logp

    def logits(self, params: Params, carry: Array) -> Array:
        """The log-probability of every next token, [B, order - 1] -> [B, V]."""
        backoff = self._backoff(params, carry)
        logits = params["logp"][None, 1 : self.vocab_size + 1] + backoff[0][:, None]
        for k in range(self.order - 1):
            logits = self._children(params, carry[:, k], backoff[k + 1], logits)
        return logits

    def _backoff(self, params: Params, carry: Array) -> list[Array]:
        """By length from 0: what a token gets that was last seen after so many of ``carry`` [..., order - 1]."""
        sums = [jnp.zeros(carry.shape[:-1], jnp.float32)]
        for k in reversed(range(self.order - 1)):
            sums.append(sums[-1] + params["backoff"][carry[..., k]])
        return sums[::-1]

    def _children(self, params: Params, node: Array, backoff: Array, logits: Array) -> Array:
        """``logits`` [B, V] with those of the tokens that are children of each row's ``node`` [B] in their places."""
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
        """One step: ``token`` [B] -> the new carry and the log-probabilities [B, V] of the next token."""
        carry = self.read(params, carry, token[:, None])[:, 0]
        return carry, self.logits(params, carry)
