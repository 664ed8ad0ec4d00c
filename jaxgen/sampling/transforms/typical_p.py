"""Locally typical sampling."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.sampling.transforms.base import Context, Last, check_number
from jaxgen.sampling.transforms.cutoffs import entropy
from jaxgen.sampling.transforms.threshold import PARTS, masses, parts, smallest_set
from jaxgen.types import Array


@dataclass(frozen=True)
class TypicalP:
    """Draw among the tokens whose surprise is nearest to the expected one, the fewest that reach this probability.

    Tokens level with the last of the set stay too. 1 keeps everything. Meister et al. 2023,
    arXiv:2202.00666, section 3.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("typical-p", self.p, 5e-324, 1.0, "a number above 0 and up to 1")

    def init(self, context: Context) -> Array:
        return parts(self.p)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        logp = jax.nn.log_softmax(logits, axis=-1)
        away = jnp.abs(-logp - entropy(logp))  # infinite for a token that cannot be drawn
        kept = smallest_set(-away, masses(jnp.exp(logp)), state)
        return state, jnp.where(kept | (state >= PARTS), logits, -jnp.inf)
