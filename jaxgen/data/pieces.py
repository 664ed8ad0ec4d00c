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
_GZIP = b"\x1f\x8b"


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
    try:
        yield from _decoded(_blocks(raw, size, seen or (lambda count: None)), name, any_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{_capital(name)} cannot be read to its end ({error}). Copy it again.") from None
    finally:
        if path != "-":
            raw.close()


def read_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in pieces, as documents are cut by line: without their line breaks, those of
    white space alone left out."""
    rest: list[str] = []
    for piece in pieces:
        *lines, last = piece.split("\n")
        for line in lines:
            yield from _document("".join([*rest, line]))
            rest = []
        rest.append(last)
    yield from _document("".join(rest))


def _document(line: str) -> Iterator[str]:
    line = line.removesuffix("\r")
    if line and not line.isspace():
        yield line


def _blocks(raw: BinaryIO, size: int, seen: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of a file, unpacked if it is gzip."""
    head = raw.read(len(_GZIP))
    stream: BinaryIO = io.BufferedReader(_Counting(head, raw, seen), size)  # type: ignore[type-var]
    if head == _GZIP:
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
    while block := stream.read(size):
        yield block


class _Counting(io.RawIOBase):
    """A stream whose first bytes have been read already; it tells how many have been."""

    def __init__(self, head: bytes, raw: BinaryIO, seen: Callable[[int], None]) -> None:
        self._head, self._raw, self._seen, self._count = head, raw, seen, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        block, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        block = block or self._raw.read(len(buffer))
        buffer[: len(block)] = block
        self._count += len(block)
        self._seen(self._count)
        return len(block)


def _decoded(blocks: Iterable[bytes], name: str, any_bytes: bool) -> Iterator[str]:
    """UTF-8 as text; a character that is cut waits for its rest."""
    errors = "surrogateescape" if any_bytes else "strict"
    waiting, before, ended = b"", 0, False
    source = iter(blocks)
    while not ended:
        block = next(source, None)
        ended = block is None
        waiting += block or b""
        try:
            text, used = utf_8_decode(waiting, errors, ended)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{_capital(name)} is not UTF-8: byte {waiting[error.start]:#04x} at offset {before + error.start:,} "
                f"({error.reason}). Convert it to UTF-8; a model trained with --level byte reads any bytes."
            ) from None
        waiting, before = waiting[used:], before + used
        if text:
            yield text


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
