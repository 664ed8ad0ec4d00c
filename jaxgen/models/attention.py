"""Attention of a decoder's state over the outputs of an encoder.

A masked softmax turns the scores of S positions into weights, and the context is the weighted mean of the values. The
keys do not depend on the decoder's state and are computed once per source.

Like a cell, an attention is a Linen module that owns parameters, with pure functions that get them as arguments. It can
therefore be used inside a loop over time.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float, PyTree, Shaped

from jaxgen.cells.precision import dot_general, matmul
from jaxgen.cells.scan import mask_rows
from jaxgen.types import Array, ArrayLike, DType


class Memory(NamedTuple):
    """What a decoder attends to."""

    values: Float[Array, "B S M"]  # zero in padding
    keys: Float[Array, "B S H"]  # from which scores are computed
    valid: Bool[Array, "B S"]  # false in padding


def masked_softmax(scores: Float[Array, "*batch S"], valid: Bool[ArrayLike, "*#batch S"]) -> Float[Array, "*batch S"]:
    """Softmax of scores over the ``valid`` positions, exactly 0 elsewhere.

    If no position is valid, all weights are 0. Scores in padding may have any value, even NaN, and get no gradient.
    """
    scores = jnp.where(valid, scores, jnp.zeros_like(scores))
    top = jnp.max(scores, axis=-1, keepdims=True, where=valid, initial=jnp.finfo(scores.dtype).min)
    raised = jnp.where(valid, jnp.exp(scores - jax.lax.stop_gradient(top)), jnp.zeros_like(scores))
    total = jnp.sum(raised, axis=-1, keepdims=True)
    return raised / jnp.where(total > 0, total, jnp.ones_like(total))


class Attention(nn.Module):
    """Base class: it scores S positions for a query, the decoder's state. Keys are the values times a matrix [M, H].

    A subclass defines ``weights`` and ``score``, and may declare more parameters in ``setup``. ``score`` is pure and is
    called on an unbound copy (``clone(parent=None)``), where reading a parameter is an error. With ``in_recurrence`` a
    decoder attends before each step of the recurrence, which reads the context; otherwise after the recurrence.
    """

    in_recurrence: ClassVar[bool] = False

    query: int  # H
    param_dtype: DType = jnp.float32
    precision: str = "float32"

    def setup(self) -> None:
        # No bias: it would cancel in the softmax ("general"), or is not in the paper ("additive").
        self.projection = nn.Dense(
            self.query, use_bias=False, param_dtype=self.param_dtype, dot_general=dot_general(self.precision)
        )

    def keys(self, values: Float[Array, "B S M"]) -> Float[Array, "B S H"]:
        """Project values to keys."""
        flat = self.projection(values.reshape(-1, values.shape[-1]))  # one 2-D product, as in ``Affine``
        return flat.reshape(*values.shape[:-1], self.query)

    def weights(self) -> PyTree:
        """The arrays that ``score`` reads."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `weights`.")

    @nn.nowrap
    def score(
        self, weights: PyTree, keys: Float[Array, "B S H"], query: Float[Array, "B T H"]
    ) -> Float[Array, "B T S"]:
        """The scores of keys for queries."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `score`.")

    def build_memory(self, values: Shaped[ArrayLike, "B S M"], valid: Bool[ArrayLike, "B S"] | None = None) -> Memory:
        """The memory of ``values``. ``valid`` is false in padding (``None``: no padding).

        Values in padding are replaced by zeros; they may have any value, even NaN.
        """
        valid = jnp.ones(values.shape[:2], bool) if valid is None else jnp.asarray(valid, bool)
        masked = mask_rows(valid, jnp.asarray(values))
        return Memory(masked, self.keys(masked), valid)

    @nn.nowrap
    def attend(
        self, weights: PyTree, memory: Memory, query: Float[Array, "B T H"]
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B T S"]]:
        """The contexts of queries, and the weights of the positions, which add up to 1 and are 0 in padding.

        A row without a valid position has weights 0 and the context 0.
        """
        shares = masked_softmax(self.score(weights, memory.keys, query), memory.valid[:, None, :])
        return jnp.einsum("bts,bsm->btm", shares, memory.values.astype(shares.dtype)), shares


class General(Attention):
    """Luong, Pham & Manning 2015 (arXiv:1508.04025), section 3.1, "general", scaled: score(h, v) = h . (v W) / sqrt(H).

    Without the scale (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1) the scores grow with H. The softmax then
    saturates at a single position early in training, and its gradient vanishes.
    """

    def weights(self) -> tuple[()]:
        return ()

    @nn.nowrap
    def score(
        self, weights: tuple[()], keys: Float[Array, "B S H"], query: Float[Array, "B T H"]
    ) -> Float[Array, "B T S"]:
        return jnp.einsum("bth,bsh->bts", query * self.query**-0.5, keys.astype(query.dtype))


class AdditiveWeights(NamedTuple):
    """The weights of ``Additive``."""

    kernel: Float[Array, "H H"]
    vector: Float[Array, "H"]


class Additive(Attention):
    """Bahdanau, Cho & Bengio 2015 (arXiv:1409.0473), section 3.1 and appendix A.1.2: score(h, v) = u . tanh(h W + v U).

    The vector u is as wide as the query.
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
    def score(
        self, weights: AdditiveWeights, keys: Float[Array, "B S H"], query: Float[Array, "B T H"]
    ) -> Float[Array, "B T S"]:
        projected = matmul(query, weights.kernel, self.precision)
        inner = jnp.tanh(projected[:, :, None, :] + keys.astype(query.dtype)[:, None, :, :])
        return inner @ weights.vector.astype(query.dtype)


#: Attentions by name.
ATTENTIONS: dict[str, type[Attention]] = {"additive": Additive, "general": General}
