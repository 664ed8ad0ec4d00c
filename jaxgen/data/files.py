"""From a path, a folder or a glob to the bytes and the text of files."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.named import NAMED
from jaxgen.errors import DataError

_GZIP = b"\x1f\x8b"


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
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error


class FilesDigest:
    """SHA-256 of the bytes of one file, or of the digests of several in their order.

    What stands in which file is part of it: the same bytes cut elsewhere are other data.
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def add(self, raw: bytes) -> None:
        """The next file."""
        self._digests.append(hashlib.sha256(raw).digest())

    def hexdigest(self) -> str:
        """In hexadecimal."""
        if len(self._digests) == 1:
            return self._digests[0].hex()
        return hashlib.sha256(b"".join(self._digests)).hexdigest()


def unzip(raw: bytes, path: Path) -> bytes:
    """The content of a gzip file, recognised by its first two bytes; other bytes as they are."""
    if not raw.startswith(_GZIP):
        if path.suffix.lower() == ".gz" and raw:
            raise DataError(
                f"The file {path} is not gzip, though its name ends in .gz. Rename it, or compress it again."
            )
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The gzip file {path} is damaged ({error}). Copy or download it again.") from error


def decode(data: bytes, path: Path, level: str | None = None) -> str:
    """The text of a file; where a ``level`` can be chosen, ``byte`` reads any bytes. Raises ``DataError``."""
    if level == "byte":
        return data.decode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = " It looks like UTF-16." if utf16 else ""
        more = "or leave it out" if level is None else "leave it out, or read any bytes with --level byte"
        raise DataError(
            f"The file {path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} "
            f"({error.reason}).{guess} Convert it to UTF-8, {more}."
        ) from error
