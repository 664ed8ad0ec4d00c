"""Measure the peak memory of code in its own process by its anonymous pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .fault import Unavailable

#: In front of a script: ``Peak()`` watches from here on, its ``growth()`` is in bytes.
WATCHING = """
import sys, threading, time

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

class Peak:
    def __init__(self):
        self.base = self.highest = anonymous()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while True:
            self.highest = max(self.highest, anonymous())
            time.sleep(0.002)

    def growth(self):
        return max(self.highest, anonymous()) - self.base
"""


def run_watched(script: str, *args: object, cwd: Path, env: Mapping[str, str]) -> str:
    """What ``script`` writes, run behind ``WATCHING``; nothing is compiled better than it must be."""
    if not Path("/proc/self/status").exists():
        raise Unavailable("only Linux tells how much memory is anonymous")
    root = str(Path(__file__).resolve().parents[2])
    ours = {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **env}
    command = [sys.executable, "-c", WATCHING + script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | ours, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout
