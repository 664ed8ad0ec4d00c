"""The first tokens given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, check_ids, padded, unless_empty
from jaxgen.types import Array, TokenId


@dataclass(frozen=True)
class Force:
    """Begin the generated text with these tokens. They are drawn with probability 1 and count as generated.

    One that is forbidden cannot be forced: the draw is then left as it is.
    """

    #: A flag makes one sequence of its texts, not a set of tokens.
    in_order: ClassVar[bool] = True

    ids: tuple[TokenId, ...]

    def init(self, context: Context) -> Array:
        check_ids("Force", self.ids, context.vocab)
        return jnp.asarray(padded(self.ids, -1, np.int32))

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        size = state.shape[0]
        token = jnp.where(last.t < size, state[jnp.minimum(last.t, size - 1)], -1)
        ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
        forced = jnp.where(ids == token, logits, -jnp.inf)
        return state, jnp.where(token < 0, logits, unless_empty(forced, logits))
