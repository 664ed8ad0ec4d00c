"""``jaxgen runs``: a table of the runs in folders; ``--prune`` removes those that are not wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jaxgen.cli.common import left_aligned, log, one_line, write_out
from jaxgen.cli.flags import Command, CommandConfig, Flag, Needs, check_flags, parse
from jaxgen.errors import CheckpointError, UsageError, counted

DESCRIPTION = """List the runs in a folder: task, data, model, best figure, steps, date and size.

    jaxgen runs
    jaxgen runs experiments --json > runs.jsonl
    jaxgen runs --prune                  list runs that never trained; --yes removes them
    jaxgen runs --prune --keep 3         also all but the best 3 with the same data
    jaxgen runs runs/language-4 runs/language-5 --prune --yes"""

#: Heading of a column -> how a run is shown in it.
COLUMNS = {
    "run": lambda run: run["run"],
    "task": lambda run: run["task"],
    "data": lambda run: run["data"],
    "model": lambda run: run["model"],
    "best": lambda run: "" if run["best"] is None else f"{run['metric'].removeprefix('val_')} {run['best']:.4g}",
    "steps": lambda run: f"{run['step']:,}/{run['steps']:,}",
    "date": lambda run: run["date"][:16].replace("T", " "),
    "MB": lambda run: f"{run['bytes'] / 1e6:,.1f}",
}
RULES = (
    Needs("--keep", ("--prune",), "says which runs --prune leaves"),
    Needs("--yes", ("--prune",), "lets --prune remove runs"),
)


class RunsConfig(CommandConfig):
    """Flags of ``jaxgen runs``."""

    keep: Annotated[int, Field(gt=0)] | None = None
    """With --prune: of the runs with the same task, data, tokens and validation data, keep this many with the best
    figures, and remove the others too."""


def list_runs(args: list[str]) -> None:
    """Parse ``args``, then print the table or remove runs. Raises ``CheckpointError`` if there is no run."""
    flags = [
        Flag("folders", tuple[str, ...], (), "Folders with runs. Without one: runs.", "[FOLDER ...]", positional=True),
        Flag("json", bool, False, "Write a JSON object for each run.", negatable=False),
        Flag(
            "prune",
            bool,
            False,
            "Show which runs can go, and how many MB: those that were started and never trained, or the runs "
            "themselves that are named. Runs in training, and files that are not of jaxgen, always stay.",
            negatable=False,
        ),
        Flag("yes", bool, False, "With --prune: remove them.", negatable=False),
    ]
    config, extra = parse(RunsConfig, args, prog="jaxgen runs", description=DESCRIPTION, extra=flags)
    check_flags(RULES, config, args, extra)
    folders = list(map(Path, extra["folders"] or ("runs",)))
    if extra["prune"]:
        prune(folders, config.keep, extra["yes"], extra["json"])
        return
    found = [run for folder in folders for run in described(folder)]
    where = ", ".join(map(str, folders))
    if not found:
        raise CheckpointError(f"There is no run in {where}. Train one with `python train.py`.")
    found.sort(key=lambda run: (run["date"], run["run"]))
    show(found, COLUMNS, extra["json"])
    if not extra["json"]:
        log(f"{counted(len(found), 'run')} in {where}")


main = Command(list_runs)


def described(folder: Path) -> list[dict[str, Any]]:
    """What is known of each run in a folder; those that are damaged are named on standard error."""
    from jaxgen.inference.run_facts import describe
    from jaxgen.runs.directory import RunDirectory

    if RunDirectory(folder).exists():
        raise UsageError(f"{folder} is a run itself: show it with `jaxgen info {folder}`, or give the folder above it.")
    found, problems = [], []
    for path in entries(folder):
        directory = RunDirectory(path)
        if directory.exists():
            try:
                found.append(describe(directory))
            except CheckpointError as error:
                problems.append(str(error))
    for problem in sorted(problems):
        log(f"note: left out: {problem}")
    return found


def entries(folder: Path) -> list[Path]:
    """The paths in a folder with runs. Raises ``CheckpointError`` if it cannot be listed."""
    from jaxgen.runs.directory import list_members

    try:
        return [folder / name for name in list_members(folder)]
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no folder {folder}: train a model with `python train.py`, or give the folder with the runs."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}. Give the folder with the runs.") from None


def show(found: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], as_json: bool) -> None:
    """Print runs as a table, or as JSON."""
    if as_json:
        write_out("".join(json.dumps(run) + "\n" for run in found))
        return
    rows = [list(columns), *([one_line(cell(run)) for cell in columns.values()] for run in found)]
    write_out(left_aligned(rows))


def prune(folders: Sequence[Path], keep: int | None, really: bool, as_json: bool) -> None:
    """Show which runs can go, and remove them if ``really``.

    Args:
        folders: Runs that go, and folders of runs, of which those go that were never trained.
        keep: Of the runs in each folder, all but so many with the best figures go, for each task, data, tokens
            and validation data.
        really: Remove them.
        as_json: Print JSON objects.

    Raises:
        UsageError: A run that is named cannot be removed.
        CheckpointError: A folder cannot be listed, or the system refuses.
    """
    from jaxgen.inference.run_facts import size
    from jaxgen.runs.directory import RunDirectory, is_unfinished_start
    from jaxgen.runs.removal import remove_run, why_kept

    going: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        if RunDirectory(folder).exists() or is_unfinished_start(folder):
            if keep is not None:
                raise UsageError(f"{folder} is a run, and --keep is for folders of runs: leave one of them out.")
            if problem := why_kept(folder):
                raise UsageError(f"{folder} {problem}: it cannot be removed.")
            going[folder.resolve()] = {"run": str(folder), "why": "named", "bytes": size(folder)}
            continue
        for run in unwanted(folder, keep):
            path = Path(run["run"])
            if problem := why_kept(path):
                log(f"note: {path} stays: it {problem}.")
            else:
                going.setdefault(path.resolve(), {**run, "bytes": size(path)})
    columns = {"run": COLUMNS["run"], "why": lambda run: run["why"], "MB": COLUMNS["MB"]}
    if not going:
        log(f"There is nothing to remove in {', '.join(map(str, folders))}.")
        return
    show(list(going.values()), columns, as_json)
    amount = f"{counted(len(going), 'run')}, {sum(run['bytes'] for run in going.values()) / 1e6:,.1f} MB"
    if not really:
        log(f"{amount}. Nothing was removed: --yes removes them.")
        return
    for path in going:
        remove_run(path)
    log(f"Removed: {amount}.")


def unwanted(folder: Path, keep: int | None) -> list[dict[str, Any]]:
    """The runs in a folder that were never trained or, with ``keep``, whose figures are not among the best."""
    from jaxgen.runs.directory import is_unfinished_start
    from jaxgen.tasks.registry import DATA

    found = [{"run": str(path), "why": "its start was killed"} for path in entries(folder) if is_unfinished_start(path)]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in described(folder):
        if Path(run["run"]).is_symlink():
            continue
        if run["best"] is not None and run["saved"]:
            alike.setdefault((run["task"], run["sha256"], run["tokenizer"], run["validation"]), []).append(run)
        elif run["steps"] and not run["saved"]:
            found.append({"run": run["run"], "why": "never trained"})
    for (task, *_), runs in alike.items() if keep is not None else ():
        runs.sort(key=lambda run: run["best"], reverse=DATA[task].METRIC.higher_is_better)
        for place, run in enumerate(runs[keep:], 1 + (keep or 0)):
            found.append({"run": run["run"], "why": f"place {place} of {len(runs)}: {COLUMNS['best'](run)}"})
    return found
