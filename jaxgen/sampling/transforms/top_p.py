"""Nucleus sampling."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.sampling.transforms.base import Context, Last, check_number
from jaxgen.sampling.transforms.threshold import PARTS, masses, parts, smallest_set
from jaxgen.types import Array


@dataclass(frozen=True)
class TopP:
    """Draw among the fewest likeliest tokens that together reach this probability (nucleus sampling).

    Tokens level with the least likely of the set stay too, where others keep as many of them as it takes. 1 keeps
    everything. Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("top-p", self.p, 5e-324, 1.0, "a number above 0 and up to 1")

    def init(self, context: Context) -> Array:
        return parts(self.p)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        kept = smallest_set(logits, masses(jax.nn.softmax(logits, axis=-1)), state)
        # p = 1 keeps all, whatever the rounding of the masses.
        return state, jnp.where(kept | (state >= PARTS), logits, -jnp.inf)
