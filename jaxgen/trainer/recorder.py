"""Pictures of a training. One that cannot be drawn is said once, and never the end of what is saved."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import unwritable
from jaxgen.plots.loss import Best, draw_losses
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.base import TaskData
from jaxgen.trainer.events import Note


def run_summary(config: TrainConfig, data: TaskData, resolved: Mapping[str, Any], processes: int) -> dict[str, str]:
    """Returns the lines that describe a run when it starts: label -> text."""
    devices = resolved["devices"]
    spread = f", the batch spread over {devices}" if devices > 1 else ""
    return {
        **data.summary(),
        "model": f"{config.cell} {config.layers}x{config.hidden}, {resolved['parameters']:,} parameters",
        "training": f"{resolved['steps']:,} steps of {data.units_per_step:,} {data.UNIT}, "
        f"{config.optimizer} at {config.lr:g}, {config.schedule}",
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()}){spread}"
        + ("" if processes == 1 else f" devices of {processes} processes"),
    }


class PlotErrors:
    """What went wrong while pictures were drawn, on whatever thread, kept until there is someone to ``tell``."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._told: set[str] = set()

    @contextmanager
    def expected(self, what: str) -> Iterator[None]:
        """While entered, nothing that goes wrong is raised. ``what`` is drawn there, as a sentence names it."""
        try:
            yield
        except Exception as error:  # a full disk, or whatever fonts, texts and numbers make of a library of pictures
            first = next(iter(str(error).splitlines()), "")
            said = getattr(error, "said", "") if isinstance(error, CheckpointError) else ""
            said = said or f"Could not draw {what}: {type(error).__name__} {first}".rstrip(". ") + "."
            self._waiting.append(f"WARNING: {said} Nothing else is lost: weights and metrics are saved without it.")

    def tell(self, emit: Callable[[Note], None]) -> None:
        """Emit a ``Note`` of each that was not told yet."""
        while self._waiting:
            text = self._waiting.pop(0)
            if text not in self._told:
                self._told.add(text)
                emit(Note(text))


class LossCurves:
    """The loss curves of a run, drawn while training goes on."""

    def __init__(self, run: RunDirectory, data: str, target: str) -> None:
        self._run, self._data, self._target, self._asked = run, data, target, 0
        self._picture: Future[None] = Future()
        self._picture.set_result(None)
        self.undrawn = PlotErrors()

    def draw(self, pool: ThreadPoolExecutor, metrics: MetricsLog, best: Best) -> None:
        """Draw all of ``metrics`` on a thread of ``pool``."""
        self._asked += 1
        self._picture = pool.submit(self._draw, self._asked, metrics, best)

    def wait(self) -> None:
        """Until the last one is drawn."""
        self._picture.result()

    def _draw(self, number: int, metrics: MetricsLog, best: Best) -> None:
        if number == self._asked:  # else a newer one waits behind it
            title = f"{self._run.path.name}: {self._data}"
            with self.undrawn.expected(f"{self._run.plot_path}"):
                draw_losses(metrics.read(), self._run.plot_path, title, self._target, best)


#: What an earlier call still counts beside the next one.
FADING = 0.8


class Throughput:
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
