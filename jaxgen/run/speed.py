"""How fast a run trains: units a second, of steps that compiled nothing."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

#: What an earlier call still counts beside the next one.
FADING = 0.8


class Speed:
    """Units a second of calls, the latest counting most; a call during which something was compiled does not count.

    A step is compiled anew for every shape of batches, and the host compiles while the device computes the call
    before. Say with ``sent`` what was dispatched since the last ``done``.
    """

    def __init__(self) -> None:
        self._shapes: set[Any] = set()
        self._compiled = False
        self._units = self._seconds = 0.0
        self._with_compilation = 0.0

    def sent(self, batches: Any) -> None:
        """A call on ``batches`` was dispatched."""
        shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(batches))
        self._compiled |= shapes not in self._shapes
        self._shapes.add(shapes)

    def done(self, units: float, seconds: float) -> None:
        """The results of a call on ``units`` are there, ``seconds`` after those of the call before."""
        seconds = max(seconds, 1e-9)
        if self._compiled:
            self._with_compilation = units / seconds
        else:
            self._units = FADING * self._units + units
            self._seconds = FADING * self._seconds + seconds
        self._compiled = False

    @property
    def measured(self) -> float | None:
        """Units a second, once a call has compiled nothing."""
        return self._units / self._seconds if self._seconds else None

    @property
    def guessed(self) -> float:
        """The same; until then what can be said, which is too low."""
        return self.measured or self._with_compilation
