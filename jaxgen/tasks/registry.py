"""The tasks by name: each task's pure objective and its host data. A new task is one folder and a line in each."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from jaxgen.tasks.caption.data import CaptionData
from jaxgen.tasks.caption.objective import CaptionTask
from jaxgen.tasks.classify.data import ClassifyData
from jaxgen.tasks.classify.objective import ClassifyTask
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.translate.data import TranslateData
from jaxgen.tasks.translate.objective import TranslateTask

#: The pure half of every task: model, loss, decoding.
TASKS: dict[str, Any] = {
    "caption": CaptionTask,
    "classify": ClassifyTask,
    "language": LanguageTask,
    "translate": TranslateTask,
}

#: The host half of every task: settings, reader, report.
DATA: dict[str, Any] = {
    "caption": CaptionData,
    "classify": ClassifyData,
    "language": LanguageData,
    "translate": TranslateData,
}

#: Models to compare with, by task and by their name for ``--model``: the module that trains them, imported on demand.
#: It offers ``Task``, ``start`` and ``resume``, and ``SEVERAL``: whether several processes can train one.
BASELINES = {"language": {"ngram": "jaxgen.baselines.ngram.run"}}


def model_names(task: str) -> list[str]:
    """What ``--model`` can be for ``task``: ``rnn``, and the baselines."""
    return [*BASELINES.get(task, {}), "rnn"]


def objective(task: str, model: str) -> Any:
    """The class of the task object of ``model``; raises ``KeyError`` for a model that does not exist."""
    return TASKS[task] if model == "rnn" else baseline(task, model).Task


def baseline(task: str, model: str) -> ModuleType:
    """The module of a baseline; raises ``KeyError`` for one that does not exist."""
    return import_module(BASELINES[task][model])
