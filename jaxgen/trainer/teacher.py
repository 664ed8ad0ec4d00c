"""The teacher of a run (``--teacher``): opened, checked against the run, and put into its training loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.mixture import mix, read_members
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.config import TrainConfig
from jaxgen.tasks.language.distillation import DistilledTask
from jaxgen.tasks.language.objective import LanguageTask


def open_teacher(config: TrainConfig) -> Sampler | None:
    """The sampler of ``--teacher``, which may name several runs with weights; ``None`` without one."""
    words: Sequence[str] = getattr(config, "teacher", ())
    if not words:
        return None
    runs, weights = read_members(words, "--teacher")
    teacher = mix(runs, weights) if len(runs) > 1 else Sampler.load(runs[0])
    if teacher.conditioning is not None:
        raise UsageError(f"--teacher {' '.join(words)} has labels or features: give runs without them.")
    return teacher


def check_teacher(teacher: Sampler, data: Any) -> None:
    """Raise ``UsageError`` if a run with ``data`` cannot learn from ``teacher``."""
    for what, own, others in (
        ("tokens", data.tokenizer.to_json(), teacher.tokenizer.to_json()),
        ("a layout (one of documents, one of running text)", data.has_documents, teacher.documents),
    ):
        if own != others:
            raise UsageError(
                f"The run of --teacher has other {what} than this one: give a run of the same kind of text, and leave "
                "out --init-from, or give runs with the same tokens to both."
            )


def training_task(task: Any, config: TrainConfig, resolved: dict[str, Any]) -> Any:
    """``task`` with the loss of the settings. Raises ``CheckpointError`` if its teacher is not the recorded one."""
    teacher = open_teacher(config)
    if teacher is None:
        return task
    if teacher.digest != resolved["teacher"]["checkpoint"]:
        raise CheckpointError(
            f"--teacher has other weights than when the run was started ({teacher.digest}, then "
            f"{resolved['teacher']['checkpoint']}): bring the teacher back, or start a new run."
        )
    how: Any = config
    own = {field.name: getattr(task, field.name) for field in fields(LanguageTask)}
    learnt = {"teacher": teacher.task, "teacher_weights": teacher.weights}
    return DistilledTask(**own, **learnt, share=how.teacher_share, temperature=how.teacher_temperature)
