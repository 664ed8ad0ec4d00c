"""Distillation: a language model that also learns from the probabilities that another one gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, PyTree

from jaxgen.tasks.language.mixture import select_rows
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.training.task import PromptedTask
from jaxgen.types import Array, Batch, Carry, Objective, Params, RowKeys


class DistilledTotals(NamedTuple):
    """Sums over the targets that count."""

    nll: Float[Array, ""]  # summed negative log-likelihood of the targets, nats
    targets: Float[Array, ""]  # number of targets
    objective: Objective  # what training minimises


@dataclass(frozen=True, eq=False)
class DistilledTask(LanguageTask):
    """A language model in training with a teacher (Hinton et al. 2015, arXiv:1503.02531). All methods are pure.

        loss = (1 - share) CE(target, p) + share T^2 CE(q_T, p_T)

    with p the model's and q the teacher's probabilities, p_T and q_T those at the temperature T. The carry is the pair
    of the model's and the teacher's, so the teacher reads a stream as the model does. No gradient flows into it.
    Only ``loss`` and ``initial_carry`` differ from ``LanguageTask``: evaluate and sample with that.

    Args:
        model: As in ``LanguageTask``.
        teacher: A language model with the same vocabulary, for example a ``MixtureTask``.
        teacher_weights: What its ``prepare`` returns.
        share: The share of the teacher in the loss.
        temperature: T.
    """

    teacher: PromptedTask
    teacher_weights: PyTree
    share: float = 0.5
    temperature: float = 1.0

    def initial_carry(self, rows: int) -> tuple[Carry, ...]:
        """Return the carry of the model and that of the teacher."""
        return super().initial_carry(rows), self.teacher.initial_carry(rows)

    def loss(  # type: ignore[override]  # no conditions, and totals with one more field
        self, params: Params, carry: Carry, batch: Batch, row_keys: RowKeys | None = None
    ) -> tuple[tuple[Carry, ...], DistilledTotals]:
        """Return the carry after ``batch`` and the summed losses, starting from ``carry``."""
        own, taught = carry
        own, logits, targets, mask = self._logits(params, own, batch, row_keys)
        taught, wanted = self._teach(taught, batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        soft = optax.softmax_cross_entropy(logits / self.temperature, jax.nn.softmax(wanted / self.temperature))
        both = (1 - self.share) * nll + self.share * self.temperature**2 * soft
        count = jnp.sum(mask, dtype=jnp.float32)
        nll, both = (jnp.sum(jnp.where(mask, each, 0.0)) for each in (nll, both))
        return (own, taught), DistilledTotals(nll, count, Objective(both, count))

    def _teach(self, carry: Carry, batch: Batch) -> tuple[Carry, Float[Array, "T B V"]]:
        """Return the teacher's carry after the batch, and its logits at each step."""
        tokens, _, reset, _ = (jnp.swapaxes(jnp.asarray(field), 0, 1) for field in batch)
        initial = self.teacher.initial_carry(tokens.shape[1])

        def one(carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, Array]:
            token, reset = now
            return self.teacher.step(self.teacher_weights, select_rows(reset, initial, carry), token)

        return jax.lax.scan(one, carry, (tokens, reset))
