"""Every registered task has the methods of its protocol (``jaxgen.training.task``), with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from jaxgen.tasks.registry import BASELINES, TASKS, model_names, objective
from jaxgen.training.task import EncodingTask, PredictingTask, PromptedTask

PROTOCOLS = {"texts": EncodingTask, "values": PredictingTask, None: PromptedTask}


def members(protocol: type) -> dict[str, object]:
    """The properties and methods of a protocol, those of its bases included."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    return {name: member for base in bases for name, member in vars(base).items() if not name.startswith("_")}


@pytest.mark.parametrize(("task", "model"), [(task, model) for task in TASKS for model in model_names(task)])
def test_a_registered_task_has_the_methods_of_its_protocol(task, model):
    kind = objective(task, model)
    wanted = members(PROTOCOLS[getattr(kind, "ANSWER", None)])
    assert {"is_random", "init", "loss", "evaluate", "prepare"} < set(wanted)
    if model in BASELINES.get(task, {}):
        del wanted["initial_states"]  # no baseline has conditions
    for name, member in wanted.items():
        mine = inspect.getattr_static(kind, name)
        if callable(member):
            assert [*inspect.signature(mine).parameters] == [*inspect.signature(member).parameters]
