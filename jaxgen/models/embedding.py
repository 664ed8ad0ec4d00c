"""Tokens as the input of recurrent layers: looked up, dropped, projected, whichever order is cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells import Cell
from jaxgen.models.language_model import ONE_HOT_TABLE
from jaxgen.models.stack import dropout
from jaxgen.types import Array, Key


class Embedding(nn.Module):
    """A vector of ``width`` for each of ``vocab_size`` tokens; ``width=0`` stands for one-hot vectors.

    ``stddev`` is that of the initial values; ``dropout`` drops units of every occurrence of a token by itself.
    """

    vocab_size: int
    width: int
    dropout: float = 0.0
    stddev: float = 1.0

    def setup(self) -> None:
        if self.width:
            init = nn.initializers.normal(self.stddev)
            self.embedding = self.param("embedding", init, (self.vocab_size, self.width), jnp.float32)

    def __call__(self, tokens: Array) -> Array:
        """The vectors of ``tokens``: int32 [...] -> [..., D]."""
        if self.width == 0:
            return jax.nn.one_hot(tokens, self.vocab_size, dtype=jnp.float32)
        return jnp.asarray(self.embedding)[tokens]

    def table(self, cell: nn.RNNCellBase, beside: int = 0) -> Array | None:
        """What ``cell`` makes of every token, [V, K]; ``None`` where that cannot be had or would take too much.

        ``project(E)[tokens] == project(E[tokens])``: whoever looks up more tokens than there are in the vocabulary
        saves the difference. The cell's input has ``beside`` further features behind the vector, zero here.
        """
        if not isinstance(cell, Cell) or (self.width == 0 and self.vocab_size > ONE_HOT_TABLE):
            return None
        return cell.project(widened(self(jnp.arange(self.vocab_size)), beside))

    def read(
        self,
        tokens: Array,
        cells: Sequence[nn.RNNCellBase],
        row_keys: Key | None = None,
        tables: Sequence[Array | None] | None = None,
        beside: int = 0,
    ) -> tuple[list[Any], bool]:
        """The input of each of ``cells`` from tokens [T, B], and whether it is projected already.

        Projected inputs are [T, B, K], others [T, B, D + beside]. ``row_keys`` [B] switches dropout on; ``tables``
        are those of ``table``, made earlier.
        """
        dropping = row_keys is not None and self.dropout > 0  # of every occurrence anew, which no table can hold
        if tables is None and self.vocab_size < tokens.size:
            tables = [self.table(cell, beside) for cell in cells]
        if tables is not None and all(table is not None for table in tables) and not dropping:
            return [jnp.asarray(table)[tokens] for table in tables], True
        x = dropped(self(tokens), self.dropout, row_keys)
        return [widened(x, beside)] * len(cells), False


def widened(x: Array, beside: int) -> Array:
    """x [..., D] with ``beside`` zeros behind."""
    return x if not beside else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, beside)])


def dropped(x: Array, rate: float, row_keys: Key | None) -> Array:
    """``dropout`` of x [T, B, D] where there are keys [B] for it, else ``x``."""
    return x if row_keys is None or rate == 0 else dropout(x, rate, row_keys)


def thinned(tokens: Array, rate: float, unknown: int, row_keys: Key | None) -> Array:
    """``tokens`` [B, T], of which a share of ``rate`` is ``unknown``; a row's by its own key, and none without keys."""
    if row_keys is None or rate == 0:
        return tokens
    hide = jax.vmap(lambda key: jax.random.bernoulli(key, rate, tokens.shape[1:]))(row_keys)
    return jnp.where(hide, jnp.asarray(unknown, tokens.dtype), tokens)


def folded(row_keys: Key | None, number: int) -> Key | None:
    """The keys [B] of the use ``number`` of a row's key; none from none."""
    return None if row_keys is None else jax.vmap(lambda key: jax.random.fold_in(key, number))(row_keys)
