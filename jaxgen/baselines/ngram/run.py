"""N-gram runs: counted before they begin, then evaluated, saved, sampled and reported on like any other run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.baselines.ngram.kneser_ney import fit
from jaxgen.baselines.ngram.model import NGram
from jaxgen.baselines.ngram.objective import NGramTask as Task
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config_file import write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tokenizers.base import EOS
from jaxgen.trainer.callbacks import Callback
from jaxgen.trainer.events import Emit, Finished, Note, ProgressEvents, Started
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.trainer.progress_state import Interrupted
from jaxgen.trainer.recorder import make_recorder
from jaxgen.trainer.run import resolve_config
from jaxgen.trainer.signals import RaiseOnSignal, Stopped
from jaxgen.trainer.trainer import Trainer
from jaxgen.training.step import TrainState
from jaxgen.types import Params

#: Whether several processes can train one run.
SEVERAL_PROCESSES = False


class NGramRun(Trainer):
    """A run of no steps, whose weights were counted: one row of metrics, one checkpoint, no loss curve."""

    data: LanguageData

    def set_counted(self, params: Params, seconds: float = 0.0) -> NGramRun:
        """Set the parameters, and how long counting them took."""
        self.progress.seconds = seconds
        self.set_state(TrainState(jnp.zeros((), jnp.int32), params, (), ()))
        return self

    def train(self) -> Finished:
        """Evaluate the model, save it if that was not done before, and report."""
        try:
            with self.recorder, RaiseOnSignal():
                for callback in self.recorder.callbacks:
                    callback.on_start(Started(str(self.run.path), self._summary(), 0, 0))
                params = self._state.params
                metrics = self._metrics(params, final=True)
                if self.recorder.store is not None and self.recorder.store.latest() is None:
                    self._record(metrics)
                return self._conclude(0, 0, params, metrics)
        except Stopped as stopped:
            raise Interrupted(stopped.number, "in the evaluation of what was counted", str(self.run.path)) from None

    def _record(self, metrics: dict[str, Any]) -> None:
        row = {
            "step": 0,
            "train_loss": None,
            **metrics,
            "learning_rate": None,
            "tokens_per_second": round(self.data.corpus.train.ids.size / max(self.progress.seconds, 1e-9)),
            "seconds": round(self.progress.seconds, 3),
        }
        self.progress.best = self.data.METRIC.cost(metrics)
        MetricsLog(self.run.metrics_path).append(row)
        self._save(0, self.progress.best)

    def _summary(self) -> dict[str, str]:
        ngrams, tokens = self.task.model.nodes - 1, self.data.corpus.train.ids.size
        return {
            **self.data.summary(),
            "model": f"{ngrams:,} n-grams of up to {self.task.model.order} tokens, modified Kneser-Ney smoothing",
            "training": f"{tokens:,} tokens counted"
            + (f" in {self.progress.seconds:.1f} s" if self.progress.seconds else " before"),
            "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        }


def start(config: LanguageConfig, emit: Emit, callbacks: Sequence[Callback] = ()) -> NGramRun:
    """A new run in a new folder, its n-grams counted. Interrupting the count leaves no run directory.

    Raises ``UsageError`` and ``DataError``; a folder that cannot be used is reported before counting.
    """
    RunDirectory.check(config.run)
    try:
        with RaiseOnSignal():
            data = LanguageData.load(config, None, ProgressEvents(emit))
            model, params, seconds = count(data)
    except Stopped as stopped:
        raise Interrupted(stopped.number, "while n-grams were counted; there is no run yet") from None
    run = RunDirectory.create(config.run, config.task)
    options = {**data.model_options(), "nodes": model.nodes, "contexts": model.contexts}
    parameters = sum(leaf.size for leaf in params.values())
    resolved = {**resolve_config(data, options, parameters, devices=1), "steps": 0, "horizon": 0}
    run.write_json("tokenizer.json", data.codec.to_json())
    write_config(run, config, resolved)
    recorder = make_recorder(run, config, data, emit, callbacks)
    return NGramRun(config, data, Task(model), run, resolved, recorder, ProcessGroup()).set_counted(params, seconds)


def resume(
    saved: LoadedRun, config: LanguageConfig, data: LanguageData, emit: Emit, callbacks: Sequence[Callback] = ()
) -> NGramRun:
    """A finished run, to report on again. One that was stopped before it was saved is counted again."""
    recorder = make_recorder(saved.directory, config, data, emit, callbacks)
    trainer = NGramRun(config, data, saved.task, saved.directory, saved.resolved, recorder, ProcessGroup())
    if recorder.store.latest() is None:
        recorder.truncate_after(-1)
        try:
            with RaiseOnSignal():
                return trainer.set_counted(*count(data)[1:])
        except Stopped as stopped:
            raise Interrupted(stopped.number, "while n-grams were counted", str(saved.directory.path)) from None
    emit(Note(f"The run {saved.directory.path} is finished: n-grams are counted once, there is nothing to go on with."))
    return trainer.set_counted(saved.params()[1])


def count(data: LanguageData) -> tuple[NGram, Params, float]:
    """The model of the training split, its parameters, and the seconds that counting took."""
    began = time.perf_counter()
    model, params = fit(data.corpus.train.ids, data.tokenizer.vocab_size, data.config.order, EOS)
    return model, params, time.perf_counter() - began
