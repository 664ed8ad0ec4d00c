"""``train.py`` and ``jaxgen train``: parses flags and runs the training, shown on the screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgen.cli.common import Answer, asks_version, hold_descriptors, log, one_line, run_command
from jaxgen.cli.flags import (
    Excludes,
    Flag,
    Needs,
    Rules,
    asks_help,
    check_rules,
    flag_value,
    is_written,
    load_plugins,
    parse,
    read_number,
    setting_flags,
)
from jaxgen.cli.help import as_typed
from jaxgen.errors import UsageError, choose, show_flags

if TYPE_CHECKING:
    from jaxgen.cli.progress import Screen
    from jaxgen.distributed.launcher import Job
    from jaxgen.runs.config import TrainConfig
    from jaxgen.trainer.process_group import ProcessGroup

DESCRIPTION = """{about} The built-in data needs no download:

    python train.py{task}

{examples}

The first word names the task; each has its own flags:

{tasks}

A preset sets several flags at once; --config FILE.toml reads any of them from a file; flags override both. The presets:

{presets}"""
#: The task if none is named.
DEFAULT_TASK = "language"
#: Three ways to give the length of a run.
LENGTHS = ("steps", "epochs", "minutes")
#: The flags of a job of several processes.
JOB_FLAGS = ("--distributed", "--coordinator", "--num-processes", "--process-id", "--heartbeat")
JOB_RULES: Rules = (
    Excludes("--distributed", ("--coordinator", "--num-processes", "--process-id"), "asks the cluster for the job"),
    *(
        Needs(flag, ("--coordinator", "--distributed"), "belongs to a job of several processes")
        for flag in JOB_FLAGS[2:]
    ),
)
#: What helps a training that runs out of memory.
LESS_MEMORY = (
    "raise --accumulate (the same steps in smaller parts), or lower --batch-size, --hidden, --layers or, for a "
    "language model, --seq-len; on an accelerator --precision bfloat16 helps too"
)
#: Steps of ``--lr-find`` between two lines.
SHOWN_EVERY = 15
#: Seconds without a heartbeat after which a process counts as lost.
HEARTBEAT = 60


def main(args: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    began = time.perf_counter()
    given = list(sys.argv[1:] if args is None else args)
    several = any(is_written(given, flag) for flag in JOB_FLAGS)
    shows = asks_help(given) or asks_version(given) or is_written(given, "--show-config")
    if several and not shows:
        return _train_distributed(given)
    return run_command(partial(train, began=began), given, less_memory=LESS_MEMORY)


def _train_distributed(args: list[str]) -> int:
    """Train as one process of several; returns the exit code."""
    from jaxgen.distributed.launcher import launch, meet

    hold_descriptors()  # else the pipe between parent and child could take the place of standard output
    with show_flags():
        try:
            job = read_job(args)
        except UsageError as error:
            log(f"error: {error}")
            return error.exit_code
        return launch(job, lambda: run_command(lambda args: train(args, meet(job)), args, less_memory=LESS_MEMORY), log)


def read_job(args: Sequence[str]) -> Job:
    """The job that the flags describe. Raises ``UsageError`` for flags that do not fit together."""
    from jaxgen.distributed.launcher import Job

    values = {flag: flag_value(args, flag) for flag in JOB_FLAGS}
    for flag, value in values.items():
        if value is None and is_written(args, flag):
            raise UsageError(f"{flag} was given without a value: give one, or leave it out.")
    check_rules(JOB_RULES, {flag for flag, value in values.items() if value is not None})
    auto, coordinator, *_ = values.values()
    if auto is not None:
        choose(auto, ("auto",), "value for --distributed")
    processes, index, heartbeat = (
        None if value is None else read_number(flag.removeprefix("--"), [value])
        for flag, value in list(values.items())[2:]
    )
    return Job(coordinator, processes, index, HEARTBEAT if heartbeat is None else heartbeat)


def train(args: list[str], group: ProcessGroup | None = None, began: float | None = None) -> None:
    """Parse ``args``, and start or resume the run, in this process or in those of ``group``.

    ``began`` is when the command started, on the clock ``time.perf_counter``.
    """
    from jaxgen.cli.progress import Screen
    from jaxgen.runs.collection import is_seeds
    from jaxgen.runtime import need_backend
    from jaxgen.trainer.process_group import ProcessGroup
    from jaxgen.trainer.run import resume, start

    group = group or ProcessGroup()
    screen = Screen()
    try:
        with group.translate_errors():
            with group.all_or_none() as facts:  # before process 0 creates the folder that all of them look for
                seeds = flag_value(args, "--seeds")
                config, resuming = parse_args(args)
                if seeds is not None and not group.is_single:
                    raise UsageError("--seeds needs a single process: leave out --distributed or --coordinator.")
                facts["folder"] = "goes on" if resuming else "begins"
            need_backend()
            if (picture := flag_value(args, "--lr-find")) is not None:
                _find_lr(config, picture, screen, resuming or not group.is_single or seeds is not None)
                return
            changed = flag_value(args, "--data-changed") or "refuse"
            if seeds is not None or (resuming and is_seeds(config.run)):
                _train_seeds(config, seeds, screen, changed, resuming)
                return
            if resuming:
                trainer = resume(str(config.run), config, screen.show, changed, group=group)
            else:
                trainer = start(config, screen.show, group=group, began=began)
            trainer.train()
    finally:
        screen.close()


def _train_seeds(config: TrainConfig, seeds: str | None, screen: Screen, changed: str, resuming: bool) -> None:
    """Train or continue runs that differ in their seeds."""
    from jaxgen.runs.collection import is_seeds
    from jaxgen.trainer.seeds import read_seeds, resume_seeds, train_seeds

    if not resuming:
        train_seeds(config, parse_seeds(seeds or "", config.seed), screen.show)
        return
    if not is_seeds(config.run):
        raise UsageError(f"{config.run} is a run with a single seed: leave out --seeds to continue it.")
    folder = Path(str(config.run))
    if seeds is not None and parse_seeds(seeds, config.seed) != (known := read_seeds(folder).seeds):
        raise UsageError(f"The runs in {folder} have the seeds {', '.join(map(str, known))}: leave out --seeds.")
    resume_seeds(folder, config, screen.show, changed)


def parse_seeds(text: str, first: int) -> list[int]:
    """The seeds of ``--seeds``: a list with commas, or how many from ``first`` on. Raises ``UsageError``."""
    from jaxgen.trainer.seeds import MAX_SEEDS

    if "," in text:
        return [read_number("seeds", [word]) for word in text.split(",") if word]
    number = read_number("seeds", [text])
    if not 1 <= number <= MAX_SEEDS:
        raise UsageError(
            f"--seeds is {number:,}: give a number of seeds from 1 to {MAX_SEEDS:,}, or seeds with commas."
        )
    return [*range(first, first + number)]


def _find_lr(config: TrainConfig, picture: str, screen: Screen, refuse: bool) -> None:
    """Try learning rates, draw ``picture`` and print the rate that they suggest."""
    from jaxgen.fsutil import check_output, write_output
    from jaxgen.trainer.lr_finder import find_lr

    if refuse:
        raise UsageError(
            "--lr-find tries rates for a new run on one process: leave out --resume, --seeds and --coordinator."
        )
    check_output(picture, "--lr-find")

    def watch(step: int, rate: float, loss: float) -> None:
        if step % SHOWN_EVERY == 0:
            print(f"learning rate {rate:.1e}: loss {loss:.4f}", flush=True)

    found = find_lr(config, screen.show, watch)
    write_output(picture, found.plot().png)
    print(f"The curve is in {picture}. Next: the same command with --lr {found.suggestion:.1g} instead of --lr-find.")


def parse_args(args: list[str]) -> tuple[TrainConfig, bool]:
    """The settings of the run, and whether it is resumed. Raises ``UsageError``."""
    from jaxgen.tasks.registry import DATA

    args = load_plugins(args)
    task = _saved_task(args) or DEFAULT_TASK
    if args and not args[0].startswith("-"):
        named = choose(args.pop(0), DATA, "task")
        saved = _saved_task(args)
        if saved not in (None, named):
            raise UsageError(f"The run to resume is of the task {saved}, not {named}: leave out {named!r}.")
        task = named
    return config_from_flags(DATA[task].Config, args)


def _saved_task(args: list[str]) -> str | None:
    """The task of the run to be resumed, if there is one."""
    from jaxgen.runs.collection import is_seeds
    from jaxgen.runs.config import check_folder
    from jaxgen.runs.directory import RunDirectory
    from jaxgen.tasks.registry import DATA
    from jaxgen.trainer.seeds import read_seeds

    run, mode = flag_value(args, "--run"), flag_value(args, "--resume")
    check_folder(run)
    if run is not None and mode not in (None, "never") and is_seeds(run):
        return read_seeds(Path(run)).task
    if run is None or mode in (None, "never") or not RunDirectory(run).exists():
        return None
    task = RunDirectory(run).task()
    return task if isinstance(task, str) and task in DATA else None


def config_from_flags(kind: type[TrainConfig], args: list[str]) -> tuple[TrainConfig, bool]:
    """The settings of a run of the class ``kind``, and whether the run is resumed.

    Flags override ``--config``, which overrides ``--preset``, which overrides the defaults. For a resumed run, flags
    and ``--config`` override the saved settings. Raises ``UsageError``, and with ``--show-config`` the ``Answer``.
    """
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.runs.collection import is_seeds
    from jaxgen.runs.config import check_folder, read_toml, validate
    from jaxgen.runs.directory import RunDirectory
    from jaxgen.trainer.seeds import seeds_config

    mode, file, run = (flag_value(args, flag) for flag in ("--resume", "--config", "--run"))
    values = {} if file is None else read_toml(file)
    sources = dict.fromkeys(values, f"file {one_line(str(file))}")
    if run is None and "run" in values:
        run = str(values["run"])  # its type is checked with the rest
    check_folder(run)
    mode = "never" if mode is None else choose(mode, ("auto", "never", "must"), "value for --resume")
    resuming = False
    if mode != "never":
        if run is None:
            raise UsageError(f"--resume {mode} needs to know which run: give --run DIR.")
        resuming = mode == "must" or RunDirectory(run).exists() or is_seeds(run)
        if not resuming:  # a damaged run is not started again
            RunDirectory(run).check_config()
    if resuming and run is not None:
        saved = seeds_config(Path(run)) if is_seeds(run) else LoadedRun.open(run).config
        values = {**saved.model_dump(), "run": run, **values}
        sources = dict.fromkeys(values, f"run {one_line(str(run))}") | sources
    else:
        preset = flag_value(args, "--preset")  # the other flags have its values as defaults
        values |= {} if preset is None else {"preset": preset}
    if any(flag_value(args, f"--{name}") is not None for name in LENGTHS):
        values = {name: value for name, value in values.items() if name not in LENGTHS}  # they replace each other
        sources = {name: source for name, source in sources.items() if name not in LENGTHS}
    default = validate(kind, values, f"{file}: " if file else "")
    config, extra = parse(
        kind,
        args,
        prog=f"python train.py {'[TASK]' if kind.task == DEFAULT_TASK else kind.task}",
        description=describe(kind),
        extra=extra_flags(),
        default=default,
        names=registry_names(kind),
    )
    if extra["show_config"]:
        raise Answer(show_config(config, args, sources))
    if config.steps == 0 and not resuming:
        raise UsageError(
            "--steps 0 trains nothing: give at least 1. --show-config shows the settings without training."
        )
    return config, resuming


def show_config(config: TrainConfig, args: Sequence[str], sources: Mapping[str, str]) -> str:
    """The settings as TOML, each with where it comes from: a flag in ``args``, ``sources``, the preset or a default."""
    from jaxgen.runs.config import to_toml

    kind, values = type(config), config.presets[config.preset][1]
    found = {**dict.fromkeys(values, f"preset {config.preset}"), **sources}
    for flag in setting_flags(kind):
        if any(is_written(args, spelled) for spelled in filter(None, (flag.written, flag.opposite))):
            found[flag.name] = "flag"
    found = {name: source for name, source in found.items() if getattr(config, name) is not None}
    if all(getattr(config, name) is None for name in LENGTHS):
        found["steps"] = f"preset {config.preset}: {values['steps']}"
    return as_typed(f"# For `python train.py {config.task} --config FILE`.\n") + to_toml(config, found)


def registry_names(kind: type[TrainConfig]) -> Mapping[str, Iterable[str]]:
    """Setting -> the entries of the registry that it chooses from."""
    from jaxgen.cells import CELLS
    from jaxgen.data.batches import BATCHES
    from jaxgen.models.attention import ATTENTIONS
    from jaxgen.models.blocks import BLOCKS
    from jaxgen.models.classifier import POOLINGS
    from jaxgen.tasks.registry import model_names
    from jaxgen.tokenizers import TOKENIZERS
    from jaxgen.trainer.trackers import TRACKERS
    from jaxgen.training.averaging import AVERAGES
    from jaxgen.training.optimizer import OPTIMIZERS
    from jaxgen.training.schedules import SCHEDULES

    return {
        "attention": ["none", *ATTENTIONS],
        "average": ["none", *AVERAGES],
        "block": BLOCKS,
        "cell": CELLS,
        "layout": BATCHES,
        "level": TOKENIZERS,
        "log": [*TRACKERS, "none"],
        "model": model_names(kind.task),
        "pooling": POOLINGS,
        "optimizer": OPTIMIZERS,
        "preset": kind.presets,
        "schedule": SCHEDULES,
    }


def extra_flags() -> list[Flag]:
    """The flags that are not settings of a run: the source of the settings, and the processes of the job."""
    general = partial(Flag, default=None, group="General")
    several = partial(Flag, default=None, group="Several devices")
    return [
        general(
            "resume",
            str | None,
            help="With --run: auto resumes the run or, if there is none, starts it; must resumes it; never, the "
            "default, refuses a run that exists. The saved settings apply; only the length of the run, the intervals "
            "of evaluations and samples, and the like can change.",
            choices=("auto", "never", "must"),
        ),
        general(
            "data_changed",
            str | None,
            help="What to do if the data of a resumed run has changed: refuse (the default) or accept it. The same "
            "data at another place, named with --data, counts as unchanged.",
            choices=("refuse", "accept"),
        ),
        general(
            "seeds",
            str | None,
            help="Train so many runs with seeds from --seed on, or with these seeds (0,1,2), in one compiled call "
            "if their batches have one shape. --run is then a folder of runs; --devices share the seeds, not the "
            "batches.",
            metavar="N|A,B,...",
        ),
        general(
            "lr_find",
            str | None,
            help="Instead of training, try learning rates from 1e-5 to 1 in 150 steps, draw the losses into this file, "
            "and suggest a rate.",
            metavar="FILE.png",
        ),
        general(
            "config",
            str | None,
            help="Read settings from a file; they are named as the flags are. --show-config writes one.",
            metavar="FILE.toml",
        ),
        general(
            "show_config",
            bool,
            help="Show the settings as a file for --config, each with where it comes from, and train nothing.",
            negatable=False,
        ),
        several(
            "distributed",
            str | None,
            help="Train with the other processes that a cluster started with the same command (SLURM, Open MPI, "
            "Kubernetes, a TPU pod): each computes its share of every batch.",
            choices=("auto",),
        ),
        several(
            "coordinator",
            str | None,
            help="The same without a cluster: the address of process 0.",
            metavar="HOST:PORT",
        ),
        several("num_processes", int | None, help="With --coordinator: the number of processes."),
        several("process_id", int | None, help="With --coordinator: the number of this process, from 0."),
        several(
            "heartbeat",
            int | None,
            help=f"Seconds without a heartbeat after which a process counts as lost. Default: {HEARTBEAT}.",
            metavar="SECONDS",
        ),
    ]


def describe(kind: type[TrainConfig]) -> str:
    """The text above the flags in the help of a task."""
    from jaxgen.tasks.registry import DATA

    return DESCRIPTION.format(
        about=_first_line(kind),
        task="" if kind.task == DEFAULT_TASK else f" {kind.task}",
        examples="\n".join(f"    {command}" for command in kind.examples),
        tasks="\n".join(f"    {name}  {_first_line(data.Config)}" for name, data in DATA.items()),
        presets="\n".join(f"    {name}  {text}" for name, (text, _) in kind.presets.items()),
    ).lstrip()


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]  # PYTHONOPTIMIZE=2 removes docstrings
