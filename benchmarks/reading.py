"""Cost of reading a text at each level, from file to mapped tokens: seconds and anonymous memory.

    python -m benchmarks.reading          some minutes and 5 GB of disk; prints a table in Markdown (Linux)

The text is the source of Python's standard library over and over. Each start has a process of its own; the first finds
an empty cache folder, the second the tokens of the first. Memory is the most that was anonymous above what the imports
left.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.copies import library

#: Megabytes of text at each level.
SIZES = (("char", 20), ("char", 2000), ("byte", 2000), ("word", 20), ("bpe", 20))


def anonymous() -> float:
    """Megabytes of this process that no file is behind."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith("RssAnon"))


def one(path: str, level: str) -> None:
    """Print the seconds and the megabytes of one start."""
    from jaxgen.tasks.language.corpus import prepare

    if level == "bpe":
        import tokenizers  # noqa: F401
    before, seen = anonymous(), []

    def watch() -> None:
        while True:
            seen.append(anonymous())
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    prepare([path], level=level)
    print(time.perf_counter() - began, max(seen) - before)


def write(path: Path, megabytes: int) -> None:
    block = library(10_000_000).encode()
    with path.open("wb") as file:
        for start in range(0, megabytes * 10**6, len(block)):
            file.write(block[: megabytes * 10**6 - start])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "LEVEL"), help="one start in this process")
    asked = parser.parse_args()
    if asked.one:
        one(*asked.one)
        return
    print(machine.line(machine.facts()) + "\n")
    print("| level | text, MB | first start, s | memory, MB | second start, s | memory, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for level, megabytes in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "text.txt")
            write(path, megabytes)
            command = [sys.executable, "-m", "benchmarks.reading", "--one", str(path), level]
            env = os.environ | {"XDG_CACHE_HOME": folder}
            found = []
            for _ in range(2):
                told = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()
                found += [f"{float(told[0]):.1f}", f"{float(told[1]):.0f}"]
            print(f"| {level} | {megabytes:,} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
