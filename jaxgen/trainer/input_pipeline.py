"""The input of the compiled training step: stacked batches, or windows of a text that is on the device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxgen.data.batches import EVERY, FOREVER, Batches, TextBatches
from jaxgen.tokenizers.base import PAD
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.training.data_parallel import make_global_mesh, replicate, shard_local_batches, shard_windows
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches, WindowIndex, Windows
from jaxgen.types import ArrayLike

#: Texts of at most this many bytes are put on every device; batches of longer ones are read on the host.
MAX_DEVICE_TEXT_BYTES = 1 << 28


class InputPipeline:
    """The training data of a run, up to ``calls`` batches of ``rows`` rows at a time.

    ``read`` is how the compiled step gets a batch from what ``next`` returns. Each process of ``group`` reads its share
    of the rows.
    """

    def __init__(self, batches: Batches, calls: int, devices: int, rows: int, group: ProcessGroup) -> None:
        self._batches, self._calls, self._devices = batches, calls, devices
        self._mesh = None if group.is_single else make_global_mesh(devices)
        share = rows // group.count
        self._share = EVERY if group.is_single else slice(share * group.index, share * (group.index + 1))
        self._text: ArrayLike | None = None
        self._on_device: Any = None  # the text, and the conditions of its documents
        self.read: HostBatches | DeviceText = HOST_BATCHES
        self._windows: TextBatches | None = None  # batches that the device reads from the text
        if isinstance(batches, TextBatches) and batches.text_bytes <= MAX_DEVICE_TEXT_BYTES:
            self.read, self._windows = DeviceText(batches.eos, PAD), batches

    def steps_in_call(self, step: int) -> int:
        """The number of steps from ``step`` on that one call can take."""
        same_text = FOREVER if self._windows is None else self._windows.same_text(step)
        return min(self._calls, self._batches.same_shape(step), same_text)

    def next(self, step: int, number: int) -> Any:
        """The ``number`` batches from ``step`` on, stacked; padded to ``calls`` with copies of the last."""
        found = self.on_host(step, number)
        if not isinstance(found, Windows):
            return found if self._mesh is None else shard_local_batches(self._mesh, found)
        text, conditions = self._text_on_device(found)
        windows = Windows(text, found.window_index, found.offsets, conditions)
        return windows if self._mesh is None else shard_windows(self._mesh, windows)

    def on_host(self, step: int, number: int) -> Any:
        """What ``next`` returns, still on the host; the text of ``Windows`` is the same array until it changes."""
        steps = [step + min(i, number - 1) for i in range(self._calls)]
        if self._windows is None:
            batches = {at: self._batches.batch(at, self._share) for at in dict.fromkeys(steps)}
            return jax.tree.map(lambda *fields: np.stack(fields), *(batches[at] for at in steps))
        start, stop, fresh = (np.stack(field) for field in zip(*map(self._windows.places, steps)))
        index = WindowIndex(start.astype(np.int32), stop.astype(np.int32), fresh)
        offsets = np.arange(self._windows.length_at(step), dtype=np.int32)
        return Windows(self._windows.text(step), index, offsets, self._windows.conditions(step))

    @property
    def keeps_text(self) -> bool:
        """Whether the batches of all steps are windows of one text."""
        return self._windows is not None and self._windows.same_text(0) >= FOREVER

    def small(self, text: ArrayLike) -> np.ndarray:
        """A text in the smallest type that holds its ids."""
        return np.asarray(text, None if self._windows is None else self._windows.id_type)

    def _text_on_device(self, windows: Windows) -> Any:
        """The text of ``windows``, in the smallest type, and its conditions; copied when the text changes."""
        if windows.text is not self._text:
            small, one = (self.small(windows.text), windows.conditions), self._devices == 1
            self._on_device = jax.device_put(small) if one else replicate(make_global_mesh(self._devices), small)
            self._text = windows.text
        return self._on_device
