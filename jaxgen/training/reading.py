"""How a compiled training step gets its batches: as they are, or as places in a text that lies on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.types import Array, Batch, Conditioned
from jaxgen.windows import Windows, read_conditioned


@dataclass(frozen=True)
class Stacked:
    """Batches as they are: a tree of arrays [K, B, ...]."""

    def count(self, batches: Any) -> int:
        """K."""
        return jnp.shape(jax.tree.leaves(batches)[0])[0]

    def __call__(self, batches: Any, i: Array | int) -> Any:
        """The i-th batch."""
        return jax.tree.map(lambda field: lax.dynamic_index_in_dim(jnp.asarray(field), i, keepdims=False), batches)


STACKED = Stacked()


@dataclass(frozen=True)
class OfText:
    """Batches as ``Windows`` of ``length`` tokens."""

    length: int
    eos: int | None
    pad: int

    def count(self, windows: Windows) -> int:
        """K."""
        return jnp.shape(windows.places.start)[0]

    def __call__(self, windows: Windows, i: Array | int) -> Batch | Conditioned:
        """The i-th batch."""
        places = jax.tree.map(lambda a: lax.dynamic_index_in_dim(jnp.asarray(a), i, keepdims=False), windows.places)
        text, conditions = jax.tree.map(jnp.asarray, (windows.text, windows.conditions))
        return read_conditioned(text, conditions, places, self.length, self.eos, self.pad, jnp)
