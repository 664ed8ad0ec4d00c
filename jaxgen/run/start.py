"""How a run begins and how it goes on: everything that can be wrong is found here, before anything is compiled."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxgen.data import DATA
from jaxgen.data.task import TaskData
from jaxgen.errors import CheckpointError, DataError, UsageError, choose
from jaxgen.run import counting
from jaxgen.run.course import plan_optimizer
from jaxgen.run.events import Note
from jaxgen.run.host import need_devices
from jaxgen.run.record import changes_since, resolve, write_config
from jaxgen.run.saved import SavedRun
from jaxgen.run.tensorboard import require_tensorboard
from jaxgen.run.trainer import Emit, Progressed, Trainer
from jaxgen.store import CheckpointStore, RunDirectory, truncate_samples
from jaxgen.store.config import TrainConfig
from jaxgen.store.lock import exclusively
from jaxgen.tasks import models
from jaxgen.training import count_devices, create_state

#: Calls of the compiled step that ``--minutes`` times for every shape of batches, after one that compiles.
MEASURED_CALLS = 3
#: Share of the time of ``--minutes`` kept for evaluations, checkpoints and samples.
OVERHEAD = 0.15
#: Folders of checkpoints of step 0, whole or not.
FIRST = r"0{8}(\.[0-9]+)?|\.tmp-.*"


def ignore(event: Any) -> None:
    """An ``emit`` for those who do not listen."""


@exclusively(lambda config, *_, **__: config.run)
def start(config: TrainConfig, emit: Emit = ignore) -> Trainer:
    """A new run in a new folder. Raises ``UsageError``, ``DataError`` and ``CheckpointError`` before it exists."""
    return MODELS[config.model].start(config, emit)


def _start(config: TrainConfig, emit: Emit) -> Trainer:
    began = time.perf_counter()
    plan_optimizer(config, horizon=1)
    if config.tensorboard:
        require_tensorboard()
    source = None if config.init_from is None else SavedRun.open(config.init_from)
    if source is not None and source.config.task != config.task:
        raise UsageError(
            f"--init-from {config.init_from} is a run of the task {source.config.task}, and this is one of "
            f"{config.task}: give a run of the same task."
        )
    build, foreseen = models(config.task)[config.model].build, getattr(DATA[config.task], "foreseen", None)
    if foreseen is not None and (known := foreseen(config)) is not None:
        build(**known)  # what is wrong with the model is said before data are read that take a while
    data = _load(config, source.codec if source else None)
    options = data.model_options()
    task = build(**options)
    shapes = _shapes(task, config)
    # What rules choose by the device is written down, so that a resumed run computes the same bits.
    options |= task.chosen()
    task = build(**options)
    params = None if source is None else _borrowed(source, shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    devices = _spread(config, parameters / data.steps_of_time)
    _fits_memory(parameters, devices)
    resolved = resolve(data, options, parameters, devices)
    _clear_unfinished(config.run)
    steps = _planned(config, data)
    if steps is None:  # before there is a folder: who stops the measuring leaves none behind
        RunDirectory.check(config.run)
        nowhere = RunDirectory("" if config.run is None else config.run)
        steps = _measured(Trainer(config, data, task, nowhere, {**resolved, "steps": 1, "horizon": 1}, emit), began)
        emit(Note(f"{config.minutes:g} minutes are enough for {steps:,} steps here; the number is fixed from now on."))
    resolved |= {"steps": steps, "horizon": steps}
    run = RunDirectory.create(config.run, config.task)
    run.write_json("tokenizer.json", data.codec.to_json())
    trainer = Trainer(config, data, task, run, resolved, emit).begin(params)
    trainer.save_first()
    write_config(run, config, resolved)
    return trainer


@exclusively(lambda path, *_, **__: path if RunDirectory(path).exists() else None, new=False)
def resume(path: str, config: TrainConfig | None = None, emit: Emit = ignore, data_changed: str = "refuse") -> Trainer:
    """Continue the run at ``path`` where it stopped, bitwise as if it had not (on one kind of device).

    ``config`` may differ from the saved one in ``TrainConfig.may_change``, and in ``places`` where the same data are
    found, else ``UsageError``. Raises ``DataError`` when the data are not what they were, unless ``data_changed`` is
    ``"accept"`` instead of ``"refuse"``, and ``CheckpointError`` when no checkpoint is good.
    """
    choose(data_changed, ("accept", "refuse"), "value for --data-changed")
    saved = SavedRun.open(path)
    config = config or saved.config
    if changed := [name for name in saved.config.changes(config) if name not in config.places]:
        listed = ", ".join(
            f"--{name.replace('_', '-')} ({getattr(saved.config, name)!r} then, {getattr(config, name)!r} now)"
            for name in changed
        )
        raise UsageError(f"The run {path} was started with other settings: {listed}. Leave them out to continue it.")
    need_devices(saved.resolved["devices"], f"The run {path} spreads its batches over {saved.resolved['devices']}")
    data = _load(config, saved.codec)
    then, now = saved.resolved["data"], data.identity()
    if then["sha256"] != now["sha256"]:
        changes = (
            f"The data of the run {path} have changed: {then['name']} with sha256 {then['sha256']} then, "
            f"{now['name']} with {now['sha256']} now."
        )
        if data_changed == "refuse":
            raise DataError(
                f"{changes} Bring back the old data, start a new run with --init-from, or give --data-changed accept "
                "to go on with these."
            )
        emit(Note(f"WARNING: {changes} The run goes on with these, from where it was in the old."))
    saved.resolved["data"] = now
    if other := changes_since(saved.resolved):
        emit(Note(f"WARNING: This run was begun with {other}: what is computed from here on may differ in its bits."))
    return MODELS[config.model].resume(saved, config, data, emit)


def _resume(saved: SavedRun, config: TrainConfig, data: TaskData, emit: Emit) -> Trainer:
    path, resolved = saved.directory.path, {**saved.resolved, "steps": _prolonged(saved, config, data)}
    if resolved["steps"] > resolved["horizon"] and config.schedule != "constant":
        emit(
            Note(
                f"The learning rate has reached its end at step {resolved['horizon']:,} and stays there until step "
                f"{resolved['steps']:,}. For a new course of it, start another run with --init-from {path}."
            )
        )
    trainer = Trainer(config, data, saved.task, saved.directory, resolved, emit)
    if trainer.store.latest() is None:
        raise CheckpointError(
            f"The run {path} has no checkpoint left, and every run has one from its first moment: bring its folder "
            f"{trainer.store.directory.name} back, or train anew in another folder."
        )
    make = partial(create_state, saved.task, trainer.optimizer, rows=config.batch_size)
    step, state, host, problems = trainer.store.restore_newest_good(jax.eval_shape(make, trainer.key))
    trainer.recall(Progressed.read(host, path)).go_on(state)
    for problem in problems:
        emit(Note(f"WARNING: {problem} Continuing from step {step:,}."))
    trainer.metrics.truncate(step)
    truncate_samples(saved.directory.samples_path, step)
    trainer.store.truncate(step)
    write_config(saved.directory, config, resolved)
    return trainer


def _clear_unfinished(path: str | None) -> None:
    """Remove the first checkpoint of a start that was killed before it wrote its configuration, and nothing else."""
    run = RunDirectory("" if path is None else path)
    if path is None or run.exists() or run.checkpoints_path.is_symlink() or not run.checkpoints_path.is_dir():
        return
    if not set(CheckpointStore(run.checkpoints_path).steps()) - {0}:
        for entry in list(run.checkpoints_path.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and re.fullmatch(FIRST, entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        with suppress(OSError):
            run.checkpoints_path.rmdir()


def _spread(config: TrainConfig, load: float) -> int:
    """Over how many devices each batch is spread: what the settings say, else what ``count_devices`` gives."""
    if config.devices is None:
        return count_devices(config.batch_size, jax.local_device_count(), load)
    need_devices(config.devices, f"--devices {config.devices} asks for {config.devices}")
    if config.batch_size % config.devices:
        raise UsageError(
            f"A batch of {config.batch_size} rows cannot be spread evenly over --devices {config.devices}: give a "
            "--batch-size that it divides, or other devices."
        )
    return config.devices


def _load(config: Any, codec: Any) -> TaskData:
    return DATA[config.task].load(config, codec)


def _fits_memory(parameters: int, devices: int) -> None:
    """Refuse a model that the machine cannot hold: weights, gradient and two moments on each device, 4 bytes each.

    Only where the weights live in the computer's own memory and the system tells its size.
    """
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    needed, there = parameters * 16 * devices, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UsageError(
            f"A model of {parameters:,} parameters needs at least {needed / 2**30:.0f} GiB to train, and this machine "
            f"has {there / 2**30:.0f} GiB. Choose a smaller --hidden, --layers or vocabulary"
            + (", or --devices 1." if devices > 1 else ".")
        )


def _planned(config: TrainConfig, data: Any) -> int | None:
    """The number of steps that the settings name; ``None`` when it is to be measured."""
    if config.minutes is not None:
        return None
    if config.epochs is not None:
        return max(1, round(config.epochs * data.batches.steps_per_epoch))
    return config.presets[config.preset][1]["steps"] if config.steps is None else config.steps


def _prolonged(saved: SavedRun, config: TrainConfig, data: Any) -> int:
    """The number of steps of a resumed run; the horizon of its schedule stays what it was."""
    then, now = ((c.steps, c.epochs, c.minutes) for c in (saved.config, config))
    if now in (then, (None, None, None)):
        return saved.resolved["steps"]
    planned = _planned(config, data)
    if planned is None:
        raise UsageError(
            f"--minutes {config.minutes:g} cannot be measured in a run that goes on: name the new length with --steps "
            f"(it is {saved.resolved['steps']} now)."
        )
    return planned


def _measured(trial: Trainer, began: float) -> int:
    """How many steps fit into ``--minutes``, by timing a few calls of a trainer that is thrown away.

    A step takes what those of each shape take, as often as an epoch has them. What compiling them took is lost twice:
    the run compiles them again, with a schedule of another horizon.
    """
    seconds, steps, compiling = 0.0, 0, 0.0
    trial.begin()
    for step, often in trial.data.batches.shapes():
        first, together = trial.time_call(step)
        usual = sorted(trial.time_call(step)[0] for _ in range(MEASURED_CALLS))[MEASURED_CALLS // 2]
        compiling += max(0.0, first - usual) * together
        seconds, steps = seconds + often * usual, steps + often
    left = (trial.config.minutes or 0.0) * 60 * (1 - OVERHEAD) - (time.perf_counter() - began) - compiling
    return max(1, int(left / (seconds / steps)))


def _shapes(task: Any, config: TrainConfig) -> Any:
    """The shapes of the parameters; ``UsageError`` for an option of the cell that it cannot use."""
    try:
        return jax.eval_shape(task.init, jax.random.key(0))
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError) or not config.cell_options:
            raise
        given = " ".join(f"{name} {value}" for name, value in config.cell_options.items())
        raise UsageError(
            f"The cell {config.cell!r} cannot use --cell-options {given}: {str(error).splitlines()[0]} "
            "Give a value of the kind that the option has, or leave it out."
        ) from None


def _borrowed(source: SavedRun, shapes: Any) -> Any:
    """The best weights of ``source``; ``UsageError`` unless they have the ``shapes`` of the new model."""
    try:
        return source.params(shapes)[1]
    except CheckpointError as error:
        raise UsageError(f"--init-from {source.directory.path} does not fit this model. {error}") from None


class Kind(NamedTuple):
    """How runs of one kind of model begin, and how they go on with data that are what they were."""

    start: Callable[[TrainConfig, Emit], Trainer]
    resume: Callable[[SavedRun, TrainConfig, Any, Emit], Trainer]


#: By the names that ``--model`` has.
MODELS = {"ngram": Kind(counting.start, counting.resume), "rnn": Kind(_start, _resume)}
