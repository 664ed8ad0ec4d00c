"""Nucleus sampling."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.sampling.transforms.base import Context, Last, check_number
from jaxgen.sampling.transforms.threshold import smallest_set
from jaxgen.types import Array

#: The least share that float32 can add up to: a smaller one would be reached by the empty set.
LEAST = 1e-30


@dataclass(frozen=True)
class TopP:
    """Draw among the fewest likeliest tokens that together reach this probability (nucleus sampling).

    Tokens level with the least likely of the set stay too. Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("top-p", self.p, 5e-324, 1.0, "a number above 0 and up to 1")

    def init(self, context: Context) -> Array:
        return jnp.float32(max(self.p, LEAST))

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        kept = smallest_set(logits, jax.nn.softmax(logits, axis=-1), state)
        # p = 1 keeps all, whatever the rounding of the sum.
        return state, jnp.where(kept | (state >= 1.0), logits, -jnp.inf)
