"""Every registered cell keeps the contract. A new cell needs a line in ``CELLS`` and its equations, nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from jaxgen.cells import CELLS, choose_form, forms_of
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.testing import check_cell
from jaxgen.testing.cells import (
    CHECKS,
    Subject,
    check_every_form_equals_the_plain_scan,
    check_every_form_equals_the_plain_scan_over_4096_steps,
    check_every_form_in_reverse_equals_the_plain_scan,
    check_every_form_runs_over_no_steps_one_step_and_without_input,
    check_every_product_is_rounded_to_the_precision,
    check_rounding_moves_values_and_gradients_a_little,
    check_the_unroll_agrees_with_the_equations,
    check_training_and_decoding_lower_for_accelerators,
)
from jaxgen.testing.checking import name_of

from .equations import EQUATIONS

#: What is checked of every cell in the form that ``auto`` chooses, by `pytest` and by `pytest -m runs`.
QUICK = {check_the_unroll_agrees_with_the_equations}
RUNS = {check_training_and_decoding_lower_for_accelerators}
#: Checks of each form.
OF_FORMS = {
    check_every_form_equals_the_plain_scan,
    check_every_form_in_reverse_equals_the_plain_scan,
    check_every_form_runs_over_no_steps_one_step_and_without_input,
    check_every_product_is_rounded_to_the_precision,
    check_rounding_moves_values_and_gradients_a_little,
    check_training_and_decoding_lower_for_accelerators,
}
SLOW = {check_every_form_equals_the_plain_scan_over_4096_steps}


@cache
def forms(name: str) -> tuple[str, ...]:
    return tuple(forms_of(CELLS[name](features=8)))


def standards() -> list[str]:
    """The default cell, and the first with each other set of forms; not cells with a form of their own."""
    first: dict[tuple[str, ...], str] = {}
    shared = [name for name, kind in CELLS.items() if not kind.forms]
    for name in (LanguageConfig.model_fields["cell"].default, *shared):
        first.setdefault(forms(name), name)
    return list(first.values())


def lanes() -> Iterator[Any]:
    """Every check of every cell. In all forms `-m runs` checks the standards, and `-m slow` the rest."""
    in_full = standards()
    for name in CELLS:
        for check in CHECKS:
            later = pytest.mark.runs if name in in_full and check not in SLOW else pytest.mark.slow
            if check in QUICK | RUNS:
                marks = pytest.mark.runs if check in RUNS else ()
                yield pytest.param(name, check, False, marks=marks, id=f"{name}-{name_of(check)}")
            if check not in QUICK | RUNS or (check in OF_FORMS and len(forms(name)) > 2):
                yield pytest.param(name, check, True, marks=later, id=f"{name}-{name_of(check)}-all")


@cache
def subject(name: str, in_all_forms: bool) -> Subject:
    chosen = None if in_all_forms else [choose_form("auto", CELLS[name](features=8))]
    return Subject(CELLS[name], equations=EQUATIONS.get(name), forms=chosen)


@pytest.mark.parametrize(("name", "check", "in_all_forms"), [*lanes()])
def test_a_registered_cell_keeps_the_contract(name: str, check: Callable[[Subject], None], in_all_forms: bool):
    check(subject(name, in_all_forms))


@pytest.mark.parametrize("name", CELLS)
def test_a_registered_cell_has_equations(name):
    assert name in EQUATIONS, (
        f"{name} has no equations: write them in NumPy, about ten lines, as a function (params, carry, x) -> "
        "(carry, y) in tests/contracts/equations.py, and name it in EQUATIONS."
    )


def test_there_are_no_equations_without_a_cell():
    assert set(EQUATIONS) <= set(CELLS)


@pytest.mark.slow  # the worked cells of docs/extending.md are checked so, too
def test_all_checks_of_a_cell_are_one_call():
    check_cell(CELLS["elman"], EQUATIONS["elman"], strict=True)
