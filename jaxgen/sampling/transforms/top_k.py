"""Top-k sampling."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from jaxgen.sampling.transforms.base import Context, Last, check_whole
from jaxgen.sampling.transforms.threshold import smallest_set
from jaxgen.types import Array


@dataclass(frozen=True)
class TopK:
    """Draw among this many likeliest tokens only; those level with the last of them stay too.

    Fan et al. 2018, arXiv:1805.04833, section 5.
    """

    k: int

    def __post_init__(self) -> None:
        check_whole("top-k", self.k, 1, 10**18)

    def init(self, context: Context) -> Array:
        return jnp.int32(min(self.k, context.vocab))

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        kept = smallest_set(logits, jnp.ones_like(logits, jnp.int32), state)
        return state, jnp.where(kept, logits, -jnp.inf)
