"""Finds files by path, folder or glob, and reads their text in pieces: UTF-8, compressed with gzip or not."""

from __future__ import annotations

import codecs
import difflib
import glob
import gzip
import hashlib
import io
import itertools
import os
import stat
import sys
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxgen.data.datasets import BUILTIN, NAMED, fetch, fetch_url, is_url
from jaxgen.data.in_memory import data_name
from jaxgen.errors import DataError, for_caller, listed, near_name
from jaxgen.runs.directory import holds_run
from jaxgen.text import STANDARD, Reading, whole_lines

#: Progress is reported for at least this many bytes or characters.
REPORTED_FROM = 1 << 24


class ProgressReporter:
    """Receives progress and notes while data are read. This base class shows no progress."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Receives that ``done`` of ``total`` units of ``what`` are done."""

    def note(self, text: str) -> None:
        """Receives a notice that is not an error. Issues it as a Python warning."""
        warnings.warn(for_caller(text), stacklevel=2)


NO_PROGRESS = ProgressReporter()


class NoNotes(ProgressReporter):
    """For data that were read before: their notes are known."""

    def note(self, text: str) -> None:
        """Does nothing."""


class ProgressCounter:
    """Counts what is done, and reports it to ``watch`` if ``total`` is large."""

    def __init__(self, watch: ProgressReporter, what: str, total: int) -> None:
        self.watch, self.what, self.total, self.done = watch, what, total, 0

    def add(self, amount: int) -> None:
        """Counts ``amount`` more."""
        self.done += amount
        if self.total >= REPORTED_FROM:
            # More than the total is possible: line ends that join files are not counted before.
            self.watch.progress(self.what, min(self.done, self.total), self.total)


def track(pieces: Iterable[str], counter: ProgressCounter) -> Iterator[str]:
    """Yields the pieces of a text and counts their characters after they were used."""
    for piece in pieces:
        yield piece
        counter.add(len(piece))


def _ignore(_: object) -> None:
    """Does nothing."""


#: Bytes that ``read_pieces`` and ``FileText`` read at once.
PIECE, _BLOCK = 1 << 16, 1 << 18
#: The first bytes of a gzip file.
GZIP = b"\x1f\x8b"


class _Lookup(NamedTuple):
    folders: Sequence[Path]  # where relative paths are looked up if the current folder does not have them
    missing: list[str]  # what none of them has


_LOOKUP: ContextVar[_Lookup | None] = ContextVar("lookup", default=None)


@contextmanager
def data_folders(folders: Sequence[Path]) -> Iterator[None]:
    """Looks relative paths up in the current folder, then in ``folders``, where the run was started.

    The ``DataError`` for a path that none of them has says where it was looked up.
    """
    lookup = _Lookup(folders, [])
    token = _LOOKUP.set(lookup)
    try:
        yield
    except DataError as error:
        if not lookup.missing:
            raise
        places = " and in ".join(map(str, dict.fromkeys([Path.cwd(), *folders])))
        raise DataError(
            f"{error} {lookup.missing[0]!r} was looked up in {places}: the current folder, and that in which "
            "the run was started. Bring it back, or resume the run with its new place (--data)."
        ) from error
    finally:
        _LOOKUP.reset(token)


def expand_path(spec: str) -> Path:
    """Returns a path with ``~`` replaced by the home folder; raises ``DataError`` for a name that no path can have."""
    if "\0" in spec:
        raise DataError(f"There is no file or folder {spec!r}: a path has no NUL character. Give another path.")
    return _folder_of(spec) / os.path.expanduser(spec)


def local_path(spec: str, watch: ProgressReporter) -> Path:
    """Returns the local path of a file or folder, or of the file at a URL. Raises ``DataError``."""
    if not is_url(spec):
        return expand_path(spec)
    counter = ProgressCounter(watch, "downloading", 0)

    def seen(amount: int, total: int) -> None:
        counter.total = total
        counter.add(amount)

    return fetch_url(spec, watch.note, seen)


def _folder_of(spec: str) -> Path:
    """Returns the folder in which the relative path or glob ``spec`` is looked up; by default the current one."""
    path, lookup = os.path.expanduser(spec), _LOOKUP.get()
    if lookup is None or os.path.isabs(path) or is_url(spec):
        return Path()
    for folder in (Path(), *lookup.folders):
        if os.path.lexists(folder / path) or any(_glob(path, folder)):
            return folder
    lookup.missing.append(spec)
    return Path()


def find_paths(
    spec: str, sets: Iterable[str] = (*BUILTIN, *NAMED), watch: ProgressReporter = NO_PROGRESS
) -> list[Path]:
    """Returns the files that a path, folder, glob or URL names, sorted.

    Runs in a folder, or in the folders that match a glob, are left out: their checkpoints and samples are not data.

    Args:
        spec: The path, folder, glob or URL.
        sets: Names of data sets that could have been given instead, for the message.
        watch: Receives a note of the runs that were left out, and of a download.

    Raises:
        DataError: There is no such file, or it cannot be read or downloaded.
    """
    path = local_path(spec, watch)
    try:
        mode = os.stat(path if spec else "").st_mode  # an empty name is no folder, and Path("") is one
    except PermissionError as error:
        raise DataError(f"{spec!r} cannot be reached: permission denied. Make its folder readable.") from error
    except (OSError, ValueError):
        if not glob.has_magic(spec):
            raise _not_found(spec, list(sets)) from None
        folder = _folder_of(spec)
        names = sorted(set(_glob(os.path.expanduser(spec), folder)))
        paths = [folder / name for name in names if os.path.isfile(folder / name)]
        paths = _without_runs(paths, path, watch)
        if not paths:
            raise DataError(
                f"No file matches the pattern {spec!r}, apart from those of runs. Check it and the current folder."
            ) from None
        return paths
    if stat.S_ISDIR(mode):
        if holds_run(path):
            raise DataError(
                f"The folder {spec!r} is a run of jaxgen, not data. Name the file in it that you want to read."
            )
        paths = [file for file in walk_files(path, watch) if file.is_file()]
        if not paths:
            raise DataError(
                f"The folder {str(path)!r} has no files, apart from hidden ones and runs. Give a folder with text."
            )
        return paths
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DataError(f"{spec!r} is a device or a socket. Give a file, a folder or a glob.")
    return [path]


def find_data(specs: Iterable[str], watch: ProgressReporter = NO_PROGRESS) -> Iterator[tuple[str, list[Path]]]:
    """Yields each data set, path, folder, glob or URL with its files; a built-in corpus has none.

    What was given before is left out, with a note at the end: it would be in the training and the validation data.
    """
    seen: dict[Hashable, str] = {}
    again = []
    for spec in specs:
        if spec in BUILTIN:
            if spec in seen:
                again.append(spec)
            else:
                seen[spec] = spec
                yield spec, []
            continue
        paths = [fetch(file) for file in NAMED[spec].files] if spec in NAMED else find_paths(spec, watch=watch)
        new = []
        for path in paths:
            identity = file_identity(path)
            if identity in seen:
                again.append(f"{path} is {seen[identity]}")
            else:
                seen[identity] = str(path)
                new.append(path)
        yield spec, new
    if again:
        watch.note(f"Left out, because the same was given before: {listed(again, 3)}.")


def file_identity(path: Path) -> Hashable:
    """Returns what all paths of one regular file have in common; for anything else a value that nothing equals."""
    with suppress(OSError, ValueError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_dev, status.st_ino
    return object()


def _not_found(spec: str, names: list[str]) -> DataError:
    folder = os.path.dirname(spec)
    try:
        beside = [os.path.join(folder, name) for name in os.listdir(folder or ".")]
    except (OSError, ValueError):
        beside = []
    if os.path.islink(spec):
        return DataError(f"{spec!r} is a link that leads nowhere or to itself. Give the file or folder itself.")
    if (shown := data_name([spec])) != spec:
        return DataError(f"The {shown} are no longer in {folder}: give the same data again.")
    nearest = near_name(spec, names) or next(iter(difflib.get_close_matches(spec, beside, n=1, cutoff=0.8)), None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return DataError(
        f"There is no file or folder {spec!r}, and no data set of that name.{hint} "
        f"Give a path, a glob, a URL, or one of: {', '.join(names)}."
    )


def walk_files(root: Path, watch: ProgressReporter = NO_PROGRESS) -> list[Path]:
    """Returns all files under a folder that are not hidden or part of a run, sorted.

    Raises ``DataError`` if a folder cannot be listed. ``watch`` receives a note of the runs that were left out.
    """

    paths, runs = [], []
    for here, folders, files in os.walk(root, onerror=_refuse):
        inside = [Path(here, name) for name in sorted(folders) if not name.startswith(".")]
        found = {path for path in inside if holds_run(path)}
        runs += [path for path in inside if path in found]
        folders[:] = [path.name for path in inside if path not in found]
        paths += [Path(here, name) for name in files if not name.startswith(".")]
    _note_runs(runs, watch)
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _refuse(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be listed: {error.strerror}. Make it readable.")


def _glob(pattern: str, folder: Path) -> Iterator[str]:
    """Yields the paths that match ``pattern``, seen from ``folder``, some of them twice.

    Like a folder that is read, ``**`` follows no links to other folders: they may lead in circles.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern, root_dir=folder)
        return
    head, tail = parts[: parts.index("**")], parts[parts.index("**") + 1 :]
    for top in glob.iglob(os.path.join(*head), root_dir=folder) if head else [""]:
        for here, folders, files in os.walk(folder / top, onerror=_refuse) if (folder / top).is_dir() else ():
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.relpath(here, folder / top)
            place = top if inside == "." else os.path.join(top, inside)
            if tail:
                yield from _glob(os.path.join(glob.escape(place), *tail), folder)
            else:
                yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _without_runs(paths: list[Path], pattern: Path, watch: ProgressReporter) -> list[Path]:
    """Returns the matches of a glob without those in a run, unless the pattern itself names the run."""
    fixed = len(list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)))
    folders = {folder for path in paths for folder in path.parents if len(folder.parts) > fixed}
    runs = {folder for folder in folders if holds_run(folder)}
    _note_runs(sorted(runs), watch)
    return [path for path in paths if runs.isdisjoint(path.parents)]


def _note_runs(runs: list[Path], watch: ProgressReporter) -> None:
    if runs:
        names = listed(map(str, runs), 3)
        watch.note(f"Left out of the data, because they are runs: {names}. To read a file of a run, name it.")


def check_readable(paths: Iterable[str]) -> None:
    """Raises ``DataError`` for a file that is missing or not readable, without opening it: a pipe opens only once."""
    for path in paths:
        if path == "-" or (os.access(path, os.R_OK) and not os.path.isdir(path)):
            continue
        there = "is a folder" if os.path.isdir(path) else "cannot be read: permission denied"
        problem = there if os.path.exists(path) else "does not exist"
        raise DataError(f"{path} {problem}. Give text files that can be read.")


def read_bytes(path: Path, most: int = -1) -> bytes:
    """Returns the bytes of a file, or the first ``most`` of them; raises ``DataError``."""
    with _read_errors(f"The file {path}"), open(path, "rb") as file:
        return file.read(most)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file as ``STANDARD`` reads it; raises ``DataError``."""
    data = read_bytes(path)
    check_not_utf16(data, f"The file {path}")
    try:
        return STANDARD.text(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(f"The file {path}", error) from error


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    """Raises ``OSError``, and ``ValueError`` for a path with a NUL character, as ``DataError``."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name} cannot be read: {reason}. Check the path and its permissions.") from error


#: What can be done about a text that is not UTF-8, beside converting it: in general, for training data, for a run.
LEAVE_OUT = "or leave it out"
TRAIN_BYTES = "leave it out, or train with --level byte, which reads any bytes"
BYTE_RUN = "leave it out, or take a run that was trained with --level byte, which reads any bytes"


def not_utf8(name: str, error: UnicodeDecodeError, before: int = 0, remedy: str = LEAVE_OUT) -> DataError:
    """Returns the error for a text that is not UTF-8.

    Args:
        name: The text as the beginning of a sentence, for example ``The file a.txt``.
        error: What decoding raised.
        before: Number of bytes of the text before those that were decoded.
        remedy: What else can be done.
    """
    utf16 = before == 0 and (error.object[:2] in (b"\xff\xfe", b"\xfe\xff") or _looks_like_utf16(error.object))
    guess = " It looks like UTF-16." if utf16 else ""
    return DataError(
        f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at offset {before + error.start} "
        f"({error.reason}).{guess} Convert it to UTF-8, {remedy}."
    )


#: Bytes by which UTF-16 is recognised.
_HEAD = 4096


def check_not_utf16(head: bytes, name: str) -> None:
    """Raises ``DataError`` if a text that begins with these bytes seems to be UTF-16 without a byte order mark.

    Its bytes are often valid UTF-8: letters with NUL characters between them. ``name`` is as in ``not_utf8``.
    """
    if _looks_like_utf16(head[:_HEAD]):
        raise DataError(
            f"{name} looks like UTF-16 without a byte order mark: every other byte is a control character. Convert it "
            "to UTF-8, or leave it out."
        )


def _looks_like_utf16(head: bytes) -> bool:
    """Whether half of the bytes, at even or at odd places, are often those of UTF-16 for alphabets, 0 to 7."""
    pairs = len(head) // 2
    few, many = sorted(sum(byte < 8 for byte in head[first : 2 * pairs : 2]) for first in (0, 1))
    return pairs > 1 and few <= 0.05 * pairs and many >= (0.5 * pairs if pairs > 7 else pairs)


def read_pieces(
    path: str,
    *,
    any_bytes: bool = False,
    size: int = PIECE,
    seen: Callable[[int], None] = _ignore,
    remedy: str = LEAVE_OUT,
) -> Iterator[str]:
    """Yields the text of a file, or of standard input, in pieces and unchanged (see ``Reading``).

    Args:
        path: The file, or ``-`` for standard input.
        any_bytes: Read bytes that are not UTF-8 as lone surrogates, which a byte tokenizer turns back into bytes.
        size: Bytes to read at once.
        seen: Called with the number of bytes of each block.
        remedy: That of ``not_utf8``.

    Raises:
        DataError: The file cannot be read or is not UTF-8.
    """
    name = "Standard input" if path == "-" else f"The file {path}"
    if path == "-" and sys.stdin is None:
        raise DataError("Standard input is closed: give a file.")
    with ExitStack() as stack:
        with _read_errors(name):
            raw = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
        yield from _decoded(raw, name, size, lambda block: seen(len(block)), any_bytes, remedy)


class FileText:
    """The text of a file in pieces, which can be iterated over repeatedly; memory does not grow with the file.

    A pipe, which can be read only once, is kept in memory. ``sha256`` (of the bytes of the file), ``chars`` and
    ``line_ends`` (how many CR LF and CR were read as LF) are known once the file has been read to its end. Iterating
    raises ``DataError`` for what cannot be read.

    Args:
        path: The file.
        reading: How the text is read.
        level: The tokenizer's level, where it can be chosen; ``byte`` reads any bytes.
        seen: Called with the number of bytes of each block of the first reading.
        prefix: Bytes that go into the digest before those of the file.
    """

    def __init__(
        self,
        path: Path,
        reading: Reading = STANDARD,
        level: str | None = None,
        seen: Callable[[int], None] = _ignore,
        prefix: bytes = b"",
    ) -> None:
        self.path, self.reading, self._level, self._seen, self._prefix = path, reading, level, seen, prefix
        self._file = path.absolute()  # the current folder may change before it is read
        self.sha256 = b""
        self.chars = self.line_ends = 0
        self._pipe: bytes | None = None
        self._status: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[str]:
        if self.sha256:
            yield from self.reading.pieces(self._read(_ignore))
            return
        digest, chars, line_ends = hashlib.sha256(self._prefix), 0, 0

        def watch(block: memoryview) -> None:
            digest.update(block)
            self._seen(len(block))

        def raw() -> Iterator[str]:
            nonlocal line_ends
            for piece in self._read(watch):
                line_ends += piece.count("\r")
                yield piece

        for piece in self.reading.pieces(raw()):
            chars += len(piece)
            yield piece
        self.sha256, self.chars = digest.digest(), chars
        self.line_ends = line_ends if self.reading.newlines == "lf" else 0

    def check(self) -> None:
        """Raises ``DataError`` if the file is not what it was when it was first opened."""
        if self._pipe is None and self._status:
            with _read_errors(f"The file {self.path}"):
                now = _status(os.stat(self._file))
            if now != self._status:
                raise DataError(
                    f"The file {self.path} was changed while it was being read. Repeat the command once nothing writes "
                    "to it."
                )

    def _read(self, watch: Callable[[memoryview], None]) -> Iterator[str]:
        name = f"The file {self.path}"
        with _read_errors(name):
            raw = self._open()
        with raw:
            gz = self.path.suffix.lower() == ".gz"
            remedy = LEAVE_OUT if self._level is None else TRAIN_BYTES
            yield from _decoded(raw, name, _BLOCK, watch, self._level == "byte", remedy, gz)

    def _open(self) -> BinaryIO:
        if self._pipe is not None:
            return io.BytesIO(self._pipe)
        with ExitStack() as stack:
            raw = stack.enter_context(open(self._file, "rb", buffering=0))
            status = os.fstat(raw.fileno())
            if not stat.S_ISREG(status.st_mode):
                self._pipe = raw.readall()
                return io.BytesIO(self._pipe)
            self._status = self._status or _status(status)
            stack.pop_all()
            return raw


def _status(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class FilesDigest:
    """SHA-256 of the bytes of one file, or of the digests of several in their order.

    It depends on how the bytes are divided among the files.
    """

    def __init__(self, sha256s: Iterable[bytes] = ()) -> None:
        self.digests = list(sha256s)

    def add(self, raw: bytes) -> None:
        """Adds the next file."""
        self.digests.append(hashlib.sha256(raw).digest())

    def hexdigest(self) -> str:
        """Returns the digest in hexadecimal."""
        if len(self.digests) == 1:
            return self.digests[0].hex()
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


def _decoded(
    raw: BinaryIO,
    name: str,
    size: int,
    watch: Callable[[memoryview], None],
    any_bytes: bool,
    remedy: str,
    must_be_gzip: bool = False,
) -> Iterator[str]:
    """Yields the text of an open file in pieces; a character that is split between blocks is yielded whole.

    ``watch`` gets all bytes as they are read from the file. The other arguments are those of ``read_pieces`` and
    ``not_utf8``.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape" if any_bytes else "strict")
    before = 0
    with _read_errors(name):
        stream: Any = io.BufferedReader(_Watched(raw, watch), max(size, len(GZIP)))
        head = stream.peek(len(GZIP))[: len(GZIP)]
        if must_be_gzip and head not in (b"", GZIP):
            raise DataError(f"{name} is not gzip, though its name ends in .gz. Rename it, or compress it again.")
        if head == GZIP:
            stream = gzip.GzipFile(fileobj=stream)
        block = head
        while block:
            try:
                block = stream.read(size)
                if before == 0 and not any_bytes:
                    check_not_utf16(block, name)
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The object begins with what the decoder kept of the block before.
                raise not_utf8(name, error, before + len(block) - len(error.object), remedy) from None
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{name} is damaged gzip ({error}). Copy or download it again.") from error
            before += len(block)
            if text:
                yield text


class _Watched(io.RawIOBase):
    """A stream; ``watch`` gets all bytes that are read from it."""

    def __init__(self, raw: BinaryIO, watch: Callable[[memoryview], object]) -> None:
        self._raw, self._watch = raw, watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._raw.read(len(buffer))
        buffer[: len(block)] = block
        self._watch(memoryview(block))
        return len(block)


def read_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a text in pieces, without line breaks; lines of white space are left out."""
    return (line for line in whole_lines(pieces) if line and not line.isspace())
