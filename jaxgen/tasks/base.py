"""The host half of a task: its data, and how its results are reported. Every ``tasks/*/data.py`` implements it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from pydantic import Field, field_validator, model_validator

from jaxgen.data.batches import Batches
from jaxgen.data.files import SILENT, ProgressReporter
from jaxgen.errors import UsageError, choose
from jaxgen.runs.config import MAX_SIZE, Beam, Fraction, Positive, Size, TrainConfig
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import MAX_VOCAB, Tokenizer
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


VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCAB)]


class TokenizerSettings(Protocol):
    """The settings that say what a token is."""

    level: str
    min_count: int | None
    vocab_size: int | None


def tokenizer_options(config: TokenizerSettings) -> dict[str, int]:
    """Returns the options of ``Tokenizer.train`` that were given; the level has defaults for the others."""
    given = {"min_count": config.min_count, "vocab_size": config.vocab_size}
    return {name: value for name, value in given.items() if value is not None}


def check_level(config: TokenizerSettings) -> None:
    """Raises ``ValueError`` for an unknown level, and for an option that its tokenizer does not have."""
    known = TOKENIZERS[choose(config.level, TOKENIZERS, "level")].OPTIONS
    for name, value in tokenizer_options(config).items():
        if name not in known:
            levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
            raise ValueError(
                f"--{name.replace('_', '-')} {value} has no effect with --level {config.level}: leave it out, "
                f"or give --level {levels}"
            )


def check_same_level(level: str, tokenizer: Tokenizer) -> None:
    """Raises ``UsageError`` if ``--level`` differs from that of the run to initialise from."""
    if tokenizer.kind != level:
        raise UsageError(
            f"--level is {level}, but the run of --init-from has tokens of the level {tokenizer.kind}: give --level "
            f"{tokenizer.kind}, or leave out --init-from."
        )


class RowsConfig(TrainConfig):
    """Settings of tasks whose data are rows."""

    data: tuple[str, ...]
    """What to read."""
    val_data: tuple[str, ...] | None = None
    """Validation data, read like --data. Default: rows of the data, drawn at random."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the rows held out. Default: 0.1."""
    val_rows: Positive | None = None
    """Number of rows held out, instead of --val-fraction."""
    empty: Literal["skip", "refuse"] = "skip"
    """What to do with rows that have an empty part: skip and count them, or refuse them."""
    level: str = "char"
    """What a token is."""
    vocab_size: VocabSize | None = None
    """Largest vocabulary at word level (default 20000) and bpe level (default 8192)."""
    min_count: Positive | None = None
    """Tokens seen less often in the training text become <unk> (word level: default 2; char level: default 1)."""
    lowercase: bool | None = None
    """Convert texts to lower case. Default: at word level only."""
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Size of the token embedding. Default: --hidden. 0: one-hot vectors."""
    embed_dropout: Fraction = 0.0
    """Dropout of token embeddings in training, independent for every occurrence."""
    max_length: Size = 400
    """Longest text in tokens; the rest is cut off."""
    patience: Positive | None = None
    """Stop after this many evaluations without improvement (accuracy of labels, BLEU of translations, CIDEr of
    captions)."""
    buckets: Annotated[int, Field(gt=0, le=64)] = 8
    """Most groups of similar lengths that batches are drawn from; each group compiles one shape."""

    def tokenizer_options(self) -> dict[str, int]:
        """Returns the tokenizer options that were given."""
        return tokenizer_options(self)

    @property
    def lower(self) -> bool:
        """Whether texts are converted to lower case."""
        return self.level == "word" if self.lowercase is None else self.lowercase

    @field_validator("data", "val_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value  # data = "book.txt" in a TOML file

    @model_validator(mode="after")
    def _rows_fit(self) -> RowsConfig:
        choose(self.model, ("rnn",), f"model of the task {self.task}")
        check_level(self)
        held_out = {"val_fraction": self.val_fraction, "val_rows": self.val_rows, "val_data": self.val_data}
        given = [f"--{name.replace('_', '-')}" for name, value in held_out.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given together: give one of them")
        return self


class Seq2SeqConfig(RowsConfig):
    """Settings of tasks that write a text for each input."""

    attention: str = "general"
    """Attention of the decoder over the input: none (it sees only a summary of the input), additive (Bahdanau) or
    general (Luong, the fastest)."""
    token_dropout: Fraction = 0.0
    """Share of the decoder's input tokens replaced by <unk> in training, so that it relies more on the input."""
    label_smoothing: Fraction = 0.0
    """Share of each training target spread evenly over the vocabulary."""
    beam: Beam = 5
    """Beams of the final evaluation; 0: greedy decoding, as during training."""
