"""The training loop: dispatch steps, evaluate, save, stop early. A ``Recorder`` writes and shows what it reports."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from jaxgen import jitted
from jaxgen.errors import CheckpointError, DivergedError, UsageError, choose, counted, for_caller
from jaxgen.plugins import plugin_flags
from jaxgen.runs.config import MAX_STEPS, TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.sampling.decode import make_key
from jaxgen.tasks.base import TaskData
from jaxgen.trainer.advice import ALARM, advise, frequency_loss
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Progress, Sampled, Started
from jaxgen.trainer.evaluate import (
    EvalSchedule,
    TrainingInference,
    build_optimizer,
    build_rates,
    count_averages,
    evaluate,
    jit_schedule,
)
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup, StopFlag
from jaxgen.trainer.progress_state import (
    MAX_ROLLBACKS,
    ROLLBACK_SCALE,
    ProgressState,
    Throughput,
    nan_recovery,
    nonfinite_leaf,
)
from jaxgen.trainer.recorder import NullRecorder, run_summary
from jaxgen.trainer.signals import Interrupted, StopSignals, raise_on_signal
from jaxgen.trainer.teacher import training_task
from jaxgen.training.averaging import Averaged, drop_longer, exchange
from jaxgen.training.data_parallel import make_global_mesh, shard_state, unreplicate
from jaxgen.training.optimizer import OPTIMIZERS
from jaxgen.training.schedules import Rates
from jaxgen.training.step import TrainState
from jaxgen.types import Params

#: Something to be timed.
Work: TypeAlias = Callable[[], object]
#: Arithmetic in one call of K steps: about half a second on two CPU cores, so that Ctrl-C takes effect soon.
FLOPS_PER_CALL = 4e10
MAX_STEPS_PER_CALL = 32


def steps_per_call(parameters: int, tokens: int) -> int:
    """K: how many steps of ``tokens`` tokens one compiled call takes at most. It changes no bit of the result."""
    return int(min(max(FLOPS_PER_CALL / (6 * parameters * tokens), 1), MAX_STEPS_PER_CALL))


class RunTrainer:
    """One run, new or resumed. Make it with ``jaxgen.start`` or ``jaxgen.resume``, then call ``train`` or loop over it.

    Example:
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
        >>> trainer = jaxgen.start(config)
        >>> _ = trainer.train()
        >>> int(trainer.state.step)
        2
        >>> longer = jaxgen.resume(trainer.run.path, trainer.config.model_copy(update={"steps": 3}))
        >>> [progress.step for progress in longer]
        [3]
    """

    state: TrainState  # on the devices; set by ``init_state`` or ``set_state``

    def __init__(
        self,
        config: TrainConfig,
        data: TaskData,
        task: Any,
        run: RunDirectory,
        resolved: dict[str, Any],
        recorder: NullRecorder,
        group: ProcessGroup,
        deadline: float = math.inf,
    ) -> None:
        self.config, self.data, self.task, self.run, self.resolved = config, data, task, run, resolved
        self.recorder, self.group = recorder, group
        #: The task with the loss of training, where that differs (``--teacher``).
        self.learner = training_task(task, config, resolved)
        #: When ``train`` begins its report although steps are left, on the clock ``time.perf_counter``.
        self.deadline = deadline if group.is_single else math.inf  # several processes must stop at the same step
        self.key = make_key(config.seed)
        self.plugin_flags = plugin_flags(resolved.get("plugins", []))  # of commands that are shown
        self.total_steps: int = resolved["steps"]
        self.devices: int = resolved["devices"]
        most = getattr(task, "STEPS_PER_CALL", MAX_STEPS_PER_CALL)
        self.steps_per_call = min(most, steps_per_call(resolved["parameters"], data.tokens_per_step))
        self.eval_schedule = EvalSchedule.of(config, resolved["horizon"], self.total_steps)
        self.batches = data.batches
        self.inputs = InputPipeline(self.batches, self.steps_per_call, self.devices, config.batch_size, group)
        self.set_progress(ProgressState())
        self._schedule = jit_schedule(config)
        self._inference = TrainingInference(task, data, config.seed)
        self.throughput = Throughput()
        self.continued = str(run)  # the folder that a command which continues the run names
        self._grad_norm = math.nan  # of the last step that was read
        self._saved_step: int | None = None  # of the last checkpoint that this trainer made
        self._alarmed = False  # whether the warning of ``_check_loss`` was given

    # --- state

    def init_state(self, params: Params | None = None) -> RunTrainer:
        """Set the state of step 0: new weights, or the given ``params`` with a new optimizer state."""
        state = jitted.jit_init_state(self.learner, self.optimizer, self.config.batch_size)(self.key)
        if params is not None:
            state = state._replace(params=params, opt_state=self.optimizer.init(params))
        return self.set_state(self.group.broadcast_tree(state))

    def set_state(self, state: TrainState) -> RunTrainer:
        """Set the state from which ``train`` continues, as checkpoints have it, on whatever devices its arrays are."""
        state = self._exchanged(state)
        self.state = state if self.devices == 1 else shard_state(make_global_mesh(self.devices), state)
        return self

    def __repr__(self) -> str:
        return f"<jaxgen.RunTrainer {str(self.run)!r}: {self.config.task}, {counted(self.total_steps, 'step')}>"

    def set_progress(self, progress: ProgressState) -> RunTrainer:
        """Set the progress, and the learning rate and the average of the weights that follow from it."""
        self.progress = progress
        self.progress.average |= self._only_average
        self._update_rates()
        self.optimizer = build_optimizer(self.config, self.task)
        self._train_steps = jitted.jit_train_steps(
            self.learner, self.optimizer, self.devices, self.inputs.read, self.config.accumulate
        )
        return self

    def _update_rates(self) -> None:
        scale = ROLLBACK_SCALE**self.progress.rollbacks
        self.rates = build_rates(self.config, self.resolved["horizon"], scale, self.progress.costs)

    def _rates_of(self, step: int) -> Rates:
        """The rates of a step, which may have its own factor."""
        scale = self.batches.rate_scale(step)
        return self.rates if scale == 1 else self.rates._replace(peak=np.asarray(self.rates.peak * scale, np.float32))

    @property
    def _only_average(self) -> bool:
        """Whether only the average of the weights is evaluated."""
        return getattr(OPTIMIZERS[choose(self.config.optimizer, OPTIMIZERS, "optimizer")], "averages", False)

    def _exchanged(self, state: TrainState) -> TrainState:
        """``state`` with the average in place of the weights, as in a checkpoint, or with both in their own places."""
        if not self.progress.average or not isinstance(state.opt_state, Averaged):
            return state
        params, opt_state = exchange(state.params, state.opt_state)
        return state._replace(params=params, opt_state=opt_state)

    @property
    def best_weights(self) -> Params:
        """The present weights, or their average if the last evaluation preferred it."""
        return self._exchanged(self.state).params

    def learning_rate(self, step: int) -> float:
        """The learning rate of the last step before ``step``."""
        last = max(step - 1, 0)
        return float(self._schedule(last, self._rates_of(last)))

    def gathered_state(self) -> TrainState:
        """The state with all rows on this host."""
        return self.group.gather_state(self.state, self.devices)

    # --- the loop

    def train(self) -> Finished:
        """Train to the last step and report. Raises ``Interrupted`` (everything is saved) and ``DivergedError``."""
        steps = iter(self)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                finished: Finished = end.value
                return finished

    def stop(self, reason: str = "the loop asked for it") -> None:
        """End training early, as ``Callback.stop`` does, in a loop over this trainer."""
        self.recorder.loop_reason = reason

    def __iter__(self) -> Generator[Progress, None, Finished]:
        """Train as ``train`` does, and yield the progress after each call of some steps.

        A loop that is left early leaves the run at its last checkpoint, from which ``jaxgen.resume`` continues;
        ``stop`` ends it with a report.
        """
        step = int(self.state.step)
        if self._saved_step not in (None, step):
            raise UsageError(
                f"A loop over this trainer was left at step {step:,}, after the checkpoint of step "
                f"{self._saved_step:,}: continue from there with jaxgen.resume({str(self.run)!r})."
            )
        with self.recorder:
            self.begin(step)
            if "seeds" in self.resolved:
                self._note(
                    f"WARNING: This run was started together with other seeds: alone, its rounding differs. Continue "
                    f"all of them with --run {shlex.quote(str(self.run.path.parent))} --resume auto."
                )
            with StopSignals() as signals, ThreadPoolExecutor(1) as pool:
                stop = self.group.stop_flag(signals, self.devices)
                while not self.is_over(step):
                    if self._is_late():
                        self._note(
                            f"The time of --minutes {self.config.minutes:g} is over after {step:,} of "
                            f"{counted(self.total_steps, 'step')}. The run is saved; --resume auto takes the others."
                        )
                        break
                    step = yield from self._train_to_boundary(step, pool, stop)
                    received = stop.agree()
                    if received is not None and not self.is_over(step):
                        raise self.interrupted(received, f"at step {step:,}; saved")
            return self.finish(step, stop.agree())

    def begin(self, step: int) -> None:
        """Report that training begins at ``step``; the recorder is entered."""
        summary = run_summary(self.config, self.data, self.resolved, self.group.count)
        self.recorder.call("on_start", Started(str(self.run), summary, step, self.total_steps))
        self._share_progress()
        if 0 < step >= self.total_steps:
            self._note(
                f"This run is finished: all of its {counted(self.total_steps, 'step')} are taken. To train on, "
                f"give --steps {2 * self.total_steps}; for a new schedule, start another run with --init-from."
            )

    def is_over(self, step: int) -> bool:
        """Whether all steps are taken, or a callback stopped the run."""
        return step >= self.total_steps or self._is_stopped

    @property
    def _limits(self) -> list[int | None]:
        return [self.total_steps, self.config.patience]

    @property
    def _is_stopped(self) -> bool:
        """Whether a callback stopped the run, in this start or in one before with the same limits."""
        return self.progress.limits == self._limits

    def is_asked_to_stop(self) -> bool:
        """Whether a callback stops the run between two boundaries, where several processes exchange no decisions."""
        return self.group.is_single and self.recorder.stop_reason is not None

    def _share_progress(self) -> None:
        """Note in the progress that a callback stops the run, and give all processes that of the main one."""
        if (reason := self.recorder.stop_reason) is not None:
            self.progress.stopped, self.progress.limits = reason, self._limits
        self.progress = ProgressState(**self.group.broadcast_json(asdict(self.progress)))
        self._update_rates()

    def _is_late(self) -> bool:
        """Whether the time of ``--minutes`` is over. No result depends on it: the run stops as if interrupted."""
        return time.perf_counter() > self.deadline

    def _train_to_boundary(self, step: int, pool: ThreadPoolExecutor, stop: StopFlag) -> Generator[Progress, None, int]:
        """Train, evaluate and save until the next boundary, a signal or a callback's stop; returns the step."""
        boundary = self.eval_schedule.following(step)
        try:
            step = yield from self._take_steps(step, boundary, pool, stop)
            self.stop_at(step, boundary, stop)
        except DivergedError as error:
            step = self.recover(error)
        return step

    def stop_at(self, step: int, boundary: int, stop: StopFlag) -> None:
        """Save the state of ``step``, which is at most ``boundary``, and evaluate it first where that is due.

        Raises ``DivergedError`` for a state or a loss that is not finite.
        """
        if leaf := nonfinite_leaf(self.gathered_state()):
            raise self._diverged(f"{leaf} is no longer finite", step)
        is_last = step == self.total_steps or (self.is_asked_to_stop() and not stop.is_set)
        if step < boundary and not is_last:
            self.save(step, keep=self.config.on_nan == "rollback")
            return
        metric = self._evaluate(step) if self.eval_schedule.evaluates(step) or is_last else None
        if self.eval_schedule.samples(step) and not is_last:
            self._show_examples(step)
        self._share_progress()
        if self._is_stopped and not (self.eval_schedule.evaluates(step) or is_last):
            metric = self._evaluate(step)
            self._share_progress()
        self.save(step, metric)  # last, because it makes all of the above final

    def _take_steps(
        self, step: int, boundary: int, pool: ThreadPoolExecutor, stop: StopFlag
    ) -> Generator[Progress, None, int]:
        """Take steps until ``boundary``, a signal or a callback's stop; returns the step.

        While the device works on one call, the host reads the metrics of the call before and builds the next batches,
        so that neither waits for the other.
        """
        unread, clock = None, time.perf_counter()
        number = min(self.inputs.steps_in_call(step), boundary - step)
        batches: Future = pool.submit(self.inputs.next, step, number)
        while step < boundary and not stop.is_set and not self._is_late():
            ready, after, rates = batches.result(), step + number, self._rates_of(step)
            following = min(self.inputs.steps_in_call(after), boundary - after)
            if following:
                batches = pool.submit(self.inputs.next, after, following)
            self.state, log = self._train_steps(self.key, self.state, ready, number, rates, *stop.inputs())
            self.throughput.dispatched(ready)
            if unread is not None:
                clock, progress = self.read_metrics(stop, *unread, clock)
                yield progress
            unread = (log, number, after)
            step, number = after, following
            if self.is_asked_to_stop():
                break
        if unread is not None:
            _, progress = self.read_metrics(stop, *unread, clock)
            yield progress
        return step

    def read_metrics(self, stop: StopFlag, log: Any, number: int, step: int, clock: float) -> tuple[float, Progress]:
        """Wait for the metrics of a call that ends at ``step``, check and add them; returns when they arrived."""
        log = stop.read(log)
        losses, counts, norms = (
            np.asarray(a)[:number].astype(np.float64) for a in (log.loss, log.targets, log.grad_norm)
        )
        now = time.perf_counter()
        bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
        last = int(bad[0]) if bad.size else -1
        self._grad_norm = float(norms[last])
        if bad.size:
            name, value = ("loss", losses[last]) if not np.isfinite(losses[last]) else ("gradient norm", norms[last])
            raise self._diverged(f"The {name} became {value}", step - number + last + 1)
        self.progress.add(losses, counts, now - clock)
        mean = float(np.sum(losses * counts) / max(np.sum(counts), 1))
        self._check_loss(step, mean)
        size = number * self.batches.relative_size(step - number)
        self.throughput.completed(size * self.data.units_per_step, now - clock)
        speed = self.throughput.measured
        left = None if speed is None else (self.total_steps - step) * self.data.units_per_step / speed
        progress = Progress(step, mean, self.data.bits_per_char(mean), speed, self.data.UNIT, left)
        self.recorder.call("on_step", progress)
        return now, progress

    def _check_loss(self, step: int, loss: float) -> None:
        """Warn once if a finite training loss is far beyond that of guessing."""
        uniform = self.uniform_loss
        if uniform is not None and loss > ALARM * uniform and not self._alarmed:
            self._alarmed = True
            self._note(
                f"WARNING: The training loss is {loss:.4g} at step {step:,}, more than {ALARM:g} times that of "
                f"guessing uniformly ({uniform:.4g}). Stop, and train again with a lower --lr or a smaller --clip "
                "(0 clips nothing)."
            )

    @property
    def uniform_loss(self) -> float | None:
        """The loss of guessing uniformly; None if that has no meaning."""
        number = self.data.num_targets or 0
        return math.log(number) if number > 1 else None

    def time_call(self, step: int) -> float:
        """Seconds per step of one call from ``step`` on, which advances the state."""
        began, number = time.perf_counter(), self.inputs.steps_in_call(step)
        self._try_steps(step, number, self.rates)
        return (time.perf_counter() - began) / number

    def try_step(self, step: int, lr: float) -> float:
        """Take one step with the learning rate ``lr``, on the batch of ``step``; returns the loss before it."""
        peak, final = np.asarray([lr, 1.0], np.float32)
        rates = Rates(*map(np.asarray, (peak, np.int32(0), np.int32(MAX_STEPS), final, np.int32(0))))
        return self._try_steps(step, 1, rates)

    def _try_steps(self, step: int, number: int, rates: Rates) -> float:
        """Take steps that nothing records; returns the loss of the first."""
        stop = self.group.stop_flag(StopSignals(), self.devices)
        batches = self.inputs.next(step, number)
        self.state, log = self._train_steps(self.key, self.state, batches, number, rates, *stop.inputs())
        return float(np.asarray(stop.read(log).loss)[0])

    def report_parts(self) -> tuple[list[Work], list[Work]]:
        """What an evaluation does (metrics, generated metrics, examples) and a report (metrics, examples), for timing.

        The generated metrics of a report are missing: they can take very long.
        """
        params, number = self.state.params, 1 + count_averages(self.config)
        inference = self._inference_with(params) if self.group.is_main else None

        def repeated(work: Work) -> Work:
            return lambda: [work() for _ in range(number)]

        def on_main(work: Callable[[TrainingInference, bool], object], final: bool) -> Work:
            return lambda: None if inference is None else work(inference, final)

        metrics, generated, examples = self._metrics, self.data.generation_metrics, self.data.examples
        evaluation = [repeated(partial(metrics, params, False)), repeated(on_main(generated, False))]
        usual: list[Work] = [*evaluation, on_main(examples, False)]
        return usual, [partial(metrics, params, True), on_main(examples, True)]

    # --- evaluation, examples, checkpoints

    def _evaluate(self, step: int) -> float | None:
        """Evaluate, update the main process's progress and record the row; returns its cost there."""
        candidates = self._candidates()
        found = {name: self._metrics(params, final=False) for name, params in candidates.items()}
        for metrics in found.values():
            if not math.isfinite(metrics["val_loss"]):
                raise self._diverged(f"The validation loss became {metrics['val_loss']}", step)
        self._choose_tail(candidates, found)
        cost = None
        with self.group.all_or_none():
            if self.group.is_main:
                for name, params in candidates.items():
                    found[name] |= self.data.generation_metrics(self._inference_with(params), False)
                costs = {name: self.data.METRIC.cost(metrics) for name, metrics in found.items()}
                better = min(costs, key=lambda name: costs[name])  # the first of equals
                cost = costs[better]
                self.progress.evaluated(step, cost)
                self.progress.average = better == "average"
                metrics = found[better]
                if self.config.average != "none":
                    self.progress.costs.append([step, costs["raw"]])
                    metrics |= {"weights": better, **{f"val_loss_{name}": found[name]["val_loss"] for name in found}}
                row = self._row(step, metrics)
                self.progress.log.add(row)
                best_step, since_best = self.progress.best_step, self.progress.bad_evals
                self.recorder.call("on_evaluation", Evaluated(row, best_step, since_best, self.data.headline(row)))
                self.progress.loss_sum = self.progress.loss_count = 0.0
        return cost

    def _candidates(self) -> dict[str, Params]:
        """The weights to evaluate: those themselves, and their average if it is another."""
        params, state = self.state.params, self.state.opt_state
        if not isinstance(state, Averaged):
            return {"raw": params}
        if self._only_average:
            return {"average": state.average}
        step = int(unreplicate(state.step))
        if step <= int(self.rates.average_from):
            return {"raw": params}
        shorter = {"shorter": state.shorter} if state.begins and step > int(unreplicate(state.begins[1])) else {}
        return {"raw": params, "average": state.average, **shorter}

    def _choose_tail(self, candidates: dict[str, Params], found: dict[str, dict[str, Any]]) -> None:
        """Of two tails, go on with the shorter one if its loss is not higher; ``average`` is then that one."""
        if "shorter" not in found:
            return
        params, metrics = candidates.pop("shorter"), found.pop("shorter")
        if self.group.broadcast_json(bool(metrics["val_loss"] <= found["average"]["val_loss"])):
            candidates["average"], found["average"] = params, metrics
            self.state = self.state._replace(opt_state=drop_longer(self.state.opt_state))

    def _row(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The line of ``metrics.jsonl``."""
        speed = self.throughput.measured
        return {
            "step": step,
            "train_loss": self.progress.loss_sum / max(self.progress.loss_count, 1.0),
            **metrics,
            "learning_rate": self.learning_rate(step),
            f"{self.data.UNIT}_per_second": None if speed is None else round(speed),
            "seconds": round(self.progress.seconds, 3),
        }

    def _metrics(self, params: Params, final: bool) -> dict[str, Any]:
        """The metrics of the evaluation sets; all processes compute them together."""
        return self.data.report(evaluate(self.task, self.data.eval_sets(final), params, self.devices), final)

    def _inference_with(self, params: Params) -> TrainingInference:
        return self._inference.with_params(unreplicate(params))

    def _show_examples(self, step: int) -> None:
        with self.group.all_or_none():
            if self.group.is_main:
                for each in self.data.examples(self._inference_with(self.best_weights), final=False):
                    self.recorder.call("on_sample", Sampled(step, *each))

    def save(self, step: int, metric: float | None = None, keep: bool = False) -> None:
        """Save a checkpoint; with ``keep``, the earlier ones stay for a rollback."""
        state, self._saved_step = self._exchanged(self.gathered_state()), step
        with self.group.all_or_none():
            self.recorder.save(step, state, asdict(self.progress), metric, keep)
        self.recorder.call("on_checkpoint", step)

    # --- the ends of training

    def finish(self, step: int, received: int | None) -> Finished:
        """Report on the best checkpoint, unless a signal was ``received`` during the last evaluation."""
        if self._is_stopped and step < self.total_steps:
            self._note(
                f"Training stopped after {step:,} of {counted(self.total_steps, 'step')}: {self.progress.stopped}. "
                "More --steps, or another --patience, continue it."
            )
        where = "in the final evaluation; training is done and saved"
        if received is not None:
            raise self.interrupted(received, where)
        # With several processes, one that stopped here would make the others wait forever.
        with raise_on_signal(where, self.continued, self.plugin_flags) if self.group.is_single else StopSignals():
            return self._report(step)

    def _report(self, step: int) -> Finished:
        """Evaluate the best checkpoint in full, with examples and plots."""
        with self.group.all_or_none():
            best_step, params = self.recorder.best_params(step, self.best_weights)
        best_step = self.group.broadcast_json(best_step)
        if best_step != step:
            params = self.group.broadcast_tree(params)
        with self.group.all_or_none():
            metrics = self._metrics(params, final=True)
            return self._conclude(step, best_step, params, metrics)

    def _conclude(self, step: int, best_step: int, params: Params, metrics: dict[str, Any]) -> Finished:
        """Complete the final ``metrics`` and record the end of the run."""
        if not self.group.is_main:
            return Finished("", step, best_step, metrics)
        inference, path = self._inference_with(params), str(self.run)
        report = metrics | self.data.generation_metrics(inference, True)
        samples = [(each.title, each.text) for each in self.data.examples(inference, final=True)]
        summary, command = self.data.report_lines(report), self.data.next_command(path) + self.plugin_flags
        if self.config.average != "none" and self.recorder.store is not None:
            averaged = self.recorder.store.host(best_step)["average"]
            report["weights"] = "average" if averaged else "raw"
            summary.append(("weights", f"their average ({self.config.average})" if averaged else "those of the step"))
        finished = Finished(path, step, best_step, report, summary, command, samples, self._advice(step))
        self.recorder.call("on_end", finished, inference)
        return finished

    def _advice(self, step: int) -> list[str]:
        """What to try next, from the recorded metrics."""
        rows: list[dict[str, Any]] = []
        with suppress(CheckpointError):  # a damaged log is no reason to fail here
            rows = MetricsLog(self.run.metrics_path).read()
        unigram, number = None, self.data.num_targets
        if number is not None and rows:
            train, val = self.data.target_ids("train"), self.data.target_ids("val")
            unigram = frequency_loss(train, val, number)
        go_on = f"python train.py --run {shlex.quote(self.continued)} --resume auto{self.plugin_flags}"
        length = f"--steps {2 * self.total_steps}"
        if step < self.total_steps and not self._is_stopped:
            longer = f"Continue with `{go_on}`."
        elif self.config.schedule == "constant":
            longer = f"Continue with `{go_on} {length}`."
        else:  # the learning rate has come to its end
            longer = f"In a new run, give {length}."
        return list(map(for_caller, advise(rows, self.uniform_loss, unigram, longer, self.data.METRIC)))

    def interrupted(self, number: int, where: str) -> Interrupted:
        return Interrupted(number, where, self.continued if self.group.is_main else None, self.plugin_flags)

    def _diverged(self, what: str, step: int) -> DivergedError:
        if self.recorder.store is None:
            return DivergedError(f"{what} at step {step:,}: process 0 of the job reports the details.")
        saved = self.recorder.store.latest()
        kept = "Nothing was saved yet" if saved is None else f"The checkpoint of step {saved:,} before it is kept"
        return DivergedError(
            f"{what} at step {step:,} (learning rate {self.learning_rate(step):.3g}, gradient norm "
            f"{self._grad_norm:.3g}). Train again with a lower --lr or a smaller --clip (0 clips nothing), or "
            f"give --on-nan rollback. "
            f"{kept} in {self.run}."
        )

    def recover(self, error: DivergedError) -> int:
        """Return to the last good checkpoint with half the learning rate; returns its step.

        Raises ``error`` without ``--on-nan rollback``, after ``MAX_ROLLBACKS``, and where no checkpoint is good.
        """
        found: int | None = None
        state, progress = self.gathered_state(), self.progress
        if self.config.on_nan == "rollback" and progress.rollbacks < MAX_ROLLBACKS and self.recorder.store is not None:
            found, state, progress = nan_recovery(self.recorder.store, self.eval_schedule, progress, state, self._note)
        step, fields = self.group.broadcast_json((found, asdict(progress)))
        if step is None:
            self.group.ends_together = True
            raise error
        self.set_progress(ProgressState(**fields)).set_state(self.group.broadcast_tree(state))
        with self.group.all_or_none():
            self.recorder.truncate_after(step)
        rollbacks = self.progress.rollbacks
        self._note(
            f"WARNING: {str(error).split('. ')[0]}. Going back to step {step:,} with {ROLLBACK_SCALE**rollbacks:g} "
            f"times the scheduled learning rate (rollback {rollbacks} of {MAX_ROLLBACKS} at most)."
        )
        return step

    def _note(self, text: str) -> None:
        self.recorder.call("on_note", Note(text))
