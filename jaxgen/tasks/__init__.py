"""Tasks: a model, its loss, and how decoding is primed. A new task is one file here and one line below."""

from typing import Any

from jaxgen.tasks.caption import CaptionTask
from jaxgen.tasks.classify import ClassifyTask
from jaxgen.tasks.language import LanguageTask, Totals
from jaxgen.tasks.ngram import NGramTask
from jaxgen.tasks.translate import TranslateTask

TASKS: dict[str, Any] = {
    "caption": CaptionTask,
    "classify": ClassifyTask,
    "language": LanguageTask,
    "translate": TranslateTask,
}

#: What each task can be compared with: models that ``--model`` names instead of ``rnn``.
BASELINES = {"language": {"ngram": NGramTask}}


def models(task: str) -> dict[str, Any]:
    """The models of ``task`` by the names that ``--model`` has: its own, and what it can be compared with."""
    return {**BASELINES.get(task, {}), "rnn": TASKS[task]}


__all__ = [
    "BASELINES",
    "TASKS",
    "CaptionTask",
    "ClassifyTask",
    "LanguageTask",
    "NGramTask",
    "Totals",
    "TranslateTask",
    "models",
]
