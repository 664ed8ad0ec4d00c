"""What a piece of code takes of memory: run in a process of its own that watches its anonymous pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

#: In front of a script: ``anonymous()`` in bytes; ``Peak()`` from here on, its ``growth()`` so far.
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


def run_watched(
    script: str, *args: object, env: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` behind ``WATCHING``, with nothing compiled better than it must be."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells how much memory is anonymous")
    root = str(Path(__file__).parent.parent)
    ours = {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **env}
    command = [sys.executable, "-c", WATCHING + script, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | ours, timeout=timeout)
