"""How a run begins and how it goes on: everything that can be wrong is found here, before anything is compiled."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxgen.distributed.processes import process_group
from jaxgen.errors import CheckpointError, DataError, UsageError, choose
from jaxgen.fsutil import json_sha256
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import MAX_STEPS, TrainConfig
from jaxgen.runs.config_file import environment_diff, versions, write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import truncate_samples
from jaxgen.runtime import processor_name
from jaxgen.tasks.base import TaskData
from jaxgen.tasks.registry import DATA, baseline, objective
from jaxgen.trainer.devices import check_memory, choose_devices, other_processes, rescale_devices
from jaxgen.trainer.events import Emit, Note, ProgressEvents, ignore
from jaxgen.trainer.follower import Follower
from jaxgen.trainer.progress_state import ProgressState
from jaxgen.trainer.recorder import require_tensorboard
from jaxgen.trainer.schedule import build_optimizer
from jaxgen.trainer.trainer import Trainer
from jaxgen.training.step import create_state

#: Calls of the compiled step that ``--minutes`` times for every shape of batches, after one that compiles.
MEASURED_CALLS = 3
#: Share of the time of ``--minutes`` kept for evaluations, checkpoints and samples.
OVERHEAD = 0.15


def num_steps(config: TrainConfig, data: Any) -> int | None:
    """The number of steps that the settings name; ``None`` when it is to be measured.

    Raises ``UsageError`` for epochs of more steps than a run has.
    """
    if config.minutes is not None:
        return None
    if config.epochs is not None:
        steps = max(1, round(config.epochs * data.batches.steps_per_epoch))
        if steps > MAX_STEPS:
            raise UsageError(
                f"--epochs {config.epochs:g} of {data.batches.steps_per_epoch:,} steps are {steps:,} steps, and a run "
                f"has at most {MAX_STEPS:,}: give fewer epochs."
            )
        return steps
    return config.presets[config.preset][1]["steps"] if config.steps is None else config.steps


def extend_steps(saved: LoadedRun, config: TrainConfig, data: Any) -> int:
    """The number of steps of a resumed run; the horizon of its schedule stays what it was."""
    then, now = ((c.steps, c.epochs, c.minutes) for c in (saved.config, config))
    if now in (then, (None, None, None)):
        return saved.resolved["steps"]
    steps = num_steps(config, data)
    if steps is None:
        raise UsageError(
            f"--minutes {config.minutes:g} cannot be measured in a run that goes on: name the new length with --steps "
            f"(it is {saved.resolved['steps']} now)."
        )
    return steps


def steps_for_minutes(trial: Trainer, began: float) -> int:
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
    each = max(seconds / steps, sys.float_info.min)  # a coarse clock may see no time pass
    return max(1, int(min(left / each, MAX_STEPS)))


#: Folders of checkpoints of step 0, whole or not.
FIRST = r"0{8}(\.[0-9]+)?|\.tmp-.*"


def start(config: TrainConfig, emit: Emit = ignore) -> Trainer:
    """A new run in a new folder. Raises ``UsageError``, ``DataError`` and ``CheckpointError`` before it exists.

    With several processes (``jaxgen.distributed``), each must call it, and process 0 makes the folder.
    """
    _check_several(config)
    with _exclusively(config.run):
        return (_start if config.model == "rnn" else baseline(config.task, config.model).start)(config, emit)


def _check_several(config: TrainConfig) -> None:
    """Raise ``UsageError``, on all processes at once, where several cannot share the work."""
    with process_group().together():
        if not process_group().alone and config.model != "rnn" and not baseline(config.task, config.model).SEVERAL:
            raise UsageError(
                f"--model {config.model} is made by one process: leave out --distributed or --coordinator."
            )


@contextmanager
def _exclusively(folder: str | None, new: bool = True) -> Iterator[None]:
    """Keep the lock of a run's folder, if the block ends well; of several processes the leader has it."""
    team = process_group()
    with ExitStack() as stack:
        with team.together():
            if folder is not None and team.leads:
                stack.enter_context(RunLock.kept(folder, new))
        yield


def _start(config: TrainConfig, emit: Emit) -> Trainer:
    began, team = time.perf_counter(), process_group()
    emit = emit if team.leads else ignore
    with team.together() as facts:
        task, data, resolved, params = _prepared(config, emit)
        facts |= _facts(config, data, resolved)
        if team.leads:
            _clear_unfinished(config.run)
            RunDirectory.check(config.run)
    steps = num_steps(config, data)
    if steps is None:  # before there is a folder: who stops the measuring leaves none behind
        nowhere = RunDirectory("" if config.run is None else config.run)
        one = {**resolved, "steps": 1, "horizon": 1}
        steps = team.told(steps_for_minutes(_trainer(config, data, task, nowhere, one, emit), began))
        emit(Note(f"{config.minutes:g} minutes are enough for {steps:,} steps here; the number is fixed from now on."))
    resolved |= {"steps": steps, "horizon": steps}
    with team.together():
        run = RunDirectory.create(config.run, config.task) if team.leads else RunDirectory("")
        if team.leads:
            run.write_json("tokenizer.json", data.codec.to_json())
    trainer = _trainer(config, data, task, run, resolved, emit).begin(params)
    with team.together():
        trainer.save_first()
        if team.leads:
            write_config(run, config, resolved)
    return trainer


def _trainer(
    config: TrainConfig, data: Any, task: Any, run: RunDirectory, resolved: dict[str, Any], emit: Emit
) -> Trainer:
    """What trains in this process."""
    if process_group().leads:
        return Trainer(config, data, task, run, resolved, emit)
    return Follower(config, data, task, run, resolved)


def _facts(config: TrainConfig, data: TaskData, resolved: dict[str, Any]) -> dict[str, str]:
    """What must be the same on all processes that train one run."""
    here = {"run", *config.places}
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in here}
    plan = {name: resolved[name] for name in ("model", "devices")}
    return {
        "settings": json.dumps(settings),
        "versions": json.dumps(versions()),
        "data": data.fingerprint()["sha256"],
        "plan": json.dumps(plan, default=str),
    }


def _prepared(config: TrainConfig, emit: Emit) -> tuple[Any, TaskData, dict[str, Any], Any]:
    """The task, its data, what a run keeps of both, and the weights to begin from, if any; nothing is written."""
    build_optimizer(config, horizon=1)
    if config.tensorboard:
        require_tensorboard()
    source = None if config.init_from is None else LoadedRun.open(config.init_from)
    if source is not None and source.config.task != config.task:
        raise UsageError(
            f"--init-from {config.init_from} is a run of the task {source.config.task}, and this is one of "
            f"{config.task}: give a run of the same task."
        )
    build = objective(config.task, config.model).build
    options_of = getattr(DATA[config.task], "options_without_data", None)
    if options_of is not None and (known := options_of(config)) is not None:
        build(**known)  # what is wrong with the model is said before data are read that take a while
    data = _load(config, source.codec if source else None, emit)
    options = data.model_options()
    task = build(**options)
    shapes = _shapes(task, config)
    # What rules choose by the device is written down, so that a resumed run computes the same bits.
    options |= task.resolved_options()
    task = build(**options)
    params = None if source is None else _borrowed(source, shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    devices = choose_devices(config, parameters / data.tokens_per_step)
    check_memory(parameters, devices // process_group().count)
    return task, data, resolve_config(data, options, parameters, devices), params


def resolve_config(data: TaskData, options: dict[str, Any], parameters: int, devices: int) -> dict[str, Any]:
    """What ``config.json`` records as resolved from the data and the device; the number of steps is added later."""
    return {
        "model": options,
        "parameters": parameters,
        "data": data.fingerprint(),
        **data.resolved(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "processor": processor_name(),
        "devices": devices,
        "processes": jax.process_count(),
        "tokenizer": json_sha256(data.codec.to_json()),
    }


def resume(path: str, config: TrainConfig | None = None, emit: Emit = ignore, data_changed: str = "refuse") -> Trainer:
    """Continue the run at ``path`` where it stopped, bitwise as if it had not (on one kind of device).

    ``config`` may differ from the saved one in ``TrainConfig.may_change``, and in ``places`` where the same data are
    found, else ``UsageError``. Raises ``DataError`` when the data are not what they were, unless ``data_changed`` is
    ``"accept"`` instead of ``"refuse"``, and ``CheckpointError`` when no checkpoint is good.
    """
    choose(data_changed, ("accept", "refuse"), "value for --data-changed")
    with _exclusively(path if RunDirectory(path).exists() else None, new=False):
        team = process_group()
        emit = emit if team.leads else ignore
        with team.together() as facts:
            saved, config, data = _reopened(path, config, emit, data_changed)
            facts |= _facts(config, data, saved.resolved)
        _check_several(config)
        go_on = _resume if config.model == "rnn" else baseline(config.task, config.model).resume
        return go_on(saved, config, data, emit)


def _reopened(
    path: str, config: TrainConfig | None, emit: Emit, data_changed: str
) -> tuple[LoadedRun, TrainConfig, TaskData]:
    saved = LoadedRun.open(path)
    config = config or saved.config
    may_change = config.places | ({"devices"} if other_processes(saved) else set())
    if changed := [name for name in saved.config.changes(config) if name not in may_change]:
        listed = ", ".join(
            f"--{name.replace('_', '-')} ({getattr(saved.config, name)!r} then, {getattr(config, name)!r} now)"
            for name in changed
        )
        raise UsageError(f"The run {path} was started with other settings: {listed}. Leave them out to continue it.")
    data = _load(config, saved.codec, emit)
    if note := rescale_devices(saved, config, data):
        emit(Note(note))
    then, now = saved.resolved["data"], data.fingerprint()
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
    if other := environment_diff(saved.resolved):
        emit(Note(f"WARNING: This run was begun with {other}: what is computed from here on may differ in its bits."))
    return saved, config, data


def _resume(saved: LoadedRun, config: TrainConfig, data: TaskData, emit: Emit) -> Trainer:
    path, resolved = saved.directory.path, {**saved.resolved, "steps": extend_steps(saved, config, data)}
    if resolved["steps"] > resolved["horizon"] and config.schedule != "constant":
        emit(
            Note(
                f"The learning rate has reached its end at step {resolved['horizon']:,} and stays there until step "
                f"{resolved['steps']:,}. For a new course of it, start another run with --init-from {path}."
            )
        )
    trainer, team = _trainer(config, data, saved.task, saved.directory, resolved, emit), process_group()
    make = partial(create_state, saved.task, trainer.optimizer, rows=config.batch_size)
    like = jax.eval_shape(make, trainer.key)
    state, done = None, None
    with team.together():
        if team.leads:
            state, done = _restored(trainer, like, emit)
            write_config(saved.directory, config, resolved)
    if state is None:
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    trainer.recall(ProgressState(**team.told(done))).go_on(team.shared(state))
    return trainer


def _restored(trainer: Trainer, like: Any, emit: Emit) -> tuple[Any, dict[str, Any]]:
    """The state of the newest good checkpoint and what the host remembered; what was recorded later is dropped."""
    path = trainer.run.path
    if trainer.store.latest() is None:
        raise CheckpointError(
            f"The run {path} has no checkpoint left, and every run has one from its first moment: bring its folder "
            f"{trainer.store.directory.name} back, or train anew in another folder."
        )
    step, state, host, problems = trainer.store.restore_newest_good(like)
    done = asdict(ProgressState.read(host, path))
    for problem in problems:
        emit(Note(f"WARNING: {problem} Continuing from step {step:,}."))
    trainer.metrics.truncate(step)
    truncate_samples(trainer.run.samples_path, step)
    trainer.store.truncate(step)
    return state, done


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


def _load(config: Any, codec: Any, emit: Emit) -> TaskData:
    return DATA[config.task].load(config, codec, ProgressEvents(emit))


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


def _borrowed(source: LoadedRun, shapes: Any) -> Any:
    """The best weights of ``source``; ``UsageError`` unless they have the ``shapes`` of the new model."""
    try:
        return source.params(shapes)[1]
    except CheckpointError as error:
        raise UsageError(f"--init-from {source.directory.path} does not fit this model. {error}") from None
