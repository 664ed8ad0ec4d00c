"""A text file read a little at a time: memory does not grow with it, and no line break is translated."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from codecs import utf_8_decode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxgen.errors import DataError

#: Bytes that are read at once.
PIECE = 1 << 16
#: How a gzip file begins.
GZIP = b"\x1f\x8b"


def check_readable(paths: Iterable[str]) -> None:
    """Raise ``DataError`` for a file that is missing or closed to us, without opening any: a pipe opens but once."""
    for path in paths:
        if path == "-":
            continue
        if not os.path.exists(path):
            raise DataError(f"There is no file {path}. Check the path and the folder you are in.")
        if os.path.isdir(path) or not os.access(path, os.R_OK):
            what = "is a folder" if os.path.isdir(path) else "cannot be read: permission denied"
            raise DataError(f"{path} {what}. Give text files that can be read.")


def read_pieces(
    path: str, *, any_bytes: bool = False, size: int = PIECE, seen: Callable[[int], None] | None = None
) -> Iterator[str]:
    """The text of a UTF-8 file in pieces that add up to it; gzip is recognised by its first two bytes, ``-`` is
    standard input.

    With ``any_bytes``, what is not UTF-8 is read as lone surrogates, which a byte tokenizer turns back into bytes.
    ``seen`` is told how many bytes of the file have been read. Raises ``DataError`` for a file that cannot be read and,
    with its byte offset, for what is not UTF-8.
    """
    name = "standard input" if path == "-" else f"the file {path}"
    if path == "-" and sys.stdin is None:
        raise DataError("Standard input is closed: give a file.")
    try:
        raw: BinaryIO = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"{_capital(name)} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from None
    count = 0

    def watch(block: memoryview) -> None:
        nonlocal count
        count += len(block)
        if seen is not None:
            seen(count)

    def refuse(error: UnicodeDecodeError, before: int) -> DataError:
        return DataError(
            f"{_capital(name)} is not UTF-8: byte {error.object[error.start]:#04x} at offset {before + error.start:,} "
            f"({error.reason}). Convert it to UTF-8; a model trained with --level byte reads any bytes."
        )

    try:
        yield from decoded(blocks(raw, size, watch), refuse, any_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{_capital(name)} cannot be read to its end ({error}). Copy it again.") from None
    finally:
        if path != "-":
            raw.close()


def read_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in pieces, as documents are cut by line: without their line breaks, those of
    white space alone left out."""
    for line in whole_lines(pieces):
        line = line.removesuffix("\r")
        if line and not line.isspace():
            yield line


def whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """What is between the newlines of a text that comes in pieces, in front of the first and behind the last."""
    rest: list[str] = []
    for piece in pieces:
        *lines, last = piece.split("\n")
        for line in lines:
            yield "".join([*rest, line])
            rest = []
        rest.append(last)
    yield "".join(rest)


def blocks(
    raw: BinaryIO, size: int, watch: Callable[[memoryview], None], begin: Callable[[bytes], None] | None = None
) -> Iterator[bytes]:
    """The bytes of a file, unpacked if it is gzip. ``watch`` gets all bytes as they are read from it, ``begin`` the
    first two before any others."""
    head = raw.read(len(GZIP))
    if begin is not None:
        begin(head)
    stream: BinaryIO = io.BufferedReader(_Watched(head, raw, watch), size)  # type: ignore[type-var]
    if head == GZIP:
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
    while block := stream.read(size):
        yield block


class _Watched(io.RawIOBase):
    """A stream whose first bytes have been read already; it shows what it reads."""

    def __init__(self, head: bytes, raw: BinaryIO, watch: Callable[[memoryview], None]) -> None:
        self._head, self._raw, self._watch = head, raw, watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        block, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        block = block or self._raw.read(len(buffer))
        buffer[: len(block)] = block
        self._watch(memoryview(block))
        return len(block)


def decoded(
    parts: Iterable[bytes], refuse: Callable[[UnicodeDecodeError, int], Exception], any_bytes: bool
) -> Iterator[str]:
    """UTF-8 as text; a character that is cut waits for its rest. What is no UTF-8 raises what ``refuse`` makes of the
    error and of how many bytes were in front of those in it."""
    errors = "surrogateescape" if any_bytes else "strict"
    waiting, before, ended = b"", 0, False
    source = iter(parts)
    while not ended:
        block = next(source, None)
        ended = block is None
        waiting += block or b""
        try:
            text, used = utf_8_decode(waiting, errors, ended)
        except UnicodeDecodeError as error:
            raise refuse(error, before) from None
        waiting, before = waiting[used:], before + used
        if text:
            yield text


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
