"""``stdlib-packages``: a few lines of the standard library -> which of ten packages they are from, for ``classify``.

The lines are those of this Python installation: the texts, and figures measured on them, differ between its releases.

What gives the answer away is left out: import statements; lines that name any of the ten packages, in capitals or not,
as a word or between underscores (``_http_vsn``); and the comments that a file begins with, its licence and its name.
All ten names are left out of every package, or a line would tell by its presence which it is not from. Blank lines and
folders of tests are left out too.

Whole files are for training or for validation, which so asks for the package and not for lines seen before. Every
package has as many snippets as every other. They begin anywhere in its files; those of a small package overlap.
"""

from __future__ import annotations

import os
import re
import sysconfig
import textwrap
from pathlib import Path

from jaxgen.data.tables import Labelled
from jaxgen.data.tokens import check_sizes, permutation, random_bits
from jaxgen.errors import DataError

#: In every full installation of Python 3.11 to 3.13, with 90 kB of source or more that is not mostly tables.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "re", "unittest", "urllib", "xml")
#: A snippet has from so many to so many lines, and at most so many characters.
FEWEST, MOST, LONGEST = 5, 12, 400
# Of a package's lines about so many are for validation.
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
    """The splits ``train`` and ``val`` with so many snippets of each package, package by package.

    No text occurs twice, in one split or in both. The seed says which files are for validation and where the snippets
    begin and end. ``folder`` is where the standard library lies, by default that of this Python. Raises ``UsageError``
    for a bad seed or number, ``DataError`` where a package is not there as files or has too few lines.
    """
    check_sizes(seed=seed, number_of_training_snippets=train, number_of_validation_snippets=val)
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
            own = [lines for n, lines in enumerate(files) if (n in chosen) == (split == "val")]
            texts = _draw(own, number, seed, stream, seen)
            if len(texts) < number:
                raise DataError(
                    f"{number:,} {split} snippets of each package were asked for, but the source of {package} in "
                    f"{root} has {len(texts):,}. Ask for fewer."
                )
            splits[split].texts.extend(texts)
            splits[split].labels.extend([package] * number)
    return splits


def read(folder: Path) -> list[list[str]]:
    """The lines that may be shown of every file below a folder, files in sorted order, without those too short."""
    paths = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        paths += [Path(here, name) for name in names if name.endswith(".py")]
    files = []
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a file in another encoding, or out of reach, is no part of the set
        text = _IMPORT.sub("", _HEAD.sub("", text))
        lines = [line.rstrip() for line in text.splitlines() if line.strip() and not _NAME.search(line)]
        if len(lines) >= FEWEST:
            files.append(lines)
    return files


def validation_files(sizes: list[int], seed: int, stream: int) -> set[int]:
    """Which files, of so many lines each, are for validation: about a fifth of all lines, at least one and never all.

    In random order each is taken that brings their share nearer to a fifth; where all are too large, the smallest.
    """
    chosen: set[int] = set()
    size, goal = 0, _VAL_SHARE * sum(sizes)
    for n in permutation(len(sizes), seed, stream, "snippets").tolist():
        if abs(size + sizes[n] - goal) < abs(size - goal):
            chosen.add(n)
            size += sizes[n]
    return chosen or {min(range(len(sizes)), key=sizes.__getitem__)}


def _draw(files: list[list[str]], number: int, seed: int, stream: int, seen: set[str]) -> list[str]:
    """``number`` snippets, or as many as there are, that are not in ``seen``; they are put there."""
    places = [(lines, start) for lines in files for start in range(len(lines) - FEWEST + 1)]
    order = permutation(len(places), seed, stream, "snippets")
    extra = random_bits(len(places), seed, stream + (1 << 32), "snippets")
    texts: list[str] = []
    for k in order.tolist():
        lines, start = places[k]
        count = FEWEST + int(extra[k]) % (MOST - FEWEST + 1)
        text = _snippet(lines[start : start + count])
        if text and text not in seen:
            seen.add(text)
            texts.append(text)
        if len(texts) == number:
            break
    return texts


def _snippet(lines: list[str]) -> str:
    """As many of the lines as are short enough together, moved to the left; empty where these are too few."""
    text = textwrap.dedent("\n".join(lines))
    while len(text) > LONGEST:
        text = text[: max(text.rfind("\n"), 0)]
    return text if text.count("\n") >= FEWEST - 1 else ""
