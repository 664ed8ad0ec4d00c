"""``jaxgen runs``: a table of the runs in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import log, run_command, write_out
from jaxgen.cli.flags import Flag, load_plugins, parse
from jaxgen.errors import CheckpointError, UsageError, counted

if TYPE_CHECKING:
    from jaxgen.runs.directory import RunDirectory

DESCRIPTION = """List the runs in a folder: task, data, model, best figure, steps, date and size.

    jaxgen runs
    jaxgen runs experiments --json > runs.jsonl"""

#: Heading of a column -> how a run is shown in it.
COLUMNS = {
    "run": lambda run: run["run"],
    "task": lambda run: run["task"],
    "data": lambda run: run["data"],
    "model": lambda run: run["model"],
    "best": lambda run: "" if run["best"] is None else f"{run['metric'].removeprefix('val_')} {run['best']:.4g}",
    "steps": lambda run: f"{run['step']:,}/{run['steps']:,}",
    "date": lambda run: run["date"][:16].replace("T", " "),
    "MB": lambda run: f"{run['bytes'] / 1e6:,.1f}",
}


class RunsConfig(BaseModel):
    """Flags of ``jaxgen runs``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def main(args: Sequence[str] | None = None) -> int:
    """List the runs; returns the exit code."""
    return run_command(list_runs, args)


def list_runs(args: list[str]) -> None:
    """Parse ``args`` and print the table. Raises ``CheckpointError`` if there is no run."""
    from jaxgen.runs.directory import RunDirectory

    args = load_plugins(args)
    folder_flag = Flag("folder", str, "runs", "The folder with the runs.", "[FOLDER]", positional=True)
    json_flag = Flag("json", bool, False, "Write a JSON object for each run.", negatable=False)
    _, extra = parse(RunsConfig, args, prog="jaxgen runs", description=DESCRIPTION, extra=[folder_flag, json_flag])
    folder = Path(extra["folder"])
    if RunDirectory(folder).exists():
        raise UsageError(f"{folder} is a run itself: show it with `jaxgen info {folder}`, or give the folder above it.")
    try:
        directories = [RunDirectory(folder / name) for name in os.listdir(folder)]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}. Give the folder with the runs.") from None
    found, problems = [], []
    for directory in directories:
        if directory.exists():
            try:
                found.append(describe(directory))
            except CheckpointError as error:
                problems.append(str(error))
    found.sort(key=lambda run: (run["date"], run["run"]))
    for problem in sorted(problems):
        log(f"note: left out: {problem}")
    if not found:
        raise CheckpointError(f"There is no run in {folder}. Train one with `python train.py`.")
    if extra["json"]:
        write_out("".join(json.dumps(run) + "\n" for run in found))
        return
    rows = [list(COLUMNS), *([show(run) for show in COLUMNS.values()] for run in found)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    write_out("".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows))
    log(f"{counted(len(found), 'run')} in {folder}")


def describe(directory: RunDirectory) -> dict[str, Any]:
    """What is known of a run without its weights. Raises ``CheckpointError`` if its files are damaged."""
    from jaxgen.runs.config import read_config
    from jaxgen.runs.logs import MetricsLog
    from jaxgen.tasks.registry import DATA

    saved = read_config(directory)
    try:
        config, resolved, data = saved["config"], saved["resolved"], DATA[saved["task"]]
        rows, metric = MetricsLog(directory.metrics_path).read(), data.METRIC
        values = [row[metric.name] for row in rows if isinstance(row.get(metric.name), float)]
        written = max(path.stat().st_mtime for path in (directory.config_path, directory.metrics_path) if path.exists())
        return {
            "run": str(directory),
            "task": str(saved["task"]),
            "data": str(resolved["data"]["name"]),
            "model": network(config),
            "parameters": int(resolved["parameters"]),
            "metric": metric.name,
            "best": (max if metric.higher_is_better else min)(values, default=None),
            "step": int(rows[-1]["step"]) if rows else 0,
            "steps": int(resolved["steps"]),
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
