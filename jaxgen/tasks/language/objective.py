"""Language modelling (many to many, aligned): the loss of a language model and its decoding functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int, PyTree

from jaxgen.errors import UsageError
from jaxgen.models.blocks import layers_from_names
from jaxgen.models.language_model import LanguageModel, LanguageModelProtocol
from jaxgen.models.layers import UNDROPPED
from jaxgen.types import (
    Array,
    ArrayLike,
    Batch,
    Carry,
    ConditionedBatch,
    DecodeWeights,
    Key,
    Objective,
    Params,
    RowKeys,
)

#: The largest number of logits that scoring holds in memory at once.
MAX_LOGITS = 1 << 22


class Totals(NamedTuple):
    """Sums over the targets that count, so totals of batches of different sizes can be added."""

    nll: Float[Array, ""]  # summed negative log-likelihood, nats
    targets: Float[Array, ""]  # number of targets


class RegularisedTotals(NamedTuple):
    """``Totals`` of a training batch, where training minimises something else than their mean."""

    nll: Float[Array, ""]
    targets: Float[Array, ""]
    objective: Objective


class Scored(NamedTuple):
    """Log-probabilities of the targets, in nats, with the ``top`` most probable tokens, best first."""

    logp: Float[Array, "B T"]
    top: Int[Array, "B T top"]
    top_logp: Float[Array, "B T top"]


def _mean_square(x: Float[Array, "T B H"]) -> Float[Array, "T B"]:
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1)


@dataclass(frozen=True)
class LanguageTask:
    """A language model with its loss and its decoding functions. All methods are pure.

    ``model`` is any Linen module that follows ``LanguageModelProtocol``. The loss, ``prefill``, ``step`` and ``score``
    all use ``states`` and ``logits`` of the model, called by name, so they agree for every subclass.

    Training adds to the mean cross-entropy (an evaluation does not):

    - with ``label_smoothing``, this fraction of each target is spread evenly over the vocabulary (Szegedy et al. 2016,
      arXiv:1512.00567, section 7);
    - ``ar`` times the mean square of the outputs that the output layer reads, after dropout, and ``tar`` times that of
      the change of the last layer's outputs from step to step, before dropout (Merity et al. 2017, arXiv:1708.01009).

    Example:
        >>> task = jaxgen.LanguageTask(jaxgen.LanguageModel(vocab_size=30, cell=jaxgen.LSTM, hidden=8))
        >>> params = task.init(jax.random.key(0))
    """

    model: LanguageModelProtocol
    label_smoothing: float = 0.0
    ar: float = 0.0
    tar: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"`label_smoothing` is {self.label_smoothing!r}: give 0 or more, below 1.")
        for name in ("ar", "tar"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"`{name}` is {getattr(self, name)!r}: give a finite number of at least 0.")

    @classmethod
    def build(
        cls, *, vocab_size: int, label_smoothing: float = 0.0, ar: float = 0.0, tar: float = 0.0, **options: PyTree
    ) -> LanguageTask:
        """Build the task from plain values: its own, those of ``layers_from_names``, and the model's sizes."""
        own = {"label_smoothing": label_smoothing, "ar": ar, "tar": tar}
        # A subclass with another ``__init__`` is built as long as it is asked for nothing that it may not have.
        given = {name: value for name, value in own.items() if value}
        return cls(LanguageModel(vocab_size, **layers_from_names(**options)), **given)

    def _apply(self, params: Params, *args: PyTree, method: str, **kwargs: PyTree) -> PyTree:
        return self.model.apply({"params": params}, *args, method=method, **kwargs)

    @property
    def is_random(self) -> bool:
        """Whether training needs ``row_keys``, because its loss differs from that of an evaluation."""
        return self.model.has_dropout or self._is_regularised

    @property
    def _is_regularised(self) -> bool:
        return max(self.label_smoothing, self.ar, self.tar) > 0

    @property
    def weight_dropout(self) -> float:
        """The rate at which the training step drops recurrent weights; 0 for a model without such a field."""
        return getattr(self.model, "weight_dropout", 0.0)

    def resolved_options(self) -> dict[str, str]:
        """Return the options of ``build`` whose value was resolved for this model on this device."""
        return {"form": self.model.chosen_form()}

    def init(self, key: Key) -> Params:
        """Return initial parameters."""
        return self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def initial_carry(self, rows: int) -> tuple[Carry, ...]:
        """Return the carry of ``rows`` rows before any input."""
        return self.model.initial_carry(rows)

    def loss(
        self, params: Params, carry: Carry, batch: Batch | ConditionedBatch, row_keys: RowKeys | None = None
    ) -> tuple[tuple[Carry, ...], Totals | RegularisedTotals]:
        """Return the carry after ``batch`` and the summed cross-entropy, starting from ``carry``.

        A reset starts from zeros, or from the state that the model computes from the document's condition.
        ``row_keys`` are given in training only: they switch on dropout and what training adds to the loss.

        Raises:
            UsageError: if the model has a condition and the batch has none, or the reverse.
        """
        return self._loss_and_logits(params, carry, batch, row_keys)[:2]

    def _loss_and_logits(
        self, params: Params, carry: Carry, batch: Batch | ConditionedBatch, row_keys: RowKeys | None
    ) -> tuple[tuple[Carry, ...], Totals | RegularisedTotals, Float[Array, "T B V"], Bool[Array, "T B"]]:
        """Return what ``loss`` does, the logits, and which targets count."""
        batch, initial = self._split_condition(params, batch)
        tokens, targets, reset, mask = (jnp.swapaxes(jnp.asarray(field), 0, 1) for field in batch)
        masks = {"reset": reset, "initial": initial, "row_keys": row_keys}
        regularised = row_keys is not None and self._is_regularised
        if regularised:
            (carry, states), kept = self._apply(
                params, tokens, carry, **masks, method="states", mutable=["intermediates"]
            )
        else:
            carry, states = self._apply(params, tokens, carry, **masks, method="states")
        logits = self._apply(params, states, method="logits")
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        totals = Totals(jnp.sum(jnp.where(mask, nll, 0.0)), jnp.sum(mask, dtype=jnp.float32))
        if not regularised:
            return carry, totals, logits, mask
        smoothed = nll
        if self.label_smoothing:
            even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
            smoothed = (1 - self.label_smoothing) * nll + self.label_smoothing * even
        loss = jnp.sum(jnp.where(mask, smoothed, 0.0))
        if self.ar:
            loss += self.ar * jnp.sum(jnp.where(mask, _mean_square(states), 0.0))
        if self.tar:
            sown = kept.get("intermediates", {}).get("stack", {})
            outputs = sown.get(UNDROPPED, [states])[-1]  # a model of one's own may have no ``Stack``
            steady = mask[1:] & mask[:-1] & ~reset[1:]
            loss += self.tar * jnp.sum(jnp.where(steady, _mean_square(outputs[1:] - outputs[:-1]), 0.0))
        return carry, RegularisedTotals(*totals, Objective(loss, totals.targets)), logits, mask

    def _split_condition(
        self, params: Params, batch: Batch | ConditionedBatch
    ) -> tuple[Batch, tuple[Carry, ...] | None]:
        """Return the plain batch and, if it has conditions, the initial state at each position, [T, B, ...]."""
        if isinstance(batch, ConditionedBatch) != bool(self.model.condition):
            raise UsageError(
                f"A model with conditions of width {self.model.condition} got a {type(batch).__name__}: give "
                "`ConditionedBatch` to a model with conditions, and `Batch` to one without."
            )
        if not isinstance(batch, ConditionedBatch):
            return batch, None
        by_time = jnp.swapaxes(jnp.asarray(batch.condition), 0, 1)
        return batch.batch, self._apply(params, by_time, method="initial_states")

    def evaluate(
        self, params: Params, carry: Carry, batch: Batch | ConditionedBatch
    ) -> tuple[tuple[Carry, ...], Totals | RegularisedTotals]:
        """Return the loss without dropout and what else training adds to it."""
        return self.loss(params, carry, batch)

    def initial_states(self, weights: DecodeWeights, condition: Float[ArrayLike, "B condition"]) -> tuple[Carry, ...]:
        """Return the carry before any input, given the condition of each row."""
        return cast("tuple[Carry, ...]", self._apply(weights.params, condition, method="initial_states"))

    def prepare(self, params: Params) -> DecodeWeights:
        """Return the weights for decoding: the parameters, and the first layer's projection of every token."""
        return DecodeWeights(params, self._apply(params, method="token_table"))

    def prefill(
        self,
        weights: DecodeWeights,
        carry: Carry,
        logits: Float[ArrayLike, "B V"],
        tokens: Int[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
    ) -> tuple[tuple[Carry, ...], Float[Array, "B V"]]:
        """Read a chunk of the prompt; return the carry after it and the logits of the next token.

        Valid tokens come first in each row. A row without valid tokens keeps its carry and the given ``logits``.
        """
        carry, states = self._apply(
            weights.params, tokens.T, carry, valid=valid.T, table=weights.table, method="states"
        )
        count = jnp.sum(valid, axis=1, dtype=jnp.int32)
        last = states[jnp.maximum(count - 1, 0), jnp.arange(tokens.shape[0])]
        new = self._apply(weights.params, last, method="logits")
        return carry, jnp.where((count > 0)[:, None], new, logits)

    def step(
        self, weights: DecodeWeights, carry: Carry, token: Int[ArrayLike, "B"]
    ) -> tuple[tuple[Carry, ...], Float[Array, "B V"]]:
        """Run one decoding step; return the new carry and the logits of the next token."""
        carry, states = self._apply(weights.params, token[None, :], carry, table=weights.table, method="states")
        return carry, self._apply(weights.params, jax.lax.squeeze(states, (0,)), method="logits")

    def outputs(
        self, params: Params, carry: Carry, tokens: Int[ArrayLike, "B T"], valid: Bool[ArrayLike, "B T"]
    ) -> tuple[tuple[Carry, ...], Float[Array, "B T H"], Float[Array, "B T V"]]:
        """Return the carry after ``tokens``, the outputs of the last layer, and the logits of each next token.

        ``score`` needs less memory, and its weights are those of ``prepare``.
        """
        carry, states = self._apply(params, tokens.T, carry, valid=valid.T, method="states")
        by_row = jnp.swapaxes(states, 0, 1)
        return carry, by_row, self._apply(params, by_row, method="logits")

    def score(
        self,
        weights: DecodeWeights,
        carry: Carry,
        tokens: Int[ArrayLike, "B T"],
        targets: Int[ArrayLike, "B T"],
        reset: Bool[ArrayLike, "B T"],
        valid: Bool[ArrayLike, "B T"],
        initial: Carry,
        *,
        top: int = 0,
    ) -> tuple[tuple[Carry, ...], Scored]:
        """Read a chunk of tokens and return the log-probability of each target.

        Args:
            weights: the result of ``prepare``.
            carry: where each row continues.
            tokens: the input at each step.
            targets: the token to score at each step.
            reset: whether the row restarts from ``initial`` before this step.
            valid: where false, the step reads nothing and its log-probability is 0.
            initial: the state after a reset.
            top: how many of the most probable tokens to return as well. Equally probable tokens are ordered by id.
        """
        rows, steps = tokens.shape
        masks = {"reset": reset.T, "valid": valid.T, "initial": initial, "table": weights.table}
        carry, states = self._apply(weights.params, tokens.T, carry, **masks, method="states")

        def one(block: tuple[Array, Array]) -> Scored:
            logits = self._apply(weights.params, block[0], method="logits")
            total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            chosen = jnp.take_along_axis(logits, block[1][:, None], axis=-1)
            best, ids = jax.lax.top_k(logits, top)
            return Scored((chosen - total)[:, 0], ids.astype(jnp.int32), best - total)

        size = rows * steps
        while size % 2 == 0 and size * self.model.vocab_size > MAX_LOGITS:
            size //= 2
        blocks = states.reshape(-1, size, states.shape[-1]), targets.T.reshape(-1, size)
        scored = jax.lax.map(one, blocks)
        by_row = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(steps, rows, *a.shape[2:]), 0, 1), scored)
        return carry, by_row._replace(logp=jnp.where(valid, by_row.logp, 0.0))
