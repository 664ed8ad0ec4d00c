"""Tasks: a model, its loss, and how decoding is primed. A new task is one file here and one line below."""

from jaxgen.tasks.language import LanguageTask, Totals

TASKS = {"language": LanguageTask}

__all__ = ["TASKS", "LanguageTask", "Totals"]
