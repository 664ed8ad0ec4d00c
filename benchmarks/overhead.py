"""Overhead of a whole run: characters/s of ``train.py`` compared with the compiled step alone.

    python -m benchmarks.overhead          about six minutes; prints a table in Markdown

The command runs in a terminal of its own, progress line and all, and is timed by its own log between its two last
evaluations, which are not counted. The bare step is the same compiled function with the same settings, called again and
again with the same batches, each call after the one before. Both take turns.
"""

from __future__ import annotations

import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import machine

ROUNDS = 3
FLAGS = {  # with steps for about 15 seconds between evaluations
    "default": ["--steps", "900", "--eval-every", "450"],
    "LSTM 1x128": ["--hidden", "128", "--steps", "3000", "--eval-every", "1500"],
    "GRU 2x256": ["--cell", "gru", "--layers", "2", "--steps", "600", "--eval-every", "300"],
}
COMMON = ["--sample-every", "0"]


def whole_run(flags: list[str]) -> float:
    """Characters/s of ``train.py`` in a terminal."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        outside, inside = pty.openpty()
        command = [sys.executable, "train.py", *flags, *COMMON, "--run", str(run)]
        process = subprocess.Popen(command, cwd=machine.ROOT, stdout=inside, stderr=inside, stdin=inside)
        os.close(inside)
        shown = threading.Thread(target=drain, args=(outside,), daemon=True)
        shown.start()
        if process.wait():
            raise SystemExit(f"train.py {' '.join(flags)} ended with {process.returncode}")
        shown.join()
        first, last = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[-2:])
        config = json.loads((run / "config.json").read_text())["config"]
    characters = (last["step"] - first["step"]) * config["batch_size"] * config["seq_len"]
    return characters / (last["seconds"] - first["seconds"])


def drain(terminal: int) -> None:
    """Read what is shown until the other side closes."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass
    os.close(terminal)


class BareStep:
    """The compiled step of a run that ``start`` made, without the loop around it."""

    def __init__(self, flags: list[str], folder: Path) -> None:
        import jax

        from jaxgen.cli.train import config_from_flags
        from jaxgen.tasks.registry import DATA
        from jaxgen.trainer.run import start

        config, _ = config_from_flags(DATA["language"].Config, [*flags, *COMMON, "--run", str(folder)])
        self.trainer = start(config)
        self.wait = jax.block_until_ready
        self.speed(1.0)

    def speed(self, seconds: float) -> float:
        """Characters/s over so many seconds."""
        trainer, calls = self.trainer, 0
        batches = trainer.inputs.next(0, trainer.inputs.steps_in_call(0))
        self.wait(trainer.state)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            trainer.state, log = trainer._train_steps(
                trainer.key, trainer.state, batches, trainer.steps_per_call, trainer.rates
            )
            calls += 1
            self.wait(log)
        return calls * trainer.steps_per_call * trainer.data.tokens_per_step / (time.perf_counter() - began)


def main() -> None:
    from jaxgen.cli.common import prepare_process

    prepare_process()
    print(machine.line(machine.facts()) + "\n")
    print("| run | bare step, characters/s | train.py, characters/s | train.py / bare step |\n|---|---|---|---|")
    for name, flags in FLAGS.items():
        bare, whole = [], []
        with tempfile.TemporaryDirectory() as folder:
            step = BareStep(flags, Path(folder, "run"))
            for _ in range(ROUNDS):
                bare.append(step.speed(5.0))
                whole.append(whole_run(flags))
            bare.append(step.speed(5.0))
        both = [statistics.median(speeds) for speeds in (bare, whole)]
        ranges = [f"{middle:,.0f} ({min(s):,.0f}–{max(s):,.0f})" for middle, s in zip(both, (bare, whole))]
        print(f"| {name} | {ranges[0]} | {ranges[1]} | {both[1] / both[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
