"""Runs of an n-gram model: counted before they begin, then evaluated, saved, sampled and reported on as any other."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.baselines.ngram.kneser_ney import fit
from jaxgen.baselines.ngram.model import NGram
from jaxgen.baselines.ngram.objective import NGramTask as Task
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import TrainConfig
from jaxgen.runs.config_file import write_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.lock import locked
from jaxgen.tasks.registry import DATA
from jaxgen.tokenizers.base import EOS
from jaxgen.trainer.events import Emit, Finished, Note, ProgressEvents, Started
from jaxgen.trainer.run import resolve_config
from jaxgen.trainer.signals import RaiseOnSignal, Stopped
from jaxgen.trainer.trainer import Interrupted, Trainer
from jaxgen.training.step import TrainState

#: Whether several processes can train one run.
SEVERAL = False


class NGramRun(Trainer):
    """A run of no steps: its weights were counted. There is one row of metrics, one checkpoint and no loss curve."""

    def hold(self, params: Any, seconds: float = 0.0) -> NGramRun:
        """Set the parameters, and how long counting them took."""
        self.done.seconds = seconds
        self.go_on(TrainState(jnp.zeros((), jnp.int32), params, (), ()))
        return self

    @locked
    def train(self) -> Finished:
        """Evaluate the model, save it if that is not done yet, and report."""
        try:
            with RaiseOnSignal():
                self.emit(Started(str(self.run.path), self._facts(), 0, 0))
                report = self._report(self._params, final=True)
                if self.store.latest() is None:
                    self._record(report)
                return self._finish(0, report)
        except Stopped as stopped:
            raise Interrupted(stopped.number, "in the evaluation of what was counted", str(self.run.path)) from None

    def _record(self, report: dict[str, float]) -> None:
        row = {
            "step": 0,
            "train_loss": None,
            **report,
            "learning_rate": None,
            "tokens_per_second": round(self.data.corpus.train.ids.size / max(self.done.seconds, 1e-9)),
            "seconds": round(self.done.seconds, 3),
        }
        self.metrics.append(row)
        self.done.best = self.data.METRIC.cost(report)
        self._save(0, self.done.best)

    def _facts(self) -> dict[str, str]:
        ngrams, tokens = self.task.model.nodes - 1, self.data.corpus.train.ids.size
        return {
            **self.data.summary(),
            "model": f"{ngrams:,} n-grams of up to {self.task.model.order} tokens, modified Kneser-Ney smoothing",
            "training": f"{tokens:,} tokens counted"
            + (f" in {self.done.seconds:.1f} s" if self.done.seconds else " before"),
            "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        }


def start(config: Any, emit: Emit) -> NGramRun:
    """A new run in a new folder, its n-grams counted. Raises ``UsageError`` and ``DataError`` before it is a run.

    Whoever stops the counting leaves no folder behind; a folder that cannot be had is told of before it.
    """
    RunDirectory.check(config.run)
    try:
        with RaiseOnSignal():
            data = DATA[config.task].load(config, None, ProgressEvents(emit))
            model, params, seconds = count(data)
    except Stopped as stopped:
        raise Interrupted(stopped.number, "while n-grams were counted; there is no run yet") from None
    run = RunDirectory.create(config.run, config.task)
    options = {**data.model_options(), "nodes": model.nodes, "contexts": model.contexts}
    parameters = sum(leaf.size for leaf in params.values())
    resolved = {**resolve_config(data, options, parameters, devices=1), "steps": 0, "horizon": 0}
    run.write_json("tokenizer.json", data.codec.to_json())
    write_config(run, config, resolved)
    return NGramRun(config, data, Task(model), run, resolved, emit).hold(params, seconds)


def resume(saved: LoadedRun, config: TrainConfig, data: Any, emit: Emit) -> NGramRun:
    """A run that is finished, to report on again; one that was stopped before it was saved is counted again."""
    trainer = NGramRun(config, data, saved.task, saved.directory, saved.resolved, emit)
    if trainer.store.latest() is None:
        trainer.metrics.truncate(-1)
        try:
            with RaiseOnSignal():
                return trainer.hold(*count(data)[1:])
        except Stopped as stopped:
            raise Interrupted(stopped.number, "while n-grams were counted", str(saved.directory.path)) from None
    emit(Note(f"The run {saved.directory.path} is finished: n-grams are counted once, there is nothing to go on with."))
    return trainer.hold(saved.params()[1])


def count(data: Any) -> tuple[NGram, dict[str, Any], float]:
    """The model of the training split, its parameters, and the seconds that it took."""
    began = time.perf_counter()
    model, params = fit(data.corpus.train.ids, data.tokenizer.vocab_size, data.config.order, EOS)
    return model, params, time.perf_counter() - began
