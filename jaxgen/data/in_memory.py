"""Data from Python objects: texts and tables are written to files, which a run reads as any others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxgen.errors import DataError, UsageError, is_iterable
from jaxgen.fsutil import replace_file, user_cache
from jaxgen.tokenizers.base import text_bytes

#: The column of texts that come one by one.
TEXT = "text"
_ALLOWED = (
    "a text with a line break, the name of a file, folder or data set, an iterable of texts, or a table with columns"
)


def data_settings(data: Any = None, text: Any = None) -> dict[str, Any]:
    """The settings of a run on Python objects.

    Args:
        data: A string with a line break is a text; any other names a file, a folder or a data set. Paths are files. An
            iterable of strings is separate texts. A table (of pandas, polars or ``datasets``, or a dictionary of
            columns) has its columns.
        text: A text, or an iterable of texts, whatever they look like.

    Returns:
        ``data``, and ``text_column`` for separate texts. The same texts have the same file, below the user's cache
        folder.

    Raises:
        UsageError: Both or something else are given.
        DataError: A text is not a string.
    """
    if data is not None and text is not None:
        raise UsageError("Both data and text are given: give one of them.")
    if text is not None:
        return _text(text) if isinstance(text, str) else _texts(text)
    if data is None:
        return {}
    if isinstance(data, str):
        return _text(data) if "\n" in data or "\r" in data else {"data": (data,)}
    if isinstance(data, os.PathLike):
        return {"data": (os.fspath(data),)}
    if columns := _columns(data):
        return _table(columns)
    if not is_iterable(data) or isinstance(data, bytes):
        raise UsageError(f"The data are of the type {type(data).__name__}: give {_ALLOWED}.")
    items = list(data)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return {"data": tuple(map(os.fspath, items))}
    if items and all(isinstance(item, str) and len(item) < 1000 and os.path.exists(item) for item in items):
        raise UsageError(
            "The data are a list of strings, which are separate texts, but all of them name files. "
            "Give pathlib.Path objects to read the files, or text=[...] for these texts."
        )
    return _texts(items)


def _columns(data: Any) -> dict[str, list[Any]]:
    """The columns of a table by name; empty if it is not a table."""
    names: Any = data.keys() if isinstance(data, Mapping) else getattr(data, "columns", None)
    if names is None:
        names = getattr(data, "column_names", None)  # of ``datasets``
    return {} if names is None or callable(names) else {str(name): list(data[name]) for name in names}


def _text(text: str) -> dict[str, Any]:
    return {"data": (_store(text_bytes(text), ".txt"),)}


def _texts(texts: Iterable[Any]) -> dict[str, Any]:
    found = list(texts)
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise DataError(f"Text {number} of the data is {text!r}, of the type {type(text).__name__}: give strings.")
    return {**_table({TEXT: found}), "text_column": TEXT}


def _table(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(f"The columns of the data have {lengths} values: give as many in each, at least one.")
    rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
    try:
        lines = [json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows]
    except TypeError as error:
        raise DataError(f"The data hold something that is neither a text nor a number: {error}.") from None
    return {"data": (_store(text_bytes("".join(lines)), ".jsonl"),)}


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} is of the type {type(value).__name__}")


def _store(content: bytes, suffix: str) -> str:
    """The path of a file with this content."""
    folder = user_cache() / "texts"
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    if not (path.is_file() and path.read_bytes() == content):
        _make(folder)
        replace_file(path, content)
    return str(path)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"The data cannot be stored in {folder}: {error.strerror}. Write them to a file, and give its name."
        ) from None
