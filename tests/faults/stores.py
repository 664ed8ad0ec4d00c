"""Checkpoints to put faults into, and what must be true of them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.store import CheckpointStore

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
