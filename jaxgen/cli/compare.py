"""``jaxgen compare``: runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import left_aligned, log, write_out
from jaxgen.cli.flags import Command, CommandConfig, Flag, parse
from jaxgen.errors import UsageError, counted
from jaxgen.fsutil import check_output, write_output

if TYPE_CHECKING:
    from jaxgen.inference.loading import LoadedRun

DESCRIPTION = """Show in which settings runs differ and what each reached; runs that differ in --seed alone are one row.

    jaxgen compare runs/language-1 runs/language-2
    jaxgen compare runs/* --picture curves.png"""


#: Settings that change no figure, and the length of a run, which is compared in steps.
NO_RESULT = ("run", "sample_every", "log", "steps", "epochs", "minutes")


class CompareConfig(CommandConfig):
    """Flags of ``jaxgen compare``."""

    picture: str | None = None
    """A file for the curves of the validation loss and of the metric that decides, as PNG."""


def compare(args: list[str]) -> None:
    """Parse ``args`` and compare the runs that they name. Raises ``UsageError`` for fewer than two."""
    from jaxgen.inference.loading import LoadedRun

    runs_flag = Flag("runs", tuple[str, ...], (), "Folders of runs, two or more.", "RUN ...", positional=True)
    config, extra = parse(CompareConfig, args, prog="jaxgen compare", description=DESCRIPTION, extra=[runs_flag])
    if len(extra["runs"]) < 2:
        raise UsageError("There is nothing to compare: name two runs or more.")
    if config.picture is not None:
        check_output(config.picture, "--picture")
    opened = [LoadedRun.open(run) for run in extra["runs"]]
    saved = list({run.directory.path.resolve(): run for run in opened}.values())
    if len(saved) < 2:
        raise UsageError(f"There is nothing to compare: {saved[0].directory} is named repeatedly.")
    if len({run.config.task for run in saved}) > 1:
        tasks = ", ".join(dict.fromkeys(run.config.task for run in saved))
        raise UsageError(
            f"The runs are of several tasks ({tasks}): name runs of one, as in runs/{saved[0].config.task}-*."
        )
    groups: dict[str, list[LoadedRun]] = {}
    for run in saved:
        groups.setdefault(json.dumps(settings(run)), []).append(run)
    write_out(table(list(groups.values())))
    if config.picture is not None:
        write_output(config.picture, picture(list(groups.values())), "--picture")
        log(f"The curves are in {config.picture}.")


main = Command(compare)


def settings(run: LoadedRun) -> dict[str, Any]:
    """All settings but the seed and those that change no result; the length in steps, the data with their digest."""
    dumped = run.config.model_dump(mode="json", exclude={"seed", *NO_RESULT})
    data = run.resolved["data"]
    return {**dumped, "steps": run.resolved["steps"], "data": f"{data['name']} ({data['sha256'][:8]})"}


def differences(groups: Sequence[Sequence[LoadedRun]]) -> list[dict[str, Any]]:
    """The settings of each group that are not the same in all of them."""
    each = [settings(runs[0]) for runs in groups]
    names = [name for name in each[0] if any(one[name] != each[0][name] for one in each)]
    return [{name: one[name] for name in names} for one in each]


def label(runs: Sequence[LoadedRun], different: Mapping[str, Any]) -> str:
    """A group in a few words."""
    return ", ".join(f"{name} {value}" for name, value in different.items()) or str(runs[0].directory)


def table(groups: Sequence[Sequence[LoadedRun]]) -> str:
    """A line for each group: where it differs, the best figure with its spread, and parameters."""
    from jaxgen.inference.run_facts import describe
    from jaxgen.trainer.sweep import show_figure

    different = differences(groups)
    names = [*different[0]]
    metric = describe(groups[0][0].directory)["metric"]
    rows = [["run", *names, f"best {metric}", "runs", "parameters"]]
    for runs, one in zip(groups, different):
        facts = [describe(run.directory) for run in runs]
        for fact in facts:
            if fact["step"] < fact["steps"]:
                log(f"note: {fact['run']} was last evaluated at step {fact['step']:,} of {fact['steps']:,}.")
        best = [fact["best"] for fact in facts if fact["best"] is not None]
        figure = show_figure(best) if best else "none"
        values = [str(one[name]) for name in names]
        rows.append([str(runs[0].directory), *values, figure, str(len(best)), f"{facts[0]['parameters']:,}"])
    return left_aligned(rows)


def picture(groups: Sequence[Sequence[LoadedRun]]) -> bytes:
    """The validation loss of each run against the step, and the metric that decides; a colour for each group."""
    from jaxgen.plots import Picture, draw_comparison
    from jaxgen.runs.logs import MetricsLog
    from jaxgen.tasks.registry import DATA

    curves = [
        (label(runs, one), [MetricsLog(run.directory.metrics_path).read() for run in runs])
        for runs, one in zip(groups, differences(groups))
    ]
    config, number = groups[0][0].config, sum(map(len, groups))
    data = DATA[config.task]
    title = f"{config.task}: {counted(number, 'run')} compared"
    return Picture.drawn(lambda file: draw_comparison(curves, file, title, data.TARGET, data.METRIC.best_at(0))).png
