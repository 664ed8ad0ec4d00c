"""States to save as checkpoints, and what is done to those that were."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.runs import manifest as fmt


class State(NamedTuple):
    params: dict
    optimizer: tuple
    step: jax.Array


def make_state(seed=0, hidden=4):
    kernel = np.random.default_rng(seed).normal(size=(hidden, 3)).astype("float32")
    params = {"cell": {"kernel": jnp.asarray(kernel), "bias": jnp.full((3,), 0.1, jnp.bfloat16)}}
    optimizer = optax.adamw(1e-3)
    gradients = jax.tree.map(lambda p: p * 0.3, params)
    return State(params, optimizer.update(gradients, optimizer.init(params), params)[1], jnp.int32(7))


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
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size * (p.name != fmt.RECORD))


def rewrite_record(folder: Path, change) -> None:
    """Forge a record whose own checksum is right."""
    record = json.loads((folder / fmt.RECORD).read_bytes())["record"]
    change(record)
    (folder / fmt.RECORD).write_text(json.dumps({"sha256": fmt._record_sha256(record), "record": record}))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
