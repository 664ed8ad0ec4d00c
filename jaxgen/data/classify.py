"""The host side of classification: its options, its data, and what it reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.buckets import NONE, Buckets, RowBatches, in_batches, padded
from jaxgen.data.classify_codec import ClassifyCodec, normal
from jaxgen.data.classify_config import ClassifyConfig
from jaxgen.data.judging import confusion_lines, confusion_text, judged
from jaxgen.data.labelled import LabelledSplits, read_labelled
from jaxgen.data.task import EvalSet, Metric, Model, Shown
from jaxgen.data.watch import SILENT, Watch
from jaxgen.errors import DataError, UsageError
from jaxgen.store.config import TrainConfig
from jaxgen.store.files import replace_file
from jaxgen.text import PAD, TOKENIZERS, UNK
from jaxgen.types import Labelling
from jaxgen.types import Sequence as TokenRows

#: Rows of an evaluation batch at least.
EVAL_ROWS = 32
#: Validation texts that a run shows with what it takes them for.
SHOWN, SHOWN_LENGTH = 3, 300
#: Of the embedding's initial values, by level; 1 at others. Where many tokens are rare, larger ones are random numbers
#: that a text is known by: on 6,600 news 83.5 % with 1 on words, 88 % with 0.1.
EMBED_STDDEV = {"bpe": 0.1, "word": 0.1}


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
    def load(cls, config: ClassifyConfig, codec: ClassifyCodec | None = None, watch: Watch = SILENT) -> ClassifyData:
        """Read and split the rows; a given ``codec`` (of a resumed run, or of ``--init-from``) is used as it is.

        Raises ``DataError`` for data that cannot be used, also for labels that the codec does not know.
        """
        del watch  # all of it is read into memory, which is soon done
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
            texts = (normal(text, config.lower, config.level) for text in splits.train.parts[0])
            tokenizer = TOKENIZERS[config.level].train(texts, **config.tokenizer_options())
            codec = ClassifyCodec(tokenizer, splits.labels, config.lower, config.max_length)
        elif codec.tokenizer.kind != config.level:
            raise UsageError(
                f"--level is {config.level}, but the run to begin from reads tokens of the level "
                f"{codec.tokenizer.kind}: give --level {codec.tokenizer.kind}, or leave out --init-from."
            )
        elif unknown := sorted({*splits.labels} - {*codec.labels}):
            raise DataError(
                f"The data {splits.train.name} have the label {unknown[0]!r}, which the run to begin from does not "
                f"know: its labels are {', '.join(map(repr, codec.labels))}. Leave out --init-from."
            )
        else:  # how texts are read, and how far, may change from run to run; ids and labels may not
            codec = replace(codec, lower=config.lower, max_length=config.max_length)
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
        stddev = EMBED_STDDEV.get(self.config.level, 1.0)
        return {**self.sizes(self.codec), **options, "embed_stddev": stddev, "unknown": UNK}

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
        """``confusion.png`` and ``confusion.txt``."""
        from jaxgen.store.confusion_plot import draw_confusion

        confusion, labels = np.array(report["val_confusion"]), self.codec.labels
        title = f"{folder.name}: {report['val_accuracy']:.1%} of {self._val.labels.size:,} texts are right"
        draw_confusion(confusion, labels, folder / "confusion.png", title)
        replace_file(folder / "confusion.txt", confusion_text(confusion, labels).encode("utf-8", "replace"))

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
        return rows + confusion_lines(np.array(report["val_confusion"]), self.codec.labels)

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


__all__ = ["ClassifyCodec", "ClassifyConfig", "ClassifyData"]
