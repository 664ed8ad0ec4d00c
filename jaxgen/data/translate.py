"""The host side of translation: its options, its data, and what it reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import field_validator, model_validator

from jaxgen.data.parallel import PairSplits, read_pairs
from jaxgen.data.task import Metric, Model
from jaxgen.data.translate_codec import TranslateCodec
from jaxgen.data.watch import SILENT, Watch
from jaxgen.data.writing import SPACED, Examples, WritingData, encode_target
from jaxgen.data.writing_config import WritingConfig
from jaxgen.errors import DataError, UsageError
from jaxgen.store.config import Fraction, Positive, Size, TrainConfig
from jaxgen.text import TOKENIZERS, UNK
from jaxgen.text.overlap import ORDERS, bleu


class TranslateConfig(WritingConfig):
    """A text in, another text out: a translator."""

    task: ClassVar[str] = "translate"

    data: tuple[str, ...] = ("dates",)
    """What to read: built-in (dates), a named set (multi30k: English to German), two parallel files, the source first
    (.gz too), or a CSV, TSV or JSONL file with --source-column and --target-column."""
    test_data: tuple[str, ...] | None = None
    """Pairs that are translated at the end, read as the data are."""
    source_column: str | None = None
    """Column of a table that holds the source, by name or by position from 1."""
    target_column: str | None = None
    """Column of a table that holds the target, by name or by position from 1."""
    max_length: Size = 100
    """Tokens of a text at most: longer pairs are left out of training, longer sources are cut elsewhere."""
    bidirectional: bool = False
    """Read every source from both ends."""
    tie: bool = False
    """Use the target's embedding as the output matrix too (needs --embed equal to --hidden)."""
    scheduled_sampling: Fraction = 0.0
    """Probability with which training reads the model's own prediction, reached by --scheduled-sampling-steps."""
    scheduled_sampling_steps: Positive = 1000
    """Steps over which that probability rises from 0."""

    examples: ClassVar[tuple[str, ...]] = (
        "python train.py translate --data multi30k --preset sentences      English to German",
        "python train.py translate --data train.en train.de --val-data val.en val.de",
        "python train.py translate --data pairs.tsv --source-column 1 --target-column 2",
    )
    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "GRU 1x64 with attention, 300 steps: seconds, to see that everything works",
            {"cell": "gru", "hidden": 64, "layers": 1, "batch_size": 32, "steps": 300},
        ),
        "small": (
            "LSTM 1x128 with attention, 800 steps: the built-in dates in one to two minutes on 2 CPU cores",
            {
                "hidden": 128,
                "layers": 1,
                "embed": 32,
                "batch_size": 64,
                "bidirectional": True,
                "lr": 5e-3,
                "steps": 800,
            },
        ),
        "sentences": (
            "GRU 1x384 with attention on parts of words (extra [bpe]): real sentences, half an hour on 2 CPU cores",
            {
                "level": "bpe",
                "vocab_size": 5000,
                "cell": "gru",
                "hidden": 384,
                "layers": 1,
                "embed": 256,
                "batch_size": 64,
                "bidirectional": True,
                "dropout": 0.3,
                "embed_dropout": 0.2,
                "label_smoothing": 0.1,
                "lr": 2e-3,
                "steps": 4000,
            },
        ),
    }

    @field_validator("test_data", mode="before")
    @classmethod
    def _one_or_more_files(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _translation_fits(self) -> TranslateConfig:
        if self.tie and self.embed not in (None, self.hidden):
            raise ValueError(f"--tie needs --embed equal to --hidden, which are {self.embed} and {self.hidden}")
        if (self.source_column is None) != (self.target_column is None):
            raise ValueError("--source-column and --target-column go together: give both, or two parallel files")
        steps = self.scheduled_sampling_steps
        if not self.scheduled_sampling and steps != type(self).model_fields["scheduled_sampling_steps"].default:
            raise ValueError(
                f"--scheduled-sampling-steps {steps} has no meaning without a probability to reach: give "
                "--scheduled-sampling too, or leave it out"
            )
        return self


@dataclass(frozen=True)
class TranslateData(WritingData):
    """Pairs of texts with their batches and evaluations, as the trainer uses them."""

    config: TranslateConfig
    codec: TranslateCodec
    pairs: PairSplits

    Config: ClassVar[type[TrainConfig]] = TranslateConfig
    METRIC: ClassVar[Metric] = Metric("val_bleu", higher=True)
    UNIT: ClassVar[str] = "pairs"

    @staticmethod
    def read_codec(obj: Any) -> TranslateCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return TranslateCodec.from_json(obj)

    @staticmethod
    def sizes(codec: TranslateCodec) -> dict[str, int]:
        """The options of the model that follow from the codec."""
        return {"source_vocab": codec.source.vocab_size, "vocab_size": codec.target.vocab_size}

    @classmethod
    def load(cls, config: TranslateConfig, codec: TranslateCodec | None = None, watch: Watch = SILENT) -> TranslateData:
        """Read and split the pairs; a given ``codec`` (of a resumed run, or of ``--init-from``) is used as it is.

        Raises ``DataError`` for data that cannot be used, also when every pair is too long.
        """
        del watch  # all of it is read into memory, which is soon done
        pairs = read_pairs(
            config.data,
            config.val_data,
            config.test_data,
            source_column=config.source_column,
            target_column=config.target_column,
            empty=config.empty,
            val_fraction=config.val_fraction,
            val_rows=config.val_rows,
            seed=config.seed,
        )
        if codec is None:
            codec = _new_codec(config, pairs)
        else:
            _check_codec(config, codec)
            codec = replace(codec, max_length=config.max_length)
        data = cls(config, codec, pairs)
        if not data.splits["train"].raw or not data.splits["val"].raw:
            raise DataError(
                f"Every pair of {pairs.name} to train on or to validate with is longer than {config.max_length} "
                "tokens: give a larger --max-length."
            )
        return data

    @cached_property
    def splits(self) -> dict[str, Examples]:  # type: ignore[override]
        return {
            name: _encoded(rows.parts[0], rows.parts[1], self.codec, leave_out=name == "train")
            for name, rows in self.pairs.splits.items()
        }

    def own(self, step: int) -> float:
        """The probability that training reads the model's own prediction at this step."""
        return self.config.scheduled_sampling * min(1.0, step / self.config.scheduled_sampling_steps)

    def model_options(self) -> dict[str, Any]:
        """What ``build`` of the model needs."""
        names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
        more = ("token_dropout", "bidirectional", "attention", "tie", "label_smoothing")
        options = {name: getattr(self.config, name) for name in (*names, *more)}
        return {**self.sizes(self.codec), **options, "own": self.config.scheduled_sampling > 0}

    def identity(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.pairs.identity

    def facts(self) -> dict[str, str]:
        """Lines for the reader: label and text."""
        train, val = self.splits["train"], self.splits["val"]
        most, longer = self.config.max_length, len(self.pairs.splits["train"]) - len(train.raw)
        pairs = [f"{len(train.raw):,} to train on", f"{len(val.raw):,} to validate"]
        others = [
            f"{len(split.raw):,} of {name}" for name, split in self.splits.items() if name not in ("train", "val")
        ]
        pairs += [f"{', '.join(others)} to judge at the end"] if others else []
        pairs += [f"{self.pairs.skipped:,} with an empty side skipped"] if self.pairs.skipped else []
        pairs += [f"{longer:,} longer than {most:,} tokens left out of training"] if longer else []
        sizes = f"{self.codec.source.vocab_size:,} and {self.codec.target.vocab_size:,}"
        means = train.lengths.mean(axis=0) - (0, 1)
        unknown = [
            sum(int((ids == UNK).sum()) for ids in side) / max(1, sum(ids.size for ids in side))
            for side in (val.inputs, val.targets)
        ]
        return {
            "data": f"{self.pairs.name} (sha256 {self.identity()['sha256'][:12]})",
            "pairs": ", ".join(pairs),
            "tokens": f"{self.config.level} level, vocabularies of {sizes}, {means[0]:.0f} and {means[1]:.0f} a text "
            f"on average, {unknown[0]:.1%} and {unknown[1]:.1%} unknown in validation",
        }

    def figures(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU of words (at char and byte level of characters) and exact matches; at the end also sacrebleu's.

        Where a split has no text of four words, n-grams of all are as long as its longest: else its BLEU would be 0.
        """
        known = [[self._cut(each) for each in group] for group in references]
        row: dict[str, Any] = {
            "bleu": bleu([self._cut(text) for text in texts], known, self._orders).scores[-1],
            "exact": sum(text in group for text, group in zip(texts, references)) / len(texts),
        }
        return row | (published(texts, references) if final else {})

    @cached_property
    def _orders(self) -> int:
        return min(ORDERS, *(max(len(self._cut(text)) for text in split.texts) for split in self.splits.values()))

    def _cut(self, text: str) -> list[str]:
        return text.split() if self.config.level in SPACED else list(text)

    def draw(self, model: Model, report: Mapping[str, Any], folder: Path) -> None:
        """``attention.png``: where the decoder looks while it translates some validation sentences."""
        if self.config.attention == "none":
            return
        from jaxgen.store.attention_plot import draw_attention

        sources = self.splits["val"].raw[:2]
        draw_attention([model.attention(source) for source in sources], folder / "attention.png")

    def headline(self, row: Mapping[str, Any]) -> str:
        """The quality of translations in a few words."""
        return f"BLEU {row['val_bleu']:.1f}, {row['val_exact']:.1%} exactly right"

    def summary(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        rows, unit = [], "words" if self.config.level in SPACED else "characters"
        for name in self.splits:
            if f"{name}_bleu" not in report:
                continue
            about = {key.removeprefix(f"{name}_"): value for key, value in report.items() if key.startswith(f"{name}_")}
            line = f"{about['exact']:.2%} exactly right, tokens {about['token_accuracy']:.2%}, "
            line += f"{about['loss']:.4f} nats/token, BLEU of {unit} {about['bleu']:.2f}"
            rows.append(("validation" if name == "val" else name.replace("_", " "), line))
            if "sacrebleu" in about:
                rows.append(("", f"sacrebleu: BLEU {about['sacrebleu']:.2f}, chrF {about['chrf']:.2f}"))
        signature = report.get("val_signature")
        return [*rows, ("sacrebleu", str(signature))] if signature else rows

    def next_command(self, run: str) -> str:
        """How to translate with the run."""
        example = shlex.quote(self.splits["val"].raw[0])
        return f"echo {example} | jaxgen predict --run {shlex.quote(run)}"


def _new_codec(config: TranslateConfig, pairs: PairSplits) -> TranslateCodec:
    """Tokenizers of the two sides of the training split."""
    sources, targets = ([text.strip() for text in part] for part in pairs.splits["train"].parts)
    if config.lower:
        sources = [text.lower() for text in sources]
    kind, options = TOKENIZERS[config.level], config.tokenizer_options()
    before = " " if kind.kind in SPACED else ""
    made = [kind.train((before + text for text in texts), **options) for texts in (sources, targets)]
    return TranslateCodec(made[0], made[1], config.lower, config.max_length)


def _check_codec(config: TranslateConfig, codec: TranslateCodec) -> None:
    """Raise ``UsageError`` for settings of another vocabulary than that of the run to begin from."""
    if codec.target.kind != config.level:
        raise UsageError(
            f"--level is {config.level}, but the run to begin from reads tokens of the level {codec.target.kind}: "
            f"give --level {codec.target.kind}, or leave out --init-from."
        )
    if codec.lower != config.lower:
        reads, flag = ("in lower case", "--lowercase") if codec.lower else ("as they are", "--no-lowercase")
        raise UsageError(f"The run to begin from reads sources {reads}: give {flag}, or leave out --init-from.")


def _encoded(sources: list[str], texts: list[str], codec: TranslateCodec, leave_out: bool) -> Examples:
    """Pairs as ids; with ``leave_out`` without those of which a side is too long.

    Otherwise sources are cut, and of a target no more counts in the loss; texts are judged by all of it.
    """
    texts = [text.strip() for text in texts]
    inputs = [codec.source.encode(codec.normal(source)) for source in sources]
    targets = [encode_target(codec.target, text) for text in texts]
    most = codec.max_length
    keep = [i for i, (a, b) in enumerate(zip(inputs, targets)) if not leave_out or (a.size <= most and b.size < most)]
    inputs, targets = [inputs[i][:most] for i in keep], [targets[i] for i in keep]
    lengths = np.array([[a.size, min(b.size + 1, most)] for a, b in zip(inputs, targets)], np.int64).reshape(-1, 2)
    raw, kept = [sources[i] for i in keep], [texts[i] for i in keep]
    return Examples(inputs, raw, raw, kept, targets, lengths, [[i] for i in range(len(keep))])


def published(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """BLEU and chrF as sacrebleu counts them, with its signatures; nothing where it is not installed.

    Texts with fewer references than others repeat their last one, which changes neither figure.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        return {}
    most = max(map(len, references))
    columns = [[group[min(n, len(group) - 1)] for group in references] for n in range(most)]
    bleu_of_words, chrf = BLEU(force=True), CHRF()  # force: no warning of texts that look tokenized
    row = {
        "sacrebleu": float(bleu_of_words.corpus_score(list(texts), columns).score),
        "chrf": float(chrf.corpus_score(list(texts), columns).score),
    }
    return row | {"signature": f"BLEU {bleu_of_words.get_signature()}; chrF {chrf.get_signature()}"}


__all__ = ["TranslateCodec", "TranslateConfig", "TranslateData"]
