"""The logs of a run, ``metrics.jsonl`` and ``samples.txt``. Both are truncated to a step when the run resumes."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import RESUME, STRICT, append_file, json_sha256, parse_json, plain_json, refuse_links, replace_file

#: The largest log that is read, the most rows (with their lists and objects) or sections, and the longest row.
MAX_LOG_BYTES, MAX_LOG_PARTS, MAX_ROW_BYTES = 2**27, 2**20, 2**20
#: How a section of ``samples.txt`` begins.
HEAD = b"=== step "
#: The last rows whose digests a ``LogRecord`` keeps one by one: it says which of them has changed.
SINGLE_ROWS = 256


@dataclass(config=STRICT)
class LogRecord:
    """What a checkpoint knows of ``metrics.jsonl``: how many rows there are, and their digests without timings."""

    rows: int = 0
    last: list[str] = field(default_factory=list)  # the digests of the last ``SINGLE_ROWS``
    earlier: str = ""  # the digest of all rows before those

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row that is appended to the log."""
        self.rows, self.last = self.rows + 1, [*self.last, _row_digest(row)]
        if len(self.last) > SINGLE_ROWS:
            self.earlier, self.last = json_sha256([self.earlier, self.last[0]]), self.last[1:]

    def changed_line(self, rows: Iterable[Mapping[str, object]]) -> str | None:
        """The first line that was changed in a log with these ``rows``, in words; ``None`` if none was."""
        digests, before = [_row_digest(row) for row in rows], self.rows - len(self.last)
        earlier = ""
        for digest in digests[:before]:
            earlier = json_sha256([earlier, digest])
        if earlier != self.earlier:
            return f"lines 1 to {before:,}"
        pairs = itertools.zip_longest(self.last, digests[before:])
        return next((f"line {before + k:,}" for k, (then, now) in enumerate(pairs, start=1) if then != now), None)


def _row_digest(row: Mapping[str, object]) -> str:
    """The digest of a row without its timings, which differ between equal runs."""
    timings = {name for name in row if name == "seconds" or name.endswith("_per_second")}
    return json_sha256(plain_json({name: value for name, value in row.items() if name not in timings}))[:16]


class MetricsLog:
    """One JSON object a line. A last line that a crash cut short is ignored, and dropped by the next write.

    Other lines that are not objects have been edited; they are left as they are. All methods raise
    ``CheckpointError`` for a file that cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, object]) -> None:
        """Append ``row`` as one line and sync it to disk; non-finite numbers become null.

        Scalars of NumPy and JAX are written as numbers.
        """
        line = json.dumps(plain_json(row), allow_nan=False) + "\n"
        if _ends_torn(self.path):
            replace_file(self.path, b"".join(line.raw for line in self._lines()), RESUME)
        append_file(self.path, line.encode("ascii"))

    def read(self) -> list[dict[str, Any]]:
        """All rows in the order written, without lines that are not rows."""
        return [row for row in self.rows() if row]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The row of each line; an empty one for a line that is not a row."""
        return (line.row for line in self._lines())

    def truncate(self, step: int) -> None:
        """Drop the rows whose ``"step"`` is after ``step``, and a torn last line, in one atomic replacement.

        A line that is not a row is dropped too if it belongs to a later step: it comes after the last row that is
        kept, and its own step, if that can still be read, is later.
        """
        lines = list(self._lines())
        if not self.path.exists():
            return
        kept = [bool(line.row) and not _is_after(line.row.get("step"), step) for line in lines]
        last = max((index for index, keep in enumerate(kept) if keep), default=-1)
        reached = last >= 0 and lines[last].row.get("step") == step
        for index, line in enumerate(lines):
            if not line.row:
                own_step = re.match(rb'\{"step": ([0-9]{1,18}),', line.raw)
                later = reached if own_step is None else int(own_step[1]) > step
                kept[index] = not (later and index > last)
        replace_file(self.path, b"".join(line.raw for line, keep in zip(lines, kept) if keep), RESUME)

    def _lines(self) -> Iterator[_Line]:
        """Every line except a torn last one."""
        *lines, end = _content(self.path, b"\n", b"[", b"{").split(b"\n")
        yield from (_Line(line + b"\n", _parse_row(line)) for line in lines)
        if row := _parse_row(end):
            yield _Line(end + b"\n", row)


class _Line(NamedTuple):
    """A line of the log and its row, which is empty for a line that is not a row."""

    raw: bytes
    row: dict[str, Any]


def _parse_row(line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line) if 0 < len(line) <= MAX_ROW_BYTES else None
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}


def append_sample(path: str | os.PathLike[str], step: int, text: str) -> None:
    """Add ``text`` to ``samples.txt`` as a section headed ``=== step N ===``.

    A line of the text that looks like such a heading is escaped with a backslash. Write the samples of a step before
    its checkpoint: ``truncate_samples`` keeps those of the step that a run resumes from.
    """
    body = text.encode("utf-8", "backslashreplace")
    body = re.sub(rb"(?m)^(\\*=== step)", rb"\\\1", body)
    target = Path(path)
    if _ends_torn(target):
        replace_file(target, b"".join(section for _, section in _sections(_content(target, HEAD))), RESUME)
    append_file(target, b"=== step %d ===\n%b\n\n" % (step, body.rstrip(b"\n")))


def truncate_samples(path: str | os.PathLike[str], step: int) -> None:
    """Drop the sections of ``samples.txt`` that belong to a later step, and one that a crash cut short."""
    target = Path(path)
    data = _content(target, HEAD)
    if target.exists():
        kept = [section for number, section in _sections(data) if not _is_after(number, step)]
        replace_file(target, b"".join(kept), RESUME)


def _sections(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    """The complete sections with their steps; text before the first heading has the step ``None``."""
    if data and not data.endswith(b"\n"):  # a crash: drop the torn line, and the section that it belongs to
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


def _is_after(number: object, step: int) -> bool:
    return isinstance(number, (int, float)) and number > step


def _content(path: Path, *parts: bytes) -> bytes:
    """The bytes of a log; none if it does not exist.

    Raises ``CheckpointError`` for anything but a regular file, and for one of more than ``MAX_LOG_BYTES`` or with more
    than ``MAX_LOG_PARTS`` of one of ``parts``, each of which takes far more memory than its bytes.
    """
    refuse_links(path)
    try:
        large = path.stat().st_size > MAX_LOG_BYTES
        data = b"" if large else path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read now: {error.strerror}. Nothing was changed.") from error
    if large or any(data.count(part) > MAX_LOG_PARTS for part in parts):
        what = f"is larger than {MAX_LOG_BYTES // 2**20} MB" if large else f"has more than {MAX_LOG_PARTS:,} parts"
        raise CheckpointError(f"{path} {what}, the most that is read. Move it away: the run continues without it.")
    return data


def _ends_torn(path: Path) -> bool:
    """Whether the last line of a log was cut short."""
    refuse_links(path)
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
