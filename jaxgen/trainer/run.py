"""Starts and resumes training runs. All input is checked here, before anything is compiled."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.data.files import data_folders
from jaxgen.errors import CheckpointError, DataError, UsageError, check_kind, choose, counted, flag_of
from jaxgen.fsutil import json_sha256
from jaxgen.inference.loading import LoadedRun
from jaxgen.plugins import used_plugins
from jaxgen.runs.config import MAX_STEPS, TrainConfig, environment_diff, run_digest, versions, write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.runs.manifest import (
    DamagedCheckpointError,
    ForeignCheckpointError,
    UnreadableCheckpointError,
    tree_sha256,
)
from jaxgen.runtime import check_jax_settings, multiplies_bfloat16, need_devices, numerics, processor_name, total_memory
from jaxgen.sampling.decode import make_key
from jaxgen.tasks.base import Codec, TaskData
from jaxgen.tasks.registry import DATA, baseline, objective
from jaxgen.trainer.advice import advise_data
from jaxgen.trainer.callbacks import Callback, Emit, Note, ProgressEvents, ignore
from jaxgen.trainer.evaluate import build_optimizer
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.trainer.progress_state import ProgressState
from jaxgen.trainer.recorder import NullRecorder, Recorder, make_recorder
from jaxgen.trainer.teacher import check_teacher, open_teacher
from jaxgen.trainer.trackers import make_trackers
from jaxgen.trainer.trainer import RunTrainer
from jaxgen.training.data_parallel import data_parallel_size
from jaxgen.training.step import TrainState, create_state
from jaxgen.training.task import param_shapes
from jaxgen.types import Params


def choose_devices(config: TrainConfig, load: float, processes: int) -> int:
    """The number of devices, over all processes, that share a batch: ``--devices``, else ``data_parallel_size``.

    ``load`` is the number of parameters per token of a batch. Raises ``UsageError`` for numbers that do not divide.
    """
    rows = config.micro_batch_size
    for number, of in ((processes, f"{processes} processes"), (config.devices or 1, f"--devices {config.devices}")):
        if rows % number:
            micro = f" (--batch-size {config.batch_size}, --accumulate {config.accumulate})" * (config.accumulate > 1)
            raise UsageError(
                f"A batch of {rows} rows{micro} cannot be spread evenly over {of}: give a --batch-size that the "
                "number divides, or take another number."
            )
    if config.devices is None:
        return processes * data_parallel_size(rows // processes, jax.local_device_count(), load)
    if config.devices % processes:
        raise UsageError(
            f"--devices {config.devices} cannot be the same number of devices on each of {processes} processes: give "
            "the number of all together."
        )
    need_devices(config.devices // processes, f"--devices {config.devices} asks for {config.devices}")
    return config.devices


def rescale_devices(saved: LoadedRun, config: TrainConfig, data: TaskData, processes: int, emit: Emit) -> None:
    """Check the devices of a resumed run or, with another number of processes, put new ones into ``saved.resolved``."""
    resolved = saved.resolved
    before = resolved.get("processes", 1)
    if before == processes:
        who = f"The run {saved.directory} spreads its batches over {resolved['devices']}"
        need_devices(resolved["devices"] // processes, who)
        return
    each, rest = divmod(config.devices or processes, processes)
    if config.devices == saved.config.devices and (rest or each > jax.local_device_count()):
        config = config.model_copy(update={"devices": None})  # the saved --devices is impossible with these processes
    devices = choose_devices(config, resolved["parameters"] / data.tokens_per_step, processes)
    change = f"{before} and {resolved['devices']} then, {processes} and {devices} now"
    emit(Note(f"Processes and devices of the run: {change}. Its batches stay the same, but rounding differs."))
    resolved |= {"devices": devices, "processes": processes}


#: Bytes that training needs for each parameter: the weight, its gradient and two moments.
BYTES_PER_PARAMETER = 16


def device_memory() -> int | None:
    """The bytes of memory of a device; of a CPU those of the computer. None if the system does not tell."""
    if jax.default_backend() != "cpu":
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        return None if limit is None else int(limit)
    return total_memory()


def check_device_memory(parameters: int, devices: int) -> None:
    """Raise ``UsageError`` for a model that this machine cannot hold.

    Checked only where the weights of all devices are in the computer's main memory and the system tells its size.
    """
    needed, available = parameters * BYTES_PER_PARAMETER * devices, device_memory()
    if jax.default_backend() == "cpu" and available is not None and needed > available:
        raise UsageError(
            f"A model of {parameters:,} parameters needs at least {needed / 2**30:.0f} GiB to train, and this machine "
            f"has {available / 2**30:.0f} GiB. Choose a smaller --hidden, --layers or vocabulary, or --devices 1."
        )


def num_steps(config: TrainConfig, data: TaskData) -> int | None:
    """The number of steps of the settings; None if it must be measured (``--minutes``). Raises ``UsageError``."""
    if config.minutes is not None:
        return None
    if config.epochs is not None:
        steps = max(1, round(config.epochs * data.batches.steps_per_epoch))
        if steps > MAX_STEPS:
            raise UsageError(f"--epochs {config.epochs:g} are {steps:,} steps, and a run has at most {MAX_STEPS:,}.")
        return steps
    return steps_of(config)


def steps_of(config: TrainConfig) -> int:
    """The steps of a run whose length does not depend on its data."""
    return int(config.presets[config.preset][1]["steps"]) if config.steps is None else config.steps


def extend_steps(saved: LoadedRun, config: TrainConfig, data: TaskData) -> int:
    """The number of steps of a resumed run. The horizon of its schedule stays the same."""
    then, now = ((c.steps, c.epochs, c.minutes) for c in (saved.config, config))
    if now in (then, (None, None, None)):
        return int(saved.resolved["steps"])
    steps = num_steps(config, data)
    if steps is None:
        length = counted(saved.resolved["steps"], "step")
        raise UsageError(f"--minutes cannot lengthen a run of {length}: give its new --steps.")
    return steps


class Prepared(NamedTuple):
    """A run before it starts: everything is read and checked, nothing is written."""

    task: Any
    data: TaskData
    resolved: dict[str, Any]  # what ``config.json`` will record, but for the number of steps
    params: Params | None  # the first weights, if they are given


class Source(Protocol):
    """Where a new run takes its codec and its first weights from: another run, or a file of weights."""

    @property
    def codec(self) -> Any: ...

    def params(self, like: Params) -> tuple[int, Params]: ...


def start(
    config: TrainConfig,
    emit: Emit | None = None,
    callbacks: Sequence[Callback] | None = None,
    group: ProcessGroup | None = None,
    began: float | None = None,
    source: Source | None = None,
    *,
    horizon: int | None = None,
    prepared: Prepared | None = None,
) -> RunTrainer:
    """A new run in a new folder.

    Args:
        config: the settings of the run, of the task's own class.
        emit: receives the events of ``jaxgen.trainer.callbacks``, also those before training starts.
        callbacks: called by the training loop after its own.
        group: the processes that train the run together; each of them must call this. Default: this one alone.
        began: when the time of ``--minutes`` began, on the clock ``time.perf_counter``. Default: now.
        source: the codec and weights to start from. Default: those of the run ``--init-from``, if it is given.
        horizon: the step at which the schedule ends, for a run that will be lengthened. Default: its last step.
        prepared: what ``prepare`` returned for these settings. Default: it is called.

    Raises:
        UsageError, DataError, CheckpointError: an input cannot be used. No run is left behind.

    Example:
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
        >>> trainer = jaxgen.start(config)
        >>> trainer.total_steps
        2
    """
    check_jax_settings()
    group, began = _check_group(group), time.perf_counter() if began is None else began
    emit = ignore if emit is None else emit
    config = _check_config("start", config)
    callbacks = _check_callbacks(emit, callbacks)
    with ExitStack() as stack:
        make_run: Callable[[], RunDirectory] = partial(RunDirectory, os.devnull)
        with group.all_or_none():
            _check_several(config, group)
            if group.is_main:
                make_run = stack.enter_context(RunDirectory.new(config.run, config.task.replace(":", "-")))
        if config.model != "rnn":
            trainer: RunTrainer = baseline(config.task, config.model).start(config, emit, callbacks, make_run)
            return trainer
        return _start(config, emit, callbacks, group, make_run, began, source, horizon, prepared)


def prepare(config: TrainConfig, emit: Emit | None = None) -> Prepared:
    """Read the data of a run, of one process, and check its settings as ``start`` does; nothing is written.

    Raises ``UsageError``, ``DataError`` and ``CheckpointError`` as ``start`` does.
    """
    check_jax_settings()
    return _prepare(_check_config("start", config), ignore if emit is None else emit, 1, None)


def _check_config(function: str, config: TrainConfig) -> TrainConfig:
    """The settings. Raises ``UsageError``, which names the ``function``, for anything else."""
    return check_kind(function, config, TrainConfig, 'settings, for example jaxgen.LanguageConfig(data=("book.txt",))')


def _check_group(group: ProcessGroup | None) -> ProcessGroup:
    """The processes that train together. Raises ``UsageError`` for anything else."""
    return ProcessGroup() if group is None else check_kind("group", group, ProcessGroup, "none for a single process")


def _check_callbacks(emit: Emit, callbacks: Sequence[Callback] | None) -> Sequence[Callback]:
    """The callbacks as a list. Raises ``UsageError`` for anything else, and for an ``emit`` that is no function."""
    right = "a list of instances of jaxgen.Callback, callbacks=[...]"
    if not callable(emit) or isinstance(emit, Callback):
        raise UsageError(f"emit got {emit!r}: give a function of one event; callbacks are {right}.")
    callbacks = [] if callbacks is None else callbacks
    given = [callbacks] if isinstance(callbacks, Callback) else check_kind("callbacks", callbacks, Sequence, right)
    return [check_kind("callbacks", each, Callback, right) for each in given]


def _check_several(config: TrainConfig, group: ProcessGroup) -> None:
    """Raise ``UsageError`` if several processes cannot train this model."""
    if not group.is_single and config.model != "rnn" and not baseline(config.task, config.model).SEVERAL_PROCESSES:
        raise UsageError(f"--model {config.model} needs a single process: leave out --distributed or --coordinator.")


@contextmanager
def _exclusively(run: RunDirectory, group: ProcessGroup) -> Iterator[None]:
    """Take the lock of a run, on the main process; it is released if the block raises."""
    with ExitStack() as stack:
        with group.all_or_none():
            if run.exists() and group.is_main:
                stack.enter_context(RunLock.kept(run.path))
                run.clean()
        yield


def _start(
    config: TrainConfig,
    emit: Emit,
    callbacks: Sequence[Callback],
    group: ProcessGroup,
    make_run: Callable[[], RunDirectory],
    began: float,
    source: Source | None,
    horizon: int | None,
    prepared: Prepared | None,
) -> RunTrainer:
    emit = emit if group.is_main else ignore
    with group.all_or_none() as facts:
        task, data, resolved, params = prepared or _prepare(config, emit, group.count, source)
        facts |= _must_agree(config, data, resolved)
    steps, deadline = num_steps(config, data), math.inf
    if steps is None:  # before there is a folder: interrupting leaves no run directory
        steps, deadline = _measured_steps(config, data, task, resolved, group, began)
        emit(Note(f"{counted(steps, 'step')} fit into --minutes {config.minutes:g} here; the number is now fixed."))
    resolved |= {"steps": steps, "horizon": steps if horizon is None else horizon}
    run, recorder = RunDirectory(os.devnull), NullRecorder()
    with group.all_or_none():
        if group.is_main:
            run = make_run()
            recorder = make_recorder(run, data, resolved, emit, callbacks)
            resolved["data_folders"] = [run.relative_to_here()]
            run.write_json("tokenizer.json", data.codec.to_json())
    trainer = RunTrainer(config, data, task, run, resolved, recorder, group, deadline).init_state(params)
    with group.all_or_none():
        trainer.save(0)  # a run without any checkpoint has lost them, and must not silently start again
        if group.is_main:
            write_config(run, config, resolved)
    return trainer


def _measured_steps(
    config: TrainConfig, data: TaskData, task: Any, resolved: dict[str, Any], group: ProcessGroup, began: float
) -> tuple[int, float]:
    """The number of steps that fit into ``--minutes``, and when the training loop must end, measured on a trial."""
    from jaxgen.trainer.minutes import fitting_steps, measure

    trial = _trial(config, data, task, resolved, group)
    costs = measure(trial, began)
    with group.all_or_none():
        steps = fitting_steps(config, costs, time.perf_counter() - began)
    return group.broadcast_json(steps), began + (config.minutes or 0.0) * 60 - costs.final


def trial(config: TrainConfig, emit: Emit | None = None) -> RunTrainer:
    """A trainer without a run, to try out settings: it has no folder, and records nothing.

    Raises ``UsageError``, ``DataError`` and ``CheckpointError`` as ``start`` does.
    """
    check_jax_settings()
    config, group = _check_config("find_lr", config), ProcessGroup()
    if config.model != "rnn":
        raise UsageError(f"--model {config.model} is not trained by gradients: give --model rnn, or leave it out.")
    task, data, resolved, params = _prepare(config, ignore if emit is None else emit, group.count, None)
    return _trial(config, data, task, resolved, group, params)


def _trial(
    config: TrainConfig,
    data: TaskData,
    task: Any,
    resolved: dict[str, Any],
    group: ProcessGroup,
    params: Params | None = None,
) -> RunTrainer:
    """A trainer that records nothing. ``time_call`` and ``try_step`` take as many steps as they are called for."""
    one_step = {**resolved, "steps": 1, "horizon": 1}
    run = RunDirectory(os.devnull)
    return RunTrainer(config, data, task, run, one_step, NullRecorder(), group).init_state(params)


def _must_agree(config: TrainConfig, data: TaskData, resolved: dict[str, Any]) -> dict[str, str]:
    """What must be the same on all processes of a run, by name."""
    return {
        "settings": json.dumps(config.model_dump(mode="json", exclude={"run", *config.places})),
        "versions": json.dumps(versions()),
        "data": data.fingerprint()["sha256"],
        "plugins": json.dumps(resolved.get("plugins")),
        "plan": json.dumps([resolved["model"], resolved["devices"]], default=str),
    }


def _prepare(config: TrainConfig, emit: Emit, processes: int, source: Source | None) -> Prepared:
    """As ``prepare``, for one of several ``processes``; ``source`` is that of ``start``."""
    build_optimizer(config)
    make_trackers(config.log)
    if source is None and config.init_from is not None:
        source = run = LoadedRun.open(config.init_from)
        if run.config.task != config.task:
            raise UsageError(
                f"--init-from {config.init_from} is a run of the task {run.config.task}, and this is one of "
                f"{config.task}: give a run of the same task."
            )
    if config.precision == "bfloat16" and not multiplies_bfloat16():
        emit(Note("This processor does not multiply bfloat16 natively: --precision float32 is faster here."))
    build = objective(config.task, config.model).build
    options_of = getattr(DATA[config.task], "options_without_data", None)
    if options_of is not None and (known := options_of(config)) is not None:
        build(**known)  # an error in the model is reported before data are read slowly
    teacher = open_teacher(config)
    given = source or teacher
    data = _load(config, given.codec if given else None, emit)
    runs = [source] if isinstance(source, LoadedRun) else []
    if teacher is not None:
        check_teacher(teacher, data)
        runs += map(LoadedRun.open, teacher.runs)
    _check_unread(data, runs)
    options = data.model_options()
    task = build(**options)
    shapes = _shapes(task, config)
    # Options that depend on the device are recorded, so that a resumed run computes the same bits.
    options |= task.resolved_options()
    task = build(**options)
    params = None
    if isinstance(source, LoadedRun) and getattr(config, "extend_vocabulary", False):
        params = _extended_params(source, task, data, config)
    elif source is not None:
        params = _initial_params(source, shapes, config.init_from)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    devices = choose_devices(config, parameters / data.tokens_per_step, processes)
    check_device_memory(parameters, devices // processes)
    for text in advise_data(data):
        emit(Note(text))
    more: dict[str, Any] = {} if teacher is None else {"teacher": teacher.origin()}
    if runs:
        more["read"] = [each for run in runs for each in run.read]
    return Prepared(task, data, resolve_config(data, options, parameters, devices, params, more), params)


def _check_unread(data: TaskData, runs: Iterable[LoadedRun]) -> None:
    """Raise ``UsageError`` if one of ``runs``, from which this one learns, has read what ``--holdout`` holds out."""
    held, own = data.resolved().get("holdout"), data.fingerprint()["sha256"]
    for run in runs if held else ():
        if held and any(sha256 == own and kept != held["sha256"] for sha256, kept in run.read):
            raise UsageError(
                f"--holdout keeps a text from training that the run {run.directory} (--init-from, --teacher), or one "
                "that it began with, was trained on: give a run that held out the same text, or leave out --holdout."
            )


def resolve_config(
    data: TaskData,
    options: dict[str, Any],
    parameters: int,
    devices: int,
    initial: Params | None = None,
    more: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """What ``config.json`` records as resolved from the data and the device; the number of steps is added later.

    ``initial`` are the weights of ``--init-from``; ``more`` are other entries.
    """
    resolved = {
        "model": options,
        "parameters": parameters,
        "data": data.fingerprint(),
        "reading": data.config.reading.model_dump(),
        **data.resolved(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "processor": processor_name(),
        "environment": numerics(),
        "devices": devices,
        "processes": jax.process_count(),
        "tokenizer": json_sha256(data.codec.to_json()),
        **more,
    }
    if plugins := used_plugins(data.config):
        resolved["plugins"] = plugins
    weights = None if initial is None else tree_sha256(initial)
    return {**resolved, "run_digest": run_digest(data.config, resolved, weights)}


def resume(
    path: str | os.PathLike[str],
    config: TrainConfig | None = None,
    emit: Emit | None = None,
    data_changed: str = "refuse",
    callbacks: Sequence[Callback] | None = None,
    group: ProcessGroup | None = None,
) -> RunTrainer:
    """Continue the run at ``path``; on one kind of device, bit for bit as if it had not been stopped.

    Args:
        path: the folder of the run.
        config: settings that differ from the saved ones only in ``TrainConfig.may_change``, or in ``places`` if the
            same data have moved. Default: the saved ones.
        data_changed: "refuse" or "accept" data that have changed.
        emit, callbacks, group: as in ``start``.

    Raises:
        UsageError: other settings differ, or the run is part of jaxgen.
        DataError: the data cannot be read, or have changed.
        CheckpointError: no checkpoint is good.

    Example:
        >>> trainer = jaxgen.resume("runs/language-1")
        >>> int(trainer.state.step)
        2
    """
    check_jax_settings()
    choose(data_changed, ("accept", "refuse"), "value for --data-changed")
    path = os.fspath(check_kind("resume", path, str | os.PathLike, "the folder of the run"))
    if config is not None:
        check_kind("resume", config, TrainConfig, "settings made from those of the run, or none")
    emit = ignore if emit is None else emit
    group, callbacks = _check_group(group), _check_callbacks(emit, callbacks)
    RunDirectory(path).check_trainable()
    with _exclusively(RunDirectory(path), group):
        emit = emit if group.is_main else ignore
        with group.all_or_none() as facts:
            saved, config, data = _reopen(path, config, emit, data_changed, group.count)
            facts |= _must_agree(config, data, saved.resolved)
            _check_several(config, group)
        if config.model != "rnn":
            trainer: RunTrainer = baseline(config.task, config.model).resume(saved, config, data, emit, callbacks)
            return trainer
        return _resume(saved, config, data, emit, callbacks, group)


def _reopen(
    path: str, config: TrainConfig | None, emit: Emit, data_changed: str, processes: int
) -> tuple[LoadedRun, TrainConfig, TaskData]:
    """The saved run, its settings and its data, checked against the recorded ones."""
    saved = LoadedRun.open(path)
    right = f"settings of the task {saved.config.task}"
    config = saved.config if config is None else check_kind("resume", config, type(saved.config), right)
    may_change = config.places | ({"devices"} if saved.resolved.get("processes", 1) != processes else set())
    if changed := ", ".join(
        f"{flag_of(name)} ({getattr(saved.config, name)!r} then, {getattr(config, name)!r} now)"
        for name in saved.config.changes(config)
        if name not in may_change
    ):
        raise UsageError(f"The run {path} was started with other settings: {changed}. Leave them out to continue it.")
    header = saved.resolved.get("header")
    # The vocabulary was extended when the run was started, and its codec is that.
    as_started = {"extend_vocabulary": False} if hasattr(config, "extend_vocabulary") else {}
    same = config.model_copy(update=as_started if header is None else {**as_started, "header": header})
    with data_folders(saved.data_folders):
        data = _load(same, saved.codec, emit)
    here = saved.directory.relative_to_here()
    moved = any(getattr(config, name, None) != getattr(saved.config, name, None) for name in config.places)
    if moved and here not in saved.resolved["data_folders"]:
        saved.resolved["data_folders"].insert(0, here)
    rescale_devices(saved, config, data, processes, emit)
    then, now = saved.resolved["data"], data.fingerprint()
    if then["sha256"] != now["sha256"]:
        changes = (
            f"The data of the run {path} have changed: {then['name']} with sha256 {then['sha256']} then, "
            f"{now['name']} with {now['sha256']} now."
        )
        if data_changed == "refuse":
            advice = "Bring back the old data, start a new run with --init-from, or give --data-changed accept."
            raise DataError(f"{changes} {advice}")
        emit(Note(f"WARNING: {changes} The run continues with the new data, at the same step."))
        saved.resolved["read"] = saved.read
        saved.resolved.pop("holdout", None)  # the new data may train on the text that was held out
    saved.resolved["data"] = now
    if plugins := used_plugins(config):  # another version may have been accepted
        saved.resolved["plugins"] = plugins
    if differences := environment_diff(saved.resolved):
        emit(Note(f"WARNING: This run was started with {differences}: the bits of its results may now differ."))
    return saved, config, data


def _resume(
    saved: LoadedRun,
    config: TrainConfig,
    data: TaskData,
    emit: Emit,
    callbacks: Sequence[Callback],
    group: ProcessGroup,
) -> RunTrainer:
    run, resolved = saved.directory, {**saved.resolved, "steps": extend_steps(saved, config, data)}
    if resolved["steps"] > resolved["horizon"] and config.schedule != "constant":
        end = f"The learning rate has reached its end at step {resolved['horizon']:,} and stays there."
        emit(Note(f"{end} For a new schedule, start another run with --init-from {run}."))
    recorder = make_recorder(run, data, resolved, emit, callbacks) if group.is_main else NullRecorder()
    trainer = RunTrainer(config, data, saved.task, run, resolved, recorder, group)
    like = jax.eval_shape(
        partial(create_state, trainer.learner, trainer.optimizer, rows=config.batch_size), trainer.key
    )
    state, progress = None, ProgressState()
    with group.all_or_none():
        if isinstance(recorder, Recorder):
            state, progress = _restore_progress(recorder, like, emit)
            write_config(run, config, resolved)
    trainer.set_progress(ProgressState(**group.broadcast_json(asdict(progress))))
    if state is None:  # not the main process, whose values replace these
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return trainer.set_state(group.broadcast_tree(state))


def _restore_progress(recorder: Recorder, like: TrainState, emit: Emit) -> tuple[TrainState, ProgressState]:
    """The state and progress of the newest good checkpoint; drops what was recorded after it."""
    run, store = recorder.run, recorder.store
    if store.latest() is None:
        raise CheckpointError(
            f"The run {run} has lost its checkpoints: bring its folder {store.directory.name} back, or train anew in "
            "another folder."
        )
    step, state, host, problems = store.restore_newest_good(like)
    progress = ProgressState.read(host)
    for problem in problems:
        emit(Note(f"WARNING: {problem} Continuing from step {step:,}."))
    recorder.truncate_after(step)
    note_edited_log(run, progress, emit)
    return state, progress


def note_edited_log(run: RunDirectory, progress: ProgressState, emit: Emit) -> None:
    """Emit a warning if rows of ``metrics.jsonl`` are not those that ``progress`` knows; no result depends on them."""
    log = MetricsLog(run.metrics_path)
    if line := progress.log.changed_line(log.rows()):
        emit(Note(f"WARNING: {log.path} was edited, first in {line}. The run continues: only its curves change."))


def _load(config: TrainConfig, codec: Codec | None, emit: Emit) -> TaskData:
    data: TaskData = DATA[config.task].load(config, codec, ProgressEvents(emit))
    return data


def _shapes(task: Any, config: TrainConfig) -> Params:
    """The shapes of the parameters; ``UsageError`` for an option of the cell that it cannot use."""
    try:
        return param_shapes(task)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError) or not config.cell_options or used_plugins(config):
            raise
        given = " ".join(f"{name} {value}" for name, value in config.cell_options.items())
        raise UsageError(
            f"The cell {config.layers_pattern or config.cell!r} cannot use --cell-options {given}: "
            f"{str(error).splitlines()[0]} Give a value of the kind that the option has, or leave it out."
        ) from None


def _extended_params(source: LoadedRun, task: Any, data: TaskData, config: TrainConfig) -> Params:
    """The weights of ``source`` for a model with more tokens: those of the new ones are those of a new model."""
    sizes = tuple(data.vocab_sizes(codec)["vocab_size"] for codec in (source.codec, data.codec))
    fresh = create_state(task, optax.identity(), make_key(config.seed), rows=1).params
    old = source.params()[1]

    def extend(old: Any, fresh: Any) -> Any:
        if old.shape == fresh.shape:
            return old
        kept = [pair for pair in zip(old.shape, fresh.shape) if pair[0] != pair[1]]
        if len(old.shape) != len(fresh.shape) or kept != [sizes]:
            raise ValueError(f"an array has the shape {old.shape} there, and {fresh.shape} here")
        return jnp.asarray(fresh).at[tuple(map(slice, old.shape))].set(old)

    try:
        extended: Params = jax.tree.map(extend, old, fresh)
    except ValueError as error:
        raise UsageError(
            f"--init-from {config.init_from} does not fit this model: {str(error).splitlines()[0]}. Give the settings "
            "of that run."
        ) from None
    return extended


def _initial_params(source: Source, shapes: Params, name: str | None) -> Params:
    """The weights of ``source``, the run ``name``; ``UsageError`` unless they have the ``shapes`` of the new model."""
    try:
        return source.params(shapes)[1]
    except (DamagedCheckpointError, ForeignCheckpointError, UnreadableCheckpointError):
        raise
    except CheckpointError as error:
        raise UsageError(f"--init-from {name} does not fit this model. {error}") from None
