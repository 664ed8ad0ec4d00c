"""Files that are whole or absent, and JSON that is read strictly."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxgen.errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64
#: Lists and objects in one file, and values: each takes far more memory than the two bytes that it is written in.
MAX_JSON_CONTAINERS = 2**20
MAX_JSON_VALUES = 2**21
#: What a disk says that has no room, or lets this user have no more of it.
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


#: What to do first, where it is known, about a file that could not be written.
FIRST = dict.fromkeys(NO_ROOM, "Make room on that disk") | {
    errno.EROFS: "Make that disk writable",
    errno.ENOENT: "Bring its folder back",
    errno.EACCES: "Make the folder writable",
    errno.EPERM: "Make the folder writable",
    errno.EISDIR: "Remove the folder of that name",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Close other programs, or raise the limit of open files of the system",
    errno.ENOMEM: "Make memory free",
}
#: What to do about a file of a run that could not be written.
RESUME = "repeat the command with `--resume auto`"


def replace_file(path: Path, data: bytes, advice: str = "repeat the command") -> None:
    """Make ``path`` hold exactly ``data``: a reader or a crash sees the old file or the new one, never a part.

    Raises ``CheckpointError`` naming the path when it cannot be written; ``advice`` is what to do then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, advice, len(data)) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read. Raises ``ValueError`` for a link, and for a pipe or a device, which would block."""
    if problem := not_regular(os.lstat(path)):
        raise ValueError(problem)
    return open(path, "rb")


def not_regular(status: os.stat_result) -> str | None:
    """What is wrong with what has this ``os.lstat`` as a file of a run; ``None`` for a regular file."""
    if stat.S_ISLNK(status.st_mode):
        return "is a link, and a run holds its own files only"
    return None if stat.S_ISREG(status.st_mode) else "is not a regular file"


def refuse_links(path: Path) -> None:
    """Raise ``CheckpointError`` when what lies at ``path`` is no regular file: it is not written through or cut."""
    try:
        problem = not_regular(os.lstat(path))
    except OSError:
        return  # nothing there; what else it is, opening it will say
    if problem:
        raise CheckpointError(f"{path} {problem}. Remove it, then {RESUME}.")


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """The operating system's cache folder for jaxgen, which may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("jaxgen")


def sync_folder(path: Path) -> None:
    """Ask the system to put the folder's own entries (new names, renames) on the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: BaseException, advice: str = RESUME, needed: int | None = None) -> CheckpointError:
    """The error that says ``path`` could not be written, why, and what to do: by default as for a run in training.

    Where there is no room it tells how many bytes were ``needed``, if given, and how many are free.
    """
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM if isinstance(error, MemoryError) else None
    first = FIRST.get(number or 0, "Make room on that disk or make the folder writable")
    kept = "; what was saved before is untouched" if advice == RESUME and number != errno.ENOENT else ""
    said = f"Could not write {path}: {io_reason(path, error, needed)}."
    refusal = CheckpointError(f"{said} {first}, then {advice}{kept}.")
    refusal.said = said
    return refusal


def io_reason(path: Path, error: BaseException, needed: int | None = None) -> str:
    """Why ``path`` could not be written, in words; where there is no room, the bytes ``needed`` and those free."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, MemoryError):  # it says nothing, or what could not be had
        reason = "out of memory"
    if isinstance(error, OSError) and error.errno in NO_ROOM and needed is not None:
        reason += f" ({_size(needed)} needed{_free(path)})"
    return reason


def run_dir_missing() -> FileNotFoundError:
    """The error of a run's folder that was there, for ``unwritable``."""
    return FileNotFoundError(errno.ENOENT, "the folder was removed or moved while the run went on")


def _free(path: Path) -> str:
    there = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    try:
        return f", {_size(shutil.disk_usage(there).free)} free"
    except OSError:
        return ""


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:,.1f} kB"


def json_sha256(value: Any) -> str:
    """The digest of a JSON value, as hexadecimal digits: the same however it is spaced and its keys are ordered."""
    canonical = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def dump_json(value: Any) -> bytes:
    """``value`` as indented JSON in ASCII. Raises ``ValueError`` for a number that is not finite."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("ascii")


def load_json(path: Path, advice: str) -> Any:
    """Read one JSON file of ours; ``advice`` is the sentence that says what to do when that fails.

    Refused with ``CheckpointError``: missing, a link, not a regular file, larger than 64 MB, and what ``parse_json``
    refuses.
    """

    def refuse(problem: str, cause: Exception | None = None) -> NoReturn:
        raise CheckpointError(f"{path} {problem}. {advice}") from cause

    try:
        data = read_bounded(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        refuse("does not exist", error)
    except OSError as error:
        refuse(f"cannot be read ({error.strerror})", error)
    except ValueError as error:
        refuse(str(error), error)
    try:
        return parse_json(data)
    except ValueError as error:
        refuse(f"is not acceptable JSON: {error}", error)


def read_bounded(path: Path) -> bytes:
    """The bytes of a regular file of at most 64 MB. Raises ``ValueError`` that says what else it is."""
    with open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"is larger than {MAX_JSON_BYTES // 2**20} MB, the most that is read")
    return data


def parse_json(data: bytes) -> Any:
    """``data`` as strict JSON. Raises ``ValueError`` that says what is wrong.

    That is: not UTF-8, not JSON, deeper than 64 levels, a key given twice, a number that is not finite, and more lists
    or values than a run ever writes, before any is made.
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
            parse_constant=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from None
    _check_depth(value)
    return value


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _check_depth(value: Any) -> None:
    """Walk level by level: recursion is what a hostile file would exhaust."""
    level, depth = [value], 0
    while level:
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children.extend(item.values())
            elif isinstance(item, list):
                children.extend(item)
        level = [child for child in children if isinstance(child, (dict, list))]
        depth += 1
        if level and depth >= MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


#: How the contents of our JSON files are validated: exact types, no unknown fields, finite numbers.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
T = TypeVar("T")


class StrictModel(BaseModel):
    """Base of the schemas of our JSON files."""

    model_config = STRICT


def load_strict(kind: Callable[..., T], value: object, what: str) -> T:
    """Makes a ``StrictModel``, or a pydantic dataclass with ``STRICT``, of a JSON object.

    Args:
        kind: The class; its fields are those of the object.
        value: The JSON value.
        what: What the value describes, for the message.

    Raises:
        CheckpointError: The value is not an object, or a field is missing, unknown or wrong.
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
    """Returns the error for a description in the run folder that cannot be used."""
    return CheckpointError(f"The {what} of this run is malformed: {problem}. Copy the run folder again, or train anew.")
