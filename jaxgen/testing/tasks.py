"""The contract of tasks: ``check_task``, and its checks, functions that take a ``Subject``.

A task needs a ``Case`` to be checked: eight examples, and a model that learns them in seconds. Checks see a task as
users do: data are read, a run is trained, its folder is opened again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.inference.predictor import Predictor
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA, TASKS
from jaxgen.testing.checking import assert_close, assert_identical, require, run_checks
from jaxgen.trainer import trainer
from jaxgen.trainer.callbacks import Progress
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import Interrupted
from jaxgen.types import Batch, ClassificationBatch, Seq2SeqBatch, TokenRows

#: Settings of every subject. Dropout: a resumed run must drop what one that was not stopped drops. Ten rows for eight
#: examples: two of them fill up the batch.
SHARED: dict[str, Any] = {"batch_size": 10, "dropout": 0.1, "warmup": 5, "final_lr": 0.1, "devices": 1}
#: Steps at which a run is stopped and resumed; at none of them it would have saved anything.
STOPS = (7, 33)
EVALUATIONS = 6


def padding_of(batch: Any) -> Any:
    """Where a batch may hold anything: a tree of masks like it, with ``None`` for what is no content."""
    content: Any = None
    if isinstance(batch, ClassificationBatch):
        rows: Any = np.asarray(batch.weights) == 0
        return ClassificationBatch(_padding_of_inputs(batch.inputs, rows), rows, content)
    if isinstance(batch, Seq2SeqBatch):
        unwritten = ~np.asarray(batch.mask)
        inputs = _padding_of_inputs(batch.inputs, np.asarray(unwritten.all(axis=1)))
        return Seq2SeqBatch(inputs, unwritten, unwritten, content, content)
    if isinstance(batch, Batch):
        return Batch(_unread(batch), ~batch.mask, content, content)
    raise AssertionError(f"Nothing says what is padding in a {type(batch).__name__}: give the case a `padding`.")


def _padding_of_inputs(inputs: Any, rows: np.ndarray) -> Any:
    """Padding of a row, and everything in ``rows`` that fill up the batch."""
    if isinstance(inputs, TokenRows):
        content: Any = None
        return TokenRows(~inputs.valid | rows[:, None], content)
    return jax.tree.map(lambda a: np.broadcast_to(rows.reshape(-1, *[1] * (a.ndim - 1)), a.shape), inputs)


def _unread(batch: Batch) -> np.ndarray:
    """Steps behind which no target counts before the next reset."""
    counts, reads = np.zeros(len(batch.mask), bool), np.zeros_like(batch.mask)
    for t in reversed(range(batch.mask.shape[1])):
        counts = counts | batch.mask[:, t]
        reads[:, t] = counts
        counts = counts & ~batch.reset[:, t]
    return ~reads


class Examples(NamedTuple):
    """Eight examples: the settings that read them, to train and to validate with, and what they are."""

    settings: dict[str, Any]
    inputs: list[Any]  # as prediction takes them; of different lengths, if they have any
    targets: list[str]


def predicted(run: Path, inputs: list[Any]) -> list[Any]:
    """The answers of ``jaxgen predict``."""
    return list(Predictor.load(run).predict(inputs))


@dataclass(frozen=True)
class Case:
    """What a task needs to be checked."""

    #: Writes eight examples into a folder.
    write: Callable[[Path], Examples]
    #: Settings of a tiny model that learns them by heart; ``steps`` among them.
    settings: dict[str, Any]
    #: The target in an answer.
    told: Callable[[Any], str]
    #: From a run's folder and inputs to answers.
    answer: Callable[[Path, list[Any]], list[Any]] = predicted
    #: Of the loss of a target, in nats: what no model can know.
    floor: float = 0.0
    #: From a batch to masks of what may hold anything, a tree like the batch with ``None`` for what may not.
    padding: Callable[[Any], Any] = padding_of


def check_task(name: str, case: Case) -> None:
    """Run every check of the tasks' contract on the registered task ``name``.

    It trains a few runs in a temporary folder, which takes about a minute.

    Raises:
        AssertionError: a sentence for each check that fails.
    """
    with TemporaryDirectory() as folder:
        run_checks(f"The task {name}", CHECKS, Subject(name, case, Path(folder)))


class Subject:
    """A task under test: its examples, its data, its model, and a run that has learnt the examples."""

    def __init__(
        self, name: str, case: Case, folder: Path, quick: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.name, self.case, self.folder, self._quick = name, case, folder, quick
        (folder / "data").mkdir(parents=True)
        self.examples = case.write(folder / "data")
        self.steps = case.settings["steps"]
        every = {"eval_every": self.steps // EVALUATIONS, "sample_every": self.steps // 2}
        self._settings = {**SHARED, **every, **self.examples.settings, **case.settings}

    def config(self, run: str, **more: Any) -> Any:
        """The settings of a run in this folder."""
        return DATA[self.name].Config(**{**self._settings, "run": str(self.folder / run), **more})

    # --- the pure half

    @cached_property
    def data(self) -> Any:
        return DATA[self.name].load(self.config("none"))

    @cached_property
    def task(self) -> Any:
        return TASKS[self.name].build(**self.data.model_options())

    @cached_property
    def params(self) -> Any:
        """Random weights, large enough that everything matters."""
        normal, shapes = np.random.default_rng(0).normal, jax.eval_shape(self.task.init, jax.random.key(0))
        return jax.tree.map(lambda a: normal(0, 0.5, a.shape).astype(a.dtype), shapes)

    @property
    def batch(self) -> Any:
        """The first training batch, in NumPy."""
        return jax.tree.map(np.asarray, self.data.batches.batch(0))

    @cached_property
    def _loss(self) -> Callable:
        def summed(params: Any, batch: Any) -> tuple[Any, Any]:
            totals = self.task.loss(params, self.task.initial_carry(len(jax.tree.leaves(batch)[0])), batch)[1]
            return totals.nll, totals

        return jax.jit(jax.value_and_grad(summed, has_aux=True))

    def loss(self, batch: Any) -> tuple[Any, Any]:
        """The totals of a batch, and the gradient of its loss."""
        (_, totals), gradient = self._loss(self.params, batch)
        return jax.tree.map(np.asarray, (totals, gradient))

    @cached_property
    def _read(self) -> Callable:
        """What a model computes first of all from its inputs, R rows in every leaf."""
        task = self.task
        if hasattr(task, "init_decoder"):
            return jax.jit(lambda params, inputs: task.init_decoder(task.prepare(params), inputs))
        if hasattr(task, "predict"):
            return jax.jit(lambda params, inputs: task.predict(task.prepare(params), inputs))

        def prefill(params: Any, inputs: Any) -> Any:
            logits = jnp.zeros((len(inputs.tokens), task.model.vocab_size))
            carry = task.initial_carry(len(inputs.tokens))
            return task.prefill(task.prepare(params), carry, logits, inputs.tokens, inputs.mask)

        return jax.jit(prefill)

    def read(self, inputs: Any) -> Any:
        return jax.tree.map(np.asarray, self._read(self.params, inputs))

    # --- a run

    def _in_run(self, run: Callable[[], Any]) -> Any:
        """Compiled quickly, few steps a call, so that a run can be stopped in many places; optax promotes types."""
        few = mock.patch.object(trainer, "MAX_STEPS_PER_CALL", 2)
        with few, self._quick(), jax.numpy_dtype_promotion("standard"):
            return run()

    def train_with_stops(self, run: str) -> Any:
        """Train, stopped by a signal at each of ``STOPS`` and resumed."""
        path = str(self.folder / run)
        stopped: list[int | None] = []
        for number in STOPS:
            with stopping(number) as emit:
                begin = partial(resume, path, emit=emit) if stopped else partial(start, self.config(run), emit)
                try:
                    self._in_run(lambda b=begin: b().train())  # type: ignore[misc]
                except Interrupted:
                    stopped.append(CheckpointStore(self.folder / run / "checkpoints").latest())
        require(len(stopped) == len(STOPS), "A run with `steps` of its case did not stop where it was asked to.")
        return self._in_run(lambda: resume(path).train())

    @cached_property
    def trained(self) -> dict[str, Any]:
        """The last evaluation of a run that was trained to the end, in the folder ``whole``."""
        self._in_run(lambda: start(self.config("whole")).train())
        return MetricsLog(self.folder / "whole" / "metrics.jsonl").read()[-1]

    def answers(self, inputs: list[Any]) -> list[Any]:
        """What the trained model answers."""
        _ = self.trained
        return self._in_run(lambda: self.case.answer(self.folder / "whole", inputs))


@contextmanager
def stopping(number: int) -> Iterator[Callable[[Any], None]]:
    """An ``emit`` that asks for a stop, as a signal does, once ``number`` steps have been reported."""
    signals: list[Any] = []

    class Signals(trainer.StopSignals):
        def __init__(self) -> None:
            super().__init__()
            signals.append(self)

    def emit(event: Any) -> None:
        if isinstance(event, Progress) and event.step >= number:
            signals[-1].received = 2

    with mock.patch.object(trainer, "StopSignals", Signals):
        yield emit


def traces(run: Path, unit: str) -> dict[str, Any]:
    """Everything a run left that no clock wrote: the last and the best state, what the host knew, its logs."""
    clocks = (f"{unit}_per_second", "seconds")
    store = CheckpointStore(run / "checkpoints")
    last, best = store.latest(), store.best()
    rows = [*MetricsLog(run / "metrics.jsonl").read(), store.host(last)]
    return {
        "steps": (last, best),
        "states": [_bytes(store.restore(step)[0]) for step in (last, best)],
        "rows": [{name: value for name, value in row.items() if name not in clocks} for row in rows],
        "samples": (run / "samples.txt").read_bytes(),
        "report": (run / "report.json").read_bytes(),
    }


def _bytes(tree: Any) -> list[tuple[str, str, bytes]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes()) for path, leaf in leaves]


def filled(batch: Any, padding: Any, largest: bool) -> Any:
    """``batch`` with its padding overwritten, by zeros or by the largest value that there is."""

    def fill(mask: Any, values: np.ndarray) -> np.ndarray:
        return values if mask is None else np.where(mask, values.max() if largest else 0, values).astype(values.dtype)

    return jax.tree.map(fill, padding, batch, is_leaf=lambda node: node is None)


def widened(batch: Any, more: int) -> Any:
    """``batch`` with ``more`` steps of padding behind every row."""
    pad = lambda a: np.pad(a, [(0, 0), (0, more)])  # noqa: E731
    if isinstance(batch, ClassificationBatch):
        return batch._replace(inputs=widened(batch.inputs, more))
    if isinstance(batch, Seq2SeqBatch):
        padded = {name: pad(getattr(batch, name)) for name in ("tokens", "targets", "mask")}
        return batch._replace(inputs=widened(batch.inputs, more), **padded)
    return type(batch)(*map(pad, batch)) if isinstance(batch, TokenRows | Batch) else batch


def exchanged(batch: Any) -> Any:
    """The inputs of a batch, and the same with all rows behind the second replaced by the second.

    Another order alone would not show what sums over the rows.
    """
    inputs = batch if isinstance(batch, Batch) else batch.inputs
    return inputs, jax.tree.map(lambda a: np.concatenate([a[:2], np.broadcast_to(a[1:2], a[2:].shape)]), inputs)


# --- the checks


def check_eight_examples_are_learnt_by_heart(s: Subject) -> None:
    """A model of this size memorizes them: the gradient, the loss or `settings` of the case are wrong."""
    loss, most = s.trained["val_loss"], s.case.floor + 0.05
    require(loss < most, f"After {s.steps} steps the loss of the examples is {loss:.3f}, not below {most:.3f}.")


def check_a_trained_model_gives_back_its_targets(s: Subject) -> None:
    """Prediction must read inputs as training does."""
    answers = [s.case.told(answer) for answer in s.answers(s.examples.inputs)]
    require(answers == s.examples.targets, f"It answers {answers} instead of {s.examples.targets}.")


def check_a_run_stopped_and_resumed_equals_one_that_was_not(s: Subject) -> None:
    """A batch must follow from (seed, step) alone, and what the host remembers must be saved."""
    _ = s.trained
    s.train_with_stops("stopped")
    unit = s.data.UNIT
    whole, stopped = (traces(s.folder / run, unit) for run in ("whole", "stopped"))
    differ = [name for name in whole.keys() | stopped.keys() if whole.get(name) != stopped.get(name)]
    require(not differ, f"Resumed after {STOPS} steps, a run differs in its {', '.join(sorted(differ))}.")


def check_what_stands_in_padding_changes_no_bit(s: Subject) -> None:
    """Select by the mask (`jnp.where`), also rows that only fill a batch."""
    padding = s.case.padding(s.batch)
    one, other = (filled(s.batch, padding, largest) for largest in (False, True))
    require(_bytes(one) != _bytes(other), "The examples of the case leave no padding to look at.")
    assert_identical("Losses and gradients with other numbers in padding", s.loss(other), s.loss(one))


def check_how_much_padding_there_is_changes_rounding_alone(s: Subject) -> None:
    """A mean is taken over the steps that count, not over all."""
    (totals, gradient), (wider, its_gradient) = s.loss(s.batch), s.loss(widened(s.batch, 5))
    assert_close("Losses with more padding", wider.nll / wider.targets, totals.nll / totals.targets, 2e-6)
    assert_close("Totals with more padding", wider, totals, 1e-5)
    assert_close("Gradients with more padding", its_gradient, gradient, 1e-5)


def check_the_order_of_inputs_changes_no_answer(s: Subject) -> None:
    """Inputs that are sorted by length must get their answers in the order in which they were given."""
    order = [5, 2, 7, 0, 0, 3, 6, 1, 4]
    answers = s.answers(s.examples.inputs)
    found, wanted = s.answers([s.examples.inputs[i] for i in order]), [answers[i] for i in order]
    require(found == wanted, f"In another order the answers are {found} instead of {wanted}.")


def check_an_answer_does_not_depend_on_what_is_answered_beside_it(s: Subject) -> None:
    """Rows are independent, and padding has no effect."""
    wanted, found = s.answers(s.examples.inputs)[3:4], s.answers(s.examples.inputs[3:4])
    require(found == wanted, f"Alone, an input is answered by {found}, and among others by {wanted}.")


def check_a_row_is_read_without_its_neighbours(s: Subject) -> None:
    """Rows are independent: no mean over the batch."""
    inputs, others = exchanged(s.batch)
    one, other = s.read(inputs), s.read(others)
    require(_bytes(one) != _bytes(other), "All rows of the first batch are alike: give examples that differ.")
    first, again = (jax.tree.map(lambda a: a[0], each) for each in (one, other))
    assert_identical("What is read of row 0 with other rows beside it", again, first)


def check_the_shares_of_several_processes_are_the_batch_of_one(s: Subject) -> None:
    """`batch(step, rows)` gives the rows of `batch(step)`."""
    batches, rows = s.data.batches, SHARED["batch_size"]
    for step in range(3):
        whole = batches.batch(step)
        for share in (rows // 2, rows // 5):  # of eight examples the last of five shares has none
            parts = [batches.batch(step, slice(at, at + share)) for at in range(0, rows, share)]
            joined = jax.tree.map(lambda *shares: np.concatenate(shares), *parts)
            assert_identical(f"The shares of the batch of step {step}", joined, jax.tree.map(np.asarray, whole))


CHECKS = (
    check_eight_examples_are_learnt_by_heart,
    check_a_trained_model_gives_back_its_targets,
    check_a_run_stopped_and_resumed_equals_one_that_was_not,
    check_what_stands_in_padding_changes_no_bit,
    check_how_much_padding_there_is_changes_rounding_alone,
    check_the_order_of_inputs_changes_no_answer,
    check_an_answer_does_not_depend_on_what_is_answered_beside_it,
    check_a_row_is_read_without_its_neighbours,
    check_the_shares_of_several_processes_are_the_batch_of_one,
)
#: Checks of random weights; the others train a run.
UNTRAINED = {
    check_what_stands_in_padding_changes_no_bit,
    check_how_much_padding_there_is_changes_rounding_alone,
    check_a_row_is_read_without_its_neighbours,
    check_the_shares_of_several_processes_are_the_batch_of_one,
}
