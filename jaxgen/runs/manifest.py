"""The format of a checkpoint: its files, and a manifest with digests that verify them.

A checkpoint is a folder of up to three files:

- ``model.safetensors``: the parameters by dotted name, such as ``stack.cells_0.recurrent_kernel``;
- ``training_state.safetensors``: everything else (optimizer, carry, step, ...);
- ``manifest.json``, described by ``Manifest``.

Nothing is used before its digest is verified: the manifest's own, then that of every file, then that of every array.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import (
    StrictModel,
    dump_json,
    file_sha256,
    json_sha256,
    not_regular,
    open_regular,
    parse_json,
    read_bounded,
)
from jaxgen.runtime import total_memory

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
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
#: The header's own key, which no array may have.
_METADATA = "__metadata__"
#: The largest header that is written and read: enough for about 50,000 arrays.
MAX_HEADER_BYTES = 8 * 2**20
#: The most parts of the name of an array: all beginnings of the names are compared.
MAX_DEPTH = 64


def dtype_of(name: str, what: str = "An array") -> np.dtype:
    """The dtype of this name. Raises ``ValueError`` if a file cannot hold it; ``what`` names the array."""
    if name not in _BY_NAME:
        raise ValueError(f"{what} has the dtype {name!r}, which cannot be saved; these can: {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their dotted names, such as ``params.cell.kernel``.

    The names do not depend on the classes of the tree. A dot inside a key is written as ``%2E``. Raises ``ValueError``
    if two leaves have the same name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = [(".".join(map(_escaped, path)) or "%", leaf) for path, leaf in leaves]
    if len(dict(named)) != len(named):
        raise ValueError("Two leaves of the state have the same name (keys such as 1 and '1'); rename one.")
    return named


def _escaped(entry: Any) -> str:
    """One part of a leaf's name: the key, attribute or index of a path entry."""
    return jax.tree_util.keystr((entry,), simple=True).replace("%", "%25").replace(".", "%2E") or "%"


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``named_leaves``, as nested dictionaries."""
    return unflatten_dict({tuple(map(_unescaped, name.split("."))): leaf for name, leaf in leaves.items()})


def _unescaped(part: str) -> str:
    return "" if part == "%" else part.replace("%2E", ".").replace("%25", "%")


def host_arrays(tree: Tree) -> dict[str, np.ndarray]:
    """The leaves of ``tree`` by name, in host memory; ``ValueError`` for one of a dtype that a file cannot hold."""
    named = dict(named_leaves(tree))
    for name, leaf in named.items():
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            raise ValueError(f"{name} is a typed PRNG key; save jax.random.key_data of it.")
    arrays = {name: np.asarray(leaf) for name, leaf in zip(named, jax.device_get(list(named.values())))}
    for name, array in arrays.items():
        if np.iscomplexobj(array):  # many readers of safetensors know no complex numbers
            raise ValueError(f"{name} has complex numbers; save two arrays, their real and their imaginary parts.")
        dtype_of(array.dtype.name, name)
    return arrays


def to_device(array: np.ndarray) -> jax.Array | np.ndarray:
    """Put an array on the default device. A 64-bit array stays in NumPy where JAX would cut it to 32 bits."""
    return jax.device_put(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array


def array_sha256(array: np.ndarray) -> str:
    """The digest of an array's bytes in C order, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def tree_sha256(tree: Tree) -> str:
    """The digest of the leaves of a pytree with their names, as hexadecimal digits."""
    return leaves_sha256({name: Leaf.of(array) for name, array in host_arrays(tree).items()})


def encode_arrays(arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file with these arrays, and ``metadata`` in its header.

    Raises ``ValueError`` if an array has the one name that safetensors reserves, or there are too many arrays.
    """
    if _METADATA in arrays:
        raise ValueError(f"No array can be named {_METADATA}, which safetensors uses itself; rename it.")
    # safetensors writes the wrong elements of an array that is not contiguous; NumPy makes 0-d arrays 1-d.
    dense = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    data = safetensors.numpy.save(dense, metadata)
    if header_bytes(data) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(arrays):,} arrays are too many for one file; its header would be too large.")
    return data


def decode_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, which may come from anywhere. Allocates no more than the size of ``data``.

    Raises ``ValueError`` if it is not a safetensors file.
    """
    if header_bytes(data) > MAX_HEADER_BYTES:
        raise ValueError(f"its header is larger than {MAX_HEADER_BYTES:,} bytes")
    try:
        return {
            name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in safetensors.deserialize(data)
        }
    except (safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"it is not a safetensors file: {error}") from error


def metadata(data: bytes) -> dict[str, str]:
    """The metadata in the header of a file that ``decode_arrays`` has accepted."""
    return json.loads(data[8 : 8 + header_bytes(data)]).get(_METADATA, {})


def header_bytes(data: bytes) -> int:
    """The length of the header of a safetensors file that begins with ``data``."""
    return int.from_bytes(data[:8], "little")


VERSION = 3
MANIFEST = "manifest.json"
MODEL, TRAINING_STATE = "model.safetensors", "training_state.safetensors"
#: The subtree of the state that goes to ``model.safetensors``, as a prefix of the names of its leaves.
PARAMS = "params."
#: The file that describes a checkpoint of jaxgen 0.1.
_MANIFEST_0_1 = "checkpoint.json"


class Leaf(StrictModel):
    """One array of the state."""

    shape: list[NonNegativeInt] = Field(max_length=32)
    dtype: str
    sha256: str

    @model_validator(mode="after")
    def _check_size(self) -> Leaf:
        # NumPy refuses larger shapes even where an axis is empty.
        if math.prod(size or 1 for size in self.shape) * dtype_of(self.dtype).itemsize >= 2**62:
            raise ValueError("no array has this shape")
        return self

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    @classmethod
    def of(cls, array: np.ndarray) -> Leaf:
        return cls(shape=list(array.shape), dtype=array.dtype.name, sha256=array_sha256(array))


class StoredFile(StrictModel):
    """One file of a checkpoint."""

    size: NonNegativeInt
    sha256: str


class Manifest(StrictModel):
    """The content of ``manifest.json`` without its own digest (``sha256``)."""

    version: int
    #: The digest of the run that the checkpoint belongs to (see ``jaxgen.runs.config.run_digest``).
    run_digest: str | None
    step: NonNegativeInt
    #: The validation metric: lower is better, ``None`` if there is none or it was not finite.
    metric: float | None
    #: Step -> metric of the other checkpoints in the folder, so that a damaged manifest does not hide which is best.
    metrics: dict[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")], float | None]
    #: State of the host, such as the progress of the run: any JSON object.
    host: dict[str, Any]
    #: Every array of the state by its full name, such as ``params.cell.kernel``.
    leaves: dict[str, Leaf]
    files: dict[str, StoredFile]

    @field_validator("leaves")
    @classmethod
    def _check_names(cls, leaves: dict[str, Leaf]) -> dict[str, Leaf]:
        if any(name.count(".") >= MAX_DEPTH for name in leaves):
            raise ValueError(f"the names of the arrays have more than {MAX_DEPTH} parts")
        paths = [tuple(name.split(".")) for name in leaves]
        inner = {path[:end] for path in paths for end in range(1, len(path))}
        if not all(all(path) for path in paths) or not inner.isdisjoint(paths):
            raise ValueError("the names of the arrays are not those of a tree")
        return leaves

    @model_validator(mode="after")
    def _check_files(self) -> Manifest:
        if self.files.keys() != {place(name)[0] for name in self.leaves}:
            raise ValueError("the files are not those that its arrays lie in")
        return self

    def leaves_of(self, file: str) -> dict[str, Leaf]:
        """The arrays that lie in ``file``, by full name."""
        return {name: leaf for name, leaf in self.leaves.items() if place(name)[0] == file}

    def digest(self) -> str:
        """The digest of the run and of the names, shapes, dtypes and bytes of all arrays, as 16 hexadecimal digits."""
        return json_sha256([self.run_digest, leaves_sha256(self.leaves)])[:16]


def leaves_sha256(leaves: Mapping[str, Leaf]) -> str:
    """The digest of arrays by name, as hexadecimal digits."""
    return json_sha256({name: leaf.model_dump() for name, leaf in leaves.items()})


def place(name: str) -> tuple[str, str]:
    """The file in which the leaf ``name`` of a state lies, and its name there."""
    return (MODEL, name.removeprefix(PARAMS)) if name.startswith(PARAMS) else (TRAINING_STATE, name)


class DamagedCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not those that were saved. An older checkpoint may still be good."""

    def __init__(self, folder: Path, step: int, problem: str) -> None:
        self.problem = f"The checkpoint of step {step} is damaged: {problem}."
        super().__init__(
            f"{self.problem} Copy {folder} again from where it came, or run `python train.py --run "
            f"{shlex.quote(str(folder.parent.parent))} --resume auto`: it sets the damaged checkpoint aside and "
            "continues from the newest good one, even if the run was finished."
        )


class ForeignCheckpointError(CheckpointError):
    """A whole checkpoint of another run or another step. It is neither used nor moved."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(
            f"{folder} holds {problem}: files were exchanged, or the settings of the run. Nothing was changed. Put the "
            "run's own files back, or move that folder away to go on with the other checkpoints."
        )


class UnreadableCheckpointError(CheckpointError):
    """The system cannot read a checkpoint now. It may be good, so it does not count as damaged."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(
            f"{what} cannot be read now: {reason}. Nothing was changed. Make it readable, then repeat the command."
        )


@contextmanager
def _file_errors(folder: Path, step: int, name: str) -> Iterator[None]:
    """Raise errors of reading ``name`` as damage if it is gone or malformed, else as ``UnreadableCheckpointError``."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpointError(folder, step, f"{name} is missing") from error
    except ValueError as error:
        raise DamagedCheckpointError(folder, step, f"{name}: {error}") from error
    except (OSError, MemoryError) as error:
        reason = f"{name} ({getattr(error, 'strerror', None) or 'out of memory'})"
        raise UnreadableCheckpointError(f"The checkpoint of step {step} in {folder}", reason) from error


def encode_checkpoint(
    step: int,
    arrays: Mapping[str, np.ndarray],
    leaves: Mapping[str, Leaf],
    metric: float | None,
    metrics: Mapping[int, float | None],
    host: Mapping[str, Any],
    run_digest: str | None,
) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint, name and content, one at a time to save memory; the manifest is the last.

    ``arrays`` and ``leaves`` are the leaves of the state by name; for the others see ``Manifest``. Raises
    ``ValueError`` if ``host`` is not JSON or an array has a name that cannot be saved.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        file, inner = place(name)
        groups.setdefault(file, {})[inner] = array
    files: dict[str, dict[str, object]] = {}
    for file, group in groups.items():
        data = encode_arrays(group)
        files[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        yield file, data
        del data
    content = {
        "version": VERSION,
        "run_digest": run_digest,
        "step": step,
        "metric": metric if metric is not None and math.isfinite(metric) else None,
        "metrics": {str(other): value for other, value in metrics.items()},
        "host": host,
        "leaves": {name: leaf.model_dump() for name, leaf in leaves.items()},
        "files": files,
    }
    content = parse_json(dump_json(content))  # as it will be read: tuples become lists, keys text
    Manifest.model_validate(content)
    yield MANIFEST, dump_json({"sha256": json_sha256(content), **content})


def read_manifest(folder: Path, step: int, run_digest: str | None = None) -> Manifest:
    """Read and verify the manifest of the checkpoint of ``step`` in ``folder``, of any run or that with ``run_digest``.

    Raises ``DamagedCheckpointError``, ``UnreadableCheckpointError``, ``ForeignCheckpointError``, or
    ``CheckpointError`` if another version of jaxgen wrote it.
    """
    with _file_errors(folder, step, folder.name):
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise DamagedCheckpointError(folder, step, f"{folder.name} is a link or a file where a folder should be")
        if os.path.lexists(folder / _MANIFEST_0_1) and not os.path.lexists(folder / MANIFEST):
            raise CheckpointError(
                f"{folder} was written by jaxgen 0.1, in a format that this version does not read. Use the run with "
                "jaxgen 0.1, or train a new one with `python train.py --run DIR`."
            )
    with _file_errors(folder, step, MANIFEST):
        content = parse_json(read_bounded(folder / MANIFEST))
        if not isinstance(content, dict) or type(content.get("version")) is not int:
            raise ValueError("it is not the manifest of a checkpoint")
        if content.pop("sha256", None) != json_sha256(content):
            raise ValueError("it does not match its own checksum")
        if content["version"] != VERSION:
            raise CheckpointError(
                f"{folder} was written in format {content['version']}; this version of jaxgen reads format {VERSION}. "
                "Use the version of jaxgen that wrote it."
            )
        try:
            manifest = Manifest.model_validate(content)
        except ValidationError as error:
            raise ValueError("it is not the manifest of a checkpoint") from error
    if manifest.step != step:
        raise ForeignCheckpointError(folder, f"the checkpoint of step {manifest.step}")
    if run_digest is not None and manifest.run_digest != run_digest:
        raise ForeignCheckpointError(folder, "a checkpoint of another run")
    return manifest


def check_memory(step: int, leaves: Mapping[str, Leaf]) -> None:
    """Raise ``CheckpointError`` if the arrays are larger than this machine's memory, before any is allocated."""
    needed, available = sum(leaf.nbytes for leaf in leaves.values()), total_memory()
    if available is not None and needed > available:
        raise CheckpointError(
            f"The arrays of the checkpoint of step {step} take {needed / 2**30:,.0f} GiB according to its {MANIFEST}, "
            f"and this machine has {available / 2**30:,.0f} GiB. Use a machine with more memory, or copy the run again."
        )


def check_like(step: int, leaves: Mapping[str, Leaf], like: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` for the first leaf that is missing, unknown, or of another shape or dtype."""
    saved = {name: f"{leaf.dtype} of shape {tuple(leaf.shape)}" for name, leaf in leaves.items()}
    model = {name: f"{np.dtype(leaf.dtype).name} of shape {np.shape(leaf)}" for name, leaf in like.items()}
    for name in [*model, *saved]:
        there, here = saved.get(name, "absent"), model.get(name, "absent")
        if there != here:
            raise CheckpointError(
                f"{name} is {there} in the checkpoint of step {step}, and {here} in the model. Use the options the run "
                "was trained with (its config.json), or start a new run in another folder."
            )


def read_files(folder: Path, step: int, manifest: Manifest, wanted: Collection[str] = ()) -> dict[str, bytes]:
    """Verify every file of a checkpoint and return the verified bytes of those ``wanted``.

    Reads only the files of the manifest, whose names are fixed, and follows no links. Other files in ``folder``, such
    as those that file managers and network file systems put there, are ignored. Raises ``DamagedCheckpointError`` for
    the first file that is missing, cut or altered.
    """
    for name in manifest.files:
        with _file_errors(folder, step, name):
            status = os.lstat(folder / name)
        if problem := not_regular(status):
            raise DamagedCheckpointError(folder, step, f"{name} {problem}")
        size, expected = status.st_size, manifest.files[name].size
        if size != expected:
            raise DamagedCheckpointError(folder, step, f"{name} has {size} bytes instead of {expected}")
        data_bytes = sum(leaf.nbytes for leaf in manifest.leaves_of(name).values())
        if not data_bytes < size <= data_bytes + MAX_HEADER_BYTES + 8:
            raise DamagedCheckpointError(folder, step, f"{name} has {size} bytes, but its arrays take {data_bytes}")
    contents: dict[str, bytes] = {}
    for name, expected_file in manifest.files.items():
        with _file_errors(folder, step, name):
            if name in wanted:
                contents[name], digest = _read_and_hash(folder / name, expected_file.size)
            else:
                digest = file_sha256(folder / name)
        if digest != expected_file.sha256:
            raise DamagedCheckpointError(folder, step, f"the content of {name} was altered")
    return contents


def _read_and_hash(path: Path, size: int) -> tuple[bytes, str]:
    with open_regular(path) as file:
        data = file.read(size + 1)
    return data, hashlib.sha256(data).hexdigest()


def read_arrays(folder: Path, step: int, manifest: Manifest, leaves: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Verify all files of a checkpoint; return the arrays that ``leaves`` names, verified too.

    Raises ``CheckpointError``, also if the arrays are larger than this machine's memory.
    """
    check_memory(step, leaves)
    contents = read_files(folder, step, manifest, {place(name)[0] for name in leaves})
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(contents):
        with _file_errors(folder, step, file):
            stored = decode_arrays(contents.pop(file))
        expected = {place(name)[1]: name for name in manifest.leaves_of(file)}
        if stored.keys() != expected.keys():
            name = min(stored.keys() ^ expected.keys())
            raise DamagedCheckpointError(
                folder, step, f"the manifest and {file} do not agree on the array {ascii(name)[1:-1]}"
            )
        arrays |= {name: stored[inner] for inner, name in expected.items() if name in leaves}
    for name, leaf in leaves.items():
        if Leaf.of(arrays[name]) != leaf:
            raise DamagedCheckpointError(folder, step, f"the array {name} does not match its checksum")
    return arrays
