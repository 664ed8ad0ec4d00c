"""Tokens made likelier or less likely by hand."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxgen.sampling.transforms.base import Context, Last, check_ids, check_number
from jaxgen.types import Array, TokenId


@dataclass(frozen=True)
class Bias:
    """Add a number to the logit of each of these tokens: +1 makes one 2.7 times as likely beside the others."""

    biases: tuple[tuple[TokenId, float], ...]

    def __post_init__(self) -> None:
        for _, value in self.biases:
            check_number("A bias", value, -1e4, 1e4, "a number from -10000 to 10000; to rule a token out, forbid it")

    def init(self, context: Context) -> Array:
        check_ids("Bias", [i for i, _ in self.biases], context.vocab)
        bias = np.zeros(context.vocab, np.float32)
        for i, value in self.biases:
            bias[i] += value
        return jnp.asarray(bias)

    @staticmethod
    def update(state: Array, logits: Array, last: Last) -> tuple[Array, Array]:
        return state, jnp.where(state[None, :] == 0, logits, logits + state[None, :])
