"""Tokens that are never drawn."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError
from jaxgen.sampling.transforms.base import Context, Last, check_ids
from jaxgen.types import Array, TokenId


@dataclass(frozen=True)
class Forbid:
    """Never draw any of these tokens. ``<pad>`` and ``<unk>`` are always among them."""

    ids: tuple[TokenId, ...]

    def init(self, context: Context) -> Array:
        check_ids("Forbid", self.ids, context.vocab)
        if len(set(self.ids)) >= context.vocab:
            raise UsageError("Forbid got every token of the vocabulary: leave at least one to draw.")
        forbidden = np.zeros(context.vocab, bool)  # by NumPy, which compiles nothing
        forbidden[list(self.ids)] = True
        return jnp.asarray(forbidden)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        return state, jnp.where(state[None, :], -jnp.inf, logits)
