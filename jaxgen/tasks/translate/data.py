"""The data of translation: pairs of texts, their batches and evaluations, and reports."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt, field_validator, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.bucketing import bucket_width, pad_rows
from jaxgen.data.datasets import NAMED, fetch
from jaxgen.data.files import SILENT, FilesDigest, FileText, ProgressReporter, find_paths, whole_lines
from jaxgen.data.tables import (
    Column,
    Pairs,
    Table,
    digest,
    fingerprint,
    hold_out,
    read_table,
    table_kind,
    without_empty,
)
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import STRICT, load_strict
from jaxgen.metrics import ORDERS, bleu
from jaxgen.runs.config import Fraction, Positive, Size, TrainConfig
from jaxgen.tasks.base import Inference, Metric, Seq2SeqConfig, check_same_level
from jaxgen.tasks.seq2seq.data import (
    SPACED_LEVELS,
    Examples,
    Seq2SeqData,
    decode_target,
    encode_target,
    spaced,
    token_label,
)
from jaxgen.tasks.translate.dates import dates
from jaxgen.tokenizers import TOKENIZERS, SavedTokenizer
from jaxgen.tokenizers.base import EOS, PAD, UNK
from jaxgen.types import AttentionMap, TokenRows


class TranslateConfig(Seq2SeqConfig):
    """A text in, another text out: a translator."""

    task: ClassVar[str] = "translate"

    data: tuple[str, ...] = ("dates",)
    """Built-in set (dates), named set (multi30k: English to German), two parallel files, the source first (.gz too), or
    a CSV, TSV or JSONL file with --source-column and --target-column."""
    test_data: tuple[str, ...] | None = None
    """Test pairs, translated at the end of the run; read like --data."""
    source_column: str | None = None
    """Column with the source, by name or by position from 1."""
    target_column: str | None = None
    """Column with the target, by name or by position from 1."""
    max_length: Size = 100
    """Longest text in tokens: longer pairs are left out of training, and longer sources are cut in evaluation."""
    bidirectional: bool = False
    """Read every source in both directions."""
    tie: bool = False
    """Use the target's embedding as the output matrix too (needs --embed equal to --hidden)."""
    scheduled_sampling: Fraction = 0.0
    """Probability that the decoder reads its own prediction in training, reached after --scheduled-sampling-steps."""
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
    def _one_or_more_files(cls, value: object) -> object:
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
                f"--scheduled-sampling-steps {steps} has no effect without --scheduled-sampling: give both, or neither"
            )
        return self


@checked_dataclass(frozen=True, config=STRICT)
class TranslateCodec:
    """Two tokenizers; sources are cut to ``max_length`` tokens, and converted to lower case if ``lower``."""

    source: SavedTokenizer
    target: SavedTokenizer
    lower: bool
    max_length: PositiveInt

    #: Whether inputs are files, not lines of text.
    FILES: ClassVar[bool] = False

    def normalize(self, text: str) -> str:
        """Returns a source as its tokenizer expects it."""
        text = text.strip().lower() if self.lower else text.strip()
        return " " + text if spaced(self.source) else text

    @property
    def longest(self) -> int:
        """Default limit of the tokens of a translation: the model was trained on none that are longer."""
        return self.max_length

    def encode(self, text: str) -> np.ndarray:
        """Encodes a source; unknown tokens become <unk>."""
        return self.source.encode(self.normalize(text))[: self.max_length]

    def widths(self, ids: np.ndarray) -> tuple[int, ...]:
        """Returns the lengths to which a source is padded."""
        return (bucket_width(ids.size),)

    def pack(self, examples: Sequence[np.ndarray], widths: tuple[int, ...], rows: int) -> TokenRows:
        """Returns encoded sources as model inputs, padded to ``rows`` rows."""
        empty = np.zeros(0, np.int32)
        return TokenRows(*pad_rows([*examples, *[empty] * (rows - len(examples))], widths[0], PAD))

    def answer(self, text: str, output: Any) -> dict[str, Any]:
        """Returns a translation with its log-probability in nats, its number of tokens, and whether it ended.

        ``cut`` is how many tokens of the source were cut off. The translation of white space is empty.
        """
        if not text.strip():
            return {"source": text, "text": "", "logp": 0.0, "tokens": 0, "ended": True, "cut": 0}
        return {
            "source": text,
            "text": decode_target(self.target, output.tokens),
            "logp": round(float(output.logp), 6),
            "tokens": int(output.tokens.size),
            "ended": bool(output.ended),
            "cut": max(0, self.source.encode(self.normalize(text)).size - self.max_length),
        }

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line; line breaks become spaces."""
        return " ".join(str(answer["text"]).splitlines())

    def pieces(self, text: str) -> list[str]:
        """Returns labels of the tokens of a source, for plots of attention."""
        return [token_label(self.source, i) for i in self.encode(text)]

    def written(self, ids: np.ndarray) -> list[str]:
        """Returns labels of the tokens of a translation and of its end."""
        return [token_label(self.target, i) for i in [*ids, EOS]]

    def attention_map(self, text: str, output: Any, weights: np.ndarray) -> AttentionMap:
        """Where the decoder looked with each token of a translation, ``weights`` [.., S]: at tokens of the source."""
        labels = self.pieces(text)
        written = self.written(output.tokens)[: output.tokens.size + output.ended]
        return AttentionMap(labels, written, weights[: len(written), : len(labels)])

    def to_json(self) -> dict[str, object]:
        """Returns what ``load_strict`` makes this codec of."""
        return {
            "lower": self.lower,
            "max_length": self.max_length,
            "source": self.source.to_json(),
            "target": self.target.to_json(),
        }


@dataclass(frozen=True)
class PairSplits:
    """Pairs of texts by split: ``train``, ``val``, and others that are evaluated at the end of a run."""

    splits: dict[str, Table]
    name: str
    sha256: str
    skipped: int

    @property
    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return fingerprint(self.name, self.sha256)


#: Built-in sets by name: functions from a seed to splits.
PAIR_SETS: dict[str, Callable[[int], dict[str, Pairs]]] = {"dates": dates}


def read_pairs(
    data: Sequence[str],
    val_data: Sequence[str] | None = None,
    test_data: Sequence[str] | None = None,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    empty: Literal["skip", "refuse"] = "skip",
    val_fraction: float | None = None,
    val_rows: int | None = None,
    seed: int = 0,
) -> PairSplits:
    """Reads and splits pairs. Each of ``data``, ``val_data`` and ``test_data`` names two parallel files or a table.

    Named sets may have their own validation and test pairs, which ``val_data`` and ``test_data`` replace. Without
    validation pairs, some training pairs are held out at random. The arguments are the settings of ``TranslateConfig``.

    Raises:
        DataError: The data cannot be used.
        UsageError: A setting has no effect with these data.
    """
    columns = source_column, target_column
    read = _set(data, columns, seed) or {"train": _read(data, columns)}
    digests = {split: rows.sha256 for split, rows in read.items()}
    if len({*digests.values()}) == 1:  # a built-in set has one digest of all splits
        digests = {"train": digests["train"]}
    if "val" in read:
        _refuse(read["train"].name, {"--val-rows": val_rows, "--val-fraction": val_fraction})
    for split, specs in {"val": val_data, "test": test_data}.items():
        if specs is not None:
            known = _set(specs, columns, seed)
            read[split] = known.get(split, known["train"]) if known else _read(specs, columns)
            digests[split] = read[split].sha256
    full = {split: without_empty(rows, empty) for split, rows in read.items()}
    sha256 = digests["train"]
    if len(digests) > 1:  # the digest includes which pairs belong to which split
        sha256 = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    skipped = sum(rows.skipped for rows in full.values())
    if "val" not in full:
        rows = full["train"]
        full["train"], full["val"] = hold_out(rows, rows.name, seed, val_rows=val_rows, val_fraction=val_fraction)
    order = ["train", "val", *(split for split in full if split not in ("train", "val"))]
    return PairSplits({split: full[split] for split in order}, full["train"].name, sha256, skipped)


def _set(data: Sequence[str], columns: tuple[str | None, str | None], seed: int) -> dict[str, Table]:
    """Returns all splits of a built-in or named set of pairs, and an empty dictionary for other data."""
    name = data[0] if len(data) == 1 else ""
    named = NAMED[name].pairs if name in NAMED else ()
    if name in PAIR_SETS or named:
        _refuse(name, dict(zip(("--source-column", "--target-column"), columns)))
    if name in PAIR_SETS:
        made = PAIR_SETS[name](seed)
        sha256 = digest(made)
        return {
            split: Table((a, b), [f"pair {n} of {split}" for n in range(1, len(a) + 1)], name, sha256)
            for split, (a, b) in made.items()
        }
    return {split: _parallel(fetch(source), fetch(target), name) for split, source, target in named}


def _refuse(name: str, settings: dict[str, object]) -> None:
    """Raises ``UsageError`` if one of these settings was given: the set ``name`` has its own."""
    given = [flag for flag, value in settings.items() if value is not None]
    if given:
        what = "validation pairs" if given[0].startswith("--val") else "sources and targets"
        raise UsageError(f"{given[0]} was given, but {name} has its own {what}: leave it out.")


def _read(specs: Sequence[str], columns: tuple[str | None, str | None]) -> Table:
    source, target = columns
    if source is not None and target is not None:
        return read_table(specs, (Column((source,), "--source-column"), Column((target,), "--target-column")))
    sets = [*PAIR_SETS, *(name for name, known in NAMED.items() if known.pairs)]
    found = [find_paths(spec, sets) for spec in specs]
    paths = [path for files in found for path in files]
    if [len(files) for files in found] == [1, 1] and not any(map(table_kind, paths)):
        return _parallel(paths[0], paths[1], " + ".join(specs))
    number = len(paths)
    what = "a table" if any(map(table_kind, paths)) else "one file" if number == 1 else f"{number:,} files"
    raise UsageError(
        f"Pairs cannot be read from {' '.join(specs)}, {what}: give two parallel files, the source first, or a table "
        f"with --source-column and --target-column, by name or by position from 1, or one of: {', '.join(sets)}."
    )


def _parallel(source: Path, target: Path, name: str) -> Table:
    """Reads two parallel files (``.gz`` or not): line n of one belongs to line n of the other."""
    texts = [FileText(path) for path in (source, target)]
    sides = [_lines(text) for text in texts]
    if len(sides[0]) != len(sides[1]):
        longer, shorter = (source, target) if len(sides[0]) > len(sides[1]) else (target, source)
        last = min(map(len, sides))
        raise DataError(
            f"{source} has {len(sides[0]):,} lines and {target} has {len(sides[1]):,}: line {last + 1:,} of {longer} "
            f"has no counterpart in {shorter}. Give two files of equal length, where line n of one belongs to line n "
            "of the other."
        )
    locations = [f"line {n} of {source} or of {target}" for n in range(1, len(sides[0]) + 1)]
    return Table((sides[0], sides[1]), locations, name, FilesDigest(text.sha256 for text in texts).hexdigest())


def _lines(text: FileText) -> list[str]:
    """Returns the lines of a text; an empty one after the last line break does not count."""
    lines = list(whole_lines(text))
    lines[0] = lines[0].removeprefix("\ufeff")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


@dataclass(frozen=True)
class TranslateData(Seq2SeqData):
    """``TaskData`` of pairs of texts."""

    config: TranslateConfig
    codec: TranslateCodec
    pairs: PairSplits

    Config: ClassVar[type[TrainConfig]] = TranslateConfig
    METRIC: ClassVar[Metric] = Metric("val_bleu", higher_is_better=True)
    UNIT: ClassVar[str] = "pairs"

    @staticmethod
    def read_codec(obj: object) -> TranslateCodec:
        """The codec that ``to_json`` described; raises ``CheckpointError``."""
        return load_strict(TranslateCodec, obj, "translate tokenizer.json")

    @staticmethod
    def vocab_sizes(codec: TranslateCodec) -> dict[str, int]:
        """The options of the model that follow from the codec."""
        return {"source_vocab": codec.source.vocab_size, "vocab_size": codec.target.vocab_size}

    @classmethod
    def load(
        cls, config: TranslateConfig, codec: TranslateCodec | None = None, watch: ProgressReporter = SILENT
    ) -> TranslateData:
        """As ``TaskData.load``; also raises ``DataError`` if every pair is too long."""
        del watch  # the data fit into memory and are read quickly
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
            name: _encoded(rows.columns[0], rows.columns[1], self.codec, leave_out=name == "train")
            for name, rows in self.pairs.splits.items()
        }

    def scheduled_sampling_prob(self, step: int) -> float:
        """The probability of scheduled sampling at this step."""
        return self.config.scheduled_sampling * min(1.0, step / self.config.scheduled_sampling_steps)

    def model_options(self) -> dict[str, Any]:
        """The arguments of ``TranslateTask.build``."""
        names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "precision")
        more = ("token_dropout", "bidirectional", "attention", "tie", "label_smoothing")
        options = {name: getattr(self.config, name) for name in (*names, *more)}
        return {**self.vocab_sizes(self.codec), **options, "use_scheduled_sampling": self.config.scheduled_sampling > 0}

    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return self.pairs.fingerprint

    def summary(self) -> dict[str, str]:
        """The data, their pairs and tokens in numbers."""
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
            "data": f"{self.pairs.name} (sha256 {self.fingerprint()['sha256'][:12]})",
            "pairs": ", ".join(pairs),
            "tokens": f"{self.config.level} level, vocabularies of {sizes}, {means[0]:.0f} and {means[1]:.0f} a text "
            f"on average, {unknown[0]:.1%} and {unknown[1]:.1%} unknown in validation",
        }

    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU of words (at char and byte level: of characters) and exact matches; at the end also those of sacrebleu.

        If a split has no text of four words, shorter n-grams are used: otherwise its BLEU would always be 0.
        """
        known = [[self._units(each) for each in group] for group in references]
        row: dict[str, Any] = {
            "bleu": bleu([self._units(text) for text in texts], known, self._orders).scores[-1],
            "exact": sum(text in group for text, group in zip(texts, references)) / len(texts),
        }
        return row | (sacrebleu_scores(texts, references) if final else {})

    @cached_property
    def _orders(self) -> int:
        return min(ORDERS, *(max(len(self._units(text)) for text in split.texts) for split in self.splits.values()))

    def _units(self, text: str) -> list[str]:
        return text.split() if self.config.level in SPACED_LEVELS else list(text)

    def save_plots(self, inference: Inference, report: Mapping[str, Any], folder: Path) -> None:
        """Saves ``attention.png``: the attention weights for some validation sentences."""
        if self.config.attention == "none":
            return
        from jaxgen.plots import draw_attention

        sources = self.splits["val"].raw[:2]
        draw_attention([inference.attention(source) for source in sources], folder / "attention.png")

    def headline(self, row: Mapping[str, Any]) -> str:
        """BLEU and exact matches of an evaluation."""
        return f"BLEU {row['val_bleu']:.1f}, {row['val_exact']:.1%} exactly right"

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The final evaluation as labelled lines."""
        rows, unit = [], "words" if self.config.level in SPACED_LEVELS else "characters"
        for name in self.splits:
            if f"{name}_bleu" not in report:
                continue
            metrics = {
                key.removeprefix(f"{name}_"): value for key, value in report.items() if key.startswith(f"{name}_")
            }
            line = f"{metrics['exact']:.2%} exactly right, tokens {metrics['token_accuracy']:.2%}, "
            line += f"{metrics['loss']:.4f} nats/token, BLEU of {unit} {metrics['bleu']:.2f}"
            rows.append(("validation" if name == "val" else name.replace("_", " "), line))
            if "sacrebleu" in metrics:
                rows.append(("", f"sacrebleu: BLEU {metrics['sacrebleu']:.2f}, chrF {metrics['chrf']:.2f}"))
        signature = report.get("val_signature")
        return [*rows, ("sacrebleu", str(signature))] if signature else rows

    def next_command(self, run: str) -> str:
        """How to translate a text with the run."""
        example = shlex.quote(self.splits["val"].raw[0])
        return f"echo {example} | jaxgen predict --run {shlex.quote(run)}"


def _new_codec(config: TranslateConfig, pairs: PairSplits) -> TranslateCodec:
    """Trains the tokenizers of both sides of the training split."""
    sources, targets = ([text.strip() for text in part] for part in pairs.splits["train"].columns)
    if config.lower:
        sources = [text.lower() for text in sources]
    kind, options = TOKENIZERS[config.level], config.tokenizer_options()
    before = " " if kind.kind in SPACED_LEVELS else ""
    made = [kind.train((before + text for text in texts), **options) for texts in (sources, targets)]
    return TranslateCodec(made[0], made[1], config.lower, config.max_length)


def _check_codec(config: TranslateConfig, codec: TranslateCodec) -> None:
    """Raises ``UsageError`` if the settings do not fit the vocabulary of the run to initialise from."""
    check_same_level(config.level, codec.target)
    if codec.lower != config.lower:
        found, flag = ("in lower case", "--lowercase") if codec.lower else ("unchanged", "--no-lowercase")
        raise UsageError(f"The run of --init-from reads sources {found}: give {flag}, or leave out --init-from.")


def _encoded(sources: list[str], texts: list[str], codec: TranslateCodec, leave_out: bool) -> Examples:
    """Encodes pairs. With ``leave_out``, drops those with a side that is too long.

    Otherwise cuts long sources, and counts only the beginning of long targets in the loss; metrics use whole targets.
    """
    texts = [text.strip() for text in texts]
    inputs = [codec.source.encode(codec.normalize(source)) for source in sources]
    targets = [encode_target(codec.target, text) for text in texts]
    most = codec.max_length
    keep = [i for i, (a, b) in enumerate(zip(inputs, targets)) if not leave_out or (a.size <= most and b.size < most)]
    inputs, targets = [inputs[i][:most] for i in keep], [targets[i] for i in keep]
    lengths = np.array([[a.size, min(b.size + 1, most)] for a, b in zip(inputs, targets)], np.int64).reshape(-1, 2)
    raw, kept = [sources[i] for i in keep], [texts[i] for i in keep]
    return Examples(inputs, raw, raw, kept, targets, lengths, [[i] for i in range(len(keep))])


def sacrebleu_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns BLEU and chrF of sacrebleu with its signatures, or an empty dictionary if it is not installed.

    Texts with fewer references than others repeat their last one, which changes neither metric.
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
