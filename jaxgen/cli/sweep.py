"""``jaxgen sweep``: trains runs over several settings and shows which is best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import left_aligned, log, write_out
from jaxgen.cli.flags import Command, Excludes, Flag, Needs, Rules, check_rules, flag_value, is_written, parse
from jaxgen.cli.train import DEFAULT_TASK, parse_seeds, registry_names
from jaxgen.errors import UsageError, choose, flag_of

if TYPE_CHECKING:
    from jaxgen.runs.config import TrainConfig
    from jaxgen.trainer.callbacks import Event
    from jaxgen.trainer.sweep import Space, Sweep

DESCRIPTION = """Train a run for every combination of settings, or for some, and list them by the figure that decides.
All flags of train.py work; each trial is a run in the folder of the sweep.

    jaxgen sweep --data book.txt --grid lr=1e-3,2e-3,4e-3 hidden=128,256
    jaxgen sweep --data book.txt --random lr=1e-4..1e-2 dropout=0..0.5 --trials 20 --halving 3
    jaxgen sweep classify --data reviews.csv --text-column text --label-column label --grid cell=gru,lstm --seeds 3
    jaxgen sweep --run runs/sweep-1      continues a sweep that was stopped, or shows it again"""
RULES: Rules = (
    Excludes("--grid", ("--random",), "tries all combinations"),
    Needs("--trials", ("--random",), "is the number of draws"),
    Needs("--optuna", ("--random",), "chooses values in ranges"),
    Excludes("--halving", ("--optuna",), "needs all trials at its start"),
)
#: The flags of a sweep that are not settings of its trials.
OWN = ("grid", "random", "trials", "optuna", "halving", "seeds")
#: Settings that cannot be searched over, and why.
FIXED = {
    "run": "it is the folder of the sweep",
    "seed": "--seeds trains each trial with several",
    "minutes": "it depends on how busy the machine is",
    "log": "it changes no result",
    "devices": "it changes no result but rounding",
    "sample_every": "it changes no result",
}
#: Draws, if ``--trials`` is not given.
TRIALS = 10


def sweep(args: list[str]) -> None:
    """Parse ``args``, train what is not trained yet, and print the trials."""
    from jaxgen.runs.collection import is_sweep
    from jaxgen.runtime import need_backend
    from jaxgen.tasks.registry import DATA
    from jaxgen.trainer.sweep import Sweep

    task = DEFAULT_TASK
    named = bool(args) and not args[0].startswith("-")
    if named:
        task = choose(args.pop(0), DATA, "task")
    config, extra = _parse(DATA[task].Config, args)
    need_backend()
    show = Display()
    try:
        folder = config.run
        if folder is not None and is_sweep(folder):
            found = Sweep.open(Path(folder), show.event)
            if named or set(config.model_fields_set) - {"run"} or any(extra[name] for name in OWN):
                _check_same(found, config, extra, args)
        else:
            found = Sweep.create(folder, _plan(config, extra, args), show.event)
            log(f"The folder of the sweep: {found.folder}")
        rows = found.run()
    finally:
        show.close()
    if extra["json"]:
        write_out("".join(json.dumps(row) + "\n" for row in rows))
        return
    write_out(table(rows))
    log(f"The picture is {found.folder / 'sweep.png'}.")


main = Command(sweep)


def _parse(kind: type[TrainConfig], args: Sequence[str]) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of the trials, and the flags of the sweep."""
    from jaxgen.runs.config import read_toml, validate

    file, preset = flag_value(args, "--config"), flag_value(args, "--preset")
    values = {} if file is None else read_toml(file)
    default = validate(kind, {**values, **({} if preset is None else {"preset": preset})}, f"{file}: " if file else "")
    config, extra = parse(
        kind,
        args,
        prog="jaxgen sweep [TASK]",
        description=DESCRIPTION,
        extra=sweep_flags(),
        default=default,
        names=registry_names(kind),
        common=(*OWN, "json", "data", "preset", "steps", "run"),
    )
    check_rules(RULES, {f"--{name}" for name in OWN if extra[name] not in (None, (), False)})
    return config, extra


def sweep_flags() -> list[Flag]:
    """The flags of a sweep."""
    flag = partial(Flag, group="Sweep")
    return [
        flag(
            "grid",
            tuple[str, ...],
            (),
            "Train every combination of these values of settings, for example: lr=1e-3,2e-3 hidden=128,256.",
            "NAME=A,B,... ...",
        ),
        flag(
            "random",
            tuple[str, ...],
            (),
            "Train --trials combinations that are drawn, with --seed, from ranges (lr=1e-4..1e-2) or from values "
            "(cell=gru,lstm). A range whose end is ten times its beginning or more is drawn from evenly on a "
            "logarithmic scale.",
            "NAME=LOW..HIGH ...",
        ),
        flag("trials", int | None, None, f"With --random: how many combinations. Default: {TRIALS}.", "N"),
        flag(
            "optuna",
            bool,
            False,
            "With --random: let Optuna choose each combination from the results so far. Needs jaxgen[optuna].",
            negatable=False,
        ),
        flag(
            "halving",
            int | None,
            None,
            "Successive halving: train all trials for a few steps, continue one in N of them for N times the steps, "
            "and so on, until one has all --steps. Schedules are those of all steps.",
            "N",
        ),
        flag(
            "seeds",
            str | None,
            None,
            "Train each trial with so many seeds from --seed on, or with these (0,1,2), in one compiled call where "
            "possible. Their mean decides.",
            "N|A,B,...",
        ),
        flag("json", bool, False, "Print a JSON object for each trial.", negatable=False),
        Flag(
            "config",
            str | None,
            None,
            "Read settings from a file; they are named as the flags are.",
            "FILE.toml",
            group="General",
        ),
    ]


def _plan(config: TrainConfig, extra: Mapping[str, Any], args: Sequence[str]) -> Any:
    """The plan of a new sweep. Raises ``UsageError``."""
    from jaxgen.trainer.seeds import given_settings
    from jaxgen.trainer.sweep import MAX_TRIALS, Plan, draws, grid

    if config.minutes is not None:
        raise UsageError("--minutes depends on how busy the machine is, and trials need the same steps: give --steps.")
    if not extra["grid"] and not extra["random"]:
        raise UsageError("A sweep needs settings to search over: give --grid lr=1e-3,2e-3, or --random lr=1e-4..1e-2.")
    if extra["halving"] is not None and extra["halving"] < 2:
        raise UsageError(f"--halving is {extra['halving']}: give 2 or more.")
    number = TRIALS if extra["trials"] is None else extra["trials"]
    if not 1 <= number <= MAX_TRIALS:
        raise UsageError(f"--trials is {number}: give a number from 1 to {MAX_TRIALS:,}.")
    base = _without(args, [*OWN, "json", "run"])
    kind, seed = type(config), config.seed
    spaces: list[Space] = []
    if extra["grid"]:
        named = {
            name: [_value(kind, base, name, word) for word in words] for name, words in _named(kind, extra["grid"])
        }
        total = 1
        for values in named.values():
            total *= len(values)
        if total > MAX_TRIALS:
            raise UsageError(
                f"--grid has {total:,} combinations: give at most {MAX_TRIALS:,}, or draw some with --random."
            )
        trials = grid(named)
    else:
        spaces = [_space(kind, base, name, words) for name, words in _named(kind, extra["random"])]
        trials = [] if extra["optuna"] else draws(spaces, number, seed)
    for name in {name for values in trials for name in values} | {space.name for space in spaces}:
        if is_written(args, flag_of(name)):
            raise UsageError(f"{flag_of(name)} is given as a flag and searched over: leave one of them out.")
    if extra["halving"] is not None and any("steps" in values or "epochs" in values for values in trials):
        raise UsageError("--halving decides the steps of a trial: do not search over --steps or --epochs.")
    seeds = extra["seeds"]
    return Plan(
        task=config.task,
        config=given_settings(config),
        seeds=[seed] if seeds is None else parse_seeds(seeds, seed),
        several=seeds is not None,
        halving=extra["halving"],
        spaces=spaces,
        number=number if extra["optuna"] else len(trials),
        optuna=extra["optuna"],
        trials=trials,
    )


def _check_same(found: Sweep, config: TrainConfig, extra: Mapping[str, Any], args: Sequence[str]) -> None:
    """Raise ``UsageError`` unless the command is the one that began the sweep."""
    asked = _plan(config, extra, args)
    begun = found.plan
    first = begun.trials[:0] if begun.optuna else begun.trials
    same = asked.model_copy(update={"trials": asked.trials, "results": []}).model_dump(mode="json")
    known = begun.model_copy(update={"trials": first, "results": []}).model_dump(mode="json")
    if changed := ", ".join(name for name in known if known[name] != same[name]):
        raise UsageError(
            f"The sweep in {found.folder} was begun with others: {changed}. `jaxgen sweep --run {found.folder}` "
            "continues it; for another one give another --run."
        )


def _without(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words of ``args`` without some flags and their values."""
    kept: list[str] = []
    skips = False
    for word in args:
        if word.startswith("--"):
            skips = word[2:].partition("=")[0].replace("-", "_") in names
        if not skips:
            kept.append(word)
    return kept


def _named(kind: type[TrainConfig], words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Setting -> the words after its ``=``. Raises ``UsageError`` for one that cannot be searched over."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = choose(name.lstrip("-").replace("-", "_"), kind.model_fields, "setting")
        if name in FIXED:
            raise UsageError(f"A sweep cannot search over {flag_of(name)}: {FIXED[name]}.")
        if not equals or not all(values.split(",")):
            raise UsageError(f"{word!r} names no values: give {name}=A,B, for example.")
        if name in found:
            raise UsageError(f"{name} is given twice: give all of its values together.")
        found[name] = values.split(",")
    return [*found.items()]


def _value(kind: type[TrainConfig], base: Sequence[str], name: str, word: str) -> Any:
    """A value of a setting as the command line reads it, as JSON. Raises ``UsageError``."""
    from jaxgen.cli.help import type_parts

    flag, parts = flag_of(name), type_parts(kind.model_fields[name].annotation)
    if dict in parts:
        raise UsageError(f"A sweep cannot search over {flag}, which has several values.")
    words = [f"{flag}={word}"]
    if bool in parts:
        words = [flag if choose(word, ("true", "false"), f"value for {flag}") == "true" else f"--no-{flag[2:]}"]
    config, _ = _parse(kind, [*_without(base, [name]), *words])
    return config.model_dump(mode="json")[name]


def _space(kind: type[TrainConfig], base: Sequence[str], name: str, words: Sequence[str]) -> Space:
    """What is drawn from. Raises ``UsageError``."""
    from jaxgen.trainer.sweep import Space

    low, dots, high = words[0].partition("..")
    if len(words) > 1 or not dots:
        return Space(name=name, choices=[_value(kind, base, name, word) for word in words])
    ends = [_value(kind, base, name, word) for word in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends) or ends[0] >= ends[1]:
        raise UsageError(f"{name}={words[0]} is no range: give two numbers, the smaller first, or values with commas.")
    return Space(name=name, low=ends[0], high=ends[1], whole=all(isinstance(end, int) for end in ends))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The trials as lines of columns, the best first."""
    from jaxgen.trainer.sweep import show_figure, show_value

    names = [*rows[0]["values"]] if rows else []
    metric = rows[0]["metric"] if rows else "figure"
    several, halving = any(len(row["figures"]) > 1 for row in rows), any(row["steps"] for row in rows)
    lines = [
        ["trial", *names, f"best {metric}", *(["seeds"] if several else []), *(["steps"] if halving else []), "run"]
    ]
    for row in rows:
        figure = show_figure(row["figures"]) if row["figures"] else "diverged" if row["problem"] else "none"
        more = [str(len(row["figures"]))] if several else []
        more += [f"{row['steps']:,}"] if halving else []
        lines.append([str(row["trial"]), *(show_value(row["values"][n]) for n in names), figure, *more, row["run"]])
    return left_aligned(lines)


class Display:
    """Shows a sweep on standard error: a line for each trial, and on a terminal how far it is."""

    def __init__(self) -> None:
        from rich.console import Console

        from jaxgen.cli.progress import reading_bar

        self._console = Console(stderr=True)
        self._bar = reading_bar(self._console) if self._console.is_terminal else None
        self._task: Any = None

    def event(self, event: Event) -> None:
        """Show an event of the sweep."""
        from jaxgen.trainer.callbacks import Note, Progress, Started

        if isinstance(event, Note):
            log(event.text)
        elif self._bar is not None and isinstance(event, Started):
            self.close()
            self._bar.start()
            self._task = self._bar.add_task("compiling …", total=event.last_step, completed=event.first_step)
        elif self._bar is not None and self._task is not None and isinstance(event, Progress):
            self._bar.update(self._task, completed=event.step, description=f"loss {event.loss:.3f}")

    def close(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            self._bar.stop()
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = None
