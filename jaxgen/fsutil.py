"""Helpers for files: atomic writes, strict JSON, and error messages."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxgen.errors import CheckpointError, UsageError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64
#: The most lists and objects, and the most values, in one file: each takes far more memory than its text.
MAX_JSON_CONTAINERS = 2**20
MAX_JSON_VALUES = 2**21
#: The most digits of a whole number: enough for 64 bits.
MAX_JSON_DIGITS = 20
#: The system's errors for a full disk, a used-up quota and a file that is too large.
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
#: What to do about a file that could not be written, by the system's error.
REMEDIES = dict.fromkeys(NO_ROOM, "Make room on that disk") | {
    errno.EROFS: "Make that disk writable",
    errno.ENOENT: "Bring its folder back",
    errno.EACCES: "Make the folder writable",
    errno.EPERM: "Make the folder writable",
    errno.EISDIR: "Remove the folder of that name",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Close other programs, or raise the limit of open files of the system",
    errno.ENOMEM: "Make memory free",
}
#: What to do after that if the file belongs to a run in training.
RESUME = "repeat it with `--resume auto`"


def replace_file(path: Path, data: bytes, advice: str = "repeat the command") -> None:
    """Write a file atomically: a reader or a crash sees the old content or the new one, never a part.

    The file is one that jaxgen names; ``write_output`` writes to those that users name. Raises ``CheckpointError``,
    which ends with ``advice``, if it cannot be written, or is a pipe or a device.
    """
    with write_errors(path, advice, len(data)):
        if path.exists() and not (path.is_file() or path.is_dir() or path.is_symlink()):
            raise CheckpointError(f"{path} is not a regular file. Remove it, then {advice}.")
        write_atomically(path, data)


def write_atomically(path: Path, data: bytes, former: os.stat_result | None = None) -> None:
    """As ``replace_file``, with the system's own errors. The file gets the permissions and owner of ``former``."""
    temporary = path.with_name(temporary_name(path.name[:50]))
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if former is not None:
            if hasattr(os, "chown"):
                with suppress(OSError):
                    os.chown(temporary, former.st_uid, former.st_gid)
            os.chmod(temporary, stat.S_IMODE(former.st_mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_file(path: Path, data: bytes) -> None:
    """Append to a file of a run and sync it to disk. Raises ``CheckpointError`` if the system refuses."""
    with write_errors(path, needed=len(data)):
        new = not path.exists()
        with open(path, "ab", buffering=0) as file:  # a single write: a kill leaves the data whole or absent
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def temporary_name(name: str) -> str:
    """A new name for what will become ``name``. It ends with a digest, by which ``read_temporary`` knows it as ours."""
    start = f".{name}.{os.getpid()}-{secrets.token_hex(4)}"
    return f"{start}-{_short_sha256(start)}.tmp"


def read_temporary(entry: str) -> tuple[str, int] | None:
    """The name and the process id that ``temporary_name`` put into ``entry``; ``None`` for any other file name."""
    match = re.fullmatch(r"(\.(.+)\.([0-9]{1,9})-[0-9a-f]{8})-([0-9a-f]{8})\.tmp", entry)
    return (match[2], int(match[3])) if match and match[4] == _short_sha256(match[1]) else None


def _short_sha256(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def check_output(path: str | os.PathLike[str], what: str = "The path") -> None:
    """Raise ``UsageError``, which begins with ``what``, if ``write_output`` cannot write to ``path``. Opens nothing."""
    if problem := _output_problem(os.fspath(path)):
        raise UsageError(
            f"{what} is {os.fspath(path)!r}, which {problem}: give a file in a folder that you may write to, a pipe, "
            "or a character device."
        )


def write_output(path: str | os.PathLike[str], data: bytes, what: str = "The path") -> None:
    """Write ``data`` to a path that a user named.

    Links are followed. A regular file is replaced atomically and keeps its permissions. Data is written into pipes and
    character devices, and into the file of standard output (``/dev/stdout``).

    Raises:
        UsageError: ``check_output`` refuses the path.
        CheckpointError: The system refuses to write.
    """
    check_output(path, what)
    status = os.stat(path) if os.path.exists(path) else None
    if status is None or (stat.S_ISREG(status.st_mode) and status.st_nlink and not _standard_stream(status)):
        target = Path(path).resolve()
        with write_errors(target, "repeat the command", len(data)):
            write_atomically(target, data, status)
        return
    with write_errors(Path(path), "repeat the command"):
        if number := _standard_stream(status):
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        with open(os.dup(number) if number else path, "wb") as file:
            file.write(data)


def _output_problem(path: str) -> str | None:
    """Why ``write_output`` cannot write to ``path``, as the end of a sentence."""
    if path == "-":
        return "would be a file of that name"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return "is a link to a file that does not exist"
        if not path or path.endswith(os.sep):
            return "does not name a file"
        status = None
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        return f"cannot be used ({getattr(error, 'strerror', None) or error})"
    if status is not None:
        if _standard_stream(status):
            return None
        for test, name in ((stat.S_ISDIR, "folder"), (stat.S_ISSOCK, "socket"), (stat.S_ISBLK, "block device")):
            if test(status.st_mode):
                return f"is a {name}"
        if not os.access(path, os.W_OK):
            return "is write-protected"
        if not stat.S_ISREG(status.st_mode) or not status.st_nlink:
            return None
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        return "is in a folder that does not exist"
    return None if os.access(folder, os.W_OK | os.X_OK) else "is in a folder where you may not write"


def _standard_stream(status: os.stat_result) -> int | None:
    """The number of the standard output or error with this ``os.stat``; ``None`` if it is neither."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(number)):
                return number
    return None


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises ``ValueError`` for a link, and for a pipe or a device, which would block."""
    if problem := not_regular(os.lstat(path)):
        raise ValueError(problem)
    return open(path, "rb")


def not_regular(status: os.stat_result) -> str | None:
    """Why something with this ``os.lstat`` cannot be a file of a run; ``None`` for a regular file."""
    if stat.S_ISLNK(status.st_mode):
        return "is a link, and a run holds only its own files"
    return None if stat.S_ISREG(status.st_mode) else "is not a regular file"


def refuse_links(path: Path) -> None:
    """Raise ``CheckpointError`` if ``path`` exists and is not a regular file, before it is written or truncated."""
    try:
        problem = not_regular(os.lstat(path))
    except OSError:
        return  # it does not exist; opening it reports any other problem
    if problem:
        raise CheckpointError(f"{path} {problem}. Remove it, then {RESUME}.")


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """The user's cache folder for jaxgen, which may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("jaxgen")


def sync_folder(path: Path) -> None:
    """Sync the entries of a folder (new names, renames) to disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: BaseException, advice: str = RESUME, needed: int | None = None) -> CheckpointError:
    """The error for a file that could not be written.

    Args:
        path: the file or folder.
        error: what the system said.
        advice: what to do once the cause is removed; by default that for a run in training.
        needed: the bytes to be written, which the message compares with those free on a full disk.
    """
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM if isinstance(error, MemoryError) else None
    remedy = REMEDIES.get(number or 0, "Make room on that disk or make the folder writable")
    kept = "; what was saved before is untouched" if advice == RESUME and number != errno.ENOENT else ""
    return CheckpointError(f"Could not write {path}: {io_reason(path, error, needed)}. {remedy}, then {advice}{kept}.")


@contextmanager
def write_errors(path: Path, advice: str = RESUME, needed: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block into the error that ``unwritable`` makes."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error, advice, needed) from error


def io_reason(path: Path, error: BaseException, needed: int | None = None) -> str:
    """Why ``path`` could not be written, in words; on a full disk with the bytes ``needed`` and those free."""
    if isinstance(error, MemoryError):
        return "out of memory"
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM and needed is not None:
        folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
        with suppress(OSError):
            reason += f" ({_size(needed)} needed, {_size(shutil.disk_usage(folder).free)} free)"
    return reason


def run_dir_missing() -> FileNotFoundError:
    """The error for a run's folder that disappeared, to be passed to ``unwritable``."""
    return FileNotFoundError(errno.ENOENT, "the folder was removed or moved while the run went on")


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:,.1f} kB"


def json_sha256(value: object) -> str:
    """The digest of a JSON value, as hexadecimal digits. It does not depend on whitespace or the order of keys."""
    canonical = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def dump_json(value: object) -> bytes:
    """``value`` as indented JSON in ASCII. Raises ``ValueError`` for a number that is not finite."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("ascii")


def plain_json(value: Any) -> Any:
    """``value``, which may have arrays and their scalars, in the types of JSON; what is not finite becomes ``None``."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value]
    if hasattr(value, "tolist"):  # of NumPy and JAX
        return plain_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path: Path, advice: str) -> Any:
    """Read a JSON file that jaxgen wrote.

    Raises ``CheckpointError``, which ends with the sentence ``advice``, for what ``read_bounded`` or ``parse_json``
    refuse.
    """
    problem = "{}"
    try:
        data = read_bounded(path)
        problem = "is not acceptable JSON: {}"
        return parse_json(data)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        problem = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise CheckpointError(f"{path} {problem}. {advice}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} {problem.format(error)}. {advice}") from error


def read_bounded(path: Path) -> bytes:
    """The bytes of a regular file of at most 64 MB. Raises ``ValueError`` for anything else."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"is larger than {MAX_JSON_BYTES // 2**20} MB, the most that is read")
        return file.read(size)  # `read` allocates what it is asked for


def parse_json(data: bytes) -> Any:
    """Parse JSON from an untrusted file.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, is nested deeper than 64 levels, repeats a key, or has a number that
            is not finite or has more than 20 digits. Too many lists, objects or values are refused before any is
            allocated.
    """
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS:
        raise ValueError(f"it has more than {MAX_JSON_CONTAINERS:,} lists and objects, the most that are read")
    if data.count(b",") > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values, the most that are read")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_float=_finite,
            parse_int=_bounded,
            parse_constant=_finite,
        )
        too_deep = _depth(value) > MAX_JSON_DEPTH
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _bounded(text: str) -> int:
    if len(text.removeprefix("-")) > MAX_JSON_DIGITS:
        raise ValueError(f"the integer {text[:40]} has more than {MAX_JSON_DIGITS} digits")
    return int(text)


def _depth(value: object) -> int:
    """How deep lists and objects are nested in a JSON value."""
    if not isinstance(value, (dict, list)):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(child) for child in children if isinstance(child, (dict, list))), default=0)


#: How the contents of our JSON files are validated: exact types, no unknown fields, finite numbers.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
T = TypeVar("T")


class StrictModel(BaseModel):
    """Base of the schemas of our JSON files."""

    model_config = STRICT


def load_strict(kind: Callable[..., T], value: object, what: str) -> T:
    """Make a ``StrictModel``, or a pydantic dataclass with ``STRICT``, from a JSON object.

    Raises ``CheckpointError``, which names the value as ``what``, if it is not an object, or if a field is
    missing, unknown or wrong.
    """
    if not isinstance(value, dict):
        raise malformed(what, f"it is a {type(value).__name__}, not an object")
    try:
        return kind(**value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise malformed(what, f"{place}: {first['msg']}" if place else first["msg"]) from error


def malformed(what: str, problem: str) -> CheckpointError:
    """The error for a description in the run folder that cannot be used."""
    return CheckpointError(f"The {what} of this run is malformed: {problem}. Copy the run folder again, or train anew.")
