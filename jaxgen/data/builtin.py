"""Text that every Python installation carries, so that nothing has to be downloaded."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxgen.errors import DataError

_SOURCE_LIMIT = 20_000_000
# Installed packages, tests, and the prose of python-docs, which is one string half a megabyte long.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
# Written when Python was built: it holds paths of the machine that built it.
_SKIPPED_FILES = "_sysconfigdata"


@dataclass(frozen=True)
class Builtin:
    """A text source of this Python installation; ``texts`` makes it, ``documents`` is how to cut it by default."""

    texts: Callable[[], list[str]]
    documents: str
    note: str


def python_docs() -> list[str]:
    """The language reference as one text, topics in sorted order. Raises ``DataError`` where Python lacks it."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "The built-in corpus python-docs needs pydoc_data, which this Python was installed without "
            "(Debian's python3-minimal leaves it out). Install the full Python, or give --data python-source "
            "or the path of a text file."
        ) from error
    return ["".join(topics[name] + "\n\n" for name in sorted(topics))]


def python_source(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """The standard library's own ``.py`` files in sorted order, one text each, tests left out, about 20 MB at most.

    Raises ``DataError`` where the standard library is not there as files.
    """
    root = Path(folder if folder is not None else sysconfig.get_path("stdlib"))
    paths = []
    for here, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith(".")]
        paths += [Path(here, name) for name in files if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)]
    texts, size = [], 0
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a file in another encoding, or out of reach, is no part of the corpus
        size += len(raw)
        if size > _SOURCE_LIMIT:
            break
        if text:
            texts.append(text)
    if not texts:
        raise DataError(
            f"The built-in corpus python-source found no .py files in {root}: this Python keeps its standard library "
            "elsewhere, perhaps in a zip file. Give --data python-docs or the path of a text file."
        )
    return texts


BUILTIN: dict[str, Builtin] = {
    "python-docs": Builtin(python_docs, "blank-line", "the language reference, about 470 kB of English"),
    "python-source": Builtin(python_source, "file", "the standard library's own .py files"),
}
