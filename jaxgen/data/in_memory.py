"""Data from Python objects: texts and tables are written to files, which a run reads as any others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxgen.data.datasets import BUILTIN, NAMED
from jaxgen.errors import DataError, UsageError, is_iterable, to_python
from jaxgen.fsutil import replace_file, user_cache
from jaxgen.tokenizers.base import text_bytes

#: The column of texts that come one by one.
TEXT = "text"
#: Characters of a value that a message shows.
SHOWN = 60
_ALLOWED = (
    "a text with a line break, the name of a file, folder or data set, an iterable of texts, or a table with columns"
)


def data_settings(
    data: Any = None, text: Any = None, task: str = "language", settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a run on Python objects.

    Args:
        data: A string with a line break is a text; any other names a file, a folder or a data set. Paths are files. An
            iterable of strings is separate texts. A table (of pandas, polars or ``datasets``, or a dictionary of
            columns) has its columns.
        text: A text, or an iterable of texts, whatever they look like.
        task: The task of the run; separate texts are for ``language``.
        settings: Those that are given otherwise; they may name columns.

    Returns:
        ``data``, and ``text_column`` where it follows from the data. The same content has the same file, below the
        user's cache folder.

    Raises:
        UsageError: Both or something else are given.
        DataError: The texts or columns cannot be used.
    """
    if data is not None and text is not None:
        raise UsageError("Both data and text are given: give one of them.")
    if text is not None:
        if isinstance(text, str):
            return _text(text)
        if isinstance(text, bytes | os.PathLike | Mapping) or hasattr(text, "columns") or not is_iterable(text):
            raise UsageError(
                f"The text is of the type {type(text).__name__}: give a string, or an iterable of strings."
            )
        return _texts(text, task)
    if data is None:
        return {}
    if isinstance(data, str):
        return _text(data) if "\n" in data or "\r" in data else {"data": (_name(data),)}
    if isinstance(data, os.PathLike):
        return {"data": (os.fspath(data),)}
    if (columns := _columns(data)) is not None:
        return _table(columns, task, {} if settings is None else settings)
    if not is_iterable(data) or isinstance(data, bytes):
        raise UsageError(f"The data are of the type {type(data).__name__}: give {_ALLOWED}.")
    if hasattr(data, "read"):
        raise UsageError("The data are an open file: give its name, or text=file.read() for its text.")
    items = list(data)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return {"data": tuple(map(os.fspath, items))}
    if named := [item for item in items if isinstance(item, str) and _names_data(item)]:
        raise UsageError(
            f"The data are a list of strings, which are separate texts, but {named[0]!r} names data. "
            "Give pathlib.Path objects to read files, one name to read a data set, or text=[...] for these texts."
        )
    return _texts(items, task)


def _name(data: str) -> str:
    """A string without a line break: what looks like a text is refused, because no data have that name."""
    if " " in data and not os.path.exists(data) and not any(sign in data for sign in "*?[/\\"):
        raise UsageError(f"There are no data with the name {_shown(data)}: give text=... for a text.")
    return data


def _names_data(text: str) -> bool:
    return text in BUILTIN or text in NAMED or (0 < len(text) < 1000 and "\0" not in text and os.path.exists(text))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def _columns(data: Any) -> dict[str, list[Any]] | None:
    """The columns of a table by name; None if it is not a table."""
    names: Any = data.keys() if isinstance(data, Mapping) else getattr(data, "columns", None)
    if names is None or callable(names):
        names = getattr(data, "column_names", None)  # of ``datasets``
    if names is None or callable(names):
        return None
    found: dict[str, list[Any]] = {}
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"The column {name!r} of the data has a name that is not a string: rename it.")
        try:
            values = data[name]
        except (AttributeError, KeyError, TypeError):
            raise UsageError(
                f"The data are of the type {type(data).__name__}, whose columns cannot be read: convert them to a "
                "dictionary of columns."
            ) from None
        if hasattr(values, "column_names") or isinstance(values, Mapping):
            raise UsageError(f"The data have several tables ({', '.join(map(str, names))}): give one, data[{name!r}].")
        if isinstance(values, str | bytes) or not is_iterable(values):
            raise DataError(f"The column {name!r} of the data is {_shown(values)}: give a list of values.")
        found[name] = list(values)
    return found


def _text(text: str) -> dict[str, Any]:
    return {"data": (_store(text_bytes(text), ".txt"),)}


def _texts(texts: Iterable[Any], task: str) -> dict[str, Any]:
    if task != "language":
        raise UsageError(f"The task {task} needs more than texts: give a table with a column for each part.")
    found = list(texts)
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"Text {number} of the data is {_shown(text)}, of the type {kind}: give strings.")
    return _table({TEXT: found}, task, {"text_column": TEXT}) | {"text_column": TEXT}


def _table(columns: Mapping[str, list[Any]], task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the columns that ``settings`` name; all of them if it names none."""
    more = {}
    named = [value for name, value in settings.items() if name.endswith(("_column", "_columns")) and value is not None]
    wanted = [name for value in named for name in ([value] if isinstance(value, str) else value)]
    if task == "language" and "text_column" not in settings:
        if len(columns) != 1:
            raise UsageError(f"Which column has the texts? Give text_column=..., one of {', '.join(columns)}.")
        more = {"text_column": next(iter(columns))}
    kept = {name: values for name, values in columns.items() if not wanted or name in {*wanted, *more.values()}}
    kept = kept or dict(columns)  # a wrong name is refused with those of all columns
    lengths = {name: len(values) for name, values in kept.items()}
    if not lengths or not min(lengths.values()):
        raise DataError("The data are empty: give at least one text or row.")
    if len({*lengths.values()}) != 1:
        raise DataError(f"The columns of the data have different numbers of values: {lengths}.")
    plain = {name: [_plain(value, name) for value in values] for name, values in kept.items()}
    rows = (dict(zip(plain, values)) for values in zip(*plain.values()))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return {"data": (_store(text_bytes("".join(lines)), ".jsonl"),), **more}


def _plain(value: Any, column: str) -> str | int | float | bool | None:
    """A value as JSON has it; a missing one of pandas is None. Raises ``DataError`` for other objects."""
    value = to_python(value)
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(
        f"The column {column!r} of the data holds {_shown(value)}, of the type {type(value).__name__}: give texts or "
        "numbers, or name the columns that are needed (text_column=...)."
    )


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
