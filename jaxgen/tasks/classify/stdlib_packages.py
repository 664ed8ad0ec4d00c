"""The built-in set ``stdlib-packages``: a few lines of Python source -> which of ten standard packages they are from.

The lines come from this Python installation, so texts and results differ between Python versions.

Everything that reveals the package is removed: import statements; lines that name any of the ten packages, in any
case, as a word or between underscores (``_http_vsn``); and the comments at the beginning of a file. All ten names are
removed from every package: otherwise the presence of a name would rule its package out. Blank lines and test folders
are removed too.

Whole files are for training or for validation, so validation cannot be solved by recognising lines. Every
package has the same number of snippets. They start anywhere in its files; those of a small package overlap.
"""

from __future__ import annotations

import os
import re
import sysconfig
import textwrap
from pathlib import Path

from jaxgen.data.batches import check_batch_sizes, permutation, random_bits
from jaxgen.data.tables import Labelled
from jaxgen.errors import DataError

#: Packages of every full Python 3.11 to 3.13 with at least 90 kB of source that is not mostly tables.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "re", "unittest", "urllib", "xml")
#: Minimum and maximum number of lines of a snippet, and its maximum number of characters.
MIN_LINES, MAX_LINES, MAX_CHARS = 5, 12, 400
# About this share of a package's lines is for validation.
_VAL_SHARE = 0.2
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
_HEAD = re.compile(r"\A(?:[ \t]*(?:#.*)?\n)*")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+[\w.]+[ \t]+import[ \t]*(?:\([^)]*\).*|(?:\\\n|.)*)|import[ \t](?:\\\n|.)*)", re.MULTILINE
)
_NAME = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(PACKAGES)})(?![a-z0-9])", re.IGNORECASE)


def stdlib_packages(
    seed: int = 0, *, train: int = 800, val: int = 200, folder: str | os.PathLike[str] | None = None
) -> dict[str, Labelled]:
    """Returns the splits ``train`` and ``val``, package by package; no text occurs twice.

    Args:
        seed: Decides which files are for validation, and where snippets begin and end.
        train: Training snippets of each package.
        val: Validation snippets of each package.
        folder: The standard library. Default: that of this Python.

    Raises:
        UsageError: The seed or a number is out of range.
        DataError: A package is missing as files, or has too few lines.
    """
    check_batch_sizes(seed=seed, number_of_training_snippets=train, number_of_validation_snippets=val)
    root = Path(folder if folder is not None else sysconfig.get_path("stdlib"))
    sources = {package: read(root / package) for package in PACKAGES}
    missing = [package for package, files in sources.items() if len(files) < 2]
    if missing:
        raise DataError(
            f"The built-in set stdlib-packages found too few source files of {', '.join(missing)} in {root}: this "
            "Python was installed without them (Debian's python3-minimal is) or keeps its standard library elsewhere, "
            "perhaps in a zip file. Install the full Python, or give data of your own."
        )
    splits = {"train": Labelled([], []), "val": Labelled([], [])}
    seen: set[str] = set()
    for k, (package, files) in enumerate(sources.items()):
        chosen = validation_files([len(lines) for lines in files], seed, 3 * k)
        for stream, (split, number) in enumerate({"train": train, "val": val}.items(), 3 * k + 1):
            usable = [lines for n, lines in enumerate(files) if (n in chosen) == (split == "val")]
            texts = _draw(usable, number, seed, stream, seen)
            if len(texts) < number:
                raise DataError(
                    f"{number:,} {split} snippets of each package were asked for, but the source of {package} in "
                    f"{root} has {len(texts):,}. Ask for fewer."
                )
            splits[split].texts.extend(texts)
            splits[split].labels.extend([package] * number)
    return splits


def read(folder: Path) -> list[list[str]]:
    """Returns the usable lines of every file below a folder, files in sorted order, without those too short."""
    paths = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        paths += [Path(here, name) for name in names if name.endswith(".py")]
    files = []
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # skip unreadable files and other encodings
        text = _IMPORT.sub("", _HEAD.sub("", text))
        lines = [line.rstrip() for line in text.splitlines() if line.strip() and not _NAME.search(line)]
        if len(lines) >= MIN_LINES:
            files.append(lines)
    return files


def validation_files(sizes: list[int], seed: int, stream: int) -> set[int]:
    """Returns which files, of ``sizes`` lines each, are for validation: about a fifth of all lines.

    In random order, takes each file that brings the share nearer to a fifth; if none does, the smallest one.
    """
    chosen: set[int] = set()
    size, goal = 0, _VAL_SHARE * sum(sizes)
    for n in permutation(len(sizes), seed, stream, "snippets").tolist():
        if abs(size + sizes[n] - goal) < abs(size - goal):
            chosen.add(n)
            size += sizes[n]
    return chosen or {min(range(len(sizes)), key=sizes.__getitem__)}


def _draw(files: list[list[str]], number: int, seed: int, stream: int, seen: set[str]) -> list[str]:
    """Draws ``number`` snippets, or as many as there are, that are not in ``seen``, and adds them to it."""
    places = [(lines, start) for lines in files for start in range(len(lines) - MIN_LINES + 1)]
    order = permutation(len(places), seed, stream, "snippets")
    extra = random_bits(len(places), seed, stream + (1 << 32), "snippets")
    texts: list[str] = []
    for k in order.tolist():
        lines, start = places[k]
        count = MIN_LINES + int(extra[k]) % (MAX_LINES - MIN_LINES + 1)
        text = _snippet(lines[start : start + count])
        if text and text not in seen:
            seen.add(text)
            texts.append(text)
        if len(texts) == number:
            break
    return texts


def _snippet(lines: list[str]) -> str:
    """Joins and dedents the first lines that fit into ``MAX_CHARS``; returns "" if they are too few."""
    text = textwrap.dedent("\n".join(lines))
    while len(text) > MAX_CHARS:
        text = text[: max(text.rfind("\n"), 0)]
    return text if text.count("\n") >= MIN_LINES - 1 else ""
