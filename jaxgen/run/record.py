"""What ``config.json`` says of a run: the settings as given, and what its first start made of them."""

from __future__ import annotations

import platform
from typing import Any

import jax
import jaxlib

from jaxgen.data.task import TaskData
from jaxgen.store import RunDirectory
from jaxgen.store.config import TrainConfig
from jaxgen.version import __version__


def resolve(data: TaskData, options: dict[str, Any], parameters: int, devices: int) -> dict[str, Any]:
    """What follows from data and device, for a model of these ``options``; the number of steps is still open."""
    return {
        "model": options,
        "parameters": parameters,
        "data": data.identity(),
        **data.resolved(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "processes": jax.process_count(),
    }


def version_changes(resolved: dict[str, Any]) -> str:
    """What computed the run ``resolved`` when it began and is another version here, in words; empty if nothing is."""
    then, now = resolved.get("versions"), versions()
    known = then if isinstance(then, dict) else {}
    others = [name for name in ("jax", "jaxlib", "python") if name in known and known[name] != now[name]]
    return " and ".join(f"{name} {known[name]} and goes on with {now[name]}" for name in others)


def versions() -> dict[str, str]:
    """What computes here."""
    return {
        "jaxgen": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def write_config(run: RunDirectory, config: TrainConfig, resolved: dict[str, Any]) -> None:
    """Write ``config.json``; with it the folder is a run."""
    run.write_json("config.json", {"task": config.task, "config": config.model_dump(mode="json"), "resolved": resolved})
