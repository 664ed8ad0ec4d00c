"""The host half of a task: its data, and how its results are reported. Every ``tasks/*/data.py`` subclasses it."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from jaxgen.data.batches import Batches
from jaxgen.data.files import NO_PROGRESS, ProgressReporter
from jaxgen.errors import UsageError, choose, flag_of
from jaxgen.plots import AttentionMap, Best
from jaxgen.runs.config import TrainConfig
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import MAX_VOCAB, Tokenizer

#: Options or metrics by name: JSON values.
Values: TypeAlias = Mapping[str, Any]
#: Targets that are counted, to compare a model with their frequencies.
MAX_COUNTED = 1 << 22
#: Smallest number of rows of an evaluation batch, which may be larger than a training batch.
EVAL_ROWS = 32
#: The most characters of a text in a command that is shown as an example.
MAX_ECHOED = 80


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
    label: str = ""  # with its unit, for pictures
    most: float = math.inf  # the largest possible value, which cannot be improved

    def best_at(self, step: int) -> Best:
        """Returns the best checkpoint, that of ``step``, for pictures."""
        return Best(step, self.name, self.label)

    def best_of(self, rows: Iterable[Values]) -> float | None:
        """Returns the best value in some rows of metrics; None if none has one."""
        values = [row[self.name] for row in rows if isinstance(row.get(self.name), float)]
        return (max if self.higher_is_better else min)(values, default=None)

    def is_perfect(self, row: Values) -> bool:
        """Returns whether no evaluation can be better than this one."""
        return row.get(self.name, -math.inf) >= self.most

    def cost(self, row: Values) -> float:
        """Returns the metric of an evaluation as a number to minimise; the loss breaks ties.

        Metrics that count exact matches are 0 early in training, and tie often on small validation sets.
        """
        value = -row[self.name] if self.higher_is_better else row[self.name]
        return value if self.name == "val_loss" else value + TIE_BREAK * row["val_loss"]


class Example(NamedTuple):
    """Something the model produced, to show to the user."""

    title: str
    text: str


class Inference(Protocol):
    """Inference with the current training weights, for metrics and examples of generated outputs."""

    def generate(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that continues ``prompt``, of ``label`` if one is given (language models)."""
        ...

    def generate_documents(self, number: int, temperature: float, length: int, label: str | None = None) -> list[str]:
        """``number`` documents, or their beginnings of ``length`` tokens (language models of documents)."""
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


class TaskData(ABC):
    """The data of one task: training batches, evaluations and reports."""

    #: The settings of a run.
    Config: ClassVar[type[TrainConfig]]
    #: The pure half of the task: model, loss and decoding.
    Objective: ClassVar[Any]
    #: The commands that work with a trained model of this task.
    COMMANDS: ClassVar[tuple[str, ...]]
    #: Decides which checkpoint is best.
    METRIC: ClassVar[Metric]
    #: What throughput counts, for example ``tokens``.
    UNIT: ClassVar[str]
    #: What the loss is an average over, for example ``token``.
    TARGET: ClassVar[str]

    config: Any
    codec: Any

    @classmethod
    @abstractmethod
    def load(cls, config: Any, codec: Any = None, watch: ProgressReporter = NO_PROGRESS) -> TaskData:
        """Reads the data.

        Args:
            config: The settings.
            codec: The codec of a resumed run, or of the one to initialise from. By default a new one is made.
            watch: Receives progress and notes.

        Raises:
            DataError: The data cannot be used.
        """

    @classmethod
    @abstractmethod
    def read_codec(cls, obj: object) -> Any:
        """Returns the codec that ``to_json`` described; raises ``CheckpointError``."""

    @staticmethod
    @abstractmethod
    def vocab_sizes(codec: Any) -> dict[str, Any]:
        """Returns the model options that follow from the codec."""

    @property
    @abstractmethod
    def batches(self) -> Batches:
        """The training batches."""

    @property
    @abstractmethod
    def units_per_step(self) -> int:
        """Number of ``UNIT`` in a batch."""

    @property
    @abstractmethod
    def tokens_per_step(self) -> int:
        """Approximate rows times time steps of a batch: how often a step uses each parameter."""

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """Returns the arguments of the task's ``build``."""

    def resolved(self) -> dict[str, Any]:
        """Returns what ``config.json`` keeps of the data besides their fingerprint. Default: nothing."""
        return {}

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Returns the name of the data and the digest of their bytes."""

    @abstractmethod
    def summary(self) -> dict[str, str]:
        """Returns what is shown of the data when a run starts: lines by label."""

    @abstractmethod
    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """Returns the evaluations by name; ``val`` decides which checkpoint is best."""

    @abstractmethod
    def report(self, totals: Mapping[str, Any], final: bool = False) -> dict[str, Any]:
        """Returns the metrics of evaluations, ``val_loss`` among them, from the sums of the task's ``evaluate``."""

    @property
    def num_targets(self) -> int | None:
        """Number of tokens or labels that the model chooses from. Default: unknown."""
        return None

    def target_ids(self, split: str) -> np.ndarray:
        """Returns targets of ``train`` or ``val``, at most about ``MAX_COUNTED``. Called only with ``num_targets``."""
        return np.zeros(0, np.int32)

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """Returns the metrics that need generated outputs. Default: none."""
        return {}

    @property
    def final_generation_share(self) -> float:
        """About how many times the work of ``generation_metrics`` is done at the end. Default: once."""
        return 1.0

    @abstractmethod
    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Returns some outputs of the model to show during training."""

    def save_plots(self, inference: Inference, report: Values, folder: Path) -> None:
        """Saves the plots of a finished run, apart from its loss curve. Default: none."""
        return

    @abstractmethod
    def headline(self, row: Values) -> str:
        """Returns an evaluation in a few words."""

    @abstractmethod
    def report_lines(self, report: Values) -> list[tuple[str, str]]:
        """Returns the final evaluation as labelled lines."""

    @abstractmethod
    def next_command(self, run: str) -> str:
        """Returns a command that tries the trained model, for a shell: see ``shell_command``."""

    def bits_per_char(self, loss: float) -> float | None:
        """Returns a training loss in bits per character. Default: None, if that has no meaning."""
        return None


def shell_command(name: str) -> str:
    """Returns how a shell starts a command of jaxgen in the way in which this process was started.

    That is the script beside ``train.py``, or the installed ``jaxgen``.
    """
    folder = Path(sys.executable).parent
    names = [name for name in ("python", "python3") if Path(shutil.which(name) or name).parent == folder]
    python, started = shlex.quote((names or [sys.executable])[0]), Path(sys.argv[0])
    script = started.with_name(f"{name}.py")
    if started.name == "train.py" and started.is_file() and script.is_file():
        return f"{python} {shlex.quote(str(script))}"
    installed = shutil.which("jaxgen")
    if installed is not None and Path(installed).parent in (folder, started.parent):
        return f"jaxgen {name}"
    package = Path(__file__).parents[2]
    seen = package == Path.cwd() or str(package) in sys.path[1:]  # the first one is the folder of a script
    return f"{'' if seen else f'PYTHONPATH={shlex.quote(str(package))} '}{python} -m jaxgen {name}"


def echo_command(text: str) -> str:
    """Returns a shell command that writes the first line of a text, as far as it is short."""
    line = next(filter(None, map(str.strip, text.splitlines())), "a text")[:MAX_ECHOED]
    echo = "printf '%s\\n'" if "\\" in line or line.startswith("-") else "echo"
    return f"{echo} {shlex.quote(''.join(c if c.isprintable() else ' ' for c in line))}"


VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCAB)]


def check_header(config: Any, column: str) -> None:
    """Raises ``ValueError`` for ``--header`` without the setting ``column``, as no table is read then."""
    if config.header != "auto" and getattr(config, column) is None:
        raise ValueError(f"--header {config.header} is about tables: give {flag_of(column)} too, or leave it out")


def check_tie(config: Any) -> None:
    """Raises ``ValueError`` for ``--tie`` without an embedding."""
    if config.tie and config.embed == 0:
        raise ValueError("--tie uses the embedding as the output matrix, and --embed 0 is none: leave one out")


def check_at_most_one(config: TrainConfig, settings: Iterable[str]) -> None:
    """Raises ``ValueError`` if several of these settings, which replace each other, were given."""
    given = [flag_of(name) for name in settings if getattr(config, name)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given together: give one of them")


def changed_flags(config: TrainConfig, settings: Iterable[str]) -> list[str]:
    """Returns the flags of those settings whose value is neither the default nor that of the preset."""
    preset = config.presets[config.preset][1]
    flags = []
    for name in settings:
        default = type(config).model_fields[name].get_default(call_default_factory=True)
        if getattr(config, name) not in (default, preset.get(name, default)):
            flags.append(flag_of(name))
    return flags


class TokenizerSettings(Protocol):
    """The settings that define the tokens."""

    level: str
    min_count: int | None
    vocab_size: int | None


def tokenizer_options(config: TokenizerSettings) -> dict[str, Any]:
    """Returns the options of ``Tokenizer.train`` that were given; the level has defaults for the others."""
    given = {name: getattr(config, name, None) for name in ("min_count", "vocab_size", "split_on")}
    return {name: value for name, value in given.items() if value is not None}


def check_level(config: TokenizerSettings) -> None:
    """Raises ``ValueError`` for an unknown level, and for an option that its tokenizer does not have."""
    known = TOKENIZERS[choose(config.level, TOKENIZERS, "level")].OPTIONS
    for name, value in tokenizer_options(config).items():
        if name not in known:
            levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
            raise ValueError(
                f"{flag_of(name)} {value} has no effect with --level {config.level}: leave it out, or give --level "
                f"{levels}"
            )


def check_same_level(level: str, tokenizer: Tokenizer) -> None:
    """Raises ``UsageError`` if ``--level`` differs from that of the run to initialise from."""
    if tokenizer.kind != level:
        raise UsageError(
            f"--level is {level}, but the run of --init-from or --teacher has tokens of the level {tokenizer.kind}: "
            f"give --level {tokenizer.kind}, or leave out that run."
        )
