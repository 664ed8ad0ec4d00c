"""The optimizer Muon: momentum with orthogonalised updates for matrices, Adam for the other parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Float, Int, PyTree

from jaxgen.training.collectives import share_work
from jaxgen.training.options import Allowed, Count, Decay, NotNegative
from jaxgen.training.param_kinds import Kind, Kinds, map_kinds, matrices_apart
from jaxgen.types import Array

#: Coefficients a, b, c of the iteration ``x <- (a + b x x' + c (x x')^2) x``, which brings all singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def inverse_root(gram: Float[Array, "*batch n n"], iterations: int) -> Float[Array, "*batch n n"]:
    """The matrix P for which P x is nearly orthogonal, from ``gram`` = x x', where the norm of x is at most 1.

    P is the product of the factors of that many Newton-Schulz iterations of x. They commute with ``gram``, so no
    product has the size of x. Large singular values of P x are 0.7 to 1.2; small ones are those of x, multiplied by
    about 3.4 in each iteration.
    """
    a, b, c = NEWTON_SCHULZ
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    root = eye
    for i in range(iterations):
        factor = a * eye + b * gram + c * gram @ gram
        root = factor @ root if i else factor
        if i < iterations - 1:
            gram = factor @ factor @ gram
    return root


def to_blocks(update: Float[Array, "D K"], gates: int) -> Float[Array, "gates n m"]:
    """The gates of a kernel, each with the norm 1 and no more rows than columns."""
    x = jnp.moveaxis(update.reshape(update.shape[0], gates, -1), 1, 0)
    x = x if x.shape[1] <= x.shape[2] else jnp.swapaxes(x, 1, 2)
    return x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + 1e-7)


def from_blocks(blocks: Float[Array, "gates n m"], shape: tuple[int, ...]) -> Float[Array, "D K"]:
    """The kernel of this shape that has these gates."""
    x = blocks if blocks.shape[1] == shape[0] else jnp.swapaxes(blocks, 1, 2)
    return jnp.moveaxis(x, 0, 1).reshape(shape)


class MuonState(NamedTuple):
    """The state of the rule for matrices."""

    step: Int[Array, ""]
    momenta: PyTree
    roots: PyTree  # the inverse root of each matrix, or of each of its gates


@dataclass(frozen=True)
class Muon:
    """Momentum with orthogonalised updates for kernels that are matrices (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon); Adam for embeddings, outputs, biases and kernels of other shapes.

    An entry of an update has about the root mean square ``scale`` times the learning rate (Liu et al. 2025,
    arXiv:2502.16982), so that both rules have one rate. Three things make it cheap for small models; docs/records.md
    has what each costs in loss. The ``iterations`` are 3 instead of 5. They compute the inverse root of the Gram
    matrix, which is used for ``refresh`` updates. A kernel of several gates is one matrix, unless ``per_gate``. Several
    devices share the matrices.
    """

    needs_kinds: ClassVar[bool] = True

    momentum: Decay = 0.95
    scale: NotNegative = 0.3
    iterations: Annotated[int, Allowed("a whole number from 1 to 20", lambda value: value in range(1, 21))] = 3
    refresh: Count = 4
    per_gate: bool = False
    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: NotNegative = 1e-8

    def transform(self, kinds: Kinds) -> optax.GradientTransformation:
        def gates_of(kind: Kind) -> int:
            return kind.gates if self.per_gate else 1

        def init(params: PyTree) -> MuonState:
            blocks = jax.eval_shape(
                partial(map_kinds, lambda kind, leaf: to_blocks(leaf, gates_of(kind)), kinds), params
            )
            roots = jax.tree.map(lambda x: jnp.zeros((*x.shape[:2], x.shape[1]), x.dtype), blocks)
            return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), roots)

        def update(
            updates: PyTree, state: MuonState, params: PyTree = None, *, axis: str | None = None, **_: object
        ) -> tuple[PyTree, MuonState]:
            momenta = jax.tree.map(self._follow, state.momenta, updates)
            ahead = jax.tree.map(self._follow, momenta, updates)
            blocks, structure = jax.tree.flatten(map_kinds(lambda kind, u: to_blocks(u, gates_of(kind)), kinds, ahead))

            def orthogonal(x: Array, root: Array) -> tuple[Array, Array]:
                def fresh() -> Array:
                    return inverse_root(x @ jnp.swapaxes(x, 1, 2), self.iterations)

                root = lax.cond(state.step % self.refresh == 0, fresh, lambda: root)
                return root, root @ x

            work = [partial(orthogonal, x, root) for x, root in zip(blocks, jax.tree.leaves(state.roots))]
            done = share_work(work, [x.size * x.shape[1] for x in blocks], axis)
            roots = jax.tree.unflatten(structure, [root for root, _ in done])
            found = jax.tree.unflatten(structure, [x for _, x in done])

            def scaled(kind: Kind, u: Array, x: Array) -> Array:
                size = self.scale * max(u.shape[0], u.shape[1] // gates_of(kind)) ** 0.5
                return size * from_blocks(x, u.shape)

            return map_kinds(scaled, kinds, ahead, found), MuonState(state.step + 1, momenta, roots)

        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return matrices_apart(optax.GradientTransformationExtraArgs(init, update), adam, kinds)

    def _follow(self, momentum: Array, gradient: Array) -> Array:
        return self.momentum * momentum + (1 - self.momentum) * gradient
