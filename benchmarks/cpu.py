"""Speed on a CPU beside PyTorch, Flax and Keras: the same model, the same sizes, all systems taking turns in one run.

    python -m benchmarks.cpu                        everything, about 25 minutes on two idle cores
    python -m benchmarks.cpu --quick                two cells of the grid and few rounds: under two minutes
    python -m benchmarks.cpu --only decode loss     some sections
    python -m benchmarks.cpu --json result.json     every number too

Prints tables in Markdown. Each system runs in a process of its own (``benchmarks.systems``) and only one works at a
time. Needs the extra ``bench``, and Keras for its column; what is not installed is left out. ``JAXGEN_DATA`` names the
folder with the data sets, as everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.systems import SYSTEMS, Sizes

ROUNDED = ("jaxgen-bfloat16", "torch-bfloat16")
EXACT = [name for name in SYSTEMS if name not in ROUNDED]  # float32, and nothing else
PAUSE = 0.2  # seconds between two turns: OpenMP's threads spin for a while after their work
MOST_CALLS = 512
JAXGEN, TORCH, FLAX = "jaxgen", ("torch-1", "torch-all"), ("flax",)
GRID = [
    Sizes(hidden, batch, length, layers, cell)
    for cell, hidden, layers, (batch, length) in itertools.product(
        ("lstm", "gru"), (128, 256, 512), (1, 2), ((50, 50), (32, 128), (64, 64))
    )
]
QUICK_GRID = [Sizes(128, 50, 50, 1, "lstm"), Sizes(128, 50, 50, 1, "gru")]
ROUNDED_SHAPE = (64, 64)  # the cells of the grid that run in bfloat16 too
KERAS_SHAPE = (50, 50)  # the cells that Keras runs: it compiles longest
HIGHLIGHTED = (512, 2)  # H, L
SGEMM = [Sizes(256, 4096), Sizes(512, 4096), Sizes(1024, 2048)]
STREAMS = (1, 256)
BASE = Sizes(128, batch=32, length=64)
SCALED = [("length", 2), ("length", 4), ("batch", 2), ("batch", 4), ("hidden", 2), ("vocab", 8)]
LINEAR = 2.15  # growth a doubling above which time counts as growing faster than its axis
LOSS, LOSS_SECONDS = 1.92, 150.0
SHAKESPEARE = ["--data", "tinyshakespeare", "--layout", "windows", "--seq-len", "64", "--sample-every", "0"]
RUNS = [
    ["--steps", "400", "--eval-every", "50"],
    ["--hidden", "384", "--dropout", "0.2", "--steps", "1800", "--eval-every", "300"],
]
QUICK_RUNS = [["--steps", "40", "--eval-every", "20"]]

Row = dict[str, Any]
Cell = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """Rounds of turns: at most ``rounds``, at least ``least``, and no new one after ``seconds``."""

    rounds: int = 7
    least: int = 3
    seconds: float = 9.0
    turn: float = 0.15  # seconds that a turn lasts at least


class WorkerError(Exception):
    """A system cannot go on; the message says which and why."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Worker:
    """A system in its process; every question raises ``WorkerError`` once it has ended."""

    def __init__(self, name: str) -> None:
        self.name, self.log = name, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.systems", name],
            cwd=machine.ROOT,
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},  # compile times are those of a first start
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.about: Row = {}

    def begin(self) -> None:
        """Wait until it is there."""
        self.about = self._answer()
        if "missing" in self.about:
            package = self.about["missing"]
            raise WorkerError(f"{self.name}: not installed, left out (pip install {package})")

    def ask(self, do: str, **fields: Any) -> Row:
        with contextlib.suppress(OSError):  # it has ended: the answer that is not there says so
            print(json.dumps({"do": do, **fields}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Row:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.log.seek(0)
            last = "".join(self.log.readlines()[-3:]).strip()
            raise WorkerError(f"{self.name}: ended with {self.process.wait()}, left out from here on: {last}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


class Workers(dict[str, Worker]):
    """All systems that run, by name; leaving the ``with`` ends them."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self):
            self.pop(name).close()

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            self[name] = Worker(name)
            self.attempt(name, self[name].begin)

    def attempt(self, name: str, act: Callable[[], object]) -> None:
        """Do something with a system if it is still there; one that fails is told and left out from then on."""
        if name in self:
            try:
                act()
            except WorkerError as error:
                print(f"{error}\n", flush=True)
                self.pop(name).close()


class Entrant:
    """One system at one piece of work."""

    numbers = itertools.count()

    def __init__(self, worker: Worker, work: str, sizes: Sizes) -> None:
        self.worker, self.work, self.sizes = worker, work, asdict(sizes)
        self.job, self.calls = next(self.numbers), 1
        self.row: Row = {"system": worker.name, "work": work, **self.sizes, "seconds": []}

    def prepare(self, plan: Plan) -> None:
        """Compile, warm up, and find how many calls fill a turn."""
        self.row |= self.worker.ask("prepare", job=self.job, work=self.work, sizes=self.sizes)
        for _ in range(3):
            seconds = self.run()["seconds"]
            if seconds >= 0.7 * plan.turn:
                break
            self.calls = min(max(1, math.ceil(self.calls * plan.turn / max(seconds, 1e-6))), MOST_CALLS)
        self.row["calls"] = self.calls

    def run(self) -> Row:
        return self.worker.ask("run", job=self.job, calls=self.calls)

    def turn(self) -> None:
        done = self.run()
        self.row["seconds"].append(done["seconds"] / done["units"])


def contest(workers: Workers, tasks: list[tuple[str, str, Sizes]], plan: Plan) -> list[Row]:
    """Let (system, work, sizes) take turns; seconds of a unit, turn by turn. Who fails is left out."""
    entrants = [Entrant(workers[name], work, sizes) for name, work, sizes in tasks if name in workers]

    def each(entrants: list[Entrant], act: Callable[[Entrant], None]) -> None:
        for entrant in entrants:
            time.sleep(PAUSE)
            workers.attempt(entrant.worker.name, partial(act, entrant))

    each(entrants, lambda entrant: entrant.prepare(plan))
    began = time.perf_counter()
    for done in range(plan.rounds):
        if done >= plan.least and time.perf_counter() - began > plan.seconds:
            break
        shift = done % max(len(entrants), 1)  # so that nobody always follows the same one
        each(entrants[shift:] + entrants[:shift], Entrant.turn)
    for worker in {entrant.worker for entrant in entrants}:
        workers.attempt(worker.name, partial(worker.ask, "forget"))
    return [entrant.row for entrant in entrants if entrant.worker.name in workers]


def median(row: Row) -> float:
    return statistics.median(row["seconds"])


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    if not values:
        return "–"
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def milliseconds(row: Row | None) -> str:
    return spread([1e3 * seconds for seconds in row["seconds"]] if row else [], ".1f")


def speed(row: Row | None) -> str:
    return spread([1 / seconds for seconds in row["seconds"]] if row else [], ",.0f")


def fastest(rows: Iterable[Row | None]) -> Row | None:
    return min((row for row in rows if row is not None), key=median, default=None)


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times as fast the second is."""
    return None if slow is None or fast is None else median(slow) / median(fast)


def number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else f"{value:{form}}"


def table(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


# --- the ceiling


def measure_sgemm(workers: Workers, plan: Plan) -> list[Row]:
    """Float32 matrix products in PyTorch and in JAX, with all cores."""
    rows = []
    for sizes in SGEMM:
        rows += contest(workers, [(name, "sgemm", sizes) for name in ("torch-all", "flax")], plan)
    return rows


def best_gflops(rows: Iterable[Row]) -> float:
    """The fastest turn of all."""
    speeds = (8e-9 * row["batch"] * row["length"] * row["hidden"] ** 2 / min(row["seconds"]) for row in rows)
    return max(speeds, default=0.0)


def show_sgemm(first: list[Row], last: list[Row]) -> str:
    lines = []
    for sizes in SGEMM:
        found = [[row for row in rows if row["hidden"] == sizes.hidden] for rows in (first, last)]
        size = f"[{sizes.batch}, {sizes.hidden}] x [{sizes.hidden}, {4 * sizes.hidden}]"
        lines.append([size, *(f"{best_gflops(rows):.0f}" for rows in found)])
    head = ["float32 product, the better of PyTorch and JAX", "GFLOP/s at the start", "at the end"]
    return f"## sgemm ceiling: {best_gflops(first + last):.0f} GFLOP/s\n\n{table(head, lines)}"


# --- the training step


def step_gflops(row: Row) -> float:
    """What a step must compute: the first layer's input product is a table when the vocabulary is the smaller."""
    tokens, hidden, gates = row["batch"] * row["length"], row["hidden"], {"lstm": 4, "gru": 3}[row["cell"]]
    products = 2 * row["layers"] - (row["vocab"] < tokens)  # one for the input, one for the state, in each layer
    return 3 * 2e-9 * tokens * (products * gates * hidden**2 + hidden * row["vocab"])


def measure_grid(workers: Workers, plan: Plan, grid: list[Sizes], keep: Callable[[str, Any], None]) -> list[Row]:
    rows: list[Row] = []
    for count, sizes in enumerate(grid, 1):
        began = time.perf_counter()
        names = [name for name in EXACT if name != "keras" or (sizes.batch, sizes.length) == KERAS_SHAPE]
        rows += contest(workers, [(name, "train", sizes) for name in names], plan)
        keep("grid", rows)
        say(f"training step {count}/{len(grid)}: {sizes} in {time.perf_counter() - began:.0f} s")
    return rows


def by_cell(rows: list[Row]) -> dict[Cell, dict[str, Row]]:
    cells: dict[Cell, dict[str, Row]] = {}
    for row in rows:
        cell = (row["cell"], row["hidden"], row["layers"], row["batch"], row["length"])
        cells.setdefault(cell, {})[row["system"]] = row
    return cells


def show_grid(rows: list[Row], ceiling: float | None) -> str:
    lines = []
    for sizes, cell in by_cell(rows).items():
        mine = cell.get(JAXGEN)
        share = None if mine is None or not ceiling else step_gflops(mine) / median(mine) / ceiling
        marked = f"**{number(share, '.0%')}**" if sizes[1:3] == HIGHLIGHTED else number(share, ".0%")
        times = [milliseconds(cell.get(name)) for name in EXACT]
        lines.append([", ".join(map(str, sizes)), *times, number(ratio(fastest(map(cell.get, TORCH)), mine)), marked])
    head = ["cell, H, L, B, T", *(f"{name}, ms" for name in EXACT), "torch's best / jaxgen", "of sgemm"]
    return f"""## Whole training step, milliseconds: median (range)

{table(head, lines)}
{table(["jaxgen is so many times as fast as", "cells", "geometric mean", "worst cell"], ratios(rows))}
"Tuned": all threads, and the allocator settings that jaxgen's commands give their process; else as installed.

"Of sgemm": the FLOP/s that jaxgen's step requires (forward and backward as three forward passes, the first layer's
input product looked up and not counted) over the measured ceiling. Keras runs the cells with B, T = 50, 50 only.
"""


def ratios(rows: list[Row]) -> list[list[str]]:
    """The geometric mean and the worst cell against each rival, for each kind of layer."""
    rivals = {
        "torch, the better of 1 and all threads": TORCH,
        "torch, the best of all three": (*TORCH, "torch-tuned"),
        "flax": FLAX,
        "flax, the better of both": (*FLAX, "flax-tuned"),
        "keras": ("keras",),
    }
    lines = []
    for (rival, names), kind in itertools.product(rivals.items(), ("lstm", "gru")):
        cells = {sizes: cell for sizes, cell in by_cell(rows).items() if sizes[0] == kind}
        found = {sizes: ratio(fastest(map(cell.get, names)), cell.get(JAXGEN)) for sizes, cell in cells.items()}
        known = {sizes: value for sizes, value in found.items() if value is not None}
        if known:
            worst = min(known, key=lambda sizes: known[sizes])
            mean, where = statistics.geometric_mean(known.values()), ", ".join(map(str, worst[1:]))
            lines.append([f"{rival}, {kind}", str(len(known)), f"{mean:.2f}", f"{known[worst]:.2f} (at {where})"])
    return lines


def measure_processes(workers: Workers) -> dict[str, Row]:
    """Threads, devices, memory after the import and at most so far, by system."""
    found: dict[str, Row] = {}

    def look(name: str) -> None:
        found[name] = workers[name].about | workers[name].ask("memory")

    for name in list(workers):
        workers.attempt(name, partial(look, name))
    return found


def show_processes(found: dict[str, Row], rows: list[Row]) -> str:
    lines = []
    for name, process in found.items():
        own = [row for row in rows if row["system"] == name]
        times = [spread([row[key] for row in own], ".2f") for key in ("first_s", "setup_s")]
        facts = [f"{process[key]:.0f}" for key in ("threads", "devices", "imported_mb", "peak_mb")]
        lines.append([name, str(len(own)), *times, *facts])
    head = ["system", "cells", "first call, s: median (range)", "set-up before it, s", "threads", "devices"]
    head += ["memory after the import, MB", "peak over its cells, MB"]
    return f"""## Compilation, threads and memory

{table(head, lines)}
"First call" traces, compiles and runs one step; "set-up" makes the model and its parameters. A process keeps what its
cells took, so the peak is that of the whole grid.
"""


# --- products in bfloat16


def measure_bfloat16(workers: Workers, plan: Plan, grid: list[Sizes]) -> list[Row]:
    rows: list[Row] = []
    for sizes in grid:
        say(f"bfloat16: {sizes}")
        rows += contest(workers, [(name, "train", sizes) for name in (JAXGEN, *TORCH[1:], *ROUNDED)], plan)
    return rows


def show_bfloat16(rows: list[Row]) -> str:
    names = (JAXGEN, *TORCH[1:], *ROUNDED)
    lines, gains = [], []
    for sizes, cell in by_cell(rows).items():
        gains.append([ratio(cell.get(name), cell.get(ROUNDED[0])) for name in (JAXGEN, ROUNDED[1])])
        times = [milliseconds(cell.get(name)) for name in names]
        lines.append([", ".join(map(str, sizes)), *times, *map(number, gains[-1])])
    head = ["cell, H, L, B, T", *(f"{name}, ms" for name in names)]
    head += ["jaxgen / jaxgen-bfloat16", "torch-bfloat16 / jaxgen-bfloat16"]
    for kind in ("lstm", "gru"):
        own = [gain for sizes, gain in zip(by_cell(rows), gains) if sizes[0] == kind]
        columns = [[value for value in column if value is not None] for column in zip(*own)]
        means = [number(statistics.geometric_mean(column)) if column else number(None) for column in columns]
        lines.append([f"geometric mean, {kind}", *["" for _ in names], *means])
    return f"""## Products in bfloat16, whole training step, milliseconds: median (range)

{table(head, lines)}
`--precision bfloat16` beside PyTorch's autocast on all threads, the allocator as installed. These steps compute other
numbers than those above.
"""


# --- decoding

DECODERS = [(JAXGEN, "decode"), *itertools.product(TORCH, ("decode", "decode_cells"))]


def measure_decoding(workers: Workers, plan: Plan, models: list[tuple[int, int]]) -> list[Row]:
    """One stream and many, LSTM; ``torch`` as a loop over ``nn.LSTM`` and over ``nn.LSTMCell``."""
    rows = []
    for (hidden, layers), streams in itertools.product(models, STREAMS):
        say(f"decoding: H={hidden}, L={layers}, {streams} streams")
        sizes = Sizes(hidden, streams, layers=layers)
        rows += contest(workers, [(name, work, sizes) for name, work in DECODERS], plan)
    return rows


def show_decoding(rows: list[Row]) -> str:
    cells: dict[tuple[int, int, int], dict[tuple[str, str], Row]] = {}
    for row in rows:
        cells.setdefault((row["hidden"], row["layers"], row["batch"]), {})[row["system"], row["work"]] = row
    lines = []
    for (hidden, layers, streams), cell in cells.items():
        single = cells[hidden, layers, STREAMS[0]]
        speeds = [speed(cell.get(key)) for key in DECODERS]
        rivals = [fastest(found.get(key) for key in DECODERS[1:]) for found in (cell, single)]
        gains = [number(ratio(rival, cell.get(DECODERS[0]))) for rival in rivals]
        lines.append([f"{hidden}, {layers}, {streams}", *speeds, *gains])
    forms = [f"{name}, nn.LSTM{'Cell' if work == 'decode_cells' else ''}" for name, work in DECODERS[1:]]
    gains = ["jaxgen / torch's best", "jaxgen / torch's best with one stream"]
    return f"""## Decoding, LSTM, characters/s over all streams: median (range)

{table(["H, L, streams", JAXGEN, *forms, *gains], lines)}
Temperature 1, after the first chunk; jaxgen through its sampler, text included, in blocks of rows of fixed size.
"""


# --- scaling


def measure_scaling(workers: Workers, plan: Plan) -> list[Row]:
    say("scaling")
    larger = [replace(BASE, **{axis: factor * getattr(BASE, axis)}) for axis, factor in SCALED]
    return contest(workers, [(JAXGEN, "train", sizes) for sizes in (BASE, *larger)], plan)


def show_scaling(rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = [["base", "1", milliseconds(rows[0]), "1.00", "–", ""]]
    for (axis, factor), row in zip(SCALED, rows[1:]):
        growth = median(row) / median(rows[0])
        doubling = growth ** (1 / math.log2(factor))
        flag = "**faster than linear**" if axis in ("length", "batch") and doubling > LINEAR else ""
        lines.append([axis, f"{factor}", milliseconds(row), f"{growth:.2f}", f"{doubling:.2f}", flag])
    base = f"B={BASE.batch}, T={BASE.length}, H={BASE.hidden}, L={BASE.layers}, V={BASE.vocab}"
    head = ["grown", "times", "step, ms: median (range)", "time / base", "a doubling", ""]
    return f"## Scaling of jaxgen's training step around {base}\n\n{table(head, lines)}"


# --- time to a loss


def measure_loss(flags: list[str]) -> Row:
    """Run ``train.py``; every evaluation with the wall time since the process started."""
    say(f"time to a loss: {shlex.join(flags)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, open(Path(name, "log"), "w+") as log:
        command = [sys.executable, "train.py", *SHAKESPEARE, *flags, "--run", str(Path(name, "run"))]
        first = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # as on a first start: everything is compiled
        metrics, began = Path(name, "run", "metrics.jsonl"), time.perf_counter()
        process = subprocess.Popen(command, cwd=machine.ROOT, env=first, stdout=log, stderr=log)
        try:
            while process.poll() is None and time.perf_counter() - began < LOSS_SECONDS:
                time.sleep(0.05)
                text = metrics.read_text() if metrics.exists() else ""
                lines = text[: text.rfind("\n") + 1].splitlines()
                rows += [{"wall": time.perf_counter() - began, **json.loads(line)} for line in lines[len(rows) :]]
        finally:
            process.kill()
            process.wait()
        if not rows:
            log.seek(0)
            print(f"train.py {shlex.join(flags)}: no evaluation: {log.read()[-500:].strip()}\n", flush=True)
    return {"flags": flags, "evaluations": rows}


def show_loss(runs: list[Row]) -> str:
    lines = []
    for run in runs:
        found = run["evaluations"]
        reached = next((row for row in found if row["val_loss"] <= LOSS), None)
        best = min(found, key=lambda row: row["val_loss"], default=None)
        when = "not reached" if reached is None else f"{reached['wall']:.1f} s, step {reached['step']:,}"
        least = "–" if best is None else f"{best['val_loss']:.4f} at {best['wall']:.0f} s, step {best['step']:,}"
        lines.append([f"`{shlex.join(run['flags'])}`", when, least])
    head = ["run", f"first evaluation at {LOSS} or less", f"best within {LOSS_SECONDS:.0f} s"]
    return f"""## Wall time from process start to a validation loss

    python train.py {shlex.join(SHAKESPEARE)} ...

{table(head, lines)}
Loss in nats a character on 2,400 seeded windows of 64 characters from a zero state; everything is compiled anew.
"""


# --- all together


def sections(workers: Workers, names: list[str], quick: bool, keep: Callable[[str, Any], None]) -> None:
    """Measure, print and ``get_or_create`` one section after the other."""
    plan = Plan(rounds=3) if quick else Plan()
    brief = replace(plan, seconds=plan.seconds / 2)
    if "grid" in names:
        first = measure_sgemm(workers, brief)
        grid = measure_grid(workers, plan, QUICK_GRID if quick else GRID, keep)
        keep("processes", processes := measure_processes(workers))
        last = measure_sgemm(workers, brief)
        ceiling = best_gflops(first + last)
        keep("sgemm", {"start": first, "end": last, "gflops": ceiling})
        print(show_sgemm(first, last), show_grid(grid, ceiling), show_processes(processes, grid), sep="\n", flush=True)
    if "bfloat16" in names:
        chosen = QUICK_GRID if quick else [sizes for sizes in GRID if (sizes.batch, sizes.length) == ROUNDED_SHAPE]
        keep("bfloat16", rounded := measure_bfloat16(workers, brief, chosen))
        print(show_bfloat16(rounded), flush=True)
    if "decode" in names:
        models = [(256, 1)] if quick else list(itertools.product((128, 256, 512), (1, 2)))
        keep("decode", decoding := measure_decoding(workers, brief, models))
        print(show_decoding(decoding), flush=True)
    if "scaling" in names:
        keep("scaling", scaling := measure_scaling(workers, plan))
        print(show_scaling(scaling), flush=True)
    if "loss" in names:
        keep("loss", runs := [measure_loss(flags) for flags in (QUICK_RUNS if quick else RUNS)])
        print(show_loss(runs), flush=True)


NEEDED = {
    "grid": EXACT,
    "bfloat16": [JAXGEN, *TORCH[1:], *ROUNDED],
    "decode": [JAXGEN, *TORCH],
    "scaling": [JAXGEN],
    "loss": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cells and rounds, and no time to a loss")
    parser.add_argument("--only", nargs="+", choices=list(NEEDED), help="sections to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to this file")
    args = parser.parse_args()
    names = args.only or [name for name in NEEDED if not (args.quick and name == "loss")]
    result: dict[str, Any] = {"machine": machine.facts(), "quick": args.quick}

    def keep(name: str, value: Any) -> None:
        result[name] = value
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process may be left behind
    print(f"# Speed on a CPU\n\n{machine.line(result['machine'])}\n", flush=True)
    try:
        with Workers() as workers:
            workers.start(name for name in SYSTEMS if any(name in NEEDED[section] for section in names))
            sections(workers, names, args.quick, keep)
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
