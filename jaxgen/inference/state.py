"""The state of a text as a value: what a model knows after some tokens, to keep, continue, branch and mix."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import dump_json, parse_json, replace_file
from jaxgen.types import Array, Carry

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


@dataclass(frozen=True, eq=False)
class DecoderState:
    """What a model knows after ``tokens``: its layers' state, of one row, and the logits [1, V] of the next token."""

    carry: Carry
    logits: Array
    tokens: np.ndarray

    def repeated(self, rows: int) -> tuple[Carry, Array]:
        """The carry and logits of so many rows that all stand here."""
        return jax.tree.map(lambda a: jnp.repeat(a, rows, axis=0), (self.carry, self.logits))


def interpolate(a: DecoderState, b: DecoderState, weight: float) -> DecoderState:
    """The state ``weight`` of the way from ``a`` (0) to ``b`` (1), each number on a straight line.

    The logits follow the same line. Where the output layer reads the last layer's state itself, as with LSTM, GRU and
    Elman, they are just those of the state in between. The tokens are those of the nearer end.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"A weight of {weight} lies outside two states: give a number from 0 (the first) to 1.")
    shapes = [jax.tree.map(jnp.shape, (state.carry, state.logits)) for state in (a, b)]
    if shapes[0] != shapes[1]:
        raise UsageError("These two states belong to models of other shapes: take both from one model.")
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(a.carry)):
        raise UsageError("The states of this model are no numbers with others in between: take a recurrent model.")
    carry, logits = jax.tree.map(lambda x, y: (1 - weight) * x + weight * y, (a.carry, a.logits), (b.carry, b.logits))
    return DecoderState(carry, logits, (a if weight < 0.5 else b).tokens)


def save_state(path: str | Path, state: DecoderState, about: dict[str, Any]) -> None:
    """Write ``state`` to a file, with what it belongs to (``about``: JSON values)."""
    leaves = jax.tree.leaves((state.carry, state.logits))
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    save_arrays(Path(path), arrays | {"tokens": np.asarray(state.tokens, np.int32)}, about)


def load_state(path: str | Path, like: tuple[Carry, Array]) -> tuple[DecoderState, dict[str, Any]]:
    """The state in a file and what it belongs to; ``like`` is a carry and logits of the right shapes.

    Raises ``CheckpointError`` for a file that is missing, damaged, or of another model.
    """
    arrays, about = load_arrays(Path(path))
    wanted, structure = jax.tree.flatten(like)
    names = [f"leaf{i}" for i in range(len(wanted))]
    fits = set(arrays) == {*names, "tokens"} and arrays["tokens"].ndim == 1 and arrays["tokens"].dtype == np.int32
    if not fits or any(
        (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype) for name, leaf in zip(names, wanted)
    ):
        raise CheckpointError(f"The state in {path} is not one of this model. Make it anew with --save-state.")
    carry, logits = jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in names])
    return DecoderState(carry, logits, arrays["tokens"]), about
