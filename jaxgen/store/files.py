"""Files that are whole or absent, and JSON that is read strictly."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any, NoReturn

from jaxgen.errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 64


#: What to do about a file of a run that could not be written.
RESUME = "repeat the command with `--resume auto`; what was saved before is untouched"


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
        raise unwritable(path, error, advice) from error


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


def unwritable(path: Path, error: BaseException, advice: str = RESUME) -> CheckpointError:
    """The error that says ``path`` could not be written, why, and what to do: by default as for a run in training."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(
        f"Could not write {path}: {reason}. Make room on that disk or make the folder writable, then {advice}."
    )


def dump_json(value: Any) -> bytes:
    """``value`` as indented JSON in ASCII. Raises ``ValueError`` for a number that is not finite."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("ascii")


def load_json(path: Path, advice: str) -> Any:
    """Read one JSON file of ours; ``advice`` is the sentence that says what to do when that fails.

    Refused with ``CheckpointError``: missing, not a regular file, larger than 64 MB, not UTF-8, not JSON, deeper
    than 64 levels, a key given twice, a number that is not finite.
    """

    def refuse(problem: str, cause: Exception | None = None) -> NoReturn:
        raise CheckpointError(f"{path} {problem}. {advice}") from cause

    try:
        if not path.exists():
            refuse("does not exist")
        if not path.is_file():  # a pipe or a device would block
            refuse("is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        refuse(f"cannot be read ({error.strerror})", error)
    if len(data) > MAX_JSON_BYTES:
        refuse(f"is larger than {MAX_JSON_BYTES // 2**20} MB, the most that is read")
    try:
        return parse_json(data)
    except ValueError as error:
        refuse(f"is not acceptable JSON: {error}", error)


def parse_json(data: bytes) -> Any:
    """``data`` as JSON under the rules of ``load_json``. Raises ``ValueError`` that says what is wrong."""
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
