"""Train the cells side by side: the tables and the picture of ``docs/models.md``, one training run a call.

    python -m benchmarks.models --measure   measure how many steps fit into the time of each configuration
    python -m benchmarks.models --next      train the first missing entry of the plan and save its figures
    python -m benchmarks.models --list      the plan, and which entries are there
    python -m benchmarks.models --write     write the tables and the picture of docs/models.md from what is there

An entry is one configuration with one seed. Its figures are a JSON file in ``benchmarks/results/models``: commit it,
and work continues where it stopped. Stopped by Ctrl-C, an entry leaves nothing and is trained from the beginning next
time. An entry whose settings in the plan have changed since counts as missing. ``JAXGEN_DATA`` names the folder with
``tinyshakespeare.txt``.

Only ``--measure`` needs a quiet machine: the numbers of steps that it writes to ``steps.json`` hold for all seeds.
Those of every cell's own recipe were measured on one machine. On another, ``--measure`` compares a configuration with
that recipe of its cell, so that all tables stand for the time of the first machine.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from jaxgen.cli.common import prepare_process
from jaxgen.errors import JaxgenError
from jaxgen.fsutil import replace_file

if __name__ == "__main__":
    prepare_process()  # before JAX is imported

from jaxgen.cells import CELLS
from jaxgen.tasks.classify.sequences import SEQUENCES

RESULTS = machine.ROOT / "benchmarks" / "results" / "models"
PAGE = machine.ROOT / "docs" / "models.md"
PICTURE = machine.ROOT / "docs" / "pictures" / "memories.png"
SEEDS = (0, 1, 2)
#: The steps of each configuration, in the folder of the results.
STEPS = "steps.json"
#: Seconds for which the speed is measured, after the first call, which compiles.
MEASURED_SECONDS = 4.0
#: The learning rate starts to fall at once in a run of fewer steps.
MIN_STEPS = 10


@dataclass(frozen=True)
class Recipe:
    """How a cell is trained on text: its best block, and the sizes and learning rate for it."""

    block: str = "plain"
    hidden: int = 192
    layers: int = 1
    lr: float = 1e-2
    options: dict[str, Any] = field(default_factory=dict)  # other settings

    def settings(self) -> dict[str, Any]:
        return {"block": self.block, "hidden": self.hidden, "layers": self.layers, "lr": self.lr, **self.options}


#: Sizes and rates were chosen by runs of 25 seconds with seed 0: on a CPU a small model that takes many steps is ahead.
PLAIN = Recipe()
RESIDUAL = Recipe("residual", hidden=128)
GRIFFIN = replace(RESIDUAL, block="griffin")
#: Cells without an entry are trained like an LSTM in no block.
RECIPES: dict[str, Recipe] = {
    "attention": replace(RESIDUAL, lr=6e-3, options={"cell_options": {"window": 64}}),  # of 256 steps: slower
    "elman": replace(PLAIN, hidden=256, lr=2e-3),
    "elman-relu": replace(PLAIN, hidden=256, lr=1e-3),
    "gla": replace(RESIDUAL, lr=8e-3),
    "lru": replace(RESIDUAL, lr=8e-3),
    "mingru": RESIDUAL,
    "minlstm": RESIDUAL,
    "qrnn": RESIDUAL,
    "rglru": RESIDUAL,
    "sru": RESIDUAL,
}
#: Sizes in each block, where several blocks are compared; learning rates and options are those of each cell.
IN_BLOCKS = (PLAIN, RESIDUAL, GRIFFIN)
#: Cells that are compared in every block and size.
COMPARED = ("lstm", "mingru", "rglru", "attention")
#: Cells that are compared on sequences: one of each kind.
ON_SEQUENCES = ("lstm", "slstm", "elman", "attention", "gla", "lru", "mingru", "rglru")
#: Parameters of the larger models and their learning rate, as a share of that of the recipe; their seconds.
SIZES, SIZE_SECONDS = {"0.5M": (500_000, 1.0), "2M": (2_000_000, 0.5)}, 300.0
#: Published losses on tinyshakespeare, nats per character, in the set-up of nanoGPT: a GPU, 256-character windows.
PUBLISHED = {
    "nanoGPT, 10.6M parameters (A. Karpathy)": 1.4697,
    "minGRU (Feng et al. 2024, arXiv:2410.01201)": 1.548,
    "minLSTM (the same)": 1.555,
    "Mamba (the same)": 1.575,
}


@dataclass(frozen=True)
class Entry:
    """A configuration with a seed; ``seconds`` of training, or the steps of the preset; ``parameters`` to come near.

    The name ends with the seed.
    """

    name: str
    table: str
    task: str
    settings: dict[str, Any]
    seconds: float | None = None
    parameters: int | None = None

    def identity(self, seed: bool = True) -> dict[str, Any]:
        """What a saved result must agree with, as JSON has it."""
        settings = {name: value for name, value in self.settings.items() if seed or name != "seed"}
        named = {"task": self.task, "settings": settings, "seconds": self.seconds, "parameters": self.parameters}
        identity: dict[str, Any] = json.loads(json.dumps(named))
        return identity

    @property
    def configuration(self) -> str:
        """The name without the seed."""
        return self.name.rpartition("-")[0]

    def steps(self, folder: Path) -> int | None:
        """The number of steps that was measured for this configuration; None if there is none."""
        found = read_steps(folder).get(self.configuration)
        return int(found["steps"]) if found is not None and found["entry"] == self.identity(seed=False) else None


def plan() -> Iterator[Entry]:
    """All entries in the order in which they are trained: every seed of a table is a round of its own."""
    compared = [cell for cell in COMPARED if cell in CELLS]
    for seed in SEEDS:
        for cell in CELLS:
            yield text_entry("60 s", cell, RECIPES.get(cell, PLAIN), seed, 60.0)
    for seed in SEEDS:
        for cell in ON_SEQUENCES:
            for data in SEQUENCES:
                recipe = RECIPES.get(cell, PLAIN)
                settings = {"data": [data], "preset": "sequences", "cell": cell, "seed": seed}
                settings |= {"block": recipe.block, "layers": 2}
                settings |= {"lr": 1e-3} if cell.startswith("elman") else {}
                yield Entry(f"{data}-{cell}-{seed}", "sequences", "classify", settings)
    for seed in SEEDS:
        for cell in compared:
            own = RECIPES.get(cell, PLAIN)
            for recipe in IN_BLOCKS:
                here = replace(recipe, lr=own.lr, options=own.options)
                yield text_entry("150 s", cell, here, seed, 150.0)
    for seed in SEEDS:
        for size, (parameters, share) in SIZES.items():
            for cell in compared:
                own = RECIPES.get(cell, PLAIN)
                yield text_entry(size, cell, replace(own, lr=own.lr * share), seed, SIZE_SECONDS, parameters)


def text_entry(
    table: str, cell: str, recipe: Recipe, seed: int, seconds: float, parameters: int | None = None
) -> Entry:
    """An entry on tinyshakespeare."""
    settings = {"data": ["tinyshakespeare"], "cell": cell, "seed": seed, "cold_starts": 0.1, **recipe.settings()}
    name = f"{table.replace(' ', '').replace('.', '_')}-{cell}-{recipe.block}-{seed}"
    return Entry(name, table, "language", settings, seconds, parameters)


def read(entry: Entry, folder: Path) -> dict[str, Any] | None:
    """The saved result of an entry; None if there is none, or one of other settings or another number of steps."""
    path = folder / f"{entry.name}.json"
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    if result is None or result["entry"] != entry.identity():
        return None
    return result if entry.seconds is None or entry.steps(folder) == result["steps"] else None


def read_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``--measure`` wrote: configuration -> what it is, its steps, characters per second, machine."""
    path = folder / STEPS
    steps: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return steps


def measure(entries: Sequence[Entry], folder: Path) -> None:
    """Measure the steps of each configuration of text that has none."""
    recipes = {entry.settings["cell"]: entry for entry in plan() if entry.table == "60 s"}
    for entry in entries:
        if entry.seconds is None or entry.steps(folder) is not None:
            continue
        recipe = recipes[entry.settings["cell"]]
        seconds, tokens = seconds_per_step(entry)
        if (first := recipe.steps(folder)) is not None and recipe.seconds is not None:  # on the first machine
            seconds *= recipe.seconds / first / seconds_per_step(recipe)[0]
        steps = max(MIN_STEPS, round(entry.seconds / seconds))
        speed = round(steps * tokens / entry.seconds)
        print(f"{entry.configuration}: {steps:,} steps, {speed:,} characters/s", flush=True)
        found = {"entry": entry.identity(seed=False), "steps": steps, "tokens_per_second": speed}
        content = read_steps(folder) | {entry.configuration: {**found, "machine": machine.facts()}}
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / STEPS, (json.dumps(content, indent=1) + "\n").encode())


def settings_of(entry: Entry, run: str) -> Any:
    """The settings of a run, with the width that its number of parameters needs.

    All cells are trained with AdamW, without weight decay.
    """
    from jaxgen.tasks.registry import DATA

    config = DATA[entry.task].Config(
        **{"optimizer": "adamw", "weight_decay": 0.0, **entry.settings, "sample_every": 0, "run": run}
    )
    if entry.parameters is not None:
        config = config.model_copy(update={"hidden": nearest_hidden(config, entry.parameters)})
    return config


def seconds_per_step(entry: Entry) -> tuple[float, int]:
    """The median time of a step, and its tokens."""
    from jaxgen.trainer.run import trial

    trainer = trial(settings_of(entry, "none"))
    trainer.time_call(0)  # compiles
    began, times = time.perf_counter(), [trainer.time_call(0)]
    while time.perf_counter() - began < MEASURED_SECONDS:
        times.append(trainer.time_call(0))
    return statistics.median(times), trainer.data.tokens_per_step


def train(entry: Entry, steps: int | None) -> dict[str, Any]:
    """Train an entry in this process, for ``steps`` steps or those of its preset, and return its figures."""
    from jaxgen.trainer.callbacks import Evaluated
    from jaxgen.trainer.run import start

    def show(event: Any) -> None:
        if isinstance(event, Evaluated):
            print(f"step {event.row['step']:,}: {event.row['val_loss']:.4f} nats", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(entry, f"{folder}/run")
        if steps is not None:
            config = config.model_copy(update={"steps": steps, "eval_every": steps})  # evaluated once, at the end
        trainer = start(config, show)
        finished = trainer.train()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "entry": entry.identity(),
            "hidden": config.hidden,
            "parameters": trainer.resolved["parameters"],
            "devices": trainer.devices,
            "form": trainer.resolved["model"].get("form"),
            "steps": finished.step,
            "train_seconds": round(trainer.progress.seconds, 2),
            "peak_memory_mb": round(memory / (2**20 if sys.platform == "darwin" else 2**10)),
            "figures": {
                name: value for name, value in finished.report.items() if name.endswith(("_loss", "_accuracy"))
            },
            "data": trainer.data.fingerprint(),
        }


def nearest_hidden(config: Any, parameters: int) -> int:
    """The multiple of 32 units with which the model comes nearest to so many ``parameters``."""
    import jax

    from jaxgen.tasks.registry import DATA, objective

    data = DATA[config.task].load(config)

    def size(hidden: int) -> int:
        options = data.model_options() | {"hidden": hidden}
        shapes = jax.eval_shape(objective(config.task, config.model).build(**options).init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    hidden = 32
    while size(hidden + 32) < parameters:
        hidden += 32
    return min(hidden, hidden + 32, key=lambda units: abs(size(units) - parameters))


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """The mean, and the standard deviation of several values."""
    spread = f" ± {format(statistics.stdev(values), form)}" if len(values) > 1 else ""
    return format(statistics.mean(values), form) + spread


def text_table(entries: Sequence[Entry], folder: Path) -> str:
    """A table of entries on text in Markdown, a row for each configuration, the lowest loss first."""
    measured, rows, configurations = read_steps(folder), dict[str, list[dict[str, Any] | None]](), dict[str, str]()
    for entry in entries:
        settings = {name: value for name, value in entry.settings.items() if name not in ("data", "seed")}
        configurations[json.dumps(settings)] = entry.configuration
        rows.setdefault(json.dumps(settings), []).append(read(entry, folder))
    lines, waiting = [], []
    for key, results in rows.items():
        settings, found = json.loads(key), [result for result in results if result is not None]
        name = f"| `{settings['cell']}` | {settings['block']} "
        if not found:
            waiting.append(f"`{settings['cell']}` ({settings['block']})")
            continue
        carried, *windows = [
            [result["figures"][f"{split}_loss"] for result in found] for split in ("val", "windows_64", "windows_256")
        ]
        losses = [mean_and_spread(values, ".3f") for values in (carried, *windows)]
        speed = measured[configurations[key]]["tokens_per_second"]
        memory = statistics.median(result["peak_memory_mb"] for result in found)
        numbers = [f"{number:,.0f}" for number in (speed, memory, found[0]["parameters"])]
        model = f"{settings['layers']}x{found[0]['hidden']}, {settings['lr']:g}"
        model += "".join(f", {name} {value}" for name, value in settings.get("cell_options", {}).items())
        line = name + "| " + " | ".join([model, *losses, *numbers, f"{len(found)} of {len(results)}"]) + " |"
        lines.append((statistics.mean(carried), line))
    shown = [*HEAD, *(line for _, line in sorted(lines))] if lines else []
    return "\n".join([*shown, *(["", f"Not measured yet: {', '.join(waiting)}."] if waiting else [])]).strip()


HEAD = (
    "| cell | block | layers x units, lr | state carried | 64-char windows | 256-char windows | characters/s "
    "| peak memory, MB | parameters | seeds |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def lengths_of(figures: Mapping[str, float]) -> dict[int, float]:
    """The accuracy of each length that was tested."""
    return {int(found[1]): figures[name] for name in figures if (found := re.fullmatch(r"length_(\d+)_accuracy", name))}


def sequence_table(entries: Sequence[Entry], folder: Path) -> str:
    """Accuracies in percent of each cell on each set, at the longest trained length and at the longest of all."""
    found: dict[tuple[str, str], list[dict[int, float]]] = {}
    for entry in entries:
        if (result := read(entry, folder)) is not None:
            key = entry.settings["cell"], entry.settings["data"][0]
            found.setdefault(key, []).append(lengths_of(result["figures"]))

    def cell_of(cell: str, name: str) -> str:
        runs, chosen = found.get((cell, name), []), SEQUENCES[name]
        lengths = (chosen.trained, max(chosen.tested)) if runs else ()
        return ", ".join(mean_and_spread([100 * run[n] for run in runs], ".0f") for n in lengths) or "-"

    lines = ["| cell | " + " | ".join(f"`{name}`" for name in SEQUENCES) + " |", "|---" * (1 + len(SEQUENCES)) + "|"]
    lines += [f"| `{cell}` | " + " | ".join(cell_of(cell, name) for name in SEQUENCES) + " |" for cell in ON_SEQUENCES]
    return "\n".join(lines)


def draw(entries: Sequence[Entry], folder: Path, path: Path) -> bool:
    """Draw the accuracy against the length for each set; a line is the mean over seeds. Nothing without results."""
    from jaxgen.plots import figure_file, style_axes, theme, write_title

    look = theme()

    results = [(entry, result) for entry in entries if (result := read(entry, folder)) is not None]
    if not results:
        return False
    with figure_file(path, 12, 7) as figure:
        write_title(figure, "Accuracy against length; dotted: the longest in training")
        panels, lines = figure.subplots(2, 3).flat, {}
        for (name, chosen), axes in zip(SEQUENCES.items(), panels):
            for number, cell in enumerate(ON_SEQUENCES):
                runs = [
                    lengths_of(result["figures"])
                    for entry, result in results
                    if (entry.settings["cell"], entry.settings["data"]) == (cell, [name])
                ]
                if runs:
                    means = [statistics.mean(run[n] for run in runs) for n in chosen.tested]
                    style = {"color": look.cycle[number], "marker": "osD^v<>*"[number], "ms": 4}
                    (lines[cell],) = axes.plot(chosen.tested, means, **style)
            axes.axvline(chosen.trained, color=look.grey, lw=1, ls=":")
            axes.set_xscale("log", base=2)
            axes.set_xticks(chosen.tested, map(str, chosen.tested))
            axes.set_ylim(0, 1.03)
            axes.set_title(name, fontsize=11, color=look.ink)
            axes.set_xlabel("length")
            axes.set_ylabel("accuracy (share)")
            style_axes(axes, "both")
        legend = next(panels)
        legend.axis("off")
        trained = {cell: lines[cell] for cell in ON_SEQUENCES if cell in lines}
        legend.legend(trained.values(), trained, loc="center", frameon=False, ncols=2, labelcolor=look.ink)
    return True


def write(page: Path, picture: Path, folder: Path) -> None:
    """Write the tables between the marks of the page, and draw the picture."""
    entries = list(plan())
    text = page.read_text(encoding="utf-8")
    machines = machine.lines(each["machine"] for each in read_steps(folder).values())
    for table in dict.fromkeys(entry.table for entry in entries):
        mine = [entry for entry in entries if entry.table == table]
        body = (sequence_table if table == "sequences" else text_table)(mine, folder)
        text = between(text, table, body)
    published = "\n".join(f"| {name} | {loss:g} |" for name, loss in PUBLISHED.items())
    text = between(text, "published", f"| model | loss |\n|---|---|\n{published}")
    text = between(text, "machines", "\n".join(f"- {each}" for each in machines) or "No entry is there yet.")
    mine = [entry for entry in entries if entry.table == "sequences"]
    shown = f"![accuracy against length](pictures/{picture.name})"
    text = between(text, "picture", shown if draw(mine, folder, picture) else "No entry is there yet.")
    replace_file(page, text.encode())


def between(text: str, mark: str, body: str) -> str:
    """``text`` with ``body`` between the marks of this name."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"The page lacks the lines {begin.strip()} and {end}.")
    head, rest = text.split(begin)
    return f"{head}{begin}{body}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--measure", action="store_true", help="measure the steps of every configuration that has none")
    what.add_argument("--next", action="store_true", help="train the first missing entry")
    what.add_argument("--list", action="store_true", help="show the plan")
    what.add_argument("--write", action="store_true", help="write docs/models.md")
    parser.add_argument("--only", default="", help="only entries whose names contain this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--steps", type=int, help="to try out the program: the steps of a run on text")
    given = parser.parse_args()
    if given.write:
        write(given.page, given.picture, given.results)
        return
    entries = [entry for entry in plan() if given.only in entry.name]
    missing = [entry for entry in entries if read(entry, given.results) is None]
    if given.list:
        for entry in entries:
            print("missing" if entry in missing else "done   ", entry.name)
        print(f"{len(entries) - len(missing)} of {len(entries)} are there.")
        return
    facts = machine.facts()
    if given.results.resolve() == RESULTS and (facts["commit"] or "+").endswith("+"):
        raise SystemExit("Commit the changes of jaxgen/ first: a result names the commit that it was made with.")
    if given.measure:
        measure(entries, given.results)
        return
    if not missing:
        print("Nothing is missing.")
        return
    if given.results.resolve() == RESULTS and given.steps is not None:
        raise SystemExit("Give --results another folder: figures of --steps are not those of the plan.")
    entry = missing[0]
    steps = None
    if entry.seconds is not None:
        steps = entry.steps(given.results)
        if steps is None:
            raise SystemExit(f"The steps of {entry.configuration} are not known: call --measure on a quiet machine.")
        steps = steps if given.steps is None else given.steps
    print(f"{entry.name}: {entry.settings}", flush=True)
    result = {**train(entry, steps), "machine": facts}
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"{entry.name}.json"
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{path}\n{len(missing) - 1} entries are missing.")


if __name__ == "__main__":
    try:
        main()
    except JaxgenError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as stopped:
        print("Stopped. Nothing of this entry is kept; --next trains it from the beginning.", file=sys.stderr)
        raise SystemExit(getattr(stopped, "exit_code", 130)) from None
