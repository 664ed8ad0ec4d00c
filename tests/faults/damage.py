"""Damaged checkpoints: any file, the manifest too, cut, removed or with one bit flipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.runs import manifest as manifest_module
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import DamagedCheckpointError

from .fault import Fault
from .stores import METRICS, check, filled

Spoil = Callable[[Path, np.random.Generator], None]


def cut(path: Path, draw: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: int(draw.integers(0, path.stat().st_size))])


def remove(path: Path, draw: np.random.Generator) -> None:
    path.unlink()


def flip(path: Path, draw: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[int(draw.integers(0, len(content)))] ^= 1 << int(draw.integers(0, 8))
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def spoil_every_file(spoil: Spoil) -> Callable[[Path, np.random.Generator], str]:
    """Each file of the best and of the latest checkpoint in turn."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        whole = filled(folder / "whole").directory
        for step in (10, 30):
            for victim in files(whole / f"{step:08d}"):
                copy = folder / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(whole, copy)
                name = victim.relative_to(whole)
                spoil(copy / name, draw)
                one_spoilt(CheckpointStore(copy), step, str(name.relative_to(name.parts[0])))
        return "error naming step and file before parsing; resuming used the newest good one; the damaged one is kept"

    return inject


def one_spoilt(store: CheckpointStore, step: int, name: str) -> None:
    parsed = mock.patch.object(
        manifest_module, "decode_arrays", side_effect=AssertionError("a damaged file was parsed")
    )
    with parsed, pytest.raises(DamagedCheckpointError) as caught:
        store.restore(step)
    assert f"step {step} " in str(caught.value)
    assert name in str(caught.value)
    try:
        best = store.best()
    except CheckpointError as error:
        best = 10 if f"step {step} " in str(error) else None
    assert best == 10, "another checkpoint was called the best"
    good, _, _, problems = store.restore_newest_good()
    assert good == (20 if step == 30 else 30)
    check(store, good)
    assert len(problems) == 1, problems
    store.truncate(good)
    assert [entry.name for entry in store.directory.glob("*.damaged")] == [f"{step:08d}.damaged"]
    assert store.best() == (30 if step == 10 else 10)


def spoil_all(folder: Path, draw: np.random.Generator) -> str:
    """One file of every checkpoint."""
    store = filled(folder)
    for step in store.steps():
        victims = files(store.directory / f"{step:08d}")
        flip(victims[int(draw.integers(0, len(victims)))], draw)
    before = {path: path.read_bytes() for path in files(store.directory)}
    with pytest.raises(CheckpointError) as caught:
        store.restore_newest_good()
    assert caught.value.exit_code == 4
    assert all(f"step {step} " in str(caught.value) for step in METRICS)
    assert before == {path: path.read_bytes() for path in files(store.directory)}
    return "exit 4 naming every step; nothing was changed"


REQUIRED = "detected before it is parsed; error names step and file; resuming uses the newest good one, with a warning"

FAULTS = (
    Fault("a file of a checkpoint cut short", REQUIRED, spoil_every_file(cut)),
    Fault("a file of a checkpoint deleted", REQUIRED, spoil_every_file(remove), times=2),
    Fault("one bit of a checkpoint flipped", REQUIRED, spoil_every_file(flip), times=20),
    Fault("every checkpoint damaged", "exit 4, never a silent fresh start", spoil_all),
)
