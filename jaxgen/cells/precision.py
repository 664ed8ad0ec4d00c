"""Matrix products in full precision (``float32``) or with factors rounded to ``bfloat16``.

Hardware that multiplies bfloat16 does so at least twice as fast as float32. Only the factors of products are rounded:
sums, states, weights and gradients keep their types (mixed precision, Micikevicius et al., ICLR 2018; bfloat16 has the
exponent range of float32, so the loss needs no scaling).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, PyTree, Shaped

from jaxgen.errors import choose
from jaxgen.types import Array, ArrayLike, DType

PRECISIONS = ("float32", "bfloat16")


def _rounds(precision: str) -> bool:
    return choose(precision, PRECISIONS, "precision") == "bfloat16"


def matmul(
    a: Shaped[ArrayLike, "*batch N"], b: Shaped[ArrayLike, "N K"], precision: str = "float32"
) -> Shaped[Array, "*batch K"]:
    """``a @ b`` in the dtype of ``a``.

    With ``bfloat16`` both factors are rounded, also in the two products of the gradient; reverse-mode derivatives only.
    """
    if not _rounds(precision):
        return jnp.asarray(a) @ jnp.asarray(b).astype(a.dtype)
    return _rounded(*match_varying_axes(jnp.asarray(a), jnp.asarray(b)), 0)


def matmul_transposed(
    a: Shaped[ArrayLike, "*batch N"], b: Shaped[ArrayLike, "K N"], precision: str = "float32"
) -> Shaped[Array, "*batch K"]:
    """``a @ b.T`` in the dtype of ``a``, as ``matmul``: in bfloat16 ``matmul(a, b.T)`` is half as fast on a CPU."""
    if not _rounds(precision):
        return jnp.asarray(a) @ jnp.asarray(b).astype(a.dtype).T
    return _rounded(*match_varying_axes(jnp.asarray(a), jnp.asarray(b)), 1)


def matmul_each(
    a: Shaped[Array, "*batch M N"], b: Shaped[Array, "*batch N K"], precision: str = "float32"
) -> Shaped[Array, "*batch M K"]:
    """``a @ b`` with a ``matmul`` for each index of the leading axes, which both factors have."""
    if not _rounds(precision):
        return a @ b
    flat = (x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]) for x in (a, b))
    return jax.vmap(partial(matmul, precision=precision))(*flat).reshape(*a.shape[:-1], b.shape[-1])


def rounded(kernel: Float[ArrayLike, "H K"], precision: str) -> Float[Array, "H K"]:
    """``kernel`` rounded to ``precision``. A kernel that is a factor of many products is rounded once."""
    return jnp.asarray(kernel).astype(jnp.bfloat16) if _rounds(precision) else jnp.asarray(kernel)


def dot_general(precision: str) -> Callable[..., Array] | None:
    """``matmul`` for the ``dot_general`` argument of Flax's layers."""
    if not _rounds(precision):
        return None
    return lambda a, b, dimensions, **_: matmul(a, b, precision)


def _dot(a: Array, b: Array, contracted: tuple[int, int], dtype: DType) -> Array:
    a, b = _by_rows(a.astype(jnp.bfloat16)), b.astype(jnp.bfloat16)
    product = lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=dtype)
    return _by_rows(product)


def _by_rows(a: Array) -> Array:
    """``a`` in row-major layout: a flat array has only one layout, and XLA moves nothing across the barrier.

    XLA's CPU backend folds transpositions into products. With a factor in column-major layout, a bfloat16 product is no
    faster than a float32 one; with a result in that layout, it fails at run time. Only JAX's default backend is
    checked: on a machine with an accelerator, products that are placed on the CPU keep XLA's layout.
    """
    if jax.default_backend() != "cpu":
        return a
    return lax.optimization_barrier(a.reshape(-1)).reshape(a.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(a: Array, b: Array, axis: int) -> Array:
    """The product of the last axis of ``a`` and this axis of the matrix ``b``."""
    return _dot(a, b, (a.ndim - 1, axis), a.dtype)


def _forward(a: Array, b: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(a, b, axis), (a, b)


def _backward(axis: int, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = kept
    flat_a, flat_g = (x.reshape(-1, x.shape[-1]) for x in (a, g))
    in_b = _dot(flat_a.T, flat_g, (1, 0), a.dtype).astype(b.dtype)  # ``b`` may be rounded already, the sum is not
    return _dot(g, b, (g.ndim - 1, 1 - axis), a.dtype), in_b.T if axis else in_b


_rounded.defvjp(_forward, _backward)


def _varying(leaf: ArrayLike) -> frozenset[str]:
    """The mesh axes over which ``leaf`` varies; none outside ``shard_map``."""
    return jax.typeof(leaf).manual_axis_type.varying


def match_varying_axes(*trees: PyTree) -> PyTree:
    """``trees`` with all leaves varying over every mesh axis that any of them varies over, as JAX does for a scan.

    Inside ``shard_map`` a gradient varies over the axes of its value; the transpose of ``pcast`` sums it over devices.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))

    def vary(leaf: ArrayLike) -> Array:
        missing = tuple(sorted(axes - _varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else jnp.asarray(leaf)

    return jax.tree.map(vary, trees)
