"""A long run of a tiny model: do memory, open files or speed change over time?

    python -m benchmarks.soak --output soak.json                  200,000 steps: hours
    python -m benchmarks.soak --output soak.json --steps 5000     minutes

Evaluation, samples and a checkpoint come every --every steps. Beside the JSON file lies a picture of the same name. The
first tenth of the run is warm-up: what is compiled and allocated once belongs there. Linux only (it reads /proc).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZES = {"hidden": 32, "batch_size": 8, "seq_len": 16, "dropout": 0.1}
#: Share of the run that is warm-up, and how much larger the memory of its last tenth may be than behind it.
WARM_UP, MOST_GROWTH = 0.1, 0.05


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files() -> int:
    """How many file descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def soak(folder: Path, steps: int, every: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Train; a record at every evaluation, and the identity of the data."""
    from jaxgen.tasks.registry import DATA
    from jaxgen.trainer.callbacks import Evaluated
    from jaxgen.trainer.run import start

    records: list[dict[str, Any]] = []
    began = time.perf_counter()

    def watch(event: Any) -> None:
        if isinstance(event, Evaluated):
            row = event.row
            figures = {"seconds": time.perf_counter() - began, "resident": resident(), "open_files": open_files()}
            records.append({"step": row["step"], **figures, "tokens_per_second": row["tokens_per_second"]})

    rhythm = {"steps": steps, "eval_every": every, "sample_every": every, "schedule": "constant", "lr": 1e-3}
    trainer = start(DATA["language"].Config(run=str(folder / "run"), **SIZES, **rhythm), watch)
    trainer.train()
    return records, trainer.data.fingerprint()


def judged(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The last tenth of the records beside the first behind the warm-up: medians."""
    tenth = max(1, len(records) // 10)
    begin, end = records[int(len(records) * WARM_UP) :][:tenth], records[-tenth:]

    def of(part: list[dict[str, Any]], name: str) -> float:
        return statistics.median(record[name] or 0 for record in part)

    figures: dict[str, Any] = {
        name: {"behind the warm-up": of(begin, name), "at the end": of(end, name)}
        for name in ("resident", "open_files", "tokens_per_second")
    }
    growth = of(end, "resident") / of(begin, "resident") - 1
    flat = growth < MOST_GROWTH and of(end, "open_files") <= of(begin, "open_files")
    return {**figures, "growth of memory": round(growth, 4), "flat": flat}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Memory, open files and speed over the steps."""
    from jaxgen.plots import figure_file, style_axes, theme, write_title

    steps = [record["step"] for record in records]
    units = {"resident": ("resident memory (MiB)", 2**20), "open_files": ("open files", 1)}
    units["tokens_per_second"] = ("speed (tokens per second)", 1)
    with figure_file(path, 10, 8) as figure:
        write_title(figure, f"Memory, open files and speed over {steps[-1]:,} steps")
        for axes, (name, (label, unit)) in zip(figure.subplots(len(units), sharex=True), units.items()):
            values = [math.nan if record[name] is None else record[name] / unit for record in records]
            axes.plot(steps, values, color=theme().cycle[0], lw=1.4)
            axes.set_ylabel(label)
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:,.0f}")
            style_axes(axes, "y")
        axes.set_xlabel("step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=400)
    given = parser.parse_args()

    from jaxgen.cli.common import prepare_process

    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        records, data = soak(Path(folder), given.steps, given.every)
    verdict = judged(records)
    result = {
        "command": f"python -m benchmarks.soak --steps {given.steps} --every {given.every}",
        "machine": machine.facts(),
        "data": data,
        "model": SIZES,
        "verdict": verdict,
        "records": records,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    draw(records, given.output.with_suffix(".png"))
    print(json.dumps(verdict, indent=1))


if __name__ == "__main__":
    main()
