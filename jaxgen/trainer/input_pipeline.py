"""What the compiled training step reads: batches stacked on the host, or places in a text that lies on the device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxgen.data.batches import TextBatches
from jaxgen.data.tokens import EVERY
from jaxgen.distributed.processes import process_group
from jaxgen.tokenizers.base import PAD
from jaxgen.training.data_parallel import make_global_mesh, replicate, shard_local_batches, shard_windows
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches, WindowIndex, Windows

#: Bytes of text that are put on each device; of a longer one each batch is read on the host.
MOST_HELD = 1 << 28


class InputPipeline:
    """The training data of a run, ``calls`` batches of ``rows`` at a time.

    ``read`` is how the compiled step gets each of them. Of several processes each reads its share of the rows.
    """

    def __init__(self, batches: Any, calls: int, devices: int, rows: int) -> None:
        self._batches, self._calls, self._devices, team = batches, calls, devices, process_group()
        self._mesh = None if team.alone else make_global_mesh(devices)
        share = rows // team.count
        self._share = EVERY if team.alone else slice(share * team.index, share * (team.index + 1))
        self._text: Any = None
        self._held: Any = None  # the text and what is known of it, on the device
        self.read: HostBatches | DeviceText = HOST_BATCHES
        if isinstance(batches, TextBatches) and batches.text_bytes <= MOST_HELD:
            self.read = DeviceText(batches.length, batches.eos, PAD)

    def together(self, step: int) -> int:
        """How many steps from ``step`` on one call can take."""
        alike = self._batches.same_text if isinstance(self.read, DeviceText) else self._batches.same_shape
        return min(self._calls, alike(step))

    def take(self, step: int, number: int) -> Any:
        """The next ``number`` batches made up to ``calls``: the rest repeats the last and is not used."""
        steps = [step + min(i, number - 1) for i in range(self._calls)]
        if isinstance(self.read, HostBatches):
            read = {at: self._batches.batch(at, self._share) for at in dict.fromkeys(steps)}
            stacked = jax.tree.map(lambda *fields: np.stack(fields), *(read[at] for at in steps))
            return stacked if self._mesh is None else shard_local_batches(self._mesh, stacked)
        places = [self._batches.places(at) for at in steps]
        start, stop = (np.stack(field).astype(np.int32) for field in list(zip(*places))[:2])
        text, conditions = self._on_device(step)
        windows = Windows(text, WindowIndex(start, stop, np.array([p.fresh for p in places])), conditions)
        return windows if self._mesh is None else shard_windows(self._mesh, windows)

    def _on_device(self, step: int) -> Any:
        """The text of a step, in the smallest type that holds its ids, and its conditions, put there once."""
        text = self._batches.text(step)
        if text is not self._text:
            small = text.astype(self._batches.id_type, copy=False), self._batches.conditions(step)
            alone = self._devices == 1
            self._held = jax.device_put(small) if alone else replicate(make_global_mesh(self._devices), small)
            self._text = text
        return self._held
