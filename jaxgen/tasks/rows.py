"""The shared part of tasks whose data are rows of an input and an output: settings, splits, text inputs, batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from pydantic import Field, model_validator

from jaxgen.data.bucketing import Buckets, RowBatches, bucket_batches, bucket_width, pad_rows
from jaxgen.data.files import NO_PROGRESS, ProgressReporter
from jaxgen.data.tables import (
    FirstRow,
    Labelled,
    Pairs,
    Rows,
    Table,
    digest,
    fingerprint,
    header_decision,
    header_notes,
    hold_out,
)
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.fsutil import load_strict
from jaxgen.runs.config import MAX_SIZE, Fraction, Names, Positive, Size, TrainConfig
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import (
    EVAL_ROWS,
    EvalSet,
    TaskData,
    VocabSize,
    changed_flags,
    check_at_most_one,
    check_level,
    tokenizer_options,
)
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import PAD, UNK, Tokenizer
from jaxgen.types import TokenRows


class RowsConfig(TrainConfig):
    """Settings of tasks whose data are rows."""

    in_data: ClassVar[Group] = Group("Data")
    data: Names
    """What to read."""
    val_data: Names | None = None
    """Validation data, read like --data. Default: rows of the data, drawn at random."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the rows held out. Default: 0.1."""
    val_rows: Positive | None = None
    """Number of rows held out, instead of --val-fraction."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first row of a table is a header. auto: yes if columns are given by name, or if the row has usual
    names of columns and none occurs again in its column."""
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
    max_length: Size = 400
    """Longest text in tokens; the rest is cut off."""

    in_model: ClassVar[Group] = Group("Model")
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Size of the token embedding. Default: --hidden. 0: one-hot vectors."""
    embed_dropout: Fraction = 0.0
    """Dropout of token embeddings in training, independent for every occurrence."""

    in_training: ClassVar[Group] = Group("Training")
    patience: Positive | None = None
    """Stop after this many evaluations without improvement (accuracy of labels, BLEU of translations, CIDEr of
    captions)."""
    buckets: Annotated[int, Field(gt=0, le=64)] = 8
    """Largest number of groups by length that batches are drawn from; each group compiles one shape."""

    #: Settings that are arguments of the task's ``build``.
    built_from: ClassVar[tuple[str, ...]] = (
        *("cell", "cell_options", "layers_pattern", "block", "block_options"),
        *("hidden", "layers", "embed", "dropout", "embed_dropout", "precision"),
        *("locked_dropout", "recurrent_dropout", "zoneout", "weight_dropout"),
        "token_dropout",
    )

    def build_options(self) -> dict[str, Any]:
        """Returns the arguments of the task's ``build`` that are settings."""
        return self.model_arguments(self.built_from)

    @property
    def input_columns(self) -> tuple[str, ...] | None:
        """The columns of a table with the inputs."""
        return None

    @property
    def lower(self) -> bool:
        """Whether texts are converted to lower case."""
        return self.level == "word" if self.lowercase is None else self.lowercase

    @model_validator(mode="after")
    def _rows_fit(self) -> RowsConfig:
        choose(self.model, ("rnn",), f"model of the task {self.task}")
        check_level(self)
        check_at_most_one(self, ("val_fraction", "val_rows", "val_data"))
        return self


# Splits


class NamedRows(Rows, Protocol):
    """Rows with the name of their data and the digest of their bytes."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


R = TypeVar("R", bound=NamedRows)


@dataclass(frozen=True)
class RowSplits(Generic[R]):
    """Rows by split: ``train``, ``val``, and others that are evaluated at the end of a run.

    ``sha256`` is the digest of all of them; ``notes`` say what was left out, and ``first_rows`` what may be headers.
    """

    splits: dict[str, R]
    name: str
    sha256: str
    notes: Sequence[str] = ()
    first_rows: Sequence[FirstRow] = ()

    @property
    def train(self) -> R:
        """The rows to train on."""
        return self.splits["train"]

    @property
    def val(self) -> R:
        """The rows to validate with."""
        return self.splits["val"]


def train_and_val(
    rows: R, val: R | None, config: RowsConfig, labels: Sequence[str] | None = None, unit: str = "rows"
) -> tuple[dict[str, R], str]:
    """Returns training and validation rows, and their digest.

    If ``val`` is None, rows are held out as the settings say; ``labels`` and ``unit`` are arguments of ``hold_out``.
    """
    if val is not None:
        return {"train": rows, "val": val}, fingerprint("", rows.sha256, val.sha256)["sha256"]
    number, share = config.val_rows, config.val_fraction
    train, val = hold_out(rows, rows.name, config.seed, val_rows=number, val_fraction=share, labels=labels, unit=unit)
    return {"train": train, "val": val}, rows.sha256


def builtin_tables(name: str, made: Mapping[str, Pairs | Labelled]) -> dict[str, Table]:
    """Returns the splits of a built-in set; all have the digest of the whole set."""
    sha256 = digest(made)
    return {
        split: Table((first, second), [f"row {n} of {split}" for n in range(1, len(first) + 1)], name, sha256)
        for split, (first, second) in made.items()
    }


def refuse_flags(config: RowsConfig, settings: Iterable[str], name: str) -> None:
    """Raises ``UsageError`` if one of these settings was given, which the data set ``name`` decides itself."""
    if given := changed_flags(config, settings):
        raise UsageError(
            f"The data set {name} has its own texts and splits, so {given[0]} has no effect: leave it out."
        )


def refuse_builtin(specs: Iterable[str], sets: Iterable[str]) -> None:
    """Raises ``UsageError`` for a built-in set among other data, or as validation data."""
    if found := [spec for spec in specs if spec in sets]:
        raise UsageError(
            f"The built-in set {found[0]} has its own validation rows: it cannot be combined with other data, nor be "
            "--val-data. Give it as the only --data, or leave it out."
        )


def skipped_notes(tables: Iterable[Table]) -> list[str]:
    """Returns a note of how many rows of these tables were skipped."""
    skipped = sum(table.skipped for table in tables)
    return [f"{skipped:,} with an empty part skipped"] if skipped else []


# Texts

#: Levels whose tokens include the space in front of a word.
SPACED_LEVELS = ("bpe", "word")


def normalize(text: str, level: str, lower: bool = False) -> str:
    """Returns a text as the tokenizer of a level expects it. Where tokens include spaces, it begins with one."""
    text = text.strip().lower() if lower else text.strip()
    return " " + text if text and level in SPACED_LEVELS else text


def train_tokenizer(config: RowsConfig, texts: Iterable[str], lower: bool) -> Tokenizer:
    """Trains a tokenizer of the level of the settings."""
    normalized = (normalize(text, config.level, lower) for text in texts)
    return TOKENIZERS[config.level].train(normalized, **tokenizer_options(config))


def unknown_share(ids: Iterable[np.ndarray]) -> float:
    """Returns the share of unknown tokens in some texts."""
    sizes = [(int((each == UNK).sum()), each.size) for each in ids]
    return sum(unknown for unknown, _ in sizes) / max(1, sum(size for _, size in sizes))


class TextReader(ABC):
    """Encodes text inputs: the shared part of the codecs of tasks that read texts."""

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = False

    lower: bool
    max_length: int

    @property
    @abstractmethod
    def input_tokenizer(self) -> Tokenizer:
        """The tokenizer of the inputs."""

    def encode_whole(self, text: str) -> np.ndarray:
        """Encodes a text of any length; unknown tokens become <unk>. A text of white space has no tokens."""
        return self.input_tokenizer.encode(normalize(text, self.input_tokenizer.kind, self.lower))

    def encode(self, text: str) -> np.ndarray:
        """Encodes the first ``max_length`` tokens of a text."""
        return self.encode_whole(text)[: self.max_length]

    def count_cut(self, text: str) -> int:
        """Returns how many tokens of a text are cut off."""
        return max(0, self.encode_whole(text).size - self.max_length)

    def widths(self, ids: np.ndarray) -> tuple[int, ...]:
        """Returns the lengths to which an encoded text is padded."""
        return (bucket_width(ids.size),)

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> TokenRows:
        """Returns encoded texts as model inputs, padded to ``rows`` rows."""
        empty = np.zeros(0, np.int32)
        return TokenRows(*pad_rows([*examples, *[empty] * (rows - len(examples))], widths[0], PAD))


# Batches and evaluations


@dataclass(frozen=True)
class RowsData(TaskData):
    """``TaskData`` of rows, from which batches of similar lengths are made.

    ``raw`` are the rows as they were read, ``splits`` the same rows encoded.
    """

    config: Any
    codec: Any
    raw: RowSplits[Any]

    #: The class of ``codec``.
    Codec: ClassVar[Callable[..., Any]]
    COMMANDS: ClassVar[tuple[str, ...]] = ("predict",)

    @staticmethod
    @abstractmethod
    def read(config: Any, watch: ProgressReporter = NO_PROGRESS) -> RowSplits[Any]:
        """Reads the data and splits them; ``watch`` receives notes."""

    @staticmethod
    @abstractmethod
    def new_codec(config: Any, raw: RowSplits[Any]) -> Any:
        """Returns a codec made from the training rows."""

    @staticmethod
    @abstractmethod
    def reuse_codec(codec: Any, config: Any, raw: RowSplits[Any]) -> Any:
        """Returns the codec of another run for these settings; raises an error if it does not fit them."""

    @property
    @abstractmethod
    def splits(self) -> Mapping[str, Any]:
        """The encoded rows by split. Each has ``lengths`` [N, F], those of the padded fields of its rows."""

    @abstractmethod
    def pack(self, split: Any, rows: np.ndarray, widths: tuple[int, ...], step: int | None = None) -> Any:
        """Returns the batch of these rows, of which the last may be ``PAD_ROW``. An evaluation has no ``step``."""

    @classmethod
    def load(cls, config: Any, codec: Any = None, watch: ProgressReporter = NO_PROGRESS) -> RowsData:
        """As ``TaskData.load``; also raises ``DataError`` if no row is short enough to train on."""
        raw = cls.read(config, watch)
        for note in header_notes(raw.first_rows):
            watch.note(note)
        codec = cls.new_codec(config, raw) if codec is None else cls.reuse_codec(codec, config, raw)
        data = cls(config, codec, raw)
        if not len(data.splits["train"]):  # encodes now: an error must come before compilation
            raise DataError(
                f"All of the {cls.UNIT} of {raw.name} to train on are longer than {config.max_length} tokens: give a "
                "larger --max-length."
            )
        return data

    @classmethod
    def read_codec(cls, obj: object) -> Any:
        return load_strict(cls.Codec, obj, f"{cls.Config.task} tokenizer.json")

    @cached_property
    def batches(self) -> RowBatches:
        c, train = self.config, self.splits["train"]
        return RowBatches(Buckets(train.lengths, c.buckets), c.batch_size, c.seed, partial(self.pack, train))

    @property
    def units_per_step(self) -> int:
        return self.config.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Average number of tokens in a batch, of inputs and outputs."""
        return max(1, round(self.config.batch_size * float(self.splits["train"].lengths.sum(axis=1).mean())))

    def model_options(self) -> dict[str, Any]:
        return {**self.vocab_sizes(self.codec), **self.config.build_options()}

    def resolved(self) -> dict[str, Any]:
        return {"header": header_decision(self.raw.first_rows), "whole_files": self.has_whole_files}

    @property
    def has_whole_files(self) -> bool:
        """Whether most inputs are texts of several lines: a prediction then reads a file as one text."""
        texts = [] if self.codec.FILES else self.raw.train.columns[0]
        return sum("\n" in text.strip() for text in texts) > len(texts) / 2

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.raw.name, "sha256": self.raw.sha256}

    def notes(self) -> list[str]:
        """Returns what was left out of the data."""
        return [*self.raw.notes]

    def summary(self) -> dict[str, str]:
        parts = [f"{len(self.splits['train']):,} to train on", f"{len(self.splits['val']):,} to validate"]
        others = {name: split for name, split in self.splits.items() if name not in ("train", "val")}
        if others:
            sizes = ", ".join(f"{len(split):,} of {name.replace('_', ' ')}" for name, split in others.items())
            parts.append(f"{sizes} to test at the end")
        return {
            "data": f"{self.raw.name} (sha256 {self.raw.sha256[:12]})",
            self.UNIT: ", ".join([*parts, *self.notes()]),
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """Returns ``val``, and at the end all other splits except ``train``."""
        rows = max(self.config.micro_batch_size, EVAL_ROWS)
        names = [name for name in self.splits if name != "train"] if final else ["val"]
        return {name: EvalSet(rows, partial(self._evaluation, self.splits[name], rows)) for name in names}

    def _evaluation(self, split: Any, rows: int) -> Iterator[Any]:
        buckets = Buckets(split.lengths, self.config.buckets)
        return (self.pack(split, which, buckets.widths[k]) for k, which in bucket_batches(buckets, rows))
