"""Checkpoints to damage, and checks of what must remain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.fsutil import json_sha256
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.manifest import MANIFEST

#: Step -> metric of the checkpoints that ``filled`` saves: the first is the best, the last the latest.
METRICS = {10: 1.0, 20: 3.0, 30: 2.0}


def state(step: int, size: int = 64) -> dict[str, Any]:
    """Arrays that belong to ``step`` and do not compress."""
    draw = np.random.default_rng(step)
    weights = {"kernel": draw.normal(size=(size, 4)).astype("float32"), "bias": draw.normal(size=3).astype("float32")}
    return {"params": weights, "step": np.int32(step)}


def filled(folder: Path) -> CheckpointStore:
    """The checkpoints of the three steps in ``folder/checkpoints``."""
    folder.mkdir(exist_ok=True)
    store = CheckpointStore(folder / "checkpoints")
    for step, metric in METRICS.items():
        store.save(step, state(step), {"step": step}, metric)
    return store


def check(store: CheckpointStore, step: int, size: int = 64) -> None:
    """The checkpoint of ``step`` restores, and every bit is that of its state."""
    restored, host = store.restore(step)
    assert host == {"step": step}
    for name, array in state(step, size)["params"].items():
        assert np.asarray(restored["params"][name]).tobytes() == array.tobytes(), f"other weights in {name}"


def forge(checkpoint: Path, **changes: dict[str, Any]) -> None:
    """Make the manifest agree with the files as they are now and with ``changes``, under a checksum that is right."""
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    del manifest["sha256"]
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for key, entries in changes.items():
        manifest[key] |= entries
    (checkpoint / MANIFEST).write_text(json.dumps({"sha256": json_sha256(manifest), **manifest}))


def tree(folder: Path) -> dict[str, bytes]:
    """Every name in ``folder`` with what it holds."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
