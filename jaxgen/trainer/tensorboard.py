"""Files of TensorBoard events."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from jaxgen.fsutil import write_errors
from jaxgen.runs.directory import RunDirectory


class EventFile:
    """A file of scalars in the run's folder ``tensorboard/``; TensorBoard drops older points after ``step``.

    Writes are synchronous: tensorboardX's own writer has a thread that ends silently on a full disk, after which
    the next write waits forever. Raises ``CheckpointError`` when the file cannot be written.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.own_folder("tensorboard")
        # TensorBoard reads files in the order of their names; a rollback may open two within a second.
        now = time.time_ns()
        self._path = folder / f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{now}"
        # When a session starts, TensorBoard forgets the points from its step on.
        start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._append([Event(file_version="brain.Event:2"), start])

    def add_row(self, row: Mapping[str, Any], step: int) -> None:
        """Write a point for every number in a row of metrics."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self._append([Event(step=step, summary=scalar(name, value)) for name, value in numbers.items()])

    def add_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Write texts, which TensorBoard reads as Markdown."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import text

        self._append([Event(step=step, summary=text(name, each)) for name, each in texts.items()])

    def _append(self, events: list[Any]) -> None:
        """Write records and sync them to disk: length and event, each followed by its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        records = b""
        for event in events:
            event.wall_time = time.time()
            content = event.SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                records += part + struct.pack("<I", masked_crc32c(part))
        with write_errors(self._path, needed=len(records)):
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                if file.write(records) != len(records):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
