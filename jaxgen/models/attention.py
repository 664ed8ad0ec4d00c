"""Attention: how a decoder's state looks back at what an encoder has read.

A score for each of S places is made into weights by a softmax over the places that are there, and the context is the
mean of the values under these weights. What does not depend on the state, the keys, is computed once a source.

As cells are, an attention is a Linen module that owns parameters, and pure functions that get them as arguments, so
that it can stand inside a loop over time.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.cells.precision import dot_general, matmul
from jaxgen.cells.scan import mask_rows
from jaxgen.types import Array, ArrayLike


class Memory(NamedTuple):
    """What a decoder looks back at; B in front of every field."""

    values: Array  # [B, S, M], zero in padding
    keys: Array  # [B, S, H], what scores are computed from
    valid: Array  # bool [B, S], false in padding


def masked_softmax(scores: Array, valid: Array) -> Array:
    """Softmax of scores [..., S] over the places that are ``valid`` (broadcastable), exactly 0 elsewhere.

    All zeros where no place is valid. Scores in padding may be anything, NaN too, and get no gradient.
    """
    scores = jnp.where(valid, scores, jnp.zeros_like(scores))
    top = jnp.max(scores, axis=-1, keepdims=True, where=valid, initial=jnp.finfo(scores.dtype).min)
    raised = jnp.where(valid, jnp.exp(scores - jax.lax.stop_gradient(top)), jnp.zeros_like(scores))
    total = jnp.sum(raised, axis=-1, keepdims=True)
    return raised / jnp.where(total > 0, total, jnp.ones_like(total))


class Attention(nn.Module):
    """Scores of S places for a query: the state of a decoder, H wide. Keys are the values times a matrix [M, H].

    A subclass gives ``weights`` and ``score``, and declares more parameters in ``setup``. ``score`` is pure and called
    on an unbound copy (``clone(parent=None)``), where reading a parameter is an error. ``in_recurrence`` says where a
    decoder attends: before each step of the recurrence, which then reads the context, or after it.
    """

    in_recurrence: ClassVar[bool] = False

    query: int  # H
    param_dtype: Any = jnp.float32
    precision: str = "float32"

    def setup(self) -> None:
        # No bias: under a softmax it would change nothing ("general"), or is not in the paper ("additive").
        self.projection = nn.Dense(
            self.query, use_bias=False, param_dtype=self.param_dtype, dot_general=dot_general(self.precision)
        )

    def keys(self, values: Array) -> Array:
        """What scores need of the values: [B, S, M] -> [B, S, H]."""
        flat = self.projection(values.reshape(-1, values.shape[-1]))  # one flat product, as in ``Affine``
        return flat.reshape(*values.shape[:-1], self.query)

    def weights(self) -> Any:
        """The arrays that ``score`` reads, a pytree."""
        raise NotImplementedError(f"{type(self).__name__} does not name its weights.")

    @nn.nowrap
    def score(self, weights: Any, keys: Array, query: Array) -> Array:
        """Keys [B, S, H] and queries [B, T, H] -> scores [B, T, S]."""
        raise NotImplementedError(f"{type(self).__name__} has no score.")

    def build_memory(self, values: ArrayLike, valid: ArrayLike | None = None) -> Memory:
        """Values [B, S, M] laid out for attending: ``valid`` [B, S] is false in padding (``None``: there is none).

        What stands in padding can be anything, NaN too; nothing of it is left.
        """
        valid = jnp.ones(values.shape[:2], bool) if valid is None else jnp.asarray(valid, bool)
        masked = mask_rows(valid, jnp.asarray(values))
        return Memory(masked, self.keys(masked), valid)

    @nn.nowrap
    def attend(self, weights: Any, memory: Memory, query: Array) -> tuple[Array, Array]:
        """Queries [B, T, H] -> contexts [B, T, M] and the weights of the places [B, T, S], 0 in padding.

        The weights of a row with a place add up to 1; a row without any has the context 0.
        """
        shares = masked_softmax(self.score(weights, memory.keys, query), memory.valid[:, None, :])
        return jnp.einsum("bts,bsm->btm", shares, memory.values.astype(shares.dtype)), shares


class General(Attention):
    """Luong, Pham & Manning 2015 (arXiv:1508.04025), section 3.1, "general", scaled: score(h, v) = h . (v W) / sqrt(H).

    Without the scale (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1) sums of H products make the softmax choose
    a single place early on, and no gradient leads it to another.
    """

    def weights(self) -> tuple[()]:
        return ()

    @nn.nowrap
    def score(self, weights: tuple[()], keys: Array, query: Array) -> Array:
        return jnp.einsum("bth,bsh->bts", query * self.query**-0.5, keys.astype(query.dtype))


class AdditiveWeights(NamedTuple):
    """Of ``Additive``."""

    kernel: Array  # [H, H]
    vector: Array  # [H]


class Additive(Attention):
    """Bahdanau, Cho & Bengio 2015 (arXiv:1409.0473), section 3.1 and appendix A.1.2: score(h, v) = u . tanh(h W + v U).

    What u meets is as wide as the query.
    """

    in_recurrence: ClassVar[bool] = True

    def setup(self) -> None:
        super().setup()
        init = nn.initializers.lecun_normal()
        self.query_kernel = self.param("query_kernel", init, (self.query, self.query), self.param_dtype)
        self.vector = self.param("vector", nn.initializers.normal(self.query**-0.5), (self.query,), self.param_dtype)

    def weights(self) -> AdditiveWeights:
        return AdditiveWeights(jnp.asarray(self.query_kernel), jnp.asarray(self.vector))

    @nn.nowrap
    def score(self, weights: AdditiveWeights, keys: Array, query: Array) -> Array:
        projected = matmul(query, weights.kernel, self.precision)
        inner = jnp.tanh(projected[:, :, None, :] + keys.astype(query.dtype)[:, None, :, :])
        return inner @ weights.vector.astype(query.dtype)


#: Attentions by name. A new one is a class above and one line here.
ATTENTIONS: dict[str, type[Attention]] = {"additive": Additive, "general": General}
