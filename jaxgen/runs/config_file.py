"""Reads and writes ``config.json``: the settings of a run, what was resolved from them, and a digest of both."""

from __future__ import annotations

import platform
from typing import Any

import jax
import jaxlib

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import json_sha256
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runtime import processor_name
from jaxgen.version import __version__

#: The key of the digest of everything else in ``config.json``.
DIGEST = "sha256"


def environment_diff(resolved: dict[str, Any]) -> str:
    """What is different here from where the run ``resolved`` began, in words; empty if nothing is.

    Compares versions, the kind of device, and on a CPU the processor, as far as the run recorded them.
    """
    then, now = resolved.get("versions"), versions()
    known = dict(then) if isinstance(then, dict) else {}
    here = {name: now[name] for name in ("jax", "jaxlib", "python")}
    here["device"] = known["device"] = jax.devices()[0].device_kind
    for name in ("device", "processor"):
        if isinstance(resolved.get(name), str):
            known[name] = resolved[name]
    if known["device"] == here["device"] and jax.default_backend() == "cpu":
        here["processor"] = processor_name()
    others = [name for name, value in here.items() if known.get(name, value) != value]
    return " and ".join(f"{name} {known[name]} and goes on with {here[name]}" for name in others)


def versions() -> dict[str, str]:
    """The versions of jaxgen, JAX and Python."""
    return {
        "jaxgen": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def write_config(run: RunDirectory, config: TrainConfig, resolved: dict[str, Any]) -> None:
    """Write ``config.json``. A folder with this file is a run."""
    content = {"task": config.task, "config": config.model_dump(mode="json"), "resolved": resolved}
    run.write_json("config.json", with_digest(content))


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with its digest, which replaces an earlier one."""
    rest = {name: value for name, value in content.items() if name != DIGEST}
    return {DIGEST: json_sha256(rest), **rest}


def read_config(run: RunDirectory) -> dict[str, Any]:
    """What ``write_config`` wrote. Raises ``CheckpointError`` if anything in it has changed since.

    With an altered number the run would continue as another run, and nothing else would notice.
    """
    content = run.read_json("config.json")
    if not isinstance(content, dict) or not isinstance(content.get(DIGEST), str):
        raise CheckpointError(
            f"{run.config_path} does not describe a run of this version of jaxgen: it has no digest. Copy the run "
            "again, or train it again."
        )
    if content[DIGEST] != with_digest(content)[DIGEST]:
        raise CheckpointError(
            f"{run.config_path} has been altered: its digest is not that of its content. Copy the run again. Settings "
            "are given as flags instead: those that a run may change, with --resume; others, to a new run, which may "
            "begin from the weights of another with --init-from."
        )
    return content
