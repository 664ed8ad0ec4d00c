"""The protocol of a task's objective: what the training step, the evaluation step and the trainer call."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Bool, Float, Int, PyTree

from jaxgen.types import Array, ArrayLike, Carry, Key, Params, RowKeys


@runtime_checkable
class Totals(Protocol):
    """Sums over the targets that count in a batch: a named tuple. Totals of several batches add up.

    It may have a field ``objective`` (``jaxgen.types.Objective``); training then minimises that instead of the mean of
    ``nll``. An evaluation sums every field.
    """

    @property
    def nll(self) -> Float[Array, ""]:
        """Summed negative log-likelihood, nats."""
        ...

    @property
    def targets(self) -> Float[Array, ""]:
        """How many targets count."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A model with its loss, as pure functions: what the training step needs.

    It is hashable, so it can be a static argument of ``jax.jit``. It may have ``weight_dropout``, the rate at which the
    training step drops weights of recurrent matrices.
    """

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers, and so needs ``row_keys``."""
        ...

    def init(self, key: Key) -> Params:
        """Initial parameters."""
        ...

    def initial_carry(self, rows: int) -> Carry:
        """The carry before the first batch of ``rows`` rows; ``()`` if no batch continues another."""
        ...

    def loss(
        self, params: Params, carry: Carry, batch: PyTree, row_keys: RowKeys | None = None
    ) -> tuple[Carry, Totals]:
        """The totals of a training batch, and the carry after it.

        Args:
            params: the parameters.
            carry: the carry before the batch.
            batch: a pytree of arrays with B rows each.
            row_keys: one key for each row, if ``is_random``.
        """
        ...

    def evaluate(self, params: Params, carry: Carry, batch: PyTree) -> tuple[Carry, Totals]:
        """The totals of an evaluation batch, and the carry after it."""
        ...


@runtime_checkable
class Task(Trainable, Protocol):
    """What a run trains."""

    def resolved_options(self) -> dict[str, str]:
        """Options of the task's ``build`` that a rule resolved on this device; a run records them."""
        ...

    def prepare(self, params: Params) -> PyTree:
        """What the task's decoding or prediction functions read, computed once from the parameters."""
        ...


class WritingTask(Task, Protocol):
    """A task whose model writes texts token by token."""

    def step(self, weights: PyTree, carry: Carry, token: Int[Array, "B"]) -> tuple[Carry, Float[Array, "B V"]]:
        """The carry and the logits after reading ``token``."""
        ...


class PromptedTask(WritingTask, Protocol):
    """A task that continues a prompt (language models)."""

    def initial_states(self, weights: PyTree, condition: Float[ArrayLike, "B condition"]) -> Carry:
        """The carry in which a text with this condition starts."""
        ...

    def prefill(
        self,
        weights: PyTree,
        carry: Carry,
        logits: Float[ArrayLike, "B V"],
        tokens: Int[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
    ) -> tuple[Carry, Float[Array, "B V"]]:
        """The carry and the logits after reading a chunk of a prompt."""
        ...

    def score(
        self,
        weights: PyTree,
        carry: Carry,
        tokens: Int[ArrayLike, "B T"],
        targets: Int[ArrayLike, "B T"],
        reset: Bool[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
        initial: Carry,
        *,
        top: int,
    ) -> tuple[Carry, PyTree]:
        """The carry, and log-probabilities of ``targets`` with the ``top`` most probable tokens."""
        ...


class EncodingTask(WritingTask, Protocol):
    """A task that encodes an input and writes a text for it (``ANSWER = "texts"``).

    The ``weights`` of its ``step`` are what ``prepare`` returns and the encoder's memory.
    """

    def init_decoder(self, prepared: PyTree, inputs: PyTree) -> tuple[PyTree, Carry, Float[Array, "B V"]]:
        """The encoder's memory, and the carry and logits in which decoding starts."""
        ...

    def attention_weights(
        self, prepared: PyTree, inputs: PyTree, tokens: Int[ArrayLike, "B T"]
    ) -> Float[Array, "B T S"]:
        """The attention weights of the steps that read ``tokens``."""
        ...


class PredictingTask(Task, Protocol):
    """A task whose answers are values (``ANSWER = "values"``)."""

    def predict(self, weights: PyTree, inputs: PyTree) -> PyTree:
        """Values, with a row for each input."""
        ...


def param_shapes(task: Trainable) -> Params:
    """The shapes and types of the parameters of ``task``. Nothing is computed."""
    shapes: Params = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    return shapes
