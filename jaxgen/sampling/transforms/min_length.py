"""A least number of tokens before a text may end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, check_whole, unless_empty
from jaxgen.types import Array


class Least(NamedTuple):
    """Until when which tokens are held back."""

    n: Array
    ends: Array  # [V]


@dataclass(frozen=True)
class MinLength:
    """Do not let a text end before it has this many tokens, unless nothing else is possible."""

    n: int

    def __post_init__(self) -> None:
        check_whole("A least length", self.n, 0, 10**18)

    def init(self, context: Context) -> Least:
        return Least(jnp.int32(min(self.n, 2**31 - 1)), jnp.asarray(np.arange(context.vocab) == context.eos))

    @staticmethod
    def update(state: Least, logits: Array, last: Last) -> tuple[Least, Array]:
        held = jnp.where((last.t < state.n) & state.ends[None, :], -jnp.inf, logits)
        return state, unless_empty(held, logits)
