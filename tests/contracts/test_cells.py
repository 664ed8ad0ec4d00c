"""Every registered cell keeps the contract. A new cell needs a line in ``CELLS`` and its equations, nothing here."""

from __future__ import annotations

from functools import cache, partial

import pytest

from jaxgen.cells import CELLS, choose_form, unroll

from .checks import CHECKS, Subject, name_of
from .equations import EQUATIONS


@cache
def subject(name: str) -> Subject:
    """The cell in the form that it has on a CPU; one of the checks compares it with the plain scan."""
    form = choose_form("auto", CELLS[name](features=1))
    return Subject(CELLS[name], equations=EQUATIONS.get(name), form=partial(unroll, form=form), optimise=True)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("name", CELLS)
def test_a_registered_cell_keeps_the_contract(name, check):
    check(subject(name))


def test_a_cell_without_equations_is_told_where_to_write_them():
    with pytest.raises(AssertionError, match=r"Elman.*equations.*tests/contracts/equations\.py"):
        _ = Subject(CELLS["elman"]).equations


def test_there_are_no_equations_without_a_cell():
    assert set(EQUATIONS) <= set(CELLS)
