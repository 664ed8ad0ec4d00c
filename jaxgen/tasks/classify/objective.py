"""Classification: many to one. What the model is, what its loss is, and what an evaluation sums up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.models.classifier import Classifier
from jaxgen.models.layers import cell_factory
from jaxgen.types import Array, ClassificationBatch, Key, Objective, Params, TokenRows

#: Bins of confidence, of equal width, by which calibration is judged (Guo et al., ICML 2017, section 2, use 15).
BINS = 15


class ClassificationTotals(NamedTuple):
    """Sums over the rows that count, so that batches add up."""

    nll: Array  # summed negative log-likelihood, nats
    targets: Array  # how many
    confusion: Array  # [classes, classes], how many rows of a label (first axis) were given a label (second)
    calibration: Array  # [BINS, 3] by the probability of the label given: rows, their probabilities, how many are right
    objective: Objective  # the same negative log-likelihood, each row by its weight


@dataclass(frozen=True)
class ClassifyTask:
    """A classifier with its loss; everything here is pure."""

    model: Classifier

    #: What prediction gives for an input: numbers, at once.
    ANSWER: ClassVar[str] = "values"

    @classmethod
    def build(
        cls, *, vocab_size: int, classes: int, cell: str, cell_options: dict[str, Any], **sizes: Any
    ) -> ClassifyTask:
        """The task from plain values: a name in ``CELLS``, the cell's own options, and the model's sizes."""
        return cls(Classifier(vocab_size, classes, cell_factory(cell, cell_options), **sizes))

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        model = self.model
        return max(model.dropout, model.embed_dropout, model.token_dropout) > 0

    def resolved_options(self) -> dict[str, Any]:
        """Options of ``build`` that a rule has chosen for this model on this device."""
        return {"form": self.model.chosen_form()}

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))["params"]

    def initial_carry(self, rows: int) -> tuple[()]:
        """Nothing: no batch goes on from another."""
        del rows
        return ()

    def _logits(self, params: Params, inputs: TokenRows, row_keys: Key | None = None) -> Array:
        logits: Any = self.model.apply({"params": params}, *inputs, row_keys)
        return logits

    def loss(
        self, params: Params, carry: tuple[()], batch: ClassificationBatch, row_keys: Key | None = None
    ) -> tuple[tuple[()], ClassificationTotals]:
        """Summed cross-entropy of ``batch``; as the objective, each row by its weight."""
        logits = self._logits(params, batch.inputs, row_keys)
        labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        counts = weights > 0
        summed, weighted = (jnp.sum(jnp.where(counts, each, 0.0)) for each in (nll, nll * weights))
        judged = _judged(logits, labels, counts)
        return carry, ClassificationTotals(
            summed, jnp.sum(counts, dtype=jnp.float32), *judged, Objective(weighted, jnp.sum(weights))
        )

    def evaluate(
        self, params: Params, carry: tuple[()], batch: ClassificationBatch
    ) -> tuple[tuple[()], ClassificationTotals]:
        """What an evaluation sums up."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> Params:
        """Prediction reads the parameters as they are."""
        return params

    def predict(self, params: Params, inputs: TokenRows) -> Array:
        """The probability of every label for every row, [R, classes]."""
        return jax.nn.softmax(self._logits(params, inputs), axis=-1)


def _judged(logits: Array, labels: Array, counts: Array) -> tuple[Array, Array]:
    """The confusion matrix and the calibration of rows that count, [B] each."""
    classes = logits.shape[-1]
    given = jnp.argmax(logits, axis=-1)
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    counted = counts.astype(jnp.float32)[:, None]
    true = jax.nn.one_hot(labels, classes) * counted
    # Rows of the last bin go up to a probability of 1, which is in it.
    inside = jax.nn.one_hot(jnp.minimum((confidence * BINS).astype(jnp.int32), BINS - 1), BINS) * counted
    right = (given == labels).astype(jnp.float32)
    sums = jnp.stack([jnp.ones_like(confidence), confidence, right], axis=-1)
    return true.T @ jax.nn.one_hot(given, classes), inside.T @ sums
