"""A training loop for tasks, optimizers and batches of users. It writes no run: for that see ``jaxgen.start``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.errors import DivergedError, UsageError, check_int, check_kind, counted
from jaxgen.sampling.decode import make_key
from jaxgen.trainer.callbacks import Callback, Evaluated, Finished, Note, Progress, Started
from jaxgen.trainer.progress_state import Throughput
from jaxgen.trainer.trackers import Tracker
from jaxgen.training.step import StepMetrics, TrainState, create_state, eval_step, train_step
from jaxgen.training.task import Trainable
from jaxgen.types import Params


class Trainer:
    """Trains a task with an optax optimizer: ``for step, metrics in trainer``.

    The result depends on the arguments alone: dropout is a function of the seed, the step and the row. A second loop
    goes on where the first one ended, with ``steps`` more steps.

    Args:
        task: The model and its loss: a ``jaxgen.LanguageTask`` with a model of your own, a subclass with another
            ``loss``, or an object with the methods of ``jaxgen.training.task.Trainable``.
        batches: The batch of each step: ``jaxgen.make_batches(...)``, or a function of the step, from 0.
        optimizer: An optax transformation of gradients; its learning rate may be a schedule. None that calls the loss
            itself (``optax.lbfgs``).
        steps: How many steps a loop takes.
        validation: Batches on which the model is evaluated, in their order, with the state carried between them.
        eval_every: Steps between two evaluations, which ``Callback.on_evaluation`` sees; 0 for none.
        seed: Determines the initial weights and dropout.
        callbacks: Called as in a run, with ``None`` for the inference of ``on_end``. Trackers need a run.

    Raises:
        UsageError: An argument cannot be used.
        DivergedError: The loss of an evaluation is not finite.

    Example:
        >>> corpus = jaxgen.prepare(["book.txt"])
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(corpus.tokenizer.vocab_size, jaxgen.Elman, hidden=8))
        >>> batches = jaxgen.make_batches("stream", corpus.train, batch_size=2, seq_len=8, seed=0)
        >>> trainer = jaxgen.Trainer(task, batches, optimizer=optax.sgd(0.1), steps=3)
        >>> [(step, float(metrics.loss) > 0) for step, metrics in trainer]
        [(1, True), (2, True), (3, True)]
        >>> sampler = jaxgen.Sampler(task, corpus.tokenizer, trainer.params)
        >>> len(sampler.sample("t", jaxgen.GenerationConfig(length=5))[0])
        5
    """

    def __init__(
        self,
        task: Trainable,
        batches: Any,
        *,
        optimizer: optax.GradientTransformation,
        steps: int,
        validation: Sequence[Any] = (),
        eval_every: int = 0,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.task = check_kind("Trainer", task, Trainable, "a task such as jaxgen.LanguageTask(model)")
        right = "an optax transformation such as optax.adam(1e-3)"
        self.optimizer = check_kind("optimizer", optimizer, optax.GradientTransformation, right)
        self.steps = check_int("The number of steps", steps, 0)
        self.validation = check_kind("validation", validation, Sequence, "a list of batches")
        self.eval_every = check_int("eval_every", eval_every, 0)
        if eval_every and not validation:
            raise UsageError("eval_every needs batches to evaluate on: give validation=[...] too.")
        check_kind("callbacks", callbacks, Iterable, "a list of instances of jaxgen.Callback")
        self.callbacks = [check_kind("callbacks", each, Callback, "instances of jaxgen.Callback") for each in callbacks]
        if any(isinstance(each, Tracker) for each in self.callbacks):
            raise UsageError("Trackers log runs: train with jaxgen.train or jaxgen.start, or leave them out.")
        self._batch: Callable[[int], Any] = getattr(batches, "batch", batches)
        if not callable(self._batch):
            raise UsageError("batches is not jaxgen.make_batches(...) nor a function that returns the batch of a step.")
        leaves = jax.tree.leaves(self._batch(0))
        if len({np.shape(leaf)[:1] for leaf in leaves}) != 1 or not np.ndim(leaves[0]):
            raise UsageError("A batch must be a tree of arrays that have the same number of rows.")
        #: Steps taken so far, and the weights, the state of the optimizer and the carry after them.
        self.step, key = 0, make_key(seed)
        state = create_state(task, optimizer, key, rows=leaves[0].shape[0])
        # A step donates its state, which may hold no array twice; some optimizers keep the initial weights.
        self.state: TrainState = jax.tree.map(jnp.copy, state)
        self._train_step = jax.jit(partial(train_step, task, optimizer, key), donate_argnums=0)
        self._eval_step = jax.jit(partial(eval_step, task))
        self._stopped: str | None = None
        self._losses: dict[int, float] = {}  # of the evaluations, by step

    def __repr__(self) -> str:
        return f"<jaxgen.Trainer of {type(self.task).__name__} after {counted(self.step, 'step')}>"

    @property
    def params(self) -> Params:
        """A copy of the present weights, which later steps leave as they are."""
        return jax.tree.map(jnp.copy, self.state.params)

    def stop(self, reason: str = "the loop asked for it") -> None:
        """End the loop after this step, as ``Callback.stop`` does."""
        self._stopped = reason

    def train(self) -> Trainer:
        """Take all steps; returns the trainer itself."""
        for _ in self:
            pass
        return self

    def __iter__(self) -> Iterator[tuple[int, StepMetrics]]:
        """Take a step, and yield its number, from 1, and its metrics: scalars that the device may still compute."""
        last, speed, self._stopped = self.step + self.steps, Throughput(), None
        for callback in self.callbacks:
            callback.stop_reason, callback.emit = None, self._emit
        self._call("on_start", Started("", {}, self.step, last))
        while self.step < last and not self._is_stopped:
            batch, began = self._batch(self.step), time.perf_counter()
            speed.dispatched(batch)
            self.state, metrics = self._train_step(self.state, batch)
            self.step += 1
            if self.callbacks:
                loss = float(metrics.loss)  # waits for the device
                speed.completed(1, time.perf_counter() - began)
                left = None if speed.measured is None else (last - self.step) / speed.measured
                self._call("on_step", Progress(self.step, loss, None, speed.measured, "steps", left))
            if self.eval_every and (self.step % self.eval_every == 0 or self.step == last):
                self._note_evaluation(float(metrics.loss))
            yield self.step, metrics
        report = {"val_loss": self._losses[self._best_step]} if self._losses else {}
        self._call("on_end", Finished("", self.step, self._best_step, report), None)

    def evaluate(self, batches: Iterable[Any]) -> float:
        """The mean loss on ``batches`` in their order, in nats per target, from the state before any input."""
        carry, nll, targets = None, 0.0, 0.0
        for batch in batches:
            if carry is None:
                carry = self.task.initial_carry(jax.tree.leaves(batch)[0].shape[0])
            carry, totals = self._eval_step(self.state.params, carry, batch)
            nll, targets = nll + float(totals.nll), targets + float(totals.targets)
        return nll / targets if targets else math.nan

    def _note_evaluation(self, train_loss: float) -> None:
        loss = self.evaluate(self.validation)
        if not math.isfinite(loss):
            raise DivergedError(f"The loss is not finite at step {self.step:,}: lower the learning rate.")
        self._losses[self.step] = loss
        since_best = sum(step > self._best_step for step in self._losses)
        row = {"step": self.step, "train_loss": train_loss, "val_loss": loss}
        headline = f"step {self.step:,}: training loss {train_loss:.3f}, validation loss {loss:.3f}"
        self._call("on_evaluation", Evaluated(row, self._best_step, since_best, headline))

    @property
    def _best_step(self) -> int:
        """The step of the lowest loss of an evaluation, or the last step without any."""
        return min(self._losses, key=lambda step: self._losses[step], default=self.step)

    @property
    def _is_stopped(self) -> bool:
        return self._stopped is not None or any(each.stop_reason is not None for each in self.callbacks)

    def _emit(self, event: Any) -> None:
        if isinstance(event, Note):
            self._call("on_note", event)

    def _call(self, name: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*args)
