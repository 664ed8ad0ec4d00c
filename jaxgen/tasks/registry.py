"""All tasks by name: the host data and the pure objective of each. To add a task, add a folder and a line here."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import Any


class Registry(UserDict[str, Any]):
    """A dictionary in which "module:name" stands for that object, which is imported when it is looked up.

    So a command imports only the task that it uses.
    """

    def __getitem__(self, name: str) -> Any:
        value = self.data[name]
        if isinstance(value, str):  # which another thread may replace meanwhile
            value = self.data[name] = resolve_name(value)
        return value


#: The host half of each task (``jaxgen.tasks.base.TaskData``): settings, data and reports.
DATA = Registry(
    {
        "caption": "jaxgen.tasks.caption.data:CaptionData",
        "classify": "jaxgen.tasks.classify.data:ClassifyData",
        "language": "jaxgen.tasks.language.data:LanguageData",
        "translate": "jaxgen.tasks.translate.data:TranslateData",
    }
)

#: The pure half of each task: model, loss and decoding.
TASKS = Registry({name: f"{place}.Objective" for name, place in DATA.data.items()})

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
