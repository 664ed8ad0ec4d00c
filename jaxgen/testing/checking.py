"""Running the checks of a contract and reporting every one that fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

Check = Callable[[Any], None]


def require(condition: Any, found: str) -> None:
    """Raise ``AssertionError`` with the sentence ``found`` unless ``condition`` holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(found)


def name_of(check: Check) -> str:
    """A check's name: ``check_no_row_sees_another`` -> ``no_row_sees_another``."""
    return check.__name__.removeprefix("check_")


def run_checks(name: str, checks: Iterable[Check], subject: Any) -> None:
    """Run all ``checks`` on ``subject``, which is called ``name``.

    Raises:
        AssertionError: names each check that failed, what it found, and what to do (the check's docstring).
    """
    failed: list[tuple[Check, Exception]] = []
    number = 0
    for check in checks:
        number += 1
        try:
            check(subject)
        except Exception as error:
            failed.append((check, error))
    if failed:
        sentences = [f"- {name_of(each).replace('_', ' ')}: {_told(error)} {_advice(each)}" for each, error in failed]
        report = "\n".join([f"{name} fails {len(failed)} of {number} checks:", *sentences])
        raise AssertionError(report) from failed[0][1]


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or "there is no message"
    text += "" if text.endswith((".", "!", "?")) else "."
    return text if isinstance(error, AssertionError) else f"it raised {type(error).__name__}: {text}"


def _advice(check: Check) -> str:
    return " ".join((inspect.getdoc(check) or "").split())


def assert_close(what: str, actual: Any, expected: Any, tolerance: float) -> None:
    """The same tree with the same numbers, up to ``tolerance`` times the largest number of a leaf (or 1)."""
    _check_structure(what, actual, expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.size:
            far, scale = float(np.max(np.abs(a - b))), max(1.0, float(np.max(np.abs(b))))
            where = jax.tree_util.keystr(path)
            require(
                far <= tolerance * scale,  # false for NaN
                f"{what} differ at {where or 'the array'} by up to {far:.2g}, with numbers of up to {scale:.2g}.",
            )


def assert_identical(what: str, actual: Any, expected: Any) -> None:
    """The same tree with the same numbers, bit for bit; a NaN is never right."""
    _check_structure(what, actual, expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)):
        a, b = np.asarray(a), np.asarray(b)
        where = jax.tree_util.keystr(path) or "the array"
        require(not np.isnan(a).any(), f"{what} are not numbers (NaN) at {where}.")
        require(np.array_equal(a, b), f"{what} differ at {where} in {int(np.sum(a != b))} of {a.size} numbers.")


def _check_structure(what: str, actual: Any, expected: Any) -> None:
    shapes = [jax.tree.map(np.shape, tree) for tree in (actual, expected)]
    require(shapes[0] == shapes[1], f"{what} have the shapes {shapes[0]}, and {shapes[1]} was expected.")


def operations(jaxpr: Any) -> Iterator[Any]:
    """All operations of a program, those inside its loops too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            if hasattr(inner, "eqns"):
                yield from operations(inner)
