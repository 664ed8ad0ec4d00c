"""States to save as checkpoints, and ways to alter saved ones."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.fsutil import json_sha256
from jaxgen.runs.manifest import MANIFEST


class State(NamedTuple):
    params: dict
    optimizer: tuple
    step: jax.Array


def make_state(seed=0, hidden=4):
    """Random numbers in the shape of a training state; nothing is compiled."""
    rng = np.random.default_rng(seed)
    params = {"cell": {"kernel": np.zeros((hidden, 3), "float32"), "bias": np.zeros(3, jnp.bfloat16)}}
    shapes = jax.eval_shape(lambda: State(params, optax.adamw(1e-3).init(params), jnp.int32(0)))
    return jax.tree.map(lambda a: jnp.asarray(10 * rng.normal(size=a.shape), a.dtype), shapes)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_bitwise_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def flip_bit(path: Path, position: int):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def largest_file(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def forge_manifest(folder: Path, change) -> None:
    """Change a manifest and give it a checksum that is right again."""
    content = json.loads((folder / MANIFEST).read_bytes())
    del content["sha256"]
    change(content)
    (folder / MANIFEST).write_text(json.dumps({"sha256": json_sha256(content), **content}))


def forge_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest say so."""
    (folder / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
