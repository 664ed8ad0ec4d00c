"""However the bytes of a checkpoint are altered, restoring gives what was saved or a clear error."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_states import forge_file, forge_manifest

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import MANIFEST, named_leaves

STATE = {
    "params": {
        "kernel": np.random.default_rng(0).normal(size=(8, 4)).astype("float32"),
        "bias": np.zeros(4, "float32"),
    },
    "step": np.int32(7),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    CheckpointStore(folder).save(1, STATE, {"position": 1}, metric=1.0)
    return folder


def answered(ask: Callable[[], Any]) -> Any:
    """What was asked for; ``None`` where a sentence said why not."""
    try:
        return ask()
    except CheckpointError as error:
        told = str(error)
    assert told.endswith(".")
    return None


def never_wrong(folder: Path) -> bool:
    """Whether it was restored; then every bit is right."""
    store = CheckpointStore(folder)
    for ask in (store.best, store.digest, store.restore_params):
        answered(ask)
    restored = answered(store.restore)
    if restored is None:
        return False
    state, _ = restored
    leaves = dict(named_leaves(state))
    assert leaves.keys() == dict(named_leaves(STATE)).keys()
    for name, array in named_leaves(STATE):
        assert np.asarray(leaves[name]).tobytes() == np.asarray(array).tobytes(), name
    return True


def mutate(folder: Path, draw: np.random.Generator) -> None:
    """Alter one file: flip bits; overwrite, insert, remove or repeat a piece; or swap it with another file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = (paths[int(draw.integers(len(paths)))] for _ in range(2))
    data = bytearray(path.read_bytes())
    here, there = sorted(int(draw.integers(len(data) + 1)) for _ in range(2))
    there = min(there, here + 40)
    noise = draw.integers(0, 256, int(draw.integers(1, 20)), dtype=np.uint8).tobytes()
    match int(draw.integers(6)):
        case 0:
            for place in draw.integers(0, max(1, len(data)), int(draw.integers(1, 4))):
                data[place : place + 1] = bytes([(data[place] if data else 0) ^ (1 << int(draw.integers(8)))])
        case 1:
            data[here : here + len(noise)] = noise
        case 2:
            data[here:here] = noise
        case 3:
            del data[here:there]
        case 4:
            data[here:here] = data[here:there]
        case _:
            data[:] = other.read_bytes()
    path.write_bytes(data)


def mutated(saved: Path, folder: Path, times: int) -> None:
    for number in range(times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        mutate(folder, np.random.default_rng(number))
        never_wrong(folder)


def test_mutated_bytes_never_give_other_weights(saved, tmp_path):
    mutated(saved, tmp_path / "copy", 150)


@pytest.mark.slow
def test_two_thousand_mutations_never_give_other_weights(saved, tmp_path):
    mutated(saved, tmp_path / "copy", 2000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def forged(saved: Path, folder: Path, data: st.DataObject) -> None:
    """Replace, remove or add one value of the manifest, under a checksum that is right again."""
    content = json.loads((saved / "00000001" / MANIFEST).read_bytes())
    changed = copy.deepcopy(content)
    *parents, last = data.draw(st.sampled_from([place for place in places(content) if place]))
    inner = changed
    for key in parents:
        inner = inner[key]
    new = data.draw(JSON)
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            inner[last] = new
        case "remove":
            del inner[last]
        case "add" if isinstance(inner, dict):
            inner[data.draw(st.text(max_size=9))] = new
        case "add":
            inner.append(new)
    if not (folder / "00000001").exists():
        shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / "00000001" / MANIFEST).write_text(json.dumps({"sha256": "", **changed}))
    forge_manifest(folder / "00000001", lambda manifest: None)
    never_wrong(folder)


def forge_tensors(saved: Path, folder: Path, times: int) -> None:
    """Mutate a safetensors file, most often its header, under digests that are right again."""
    original = {path.name: path.read_bytes() for path in (saved / "00000001").iterdir()}
    for number in range(times):
        draw = np.random.default_rng(number)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        name = ("model.safetensors", "training_state.safetensors")[number % 2]
        data = bytearray(original[name])
        for _ in range(int(draw.integers(1, 4))):
            place = int(draw.integers(len(data) if draw.integers(4) == 0 else min(len(data), 200)))
            data[place : place + int(draw.integers(0, 3))] = draw.integers(0, 256, 1, dtype=np.uint8).tobytes()
        forge_file(folder / "00000001", name, bytes(data))
        never_wrong(folder)


def test_forged_tensor_files_never_give_other_weights(saved, tmp_path):
    forge_tensors(saved, tmp_path / "copy", 150)


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=20, derandomize=True, **QUIET)
@given(data=st.data())
def test_forged_manifests_never_give_other_weights(saved, tmp_path, data):
    forged(saved, tmp_path, data)


@pytest.mark.slow
@settings(max_examples=300, **QUIET)
@given(data=st.data())
def test_hundreds_of_forged_manifests_never_give_other_weights(saved, tmp_path, data):
    forged(saved, tmp_path, data)


def test_the_unaltered_checkpoint_is_restored(saved):
    assert os.listdir(saved) == ["00000001"]
    assert never_wrong(saved)
