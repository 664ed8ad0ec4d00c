"""The host loop: dispatch steps, evaluate, save, stop early, resume. It emits events and prints nothing."""

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
from jaxgen.distributed.processes import process_group
from jaxgen.errors import DivergedError, UsageError
from jaxgen.plots.loss import Best
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import RunLock, locked
from jaxgen.runs.logs import MetricsLog, append_sample, truncate_samples
from jaxgen.runs.manifest import DamagedCheckpointError
from jaxgen.sampling.decode import PRNG
from jaxgen.tasks.base import Example
from jaxgen.trainer.evaluate import Made, evaluate
from jaxgen.trainer.events import Emit, Evaluated, Finished, Note, Progress, Sampled, Started
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.nan_recovery import MAX_ROLLBACKS, ROLLBACK_SCALE, check_finite, nan_recovery
from jaxgen.trainer.progress_state import Interrupted, ProgressState
from jaxgen.trainer.recorder import LossCurves, Throughput, open_events, run_summary
from jaxgen.trainer.schedule import EvalSchedule, build_optimizer
from jaxgen.trainer.signals import RaiseOnSignal, Stopped, StopSignals
from jaxgen.training.data_parallel import make_global_mesh, shard_state, unreplicate
from jaxgen.training.step import TrainState

#: Arithmetic in one call of K steps: about half a second on two CPU cores, so that Ctrl-C is answered soon.
FLOPS_PER_CALL = 4e10
MAX_STEPS_PER_CALL = 32


def steps_per_call(parameters: int, tokens: int) -> int:
    """K: how many steps of ``tokens`` tokens one compiled call takes at most. It changes no bit of the result."""
    return int(min(max(FLOPS_PER_CALL / (6 * parameters * tokens), 1), MAX_STEPS_PER_CALL))


class Trainer:
    """One run, new or resumed. Make it with ``jaxgen.start`` or ``jaxgen.resume``, then call ``train``."""

    def __init__(
        self, config: TrainConfig, data: Any, task: Any, run: RunDirectory, resolved: dict[str, Any], emit: Emit
    ) -> None:
        self.config, self.data, self.task, self.run, self.resolved, self.emit = config, data, task, run, resolved, emit
        self.store = CheckpointStore(run.checkpoints_path)
        self.metrics = MetricsLog(run.metrics_path)
        self.done = ProgressState()
        self.state: TrainState | None = None
        self.total: int = resolved["steps"]
        self.key = jax.random.key(config.seed, impl=PRNG)
        most = getattr(task, "STEPS_PER_CALL", MAX_STEPS_PER_CALL)
        self.calls = min(most, steps_per_call(resolved["parameters"], data.tokens_per_step))
        self.devices: int = resolved["devices"]
        self.team, self.rhythm = process_group(), EvalSchedule.of(config, resolved["horizon"], self.total)
        self._feed = InputPipeline(data.batches, self.calls, self.devices, config.batch_size)
        self._plan()
        self._made = Made(task, data, config.seed)
        self._events: Any = None
        self._speed = Throughput()
        self._grad_norm = math.nan  # of the last step that was read
        self._curves = LossCurves(run, data.fingerprint()["name"], data.TARGET)

    def begin(self, params: Any | None = None) -> Trainer:
        """Set the state of step 0: fresh weights, or the given ``params`` with a fresh optimiser."""
        state = jitted.jit_init_state(self.task, self.optimizer, self.config.batch_size)(self.key)
        if params is not None:
            state = state._replace(params=params, opt_state=self.optimizer.init(params))
        return self.go_on(self.team.shared(state))

    def recall(self, done: ProgressState) -> Trainer:
        """Set what the host remembers, with the learning rate that follows from it."""
        self.done = done
        return self._plan()

    def _plan(self) -> Trainer:
        """The schedule and the compiled step. After a rollback it is compiled anew: the rate is a constant of it."""
        scale = ROLLBACK_SCALE**self.done.rollbacks
        self.schedule, self.optimizer = build_optimizer(self.config, self.resolved["horizon"], scale)
        self._steps = jitted.jit_train_steps(self.task, self.optimizer, self.devices, self._feed.read)
        return self

    def go_on(self, state: TrainState) -> Trainer:
        """Set the state from which ``train`` goes on, wherever its arrays lie."""
        self.state = state if self.devices == 1 else shard_state(make_global_mesh(self.devices), state)
        return self

    def save_first(self) -> None:
        """Save the state of step 0: a run without a checkpoint has lost them all, and never begins anew in silence."""
        self._save(0, None)

    # --- the loop

    @locked
    def train(self) -> Finished:
        """Run to the last step. Raises ``Interrupted`` (all saved) and ``DivergedError``."""
        return self._train()

    def _train(self) -> Finished:
        step = int(self._current().step)
        self._events = open_events(self.run, step) if self.config.tensorboard else None
        facts = run_summary(self.config, self.data, self.resolved, self.team.count)
        self.emit(Started(str(self.run.path), facts, step, self.total))
        stop = step >= self.total or self._patience_gone
        received = None
        with StopSignals() as signals, ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as drawing:
            while not stop:
                boundary = self.rhythm.following(step)
                try:
                    step += self._run_to(step, boundary, pool, signals)
                    check_finite(self.whole(), partial(self._diverged, step=step))
                    if step == boundary:
                        stop = self._at_boundary(step, drawing) or step >= self.total
                    else:
                        self._save_between(step)
                except DivergedError as error:
                    step = self._recover(error)
                received = self.team.signal(signals.received)
                if received is not None and not stop:
                    raise self._interrupted(received, f"at step {step:,}; saved")
        done = "in the final evaluation; training is done and saved"
        received = signals.received if self.team.alone else received
        if received is not None:  # while the last row of metrics was made, or the picture of it
            raise self._interrupted(received, done)
        try:
            with RaiseOnSignal() if self.team.alone else StopSignals():  # others would wait for ever for one that left
                self._curves.wait()
                return self._finish(step)
        except Stopped as stopped:
            raise self._interrupted(stopped.number, done) from None

    def _interrupted(self, number: int, where: str) -> Interrupted:
        return Interrupted(number, where, str(self.run.path))

    @property
    def _patience_gone(self) -> bool:
        return self.config.patience is not None and self.done.bad_evals >= self.config.patience

    def _run_to(self, step: int, boundary: int, pool: ThreadPoolExecutor, signals: StopSignals) -> int:
        """Dispatch calls of up to K steps until ``boundary`` or a signal; returns the number of steps done.

        While the device works on one call, the host reads the metrics of the one before and builds the next
        batches, so that neither waits for the other.
        """
        first, waiting, clock = step, None, time.perf_counter()
        number = min(self._feed.together(step), boundary - step)
        batches: Future = pool.submit(self._feed.take, step, number)
        while step < boundary and not self.team.stops(signals.received):
            ready, after = batches.result(), step + number
            following = min(self._feed.together(after), boundary - after)
            if following:
                batches = pool.submit(self._feed.take, after, following)
            asking = self.team.asking(signals.received, self.devices)
            self.state, log = self._steps(self.key, self.state, ready, number, *asking)
            self._speed.sent(ready)
            if waiting is not None:
                clock = self._read(*waiting, clock)
            waiting = (log, number, after)
            step, number = after, following
        if waiting is not None:
            self._read(*waiting, clock)
        return step - first

    def _read(self, log: Any, number: int, step: int, clock: float) -> float:
        """Wait for a call's metrics, check and add them up; returns the time at which they were there."""
        log = self.team.heard(log)
        losses, counts = (np.asarray(a)[:number].astype(np.float64) for a in (log.loss, log.targets))
        now = time.perf_counter()
        norms = np.asarray(log.grad_norm)[:number].astype(np.float64)
        bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
        if bad.size:
            first = int(bad[0])
            self._grad_norm = float(norms[first])
            fine = np.isfinite(losses[first])
            what = f"The gradient norm became {norms[first]}" if fine else f"The loss became {losses[first]}"
            raise self._diverged(what, step - number + first + 1)
        self._grad_norm = float(norms[-1])
        for loss, count in zip(losses, counts):
            self.done.loss_sum += loss * count
            self.done.loss_count += count
        self.done.seconds += now - clock
        mean = float(np.sum(losses * counts) / max(np.sum(counts), 1))
        self._speed.done(number * self.data.units_per_step, now - clock)
        speed = self._speed.guessed
        left = (self.total - step) * self.data.units_per_step / speed
        self.emit(Progress(step, mean, self.data.bits_per_char(mean), speed, self.data.UNIT, left))
        return now

    def _diverged(self, what: str, step: int) -> DivergedError:
        saved = self.store.latest()
        kept = "Nothing was saved yet" if saved is None else f"The checkpoint of step {saved:,} before it is kept"
        return DivergedError(
            f"{what} at step {step:,} (learning rate {float(self.schedule(max(step - 1, 0))):.3g}, gradient norm "
            f"{self._grad_norm:.3g}). Train again with a lower --lr or a smaller --clip, or give --on-nan rollback. "
            f"{kept} in {self.run.path}."
        )

    def _recover(self, error: DivergedError) -> int:
        """Return to the last good checkpoint with half the learning rate; returns its step.

        Raises ``error`` without ``--on-nan rollback``, after ``MAX_ROLLBACKS`` and where no checkpoint is good.
        """
        state, found = None, None
        if self.config.on_nan == "rollback" and self.done.rollbacks < MAX_ROLLBACKS:
            state = self.whole()
            if self.team.leads:
                like = jax.eval_shape(lambda state: state, state)
                restored = nan_recovery(self.store, self.rhythm, self.done, like, self.note)
                if restored is not None:
                    state, found = restored[1], (restored[0], asdict(restored[2]))
            found = self.team.told(found)
        if found is None:
            self.team.ends_together = True
            raise error
        step, done = found
        self.recall(ProgressState(**done)).go_on(self.team.shared(state))
        with self.team.together():
            self.forget_beyond(step)
        self.note(
            f"WARNING: {str(error).split('. ')[0]}. Going back to step {step:,} with a learning rate of "
            f"{ROLLBACK_SCALE**self.done.rollbacks:g} of what it would be "
            f"(rollback {self.done.rollbacks} of {MAX_ROLLBACKS} at most)."
        )
        return step

    def note(self, text: str) -> None:
        """Emit a ``Note``."""
        self.emit(Note(text))

    def forget_beyond(self, step: int) -> None:
        """Drop the checkpoints, rows, samples and events beyond ``step``: they will be written again."""
        self.store.truncate(step)
        self.metrics.truncate(step)
        truncate_samples(self.run.samples_path, step)
        if self._events is not None:
            self._events = open_events(self.run, step)

    def time_call(self, step: int) -> tuple[float, int]:
        """Seconds a step, by one call from ``step`` on, which advances the state; and how many steps that were."""
        began, number = time.perf_counter(), self._feed.together(step)
        asking = self.team.asking(None, self.devices)
        self.state, log = self._steps(self.key, self.state, self._feed.take(step, number), number, *asking)
        jax.block_until_ready(log)
        return (time.perf_counter() - began) / number, number

    # --- at a boundary

    def _at_boundary(self, step: int, pool: ThreadPoolExecutor) -> bool:
        """Evaluate, sample and save where due; True when patience has run out."""
        last = step == self.total
        due = self.rhythm.evaluates(step) or last
        row = self._evaluate(step) if due else None
        with self.team.together():
            shown = self._show(step) if self.rhythm.samples(step) and not last else []
        # Last: a kill before it undoes all of the above.
        self._save(step, None if row is None else self.data.METRIC.cost(row))
        if row is not None:
            self._curves.undrawn.tell(self.emit)
            self._curves.draw(pool, self.metrics, Best(self.done.best_step, self.data.METRIC.name))
            self.emit(Evaluated(row, best=self.done.best_step == step, headline=self.data.headline(row)))
        for title, text in shown:
            self.emit(Sampled(step, title, text))
        return self._patience_gone

    def _evaluate(self, step: int) -> dict[str, Any] | None:
        """Measure, update best-so-far and patience, and write the row of metrics, which a follower does not."""
        report = self._report(self._current().params, final=False)
        loss = report["val_loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"The validation loss became {loss}", step)
        with self.team.together():
            row = self._write_row(step, report)
        self.done = ProgressState(**self.team.told(asdict(self.done)))  # what was judged, the leader alone knows
        return row

    def _write_row(self, step: int, report: dict[str, Any]) -> dict[str, Any] | None:
        RunLock.check(self.run.path)
        cost = self.data.METRIC.cost(report)
        if self.done.best is None or cost < self.done.best:
            self.done.best, self.done.best_step, self.done.bad_evals = cost, step, 0
        else:
            self.done.bad_evals += 1
        speed = self._speed.measured
        row = {
            "step": step,
            "train_loss": self.done.loss_sum / max(self.done.loss_count, 1.0),
            **report,
            "learning_rate": float(self.schedule(max(step - 1, 0))),
            f"{self.data.UNIT}_per_second": None if speed is None else round(speed),
            "seconds": round(self.done.seconds, 3),
        }
        self.done.loss_sum = self.done.loss_count = 0.0
        self.metrics.append(row)
        if self._events is not None:
            self._events.add_row(row, step)
        return row

    @property
    def _params(self) -> Any:
        return unreplicate(self._current().params)

    def _current(self) -> TrainState:
        if self.state is None:
            raise UsageError("This trainer has no state: make it with jaxgen.start or jaxgen.resume.")
        return self.state

    def whole(self) -> TrainState:
        """The state as a checkpoint holds it, wherever its rows lie."""
        return self.team.whole(self._current(), self.devices)

    def _measured(self, params: Any, final: bool) -> dict[str, Any]:
        return self.data.report(evaluate(self.task, self.data.eval_sets(final), params, self.devices), final)

    def _report(self, params: Any, final: bool) -> dict[str, Any]:
        figures = self._measured(params, final)
        return figures | self.data.generation_metrics(self._made.with_params(unreplicate(params)), final)

    def _show(self, step: int) -> list[Example]:
        shown = self.data.examples(self._made.with_params(self._params), final=False)
        RunLock.check(self.run.path)
        for each in shown:
            append_sample(self.run.samples_path, step, each.text)
        return shown

    def _save_between(self, step: int) -> None:
        """Save where a signal stopped the run, and keep what a rollback may have to go back to."""
        if self.config.on_nan == "rollback":
            self.store.keep_latest = max(self.store.keep_latest, len(self.store.steps()) + 1)
        self._save(step, None)

    def _save(self, step: int, metric: float | None) -> None:
        whole = self.whole()
        with self.team.together():
            self._store(step, whole, metric)

    def _store(self, step: int, whole: TrainState, metric: float | None) -> None:
        RunLock.check(self.run.path)
        self.store.save(step, whole, asdict(self.done), metric)
        RunLock.check(self.run.path)  # what was saved into a folder that is another by now is not the run's

    def _finish(self, step: int, report: dict[str, Any] | None = None) -> Finished:
        """Report on the best checkpoint: every evaluation in full (unless given), samples and pictures."""
        with self.team.together():
            best, params = self._best(step)
        if (best := self.team.told(best)) not in (None, step):
            params = self.team.shared(params)
        with self.team.together():
            return self._conclude(step, best, params, report)

    def _best(self, step: int) -> tuple[int | None, Any]:
        """The best step, if one is, and its weights."""
        best = self.store.best()
        params = self._current().params
        if best is not None and best != step:
            try:
                params, _ = self.store.restore_params(best, jax.eval_shape(self.task.init, self.key))
            except DamagedCheckpointError as error:  # all that training can give is there
                self.emit(Note(f"WARNING: {error} The report is of step {step:,} instead, the last."))
                best = step
        return best, params

    def _conclude(self, step: int, best: int | None, params: Any, report: dict[str, Any] | None) -> Finished:
        report = self._report(params, final=True) if report is None else report
        made = self._made.with_params(unreplicate(params))
        samples = [(each.title, each.text) for each in self.data.examples(made, final=True)]
        self.run.write_json("report.json", {"step": step, "best_step": best or step, **report})
        with self._curves.undrawn.expected(f"the pictures of the report in {self.run.path}"):
            self.data.save_plots(made, report, self.run.path)
        self._curves.undrawn.tell(self.emit)
        path, data = str(self.run.path), self.data
        finished = Finished(
            path, step, best or step, report, data.report_lines(report), data.next_command(path), samples
        )
        self.emit(finished)
        return finished
