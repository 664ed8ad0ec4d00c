"""Trains the same settings with several seeds, in one compiled call where possible; each seed is an ordinary run.

Under ``jax.vmap`` the runs take their steps together. Whatever else a run does (evaluation, checkpoints, early
stopping, rollbacks) its own ``RunTrainer`` does between two calls. The seeds that are furthest behind take the next
steps; what the call computes for the others is dropped. So a run may stop earlier, roll back, or resume at another
step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import jitted
from jaxgen.data.batches import Batches
from jaxgen.errors import DivergedError, UsageError, counted
from jaxgen.fsutil import RESUME, dump_json, load_strict, replace_file
from jaxgen.plots import draw_losses
from jaxgen.runs.collection import Seeds, make_collection, read_record, write_record
from jaxgen.runs.config import TrainConfig, validate
from jaxgen.runs.directory import SEEDS, RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.runtime import need_devices
from jaxgen.tasks.base import TaskData
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.callbacks import Emit, Evaluated, Event, Finished, Note, Progress, Started, ignore
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup, StopFlag
from jaxgen.trainer.run import BYTES_PER_PARAMETER, Prepared, choose_devices, device_memory, prepare, resume, start
from jaxgen.trainer.signals import StopSignals
from jaxgen.trainer.trainer import RunTrainer, steps_per_call
from jaxgen.training.data_parallel import make_mesh, replicate, shard_batch
from jaxgen.training.step import StepMetrics
from jaxgen.training.windows import Windows

#: The most seeds of one command.
MAX_SEEDS = 1000


def train_seeds(config: TrainConfig, seeds: Sequence[int], emit: Emit = ignore, horizon: int | None = None) -> Finished:
    """Train a new run for each of ``seeds``, in a new folder.

    Args:
        config: the settings; ``run`` is the folder of all runs.
        seeds: the seeds, which replace that of the settings.
        emit: receives events, of which some are those of all seeds together: their means.
        horizon: the step at which the schedule ends. Default: the last one.

    Raises:
        UsageError, DataError, CheckpointError: an input cannot be used. Nothing is written.
        DivergedError: some of the runs diverged; the others are trained.
        Interrupted: a signal came; everything is saved.
    """
    check_seeds(config, seeds)
    one = config.model_copy(update={"devices": 1})
    prepared = [prepare(one.model_copy(update={"seed": seed}), emit if seed == seeds[0] else None) for seed in seeds]
    reason, devices = why_not_together(prepared), 1
    if reason is None:
        devices = _devices(config, len(seeds))
    else:
        emit(Note(f"The seeds are trained one after the other: {reason}."))
        for each in prepared:
            load = each.resolved["parameters"] / each.data.tokens_per_step
            each.resolved["devices"] = choose_devices(config, load, 1)
    folder = make_collection(config.run, config.task.replace(":", "-"))
    record = Seeds(
        task=config.task,
        config=given_settings(config),
        seeds=[*seeds],
        vmapped=reason is None,
        devices=devices,
        horizon=horizon,
    )
    write_record(folder / SEEDS, record)
    return _train(folder, record, config, emit, "refuse", prepared)


def resume_seeds(
    folder: Path, config: TrainConfig | None = None, emit: Emit = ignore, data_changed: str = "refuse"
) -> Finished:
    """Continue the runs in ``folder``; arguments and errors are those of ``resume`` and ``train_seeds``."""
    record = read_seeds(folder)
    if config is None:
        config = seeds_config(folder)
    else:  # for seeds that are not started yet
        record.config = given_settings(config)
        write_record(folder / SEEDS, record)
    return _train(folder, record, config, emit, data_changed, None)


def given_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that were given, without the folder and the seed, as JSON."""
    return config.model_dump(mode="json", include=config.model_fields_set - {"run", "seed"})


def read_seeds(folder: Path) -> Seeds:
    """The record of a folder with several seeds. Raises ``CheckpointError``."""
    record: Seeds = load_strict(Seeds, read_record(folder / SEEDS), f"{folder / SEEDS}")
    return record


def seeds_config(folder: Path) -> TrainConfig:
    """The settings of the runs in a folder with several seeds, with its first seed."""
    record = read_seeds(folder)
    return validate(DATA[record.task].Config, {**record.config, "seed": record.seeds[0], "run": str(folder)})


def check_seeds(config: TrainConfig, seeds: Sequence[int]) -> None:
    """Raise ``UsageError`` if these settings cannot be trained with these seeds."""
    if not seeds or len(seeds) > MAX_SEEDS:
        raise UsageError(f"--seeds asks for {counted(len(seeds), 'seed')}: give from 1 to {MAX_SEEDS:,}.")
    if len(set(seeds)) < len(seeds):
        raise UsageError("--seeds has a seed repeatedly: give each once.")
    if config.model != "rnn":
        raise UsageError(f"--model {config.model} has no random weights: leave out --seeds.")
    if config.minutes is not None:
        raise UsageError(
            "--minutes depends on how busy the machine is, and all seeds need the same steps: give --steps."
        )


def _devices(config: TrainConfig, number: int) -> int:
    """The number of devices over which seeds are spread: ``--devices``, else the most that divide their number."""
    if config.devices is None:
        return max(n for n in range(1, jax.local_device_count() + 1) if number % n == 0)
    if number % config.devices:
        raise UsageError(
            f"{counted(number, 'seed')} cannot be spread evenly over --devices {config.devices}: give a number of "
            "seeds that it divides."
        )
    need_devices(config.devices, f"--devices {config.devices} asks for {config.devices}")
    return config.devices


def why_not_together(prepared: Sequence[Prepared]) -> str | None:
    """Why one call cannot train these runs, as the end of a sentence; None if it can."""
    first, memory = prepared[0], device_memory()
    if first.data.config.accumulate > 1 or getattr(first.data.config, "teacher", None):
        return "with --accumulate or --teacher each run needs the device for itself"
    if any(each.resolved["model"] != first.resolved["model"] for each in prepared):
        return "their vocabularies differ, because the seed decides which texts are for validation"
    if any(len(each.data.batches.shapes()) > 1 for each in prepared):
        return "their batches have several lengths (--buckets, --seq-len-spread or --seq-len-warmup)"
    shapes = [jax.tree.map(np.shape, _pipeline(each.data.batches, 1, 1).on_host(0, 1)) for each in prepared]
    if any(shape != shapes[0] for shape in shapes):
        return "their batches differ in shape"
    needed = len(prepared) * first.resolved["parameters"] * BYTES_PER_PARAMETER
    if memory is not None and needed > memory / 2:
        return f"together they need more than half of the memory of {memory / 2**30:.0f} GiB"
    return None


def _train(
    folder: Path,
    record: Seeds,
    config: TrainConfig,
    emit: Emit,
    data_changed: str,
    prepared: Sequence[Prepared] | None,
) -> Finished:
    """Start or resume each run, and train them all."""
    events = SeedEvents(emit, folder, record)

    def trainer(place: int) -> RunTrainer:
        seed = record.seeds[place]
        run = record.folder_of(folder, seed)
        update = {"seed": seed, "run": str(run), **({"devices": 1} if record.vmapped else {})}
        own, show = config.model_copy(update=update), events.of(place)
        if RunDirectory(run).exists():
            made = resume(run, own, show, data_changed)
        else:
            ready = prepare(own, show) if prepared is None else prepared[place]
            if record.vmapped:
                ready.resolved["seeds"] = {"vmapped": record.seeds, "devices": record.devices}
            made = start(own, show, horizon=record.horizon, prepared=ready)
        made.continued = str(folder)
        return made

    number = len(record.seeds)
    if record.vmapped:
        need_devices(record.devices, f"The runs in {folder} are spread over {record.devices}")
        with ExitStack() as undo:
            trainers = []
            for place in range(number):
                trainers.append(trainer(place))
                undo.callback(_unlock, trainers[-1])
            together = SeedTrainer(trainers, record.devices, events)
            together.train()
            undo.pop_all()
        failed = {record.seeds[place]: error for place, error in together.failed.items()}
        data = trainers[0].data
    else:
        failed = {}
        for place, seed in enumerate(record.seeds):
            one = trainer(place)
            data = one.data
            emit(Note(f"Seed {seed}, {place + 1} of {number}:"))
            try:
                one.train()
            except DivergedError as error:
                failed[seed] = error
    finished = summarize(folder, record, data, [seed for seed in record.seeds if seed not in failed])
    if finished is not None:
        emit(finished)
    if failed:
        which = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
        raise DivergedError(f"{len(failed)} of {counted(number, 'seed')} diverged. {which}")
    assert finished is not None
    return finished


def _unlock(trainer: RunTrainer) -> None:
    """Let go of a run that was opened and is not trained."""
    RunLock.take(trainer.run.path).release()


class SeedInputs:
    """The batches of several runs, stacked; ``InputPipeline`` for ``seed_train_steps``."""

    def __init__(self, batches: Sequence[Batches], calls: int, rows: int, devices: int) -> None:
        self._each = [_pipeline(each, calls, rows) for each in batches]
        self._mesh = None if devices == 1 else make_mesh(devices)
        self.read = self._each[0].read
        self.shares_text = False
        if self._each[0].keeps_text:
            first, *others = (each.on_host(0, 1) for each in self._each)
            self.shares_text = all(np.array_equal(first.text, other.text) for other in others)
        self._texts: list[np.ndarray] = []
        self._on_devices: Any = None

    def put(self, tree: Any) -> Any:
        """A tree with a leading axis of runs, on the devices."""
        return jax.device_put(tree) if self._mesh is None else shard_batch(self._mesh, tree)

    def steps_in_call(self, step: int) -> int:
        """The number of steps from ``step`` on that one call can take."""
        return min(each.steps_in_call(step) for each in self._each)

    def next(self, step: int, number: int) -> Any:
        """The ``number`` batches from ``step`` on of all runs."""
        found = [each.on_host(step, number) for each in self._each]
        if not isinstance(found[0], Windows):
            return self.put(_stack(found))
        if len(self._texts) != len(found) or any(old is not new.text for old, new in zip(self._texts, found)):
            texts = [(pipeline.small(each.text), each.conditions) for pipeline, each in zip(self._each, found)]
            if not self.shares_text:
                self._on_devices = self.put(_stack(texts))
            elif self._mesh is None:
                self._on_devices = jax.device_put(texts[0])
            else:
                self._on_devices = replicate(self._mesh, texts[0])
            self._texts = [each.text for each in found]
        text, conditions = self._on_devices
        offsets = found[0].offsets if self.shares_text else self.put(_stack([each.offsets for each in found]))
        return Windows(text, self.put(_stack([each.window_index for each in found])), offsets, conditions)


def _pipeline(batches: Batches, calls: int, rows: int) -> InputPipeline:
    return InputPipeline(batches, calls, 1, rows, ProcessGroup())


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


class SeedTrainer:
    """Trains several runs whose steps one compiled call takes.

    Args:
        trainers: of the same settings but for the seed, new or resumed, each for one device.
        devices: over which the runs are spread; they divide their number.
        events: shows the runs together.
    """

    def __init__(self, trainers: Sequence[RunTrainer], devices: int, events: SeedEvents) -> None:
        first, number = trainers[0], len(trainers)
        self.trainers, self.events = trainers, events
        #: The runs that diverged, by their place.
        self.failed: dict[int, DivergedError] = {}
        parameters, tokens = first.resolved["parameters"], first.data.tokens_per_step
        calls = min(first.steps_per_call, steps_per_call(parameters * number, tokens))
        self._inputs = SeedInputs([each.data.batches for each in trainers], calls, first.config.batch_size, devices)
        self._train_steps = jitted.jit_seed_train_steps(
            first.task, first.optimizer, devices, self._inputs.read, self._inputs.shares_text
        )
        self._keys = self._inputs.put(jax.numpy.stack([each.key for each in trainers]))
        self._steps = [int(each.state.step) for each in trainers]

    def train(self) -> None:
        """Train all runs to their ends and report each. Raises ``Interrupted``."""
        with ExitStack() as stack:
            for each in self.trainers:
                stack.enter_context(each.recorder)
            for each, step in zip(self.trainers, self._steps):
                each.begin(step)
            with StopSignals() as signals, ThreadPoolExecutor(1) as pool:
                stop = StopFlag(signals)
                while behind := self._behind():
                    self._train_to_boundary(behind, pool, stop)
                    self.events.show()
                    if signals.received is not None and self._behind():
                        first = self._behind()[0]
                        where = f"at step {self._steps[first]:,}; saved"
                        raise self.trainers[first].interrupted(signals.received, where)
            for place, each in enumerate(self.trainers):
                if place not in self.failed:
                    each.finish(self._steps[place], signals.received)

    def _behind(self) -> list[int]:
        """The runs that are not over and furthest behind, by their places."""
        going = [
            place
            for place, each in enumerate(self.trainers)
            if place not in self.failed and not each.is_over(self._steps[place])
        ]
        least = min((self._steps[place] for place in going), default=0)
        return [place for place in going if self._steps[place] == least]

    def _train_to_boundary(self, going: list[int], pool: ThreadPoolExecutor, stop: StopFlag) -> None:
        """Train some runs to the next boundary, a signal or a callback's stop, and evaluate and save them there."""
        step = self._steps[going[0]]
        boundary = self.trainers[going[0]].eval_schedule.following(step)
        rates = self._inputs.put(_stack([each.rates for each in self.trainers]))
        state = self._inputs.put(_stack(jax.device_get([each.state for each in self.trainers])))
        unread, clock = None, time.perf_counter()
        number = min(self._inputs.steps_in_call(step), boundary - step)
        batches: Future = pool.submit(self._inputs.next, step, number)
        while step < boundary and not stop.is_set and going:
            ready, after = batches.result(), step + number
            following = min(self._inputs.steps_in_call(after), boundary - after)
            if following:
                batches = pool.submit(self._inputs.next, after, following)
            state, log = self._train_steps(self._keys, state, ready, number, rates)
            for place in going:
                self.trainers[place].throughput.dispatched(ready)
            if unread is not None:
                going, clock = self._read_metrics(going, stop, *unread, clock)
            unread = (log, number, after)
            step, number = after, following
            if any(self.trainers[place].is_asked_to_stop() for place in going):
                break
        if unread is not None:
            going, _ = self._read_metrics(going, stop, *unread, clock)
        host = jax.device_get(state)
        for place in going:
            trainer = self.trainers[place]
            trainer.state = jax.device_put(jax.tree.map(lambda leaf, place=place: leaf[place], host))
            try:
                trainer.stop_at(step, boundary, stop)
                self._steps[place] = step
            except DivergedError as error:
                self._recover(place, error)

    def _read_metrics(
        self, going: list[int], stop: StopFlag, log: StepMetrics, number: int, step: int, clock: float
    ) -> tuple[list[int], float]:
        """Give each run its metrics of a call; returns those that did not diverge, and when the metrics arrived."""
        host, now, left = jax.device_get(log), clock, []
        for place in going:
            own = jax.tree.map(lambda leaf, place=place: leaf[place], host)
            try:
                now, _ = self.trainers[place].read_metrics(stop, own, number, step, clock)
                left.append(place)
            except DivergedError as error:
                self._recover(place, error)
        self.events.show()
        return left, now

    def _recover(self, place: int, error: DivergedError) -> None:
        """Roll a run back, or give it up."""
        try:
            self._steps[place] = self.trainers[place].recover(error)
        except DivergedError as final:
            self.failed[place] = final


class SeedEvents:
    """Shows the events of several runs as those of one: means of what is measured, and the first run's samples."""

    def __init__(self, emit: Emit, folder: Path, record: Seeds) -> None:
        self._emit, self._folder, self._record = emit, folder, record
        self._waiting: dict[type, dict[int, Any]] = {Progress: {}, Evaluated: {}}
        self._data = DATA[record.task]
        self._best: tuple[float, int] | None = None

    def of(self, place: int) -> Emit:
        """The ``emit`` of one of the runs."""

        def emit(event: Event) -> None:
            if isinstance(event, Note):
                self._emit(Note(f"Seed {self._record.seeds[place]}: {event.text}"))
            elif isinstance(event, Finished):
                return
            elif not self._record.vmapped:
                self._emit(event)
            elif isinstance(event, (Progress, Evaluated)):
                self._waiting[type(event)][place] = event
            elif isinstance(event, Started) and place == 0:
                seeds, devices = ", ".join(map(str, self._record.seeds)), counted(self._record.devices, "device")
                facts = {**event.facts, "seeds": f"{seeds}, in one compiled call on {devices}"}
                self._emit(replace(event, run=str(self._folder), facts=facts))
            elif place == 0:
                self._emit(event)

        return emit

    def show(self) -> None:
        """Show the means of what has arrived since."""
        progress, evaluated = ([*self._waiting[kind].values()] for kind in (Progress, Evaluated))
        for waiting in self._waiting.values():
            waiting.clear()
        if progress:
            bits = [each.bits_per_char for each in progress if each.bits_per_char is not None]
            speeds = [each.speed for each in progress if each.speed is not None]
            loss = statistics.mean(each.loss for each in progress)
            self._emit(
                replace(
                    progress[0],
                    loss=loss,
                    bits_per_char=statistics.mean(bits) if bits else None,
                    speed=sum(speeds) if speeds else None,
                )
            )
        if evaluated:
            row = mean_row([each.row for each in evaluated])
            metric, number = self._data.METRIC, counted(len(evaluated), "seed")
            cost = metric.cost(row)
            if self._best is None or cost < self._best[0]:
                self._best = (cost, row["step"])
            spread = row.get(f"{metric.name}_spread")
            text = "" if spread is None else f"{metric.best_at(0).name} ± {spread:.3f} over {number}"
            self._emit(Evaluated(row, self._best[1], 0, text))


def mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of the numbers that all ``rows`` have and, of several rows, their sample standard deviations.

    The latter end with ``_spread``. The step is that of the first row.
    """
    found: dict[str, Any] = {"step": rows[0]["step"], "seeds": len(rows)}
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        if name in ("step", "best_step") or any(
            isinstance(value, bool) or not isinstance(value, (int, float)) for value in values
        ):
            continue
        found[name] = statistics.fmean(values)  # type: ignore[arg-type]
        if len(rows) > 1:
            found[f"{name}_spread"] = statistics.stdev(map(float, values))  # type: ignore[arg-type]
    return found


def summarize(folder: Path, record: Seeds, data: TaskData, seeds: Sequence[int]) -> Finished | None:
    """Write ``report.json``, ``metrics.jsonl`` and ``loss.png`` of all ``seeds`` into their folder.

    None if there is no seed.
    """
    if not seeds:
        return None
    runs = [RunDirectory(record.folder_of(folder, seed)) for seed in seeds]
    reports = [run.read_json("report.json") for run in runs]
    logs = [MetricsLog(run.metrics_path).read() for run in runs]
    by_step = [{row["step"]: row for row in log} for log in logs]
    steps = sorted(set.intersection(*map(set, by_step)))
    rows = [mean_row([log[step] for log in by_step]) for step in steps]
    means, metric = mean_row(reports), data.METRIC
    own = {str(seed): report for seed, report in zip(seeds, reports)}
    whole = {"seeds": [*seeds], "vmapped": record.vmapped, "mean": means, "runs": own}
    replace_file(folder / "report.json", dump_json(whole), RESUME)
    log = MetricsLog(folder / "metrics.jsonl")
    replace_file(log.path, b"", RESUME)
    for row in rows:
        log.append(row)
    best = metric.best_at(min(rows, key=metric.cost, default=means)["step"])
    title = f"{folder.name}: {data.fingerprint()['name']}, mean of {counted(len(seeds), 'seed')}"
    draw_losses(rows, folder / "loss.png", title, data.TARGET, best)
    costs = {seed: metric.cost(report) for seed, report in zip(seeds, reports)}
    chosen = min(costs, key=lambda seed: costs[seed])
    spread = means.get(f"{metric.name}_spread")
    summary = [(f"seed {seed}", f"{best.axis} {report[metric.name]:.4f}") for seed, report in zip(seeds, reports)]
    between = "" if spread is None else f" ± {spread:.4f}"
    summary += [("mean", f"{best.axis} {means[metric.name]:.4f}{between}")]
    command = data.next_command(str(record.folder_of(folder, chosen)))
    return Finished(str(folder), max(report["step"] for report in reports), best.step, means, summary, command)
