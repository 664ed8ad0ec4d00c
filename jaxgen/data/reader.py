"""From what the user names (a set, files, folders, globs, columns) to texts; newlines are never translated."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.columns import column_kind, read_column
from jaxgen.data.named import NAMED, fetch
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.text import text_bytes

#: How a text is cut into documents (layout ``documents``).
DOCUMENTS = ("line", "blank-line", "file", "row")

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Source:
    """Texts and where they came from: ``sha256`` is over the raw bytes of all files in order.

    ``texts`` has one entry for each file, or for each row when ``by_row``.
    """

    texts: list[str]
    name: str
    sha256: str
    default_documents: str | None
    by_row: bool


def read_texts(
    specs: Sequence[str],
    *,
    text_column: str | None = None,
    documents: str | None = None,
    level: str = "char",
) -> Source:
    """Read built-in corpora, named sets, files, folders and globs, ``.gz`` or not, or a column of CSV/TSV/JSONL.

    A built-in or named set goes before a file of the same name (write ``./name`` for the file). ``text_column``
    is a header name or a position from 1, with which every row is data. ``level="byte"`` reads any bytes. Raises
    ``DataError`` for what cannot be read, ``UsageError`` for flags that do not fit.
    """
    if isinstance(specs, str):
        specs = [specs]
    if not specs:
        raise UsageError("No data was given. Name a built-in corpus, a data set, a file, a folder or a glob.")
    if documents is not None:
        choose(documents, DOCUMENTS, "way to cut documents (--documents)")
    texts: list[str] = []
    digest = hashlib.sha256()
    defaults: set[str | None] = set()
    rows: set[bool] = set()
    for spec in specs:
        if spec in BUILTIN:
            if text_column is not None:
                raise _no_column(spec)
            found = BUILTIN[spec].texts()
            for text in found:
                digest.update(text_bytes(text))
            texts += found
            defaults.add(BUILTIN[spec].documents)
            rows.add(False)
            continue
        named = NAMED.get(spec)
        column = named.text_column if named and text_column is None else text_column
        for path in [fetch(file) for file in named.files] if named else _paths(spec):
            raw = _read(path)
            digest.update(raw)
            data = _unzip(raw, path)
            if column is None:
                texts.append(_decode(data, path, level))
            elif (kind := column_kind(path)) is None:
                raise _no_column(str(path))
            else:
                texts += read_column(
                    _decode(data, path, level), kind, column, path, header=named.header if named else None
                )
        defaults.add(named.documents if named else None)
        rows.add(column is not None)
    if len(rows) > 1:
        raise UsageError(
            f"The data {', '.join(specs)} mixes rows of a table with whole texts. Give one kind at a time."
        )
    if not any(texts):
        raise DataError(f"The data {', '.join(specs)} is empty. Give a file that has text in it.")
    by_row = rows == {True}
    if documents == "row" and not by_row:
        raise UsageError(
            "Documents by row need a table: give a .csv, .tsv or .jsonl file and --text-column, "
            "or choose --documents line, blank-line or file."
        )
    if documents == "file" and by_row:
        raise UsageError("A column of a table is read row by row: choose --documents row, line or blank-line.")
    default = defaults.pop() if len(defaults) == 1 else None
    if by_row and text_column is not None:
        default = "row"
    return Source(texts, " + ".join(map(str, specs)), digest.hexdigest(), default, by_row)


def _no_column(where: str) -> UsageError:
    return UsageError(
        f"--text-column was given, but {where} is not a .csv, .tsv or .jsonl file (or one of these with .gz). "
        "Leave the flag out to read whole texts."
    )


def _paths(spec: str) -> list[Path]:
    """The files that one path, folder or glob means, in sorted order."""
    try:
        mode = os.stat(os.path.expanduser(spec)).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise DataError(f"{spec!r} cannot be reached: permission denied. Make its folder readable.") from error
        return _glob(spec)
    path = Path(os.path.expanduser(spec))
    if stat.S_ISDIR(mode):
        return _folder(path)
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DataError(f"{spec!r} is a device or a socket. Give a file, a folder or a glob.")
    return [path]


def _glob(spec: str) -> list[Path]:
    if glob.has_magic(spec) and "\0" not in spec:
        found = [Path(name) for name in sorted(glob.glob(os.path.expanduser(spec), recursive=True))]
        files = [path for path in found if path.is_file()]
        if not files:
            raise DataError(f"No file matches the pattern {spec!r}. Check the pattern and the folder you are in.")
        return files
    names = [*BUILTIN, *NAMED]
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error


def _unzip(raw: bytes, path: Path) -> bytes:
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


def _decode(data: bytes, path: Path, level: str) -> str:
    if level == "byte":
        return data.decode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = " It looks like UTF-16." if utf16 else ""
        raise DataError(
            f"The file {path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} "
            f"({error.reason}).{guess} Convert it to UTF-8, leave it out, or read any bytes with --level byte."
        ) from error
