"""Classification (many to one): the model, its loss, and the sums that an evaluation collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.models.blocks import layers_from_names
from jaxgen.models.classifier import Classifier
from jaxgen.types import Array, ClassificationBatch, Key, Objective, Params, TokenRows

#: Number of equally wide confidence bins for calibration (Guo et al., ICML 2017, section 2, use 15).
BINS = 15


class ClassificationTotals(NamedTuple):
    """Sums over the rows that count, so totals of batches can be added."""

    nll: Array  # summed negative log-likelihood, nats
    targets: Array  # number of rows
    confusion: Array  # [classes, classes], number of rows by true label (first axis) and predicted label (second)
    calibration: Array  # [BINS, 3] by confidence: number of rows, sum of their confidences, number of correct rows
    objective: Objective  # the negative log-likelihood weighted by row


@dataclass(frozen=True)
class ClassifyTask:
    """A classifier with its loss. All methods are pure."""

    model: Classifier

    #: Prediction returns numbers, in a single forward pass.
    ANSWER: ClassVar[str] = "values"

    @classmethod
    def build(cls, *, vocab_size: int, classes: int, **options: Any) -> ClassifyTask:
        """Build the task from plain values: those of ``layers_from_names``, and the model's sizes."""
        return cls(Classifier(vocab_size, classes, **layers_from_names(**options)))

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.model.has_dropout

    @property
    def weight_dropout(self) -> float:
        """The rate at which the training step drops recurrent weights."""
        return self.model.weight_dropout

    def resolved_options(self) -> dict[str, str]:
        """Return the options of ``build`` whose value was resolved for this model on this device."""
        return {"form": self.model.chosen_form()}

    def init(self, key: Key) -> Params:
        """Return initial parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))["params"]

    def initial_carry(self, rows: int) -> tuple[()]:
        """Return an empty carry: batches do not continue each other."""
        del rows
        return ()

    def _logits(self, params: Params, inputs: TokenRows, row_keys: Key | None = None) -> Array:
        logits: Any = self.model.apply({"params": params}, *inputs, row_keys)
        return logits

    def loss(
        self, params: Params, carry: tuple[()], batch: ClassificationBatch, row_keys: Key | None = None
    ) -> tuple[tuple[()], ClassificationTotals]:
        """Return the summed cross-entropy of ``batch``. The objective weights each row by its weight."""
        logits = self._logits(params, batch.inputs, row_keys)
        labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        counts = weights > 0
        summed, weighted = (jnp.sum(jnp.where(counts, each, 0.0)) for each in (nll, nll * weights))
        sums = _confusion_and_calibration(logits, labels, counts)
        return carry, ClassificationTotals(
            summed, jnp.sum(counts, dtype=jnp.float32), *sums, Objective(weighted, jnp.sum(weights))
        )

    def evaluate(
        self, params: Params, carry: tuple[()], batch: ClassificationBatch
    ) -> tuple[tuple[()], ClassificationTotals]:
        """Return the totals of ``batch`` without dropout."""
        return self.loss(params, carry, batch)

    def prepare(self, params: Params) -> Params:
        """Return ``params``: prediction needs no preparation."""
        return params

    def predict(self, weights: Params, inputs: TokenRows) -> Array:
        """Return the probability of every label for every row, [B, classes]."""
        return jax.nn.softmax(self._logits(weights, inputs), axis=-1)


def _confusion_and_calibration(logits: Array, labels: Array, counts: Array) -> tuple[Array, Array]:
    """Return the confusion matrix and the calibration sums of the rows that count."""
    classes = logits.shape[-1]
    given = jnp.argmax(logits, axis=-1)
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    counted = counts.astype(jnp.float32)[:, None]
    true = jax.nn.one_hot(labels, classes) * counted
    # The last bin includes a confidence of exactly 1.
    inside = jax.nn.one_hot(jnp.minimum((confidence * BINS).astype(jnp.int32), BINS - 1), BINS) * counted
    right = (given == labels).astype(jnp.float32)
    sums = jnp.stack([jnp.ones_like(confidence), confidence, right], axis=-1)
    return true.T @ jax.nn.one_hot(given, classes), inside.T @ sums
