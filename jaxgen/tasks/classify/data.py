"""The data of classification: labelled texts, their batches and evaluations, and reports."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, PositiveInt, Strict, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.bucketing import PAD_ROW
from jaxgen.data.datasets import NAMED
from jaxgen.data.files import (
    NO_PROGRESS,
    FilesDigest,
    FileText,
    ProgressReporter,
    expand_path,
    file_identity,
    find_paths,
)
from jaxgen.data.in_memory import data_name
from jaxgen.data.tables import (
    HEADERS,
    LABEL_NAMES,
    TEXT_NAMES,
    Column,
    Labelled,
    Table,
    read_first_row,
    read_table,
    shared_files_notes,
    shown_first_row,
    usual_column,
    without_empty,
)
from jaxgen.errors import DataError, UsageError, counted, listed
from jaxgen.fsutil import STRICT, replace_file
from jaxgen.metrics import classification_metrics, confusion_lines, confusion_text
from jaxgen.runs.config import Fraction, Names, TrainConfig
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import (
    Example,
    Inference,
    Metric,
    check_header,
    check_same_level,
    echo_command,
    shell_command,
)
from jaxgen.tasks.classify.objective import ClassifyTask
from jaxgen.tasks.classify.sequences import SEQUENCES, sequences
from jaxgen.tasks.classify.stdlib_packages import stdlib_packages
from jaxgen.tasks.labels import check_known, distinct_labels, label_names, twin_notes
from jaxgen.tasks.rows import (
    RowsConfig,
    RowsData,
    RowSplits,
    TextReader,
    builtin_tables,
    refuse_builtin,
    refuse_flags,
    skipped_notes,
    train_and_val,
    train_tokenizer,
    unknown_share,
)
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import UNK, Tokenizer
from jaxgen.types import ClassificationBatch

_SIZES = {"cell": "gru", "hidden": 128, "layers": 1, "batch_size": 32, "bidirectional": True, "buckets": 4}
_WORDS = _SIZES | {"level": "word", "lr": 2e-3, "steps": 1000}
_WORDS |= {"dropout": 0.5, "embed_dropout": 0.3, "token_dropout": 0.3}
_CHARACTERS = _SIZES | {"level": "char", "lowercase": True, "embed": 64, "lr": 3e-3, "steps": 2400}
_CHARACTERS |= {"dropout": 0.3, "embed_dropout": 0.1, "token_dropout": 0.1}
_SEQUENCES = {"level": "char", "hidden": 64, "layers": 1, "embed": 32, "batch_size": 64, "pooling": "last"}
_SEQUENCES |= {"buckets": 4, "lr": 5e-3, "steps": 3000}


class ClassifyConfig(RowsConfig):
    """A text in, a label out: a classifier.

    Example:
        >>> jaxgen.ClassifyConfig(data="reviews.csv", text_column="text", label_column="stars").data
        ('reviews.csv',)
    """

    task: ClassVar[str] = "classify"

    common: ClassVar[tuple[str, ...]] = (
        *("data", "text_column", "label_column", "val_data", "level", "preset", "cell", "hidden", "steps", "minutes"),
        *("run", "resume"),
    )

    in_data: ClassVar[Group] = Group("Data")
    data: Names = ("stdlib-packages",)
    """Built-in set (stdlib-packages; copying, selective-copying, recall, parity, modular-sum), named set (ag_news),
    CSV, TSV or JSONL files or URLs (.gz too) with a column of texts and one of labels, or a folder with a subfolder of
    texts for each label."""
    text_column: Names | None = None
    """Columns with the text, by name or by position from 1; several are joined by spaces. Default: the one with a usual
    name, such as text or sentence."""
    label_column: str | None = None
    """Column with the label, by name or by position from 1. Default: the one with a usual name, such as label or
    class."""

    in_training: ClassVar[Group] = Group("Training")
    token_dropout: Fraction = 0.0
    """Share of the tokens replaced by <unk> in training, at random."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weights the loss so that all labels count the same, however rare."""

    in_model: ClassVar[Group] = Group("Model")
    bidirectional: bool = False
    """Read every text in both directions."""
    pooling: str = "max"
    """How the outputs over the text are pooled: the last one, or the maximum or the mean of each unit."""

    examples: ClassVar[tuple[str, ...]] = (
        "python train.py classify --data ag_news --level word              news by topic",
        "python train.py classify --data mail.csv --text-column subject body --label-column spam",
        "python train.py classify --data reviews                           a folder with a folder for each label",
    )
    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "GRU 1x64, 300 steps: seconds, to see that everything works",
            {"cell": "gru", "hidden": 64, "layers": 1, "batch_size": 32, "steps": 300},
        ),
        "small": ("the same as words", _WORDS),
        "words": ("GRU 1x128 on words, bidirectional, strong dropout, 1,000 steps", _WORDS),
        "characters": ("GRU 1x128 on lower-case characters, bidirectional, 2,400 steps", _CHARACTERS),
        "sequences": ("LSTM 1x64 read at its last state, 3,000 steps: copying, recall, parity and others", _SEQUENCES),
    }

    built_from: ClassVar[tuple[str, ...]] = (*RowsConfig.built_from, "bidirectional", "pooling")

    @property
    def input_columns(self) -> tuple[str, ...] | None:
        return self.text_column

    @model_validator(mode="after")
    def _header_fits(self) -> ClassifyConfig:
        check_header(self, "text_column")
        return self


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len({*labels}) != len(labels):
        raise ValueError("a label is listed twice")
    return labels


@checked_dataclass(frozen=True, config=STRICT)
class ClassifyCodec(TextReader):
    """Encodes texts of up to ``max_length`` tokens, and names the labels."""

    tokenizer: SavedTokenizer
    labels: Annotated[tuple[str, ...], Strict(False), AfterValidator(_different)]
    lower: bool
    max_length: PositiveInt

    @property
    def input_tokenizer(self) -> Tokenizer:
        return self.tokenizer

    def answer(self, text: str, output: np.ndarray) -> dict[str, Any]:
        """Returns the most likely label, all probabilities in descending order, and how many tokens were cut off."""
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[i]: round(float(output[i]), 6) for i in order}
        label = self.labels[order[0]]
        return {"text": text, "label": label, "probabilities": probabilities, "cut": self.count_cut(text)}

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as a line: label, tab, probability. White space in a label becomes single spaces."""
        return f"{' '.join(answer['label'].split())}\t{answer['probabilities'][answer['label']]:.4f}"

    def to_json(self) -> dict[str, object]:
        """Returns the JSON values that ``load_strict`` reads."""
        labels, tokenizer = list(self.labels), self.tokenizer.to_json()
        return {"labels": labels, "lower": self.lower, "max_length": self.max_length, "tokenizer": tokenizer}


#: Built-in sets by name: functions from a seed to the splits ``train`` and ``val``.
LABELLED_SETS: dict[str, Callable[[int], dict[str, Labelled]]] = {
    "stdlib-packages": stdlib_packages,
    **{name: partial(sequences, name) for name in SEQUENCES},
}


def read_labelled(config: ClassifyConfig, watch: ProgressReporter = NO_PROGRESS) -> RowSplits[Table]:
    """Reads labelled texts and splits them; the columns of the rows are texts and labels.

    Without ``val_data``, rows are held out at random, such that every label remains in training. A built-in set has its
    own validation split.

    Raises:
        DataError: The data cannot be used, have fewer than two labels, or ``val_data`` have a label of their own.
        UsageError: Flags contradict each other.
    """
    name = config.data[0]
    if config.data == (name,) and name in LABELLED_SETS:
        refuse_flags(config, ("text_column", "label_column", "header", "val_data", "val_fraction", "val_rows"), name)
        splits = builtin_tables(name, LABELLED_SETS[name](config.seed))
        return RowSplits(splits, name, splits["train"].sha256)
    refuse_builtin((*config.data, *(config.val_data or ())), LABELLED_SETS)
    rows = without_empty(_read(config.data, config, watch), config.empty)
    labels = distinct_labels(rows.columns[1], rows.name)
    for note in twin_notes(labels):
        watch.note(note)
    val = without_empty(_read(config.val_data, config, watch), config.empty) if config.val_data else None
    splits, sha256 = train_and_val(rows, val, config, labels=rows.columns[1])
    check_known(splits["val"].columns[1], splits["val"].locations, labels)
    tables = [rows, val] if val else [rows]
    first_rows = [row for table in tables for row in table.first_rows]
    notes = skipped_notes(tables) + (shared_files_notes(rows.files, val.files) if val else [])
    return RowSplits(splits, rows.name, sha256, notes, first_rows)


def _read(data: Sequence[str], config: ClassifyConfig, watch: ProgressReporter) -> Table:
    """Reads texts and labels from tables, a named set, or a folder of folders."""
    text_columns, label_column = config.text_column, config.label_column
    known = NAMED.get(data[0]) if len(data) == 1 else None
    if known is not None and known.label_column is not None:
        text_columns, label_column = text_columns or known.text_columns, label_column or known.label_column
    elif text_columns is None and label_column is None and len(data) == 1:
        folder = expand_path(data[0])
        if folder.is_dir():
            return _folders(folder, data[0], watch)
    if text_columns is None or label_column is None:
        for spec in data:
            if spec not in NAMED:
                find_paths(spec, LABELLED_SETS, watch)  # data that do not exist are the first thing to report
        row = read_first_row(data)
        text, label = text_columns or usual_column(row, TEXT_NAMES), label_column or usual_column(row, LABEL_NAMES)
        if text is None or label is None:
            raise UsageError(
                f"Which columns of {data_name(data)} hold the text and the label?{shown_first_row(row)} Name both with "
                "--text-column and --label-column, by name or by position from 1. Or give a folder with a folder of "
                "texts for each label."
            )
        text_columns, label_column = (text,) if isinstance(text, str) else text, label
        watch.note(
            f"Columns of {data_name(data)}: {' '.join(text_columns)!r} is the text, {label!r} the label; --text-column "
            "and --label-column choose others."
        )
    flags = Column(text_columns, "--text-column"), Column((label_column,), "--label-column", numbers=True)
    rows = read_table(data, flags, HEADERS[config.header] if known is None else known.header, watch)
    return replace(rows, columns=(rows.columns[0], label_names(rows.columns[1], known, label_column)))


def _folders(root: Path, name: str, watch: ProgressReporter) -> Table:
    """Reads the files under ``root`` as texts, labelled with the name of the subfolder that they are in.

    The digest includes the labels: moving a file to another folder changes the data.
    """
    texts: list[str] = []
    labels: list[str] = []
    locations: list[str] = []
    digests: list[bytes] = []
    seen: dict[Hashable, Path] = {}
    for path in find_paths(str(root), watch=watch):
        parts = path.relative_to(root).parts
        if (first := seen.setdefault(file_identity(path), path)) is not path:
            raise DataError(
                f"{path} is the same file as {first}: its text would be in training and in validation. Remove one."
            )
        if len(parts) < 2:
            raise DataError(
                f"{path} is not in a subfolder that names its label. Move it into the folder of its label, or leave it "
                "out; to read a table, give the file itself with --text-column and --label-column."
            )
        text = FileText(path, prefix=parts[0].encode("utf-8", "surrogateescape") + b"\0")
        texts.append("".join(text))
        digests.append(text.sha256)
        labels.append(parts[0])
        locations.append(f"the file {path}")
    return Table((texts, labels), locations, name, FilesDigest(digests).hexdigest(), files=tuple(digests))


#: Validation texts shown as examples, and how many characters of each.
NUM_EXAMPLES, EXAMPLE_LENGTH = 3, 300
#: Standard deviation of the initial embeddings by level; 1 at other levels. With large embeddings of rare tokens a
#: model memorises texts: on 6,600 news items, the accuracy at word level is 83.5 % with 1 and 88 % with 0.1.
EMBED_STDDEV = {"bpe": 0.1, "word": 0.1}


@dataclass(frozen=True)
class EncodedTexts:
    """One split: the ids of its texts, their lengths [N, 1], their labels [N], and how many were cut."""

    ids: list[np.ndarray]
    lengths: np.ndarray
    labels: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.ids)


class ClassifyData(RowsData):
    """``TaskData`` of labelled texts."""

    codec: ClassifyCodec

    Config: ClassVar[type[TrainConfig]] = ClassifyConfig
    Objective: ClassVar[Any] = ClassifyTask
    Codec: ClassVar[type[ClassifyCodec]] = ClassifyCodec
    METRIC: ClassVar[Metric] = Metric("val_accuracy", higher_is_better=True, label="accuracy (share of texts)", most=1)
    UNIT: ClassVar[str] = "texts"
    TARGET: ClassVar[str] = "text"

    read = staticmethod(read_labelled)

    @staticmethod
    def new_codec(config: ClassifyConfig, raw: RowSplits[Table]) -> ClassifyCodec:
        texts, labels = raw.train.columns
        tokenizer = train_tokenizer(config, texts, config.lower)
        return ClassifyCodec(tokenizer, tuple(sorted({*labels})), config.lower, config.max_length)

    @staticmethod
    def reuse_codec(codec: ClassifyCodec, config: ClassifyConfig, raw: RowSplits[Table]) -> ClassifyCodec:
        """Raises ``DataError`` for labels that the codec does not know; case and length of texts may differ."""
        check_same_level(config.level, codec.tokenizer)
        if unknown := sorted({*raw.train.columns[1]} - {*codec.labels}):
            raise DataError(
                f"The data {raw.name} have the label {unknown[0]!r}, which the run of --init-from does not know: its "
                f"labels are {listed(codec.labels)}. Leave out --init-from."
            )
        return replace(codec, lower=config.lower, max_length=config.max_length)

    @staticmethod
    def vocab_sizes(codec: ClassifyCodec) -> dict[str, int]:
        return {"vocab_size": codec.tokenizer.vocab_size, "classes": len(codec.labels)}

    @cached_property
    def splits(self) -> dict[str, EncodedTexts]:
        return {name: self._encoded(rows) for name, rows in self.raw.splits.items()}

    def _encoded(self, rows: Table) -> EncodedTexts:
        texts, labels = rows.columns
        most, numbers = self.codec.max_length, {label: i for i, label in enumerate(self.codec.labels)}
        whole = [self.codec.encode_whole(text) for text in texts]
        ids = [each[:most] for each in whole]
        lengths = np.array([each.size for each in ids])[:, None]
        cut = sum(each.size > most for each in whole)
        return EncodedTexts(ids, lengths, np.array([numbers[label] for label in labels], np.int32), cut)

    def pack(
        self, split: EncodedTexts, rows: np.ndarray, widths: tuple[int, ...], step: int | None = None
    ) -> ClassificationBatch:
        """Returns the batch of these rows. In training, each has the weight of its label."""
        present = rows != PAD_ROW
        inputs = self.codec.pack([split.ids[row] for row in rows[present].tolist()], widths, rows.size)
        labels = np.where(present, split.labels[rows], 0).astype(np.int32)
        weights = present if step is None else present * self._label_weights[labels]
        return ClassificationBatch(inputs, labels, weights.astype(np.float32))

    @cached_property
    def _label_weights(self) -> np.ndarray:
        """The weight of each label in the training loss."""
        labels, classes = self.splits["train"].labels, len(self.codec.labels)
        if self.config.class_weights == "none":
            return np.ones(classes)
        return labels.size / np.maximum(np.bincount(labels, minlength=classes), 1) / classes

    @property
    def has_whole_files(self) -> bool:
        """As in other tasks; also whether texts were files in folders."""
        config, (name, *_) = self.config, self.config.data
        from_folders = config.text_column is None and name not in LABELLED_SETS and name not in NAMED
        return from_folders or super().has_whole_files

    def model_options(self) -> dict[str, Any]:
        stddev = EMBED_STDDEV.get(self.config.level, 1.0)
        return {**super().model_options(), "embed_stddev": stddev, "unknown": UNK}

    def notes(self) -> list[str]:
        cut = self.splits["train"].cut
        return [*super().notes(), *([f"{cut:,} cut to {self.codec.max_length:,} tokens"] if cut else [])]

    def summary(self) -> dict[str, str]:
        train, labels = self.splits["train"], self.codec.labels
        counts = np.bincount(train.labels, minlength=len(labels))
        most, least = int(counts.argmax()), int(counts.argmin())
        return {
            **super().summary(),
            "labels": f"{len(labels)}, from {counted(counts[most], 'text')} of {labels[most]!r} to "
            f"{counts[least]:,} of {labels[least]!r}",
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{train.lengths.mean():.0f} a text on average, {unknown_share(self.splits['val'].ids):.1%} unknown in "
            "validation",
        }

    def report(self, totals: Mapping[str, Any], final: bool = False) -> dict[str, Any]:
        """Accuracy, macro-F1 and calibration error; at the end also metrics per label and the confusion matrix."""
        row: dict[str, Any] = {}
        for name, sums in totals.items():
            figures = classification_metrics(np.asarray(sums.confusion), np.asarray(sums.calibration))
            row[f"{name}_loss"] = float(sums.nll) / float(sums.targets)
            row |= {f"{name}_{key}": figures[key] for key in ("accuracy", "macro_f1", "calibration_error")}
            if final:
                row[f"{name}_labels"] = dict(zip(self.codec.labels, figures["labels"]))
                row[f"{name}_confusion"] = np.asarray(sums.confusion).astype(int).tolist()
        return row

    @property
    def num_targets(self) -> int:
        return len(self.codec.labels)

    def target_ids(self, split: str) -> np.ndarray:
        labels: np.ndarray = self.splits[split].labels
        return labels

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Some validation texts with their predicted and true labels."""
        texts, labels = (part[:NUM_EXAMPLES] for part in self.raw.val.columns)
        lines = []
        for text, label, answer in zip(texts, labels, inference.predict(texts)):
            given, sure = answer["label"], answer["probabilities"][answer["label"]]
            verdict = "right" if given == label else f"it is {label}"
            short = text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 2] + " …"
            lines.append(f"{short}\n    -> {given} ({sure:.0%}; {verdict})")
        return [Example("some validation texts", "\n".join(lines))]

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """``confusion.png`` and ``confusion.txt``."""
        from jaxgen.plots import draw_confusion

        confusion, labels = np.array(report["val_confusion"]), self.codec.labels
        title = f"{folder.name}: {report['val_accuracy']:.1%} of {len(self.splits['val']):,} texts are right"
        draw_confusion(confusion, labels, folder / "confusion.png", title)
        replace_file(folder / "confusion.txt", confusion_text(confusion, labels).encode("utf-8", "replace"))

    def headline(self, row: Mapping[str, Any]) -> str:
        return f"accuracy {row['val_accuracy']:.1%}, macro-F1 {row['val_macro_f1']:.3f}"

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        rows = [
            ("validation", f"accuracy {report['val_accuracy']:.2%}, macro-F1 {report['val_macro_f1']:.4f}"),
            ("", f"{report['val_loss']:.4f} nats/text, calibration error {report['val_calibration_error']:.4f}"),
        ]
        others = (name for name in self.splits if name not in ("train", "val"))
        rows += [(name.replace("_", " "), f"accuracy {report[f'{name}_accuracy']:.2%}") for name in others]
        for label, each in report["val_labels"].items():
            figures = (f"{name} {each[name]:.3f}" for name in ("precision", "recall", "f1"))
            rows.append((label, f"{', '.join(figures)}, {counted(each['texts'], 'text')}"))
        return rows + confusion_lines(np.array(report["val_confusion"]), self.codec.labels)

    def next_command(self, run: str) -> str:
        text = self.raw.splits["val"].columns[0][0]
        return f"{echo_command(text)} | {shell_command('predict')} --run {shlex.quote(run)}"
