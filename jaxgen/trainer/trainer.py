"""The training loop: dispatch steps, evaluate, save, stop early. A ``Recorder`` writes and shows what it reports."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxgen import jitted
from jaxgen.errors import DivergedError, UsageError
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.sampling.decode import PRNG
from jaxgen.tasks.base import TaskData
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Progress, Sampled, Started
from jaxgen.trainer.evaluate import EvalSchedule, TrainingInference, build_optimizer, evaluate
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup, StopFlag
from jaxgen.trainer.progress_state import (
    MAX_ROLLBACKS,
    ROLLBACK_SCALE,
    Interrupted,
    ProgressState,
    Throughput,
    check_finite,
    nan_recovery,
)
from jaxgen.trainer.recorder import NullRecorder, run_summary
from jaxgen.trainer.signals import RaiseOnSignal, Stopped, StopSignals
from jaxgen.training.data_parallel import make_global_mesh, shard_state, unreplicate
from jaxgen.training.step import TrainState
from jaxgen.types import Params

#: Arithmetic in one call of K steps: about half a second on two CPU cores, so that Ctrl-C is answered soon.
FLOPS_PER_CALL = 4e10
MAX_STEPS_PER_CALL = 32


def steps_per_call(parameters: int, tokens: int) -> int:
    """K: how many steps of ``tokens`` tokens one compiled call takes at most. It changes no bit of the result."""
    return int(min(max(FLOPS_PER_CALL / (6 * parameters * tokens), 1), MAX_STEPS_PER_CALL))


class Trainer:
    """One run, new or resumed. Make it with ``jaxgen.start`` or ``jaxgen.resume``, then call ``train``."""

    def __init__(
        self,
        config: TrainConfig,
        data: TaskData,
        task: Any,
        run: RunDirectory,
        resolved: dict[str, Any],
        recorder: NullRecorder,
        group: ProcessGroup,
    ) -> None:
        self.config, self.data, self.task, self.run, self.resolved = config, data, task, run, resolved
        self.recorder, self.group = recorder, group
        self.progress = ProgressState()
        self.state: TrainState | None = None
        self.key = jax.random.key(config.seed, impl=PRNG)
        self.total_steps: int = resolved["steps"]
        self.devices: int = resolved["devices"]
        most = getattr(task, "STEPS_PER_CALL", MAX_STEPS_PER_CALL)
        self.steps_per_call = min(most, steps_per_call(resolved["parameters"], data.tokens_per_step))
        self.eval_schedule = EvalSchedule.of(config, resolved["horizon"], self.total_steps)
        self.inputs = InputPipeline(data.batches, self.steps_per_call, self.devices, config.batch_size, group)
        self.set_progress(self.progress)
        self._inference = TrainingInference(task, data, config.seed)
        self._throughput = Throughput()
        self._grad_norm = math.nan  # of the last step that was read

    # --- state

    def init_state(self, params: Params | None = None) -> Trainer:
        """Set the state of step 0: new weights, or the given ``params`` with a new optimizer state."""
        state = jitted.jit_init_state(self.task, self.optimizer, self.config.batch_size)(self.key)
        if params is not None:
            state = state._replace(params=params, opt_state=self.optimizer.init(params))
        return self.set_state(self.group.broadcast_tree(state))

    def set_state(self, state: TrainState) -> Trainer:
        """Set the state from which ``train`` continues, on whatever devices its arrays are."""
        self.state = state if self.devices == 1 else shard_state(make_global_mesh(self.devices), state)
        return self

    def set_progress(self, progress: ProgressState) -> Trainer:
        """Set the progress, and the learning rate and compiled step that follow from its number of rollbacks."""
        self.progress = progress
        scale = ROLLBACK_SCALE**progress.rollbacks
        self.learning_rate, self.optimizer = build_optimizer(self.config, self.resolved["horizon"], scale)
        self._train_steps = jitted.jit_train_steps(self.task, self.optimizer, self.devices, self.inputs.read)
        return self

    def gathered_state(self) -> TrainState:
        """The state as a checkpoint holds it, with all rows on this host."""
        return self.group.gather_state(self._state, self.devices)

    @property
    def _state(self) -> TrainState:
        if self.state is None:
            raise UsageError("This trainer has no state: make it with jaxgen.start or jaxgen.resume.")
        return self.state

    # --- the loop

    def train(self) -> Finished:
        """Train to the last step and report. Raises ``Interrupted`` (everything is saved) and ``DivergedError``."""
        with self.recorder:
            step = int(self._state.step)
            summary = run_summary(self.config, self.data, self.resolved, self.group.count)
            started = Started(str(self.run.path), summary, step, self.total_steps)
            for callback in self.recorder.callbacks:
                callback.on_start(started)
            with StopSignals() as signals, ThreadPoolExecutor(1) as pool:
                stop = self.group.stop_flag(signals, self.devices)
                try:
                    step = self._train_from(step, pool, stop)
                finally:
                    self.recorder.wait()
            return self._end(step, stop.agree())

    def _train_from(self, step: int, pool: ThreadPoolExecutor, stop: StopFlag) -> int:
        """Train, evaluate and save until the last step, or until patience is exhausted; returns the step."""
        finished = step >= self.total_steps or self._patience_exhausted
        while not finished:
            boundary = self.eval_schedule.following(step)
            try:
                step += self._run_to(step, boundary, pool, stop)
                check_finite(self.gathered_state(), partial(self._diverged, step=step))
                if step == boundary:
                    self._at_boundary(step)
                    finished = step >= self.total_steps or self._patience_exhausted
                else:
                    self._save(step, keep=self.config.on_nan == "rollback")
            except DivergedError as error:
                step = self._recover(error)
            received = stop.agree()
            if received is not None and not finished:
                raise self._interrupted(received, f"at step {step:,}; saved")
        return step

    def _end(self, step: int, received: int | None) -> Finished:
        """Report on the run, unless a signal was ``received`` during the last evaluation."""
        where = "in the final evaluation; training is done and saved"
        if received is not None:
            raise self._interrupted(received, where)
        try:
            # With several processes, one that left here would make the others wait forever.
            with RaiseOnSignal() if self.group.is_single else StopSignals():
                return self._finish(step)
        except Stopped as stopped:
            raise self._interrupted(stopped.number, where) from None

    @property
    def _patience_exhausted(self) -> bool:
        return self.config.patience is not None and self.progress.bad_evals >= self.config.patience

    def _run_to(self, step: int, boundary: int, pool: ThreadPoolExecutor, stop: StopFlag) -> int:
        """Take steps until ``boundary`` or a signal; returns their number.

        While the device works on one call, the host reads the metrics of the call before and builds the next batches,
        so that neither waits for the other.
        """
        first, unread, clock = step, None, time.perf_counter()
        number = min(self.inputs.steps_in_call(step), boundary - step)
        batches: Future = pool.submit(self.inputs.next, step, number)
        while step < boundary and not stop.is_set:
            ready, after = batches.result(), step + number
            following = min(self.inputs.steps_in_call(after), boundary - after)
            if following:
                batches = pool.submit(self.inputs.next, after, following)
            self.state, log = self._train_steps(self.key, self.state, ready, number, *stop.inputs())
            self._throughput.dispatched(ready)
            if unread is not None:
                clock = self._read_metrics(stop, *unread, clock)
            unread = (log, number, after)
            step, number = after, following
        if unread is not None:
            self._read_metrics(stop, *unread, clock)
        return step - first

    def _read_metrics(self, stop: StopFlag, log: Any, number: int, step: int, clock: float) -> float:
        """Wait for the metrics of a call that ends at ``step``, check and add them; returns when they arrived."""
        log = stop.read(log)
        losses, counts, norms = (
            np.asarray(a)[:number].astype(np.float64) for a in (log.loss, log.targets, log.grad_norm)
        )
        now = time.perf_counter()
        bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
        if bad.size:
            first = int(bad[0])
            self._grad_norm = float(norms[first])
            is_norm = np.isfinite(losses[first])
            what = f"The gradient norm became {norms[first]}" if is_norm else f"The loss became {losses[first]}"
            raise self._diverged(what, step - number + first + 1)
        self._grad_norm = float(norms[-1])
        for loss, count in zip(losses, counts):
            self.progress.loss_sum += loss * count
            self.progress.loss_count += count
        self.progress.seconds += now - clock
        mean = float(np.sum(losses * counts) / max(np.sum(counts), 1))
        self._throughput.completed(number * self.data.units_per_step, now - clock)
        speed = self._throughput.estimate
        left = (self.total_steps - step) * self.data.units_per_step / speed
        progress = Progress(step, mean, self.data.bits_per_char(mean), speed, self.data.UNIT, left)
        for callback in self.recorder.callbacks:
            callback.on_step(progress)
        return now

    def time_call(self, step: int) -> tuple[float, int]:
        """Seconds per step of one call from ``step`` on, which advances the state; and its number of steps."""
        began, number = time.perf_counter(), self.inputs.steps_in_call(step)
        stop = self.group.stop_flag(StopSignals(), self.devices)
        batches = self.inputs.next(step, number)
        self.state, log = self._train_steps(self.key, self.state, batches, number, *stop.inputs())
        jax.block_until_ready(log)
        return (time.perf_counter() - began) / number, number

    # --- evaluation, examples, checkpoints

    def _at_boundary(self, step: int) -> None:
        """Evaluate, show examples and save, where they are due."""
        last = step == self.total_steps
        metric = self._evaluate(step) if self.eval_schedule.evaluates(step) or last else None
        if self.eval_schedule.samples(step) and not last:
            with self.group.all_or_none():
                if self.group.is_main:
                    for each in self.data.examples(self._inference_with(self._state.params), final=False):
                        for callback in self.recorder.callbacks:
                            callback.on_sample(Sampled(step, *each))
        self._save(step, metric)  # last, because it makes all of the above final

    def _evaluate(self, step: int) -> float | None:
        """Evaluate, update the best step and patience, and record the row; returns its cost on the main process."""
        metrics = self._metrics(self._state.params, final=False)
        if not math.isfinite(metrics["val_loss"]):
            raise self._diverged(f"The validation loss became {metrics['val_loss']}", step)
        cost = None
        with self.group.all_or_none():
            if self.group.is_main:
                metrics |= self.data.generation_metrics(self._inference_with(self._state.params), False)
                cost = self.data.METRIC.cost(metrics)
                self.progress.evaluated(step, cost)
                row = self._row(step, metrics)
                evaluated = Evaluated(row, self.progress.best_step, self.data.headline(row))
                for callback in self.recorder.callbacks:
                    callback.on_evaluation(evaluated)
                self.progress.loss_sum = self.progress.loss_count = 0.0
        self.progress = ProgressState(**self.group.broadcast_json(asdict(self.progress)))
        return cost

    def _row(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The line of ``metrics.jsonl``."""
        speed = self._throughput.measured
        return {
            "step": step,
            "train_loss": self.progress.loss_sum / max(self.progress.loss_count, 1.0),
            **metrics,
            "learning_rate": float(self.learning_rate(max(step - 1, 0))),
            f"{self.data.UNIT}_per_second": None if speed is None else round(speed),
            "seconds": round(self.progress.seconds, 3),
        }

    def _metrics(self, params: Params, final: bool) -> dict[str, Any]:
        """The metrics of the evaluation sets; all processes compute them together."""
        return self.data.report(evaluate(self.task, self.data.eval_sets(final), params, self.devices), final)

    def _inference_with(self, params: Params) -> TrainingInference:
        return self._inference.with_params(unreplicate(params))

    def save_first(self) -> None:
        """Save the state of step 0. A run without any checkpoint has lost them, and must not silently start again."""
        self._save(0)

    def _save(self, step: int, metric: float | None = None, keep: bool = False) -> None:
        """Save a checkpoint; with ``keep``, the earlier ones stay for a rollback."""
        state = self.gathered_state()
        with self.group.all_or_none():
            self.recorder.save(step, state, asdict(self.progress), metric, keep)
        for callback in self.recorder.callbacks:
            callback.on_checkpoint(step)

    def _finish(self, step: int) -> Finished:
        """Report on the best checkpoint: all evaluations in full, examples and plots."""
        best, params = None, self._state.params
        with self.group.all_or_none():
            if self.group.is_main:
                best = self.recorder.best_params(step, jax.eval_shape(self.task.init, self.key))
        best_step = self.group.broadcast_json(None if best is None else best[0])
        if best_step is not None:
            params = self.group.broadcast_tree(params if best is None else best[1])
        with self.group.all_or_none():
            metrics = self._metrics(params, final=True)
            return self._conclude(step, best_step or step, params, metrics)

    def _conclude(self, step: int, best_step: int, params: Params, metrics: dict[str, Any]) -> Finished:
        """Complete the final ``metrics`` and record the end of the run."""
        if not self.group.is_main:
            return Finished("", step, best_step, metrics)
        inference, path = self._inference_with(params), str(self.run.path)
        report = metrics | self.data.generation_metrics(inference, True)
        samples = [(each.title, each.text) for each in self.data.examples(inference, final=True)]
        summary, command = self.data.report_lines(report), self.data.next_command(path)
        finished = Finished(path, step, best_step, report, summary, command, samples)
        for callback in self.recorder.callbacks:
            callback.on_end(finished, inference)
        return finished

    # --- how training can end early

    def _interrupted(self, number: int, where: str) -> Interrupted:
        if not self.group.is_main:
            return Interrupted(number, f"{where} by process 0 of the job")
        return Interrupted(number, where, str(self.run.path))

    def _diverged(self, what: str, step: int) -> DivergedError:
        if self.recorder.store is None:
            return DivergedError(f"{what} at step {step:,}: process 0 of the job says more.")
        saved = self.recorder.store.latest()
        kept = "Nothing was saved yet" if saved is None else f"The checkpoint of step {saved:,} before it is kept"
        return DivergedError(
            f"{what} at step {step:,} (learning rate {float(self.learning_rate(max(step - 1, 0))):.3g}, gradient norm "
            f"{self._grad_norm:.3g}). Train again with a lower --lr or a smaller --clip, or give --on-nan rollback. "
            f"{kept} in {self.run.path}."
        )

    def _recover(self, error: DivergedError) -> int:
        """Return to the last good checkpoint with half the learning rate; returns its step.

        Raises ``error`` without ``--on-nan rollback``, after ``MAX_ROLLBACKS``, and where no checkpoint is good.
        """
        state, found = None, None
        if self.config.on_nan == "rollback" and self.progress.rollbacks < MAX_ROLLBACKS:
            state = self.gathered_state()
            if self.recorder.store is not None:
                like = jax.eval_shape(lambda state: state, state)
                restored = nan_recovery(self.recorder.store, self.eval_schedule, self.progress, like, self._note)
                if restored is not None:
                    state, found = restored[1], (restored[0], asdict(restored[2]))
            found = self.group.broadcast_json(found)
        if state is None or found is None:
            self.group.ends_together = True
            raise error
        step, progress = found
        self.set_progress(ProgressState(**progress)).set_state(self.group.broadcast_tree(state))
        with self.group.all_or_none():
            self.recorder.truncate_after(step)
        rollbacks = self.progress.rollbacks
        self._note(
            f"WARNING: {str(error).split('. ')[0]}. Going back to step {step:,} with a learning rate of "
            f"{ROLLBACK_SCALE**rollbacks:g} of what it would be (rollback {rollbacks} of {MAX_ROLLBACKS} at most)."
        )
        return step

    def _note(self, text: str) -> None:
        for callback in self.recorder.callbacks:
            callback.on_note(Note(text))
