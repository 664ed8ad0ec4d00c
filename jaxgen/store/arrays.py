"""A few arrays and what they belong to in one file (NumPy's .npz), with a digest over all of it."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.store.files import dump_json, parse_json, replace_file

ABOUT, DIGEST = "about", "sha256"
MAX_BYTES = 2**30


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write ``arrays`` and the JSON values ``about``. Raises ``CheckpointError`` when that fails."""
    entries = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    entries[ABOUT] = np.frombuffer(dump_json(dict(about)), np.uint8)
    entries[DIGEST] = np.frombuffer(_digest(entries), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **entries)
    try:
        replace_file(path, buffer.getvalue())
    except (CheckpointError, ValueError) as error:  # a name with a NUL character, or that of a folder
        reason = getattr(error.__cause__, "strerror", None) or error
        raise CheckpointError(
            f"{path} cannot be written: {reason}. Give the name of a file that you may write."
        ) from None


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What ``save_arrays`` wrote. Raises ``CheckpointError`` for a file that is missing, altered or none of ours."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would block
            raise CheckpointError(f"{path} is not a regular file. Give one that jaxgen wrote.")
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_BYTES // 2**20} MB, the most that is read.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {reason}.") from None
    entries, about = _parsed(data)
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} is damaged, or no file of jaxgen's. Make it anew.")
    return entries, about


def _parsed(data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a file and what they belong to, which is ``None`` unless the file is whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            _check_sizes(file, len(data))
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            entries = {name: loaded[name] for name in loaded.files}
        digest, about = entries.pop(DIGEST), None
        if digest.tobytes() == _digest(entries):
            about = parse_json(entries.pop(ABOUT).tobytes())
    except Exception:  # what is damaged makes zipfile and NumPy raise nearly everything: RuntimeError, TokenError, …
        return {}, None
    return entries, about


def _check_sizes(file: zipfile.ZipFile, size: int) -> None:
    """Raise ``ValueError`` unless every array is as large as its entry, and all entries together as the file."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
        raise ValueError("it is compressed")  # and could fill the memory
    if sum(entry.file_size for entry in file.infolist()) > size:
        raise ValueError("its entries overlap")
    for entry in file.infolist():
        with file.open(entry) as header:
            version = np.lib.format.read_magic(header)
            if version != (1, 0):
                raise ValueError("its header is larger than that of any array of ours")
            shape, _, dtype = np.lib.format.read_array_header_1_0(header)
            if dtype.hasobject or not dtype.itemsize:
                raise ValueError("its type is that of no array of ours")
            if header.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
                raise ValueError("its header is not that of its content")


def _digest(entries: Mapping[str, np.ndarray]) -> bytes:
    total = hashlib.sha256()
    for name in sorted(entries):
        array = entries[name]
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.digest()
