"""What one checkpoint is made of: named arrays, and a record that says what they must be, bit for bit.

A checkpoint folder holds ``arrays/`` (Orbax: a nested dictionary of arrays) and ``checkpoint.json``::

    {"sha256": of the record, "record": {"version", "step", "metric", "host",
        "leaves": {"params/cell/kernel": {"shape", "dtype", "sha256"}, ...},
        "files": {"arrays/manifest.ocdbt": {"size", "sha256"}, ...}}}

No Orbax layout checksums its data, so the record does: its own digest, then every file before Orbax opens any,
then every array after it was read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.store.files import dump_json, file_sha256, load_json

VERSION = 1
RECORD = "checkpoint.json"
ARRAYS = "arrays"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were saved; an older one may still be good."""


def damaged(folder: Path, step: int, problem: str) -> DamagedCheckpointError:
    """The error that says what is wrong with the checkpoint of ``step`` in ``folder``."""
    return DamagedCheckpointError(
        f"The checkpoint of step {step} is damaged: {problem}. Continue from the one before with `--resume auto`, "
        f"copy {folder} again from where it came, or delete it."
    )


# --- names: any pytree <-> {"params/cell/kernel": array}


def leaf_names(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of any pytree with their paths, ``/`` between the parts: independent of the tree's classes."""
    named = [("/".join(map(_part, path)) or "%", leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    if len(dict(named)) != len(named):
        raise ValueError("Two leaves of the state have the same path (keys such as 1 and '1'); rename one.")
    return named


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            part = str(getattr(entry, attribute))
            break
    else:
        part = str(entry)
    # Orbax joins the parts with dots and slashes, so a key that holds one must not look like two keys.
    return part.replace("%", "%25").replace("/", "%2F").replace(".", "%2E") or "%"


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``, which is how the arrays lie on the disk."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def flatten(tree: Any) -> dict[str, Any]:
    """The inverse of ``nest``, for trees of plain dictionaries."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flatten(value) if isinstance(value, Mapping) else None
        result.update({f"{key}/{name}": leaf for name, leaf in inner.items()} if inner is not None else {key: value})
    return result


def unescape(tree: Any) -> Any:
    """Nested dictionaries with the keys that the state had before it was saved."""
    if not isinstance(tree, dict):
        return tree
    return {
        "" if key == "%" else key.replace("%2E", ".").replace("%2F", "/").replace("%25", "%"): unescape(value)
        for key, value in tree.items()
    }


# --- arrays


def to_arrays(state: Any) -> dict[str, np.ndarray]:
    """The leaves of ``state`` by name, on the host. Raises ``ValueError`` naming a leaf that is no plain array."""
    named = leaf_names(state)
    for name, leaf in named:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            raise ValueError(f"{name} is a typed PRNG key; save jax.random.key_data of it.")
    leaves = jax.device_get([leaf for _, leaf in named])
    arrays = {name: np.asarray(leaf) for (name, _), leaf in zip(named, leaves)}
    for name, array in arrays.items():
        if array.dtype.hasobject or (array.dtype.kind in "SUMmV" and array.dtype.name not in _EXTENDED):
            raise ValueError(f"{name} has the dtype {array.dtype}; a checkpoint holds numbers and booleans.")
    return arrays


#: Dtypes of JAX that NumPy knows only through ml_dtypes.
_EXTENDED = {name for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") if hasattr(jax.numpy, name)}


def describe(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and sha256 of the bytes (C order) of one leaf."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": hashlib.sha256(flat.data).hexdigest(),
    }


def to_device(array: np.ndarray) -> Any:
    """On the default device of this process; a 64-bit array stays NumPy's where JAX would cut it to 32 bits."""
    return jax.device_put(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


# --- the record


def write_record(folder: Path, step: int, metric: float | None, host: Any, leaves: dict[str, Any]) -> None:
    """Write ``checkpoint.json`` for the arrays that lie in ``folder``. Raises ``ValueError`` when host is no JSON."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    record = {
        "version": VERSION,
        "step": step,
        "metric": metric if metric is not None and math.isfinite(metric) else None,
        "host": host,
        "leaves": leaves,
        "files": {name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for name, path in files.items()},
    }
    record = json.loads(dump_json(record))  # as it will be read: tuples are lists, keys are text
    (folder / RECORD).write_bytes(dump_json({"sha256": _record_sha256(record), "record": record}))


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The record of the checkpoint in ``folder``. Raises ``DamagedCheckpointError`` unless it is as it was written."""
    try:
        content = load_json(folder / RECORD, "")
        record = content["record"]
        intact = content["sha256"] == _record_sha256(record) and record["step"] == step
        well_formed = all(isinstance(record[key], dict) for key in ("host", "leaves", "files"))
        version = record["version"]
    except CheckpointError as error:
        raise damaged(folder, step, str(error).strip().rstrip(".")) from error
    except (KeyError, TypeError) as error:
        raise damaged(folder, step, f"{RECORD} is not the record of a checkpoint") from error
    if not (intact and well_formed):
        raise damaged(folder, step, f"{RECORD} does not match its own checksum")
    if version != VERSION:
        raise CheckpointError(
            f"{folder} was written in format {version}; this jaxgen reads format {VERSION}. Install the jaxgen it "
            "was made with."
        )
    return record


def check_files(folder: Path, step: int, record: Mapping[str, Any]) -> None:
    """Raise ``DamagedCheckpointError`` naming the first file that is missing, cut or altered."""
    for name, expected in record["files"].items():
        path = folder / name
        try:
            if path.stat().st_size != expected["size"]:
                raise damaged(folder, step, f"{name} has {path.stat().st_size} bytes instead of {expected['size']}")
            if file_sha256(path) != expected["sha256"]:
                raise damaged(folder, step, f"the content of {name} was altered")
        except OSError as error:
            raise damaged(folder, step, f"{name} cannot be read ({error.strerror})") from error


def check_like(step: int, leaves: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` for the first leaf that is missing, unknown, or of another shape or dtype."""
    advice = "Use the options the run was trained with (its config.json), or start a new run with another --run."
    for name in [*like, *leaves]:
        if name not in leaves:
            raise CheckpointError(f"The checkpoint of step {step} has no {name}, which the model needs. {advice}")
        if name not in like:
            raise CheckpointError(f"The checkpoint of step {step} has {name}, which the model lacks. {advice}")
        saved, wanted = leaves[name], like[name]
        for what, there, here in (
            ("shape", tuple(saved["shape"]), tuple(np.shape(wanted))),
            ("dtype", saved["dtype"], np.dtype(wanted.dtype).name if hasattr(wanted, "dtype") else saved["dtype"]),
        ):
            if there != here:
                raise CheckpointError(
                    f"In the checkpoint of step {step}, {name} has the {what} {there}; the model has {here}. {advice}"
                )


def digest(record: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for the names, shapes, dtypes and bytes of all leaves."""
    return _record_sha256(record["leaves"])[:16]


def _record_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
