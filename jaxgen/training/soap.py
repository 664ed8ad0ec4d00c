"""The optimizer SOAP: Adam in the eigenbasis of Shampoo for matrices, Adam for the other parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Float, Int, PyTree

from jaxgen.training.options import Count, Decay, NotNegative
from jaxgen.training.param_kinds import Kind, Kinds, map_kinds, matrices_apart
from jaxgen.types import Array


class MatrixState(NamedTuple):
    """The state of a kernel, split into one matrix for each gate. A side that is too large has no basis."""

    first: Float[Array, "gates D H"]  # mean of the gradients
    second: Float[Array, "gates D H"]  # mean of their squares in the eigenbasis
    factors: tuple[Float[Array, "gates side side"] | None, ...]  # means of G G' and G' G
    bases: tuple[Float[Array, "gates side side"] | None, ...]  # their eigenvectors as columns


class SoapState(NamedTuple):
    """The state of the rule for matrices."""

    step: Int[Array, ""]  # number of updates
    matrices: PyTree  # a ``MatrixState`` for each kernel


@dataclass(frozen=True)
class SOAP:
    """Adam in the eigenbasis of Shampoo for kernels that are matrices, gate by gate (Vyas et al. 2024,
    arXiv:2409.11321); Adam for embeddings, outputs, biases and kernels of other shapes.

    Args:
        b1, b2, eps: those of Adam.
        factor_decay: decay of the means of ``G G'`` and ``G' G``.
        every: updates between two changes of the basis.
        largest: sides with more entries keep the basis in which they are (section 7.1: one-sided SOAP).
    """

    needs_kinds: ClassVar[bool] = True

    b1: Decay = 0.95
    b2: Decay = 0.95
    factor_decay: Decay = 0.95
    eps: NotNegative = 1e-8
    every: Count = 10
    largest: Count = 4096

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        """Algorithm 3 of the paper for every kernel ``[D, gates * H]``, gate by gate.

        The first gradient only sets the basis, by an eigendecomposition. Every ``every`` updates it takes one step of
        power iteration with a QR decomposition; its columns are sorted by their eigenvalues, and ``second`` with them.
        """

        def split(kernel: Array, number: int) -> Float[Array, "gates D H"]:
            rows, columns = kernel.shape
            return jnp.moveaxis(kernel.reshape(rows, number, columns // number), 1, 0)

        def start(kind: Kind, kernel: Array) -> MatrixState:
            number, zeros = kind.gates, split(jnp.zeros_like(kernel), kind.gates)
            sides = [size if size <= self.largest else None for size in zeros.shape[1:]]
            factors = tuple(None if n is None else jnp.zeros((number, n, n), kernel.dtype) for n in sides)
            eyes = tuple(
                None if n is None else jnp.broadcast_to(jnp.eye(n, dtype=kernel.dtype), (number, n, n)) for n in sides
            )
            return MatrixState(zeros, jnp.zeros_like(zeros), factors, eyes)

        def init(params: PyTree) -> SoapState:
            return SoapState(jnp.zeros((), jnp.int32), map_kinds(start, kinds, params))

        def step(gradient: Array, state: MatrixState, count: Array) -> tuple[Array, MatrixState]:
            number = state.first.shape[0]
            g, t = split(gradient, number), jnp.maximum(count, 1)
            rotated = _rotate(g, state.bases)
            first = jnp.where(count > 0, self.b1 * state.first + (1 - self.b1) * g, 0.0)
            second = jnp.where(count > 0, self.b2 * state.second + (1 - self.b2) * rotated**2, 0.0)
            mean, square = _rotate(first, state.bases) / (1 - self.b1**t), second / (1 - self.b2**t)
            update = _rotate(mean / (jnp.sqrt(square) + self.eps), state.bases, back=True)
            outer = (g @ jnp.swapaxes(g, 1, 2), jnp.swapaxes(g, 1, 2) @ g)
            factors = tuple(
                None if old is None else self.factor_decay * old + (1 - self.factor_decay) * new
                for old, new in zip(state.factors, outer)
            )
            branch = jnp.where(count == 0, 1, jnp.where(count % self.every == 0, 2, 0))
            after = state._replace(first=first, second=second, factors=factors)
            after = lax.switch(branch, [lambda s: s, _by_eigenvectors, _by_power_iteration], after)
            return jnp.moveaxis(update, 0, 1).reshape(gradient.shape), after

        def update(updates: PyTree, state: SoapState, params: PyTree = None) -> tuple[PyTree, SoapState]:
            pairs = jax.tree.map(lambda g, matrix: step(g, matrix, state.step), updates, state.matrices)
            updates, matrices = (jax.tree.map(lambda g, pair, i=i: pair[i], updates, pairs) for i in (0, 1))
            return updates, SoapState(state.step + 1, matrices)

        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return matrices_apart(optax.GradientTransformation(init, update), adam, kinds)


def _rotate(
    x: Float[Array, "gates D H"], bases: tuple[Array | None, ...], back: bool = False
) -> Float[Array, "gates D H"]:
    """``Q_left' x Q_right``: ``x`` in the eigenbasis; with ``back``, out of it."""
    left, right = (q if q is None or not back else jnp.swapaxes(q, 1, 2) for q in bases)
    x = x if left is None else jnp.swapaxes(left, 1, 2) @ x
    return x if right is None else x @ right


# Under ``jax.vmap``, over gates or seeds, one matrix after the other: on a CPU, several batched decompositions at once
# can wait for each other's threads without end.


@sequential_vmap
def _eigenvectors(factor: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return jnp.linalg.eigh(factor)[1][:, ::-1]


@sequential_vmap
def _orthonormal(columns: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return jnp.linalg.qr(columns)[0]


def _by_eigenvectors(state: MatrixState) -> MatrixState:
    """The eigenvectors, those of the largest values first."""
    return state._replace(bases=tuple(None if a is None else jax.vmap(_eigenvectors)(a) for a in state.factors))


def _by_power_iteration(state: MatrixState) -> MatrixState:
    """One step of power iteration from the present basis."""
    second, bases = state.second, list(state.bases)
    for side, (factor, basis) in enumerate(zip(state.factors, state.bases)):
        if factor is None or basis is None:
            continue
        product = factor @ basis
        order = jnp.argsort(-jnp.sum(basis * product, axis=1), axis=-1)  # by the eigenvalues, estimated
        second = jnp.take_along_axis(second, order[:, :, None] if side == 0 else order[:, None, :], axis=side + 1)
        product = jnp.take_along_axis(product, order[:, None, :], axis=2)
        bases[side] = jax.vmap(_orthonormal)(product)
    return state._replace(second=second, bases=tuple(bases))
