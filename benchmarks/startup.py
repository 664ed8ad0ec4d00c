"""How long a user waits: from process start to the first sampled character and to the first training loss.

    python -m benchmarks.startup          about a minute; a model of two layers of 256

"Cold" is the first start on a machine, with an empty cache of compiled functions; "warm" is any later one.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ["--layers", "2", "--hidden", "256"]
ROUNDS = 5


def wait(command: list[str], folder: Path, seen: Callable[[bytes], bool]) -> float:
    """Seconds from the start of ``command`` until what it has written satisfies ``seen``; it is ended then."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    output, began = b"", time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        while not seen(output):
            byte = process.stdout.read(1)
            if not byte:
                raise RuntimeError(f"{command} ended early: {process.stderr.read().decode()}")
            output += byte
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def report(what: str, once: Callable[[], float]) -> None:
    cold, warm = once(), [once() for _ in range(ROUNDS)]
    print(f"| {what} | {cold:.1f} | {statistics.median(warm):.1f} ({min(warm):.1f} to {max(warm):.1f}) |", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), count()
        train = [sys.executable, str(ROOT / "train.py"), *MODEL, "--steps", "2", "--eval-every", "0", "--run", "model"]
        empty = os.environ | {"XDG_CACHE_HOME": str(folder / "another")}
        subprocess.run(train, cwd=folder, env=empty, check=True, stdout=subprocess.DEVNULL)
        print("| from process start to the first | cold, s | warm, s: median (range) |\n|---|---|---|")
        sample = [str(ROOT / "sample.py"), "--run", "model", "--prompt", "The ", "--length", "2000"]
        report("character, `sample.py`", lambda: wait(sample, folder, lambda text: len(text) > len("The ")))
        report(
            "training loss, `train.py`",
            lambda: wait(
                [str(ROOT / "train.py"), *MODEL, "--run", f"run{next(runs)}"],
                folder,
                lambda text: b"loss " in text,
            ),
        )


if __name__ == "__main__":
    main()
