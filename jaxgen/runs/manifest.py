"""What one checkpoint is made of: named arrays, and a record that says what they must be, bit for bit.

A checkpoint folder holds ``arrays/`` (Orbax: a nested dictionary of arrays) and ``checkpoint.json``::

    {"sha256": of the record, "record": {"version", "step", "metric", "host",
        "metrics": {"10": 2.5, ...},        of the checkpoints beside it
        "leaves": {"params/cell/kernel": {"shape", "dtype", "sha256"}, ...},
        "files": {"arrays/manifest.ocdbt": {"size", "sha256"}, ...}}}

No Orbax layout checksums its data, so the record does: its own digest, then every file before Orbax opens any,
then every array after it was read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import dump_json, file_sha256, not_regular, parse_json, read_bounded

VERSION = 1
RECORD = "checkpoint.json"
ARRAYS = "arrays"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were saved; an older one may still be good."""


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint that the system does not let be read now: it may well be good, and nothing is concluded from it."""


def damaged(folder: Path, step: int, problem: str) -> DamagedCheckpointError:
    """The error that says what is wrong with the checkpoint of ``step`` in ``folder``."""
    said = f"The checkpoint of step {step} is damaged: {problem}."
    error = DamagedCheckpointError(
        f"{said} Copy {folder} again from where it came, or let `python train.py --run "
        f"{shlex.quote(str(folder.parent.parent))} --resume auto` set it aside: the run then goes on with those that "
        "are good, and can be used."
    )
    error.said = said
    return error


def unreadable(folder: Path, step: int, what: str) -> UnreadableCheckpointError:
    """The error that says that the system refuses ``what`` of the checkpoint of ``step``."""
    return UnreadableCheckpointError(
        f"The checkpoint of step {step} cannot be read now: {what}. Nothing was changed. Repeat the command once "
        f"{folder} can be read, or copy it again from where it came."
    )


@contextmanager
def _reading(folder: Path, step: int, name: str) -> Iterator[None]:
    """What the system says of a file that is gone is damage; what else it says may pass."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise damaged(folder, step, f"{name} is missing") from error
    except (OSError, MemoryError) as error:
        raise unreadable(folder, step, f"{name} ({getattr(error, 'strerror', None) or 'out of memory'})") from error


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


def write_record(
    folder: Path,
    step: int,
    metric: float | None,
    host: Any,
    leaves: dict[str, Any],
    metrics: Mapping[int, float | None] | None = None,
) -> None:
    """Write ``checkpoint.json`` for the arrays that lie in ``folder``. Raises ``ValueError`` when host is no JSON.

    ``metrics``: those of the checkpoints beside it, so that one damaged record does not forget which is best.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    record = {
        "version": VERSION,
        "step": step,
        "metric": metric if metric is not None and math.isfinite(metric) else None,
        "metrics": {str(beside): metric for beside, metric in (metrics or {}).items()},
        "host": host,
        "leaves": leaves,
        "files": {name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for name, path in files.items()},
    }
    record = json.loads(dump_json(record))  # as it will be read: tuples are lists, keys are text
    (folder / RECORD).write_bytes(dump_json({"sha256": _record_sha256(record), "record": record}))


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The record of the checkpoint in ``folder``, which holds what ``write_record`` writes and nothing else.

    Raises ``DamagedCheckpointError`` unless it is as it was written, ``UnreadableCheckpointError`` when the system
    refuses to read it.
    """
    with _reading(folder, step, folder.name):
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise damaged(folder, step, f"{folder.name} is a link or a file where a folder should be")
    try:
        with _reading(folder, step, RECORD):
            content = parse_json(read_bounded(folder / RECORD))
        record = content["record"]
        intact = content["sha256"] == _record_sha256(record) and record["step"] == step
        version = record["version"]
    except ValueError as error:
        raise damaged(folder, step, f"{RECORD}: {error}") from error
    except (KeyError, TypeError) as error:
        raise damaged(folder, step, f"{RECORD} is not the record of a checkpoint") from error
    if not intact:
        raise damaged(folder, step, f"{RECORD} does not match its own checksum")
    if version != VERSION:
        raise CheckpointError(
            f"{folder} was written in format {version}; this jaxgen reads format {VERSION}. Install the jaxgen it "
            "was made with."
        )
    try:
        well_formed = _well_formed(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        well_formed = False
    if not well_formed:
        raise damaged(folder, step, f"{RECORD} is not the record of a checkpoint")
    return record


def metrics_beside(record: Mapping[str, Any]) -> dict[int, float | None]:
    """The metrics that the checkpoints beside this one had when it was saved."""
    return {int(step): metric for step, metric in record.get("metrics", {}).items()}


def _well_formed(record: dict[str, Any]) -> bool:
    """Whether a record, whoever wrote it, says nothing that reading it would stumble over."""
    leaves, parts = record["leaves"], [tuple(name.split("/")) for name in record["leaves"]]
    inner = {part[:end] for part in parts for end in range(1, len(part))}
    files = record["files"].values()
    metrics = [record["metric"], *record.get("metrics", {}).values()]
    return (
        isinstance(record["host"], dict)
        and inner.isdisjoint(parts)  # else a leaf would lie in a leaf
        and all(all(part) for part in parts)
        and all(leaf.keys() == {"shape", "dtype", "sha256"} and _nbytes(leaf) < 2**62 for leaf in leaves.values())
        and all(file.keys() == {"size", "sha256"} and type(file["size"]) is int for file in files)
        and all(metric is None or type(metric) is float for metric in metrics)
        and all(re.fullmatch("[0-9]{1,18}", step) for step in record.get("metrics", {}))
    )


def _nbytes(leaf: Mapping[str, Any]) -> int:
    """The bytes of a leaf, an empty axis counted as one. Raises ``ValueError`` or ``TypeError`` for no such leaf."""
    dtype = np.dtype(jax.numpy.dtype(leaf["dtype"]))
    if dtype.kind not in "biufc" and dtype.name not in _EXTENDED:
        raise ValueError(f"no dtype of an array: {dtype}")
    if len(leaf["shape"]) > 32 or not all(type(size) is int and size >= 0 for size in leaf["shape"]):
        raise ValueError("no shape of an array")
    return math.prod(size or 1 for size in leaf["shape"]) * dtype.itemsize


def check_memory(step: int, leaves: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` when the arrays are larger than this machine's memory, before any is allocated."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    needed = sum(_nbytes(leaf) for leaf in leaves.values() if 0 not in leaf["shape"])
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise CheckpointError(
            f"The arrays of the checkpoint of step {step} take {needed / 2**30:,.0f} GiB by its {RECORD}, and this "
            f"machine has {there / 2**30:,.0f} GiB. Use a machine that can hold them, or copy the run again."
        )


def check_files(folder: Path, step: int, record: Mapping[str, Any]) -> None:
    """Raise ``DamagedCheckpointError`` naming the first file that is missing, cut, altered, or not in the record.

    Only what lies inside ``folder`` is looked at, whatever the record says, and no link is followed.
    """
    with _reading(folder, step, folder.name):
        found = dict(_walk(folder))
    for name in [*record["files"], *found]:
        told = ascii(name)[1:-1]  # whoever named it
        if name not in found:
            raise damaged(folder, step, f"{told} is missing")
        if problem := not_regular(found[name]):
            raise damaged(folder, step, f"{told} {problem}")
        if name not in record["files"]:
            raise damaged(folder, step, f"{told} is not one of the files that were saved")
        size, expected = found[name].st_size, record["files"][name]["size"]
        if size != expected:
            raise damaged(folder, step, f"{told} has {size} bytes instead of {expected}")
    for name, expected in record["files"].items():
        with _reading(folder, step, name):
            if file_sha256(folder / name) != expected["sha256"]:
                raise damaged(folder, step, f"the content of {name} was altered")


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All that lies in ``folder`` and is no folder, except its record: the name from there, and what it is."""
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif name != RECORD:
                    yield name, entry.stat(follow_symlinks=False)


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
