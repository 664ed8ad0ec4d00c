"""Train the rows of ``docs/records.md``, each by the command that a user would type, one run a call.

    python -m benchmarks.records --next                  train the first missing run of the plan and save its figures
    python -m benchmarks.records --next --only default   the same for one row
    python -m benchmarks.records --list                  the plan, and which runs are there
    python -m benchmarks.records --write                 write the tables of docs/records.md from what is there

A run is a row with a seed. Its figures are a JSON file in ``benchmarks/results/records``: commit it, and work continues
where it stopped. A run whose command in the plan has changed since counts as missing; delete the files of a preset that
has changed. ``JAXGEN_DATA`` names the folder with the data. Runs that other rows score are kept in ``runs/records``.
Seconds are wall time from the start of the process to its end, on all cores, with nothing compiled before; they are not
kept if other processes used the processor meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.models import between, mean_and_spread
from jaxgen.errors import counted
from jaxgen.fsutil import replace_file

RESULTS = machine.ROOT / "benchmarks" / "results" / "records"
PAGE = machine.ROOT / "docs" / "records.md"
RUNS = Path("runs") / "records"  # from the root of the project, where the commands run
SEEDS = (0, 1, 2)
#: The splits whose losses are reported.
LOSSES = {"val": "state carried", "windows_64": "64-char windows", "windows_256": "256-char windows"}
#: Characters of a step of the presets with 64-character windows.
TOKENS_PER_STEP = 32 * 64
SHAKESPEARE, PENN = "--data tinyshakespeare", "--data ptb --level word --split-on whitespace"
#: What the rows of ``ablation`` add to the preset ``base``.
ABLATION = {
    "base": "",
    "no layer normalisation": "--cell lstm",
    "no dropout": "--dropout 0",
    "no weight decay": "--weight-decay 0",
    "no cold starts": "--cold-starts 0",
    "256 units": "--hidden 256",
    "learning rate 0.004": "--lr 0.004",
    "constant rate": "--schedule constant",
    "no clipping": "--clip 0",
    "zoneout": "--zoneout 0.1",
    "recurrent dropout": "--recurrent-dropout 0.1",
    "weight dropout": "--weight-dropout 0.2",
    "locked dropout": "--locked-dropout",
    "dropout of embedding rows": "--embed-row-dropout 0.02",
    "AR and TAR": "--ar 1 --tar 1",
    "label smoothing": "--label-smoothing 0.02",
    "L2": "--optimizer-options l2 1e-6",
    "mixture of two softmaxes": "--softmaxes 2",
    "tied embedding": "--tie",
    "capped input gate": "--cell capped-lstm",
}
#: Runs that are scored: name -> flags of ``train.py``.
KEPT = {
    "base": f"{SHAKESPEARE} --preset base",
    "best": f"{SHAKESPEARE} --preset best",
    "ngram": f"{SHAKESPEARE} --model ngram --order 7",
    "words": f"{PENN} --preset words",
}
#: Flags of ``jaxgen score``, where {model} is ``base`` or ``best``. The numbers were fitted on the held-out text of
#: ``base`` and the 7-gram, trained with ``--holdout 0.03`` and seed 0: ``jaxgen score --mix base ngram --mix-fit
#: --validation --adapt --fit``.
READING = {
    "{model}": "--run {{{model}}}",
    "{model}, 7-gram": "--mix {{{model}}}:0.6638 {{ngram}}:0.3362",
    "{model}, adapted": "--run {{{model}}} --adapt --adapt-rate 0.002 --adapt-decay 0.001",
    "{model}, 7-gram, adapted": (
        "--mix {{{model}}}:0.7193 {{ngram}}:0.2807 --adapt --adapt-rate 0.004 --adapt-decay 0.001 --temperature 0.9"
    ),
}
SCORED = {
    name.format(model=model): flags.format(model=model) for model in ("base", "best") for name, flags in READING.items()
}
#: The same for the words of the Penn Treebank. The numbers were chosen on the first 1,000 lines of its validation text.
WORDS = {
    "test": "ptb-test --run {words}",
    "test, cache": ("ptb-test --run {words} --cache 1000 --cache-weight 0.15 --cache-sharpness 1 --temperature 1.05"),
    "test, cache, adapted": (
        "ptb-test --run {words} --cache 1000 --cache-weight 0.1 --cache-sharpness 1 "
        "--adapt --adapt-rate 0.001 --adapt-decay 0.005"
    ),
}
#: Optimizers at equal steps, with the learning rates that were best on held-out text.
OPTIMIZERS = {
    "adamw": "--lr 0.01",
    "muon": "--lr 0.01",
    "soap": "--lr 0.003",
    "ademamix": "--lr 0.003",
    "adopt": "--lr 0.003",
    "lion": "--lr 0.001",
    "nadamw": "--lr 0.01",
    "schedule-free": "--lr 0.01 --schedule constant",
}
#: Models on which they are compared.
CELLS = {
    "lstm": "--cell lstm",
    "layernorm-lstm": "--cell layernorm-lstm",
    "gru": "--cell gru",
    "mingru block": "--cell mingru --block residual",
}


#: Units, with a learning rate that suits them, and steps of the rows of ``scaling``.
WIDTHS = {64: 0.01, 128: 0.01, 256: 0.01, 512: 0.006}
BUDGETS = (275, 1100, 4400)
#: Tokens of a window of the rows of ``windows``, and the rows of a batch, so that each step reads as many tokens.
WINDOWS = {16: 128, 32: 64, 64: 32, 128: 16, 256: 8}
#: Other data: name -> flags of ``train.py``.
DATA = {
    "python-docs": "--data python-docs",
    "AG News titles": "--data ag_news",
    "names": f"--data {RUNS / 'names.txt'} --documents line",
}
#: The presets, and the settings that each had until November 2026, in version 0.1.
OLD = "--cell lstm --optimizer adamw --lr 0.004 --weight-decay 0 --cold-starts 0"
PRESETS = {
    "tiny": "--preset tiny",
    "tiny of 0.1": f"--preset tiny {OLD}",
    "small": "--preset small",
    "small of 0.1": f"--preset small {OLD} --steps 1200",
    "base": "--preset base",
    "base of 0.1": f"--preset base {OLD} --steps 1800",
}


@dataclass(frozen=True)
class Row:
    """A row of a table: ``flags`` of ``train.py``, or of ``jaxgen score`` after ``data``, for each of ``seeds``."""

    table: str
    name: str
    flags: str
    seeds: tuple[int, ...] = SEEDS
    scores: bool = False
    data: str = SHAKESPEARE

    @property
    def key(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.table}-" + re.sub(r"[^\w-]+", "-", self.name)

    @property
    def command(self) -> str:
        """The command without the seed and the folder of the run."""
        return " ".join(filter(None, ("jaxgen score" if self.scores else "python train.py", self.data, self.flags)))

    @property
    def kept(self) -> str | None:
        """The name of the run if other rows score it."""
        return next((name for name, flags in KEPT.items() if self.command == f"python train.py {flags}"), None)


def plan() -> list[Row]:
    """All rows, in the order in which they are trained."""
    rows = [
        Row("goals", "default", ""),
        Row("goals", "base", "--preset base"),
        Row("goals", "best", "--preset best"),
        Row("goals", "7-gram", "--model ngram --order 7", seeds=(0,)),
    ]
    rows += [Row("ablation", name, f"--preset base {flags}".strip()) for name, flags in ABLATION.items() if flags]
    for cell, model in CELLS.items():
        rows += [
            Row("optimizers", f"{cell}: {name}", f"{model} --optimizer {name} {flags}")
            for name, flags in OPTIMIZERS.items()
        ]
    for width, rate in WIDTHS.items():
        sized = f"--hidden {width} --lr {rate} --dropout 0.1"
        rows += [Row("scaling", f"{width} units, {steps:,} steps", f"{sized} --steps {steps}") for steps in BUDGETS]
    for length, size in WINDOWS.items():
        rows.append(Row("windows", f"{length} characters", f"--seq-len {length} --batch-size {size}"))
    rows += [Row("reading", name, flags, scores=True, data="--validation") for name, flags in SCORED.items()]
    rows.append(Row("words", "validation", "--preset words", data=PENN))
    rows += [Row("words", name, flags, scores=True, data="") for name, flags in WORDS.items()]
    for data, where in DATA.items():
        rows += [Row("elsewhere", f"{data}: {name}", flags, data=where) for name, flags in PRESETS.items()]
    return rows


def write_names(path: Path, number: int = 8000) -> None:
    """Write a list of made-up names, one a line: two to four syllables each, the same list every time."""
    pick = random.Random(0)
    starts = (*"bdfghjklmnprstv", "br", "cr", "dr", "gr", "kl", "tr")
    vowels, ends = (*"aeiou", "ai", "ea", "ie"), ("", "", "n", "r", "l", "s", "m", "th")
    names: dict[str, None] = {}  # in the order in which they were made
    while len(names) < number:
        syllables = [pick.choice(starts) + pick.choice(vowels) for _ in range(pick.randint(2, 4))]
        names["".join(syllables).capitalize() + pick.choice(ends)] = None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(f"{name}\n" for name in names).encode())


def path_of(folder: Path, row: Row, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{row.key}-{seed}.json"


def read(folder: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """The saved figures of a run; None if there are none, or if they are of another command."""
    path = path_of(folder, row, seed)
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return result if result is not None and result["command"] == row.command else None


def run_command(command: str) -> tuple[str, dict[str, float]]:
    """Run a command of this package in a process of its own; its standard output, and how long it took.

    ``others`` is how many processors other processes kept busy meanwhile. With a tenth of one or more, there are no
    ``seconds``.
    """
    words = [sys.executable, *(["-m", "jaxgen"] if command.startswith("jaxgen") else []), *shlex.split(command)[1:]]
    first = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # as on a first start: everything is compiled

    def busy_elsewhere() -> float | None:
        own, everyone = resource.getrusage(resource.RUSAGE_CHILDREN), machine.cpu_seconds()
        return None if everyone is None else everyone - own.ru_utime - own.ru_stime

    before, began = busy_elsewhere(), time.perf_counter()
    done = subprocess.run(words, cwd=machine.ROOT, check=True, stdout=subprocess.PIPE, text=True, env=first)
    seconds, after = time.perf_counter() - began, busy_elsewhere()
    if before is None or after is None:
        return done.stdout, {"seconds": round(seconds, 1)}
    others = (after - before) / seconds
    return done.stdout, {"others": round(others, 2), **({"seconds": round(seconds, 1)} if others < 0.1 else {})}


def train(command: str, seed: int, run: Path) -> dict[str, Any]:
    """Train a run in a new folder, and return its figures."""
    shutil.rmtree(machine.ROOT / run, ignore_errors=True)
    names = machine.ROOT / RUNS / "names.txt"
    if str(RUNS / "names.txt") in command and not names.exists():
        write_names(names)
    _, took = run_command(f"{command} --seed {seed} --run {shlex.quote(str(run))}")
    folder = machine.ROOT / run
    report = json.loads((folder / "report.json").read_text())
    resolved = json.loads((folder / "config.json").read_text())["resolved"]
    return {
        **took,
        "steps": report["step"],
        "best_step": report["best_step"],
        "losses": {name: report[f"{name}_loss"] for name in LOSSES if f"{name}_loss" in report},
        "parameters": resolved["parameters"],
        "data": resolved["data"],
    }


def score(row: Row, seed: int) -> dict[str, Any]:
    """Score the kept runs of a row, which are trained first if they are missing, and return the figures."""
    kept = {}
    for name in re.findall(r"{(\w+)}", row.flags):
        run = kept[name] = RUNS / f"{name}-{seed}"
        if not (machine.ROOT / run / "report.json").exists():
            train(f"python train.py {KEPT[name]}", seed, run)
    told, took = run_command(row.command.format(**kept) + " --json")
    scored = json.loads(told)
    scored["name"] = Path(scored["name"]).name  # where the data lie differs between machines
    return {**took, "losses": {"val": scored["nats_per_token"]}, "told": scored}


def measure(row: Row, seed: int, more: str = "") -> dict[str, Any]:
    """The figures of a run."""
    if row.scores:
        figures = score(row, seed)
    elif row.kept:
        figures = train(f"{row.command} {more}", seed, RUNS / f"{row.kept}-{seed}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = train(f"{row.command} {more}", seed, Path(folder) / "run")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "command": row.command,
        "seed": seed,
        **figures,
        "peak_memory_mb": round(memory / (2**20 if sys.platform == "darwin" else 2**10)),
        "machine": machine.facts(),
    }


def table(rows: Sequence[Row], folder: Path) -> str:
    """A table in Markdown with a line for each row: losses as mean and standard deviation over the seeds.

    For words, perplexities stand in place of the losses.
    """
    words = rows[0].table == "words"
    shown = {"val": "perplexity"} if words else LOSSES
    columns = [*shown.values(), "best step", "seconds", "parameters", "peak memory, MB", "seeds", "command"]
    lines, missing = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"], 0
    for row in rows:
        found = [result for seed in row.seeds if (result := read(folder, row, seed)) is not None]
        if not found:
            missing += 1
            continue
        all_losses = ([r["losses"][name] for r in found if name in r["losses"]] for name in shown)
        if words:
            all_losses = (list(map(math.exp, values)) for values in all_losses)
        losses = [mean_and_spread(values, ".1f" if words else ".3f") if values else "-" for values in all_losses]
        best = {"last" if r["best_step"] == r["steps"] else f"{r['best_step']:,}" for r in found if "steps" in r}
        timed = [result["seconds"] for result in found if "seconds" in result]
        memory = statistics.median(result["peak_memory_mb"] for result in found)
        parameters = f"{found[0]['parameters']:,}" if "parameters" in found[0] else "-"
        numbers = [", ".join(sorted(best)) or "-", f"{statistics.median(timed):.0f}" if timed else "-"]
        numbers += [parameters, f"{memory:,.0f}", f"{len(found)} of {len(row.seeds)}"]
        lines.append("| " + " | ".join([row.name, *losses, *numbers, f"`{row.command}`"]) + " |")
    if missing == len(rows):
        lines = []
    if missing:
        lines += ["", f"Not measured yet: {counted(missing, 'row')} (`python -m benchmarks.records --list`)."]
    return "\n".join(lines).strip()


def fitted_line(rows: Sequence[Row], folder: Path) -> str:
    """A power law through the runs that no run with less work beats: loss against 6 x parameters x tokens, in FLOP."""
    points = []
    for row in rows:
        found = [result for seed in row.seeds if (result := read(folder, row, seed)) is not None]
        if found:
            work = 6 * found[0]["parameters"] * found[0]["steps"] * TOKENS_PER_STEP
            points.append((work, statistics.mean(result["losses"]["val"] for result in found)))
    points.sort()
    best = [(work, loss) for i, (work, loss) in enumerate(points) if all(loss < other for _, other in points[:i])]
    if len(best) < 3:
        return "Too few runs are there for a line."
    work, loss = np.log(best).T
    slope, start = np.polyfit(work, loss, 1)
    error = np.exp(np.abs(loss - start - slope * work).max()) - 1
    return (
        f"Through the {len(best)} of {len(points)} runs that no run with less work beats, the loss is about "
        f"{np.exp(start):.2f} · FLOP^{slope:.3f},\nwith an error of at most {error:.1%}: "
        f"four times the work lowers it by {1 - 4**slope:.1%}."
    )


def write(page: Path, folder: Path) -> None:
    """Write the tables between the marks of the page."""
    text, rows = page.read_text(encoding="utf-8"), plan()
    text = between(text, "line", fitted_line([row for row in rows if row.table == "scaling"], folder))
    for name in dict.fromkeys(row.table for row in rows):
        text = between(text, name, table([row for row in rows if row.table == name], folder))
    found = [result for row in rows for seed in row.seeds if (result := read(folder, row, seed)) is not None]
    machines = machine.lines(each["machine"] for each in found)
    text = between(text, "machines", "\n".join(f"- {each}" for each in machines) or "No run is there yet.")
    replace_file(page, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--next", action="store_true", help="train the first missing run")
    what.add_argument("--list", action="store_true", help="show the plan")
    what.add_argument("--write", action="store_true", help="write docs/records.md")
    parser.add_argument("--only", default="", help="only rows whose table or name contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--flags", default="", help="to try out the program: more flags of train.py")
    given = parser.parse_args()
    if given.write:
        write(given.page, given.results)
        return
    runs = [(row, seed) for row in plan() for seed in row.seeds if given.only in f"{row.table} {row.name}"]
    runs.sort(key=lambda run: run[1])  # every seed of all rows is a round of its own
    missing = [(row, seed) for row, seed in runs if read(given.results, row, seed) is None]
    if given.list:
        for row, seed in runs:
            print("missing" if (row, seed) in missing else "done   ", row.table, f"{row.name!r}", "seed", seed)
        print(f"{len(runs) - len(missing)} of {len(runs)} are there.")
        return
    if not missing:
        print("Nothing is missing.")
        return
    official = given.results.resolve() == RESULTS
    if official and given.flags:
        raise SystemExit("Give --results another folder: figures with other flags are not those of the plan.")
    if official and (machine.commit() or "+").endswith("+"):
        raise SystemExit("Commit the changes of jaxgen/ first: a result names the commit that it was made with.")
    row, seed = missing[0]
    print(f"{row.table}, {row.name}, seed {seed}: {row.command}", flush=True)
    result = measure(row, seed, given.flags)
    given.results.mkdir(parents=True, exist_ok=True)
    replace_file(path_of(given.results, row, seed), (json.dumps(result, indent=1) + "\n").encode())
    print(f"{len(missing) - 1} runs are missing.")


if __name__ == "__main__":
    main()
