"""Token ids too many for memory: a file in the user's cache folder that is mapped once it has been checked."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jaxgen.errors import DataError
from jaxgen.fsutil import io_reason, not_regular, parse_json, sync_folder, user_cache
from jaxgen.runs.lock import boot_id, is_running

#: A change of what lies in these files, or of how text becomes ids.
VERSION = 1
#: Bytes of token files beyond which those not used for the longest time are removed.
MOST_KEPT = 1 << 35
#: Bytes at the end of a file that say what it holds.
TRAILER = 1024
#: Bytes that are checked at once.
BLOCK = 1 << 20
#: Seconds after which a file that nobody here is writing was left by another machine.
ABANDONED = 86400.0


class Part(NamedTuple):
    """Some ids, and what is counted of them."""

    ids: np.ndarray
    counts: tuple[int, ...]


class Kept(NamedTuple):
    """All ids [N], mapped from a file, and the sums of what was counted of them."""

    ids: np.ndarray
    counts: tuple[int, ...]


def get_or_create(
    key: str, dtype: np.dtype, make: Callable[[], Iterable[Part]], about: int, tell: Callable[[str], None]
) -> Kept:
    """The ids that ``make`` gives, mapped from the file of that ``key``, or from a new one.

    ``key`` stands for all that they follow from. ``tell`` hears of a damaged file, which is made again. Where no cache
    folder can be written the file has no name and is gone with the process. Raises ``DataError``, naming the path and
    the bytes that it takes ``about``, when there is no room for it.
    """
    folder = _folder()
    if folder is None:
        place = Path(tempfile.gettempdir())
        with _room(place, about), tempfile.TemporaryFile(prefix="jaxgen-") as file:
            counts = _write(file, key, dtype, make())
            return Kept(_mapped(file, dtype), counts)
    path = folder / f"{hashlib.sha256(f'{VERSION} {key}'.encode()).hexdigest()}.tokens"
    try:
        found = _read(path, key, dtype)
    except ValueError as problem:
        if path.is_dir():
            raise DataError(f"{path}, where the tokens of these data are kept, is a folder: remove it.") from None
        tell(f"WARNING: {path}, the tokens of these data, {problem}: they are made again.")
    else:
        if found is not None:
            return found
    _clean(folder)
    temporary = folder / f".{path.stem}.{_machine()}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with _room(path, about):
        try:
            with open(temporary, "x+b") as file:
                _write(file, key, dtype, make())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
        made = _read(path, key, dtype)
    _prune(folder, path)
    if made is None:
        raise DataError(f"{path} was removed as soon as it was written. Repeat the command.")
    return made


def _folder() -> Path | None:
    """Where token files are kept, if anything can be kept."""
    try:
        folder = user_cache() / "tokens"
        if not folder.is_absolute():
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


@contextmanager
def _room(path: Path, about: int) -> Iterator[None]:
    """What the system refuses while entered is the ``DataError`` of tokens that cannot be kept at ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The tokens of these data do not fit into memory and could not be kept in {path}: "
            f"{io_reason(path, error, about)}. Make room on that disk, or name a folder on another with the variable "
            "XDG_CACHE_HOME, then repeat the command."
        ) from error


def _write(file: IO[bytes], key: str, dtype: np.dtype, parts: Iterable[Part]) -> tuple[int, ...]:
    """Write ids and the trailer, to the disk; returns the sums of what was counted."""
    digest, size, counts = hashlib.sha256(), 0, np.zeros(0, np.int64)
    for part in parts:
        block = part.ids.astype(dtype.newbyteorder("<")).tobytes()
        file.write(block)
        digest.update(block)
        size += part.ids.size
        counts = np.add(counts if counts.size else 0, np.array(part.counts, np.int64))
    record = {"key": key, "dtype": dtype.name, "size": size, "counts": counts.tolist()}
    digest.update(json.dumps(record).encode())
    record["sha256"] = digest.hexdigest()
    file.write(json.dumps(record).encode().ljust(TRAILER))
    file.flush()
    os.fsync(file.fileno())
    return tuple(counts.tolist())


def _read(path: Path, key: str, dtype: np.dtype) -> Kept | None:
    """What lies at ``path``, if anything does. Raises ``ValueError`` that says what is wrong with it."""
    try:
        if problem := not_regular(os.lstat(path)):
            raise ValueError(problem)
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END) - TRAILER
            if length < 0:
                raise ValueError("is not whole")
            file.seek(length)
            record = parse_json(file.read())
            digest, left = hashlib.sha256(), length
            file.seek(0)
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
            said = record.pop("sha256")
            digest.update(json.dumps(record).encode())
            written = said == digest.hexdigest() and [record["key"], record["dtype"]] == [key, dtype.name]
            if not written or record["size"] * dtype.itemsize != length:
                raise ValueError("are not what was written")
            os.utime(file.fileno() if os.utime in os.supports_fd else path)
            return Kept(_mapped(file, dtype), tuple(record["counts"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("are damaged") from error


def _mapped(file: IO[bytes], dtype: np.dtype) -> np.ndarray:
    """The ids in a file; the mapping outlives it, its name and its descriptor."""
    size = (os.fstat(file.fileno()).st_size - TRAILER) // dtype.itemsize
    if not size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype.newbyteorder("<"), "r", shape=(size,)))


def _machine() -> str:
    """What tells this machine, or container, from others that may share the folder; their processes are not ours."""
    return hashlib.sha256(f"{platform.node()} {boot_id()}".encode()).hexdigest()[:8]


def _clean(folder: Path) -> None:
    """Remove what makers that are no more left unfinished."""
    for path in folder.glob(".*.tmp"):
        match = re.fullmatch(r"\.[0-9a-f]{64}\.([0-9a-f]{8})\.([0-9]{1,9})-[0-9a-f]{8}\.tmp", path.name)
        if match is None:
            continue
        with suppress(OSError):
            process = int(match[2])
            gone = process != os.getpid() and not is_running(process)
            if gone if match[1] == _machine() else time.time() - os.lstat(path).st_mtime > ABANDONED:
                path.unlink()


def _prune(folder: Path, newest: Path) -> None:
    """Remove the files not used for the longest time while there are too many bytes; never the ``newest``."""
    found = []
    for path in folder.glob("*.tokens"):
        with suppress(OSError):  # another process may be pruning too
            status = path.stat()
            found.append((path != newest, -status.st_mtime, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > MOST_KEPT and path != newest:
            with suppress(OSError):
                path.unlink()
