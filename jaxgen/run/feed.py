"""What the compiled training step reads: batches stacked on the host, or places in a text that lies on the device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxgen.data.batches import TextBatches
from jaxgen.text import PAD
from jaxgen.training import STACKED, OfText, Stacked, make_mesh, spread_whole
from jaxgen.windows import Places, Windows

#: Bytes of text that are put on each device; of a longer one each batch is read on the host.
MOST_HELD = 1 << 28


class Feed:
    """The training data of a run, ``calls`` batches at a time. ``read`` is how the compiled step gets each of them."""

    def __init__(self, batches: Any, calls: int, devices: int) -> None:
        self._batches, self._calls, self._devices = batches, calls, devices
        self._text: Any = None
        self._held: Any = None  # the text and what is known of it, on the device
        self.read: Stacked | OfText = STACKED
        if isinstance(batches, TextBatches) and batches.text_bytes <= MOST_HELD:
            self.read = OfText(batches.length, batches.eos, PAD)

    def together(self, step: int) -> int:
        """How many steps from ``step`` on one call can take."""
        alike = self._batches.same_text if isinstance(self.read, OfText) else self._batches.same_shape
        return min(self._calls, alike(step))

    def take(self, step: int, number: int) -> Any:
        """The next ``number`` batches made up to ``calls``: the rest repeats the last and is not used."""
        steps = [step + min(i, number - 1) for i in range(self._calls)]
        if isinstance(self.read, Stacked):
            rows = {at: self._batches.batch(at) for at in dict.fromkeys(steps)}
            return jax.tree.map(lambda *fields: np.stack(fields), *(rows[at] for at in steps))
        places = [self._batches.places(at) for at in steps]
        start, stop = (np.stack(field).astype(np.int32) for field in list(zip(*places))[:2])
        text, conditions = self._on_device(step)
        return Windows(text, Places(start, stop, np.array([p.fresh for p in places])), conditions)

    def _on_device(self, step: int) -> Any:
        """The text of a step, in the smallest type that holds its ids, and its conditions, put there once."""
        text = self._batches.text(step)
        if text is not self._text:
            small = text.astype(self._batches.id_type), self._batches.conditions(step)
            self._held = jax.device_put(small) if self._devices == 1 else spread_whole(make_mesh(self._devices), small)
            self._text = text
        return self._held
