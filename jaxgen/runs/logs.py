"""The two logs of a run, both cut back to a step when a run resumes: ``metrics.jsonl`` and ``samples.txt``."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import RESUME, parse_json, refuse_links, replace_file, sync_folder, unwritable


class MetricsLog:
    """A file of one JSON object a line. A last line cut short by a crash is dropped, wherever it is met."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add ``row`` as one line, on the disk before this returns; numbers that are not finite become null.

        Scalars of NumPy and JAX are taken as numbers. Raises ``CheckpointError`` when the file cannot be written.
        """
        line = json.dumps(_plain(row), allow_nan=False) + "\n"
        if _ends_torn(self.path):
            replace_file(self.path, b"".join(raw for raw, _ in self._lines()), RESUME)
        _append(self.path, line.encode("ascii"))

    def read(self) -> list[dict[str, Any]]:
        """All rows in the order written; none when the file does not exist.

        Raises ``CheckpointError`` naming the line when one that is not the last is not a JSON object.
        """
        return [row for _, row in self._lines()]

    def truncate(self, step: int) -> None:
        """Drop the rows whose ``"step"`` is beyond ``step``, and a torn last line, in one atomic replacement.

        A damaged line goes with them where it stands beyond ``step`` too: behind the last row that is kept, and with a
        greater step of its own if that can still be read. Any other raises as in ``read``.
        """
        lines = list(self._parsed())
        if not self.path.exists():
            return
        within = [row is not None and not _beyond(row.get("step"), step) for _, row, _ in lines]
        last = max((number for number, inside in enumerate(within) if inside), default=-1)
        reached = last >= 0 and (lines[last][1] or {}).get("step") == step
        for number, (line, row, error) in enumerate(lines):
            told = re.match(rb'\{"step": ([0-9]{1,18}),', line)
            after = number > last and (reached if told is None else int(told[1]) > step)
            if row is None and error is not None and not after:
                raise error
        replace_file(self.path, b"".join(line for (line, _, _), inside in zip(lines, within) if inside), RESUME)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for line, row, error in self._parsed():
            if row is None:
                raise error or AssertionError("unreachable")
            yield line, row

    def _parsed(self) -> Iterator[tuple[bytes, dict[str, Any] | None, CheckpointError | None]]:
        """Every line with its row, or without one and with the error that says so; a torn last line is left out."""
        lines = _content(self.path).split(b"\n")
        for number, line in enumerate(lines, start=1):
            last = number == len(lines)
            if last and not line:
                return
            try:
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise ValueError("it is not an object")
            except ValueError as error:
                if last:
                    return
                problem = CheckpointError(
                    f"Line {number} of {self.path} is not a row of metrics: {error}. Delete that line; the run goes on "
                    "without it."
                )
                yield line + b"\n", None, problem
            else:
                yield line + b"\n", row, None


def append_sample(path: str | os.PathLike[str], step: int, text: str) -> None:
    """Add ``text`` to ``samples.txt`` as a section headed ``=== step N ===``.

    A line of the text that looks like such a heading gets a backslash in front, so that the text cannot be
    taken for one. Write a step's samples before its checkpoint: ``truncate_samples`` keeps what a checkpoint has.
    """
    body = text.encode("utf-8", "backslashreplace")
    body = re.sub(rb"(?m)^(\\*=== step)", rb"\\\1", body)
    target = Path(path)
    if _ends_torn(target):
        replace_file(target, b"".join(section for _, section in _sections(_content(target))), RESUME)
    _append(target, b"=== step %d ===\n%b\n\n" % (step, body.rstrip(b"\n")))


def truncate_samples(path: str | os.PathLike[str], step: int) -> None:
    """Drop the sections of ``samples.txt`` that belong to a step beyond ``step``, and one cut short by a crash."""
    target = Path(path)
    data = _content(target)
    if target.exists():
        kept = [section for number, section in _sections(data) if not _beyond(number, step)]
        replace_file(target, b"".join(kept), RESUME)


def _sections(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    """The whole sections with their steps; text before the first heading has the step ``None``."""
    if data and not data.endswith(b"\n"):  # a crash: the torn line goes, and the section with it if it is not a heading
        end = data.rfind(b"\n") + 1
        if not data.startswith(b"=== step ", end) and not b"=== step ".startswith(data[end:]):
            end = max(data.rfind(b"\n=== step ", 0, end) + 1, 0)
        data = data[:end]
    heads = list(re.finditer(rb"(?m)^=== step ([0-9]{1,18}) ===\n", data))
    starts = [head.start() for head in heads]
    if data[: starts[0] if starts else len(data)]:
        yield None, data[: starts[0] if starts else len(data)]
    for head, end in zip(heads, [*starts[1:], len(data)]):
        yield int(head[1]), data[head.start() : end]


def _beyond(number: Any, step: int) -> bool:
    return isinstance(number, (int, float)) and number > step


def _content(path: Path) -> bytes:
    """The bytes of a log; none when it does not exist. Raises ``CheckpointError`` for a link or no regular file."""
    refuse_links(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read now: {error.strerror}. Nothing was changed.") from error


def _ends_torn(path: Path) -> bool:
    refuse_links(path)
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _append(path: Path, data: bytes) -> None:
    """Add ``data`` for good: a checkpoint saved next stands for it, and must not outlive it when the power fails."""
    try:
        new = not path.exists()
        with open(path, "ab", buffering=0) as file:  # one write: a kill leaves the line whole or absent
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, needed=len(data)) from error


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types, what is not finite as ``None``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if callable(getattr(value, "item", None)):
        return _plain(value.item())
    raise TypeError(f"A row of metrics holds numbers, text and lists of them, not {type(value).__name__}.")
