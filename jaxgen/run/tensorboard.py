"""TensorBoard events, for those who ask for them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.store import RunDirectory
from jaxgen.store.files import unwritable


def require_tensorboard() -> Any:
    """The optional package. Raises ``UsageError`` when it is not installed."""
    try:
        import tensorboardX
    except ImportError:
        raise UsageError(
            'TensorBoard events need the package tensorboardX: pip install "jaxgen[tb]", or leave out --tensorboard.'
        ) from None
    return tensorboardX


def open_events(run: RunDirectory, step: int) -> Events:
    """A writer of events into the run's folder ``tensorboard/``; those beyond ``step`` are no longer shown."""
    require_tensorboard()
    return Events(run, step)


class Events:
    """One file of scalars. Raises ``CheckpointError`` when it cannot be written.

    Written here and now: the writer that tensorboardX offers has a thread that ends in silence on a full disk, and who
    gives it more waits for it forever.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.path / "tensorboard"
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, and a run holds its own files only. Remove it.")
        # Files are read in the order of their names; a rollback may begin two in a second.
        now = time.time_ns()
        self._path = folder / f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{now}"
        self._event, self._waiting = Event, b""
        self._add(file_version="brain.Event:2")
        # As a session begins, TensorBoard forgets what it has from its step on.
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
        """Put what was added on the disk."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                if file.write(self._waiting) != len(self._waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self._path, error, needed=len(self._waiting)) from error
        self._waiting = b""

    def _add(self, **what: Any) -> None:
        """A record: its length and the event, each with a checksum behind it."""
        from tensorboardX.record_writer import masked_crc32c

        event = self._event(wall_time=time.time(), **what).SerializeToString()
        for part in (struct.pack("<Q", len(event)), event):
            self._waiting += part + struct.pack("<I", masked_crc32c(part))
