"""The host half of a task: its data, and how its results are reported. Every ``tasks/*/data.py`` implements it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from jaxgen.data.batches import Batches
from jaxgen.data.progress import SILENT, ProgressReporter
from jaxgen.types import AttentionMap

#: Options or metrics by name: JSON values.
Values: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class EvalSet:
    """Batches to score, each of ``rows`` rows, in the order in which state is carried from one to the next."""

    rows: int
    batches: Callable[[], Iterator[Any]]


#: Weight of the loss in ``Metric.cost``: smaller than any meaningful difference between two values of a metric.
TIE_BREAK = 1e-9


class Metric(NamedTuple):
    """The metric that decides which checkpoint is best and when training stops early."""

    name: str
    higher_is_better: bool

    def cost(self, row: Values) -> float:
        """Returns the metric of an evaluation as a number to minimise; the loss breaks ties.

        Metrics that count exact matches stay at 0 for a while, and tie often on small validation sets.
        """
        value = -row[self.name] if self.higher_is_better else row[self.name]
        return value if self.name == "val_loss" else value + TIE_BREAK * row["val_loss"]


class Example(NamedTuple):
    """Something the model produced, to show to the user."""

    title: str
    text: str


class Inference(Protocol):
    """Inference with the current training weights, with which a task judges and shows what its model makes."""

    def generate(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that continues ``prompt``, of ``label`` if one is given (language models)."""
        ...

    def predict(self, inputs: Sequence[Any], beam: int = 0) -> list[dict[str, Any]]:
        """The outputs for ``inputs``, in order, as the codec's ``answer`` returns them (all other tasks)."""
        ...

    def attention(self, source: Any) -> AttentionMap:
        """The attention weights while the model writes the text for ``source``."""
        ...


class Codec(Protocol):
    """Reads inputs and writes outputs; saved in the run's ``tokenizer.json``."""

    def to_json(self) -> dict[str, object]: ...


class TaskData(Protocol):
    """The data of one task: training batches, evaluations and reports."""

    #: The settings of a run, a ``TrainConfig``.
    Config: ClassVar[type[Any]]
    #: The commands that work with a trained model of this task.
    COMMANDS: ClassVar[tuple[str, ...]]
    #: Decides which checkpoint is best.
    METRIC: ClassVar[Metric]
    #: What throughput counts, for example ``tokens``.
    UNIT: ClassVar[str]
    #: What the loss is an average over, for example ``token``.
    TARGET: ClassVar[str]

    @property
    def config(self) -> Any: ...

    @classmethod
    def load(cls, config: Any, codec: Any = None, watch: ProgressReporter = SILENT, /) -> TaskData:
        """Reads the data.

        Args:
            config: The settings.
            codec: The codec of a resumed run, or of the one to initialise from. By default a new one is made.
            watch: Receives progress and notes.

        Raises:
            DataError: The data cannot be used.
        """
        ...

    @staticmethod
    def read_codec(obj: object, /) -> Any:
        """Returns the codec that ``to_json`` described; raises ``CheckpointError``."""
        ...

    @staticmethod
    def vocab_sizes(codec: Any, /) -> Values:
        """Returns the model options that follow from the codec."""
        ...

    @property
    def codec(self) -> Codec: ...

    @property
    def batches(self) -> Batches:
        """The training batches."""
        ...

    @property
    def units_per_step(self) -> int:
        """Number of ``UNIT`` in a batch."""
        ...

    @property
    def tokens_per_step(self) -> int:
        """Rows times time steps of a batch, roughly: how often it passes through the weights."""
        ...

    def model_options(self) -> Values:
        """Returns the arguments of the task's ``build``."""
        ...

    def resolved(self) -> Values:
        """Returns what ``config.json`` keeps of the data besides their fingerprint."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Returns the name of the data and the digest of their bytes."""
        ...

    def summary(self) -> dict[str, str]:
        """Returns what is shown of the data when a run starts: lines by label."""
        ...

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """Returns the evaluations by name; ``val`` decides which checkpoint is best."""
        ...

    def report(self, totals: Mapping[str, Any], final: bool) -> dict[str, Any]:
        """Returns the metrics of evaluations, ``val_loss`` among them, from the sums of the task's ``measure``."""
        ...

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """Returns the metrics that need generated outputs."""
        ...

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Returns some outputs of the model to show during training."""
        ...

    def save_plots(self, inference: Inference, report: Values, folder: Path) -> None:
        """Saves the plots of a finished run, apart from its loss curve."""
        ...

    def headline(self, row: Values) -> str:
        """Returns an evaluation in a few words."""
        ...

    def report_lines(self, report: Values) -> list[tuple[str, str]]:
        """Returns the final evaluation as labelled lines."""
        ...

    def next_command(self, run: str) -> str:
        """Returns a command to try the trained model with."""
        ...

    def bits_per_char(self, loss: float) -> float | None:
        """Returns a training loss in bits per character, if that has a meaning."""
        ...
