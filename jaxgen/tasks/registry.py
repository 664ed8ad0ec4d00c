"""All tasks by name: the host data and the pure objective of each. To add a task, add a folder and a line here."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from jaxgen.tasks.caption.data import CaptionData
from jaxgen.tasks.classify.data import ClassifyData
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tasks.translate.data import TranslateData

#: The host half of each task (``jaxgen.tasks.base.TaskData``): settings, data and reports.
DATA: dict[str, Any] = {
    "caption": CaptionData,
    "classify": ClassifyData,
    "language": LanguageData,
    "translate": TranslateData,
}

#: The pure half of each task: model, loss and decoding.
TASKS: dict[str, Any] = {name: data.Objective for name, data in DATA.items()}

#: Baselines by task and by their name for ``--model``: the module that trains them, imported on demand.
#: The module has ``Task``, ``start`` and ``resume``, and ``SEVERAL_PROCESSES``: whether several processes can train it.
BASELINES = {"language": {"ngram": "jaxgen.baselines.ngram"}}


def model_names(task: str) -> list[str]:
    """Returns the values of ``--model`` for a task: ``rnn`` and the baselines."""
    return [*BASELINES.get(task, {}), "rnn"]


def objective(task: str, model: str) -> Any:
    """Returns the class of the task object of a model; raises ``KeyError`` for an unknown model."""
    return TASKS[task] if model == "rnn" else baseline(task, model).Task


def baseline(task: str, model: str) -> ModuleType:
    """Returns the module of a baseline; raises ``KeyError`` for an unknown one."""
    return import_module(BASELINES[task][model])
