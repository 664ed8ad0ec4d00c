"""From what the user names (a set, files, folders, globs, columns) to texts; newlines are never translated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxgen.data.builtin import BUILTIN
from jaxgen.data.columns import column_kind, read_column
from jaxgen.data.files import FilesDigest, decode, find_paths, read_bytes, unzip
from jaxgen.data.named import NAMED, fetch
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.text import text_bytes

#: How a text is cut into documents (layout ``documents``).
DOCUMENTS = ("line", "blank-line", "file", "row")


@dataclass(frozen=True)
class Source:
    """Texts and where they came from: ``sha256`` is the ``FilesDigest`` of all files, a built-in corpus counting
    as one.

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
    digest = FilesDigest()
    defaults: set[str | None] = set()
    rows: set[bool] = set()
    for spec in specs:
        if spec in BUILTIN:
            if text_column is not None:
                raise _no_column(spec)
            found = BUILTIN[spec].texts()
            digest.add(b"".join(map(text_bytes, found)))
            texts += found
            defaults.add(BUILTIN[spec].documents)
            rows.add(False)
            continue
        named = NAMED.get(spec)
        column = named.text_column if named and text_column is None else text_column
        for path in [fetch(file) for file in named.files] if named else find_paths(spec):
            raw = read_bytes(path)
            digest.add(raw)
            data = unzip(raw, path)
            if column is None:
                texts.append(decode(data, path, level))
            elif (kind := column_kind(path)) is None:
                raise _no_column(str(path))
            else:
                texts += read_column(
                    decode(data, path, level), kind, column, path, header=named.header if named else None
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
