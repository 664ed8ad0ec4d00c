"""The host side of classification: its options, its data, and what it reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from jaxgen.data.buckets import NONE, Buckets, RowBatches, in_batches, padded
from jaxgen.data.classify_codec import ClassifyCodec
from jaxgen.data.labelled import LabelledSplits, read_labelled
from jaxgen.data.rows_config import RowsConfig
from jaxgen.data.task import EvalSet, Metric, Model, Shown
from jaxgen.errors import DataError, UsageError
from jaxgen.store.config import Fraction, TrainConfig
from jaxgen.text import PAD, TOKENIZERS, UNK
from jaxgen.types import Labelling
from jaxgen.types import Sequence as TokenRows

#: Rows of an evaluation batch at least.
EVAL_ROWS = 32
#: Validation texts that a run shows with what it takes them for.
SHOWN, SHOWN_LENGTH = 3, 300


class ClassifyConfig(RowsConfig):
    """A text in, a label out: a classifier."""

    task: ClassVar[str] = "classify"

    data: tuple[str, ...] = ("stdlib-packages",)
    """What to read: built-in (stdlib-packages), a named set (ag_news), CSV, TSV or JSONL files with --text-column and
    --label-column (.gz too), or a folder with a folder of texts for each label."""
    text_column: tuple[str, ...] | None = None
    """Columns of a table that hold the text, by name or by position from 1; several are joined by spaces."""
    label_column: str | None = None
    """Column of a table that holds the label, by name or by position from 1."""
    token_dropout: Fraction = 0.0
    """Share of the tokens read as <unk> in training, of every text anew."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rows of rare labels count more in training, so that all labels count the same."""
    bidirectional: bool = False
    """Read every text from both ends."""
    pooling: Literal["last", "max", "mean"] = "max"
    """What is made of the layers' outputs: the last one, or the largest or the mean of each unit over the text."""

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
        "small": (
            "GRU 1x128 in both directions with dropout, 1,500 steps",
            {
                "cell": "gru",
                "hidden": 128,
                "layers": 1,
                "batch_size": 32,
                "bidirectional": True,
                "dropout": 0.5,
                "embed_dropout": 0.3,
                "lr": 2e-3,
                "steps": 1500,
            },
        ),
    }

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_or_more_columns(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class ClassifyData:
    """Labelled texts with their batches and evaluations, as the trainer uses them."""

    config: ClassifyConfig
    codec: ClassifyCodec
    splits: LabelledSplits

    Config: ClassVar[type[TrainConfig]] = ClassifyConfig
    COMMANDS: ClassVar[tuple[str, ...]] = ("predict",)
    METRIC: ClassVar[Metric] = Metric("val_accuracy", higher=True)
    UNIT: ClassVar[str] = "texts"
    TARGET: ClassVar[str] = "text"

    @staticmethod
    def read_codec(obj: Any) -> ClassifyCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return ClassifyCodec.from_json(obj)

    @staticmethod
    def sizes(codec: ClassifyCodec) -> dict[str, int]:
        """The options of the model that follow from the codec."""
        return {"vocab_size": codec.tokenizer.vocab_size, "classes": len(codec.labels)}

    @classmethod
    def load(cls, config: ClassifyConfig, codec: ClassifyCodec | None = None) -> ClassifyData:
        """Read and split the rows; a given ``codec`` (of a resumed run, or of ``--init-from``) is used as it is.

        Raises ``DataError`` for data that cannot be used, also for labels that the codec does not know.
        """
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
            texts = [text.lower() if config.lower else text for text in splits.train.parts[0]]
            if config.level == "word":
                texts = [" " + text for text in texts]
            tokenizer = TOKENIZERS[config.level].train(texts, **config.tokenizer_options())
            codec = ClassifyCodec(tokenizer, splits.labels, config.lower, config.max_length)
        elif unknown := sorted({*splits.labels} - {*codec.labels}):
            raise DataError(
                f"The data {splits.train.name} have the label {unknown[0]!r}, which the run to begin from does not "
                f"know: its labels are {', '.join(map(repr, codec.labels))}. Leave out --init-from."
            )
        elif codec.tokenizer.kind != config.level:
            raise UsageError(
                f"--level is {config.level}, but the run to begin from reads tokens of the level "
                f"{codec.tokenizer.kind}: give --level {codec.tokenizer.kind}, or leave out --init-from."
            )
        data = cls(config, codec, splits)
        _ = data._train  # rows that cannot be read are an error now, not after compilation
        return data

    @cached_property
    def _train(self) -> _Encoded:
        return _Encoded.of(self.splits.train.parts, self.codec)

    @cached_property
    def _val(self) -> _Encoded:
        return _Encoded.of(self.splits.val.parts, self.codec)

    @cached_property
    def batches(self) -> RowBatches:
        """The training batches, a pure function of (seed, step)."""
        c, train = self.config, self._train
        weights = np.ones(len(self.codec.labels))
        if c.class_weights == "balanced":
            counts = np.bincount(train.labels, minlength=weights.size)
            weights = train.labels.size / np.maximum(counts, 1) / weights.size
        pack = partial(train.pack, weights=weights)
        return RowBatches(Buckets(train.lengths, c.buckets), c.batch_size, c.seed, lambda rows, w, _: pack(rows, w))

    @property
    def units_per_step(self) -> int:
        """Texts in a batch."""
        return self.config.batch_size

    @property
    def steps_of_time(self) -> int:
        """Tokens in a batch, about."""
        return max(1, round(self.config.batch_size * float(self._train.lengths.mean())))

    def model_options(self) -> dict[str, Any]:
        """What ``build`` of the model needs."""
        names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
        options = {name: getattr(self.config, name) for name in (*names, "token_dropout", "bidirectional", "pooling")}
        return {**self.sizes(self.codec), **options, "unknown": UNK}

    def resolved(self) -> dict[str, Any]:
        """What a run keeps of the data beside their identity: nothing."""
        return {}

    def identity(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.splits.identity

    def facts(self) -> dict[str, str]:
        """Lines for the reader: label and text."""
        train, val = self._train, self._val
        skipped = f", {self.splits.skipped:,} with an empty part skipped" if self.splits.skipped else ""
        cut = f", {train.cut:,} cut to {self.codec.max_length:,} tokens" if train.cut else ""
        unknown = sum(int((ids == UNK).sum()) for ids in val.ids) / max(1, int(val.lengths.sum()))
        counts = np.bincount(train.labels, minlength=len(self.codec.labels))
        most, least = int(counts.argmax()), int(counts.argmin())
        return {
            "data": f"{self.splits.train.name} (sha256 {self.identity()['sha256'][:12]})",
            "texts": f"{train.labels.size:,} to train on, {val.labels.size:,} to validate{skipped}{cut}",
            "labels": f"{len(self.codec.labels)}, from {counts[most]:,} texts of {self.codec.labels[most]!r} to "
            f"{counts[least]:,} of {self.codec.labels[least]!r}",
            "tokens": f"{self.config.level} level, vocabulary {self.codec.tokenizer.vocab_size:,}, "
            f"{train.lengths.mean():.0f} a text on average, {unknown:.1%} unknown in validation",
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """The validation rows, each once."""
        rows = max(self.config.batch_size, EVAL_ROWS)
        val = self._val
        buckets = Buckets(val.lengths, self.config.buckets)
        weights = np.ones(len(self.codec.labels))

        def batches() -> Any:
            return (val.pack(which, buckets.widths[k], weights) for k, which in in_batches(buckets, rows))

        return {"val": EvalSet(rows, batches)}

    def report(self, totals: Mapping[str, Any], final: bool = False) -> dict[str, Any]:
        """Accuracy, macro-F1 and calibration of each evaluation; at the end also per label, and what is confused."""
        row: dict[str, Any] = {}
        for name, sums in totals.items():
            figures = judged(np.asarray(sums.confusion), np.asarray(sums.calibration))
            row[f"{name}_loss"] = float(sums.nll) / float(sums.targets)
            row |= {f"{name}_{key}": figures[key] for key in ("accuracy", "macro_f1", "calibration_error")}
            if final:
                row[f"{name}_labels"] = dict(zip(self.codec.labels, figures["labels"]))
                row[f"{name}_confusion"] = np.asarray(sums.confusion).astype(int).tolist()
        return row

    def judge(self, model: Model, final: bool) -> dict[str, Any]:
        """Nothing: a pass over the rows says it all."""
        return {}

    def show(self, model: Model, final: bool) -> list[Shown]:
        """Some validation texts, what they are and what the model takes them for."""
        texts, labels = (part[:SHOWN] for part in self.splits.val.parts)
        lines = []
        for text, label, answer in zip(texts, labels, model.answer(texts)):
            given, sure = answer["label"], answer["probabilities"][answer["label"]]
            verdict = "right" if given == label else f"it is {label}"
            short = text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 2] + " …"
            lines.append(f"{short}\n    -> {given} ({sure:.0%}; {verdict})")
        return [Shown("some validation texts", "\n".join(lines))]

    def draw(self, model: Model, report: Mapping[str, Any], folder: Path) -> None:
        """``confusion.png``."""
        from jaxgen.store.confusion_plot import draw_confusion

        title = f"{folder.name}: {report['val_accuracy']:.1%} of {self._val.labels.size:,} texts are right"
        draw_confusion(np.array(report["val_confusion"]), self.codec.labels, folder / "confusion.png", title)

    def headline(self, row: Mapping[str, Any]) -> str:
        """The accuracy of an evaluation."""
        return f"accuracy {row['val_accuracy']:.1%}, macro-F1 {row['val_macro_f1']:.3f}"

    def summary(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        rows = [
            ("validation", f"accuracy {report['val_accuracy']:.2%}, macro-F1 {report['val_macro_f1']:.4f}"),
            ("", f"{report['val_loss']:.4f} nats/text, calibration error {report['val_calibration_error']:.4f}"),
        ]
        for label, each in report["val_labels"].items():
            figures = (f"{name} {each[name]:.3f}" for name in ("precision", "recall", "f1"))
            rows.append((label, f"{', '.join(figures)}, {each['texts']:,} texts"))
        return rows

    def next_command(self, run: str) -> str:
        """How to label texts with the run."""
        return f"echo 'a text' | jaxgen predict --run {shlex.quote(run)}"

    def bits_per_char(self, loss: float) -> None:
        """A label has no characters."""


@dataclass(frozen=True)
class _Encoded:
    """One split: the ids of its texts, their lengths [N, 1], their labels [N], and how many texts were cut."""

    ids: list[np.ndarray]
    lengths: np.ndarray
    labels: np.ndarray
    cut: int

    @classmethod
    def of(cls, parts: tuple[list[str], ...], codec: ClassifyCodec) -> _Encoded:
        examples = [codec.encode(text) for text in parts[0]]
        numbers = {label: i for i, label in enumerate(codec.labels)}
        ids = [example.ids for example in examples]
        lengths = np.array([each.size for each in ids])[:, None]
        labels = np.array([numbers[label] for label in parts[1]], np.int32)
        return cls(ids, lengths, labels, sum(example.cut > 0 for example in examples))

    def pack(self, rows: np.ndarray, widths: tuple[int, ...], weights: np.ndarray) -> Labelling:
        """The batch of these rows, each with the weight of its label."""
        there = rows != NONE
        ids = [self.ids[row] if row != NONE else self.ids[0][:0] for row in rows.tolist()]
        labels = np.where(there, self.labels[rows], 0).astype(np.int32)
        return Labelling(TokenRows(*padded(ids, widths[0], PAD)), labels, (there * weights[labels]).astype(np.float32))


def judged(confusion: np.ndarray, calibration: np.ndarray) -> dict[str, Any]:
    """The usual figures of a confusion matrix [C, C] (true, given) and of bins of confidence [N, 3].

    Macro-F1 is the mean over the labels that occur, be it as true or as given ones; a label's precision, recall and F1
    are 0 where they have no denominator. The calibration error is the mean over rows of the distance between
    confidence and accuracy of the row's bin (ECE; Guo et al., ICML 2017, equation 3).
    """
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = (right / np.maximum(each, 1) for each in (given, true))
    f1 = 2 * right / np.maximum(true + given, 1)
    occurs = (true + given) > 0
    rows, confidence, correct = calibration.T
    total = max(confusion.sum(), 1)
    labels = [
        {"precision": float(p), "recall": float(r), "f1": float(f), "texts": int(n)}
        for p, r, f, n in zip(precision, recall, f1, true)
    ]
    return {
        "accuracy": float(right.sum() / total),
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "calibration_error": float(np.abs(confidence - correct).sum() / max(rows.sum(), 1)),
        "labels": labels,
    }


__all__ = ["ClassifyCodec", "ClassifyConfig", "ClassifyData"]
