"""From a path, a folder or a glob to the bytes and the text of files."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import io
import os
import stat
import sys
import zlib
from codecs import utf_8_decode
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxgen.data.datasets import BUILTIN, NAMED
from jaxgen.errors import DataError

#: Bytes that a ``FileText`` reads at once.
_BLOCK = 1 << 18


def find_paths(spec: str, sets: Iterable[str] = (*BUILTIN, *NAMED)) -> list[Path]:
    """The files that one path, folder or glob means, in sorted order; ``sets`` could have been named instead."""
    try:
        mode = os.stat(os.path.expanduser(spec)).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise DataError(f"{spec!r} cannot be reached: permission denied. Make its folder readable.") from error
        return _glob(spec, list(sets))
    path = Path(os.path.expanduser(spec))
    if stat.S_ISDIR(mode):
        return _folder(path)
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DataError(f"{spec!r} is a device or a socket. Give a file, a folder or a glob.")
    return [path]


def _glob(spec: str, names: list[str]) -> list[Path]:
    if glob.has_magic(spec) and "\0" not in spec:
        found = [Path(name) for name in sorted(glob.glob(os.path.expanduser(spec), recursive=True))]
        files = [path for path in found if path.is_file()]
        if not files:
            raise DataError(f"No file matches the pattern {spec!r}. Check the pattern and the folder you are in.")
        return files
    folder = os.path.dirname(spec)
    try:
        beside = [os.path.join(folder, name) for name in os.listdir(folder or ".")]
    except (OSError, ValueError):
        beside = []
    nearest = difflib.get_close_matches(spec, names, n=1) or difflib.get_close_matches(spec, beside, n=1, cutoff=0.8)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise DataError(
        f"There is no file or folder {spec!r}, and no data set of that name.{hint} "
        f"Give a path, a glob, or one of: {', '.join(names)}."
    )


def _folder(root: Path) -> list[Path]:
    """All files under a folder that are not hidden, sorted by path."""

    def refuse(error: OSError) -> None:
        raise DataError(f"The folder {error.filename} cannot be listed: {error.strerror}. Make it readable.")

    paths = []
    for here, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(here, name) for name in files if not name.startswith(".")]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"The folder {str(root)!r} holds no files that are not hidden. Give a folder with text in it.")
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def read_bytes(path: Path) -> bytes:
    """All of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"The file {path} cannot be read: {error.strerror}. Check the path and its permissions.")


class FileText:
    """The text of a file, in pieces, as often as it is iterated over: memory does not grow with the file.

    What can be read but once, a pipe, is kept. ``sha256`` (of the bytes as they lie there) and ``chars`` are known when
    the file has been read to its end. ``seen`` is told of every byte of the first reading; in the digest ``named`` goes
    before them. Where a ``level`` can be chosen, ``byte`` reads any bytes. Raises ``DataError`` for what cannot be
    read, unpacked or decoded.
    """

    def __init__(
        self, path: Path, level: str | None = None, seen: Callable[[int], None] | None = None, named: bytes = b""
    ) -> None:
        self.path, self._level, self._seen, self._named = path, level, seen, named
        self.sha256 = b""
        self.chars = 0
        self._kept: bytes | None = None
        self._status: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[str]:
        if self.sha256:
            yield from self._read(lambda block: None)
            return
        digest, chars = hashlib.sha256(self._named), 0

        def watch(block: memoryview) -> None:
            digest.update(block)
            if self._seen is not None:
                self._seen(len(block))

        for piece in self._read(watch):
            chars += len(piece)
            yield piece
        self.sha256, self.chars = digest.digest(), chars

    def check(self) -> None:
        """Raise ``DataError`` if the file is not what it was when it was first opened."""
        if self._kept is None and self._status:
            try:
                now = _status(os.stat(self.path))
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if now != self._status:
                raise DataError(
                    f"The file {self.path} was changed while it was being read. Repeat the command once nothing writes "
                    "to it."
                )

    def _read(self, watch: Callable[[memoryview], None]) -> Iterator[str]:
        def refuse(error: UnicodeDecodeError, before: int) -> DataError:
            return not_utf8(error, before, self.path, self._level)

        try:
            with self._open() as raw:
                parts = blocks(raw, _BLOCK, watch, lambda head: _check_name(head, self.path))
                yield from decoded(parts, refuse, self._level == "byte")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(self.path, error) from error
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _open(self) -> BinaryIO:
        if self._kept is not None:
            return io.BytesIO(self._kept)
        raw = open(self.path, "rb", buffering=0)  # noqa: SIM115
        try:
            status = os.fstat(raw.fileno())
            if not stat.S_ISREG(status.st_mode):
                with raw:
                    self._kept = raw.readall()
                return io.BytesIO(self._kept)
            self._status = self._status or _status(status)
        except BaseException:
            raw.close()
            raise
        return raw


def _status(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class FilesDigest:
    """SHA-256 of the bytes of one file, or of the digests of several in their order.

    What stands in which file is part of it: the same bytes cut elsewhere are other data.
    """

    def __init__(self, sha256s: Iterable[bytes] = ()) -> None:
        self._digests = list(sha256s)

    def add(self, raw: bytes) -> None:
        """The next file."""
        self._digests.append(hashlib.sha256(raw).digest())

    def hexdigest(self) -> str:
        """In hexadecimal."""
        if len(self._digests) == 1:
            return self._digests[0].hex()
        return hashlib.sha256(b"".join(self._digests)).hexdigest()


def _check_name(head: bytes, path: Path) -> None:
    if head and not head.startswith(GZIP) and path.suffix.lower() == ".gz":
        raise DataError(f"The file {path} is not gzip, though its name ends in .gz. Rename it, or compress it again.")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"The gzip file {path} is damaged ({error}). Copy or download it again.")


def not_utf8(error: UnicodeDecodeError, before: int, path: Path, level: str | None = None) -> DataError:
    """The error for a file that is no UTF-8, of which ``before`` bytes are in front of those in ``error``."""
    utf16 = before == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    guess = " It looks like UTF-16." if utf16 else ""
    more = "or leave it out" if level is None else "leave it out, or read any bytes with --level byte"
    return DataError(
        f"The file {path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {before + error.start} "
        f"({error.reason}).{guess} Convert it to UTF-8, {more}."
    )


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
