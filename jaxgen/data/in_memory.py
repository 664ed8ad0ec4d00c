"""Data from Python objects: texts and tables are written to files, which a run reads as any others."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.data.datasets import BUILTIN, NAMED, is_url
from jaxgen.errors import DataError, UsageError, counted, flag_of, is_iterable, listed, to_python
from jaxgen.fsutil import replace_file, user_cache
from jaxgen.tokenizers.base import text_bytes

#: The column of texts that come one by one.
TEXT = "text"
#: Characters of a value that a message shows.
SHOWN = 60
#: The largest whole numbers, which Python writes as text.
MAX_BITS = 10_000
_ALLOWED = (
    "a text with a line break, the name of a file, folder or data set, a URL, an iterable of texts, or a table with "
    "columns"
)
#: The name of a file that holds data from memory: how many there are, of what, and the digest of the content.
_STORED = re.compile(r"([0-9]+)-(character|text|row)-[0-9a-f]{32}\.(?:txt|jsonl)")


def data_settings(
    data: Any = None, text: Any = None, task: str = "language", settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a run on Python objects.

    Args:
        data: A string with a line break is a text; any other names a file, a folder, a URL or a data set. Paths are
            files. An iterable of strings is separate texts. A table (of pandas, polars or ``datasets``, a dictionary of
            columns, or an iterable of dictionaries) has its columns.
        text: A text, or an iterable of texts, whatever they look like.
        task: The task of the run; separate texts are for ``language``.
        settings: Those that are given otherwise; they may name columns. ``val_data`` and ``test_data`` are as ``data``.

    Returns:
        ``data`` and those others that are given, and ``text_column`` where it follows from the data. The same content
        has the same file, below the user's cache folder.

    Raises:
        UsageError: Both or something else are given.
        DataError: The texts or columns cannot be used.
    """
    settings = {} if settings is None else settings
    if data is not None and text is not None:
        raise UsageError("Both data and text are given: give one of them.")
    found = _text_settings(text, task) if text is not None else _settings(data, task, settings)
    for name in ("val_data", "test_data"):
        if settings.get(name) is not None:
            other = _settings(settings[name], task, {**settings, **found})
            other_column = "text_column" in other and other["text_column"] != {**settings, **found}.get("text_column")
            forms = {_form(each["data"]) for each in (found, other) if "data" in each} - {None}
            if other_column or len(forms) > 1:
                raise UsageError(f"The data and {flag_of(name)} are not of the same form: give both alike.")
            found[name] = other["data"]
    return found


def data_name(specs: Iterable[object]) -> str:
    """The names of data for people: data from memory are counted, in place of the file that holds them."""
    return " + ".join(map(_shown_name, map(str, specs)))


def _form(specs: Sequence[str]) -> str | None:
    """Whether data from memory are a text (``.txt``) or rows (``.jsonl``); None for other data."""
    stored = _STORED.fullmatch(os.path.basename(specs[0])) if len(specs) == 1 else None
    return None if stored is None else os.path.splitext(stored[0])[1]


def _shown_name(spec: str) -> str:
    stored = _STORED.fullmatch(os.path.basename(spec))
    return f"{counted(int(stored[1]), stored[2])} in memory" if stored else spec


def _text_settings(text: Any, task: str) -> dict[str, Any]:
    if isinstance(text, str):
        return _text(text)
    if isinstance(text, bytes | os.PathLike | Mapping) or hasattr(text, "columns") or not is_iterable(text):
        raise UsageError(f"The text is of the type {type(text).__name__}: give a string, or an iterable of strings.")
    return _texts(list(text), task)


def _settings(data: Any, task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, str):
        return _text(data) if "\n" in data or "\r" in data else {"data": (_name(data),)}
    if isinstance(data, os.PathLike):
        return {"data": (os.fspath(data),)}
    if hasattr(data, "collect") and not hasattr(data, "__len__"):  # polars
        raise UsageError(f"The data are of the type {type(data).__name__}, not read yet: give data.collect().")
    is_stream = hasattr(data, "column_names") and not hasattr(data, "__len__")  # of ``datasets``, read once by rows
    if not is_stream and (columns := _columns(data)) is not None:
        return _table(columns, task, settings)
    if not is_iterable(data) or isinstance(data, bytes | bytearray):
        raise UsageError(f"The data are of the type {type(data).__name__}: give {_ALLOWED}.")
    if hasattr(data, "read"):
        raise UsageError("The data are an open file: give its name, or text=file.read() for its text.")
    if isinstance(data, set | frozenset):
        raise UsageError("The data are a set, which has no order, so that a run could not be repeated: give a list.")
    items = list(data)
    if items and all(isinstance(item, os.PathLike) or (isinstance(item, str) and is_url(item)) for item in items):
        return {"data": tuple(map(os.fspath, items))}
    if items and all(isinstance(item, Mapping) for item in items):
        names = dict.fromkeys(name for row in items for name in row)
        return _table(_columns({name: [row.get(name) for row in items] for name in names}) or {}, task, settings)
    if named := [item for item in items if isinstance(item, str) and _names_data(item)]:
        raise UsageError(
            f"The data are a list of strings, which are separate texts, but {_shown(named[0])} names data. "
            "Give pathlib.Path objects to read files, one name to read a data set, or text=[...] for these texts."
        )
    return _texts(items, task)


def _name(data: str) -> str:
    """A string without a line break: what looks like a text is refused, because no data have that name."""
    path, is_odd = os.path.expanduser(data), " " in data or len(data) > 255
    if is_odd and not (is_url(data) or "\0" in data or os.path.exists(path) or any(glob.iglob(path))):
        raise UsageError(
            f"There is no file, folder or data set {_shown(data)}: check the name, or give text=... if it is a text."
        )
    return data


def _names_data(text: str) -> bool:
    if text in BUILTIN or text in NAMED or is_url(text):
        return True
    return 0 < len(text) < 1000 and "\0" not in text and os.path.exists(text)


def _shown(value: object) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def _columns(data: Any) -> dict[str, Iterable[Any]] | None:
    """The columns of a table by name; None if it is not a table."""
    names: Any = data.keys() if isinstance(data, Mapping) else getattr(data, "column_names", None)  # of ``datasets``
    if names is None or callable(names):
        names = getattr(data, "columns", None)
    if names is None or callable(names):
        return None
    found: dict[str, Iterable[Any]] = {}
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
        if hasattr(values, "columns"):
            raise DataError(f"The data have several columns with the name {name!r}: rename them.")
        if isinstance(values, str | bytes) or not is_iterable(values):
            raise DataError(f"The column {name!r} of the data is {_shown(values)}: give a list of values.")
        found[name] = values
    return found


def _text(text: str) -> dict[str, Any]:
    return {"data": (_store(text_bytes(text), len(text), "character", ".txt"),)}


def _texts(texts: list[Any], task: str) -> dict[str, Any]:
    if task != "language":
        raise UsageError(f"The task {task} needs more than texts: give a table with a column for each part.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(
                f"Text {number:,} of the data is {_shown(text)}, of the type {kind}: give strings, and leave out what "
                "is missing."
            )
    return _table({TEXT: texts}, task, {"text_column": TEXT}, "text") | {"text_column": TEXT}


def _table(
    columns: Mapping[str, Iterable[Any]], task: str, settings: Mapping[str, Any], what: str = "row"
) -> dict[str, Any]:
    """A table with the columns that ``settings`` name; all of them if it names none."""
    more = {}
    named = [value for name, value in settings.items() if name.endswith(("_column", "_columns")) and value is not None]
    wanted = [name for value in named for name in (value if isinstance(value, list | tuple) else [value])]
    if not columns:
        raise DataError("The data have no columns: give at least one.")
    if missing := [name for name in wanted if name not in list(columns)]:
        raise UsageError(f"The data have no column {missing[0]!r}: name one of {listed(columns)}.")
    if task == "language" and "text_column" not in settings:
        if len(columns) != 1:
            raise UsageError(f"Which column has the texts? Give text_column=..., one of {listed(columns)}.")
        more = {"text_column": next(iter(columns))}
    kept = {name: values for name, values in columns.items() if not wanted or name in {*wanted, *more.values()}}
    plain = {name: [_plain(value, name) for value in values] for name, values in kept.items()}
    lengths = {name: len(values) for name, values in plain.items()}
    if not min(lengths.values()):
        raise DataError("The data are empty: give at least one text or row.")
    if len({*lengths.values()}) != 1:
        raise DataError(f"The columns of the data have different numbers of values: {lengths}.")
    rows = [dict(zip(plain, values)) for values in zip(*plain.values())]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"data": (_store(text_bytes(lines), len(rows), what, ".jsonl"),), **more}


def _plain(value: Any, column: str) -> str | int | float | bool | None:
    """A value as JSON has it; a missing one of pandas is None. Raises ``DataError`` for other objects."""
    value = to_python(value)
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if value is None or isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= MAX_BITS):
        return value
    raise DataError(
        f"The column {column!r} of the data holds {_shown(value)}, of the type {type(value).__name__}: give texts or "
        "numbers, or name the columns that are needed (text_column=...)."
    )


def _store(content: bytes, count: int, what: str, suffix: str) -> str:
    """The path of a file with this content, whose name ``data_name`` understands."""
    folder = user_cache() / "texts"
    path = folder / f"{count}-{what}-{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
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
