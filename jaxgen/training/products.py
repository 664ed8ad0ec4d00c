"""Count the arithmetic of matrix products in a function, from its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_products(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of ``function(*args)``: two a multiplication.

    A loop of known length counts with all its steps, one of unknown length (``while``) with one. Of the branches of a
    condition, the cheapest counts. What runs on each of several devices counts once.

    Example:
        >>> from jaxgen.training.products import count_products
        >>> count_products(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
        60
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, outputs = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
    if name == "cond":
        return min(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = (value for each in params.values() for value in (each if isinstance(each, tuple | list) else [each]))
    found = sum(_of_jaxpr(value.jaxpr if isinstance(value, ClosedJaxpr) else value) for value in _jaxprs(inner))
    return found * (params["length"] if name == "scan" else 1)


def _jaxprs(values: Any) -> list[Any]:
    return [value for value in values if isinstance(value, Jaxpr | ClosedJaxpr)]
