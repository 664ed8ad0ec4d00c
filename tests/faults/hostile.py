"""Run folders made with bad intent: nothing outside the folder is changed, executed, waited for or allocated."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog, append_sample

from .fault import Fault
from .stores import check, filled, forge, state, tree

Attack = Callable[[CheckpointStore, Path, np.random.Generator], None]


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}/sprung'",)


def chosen(store: CheckpointStore, draw: np.random.Generator) -> Path:
    """A file of the latest checkpoint other than its manifest."""
    files = sorted((store.directory / "00000030").glob("*.safetensors"))
    return files[int(draw.integers(len(files)))]


def link_to_a_file(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    victim = chosen(store, draw)
    victim.unlink()
    victim.symlink_to(outside / "file")


def link_to_a_folder(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    (store.directory / "00000030").rename(store.directory / "notes")
    (store.directory / "00000030").symlink_to(outside)


def endless_file(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    victim = chosen(store, draw)
    victim.unlink()
    if draw.integers(2):
        os.mkfifo(victim)
    else:
        victim.symlink_to("/dev/zero")


def key_outside(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    keys = (str(outside / "file"), "../../../outside/file", "/dev/zero", "more/../../../../outside/file")
    key = keys[int(draw.integers(len(keys)))]
    forge(store.directory / "00000030", files={key: {"size": 4, "sha256": "0" * 64}})


def terabytes(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    shape = [2 ** int(draw.integers(10, 25)), 2**22, 2**8]
    forge(store.directory / "00000030", leaves={"params.kernel": {"shape": shape, "dtype": "float32", "sha256": ""}})


def json_bomb(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    units = (b"[],", b"{},", b"0,", b"[" * 9, b'{"a":')
    content = b"[" + units[int(draw.integers(len(units)))] * 10_000_000
    (store.directory / "00000030" / "manifest.json").write_bytes(content[: 2**26])


def attacked(attack: Attack) -> Callable[[Path, np.random.Generator], str]:
    """A checkpoint that ``attack`` prepared is read, refused in a sentence, set aside and trained past."""

    def inject(folder: Path, draw: np.random.Generator) -> str:
        outside = folder / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"mine")
        store = filled(folder / "run")
        attack(store, outside, draw)
        before = tree(outside)
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError) as caught:
                store.restore(30)
            assert tracemalloc.get_traced_memory()[1] < 2**28, "what it claims to hold was allocated"
        finally:
            tracemalloc.stop()
        assert "step 30" in str(caught.value)
        store.save(40, state(40), {"step": 40}, 0.5)
        store.truncate(store.restore_newest_good()[0])
        for step in (50, 60, 70):
            store.save(step, state(step), {"step": step}, 4.0)
        assert tree(outside) == before, "something outside of the run was changed"
        return "refused naming the step; nothing outside the folder changed, and training continued"

    return inject


def pickle_beside(folder: Path, draw: np.random.Generator) -> str:
    """A pickle that is not among the files of the checkpoint."""
    store = filled(folder / "run")
    names = ("checkpoint.pkl", "params.npy", "model.pickle", "model.pt")
    (store.directory / "00000030" / names[int(draw.integers(len(names)))]).write_bytes(pickle.dumps(Trap(folder)))
    check(store, 30)
    assert not (folder / "sprung").exists(), "it was unpickled"
    return "ignored; the checkpoint is used"


def pickle_for_a_file(folder: Path, draw: np.random.Generator) -> str:
    """A pickle in place of a file of arrays, under a digest that is right, padded to a size that may be right."""
    store = filled(folder / "run")
    victim = chosen(store, draw)
    victim.write_bytes(pickle.dumps(Trap(folder)).ljust(victim.stat().st_size, b"\0"))
    forge(store.directory / "00000030")
    with pytest.raises(CheckpointError, match="step 30 "):
        check(store, 30)
    assert not (folder / "sprung").exists(), "it was unpickled"
    return "never unpickled; refused naming the step"


def header_bomb(store: CheckpointStore, outside: Path, draw: np.random.Generator) -> None:
    """A safetensors header of many megabytes, or one that claims terabytes, under a digest that is right."""
    victim = chosen(store, draw)
    if draw.integers(2):
        units = (b"[", b"{}", b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},')
        header = b"{" + units[int(draw.integers(len(units)))] * 600_000
    else:
        tensor = {"dtype": "F32", "shape": [2 ** int(draw.integers(20, 60))], "data_offsets": [0, 2**40]}
        header = json.dumps({"kernel": tensor, "step": tensor}).encode()
    victim.write_bytes(len(header).to_bytes(8, "little") + header + victim.read_bytes())
    forge(store.directory / "00000030")


def links_for_logs(folder: Path, draw: np.random.Generator) -> str:
    """Links where a run writes."""
    run, outside = folder / "run", folder / "outside"
    outside.mkdir()
    (outside / "20261122").mkdir()
    (outside / "file").write_bytes(b"mine")
    run.mkdir()
    for name in ("metrics.jsonl", "samples.txt", "config.json"):
        (run / name).symlink_to(outside / "file")
    (run / "checkpoints").symlink_to(outside)
    before = tree(outside)
    log, store = MetricsLog(run / "metrics.jsonl"), CheckpointStore(run / "checkpoints")
    for ask in (
        lambda: log.append({"step": 1}),
        lambda: log.truncate(0),
        lambda: append_sample(run / "samples.txt", 1, "text"),
        lambda: RunDirectory(run).read_json("config.json"),
        lambda: store.save(1, state(1), {}),
        lambda: store.truncate(0),
        store.clean,
        store.restore,
    ):
        with pytest.raises(CheckpointError, match="link"):
            ask()
    assert tree(outside) == before
    return "refused; nothing outside the folder changed"


REQUIRED = "refused with an error message before anything is allocated or executed"
ATTACKS = {
    "a link to a file outside": link_to_a_file,
    "a link to a folder outside in place of a checkpoint": link_to_a_folder,
    "a pipe or a device in place of a file": endless_file,
    "a key that leads outside": key_outside,
    "a shape of terabytes, its record forged": terabytes,
    "JSON that would fill the memory": json_bomb,
    "a safetensors header that would fill the memory": header_bomb,
}

FAULTS = (
    *(Fault(f"hostile folder: {name}", REQUIRED, attacked(attack), times=5) for name, attack in ATTACKS.items()),
    Fault("hostile folder: a pickle beside the files of a checkpoint", "never read", pickle_beside, times=5),
    Fault("hostile folder: a pickle for a file, its digest forged", REQUIRED, pickle_for_a_file, times=20),
    Fault("hostile folder: links where a run writes", REQUIRED, links_for_logs, times=1),
)
