"""Pytrees as safetensors files: leaves by dotted name, encoded as bytes and decoded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

#: Any pytree of arrays.
Tree: TypeAlias = Any

#: The names of safetensors for the dtypes that a file may hold.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
#: The header's own key, which no array may have.
_METADATA = "__metadata__"
#: The largest header that is written and read: enough for about 50,000 arrays.
MAX_HEADER_BYTES = 8 * 2**20


def dtype_of(name: str) -> np.dtype:
    """The dtype of this name. Raises ``ValueError`` for one that a file cannot hold."""
    if name not in _BY_NAME:
        raise ValueError(f"{name!r} is not a dtype that can be saved; these can: {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their dotted names, such as ``params.cell.kernel``.

    The names do not depend on the classes of the tree. A dot inside a key is written as ``%2E``.

    Raises:
        ValueError: if two leaves have the same name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = [(".".join(map(_escaped, path)) or "%", leaf) for path, leaf in leaves]
    if len(dict(named)) != len(named):
        raise ValueError("Two leaves of the state have the same name (keys such as 1 and '1'); rename one.")
    return named


def _escaped(entry: Any) -> str:
    """One part of a leaf's name: the key, attribute or index of a path entry."""
    key = next((str(getattr(entry, name)) for name in ("key", "name", "idx") if hasattr(entry, name)), str(entry))
    return key.replace("%", "%25").replace(".", "%2E") or "%"


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``named_leaves``, as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = (_unescaped(part) for part in name.split("."))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _unescaped(part: str) -> str:
    return "" if part == "%" else part.replace("%2E", ".").replace("%25", "%")


def host_arrays(tree: Tree) -> dict[str, np.ndarray]:
    """The leaves of ``tree`` by name, in host memory.

    Raises:
        ValueError: if a leaf is not an array of a dtype that a file can hold.
    """
    named = named_leaves(tree)
    for name, leaf in named:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            raise ValueError(f"{name} is a typed PRNG key; save jax.random.key_data of it.")
    leaves = jax.device_get([leaf for _, leaf in named])
    arrays = {name: np.asarray(leaf) for (name, _), leaf in zip(named, leaves)}
    for name, array in arrays.items():
        try:
            dtype_of(array.dtype.name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return arrays


def to_device(array: np.ndarray) -> jax.Array | np.ndarray:
    """Put an array on the default device. A 64-bit array stays in NumPy where JAX would cut it to 32 bits."""
    return jax.device_put(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


def array_sha256(array: np.ndarray) -> str:
    """The digest of an array's bytes in C order, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def encode(arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file with these arrays and these texts in its header.

    Raises:
        ValueError: if an array has the one name that safetensors reserves, or there are too many arrays.
    """
    if _METADATA in arrays:
        raise ValueError(f"No array can be named {_METADATA}, which safetensors uses itself; rename it.")
    # safetensors writes the wrong elements of an array that is not contiguous; NumPy makes 0-d arrays 1-d.
    dense = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    data = safetensors.numpy.save(dense, metadata)
    if _header_bytes(data) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(arrays):,} arrays are too many for one file; its header would be too large.")
    return data


def decode(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, which may come from anywhere. Allocates no more than the size of ``data``.

    Raises:
        ValueError: if ``data`` is not a safetensors file.
    """
    if _header_bytes(data) > MAX_HEADER_BYTES:
        raise ValueError(f"its header is larger than {MAX_HEADER_BYTES:,} bytes")
    try:
        return {
            name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in safetensors.deserialize(data)
        }
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"it is not a safetensors file: {error}") from error


def metadata(data: bytes) -> dict[str, str]:
    """The texts in the header of a file that ``decode`` has accepted."""
    return json.loads(data[8 : 8 + _header_bytes(data)]).get(_METADATA, {})


def _header_bytes(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")
