"""Data sets by name: from ``JAXGEN_DATA``, the cache, or a download, always verified; and the built-in corpora."""

from __future__ import annotations

import logging
import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgen.errors import DataError
from jaxgen.fsutil import file_sha256, user_cache

#: Environment variable with the folder that is searched first.
FOLDER_VARIABLE = "JAXGEN_DATA"
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class NamedFile:
    """One file of a set: its path inside ``JAXGEN_DATA`` and the cache, its URL and its digest."""

    path: str
    url: str
    sha256: str


@dataclass(frozen=True)
class NamedSet:
    """A published data set, and how the tasks read it by default."""

    files: tuple[NamedFile, ...]
    note: str
    text_column: str | None = None
    documents: str | None = None
    header: bool = False
    #: For ``classify``: the columns of the text and of the label, and the names of numeric labels.
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    #: For ``translate``: (split, source, target) of parallel files.
    pairs: tuple[tuple[str, NamedFile, NamedFile], ...] = ()


_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"

_MULTI30K_SHA256 = {
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
}
_MULTI30K_FILES = {
    name: NamedFile(f"multi30k/{name}.gz", f"{_MULTI30K}{name}.gz", sha256) for name, sha256 in _MULTI30K_SHA256.items()
}

NAMED: dict[str, NamedSet] = {
    "tinyshakespeare": NamedSet(
        files=(
            NamedFile(
                "tinyshakespeare.txt",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
        note="plays of Shakespeare, 1.1 million characters (A. Karpathy's char-rnn)",
        documents="blank-line",
    ),
    "ag_news": NamedSet(
        files=(
            NamedFile(
                "ag_news/test.csv",
                "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv",
                "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
            ),
        ),
        note="7,600 news items: class, title, description (Zhang et al. 2015, the test part); titles by default",
        text_column="2",
        documents="row",
        text_columns=("2", "3"),
        label_column="1",
        labels=(("1", "World"), ("2", "Sports"), ("3", "Business"), ("4", "Sci/Tech")),
    ),
    "multi30k": NamedSet(
        files=(_MULTI30K_FILES["train.en"],),
        note="29,000 English image captions, a line each (Multi30k task 1, training part); for translate also the "
        "German ones, with 1,014 pairs to validate and the 1,000 of test_2016_flickr",
        documents="line",
        pairs=tuple(
            (split, _MULTI30K_FILES[f"{stem}.en"], _MULTI30K_FILES[f"{stem}.de"])
            for split, stem in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr"))
        ),
    ),
    "multi30k-val": NamedSet(
        files=(_MULTI30K_FILES["val.en"],),
        note="1,014 English image captions, a line each (Multi30k task 1, validation part): for --val-data",
        documents="line",
    ),
}


def fetch(file: NamedFile, cache: Path | None = None) -> Path:
    """Returns the local path of a verified file; downloads it into ``cache`` if needed.

    Raises:
        DataError: The digest is wrong, or the file cannot be downloaded.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        if not os.path.isdir(folder):
            raise DataError(
                f"The variable {FOLDER_VARIABLE} names {folder!r}, which is not a folder. Name the folder with the "
                "data sets, or unset it to download them."
            )
        local = Path(folder, file.path)
        if local.is_file():
            _check(local, file)
            return local
    return _download(file, user_cache() if cache is None else cache)


def _check(path: Path, file: NamedFile) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(
            f"The file {path}, found through {FOLDER_VARIABLE}, cannot be read: {error.strerror}. "
            "Make it readable, or unset the variable to download the file."
        ) from error
    if found != file.sha256:
        raise DataError(
            f"The file {path}, found through {FOLDER_VARIABLE}, has the sha256 {found}, but "
            f"{file.sha256} is expected. Put the file from {file.url} there, remove this one to download it, "
            "or give the path itself to --data to use it as it is."
        )


def _download(file: NamedFile, cache: Path) -> Path:
    import pooch
    import requests

    target = cache / file.path
    try:
        with _quiet(pooch.get_logger()):
            found = pooch.retrieve(
                file.url,
                known_hash=f"sha256:{file.sha256}",
                fname=target.name,
                path=target.parent,
                downloader=_get,
            )
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: the digest is wrong
        raise DataError(
            f"{file.url} could not be downloaded to {target}: {error}. Check the network, or put the right file at "
            f"{file.path} in a folder and name that folder in the variable {FOLDER_VARIABLE}."
        ) from error
    return Path(found)


def _get(url: str, output: str, _: Any) -> None:
    """Downloads like pooch's own downloader, but closes the connection if the transfer fails."""
    import requests

    with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as response, open(output, "wb") as stream:
        response.raise_for_status()
        for block in response.iter_content(1 << 16):
            stream.write(block)


@contextmanager
def _quiet(logger: Any) -> Iterator[None]:
    """Hides the progress lines of pooch."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


_SOURCE_LIMIT = 20_000_000
# Installed packages, tests, and the text of python-docs, one string of half a megabyte.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
# Contains paths of the machine that built Python.
_SKIPPED_FILES = "_sysconfigdata"


@dataclass(frozen=True)
class Builtin:
    """A corpus from this Python installation: ``texts`` reads it, ``documents`` is how it is cut by default."""

    texts: Callable[[], list[str]]
    documents: str
    note: str


def python_docs() -> list[str]:
    """Returns the language reference as one text, topics sorted; raises ``DataError`` if this Python lacks it."""
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
    """Returns the ``.py`` files of the standard library, sorted, without tests, about 20 MB at most.

    Raises:
        DataError: The standard library does not exist as files.
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
            continue  # skip unreadable files and other encodings
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
    "python-source": Builtin(python_source, "file", "the .py files of the standard library"),
}
