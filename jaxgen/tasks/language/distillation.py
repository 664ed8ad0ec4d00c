"""Distillation: a language model that also learns from the probabilities that another one gives."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, PyTree

from jaxgen.tasks.language.mixture import select_rows
from jaxgen.tasks.language.objective import LanguageTask, RegularisedTotals
from jaxgen.training.task import PromptedTask
from jaxgen.types import Array, Batch, Carry, Objective, Params, RowKeys


@dataclass(frozen=True, eq=False, kw_only=True)
class DistilledTask(LanguageTask):
    """A language model in training with a teacher (Hinton et al. 2015, arXiv:1503.02531). All methods are pure.

        loss = (1 - share) L + share T^2 CE(q_T, p_T)

    with L the loss of ``LanguageTask``, p the model's and q the teacher's probabilities, p_T and q_T those at the
    temperature T. The carry is the pair of the model's and the teacher's, so the teacher reads a stream as the model
    does. No gradient flows into it. Only ``loss`` and ``initial_carry`` differ from ``LanguageTask``: evaluate and
    sample with that.

    Args:
        model: As in ``LanguageTask``, with its other fields.
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

    def loss(  # type: ignore[override]  # no conditions
        self, params: Params, carry: Carry, batch: Batch, row_keys: RowKeys | None = None
    ) -> tuple[tuple[Carry, ...], RegularisedTotals]:
        """Return the carry after ``batch`` and the summed losses, starting from ``carry``."""
        own, taught = carry
        own, totals, logits, mask = self._loss_and_logits(params, own, batch, row_keys)
        taught, wanted = self._teach(taught, batch)
        soft = optax.softmax_cross_entropy(logits / self.temperature, jax.nn.softmax(wanted / self.temperature))
        soft = self.temperature**2 * jnp.sum(jnp.where(mask, soft, 0.0))
        text = getattr(totals, "objective", Objective(totals.nll, totals.targets)).loss
        aim = Objective((1 - self.share) * text + self.share * soft, totals.targets)
        return (own, taught), RegularisedTotals(totals.nll, totals.targets, aim)

    def _teach(self, carry: Carry, batch: Batch) -> tuple[Carry, Float[Array, "T B V"]]:
        """Return the teacher's carry after the batch, and its logits at each step."""
        tokens, _, reset, _ = (jnp.swapaxes(jnp.asarray(field), 0, 1) for field in batch)
        initial = self.teacher.initial_carry(tokens.shape[1])

        def one(carry: Carry, now: tuple[Array, Array]) -> tuple[Carry, Array]:
            token, reset = now
            return self.teacher.step(self.teacher_weights, select_rows(reset, initial, carry), token)

        return jax.lax.scan(one, carry, (tokens, reset))
