"""``train.py`` and ``jaxgen train``: flags in, a training run on the screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from jaxgen.cli.common import flag_value, hold_descriptors, log, parse, run_command
from jaxgen.errors import UsageError, choose

if TYPE_CHECKING:
    from jaxgen.distributed.launcher import Job
    from jaxgen.trainer.process_group import ProcessGroup

EPILOG = """{about} Built-in data, so that nothing need be downloaded:

    python train.py{task}

{examples}

The first word names the task; each has its own flags:

{tasks}

A preset sets several flags at once; --config FILE.toml reads any of them from a file; flags win over both."""


#: What is trained when no task is named.
DEFAULT_TASK = "language"
#: The flags of a job of several processes.
DISTRIBUTED_FLAGS = ("--distributed", "--coordinator", "--num-processes", "--process-id", "--heartbeat")
#: Seconds without a sign of life after which a process counts as lost.
HEARTBEAT = 60
#: Three ways to say how long a run is.
LENGTHS = ("steps", "epochs", "minutes")


def main(args: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    given = list(sys.argv[1:] if args is None else args)
    several = any(flag_value(given, flag) is not None for flag in DISTRIBUTED_FLAGS)
    if several and not {"-h", "--help"} & set(given):
        return _train_distributed(given)
    return run_command(lambda: train(given))


def _train_distributed(args: list[str]) -> int:
    """Train as one process of several; returns the exit code."""
    from jaxgen.distributed.launcher import launch, meet

    hold_descriptors()  # else the pipe between parent and child could take the place of standard output
    try:
        job = read_job(args)
    except UsageError as error:
        log(f"error: {error}")
        return error.exit_code
    return launch(job, lambda: run_command(lambda: train(args, meet(job))), log)


def read_job(args: Sequence[str]) -> Job:
    """The job that the flags describe. Raises ``UsageError`` for flags that do not fit together."""
    from jaxgen.distributed.launcher import Job

    auto, coordinator, *numbers = (flag_value(args, flag) for flag in DISTRIBUTED_FLAGS)
    if auto is None and coordinator is None:
        flag, value = next(each for each in zip(DISTRIBUTED_FLAGS[2:], numbers) if each[1] is not None)
        raise UsageError(f"{flag} {value} belongs to a job of several processes: give --coordinator too.")
    if auto is not None:
        choose(auto, ("auto",), "value for --distributed")
        named = [flag for flag, value in zip(DISTRIBUTED_FLAGS[1:4], (coordinator, *numbers)) if value is not None]
        if named:
            raise UsageError(f"--distributed auto asks the cluster, and {named[0]} was given: leave one of them out.")
    processes, index, heartbeat = (
        None if value is None else _whole_number(flag, value) for flag, value in zip(DISTRIBUTED_FLAGS[2:], numbers)
    )
    return Job(coordinator, processes, index, HEARTBEAT if heartbeat is None else heartbeat)


def _whole_number(flag: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{flag} is {value!r}: give a whole number.")
    return int(value)


def train(args: list[str], group: ProcessGroup | None = None) -> None:
    """Start or continue the run that ``args`` describe, in this process or in those of ``group``."""
    from jaxgen.cli.progress import Screen
    from jaxgen.runtime import need_backend
    from jaxgen.trainer.process_group import ProcessGroup
    from jaxgen.trainer.run import resume, start

    group = group or ProcessGroup()
    screen = Screen()
    try:
        with group.translate_errors():
            with group.all_or_none() as facts:  # before process 0 makes the folder that all of them look for
                config, resuming = _asked(args)
                facts["folder"] = "goes on" if resuming else "begins"
            need_backend()
            if resuming:
                changed = flag_value(args, "--data-changed") or "refuse"
                trainer = resume(config.run, config, screen.show, changed, group=group)
            else:
                trainer = start(config, screen.show, group=group)
            trainer.train()
    finally:
        screen.close()


def _asked(args: list[str]) -> tuple[Any, bool]:
    """The settings that ``args`` name, and whether a run goes on with them."""
    from jaxgen.tasks.registry import DATA

    task = _saved_task(args) or DEFAULT_TASK
    if args and not args[0].startswith("-"):
        named = choose(args.pop(0), DATA, "task")
        saved = _saved_task(args)
        if saved not in (None, named):
            raise UsageError(f"The run to go on with is one of the task {saved}, not {named}: leave out {named!r}.")
        task = named
    return read_config(DATA[task].Config, args)


def _saved_task(args: list[str]) -> str | None:
    """The task of the run that is to go on, if there is one."""
    from jaxgen.runs.config import check_folder
    from jaxgen.runs.directory import RunDirectory
    from jaxgen.tasks.registry import DATA

    run, mode = flag_value(args, "--run"), flag_value(args, "--resume")
    check_folder(run)
    if run is None or mode in (None, "never") or not RunDirectory(run).exists():
        return None
    task = RunDirectory(run).task()
    return task if isinstance(task, str) and task in DATA else None


def read_config(kind: Any, args: list[str]) -> tuple[Any, bool]:
    """Flags over ``--config`` over ``--preset`` over defaults; or, when resuming, flags over the saved settings."""
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.runs.config import check_folder, read_toml, validate
    from jaxgen.runs.directory import RunDirectory

    mode, file, run = (flag_value(args, flag) for flag in ("--resume", "--config", "--run"))
    values = {} if file is None else read_toml(file)
    if run is None and "run" in values:
        run = str(values["run"])  # its type is checked with the rest
    check_folder(run)
    mode = "never" if mode is None else choose(mode, ("auto", "never", "must"), "value for --resume")
    resuming = False
    if mode != "never":
        if run is None:
            raise UsageError(f"--resume {mode} needs to know which run: give --run DIR.")
        resuming = mode == "must" or RunDirectory(run).exists()
        if not resuming:  # what is damaged is not begun anew
            RunDirectory(run).check_config()
    if resuming and run is not None:
        values = {**LoadedRun.open(run).config.model_dump(), "run": run, **values}
    else:
        name = flag_value(args, "--preset") or values.get("preset", kind.model_fields["preset"].default)
        preset = dict(kind.presets[choose(str(name), kind.presets, "preset")][1])
        preset.pop("steps", None)  # a default for the number of steps, which --epochs and --minutes replace
        values = {**preset, **values, "preset": name}
    if any(flag_value(args, f"--{name}") is not None for name in LENGTHS):
        values |= dict.fromkeys(LENGTHS)  # they replace each other
    default = validate(kind, values, f"{file}: " if file else "")
    about = _about(kind) + _presets(kind)
    config = parse(kind, args, prog="train.py", description=about, default=default, also=also(), names=_names(kind))
    return config, resuming


def _names(kind: Any) -> dict[str, Any]:
    """What the settings that name a registry's entry can be."""
    from jaxgen.cells import CELLS
    from jaxgen.data.batches import BATCHES
    from jaxgen.models.attention import ATTENTIONS
    from jaxgen.models.classifier import POOLINGS
    from jaxgen.tasks.registry import model_names
    from jaxgen.tokenizers import TOKENIZERS
    from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES

    return {
        "attention": ["none", *ATTENTIONS],
        "cell": CELLS,
        "layout": BATCHES,
        "level": TOKENIZERS,
        "model": model_names(kind.task),
        "pooling": POOLINGS,
        "optimizer": OPTIMIZERS,
        "preset": kind.presets,
        "schedule": SCHEDULES,
    }


def also() -> dict[str, Any]:
    """The flags that say where settings come from."""
    from tyro.conf import arg

    return {
        "resume": Annotated[
            str | None,
            arg(
                metavar="{auto,never,must}",
                help="With --run: auto continues the run or, where there is none, starts it; must continues it; "
                "never, the default, refuses to touch a run that exists. The saved settings hold, and only the length "
                "and the rhythm of the run may change.",
            ),
        ],
        "data_changed": Annotated[
            str | None,
            arg(
                metavar="{refuse,accept}",
                help="When a run goes on and its data are not what they were: refuse, the default, or accept them. "
                "The same data at another place, named with --data, are no change.",
            ),
        ],
        "config": Annotated[
            str | None, arg(metavar="FILE.toml", help="Read settings from a file, named as the flags are.")
        ],
        **_distributed_flags(),
    }


def _distributed_flags() -> dict[str, Any]:
    from tyro.conf import arg

    def flag(kind: Any, metavar: str, text: str) -> Any:
        return Annotated[kind, arg(metavar=metavar, help=text)]

    return {
        "distributed": flag(
            str | None,
            "{auto}",
            "Train with the other processes that a cluster started with the same command (SLURM, Open MPI, "
            "Kubernetes, a TPU pod): each computes its share of every batch.",
        ),
        "coordinator": flag(str | None, "HOST:PORT", "The same without a cluster: the address of process 0."),
        "num_processes": flag(int | None, "N", "With --coordinator: the number of processes."),
        "process_id": flag(int | None, "I", "With --coordinator: the number of this process, from 0."),
        "heartbeat": flag(
            int | None,
            "SECONDS",
            f"Seconds without a sign of life after which a process counts as lost. Default: {HEARTBEAT}.",
        ),
    }


def _about(kind: Any) -> str:
    """What training of this task is, with examples, and which other tasks there are."""
    from jaxgen.tasks.registry import DATA

    tasks = "\n".join(f"    {name:10s} {_first_line(data.Config)}" for name, data in DATA.items())
    examples = "\n".join(f"    {command}" for command in kind.examples)
    named = "" if kind.task == DEFAULT_TASK else f" {kind.task}"
    return EPILOG.format(about=_first_line(kind), task=named, examples=examples, tasks=tasks)


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _presets(kind: Any) -> str:
    return "\n\nPresets:\n" + "\n".join(f"    {name:9s} {text}" for name, (text, _) in kind.presets.items())
