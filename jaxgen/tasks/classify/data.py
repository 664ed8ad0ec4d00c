"""The data of classification: labelled texts, their batches and evaluations, and reports."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, PositiveInt, Strict, field_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.bucketing import PAD_ROW, Buckets, RowBatches, bucket_batches, bucket_width, pad_rows
from jaxgen.data.datasets import NAMED
from jaxgen.data.files import SILENT, FilesDigest, FileText, ProgressReporter, find_paths
from jaxgen.data.tables import Column, Labelled, Table, digest, fingerprint, hold_out, read_table, without_empty
from jaxgen.errors import DataError, UsageError, listed
from jaxgen.fsutil import STRICT, load_strict, replace_file
from jaxgen.metrics import classification_metrics, confusion_lines, confusion_text
from jaxgen.runs.config import Fraction, TrainConfig
from jaxgen.tasks.base import EvalSet, Example, Inference, Metric, RowsConfig, check_same_level
from jaxgen.tasks.classify.stdlib_packages import stdlib_packages
from jaxgen.tasks.language.conditioning import MAX_LABELS
from jaxgen.tokenizers import TOKENIZERS, SavedTokenizer
from jaxgen.tokenizers.base import PAD, UNK
from jaxgen.types import ClassificationBatch, TokenRows

_WORDS = {
    "level": "word",
    "cell": "gru",
    "hidden": 128,
    "layers": 1,
    "batch_size": 32,
    "bidirectional": True,
    "dropout": 0.5,
    "embed_dropout": 0.3,
    "token_dropout": 0.3,
    "lr": 2e-3,
    "buckets": 4,
    "steps": 1000,
}
_CHARACTERS = _WORDS | {
    "level": "char",
    "lowercase": True,
    "embed": 64,
    "dropout": 0.3,
    "embed_dropout": 0.1,
    "token_dropout": 0.1,
    "lr": 3e-3,
    "steps": 2400,
}


class ClassifyConfig(RowsConfig):
    """A text in, a label out: a classifier."""

    task: ClassVar[str] = "classify"

    data: tuple[str, ...] = ("stdlib-packages",)
    """Built-in set (stdlib-packages), named set (ag_news), CSV, TSV or JSONL files (.gz too) with --text-column and
    --label-column, or a folder with a subfolder of texts for each label."""
    text_column: tuple[str, ...] | None = None
    """Columns with the text, by name or by position from 1; several are joined by spaces."""
    label_column: str | None = None
    """Column with the label, by name or by position from 1."""
    token_dropout: Fraction = 0.0
    """Share of the tokens replaced by <unk> in training, at random."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weights the loss so that all labels count the same, however rare."""
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
        "words": (
            "GRU 1x128 on words, bidirectional, strong dropout, 1,000 steps",
            _WORDS,
        ),
        "characters": (
            "GRU 1x128 on lower-case characters, bidirectional, 2,400 steps",
            _CHARACTERS,
        ),
    }

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_or_more_columns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def normalize(text: str, lower: bool, level: str) -> str:
    """Returns a text as the tokenizer of a level expects it."""
    text = text.strip().lower() if lower else text.strip()
    # These levels have other tokens for a word with a space in front of it than without.
    return " " + text if text and level in ("bpe", "word") else text


class EncodedText(NamedTuple):
    """An encoded text: its ids, and how many were cut off."""

    ids: np.ndarray
    cut: int


def _different(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len({*labels}) != len(labels):
        raise ValueError("a label is listed twice")
    return labels


@checked_dataclass(frozen=True, config=STRICT)
class ClassifyCodec:
    """Encodes texts of up to ``max_length`` tokens, and names the labels."""

    tokenizer: SavedTokenizer
    labels: Annotated[tuple[str, ...], Strict(False), AfterValidator(_different)]
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = False

    def encode(self, text: str) -> EncodedText:
        """Encodes a text; unknown tokens become <unk>. A text of white space has no tokens."""
        ids = self.tokenizer.encode(normalize(text, self.lower, self.tokenizer.kind))
        return EncodedText(ids[: self.max_length], max(0, ids.size - self.max_length))

    def widths(self, example: EncodedText) -> tuple[int, ...]:
        """Returns the lengths to which an example is padded."""
        return (bucket_width(example.ids.size),)

    def pack(self, examples: Sequence[EncodedText], widths: tuple[int, ...], rows: int) -> TokenRows:
        """Returns ``examples`` as model inputs, padded to ``rows`` rows."""
        ids = [example.ids for example in examples]
        empty = np.zeros(0, np.int32)
        return TokenRows(*pad_rows([*ids, *[empty] * (rows - len(ids))], widths[0], PAD))

    def answer(self, text: str, output: np.ndarray) -> dict[str, Any]:
        """Returns the most likely label, all probabilities in descending order, and how many tokens were cut off."""
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[i]: round(float(output[i]), 6) for i in order}
        label, cut = self.labels[order[0]], self.encode(text).cut
        return {"text": text, "label": label, "probabilities": probabilities, "cut": cut}

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as a line: label, tab, probability. White space in a label becomes single spaces."""
        return f"{' '.join(answer['label'].split())}\t{answer['probabilities'][answer['label']]:.4f}"

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        labels, tokenizer = list(self.labels), self.tokenizer.to_json()
        return {"labels": labels, "lower": self.lower, "max_length": self.max_length, "tokenizer": tokenizer}


#: Built-in sets by name: functions from a seed to the splits ``train`` and ``val``.
LABELLED_SETS: dict[str, Callable[[int], dict[str, Labelled]]] = {"stdlib-packages": stdlib_packages}


@dataclass(frozen=True)
class LabelledSplits:
    """Training and validation rows, whose columns are the texts and their labels."""

    train: Table
    val: Table
    val_sha256: str | None
    labels: tuple[str, ...]
    skipped: int

    @property
    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return fingerprint(self.train.name, self.train.sha256, self.val_sha256)


def read_labelled(
    data: Sequence[str],
    val_data: Sequence[str] | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    empty: Literal["skip", "refuse"] = "skip",
    val_fraction: float | None = None,
    val_rows: int | None = None,
    seed: int = 0,
) -> LabelledSplits:
    """Reads labelled texts and splits them; the labels are those of the training split, sorted.

    Without ``val_data``, rows are held out at random, such that every label remains in training. A built-in set has its
    own validation split. The arguments are the settings of ``ClassifyConfig``.

    Raises:
        DataError: The data cannot be used, have fewer than two labels, or ``val_data`` have a label of their own.
        UsageError: Flags contradict each other.
    """
    if len(data) == 1 and data[0] in LABELLED_SETS:
        flags: dict[str, object] = {"--text-column": text_columns, "--label-column": label_column}
        flags |= {"--val-data": val_data, "--val-fraction": val_fraction, "--val-rows": val_rows}
        return _builtin(data[0], seed, [flag for flag, value in flags.items() if value is not None])
    columns = tuple(text_columns) if text_columns else None, label_column
    _check_there([spec for spec in (*data, *(val_data or ())) if spec in LABELLED_SETS])
    rows = without_empty(_read(data, *columns), empty)
    known = {*rows.columns[1]}
    labels = tuple(sorted(known))
    if len(labels) < 2:
        raise DataError(
            f"All rows of {rows.name} have the label {labels[0]!r}: there is nothing to classify. Give data with at "
            "least two labels, or check --label-column."
        )
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"The {len(rows):,} rows of {rows.name} have {len(labels):,} labels, and at most {MAX_LABELS:,} are "
            f"allowed: {listed(labels)}. Check --label-column: it should name classes, not single texts."
        )
    if val_data:
        train, val = rows, without_empty(_read(val_data, *columns), empty)
        val_sha256 = val.sha256
        skipped = train.skipped + val.skipped
    else:
        train, val = hold_out(
            rows, rows.name, seed, val_rows=val_rows, val_fraction=val_fraction, labels=rows.columns[1]
        )
        val_sha256, skipped = None, rows.skipped
    if unseen := [i for i, label in enumerate(val.columns[1]) if label not in known]:
        raise DataError(
            f"The label {val.columns[1][unseen[0]]!r} ({val.locations[unseen[0]]}) occurs only in the validation data "
            f"and cannot be learnt; the training data have {listed(labels)}. Add training texts with this label, "
            "or remove it from the validation data."
        )
    return LabelledSplits(train, val, val_sha256, labels, skipped)


def _builtin(name: str, seed: int, given: Sequence[str]) -> LabelledSplits:
    """Returns the splits of a built-in set; raises ``UsageError`` for flags that do not apply to it."""
    if given:
        raise UsageError(
            f"The built-in set {name} has its own texts, labels and validation rows, so {given[0]} has no effect: "
            "leave it out."
        )
    made = LABELLED_SETS[name](seed)
    sha256 = digest(made)
    train, val = (
        Table((texts, labels), [f"text {n} of {split}" for n in range(1, len(texts) + 1)], name, sha256)
        for split, (texts, labels) in ((split, made[split]) for split in ("train", "val"))
    )
    return LabelledSplits(train, val, None, tuple(sorted({*train.columns[1]})), 0)


def _read(data: Sequence[str], text_columns: tuple[str, ...] | None, label_column: str | None) -> Table:
    known = NAMED.get(data[0]) if len(data) == 1 else None
    labels: dict[str, str] = {}
    if known is not None and known.label_column is not None:
        text_columns = text_columns or known.text_columns
        # The names of the labels apply only to the label column of the set.
        labels = dict(known.labels) if label_column in (None, known.label_column) else {}
        label_column = label_column or known.label_column
    elif text_columns is None and label_column is None and len(data) == 1 and os.path.isdir(_home(data[0])):
        return _folders(Path(_home(data[0])))
    if text_columns is None or label_column is None:
        _check_there(data)
        missing = "Which columns hold the text and the label"
        if text_columns is not None or label_column is not None:
            missing = "Which column holds the " + ("text" if text_columns is None else "label")
        raise UsageError(
            f"{missing} of {' '.join(data)}? Name them with --text-column and --label-column, by name or by position "
            "from 1. Or give a folder with a folder of texts for each label."
        )
    flags = Column(text_columns, "--text-column"), Column((label_column,), "--label-column", numbers=True)
    rows = read_table(data, flags, header=known.header if known is not None else None)
    named = [labels.get(label.strip(), label.strip()) for label in rows.columns[1]]
    return Table((rows.columns[0], named), rows.locations, rows.name, rows.sha256)


def _home(spec: str) -> str:
    return os.path.expanduser(spec)


def _check_there(data: Sequence[str]) -> None:
    """Raises ``DataError`` for data that do not exist, and ``UsageError`` for a built-in set among other data."""
    for spec in data:
        if spec in LABELLED_SETS and not os.path.exists(_home(spec)):
            raise UsageError(
                f"The built-in set {spec} has its own validation rows: it cannot be combined with other data, nor be "
                "--val-data. Give it as the only --data, or leave it out."
            )
        near = difflib.get_close_matches(spec, LABELLED_SETS, n=1)
        if near and not os.path.exists(_home(spec)):
            raise DataError(f"There is no file or folder {spec!r}. Did you mean the built-in set {near[0]!r}?")
        if spec not in NAMED:
            find_paths(spec)


def _folders(root: Path) -> Table:
    """Reads the files under ``root`` as texts, labelled with the name of the subfolder that they are in.

    The digest includes the labels: moving a file to another folder changes the data.
    """
    texts: list[str] = []
    labels: list[str] = []
    locations: list[str] = []
    digests: list[bytes] = []
    for path in find_paths(str(root)):
        parts = path.relative_to(root).parts
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
    return Table((texts, labels), locations, str(root), FilesDigest(digests).hexdigest())


#: Smallest number of rows of an evaluation batch.
EVAL_ROWS = 32
#: Validation texts shown as examples, and how many characters of each.
NUM_EXAMPLES, EXAMPLE_LENGTH = 3, 300
#: Standard deviation of the initial embeddings by level; 1 at other levels. Large embeddings of rare tokens are noise
#: by which a model memorises texts: on 6,600 news items, words reach 83.5 % with 1 and 88 % with 0.1.
EMBED_STDDEV = {"bpe": 0.1, "word": 0.1}


@dataclass(frozen=True)
class ClassifyData:
    """``TaskData`` of labelled texts."""

    config: ClassifyConfig
    codec: ClassifyCodec
    splits: LabelledSplits

    Config: ClassVar[type[TrainConfig]] = ClassifyConfig
    COMMANDS: ClassVar[tuple[str, ...]] = ("predict",)
    METRIC: ClassVar[Metric] = Metric("val_accuracy", higher_is_better=True)
    UNIT: ClassVar[str] = "texts"
    TARGET: ClassVar[str] = "text"

    @staticmethod
    def read_codec(obj: object) -> ClassifyCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return load_strict(ClassifyCodec, obj, "classify tokenizer.json")

    @staticmethod
    def vocab_sizes(codec: ClassifyCodec) -> dict[str, int]:
        """The options of the model that follow from the codec."""
        return {"vocab_size": codec.tokenizer.vocab_size, "classes": len(codec.labels)}

    @classmethod
    def load(
        cls, config: ClassifyConfig, codec: ClassifyCodec | None = None, watch: ProgressReporter = SILENT
    ) -> ClassifyData:
        """As ``TaskData.load``; also raises ``DataError`` for labels that ``codec`` does not know."""
        del watch  # the data fit into memory and are read quickly
        splits = read_labelled(
            config.data,
            config.val_data,
            text_columns=config.text_column,
            label_column=config.label_column,
            empty=config.empty,
            val_fraction=config.val_fraction,
            val_rows=config.val_rows,
            seed=config.seed,
        )
        if codec is None:
            texts = (normalize(text, config.lower, config.level) for text in splits.train.columns[0])
            tokenizer = TOKENIZERS[config.level].train(texts, **config.tokenizer_options())
            codec = ClassifyCodec(tokenizer, splits.labels, config.lower, config.max_length)
        else:
            check_same_level(config.level, codec.tokenizer)
            if unknown := sorted({*splits.labels} - {*codec.labels}):
                raise DataError(
                    f"The data {splits.train.name} have the label {unknown[0]!r}, which the run of --init-from does "
                    f"not know: its labels are {listed(codec.labels)}. Leave out --init-from."
                )
            # The case and the length of texts may differ between runs; token ids and labels may not.
            codec = replace(codec, lower=config.lower, max_length=config.max_length)
        data = cls(config, codec, splits)
        _ = data._train  # encode now: an error must come before compilation
        return data

    @cached_property
    def _train(self) -> _Encoded:
        return _Encoded.encode(self.splits.train.columns, self.codec)

    @cached_property
    def _val(self) -> _Encoded:
        return _Encoded.encode(self.splits.val.columns, self.codec)

    @cached_property
    def batches(self) -> RowBatches:
        """The training batches."""
        c, train = self.config, self._train
        weights = np.ones(len(self.codec.labels))
        if c.class_weights == "balanced":
            counts = np.bincount(train.labels, minlength=weights.size)
            weights = train.labels.size / np.maximum(counts, 1) / weights.size
        pack = partial(train.pack, weights=weights)
        return RowBatches(Buckets(train.lengths, c.buckets), c.batch_size, c.seed, lambda rows, w, _: pack(rows, w))

    @property
    def units_per_step(self) -> int:
        """Number of texts in a batch."""
        return self.config.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Average number of tokens in a batch."""
        return max(1, round(self.config.batch_size * float(self._train.lengths.mean())))

    def model_options(self) -> dict[str, Any]:
        """The arguments of ``ClassifyTask.build``."""
        names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
        options = {name: getattr(self.config, name) for name in (*names, "token_dropout", "bidirectional", "pooling")}
        stddev = EMBED_STDDEV.get(self.config.level, 1.0)
        return {**self.vocab_sizes(self.codec), **options, "embed_stddev": stddev, "unknown": UNK}

    def resolved(self) -> dict[str, Any]:
        """Nothing besides the fingerprint."""
        return {}

    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.splits.fingerprint

    def summary(self) -> dict[str, str]:
        """The data, their labels and tokens in numbers."""
        train, val = self._train, self._val
        skipped = f", {self.splits.skipped:,} with an empty part skipped" if self.splits.skipped else ""
        cut = f", {train.cut:,} cut to {self.codec.max_length:,} tokens" if train.cut else ""
        unknown = sum(int((ids == UNK).sum()) for ids in val.ids) / max(1, int(val.lengths.sum()))
        counts = np.bincount(train.labels, minlength=len(self.codec.labels))
        most, least = int(counts.argmax()), int(counts.argmin())
        return {
            "data": f"{self.splits.train.name} (sha256 {self.fingerprint()['sha256'][:12]})",
            "texts": f"{train.labels.size:,} to train on, {val.labels.size:,} to validate{skipped}{cut}",
            "labels": f"{len(self.codec.labels)}, from {counts[most]:,} texts of {self.codec.labels[most]!r} to "
            f"{counts[least]:,} of {self.codec.labels[least]!r}",
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{train.lengths.mean():.0f} a text on average, {unknown:.1%} unknown in validation",
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """The validation rows."""
        rows = max(self.config.batch_size, EVAL_ROWS)
        val = self._val
        buckets = Buckets(val.lengths, self.config.buckets)
        weights = np.ones(len(self.codec.labels))

        def batches() -> Any:
            return (val.pack(which, buckets.widths[k], weights) for k, which in bucket_batches(buckets, rows))

        return {"val": EvalSet(rows, batches)}

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

    def generation_metrics(self, inference: Inference, final: bool) -> dict[str, Any]:
        """Nothing: the evaluation measures everything."""
        return {}

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """Some validation texts with their predicted and true labels."""
        texts, labels = (part[:NUM_EXAMPLES] for part in self.splits.val.columns)
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
        title = f"{folder.name}: {report['val_accuracy']:.1%} of {self._val.labels.size:,} texts are right"
        draw_confusion(confusion, labels, folder / "confusion.png", title)
        replace_file(folder / "confusion.txt", confusion_text(confusion, labels).encode("utf-8", "replace"))

    def headline(self, row: Mapping[str, Any]) -> str:
        """The accuracy of an evaluation."""
        return f"accuracy {row['val_accuracy']:.1%}, macro-F1 {row['val_macro_f1']:.3f}"

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        rows = [
            ("validation", f"accuracy {report['val_accuracy']:.2%}, macro-F1 {report['val_macro_f1']:.4f}"),
            ("", f"{report['val_loss']:.4f} nats/text, calibration error {report['val_calibration_error']:.4f}"),
        ]
        for label, each in report["val_labels"].items():
            figures = (f"{name} {each[name]:.3f}" for name in ("precision", "recall", "f1"))
            rows.append((label, f"{', '.join(figures)}, {each['texts']:,} texts"))
        return rows + confusion_lines(np.array(report["val_confusion"]), self.codec.labels)

    def next_command(self, run: str) -> str:
        """How to classify a text with the run."""
        return f"echo 'a text' | jaxgen predict --run {shlex.quote(run)}"

    def bits_per_char(self, loss: float) -> None:
        """None: a label has no characters."""


@dataclass(frozen=True)
class _Encoded:
    """One split: the ids of its texts, their lengths [N, 1], their labels [N], and how many were cut."""

    ids: list[np.ndarray]
    lengths: np.ndarray
    labels: np.ndarray
    cut: int

    @classmethod
    def encode(cls, columns: tuple[list[str], ...], codec: ClassifyCodec) -> _Encoded:
        examples = [codec.encode(text) for text in columns[0]]
        numbers = {label: i for i, label in enumerate(codec.labels)}
        ids = [example.ids for example in examples]
        lengths = np.array([each.size for each in ids])[:, None]
        labels = np.array([numbers[label] for label in columns[1]], np.int32)
        return cls(ids, lengths, labels, sum(example.cut > 0 for example in examples))

    def pack(self, rows: np.ndarray, widths: tuple[int, ...], weights: np.ndarray) -> ClassificationBatch:
        """Returns the batch of these rows, each with the weight of its label."""
        present = rows != PAD_ROW
        ids = [self.ids[row] if row != PAD_ROW else self.ids[0][:0] for row in rows.tolist()]
        labels = np.where(present, self.labels[rows], 0).astype(np.int32)
        return ClassificationBatch(
            TokenRows(*pad_rows(ids, widths[0], PAD)), labels, (present * weights[labels]).astype(np.float32)
        )
