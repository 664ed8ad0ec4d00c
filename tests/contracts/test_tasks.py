"""Every registered task keeps the contract. A new task needs a line in ``TASKS`` and a ``Case``, nothing here."""

from __future__ import annotations

import pytest

from jaxgen.tasks.registry import TASKS
from jaxgen.testing.checking import name_of
from jaxgen.testing.tasks import CHECKS, UNTRAINED, Subject

from .task_cases import CASES

LANES = [pytest.param(check, marks=() if check in UNTRAINED else pytest.mark.runs) for check in CHECKS]


@pytest.fixture(scope="module")
def subject(tmp_path_factory, quick):
    """name -> the task; made, and its run trained, once."""
    made: dict[str, Subject] = {}

    def make(name: str) -> Subject:
        assert name in CASES, f"The task {name} has no case: give it one in tests/contracts/task_cases.py."
        if name not in made:
            made[name] = Subject(name, CASES[name], tmp_path_factory.mktemp(name), quick)
        return made[name]

    return make


@pytest.mark.filterwarnings("ignore:The validation data are training data")
@pytest.mark.parametrize("check", LANES, ids=name_of)
@pytest.mark.parametrize("name", TASKS)
def test_a_registered_task_keeps_the_contract(name, check, subject):
    check(subject(name))


def test_there_is_no_case_without_a_task():
    assert set(CASES) <= set(TASKS)
