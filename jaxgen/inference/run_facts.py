"""What is known of a run without its weights: its settings in a few words, its best figure, its curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import read_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA

#: The most points of a curve.
MAX_POINTS = 500


def curves(directory: RunDirectory, metric: str) -> dict[str, list[tuple[int, float]]]:
    """The training loss, the validation loss and ``metric`` of a run, each as steps with values.

    Of a long curve, evenly spaced points are kept, the last one included. Raises ``CheckpointError`` as ``MetricsLog``.
    """
    rows = MetricsLog(directory.metrics_path).read()
    found = {}
    for name in dict.fromkeys(("train_loss", "val_loss", metric)):
        points = [(row["step"], row[name]) for row in rows if _is_finite(row.get("step")) and _is_finite(row.get(name))]
        every = math.ceil(len(points) / MAX_POINTS)
        found[name] = points[::-1][:: every or 1][::-1]
    return found


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def describe(directory: RunDirectory) -> dict[str, Any]:
    """What is known of a run without its weights. Raises ``CheckpointError`` if its files are damaged."""
    saved = read_config(directory)
    try:
        config, resolved, data = saved["config"], saved["resolved"], DATA[saved["task"]]
        rows, metric = MetricsLog(directory.metrics_path).read(), data.METRIC
        written = max(path.stat().st_mtime for path in (directory.config_path, directory.metrics_path) if path.exists())
        return {
            "run": str(directory),
            "task": str(saved["task"]),
            "data": str(resolved["data"]["name"]),
            "sha256": str(resolved["data"]["sha256"]),
            "tokenizer": str(resolved["tokenizer"]),
            "validation": json.dumps({name: value for name, value in config.items() if name.startswith("val_")}),
            "model": network(config),
            "parameters": int(resolved["parameters"]),
            "metric": metric.name,
            "best": metric.best_of(rows),
            "step": int(rows[-1]["step"]) if rows else 0,
            "steps": int(resolved["steps"]),
            "saved": CheckpointStore(directory.checkpoints_path).latest() or 0,
            "date": datetime.fromtimestamp(written).isoformat(timespec="seconds"),
            "bytes": size(directory.path),
        }
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}.") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{directory} does not describe a run of this version of jaxgen, or needs a --plugin."
        ) from None


def network(config: Mapping[str, Any]) -> str:
    """The model of a run in a few words, from its settings."""
    if config["model"] != "rnn":
        return str(config["model"])
    return f"{config.get('layers_pattern') or config['cell']} {config['layers']}x{config['hidden']}"


def size(folder: Path) -> int:
    """The bytes of the files in a folder; a training process may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
