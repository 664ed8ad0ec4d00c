"""What the trainer needs of a task's data: the host half of every task has this shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jaxgen.text import Tokenizer
from jaxgen.types import Batch


@dataclass(frozen=True)
class EvalSet:
    """Batches to score, all of ``rows`` rows, in an order in which state is carried from one to the next."""

    rows: int
    batches: Callable[[], Iterator[Batch]]


class TaskData(Protocol):
    """Data of one task: batches to train on, evaluations, and how their results are told."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def has_documents(self) -> bool: ...

    @property
    def batches(self) -> Any: ...

    def model_options(self) -> dict[str, Any]: ...

    def identity(self) -> dict[str, str]: ...

    def sample_prompt(self) -> str: ...

    def facts(self) -> dict[str, str]: ...

    def eval_sets(self, final: bool) -> dict[str, EvalSet]: ...

    def report(self, totals: Mapping[str, tuple[float, float]]) -> dict[str, float]: ...

    def bits_per_char(self, loss: float) -> float: ...
