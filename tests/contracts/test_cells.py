"""Every registered cell keeps the contract. A new cell needs a line in ``CELLS`` and its equations, nothing here."""

from __future__ import annotations

from functools import cache

import pytest

from jaxgen.cells import CELLS
from jaxgen.testing import check_cell
from jaxgen.testing.cells import CHECKS, Subject
from jaxgen.testing.checking import name_of

from .equations import EQUATIONS


@cache
def subject(name: str) -> Subject:
    """The cell in the form that ``unroll`` chooses; one of the checks compares all forms with the plain scan."""
    return Subject(CELLS[name], equations=EQUATIONS.get(name))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("name", CELLS)
def test_a_registered_cell_keeps_the_contract(name, check):
    check(subject(name))


@pytest.mark.parametrize("name", CELLS)
def test_a_registered_cell_has_equations(name):
    assert name in EQUATIONS, (
        f"{name} has no equations: write them in NumPy, about ten lines, as a function (params, carry, x) -> "
        "(carry, y) in tests/contracts/equations.py, and name it in EQUATIONS."
    )


def test_there_are_no_equations_without_a_cell():
    assert set(EQUATIONS) <= set(CELLS)


@pytest.mark.runs
def test_all_checks_of_a_cell_are_one_call():
    check_cell(CELLS["elman"], EQUATIONS["elman"], strict=True)
