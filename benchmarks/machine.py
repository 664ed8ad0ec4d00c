"""Describe the machine of a measurement: processor, cores, versions, commit, date; no names of hosts or people."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
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


def cpu_seconds() -> float | None:
    """Processor seconds that all processes have used since the system started; None where the system does not tell."""
    file = Path("/proc/stat")
    if not file.exists():
        return None
    user, nice, system = (int(ticks) for ticks in file.read_text().split()[1:4])
    return float(user + nice + system) / os.sysconf("SC_CLK_TCK")


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
    (described,) = lines([found])
    return described


def lines(several: Iterable[dict[str, Any]]) -> list[str]:
    """The ``facts`` of several measurements, those of one machine and program on one line."""
    loads: dict[str, list[float]] = {}
    for found in several:
        programs = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        at = f"commit {found['commit']}; " if found["commit"] else ""
        about = f"{found['processor']}, {found['cores']} cores, {found['system']}; {programs}; {at}{found['date']}"
        seen = loads.setdefault(about, [])
        seen += [] if found["load_average"] is None else [found["load_average"]]
    return sorted(f"{about}{_range(seen)}." for about, seen in loads.items())


def _range(loads: list[float]) -> str:
    if not loads:
        return ""
    least, most = min(loads), max(loads)
    return f"; load average at the start {least:g}" + (f" to {most:g}" if most > least else "")
