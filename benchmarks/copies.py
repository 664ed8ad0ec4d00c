"""Seconds and peak memory of ``jaxgen.metrics.longest_copies``.

    python -m benchmarks.copies          under a minute; prints a table in Markdown

The training text is the source of Python's standard library, in the order of the files' names and from the beginning
again if it is short; the "samples" are 500 characters each of what comes after it, which share with it about what a
model's texts do. Memory is what Python allocates meanwhile, measured in a pass of its own, for tracing slows it down.
"""

from __future__ import annotations

import statistics
import sysconfig
import time
import tracemalloc
from itertools import cycle
from pathlib import Path

from benchmarks import machine
from jaxgen.metrics import longest_copies

TRAIN, LENGTH, ROUNDS = 10_000_000, 500, 3
SAMPLED = (100_000, 200_000)


def library(size: int) -> str:
    """The first ``size`` characters of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    parts, length = [], 0
    for file in cycle(file for file in files if "site-packages" not in file.parts):
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
        if length >= size:
            break
    return "".join(parts)[:size]


def seconds(samples: list[str], text: str) -> float:
    began = time.perf_counter()
    longest_copies(samples, [text])
    return time.perf_counter() - began


def peak(samples: list[str], text: str) -> float:
    """Megabytes."""
    tracemalloc.start()
    longest_copies(samples, [text])
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found / 1e6


def main() -> None:
    whole = library(TRAIN + max(SAMPLED))
    text, rest = whole[:TRAIN], whole[TRAIN:]
    print(machine.line(machine.facts()) + "\n")
    print("| characters of training text | sampled | seconds | peak memory, MB |\n|---|---|---|---|")
    for size in SAMPLED:
        samples = [rest[at : at + LENGTH] for at in range(0, size, LENGTH)]
        taken = [seconds(samples, text) for _ in range(ROUNDS)]
        middle = f"{statistics.median(taken):.1f} ({min(taken):.1f}–{max(taken):.1f})"
        print(f"| {TRAIN:,} | {size:,} | {middle} | {peak(samples, text):.0f} |", flush=True)


if __name__ == "__main__":
    main()
