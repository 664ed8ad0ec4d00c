"""The two logs of a run, both cut back to a step when a run resumes: ``metrics.jsonl`` and ``samples.txt``."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.store.files import RESUME, parse_json, replace_file, unwritable


class MetricsLog:
    """A file of one JSON object a line. A last line cut short by a crash is dropped, wherever it is met."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add ``row`` as one line, handed to the system before this returns; numbers that are not finite become null.

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
        """Drop the rows whose ``"step"`` is beyond ``step``, and a torn last line, in one atomic replacement."""
        if self.path.exists():
            kept = [raw for raw, row in self._lines() if not _beyond(row.get("step"), step)]
            replace_file(self.path, b"".join(kept), RESUME)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        data = self.path.read_bytes() if self.path.exists() else b""
        lines = data.split(b"\n")
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
                raise CheckpointError(
                    f"Line {number} of {self.path} is not a row of metrics: {error}. Delete that line; the run goes "
                    "on without it."
                ) from error
            yield line + b"\n", row


def append_sample(path: str | os.PathLike[str], step: int, text: str) -> None:
    """Add ``text`` to ``samples.txt`` as a section headed ``=== step N ===``.

    A line of the text that looks like such a heading gets a backslash in front, so that the text cannot be
    taken for one. Write a step's samples before its checkpoint: ``truncate_samples`` keeps what a checkpoint has.
    """
    body = text.encode("utf-8", "backslashreplace")
    body = re.sub(rb"(?m)^(\\*=== step)", rb"\\\1", body)
    target = Path(path)
    if _ends_torn(target):
        replace_file(target, b"".join(section for _, section in _sections(target.read_bytes())), RESUME)
    _append(target, b"=== step %d ===\n%b\n\n" % (step, body.rstrip(b"\n")))


def truncate_samples(path: str | os.PathLike[str], step: int) -> None:
    """Drop the sections of ``samples.txt`` that belong to a step beyond ``step``, and one cut short by a crash."""
    target = Path(path)
    if target.exists():
        kept = [section for number, section in _sections(target.read_bytes()) if not _beyond(number, step)]
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


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _append(path: Path, data: bytes) -> None:
    try:
        with open(path, "ab", buffering=0) as file:  # one write: a kill leaves the line whole or absent
            if file.write(data) != len(data):
                raise OSError(0, "the disk is full")
    except OSError as error:
        raise unwritable(path, error) from error


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
