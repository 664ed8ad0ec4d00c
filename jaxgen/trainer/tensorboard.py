"""TensorBoard events of a run (``--tensorboard``)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import unwritable
from jaxgen.runs.directory import RunDirectory
from jaxgen.trainer.callbacks import Callback, Evaluated, Started


def require_tensorboard() -> None:
    """Raise ``UsageError`` unless the optional package tensorboardX is installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UsageError(
            'TensorBoard events need the package tensorboardX: pip install "jaxgen[tb]", or leave out --tensorboard.'
        ) from None


class TensorBoard(Callback):
    """Writes each row of metrics as TensorBoard events. Points after a rollback's step are no longer shown."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._events: EventFile | None = None

    def on_start(self, event: Started) -> None:
        self._events = EventFile(self._run, event.first_step)

    def on_evaluation(self, event: Evaluated) -> None:
        if self._events is not None:
            self._events.add_row(event.row, event.row["step"])

    def truncate_after(self, step: int) -> None:
        if self._events is not None:
            self._events = EventFile(self._run, step)


class EventFile:
    """A file of scalars in the run's folder ``tensorboard/``; TensorBoard drops older points after ``step``.

    It is written at once: tensorboardX's own writer has a thread that ends silently on a full disk, and a program that
    gives it more then waits forever. Raises ``CheckpointError`` when the file cannot be written.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.path / "tensorboard"
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, and a run holds its own files only. Remove it.")
        # TensorBoard reads files in the order of their names; a rollback may open two within a second.
        now = time.time_ns()
        self._path = folder / f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{now}"
        self._event, self._buffer = Event, b""
        self._add(file_version="brain.Event:2")
        # When a session starts, TensorBoard forgets the points from its step on.
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to the curve ``name``; ``flush`` writes it."""
        from tensorboardX.summary import scalar

        self._add(step=step, summary=scalar(name, value))

    def add_row(self, row: Mapping[str, Any], step: int) -> None:
        """Write a point for every number in a row of metrics."""
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self.add_scalar(name, value, step)
        self.flush()

    def flush(self) -> None:
        """Write what was added, through to the disk."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                if file.write(self._buffer) != len(self._buffer):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self._path, error, needed=len(self._buffer)) from error
        self._buffer = b""

    def _add(self, **fields: Any) -> None:
        """Append a record: length and event, each followed by its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        event = self._event(wall_time=time.time(), **fields).SerializeToString()
        for part in (struct.pack("<Q", len(event)), event):
            self._buffer += part + struct.pack("<I", masked_crc32c(part))
