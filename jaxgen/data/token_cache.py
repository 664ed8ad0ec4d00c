"""Token ids that do not fit into memory, in memory-mapped files of the user's cache folder, verified before use."""

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
from jaxgen.fsutil import io_reason, open_regular, parse_json, sync_folder, user_cache
from jaxgen.runs.lock import boot_id, is_running, pid_namespace

#: Increase it when the format of these files, or how text becomes ids, changes.
VERSION = 2
#: Size of all token files beyond which the least recently used ones are removed.
MAX_CACHE_BYTES = 1 << 35
#: Bytes at the end of a file that describe its contents.
TRAILER = 1024
#: Seconds after which an unfinished file of another machine is considered abandoned.
ABANDONED = 86400.0


class Part(NamedTuple):
    """Some ids, and counts of their text."""

    ids: np.ndarray
    counts: tuple[int, ...]


def get_or_create(
    key: str, dtype: np.dtype, make: Callable[[], Iterable[Part]], about: int, tell: Callable[[str], None]
) -> Part:
    """Returns all ids, memory-mapped from a file that is created if needed, and the sums of the counts.

    Without a writable cache folder, uses an unnamed temporary file, which exists as long as the process.

    Args:
        key: Identifies the ids: everything that they depend on.
        dtype: The type of the ids.
        make: Yields the ids in parts.
        about: The approximate size of the file in bytes, for the message.
        tell: Called with a warning if a file is damaged and created again.

    Raises:
        DataError: There is no space for the file.
    """
    folder = _folder()
    if folder is None:
        place = Path(tempfile.gettempdir())
        with _room(place, about), tempfile.TemporaryFile(prefix="jaxgen-") as file:
            counts = _write(file, key, dtype, make())
            return Part(_mapped(file, dtype), counts)
    path = folder / f"{hashlib.sha256(f'{VERSION} {key}'.encode()).hexdigest()}.tokens"
    try:
        found = _read(path, key, dtype)
    except ValueError as problem:
        if path.is_dir():
            raise DataError(f"{path}, where the tokens of these data are kept, is a folder: remove it.") from None
        tell(f"WARNING: {path}, the tokens of these data, {problem}: they are encoded again.")
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
    """Returns the cache folder of token files, or None if nothing can be written there."""
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
    """Turns ``OSError`` into the ``DataError`` for tokens that cannot be stored at ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The tokens of these data do not fit into memory and could not be stored in {path}: "
            f"{io_reason(path, error, about)}. Make room on that disk, or set the variable XDG_CACHE_HOME to a "
            "folder on another one, then repeat the command."
        ) from error


def _write(file: IO[bytes], key: str, dtype: np.dtype, parts: Iterable[Part]) -> tuple[int, ...]:
    """Writes ids and the trailer and syncs them; returns the sums of the counts."""
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


def _read(path: Path, key: str, dtype: np.dtype) -> Part | None:
    """Returns the ids in a file, or None if there is none; raises ``ValueError`` with what is wrong with it."""
    try:
        with open_regular(path) as file:
            length = file.seek(0, os.SEEK_END) - TRAILER
            if length < 0:
                raise ValueError
            file.seek(length)
            record = parse_json(file.read(TRAILER))
            saved, ids = record.pop("sha256"), _mapped(file, dtype)
            digest = hashlib.sha256(ids.data)
            digest.update(json.dumps(record).encode())
            facts = [saved, record["key"], record["dtype"], record["size"] * dtype.itemsize]
            if facts != [digest.hexdigest(), key, dtype.name, length]:
                raise ValueError
            os.utime(file.fileno() if os.utime in os.supports_fd else path)
            return Part(ids, tuple(record["counts"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("are damaged") from error


def _mapped(file: IO[bytes], dtype: np.dtype) -> np.ndarray:
    """Maps the ids of a file; the mapping outlives its name and its descriptor."""
    size = (os.fstat(file.fileno()).st_size - TRAILER) // dtype.itemsize
    if not size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype.newbyteorder("<"), "r", shape=(size,)))


def _machine() -> str:
    """Returns an id of this machine, or container: others may share the folder, with processes unknown here."""
    return hashlib.sha256(f"{platform.node()} {boot_id()} {pid_namespace()}".encode()).hexdigest()[:8]


def _clean(folder: Path) -> None:
    """Removes unfinished files of processes that ended."""
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
    """Removes the least recently used files beyond ``MAX_CACHE_BYTES``, but never the ``newest``."""
    found = []
    for path in folder.glob("*.tokens"):
        with suppress(OSError):  # another process may be pruning too
            status = path.stat()
            found.append((path != newest, -status.st_mtime, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > MAX_CACHE_BYTES and path != newest:
            with suppress(OSError):
                path.unlink()
