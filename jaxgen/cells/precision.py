"""Matrix products of factors as they are (``float32``, whatever their type) or rounded to ``bfloat16``.

Processors and accelerators that multiply bfloat16 do it two or more times as fast as float32. What is rounded are the
factors of products alone: sums, states, weights and gradients keep their own type (mixed precision, Micikevicius et
al., ICLR 2018; with bfloat16, whose exponent is float32's, no loss needs scaling).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.errors import choose
from jaxgen.types import Array

PRECISIONS = ("float32", "bfloat16")


def _rounds(precision: str) -> bool:
    return choose(precision, PRECISIONS, "precision") == "bfloat16"


def matmul(a: Array, b: Array, precision: str = "float32") -> Array:
    """a [..., N] @ b [N, K] -> [..., K] in the type of ``a``.

    With ``bfloat16`` both factors are rounded, and so are those of the two products of its gradient; reverse-mode
    derivatives only. Raises ``UsageError`` for another precision.
    """
    if not _rounds(precision):
        return a @ b.astype(a.dtype)
    return _rounded(*match_varying_axes(a, b))


def rounded(kernel: Array, precision: str) -> Array:
    """A factor of many products, rounded once for all of them."""
    return kernel.astype(jnp.bfloat16) if _rounds(precision) else kernel


def dot_general(precision: str) -> Callable[..., Array] | None:
    """``matmul`` as Flax's layers take it."""
    if not _rounds(precision):
        return None
    return lambda a, b, dimensions, **_: matmul(a, b, precision)


def _dot(a: Array, b: Array, contracted: tuple[int, int], dtype: Any) -> Array:
    a, b = _by_rows(a.astype(jnp.bfloat16)), b.astype(jnp.bfloat16)
    product = lax.dot_general(a, b, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=dtype)
    return _by_rows(product)


def _by_rows(a: Array) -> Array:
    """``a`` in memory as it is written: a flat array has one layout only, and nothing is moved across the barrier.

    XLA's CPU backend would fold a transposition into a product. Products of bfloat16 it then computes no faster than
    those of float32 (a factor by columns), or not at all (the result by columns: an error when it runs). The backend
    asked about is JAX's default; a product placed on the CPU of a machine with an accelerator goes without this.
    """
    if jax.default_backend() != "cpu":
        return a
    return lax.optimization_barrier(a.reshape(-1)).reshape(a.shape)


@jax.custom_vjp
def _rounded(a: Array, b: Array) -> Array:
    return _dot(a, b, (a.ndim - 1, 0), a.dtype)


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(a, b), (a, b)


def _backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    a, b = kept
    flat_a, flat_g = (x.reshape(-1, x.shape[-1]) for x in (a, g))
    return _dot(g, b, (g.ndim - 1, 1), a.dtype), _dot(flat_a.T, flat_g, (1, 0), b.dtype)


_rounded.defvjp(_forward, _backward)


def _varying(leaf: Array) -> frozenset[str]:
    """The axes of the mesh over which ``leaf`` varies; none outside ``shard_map``."""
    return jax.typeof(leaf).manual_axis_type.varying


def match_varying_axes(*trees: Any) -> Any:
    """``trees`` varying over every mesh axis that one of their leaves varies over: what JAX itself does for a scan.

    Inside ``shard_map`` a gradient must vary as its value does; the transpose of ``pcast`` adds it up over the devices.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(trees)))

    def vary(leaf: Array) -> Array:
        missing = tuple(sorted(axes - _varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, trees)
