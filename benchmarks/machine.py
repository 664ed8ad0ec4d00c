"""Describe the machine of a measurement: processor, cores, versions, commit, date; no names of hosts or people."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxgen.runtime import cores

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxgen", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras")


def processor() -> str:
    """The processor's name as the system tells it, with the vector instructions that matter here."""
    file = Path("/proc/cpuinfo")
    info = file.read_text() if file.exists() else ""
    names = re.findall(r"model name\s*: (.*)", info) or [platform.processor() or platform.machine()]
    wide = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in info), "no AVX2")
    return f"{names[0]} ({wide})"


def versions() -> dict[str, str]:
    """Installed versions; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the tree, with a plus sign when files of the package differ from it; None outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("--no-optional-locks", "status", "--porcelain", "--", "jaxgen")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def facts() -> dict[str, Any]:
    """All of it, for the JSON file."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.system(),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def line(found: dict[str, Any]) -> str:
    """``facts`` as a line under a table."""
    programs = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    at = f"commit {found['commit']}; " if found["commit"] else ""
    load = "" if found["load_average"] is None else f", load average {found['load_average']} at the start"
    return f"{found['processor']}, {found['cores']} cores, {found['system']}{load}; {programs}; {at}{found['date']}."
