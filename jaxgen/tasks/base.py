"""What a run needs of a task's data: the host half of every task has this shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from jaxgen.data.batches import Batches
from jaxgen.data.progress import SILENT, ProgressReporter


@dataclass(frozen=True)
class EvalSet:
    """Batches to score, all of ``rows`` rows, in an order in which state is carried from one to the next."""

    rows: int
    batches: Callable[[], Iterator[Any]]


#: What a nat of loss weighs beside a metric: less than any difference between two values of it that mean something.
TIE = 1e-9


class Metric(NamedTuple):
    """The figure of an evaluation that decides which checkpoint is the best, and when patience is lost."""

    name: str
    higher: bool  # is better

    def cost(self, row: Mapping[str, Any]) -> float:
        """What ``row`` says of it as a number of which lower is better; of equal ones the loss decides.

        Figures that count whole matches stay at 0 for a while, and are equal by chance where there is little to judge.
        """
        value = -row[self.name] if self.higher else row[self.name]
        return value if self.name == "val_loss" else value + TIE * row["val_loss"]


class Example(NamedTuple):
    """Something the model made, to look at."""

    title: str
    text: str


class Inference(Protocol):
    """Inference with the current training weights, with which a task judges and shows what its model makes."""

    def generate(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that continues ``prompt``, of ``label`` if one is given (language models)."""
        ...

    def predict(self, inputs: Sequence[Any], beam: int = 0) -> list[Any]:
        """The outputs for ``inputs``, in order, as the codec's ``answer`` returns them (all other tasks)."""
        ...

    def attention(self, source: Any) -> Any:
        """The attention weights while the model writes the text for ``source`` (a ``jaxgen.types.AttentionMap``)."""
        ...


class Codec(Protocol):
    """What a run needs beside its weights to read inputs and to tell outputs; kept in ``tokenizer.json``."""

    def to_json(self) -> dict[str, Any]: ...


class TaskData(Protocol):
    """Data of one task: batches to train on, evaluations, and how their results are told."""

    #: The settings of a run.
    Config: ClassVar[type[Any]]
    #: The commands that a trained model of this task answers.
    COMMANDS: ClassVar[tuple[str, ...]]
    #: What decides which checkpoint is the best.
    METRIC: ClassVar[Metric]
    #: What speed counts, and what a loss is of.
    UNIT: ClassVar[str]
    TARGET: ClassVar[str]

    @property
    def config(self) -> Any: ...

    @classmethod
    def load(cls, config: Any, codec: Any = None, watch: ProgressReporter = SILENT, /) -> TaskData:
        """Read the data; a given ``codec`` (of a resumed run) is used as it is, and ``watch`` told if it takes a while.

        Raises ``DataError``.
        """
        ...

    @staticmethod
    def read_codec(obj: Any, /) -> Any:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        ...

    @staticmethod
    def vocab_sizes(codec: Any, /) -> dict[str, int]:
        """The options of the model that follow from the codec."""
        ...

    @property
    def codec(self) -> Codec: ...

    @property
    def batches(self) -> Batches: ...

    @property
    def units_per_step(self) -> int:
        """How many of ``UNIT`` a batch has."""
        ...

    @property
    def tokens_per_step(self) -> int:
        """How often a batch passes through the model's weights, about: rows times time steps."""
        ...

    def model_options(self) -> dict[str, Any]: ...

    def resolved(self) -> dict[str, Any]:
        """What a run keeps of the data beside their identity."""
        ...

    def fingerprint(self) -> dict[str, str]: ...

    def summary(self) -> dict[str, str]: ...

    def eval_sets(self, final: bool) -> dict[str, EvalSet]: ...

    def report(self, totals: Mapping[str, Any], final: bool) -> dict[str, Any]:
        """The figures of evaluations from what the task's ``measure`` summed up in each; ``val_loss`` among them."""
        ...

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """Figures that take more than a pass over the evaluation sets."""
        ...

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """What the model makes, for people who watch it learn."""
        ...

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Pictures of a finished run, beside its loss curve."""
        ...

    def headline(self, row: Mapping[str, Any]) -> str:
        """An evaluation in a few words."""
        ...

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        ...

    def next_command(self, run: str) -> str:
        """What to type next."""
        ...

    def bits_per_char(self, loss: float) -> float | None:
        """A training loss in bits a character, where it has such a meaning."""
        ...
