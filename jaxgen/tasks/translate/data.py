"""The data of translation: pairs of texts, their batches and evaluations, and reports."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from jaxgen.data.datasets import NAMED, fetch
from jaxgen.data.files import NO_PROGRESS, FilesDigest, FileText, ProgressReporter, file_identity, find_paths
from jaxgen.data.in_memory import data_name
from jaxgen.data.tables import (
    HEADERS,
    Column,
    Pairs,
    Table,
    read_first_row,
    read_table,
    shared_files_notes,
    shown_first_row,
    table_kind,
    without_empty,
)
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import STRICT
from jaxgen.metrics import ORDERS, bleu
from jaxgen.plots import AttentionMap
from jaxgen.runs.config import Fraction, Names, Positive, Size, TrainConfig
from jaxgen.runs.groups import Group
from jaxgen.tasks.base import (
    Metric,
    changed_flags,
    check_header,
    check_same_level,
    check_tie,
    echo_command,
    shell_command,
)
from jaxgen.tasks.rows import (
    SPACED_LEVELS,
    RowSplits,
    TextReader,
    builtin_tables,
    refuse_flags,
    skipped_notes,
    train_and_val,
    train_tokenizer,
    unknown_share,
)
from jaxgen.tasks.seq2seq.data import Examples, Seq2SeqConfig, Seq2SeqData, TextWriter, token_label
from jaxgen.tasks.translate.dates import dates
from jaxgen.tasks.translate.objective import TranslateTask
from jaxgen.text import whole_lines
from jaxgen.tokenizers import SavedTokenizer
from jaxgen.tokenizers.base import Tokenizer

_DATES = {"hidden": 128, "layers": 1, "embed": 32, "batch_size": 64, "bidirectional": True, "lr": 5e-3, "steps": 800}
_SENTENCES = {"level": "bpe", "vocab_size": 5000, "cell": "gru", "hidden": 384, "layers": 1, "embed": 256}
_SENTENCES |= {"batch_size": 64, "bidirectional": True, "dropout": 0.3, "embed_dropout": 0.2, "label_smoothing": 0.1}
_SENTENCES |= {"lr": 2e-3, "steps": 4000}


class TranslateConfig(Seq2SeqConfig):
    """A text in, another text out: a translator.

    Example:
        >>> jaxgen.TranslateConfig(data="dates", preset="tiny", hidden=64).hidden
        64
    """

    task: ClassVar[str] = "translate"

    common: ClassVar[tuple[str, ...]] = (
        *("data", "val_data", "test_data", "source_column", "target_column", "level", "preset", "hidden", "steps"),
        *("minutes", "run", "resume"),
    )

    in_data: ClassVar[Group] = Group("Data")
    data: Names = ("dates",)
    """Built-in set (dates), named set (multi30k: English to German), two parallel files or URLs, the source first (.gz
    too), or a CSV, TSV or JSONL table with --source-column and --target-column."""
    test_data: Names | None = None
    """Test pairs, translated at the end of the run; read like --data."""
    source_column: str | None = None
    """Column with the source, by name or by position from 1."""
    target_column: str | None = None
    """Column with the target, by name or by position from 1."""
    max_length: Size = 100
    """Longest text in tokens: longer pairs are left out of training, and longer sources are cut in evaluation."""

    in_model: ClassVar[Group] = Group("Model")
    bidirectional: bool = False
    """Read every source in both directions."""
    tie: bool = False
    """Use the target's embedding as the output matrix too; with --embed unlike --hidden, behind a projection."""

    in_training: ClassVar[Group] = Group("Training")
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
            _DATES,
        ),
        "sentences": (
            "GRU 1x384 with attention on parts of words (extra [bpe]): real sentences, half an hour on 2 CPU cores",
            _SENTENCES,
        ),
    }

    built_from: ClassVar[tuple[str, ...]] = (
        *Seq2SeqConfig.built_from,
        *("bidirectional", "attention", "tie", "label_smoothing"),
    )

    @property
    def input_columns(self) -> tuple[str, ...] | None:
        return None if self.source_column is None else (self.source_column,)

    @model_validator(mode="after")
    def _translation_fits(self) -> TranslateConfig:
        check_tie(self)
        if (self.source_column is None) != (self.target_column is None):
            raise ValueError("--source-column and --target-column go together: give both, or two parallel files")
        check_header(self, "source_column")
        if not self.scheduled_sampling and changed_flags(self, ["scheduled_sampling_steps"]):
            raise ValueError("--scheduled-sampling-steps has no effect without --scheduled-sampling: give both or none")
        return self


@checked_dataclass(frozen=True, config=STRICT)
class TranslateCodec(TextReader, TextWriter):
    """Two tokenizers; sources are cut to ``max_length`` tokens, and converted to lower case if ``lower``."""

    source: SavedTokenizer
    target: SavedTokenizer
    lower: bool
    max_length: PositiveInt

    @property
    def input_tokenizer(self) -> Tokenizer:
        return self.source

    @property
    def output_tokenizer(self) -> Tokenizer:
        return self.target

    def answer(self, text: str, output: Any) -> dict[str, Any]:
        """Returns a translation as ``written_text`` does; ``cut`` is how many tokens of the source were cut off.

        The translation of white space is empty.
        """
        if not text.strip():
            return {"source": text, "text": "", "logp": 0.0, "tokens": 0, "ended": True, "cut": 0}
        return {"source": text, **self.written_text(output), "cut": self.count_cut(text)}

    def line(self, answer: Mapping[str, Any]) -> str:
        """Returns an answer as one line; line breaks become spaces."""
        return " ".join(whole_lines(str(answer["text"])))

    def attention_map(self, text: str, output: Any, weights: np.ndarray) -> AttentionMap:
        """Returns attention ``weights`` [.., S], labelled with the tokens of the translation and of the source."""
        labels = [token_label(self.source, i) for i in self.encode(text)]
        written = self.written(output.tokens)[: output.tokens.size + output.ended]
        texts = (("source", text), ("output", self.written_text(output)["text"]))
        return AttentionMap(labels, written, weights[: len(written), : len(labels)], texts=texts)

    def to_json(self) -> dict[str, object]:
        """Returns the JSON values that ``load_strict`` reads."""
        source, target = self.source.to_json(), self.target.to_json()
        return {"lower": self.lower, "max_length": self.max_length, "source": source, "target": target}


#: Built-in sets by name: functions from a seed to splits.
PAIR_SETS: dict[str, Callable[[int], dict[str, Pairs]]] = {"dates": dates}


def read_pairs(config: TranslateConfig, watch: ProgressReporter = NO_PROGRESS) -> RowSplits[Table]:
    """Reads and splits pairs: ``data``, ``val_data`` and ``test_data`` each name two parallel files, a table or a set.

    Sets may have their own validation and test pairs, which ``val_data`` and ``test_data`` replace. Without validation
    pairs, some training pairs are held out at random.

    Raises:
        DataError: The data cannot be used.
        UsageError: A setting has no effect with these data.
    """
    read = _read_set(config.data, config) or {"train": _read(config.data, config, watch)}
    name, digests = read["train"].name, {split: rows.sha256 for split, rows in read.items()}
    if len({*digests.values()}) == 1:  # a built-in set has one digest of all splits
        digests = {"train": digests["train"]}
    if "val" in read:
        refuse_flags(config, ("val_rows", "val_fraction"), name)
    repeated: list[str] = []
    for split, specs in {"val": config.val_data, "test": config.test_data}.items():
        if specs is not None:
            known = _read_set(specs, config)
            read[split] = known.get(split, known["train"]) if known else _read(specs, config, watch)
            digests[split] = read[split].sha256
            if not known:
                about = {"val": "validation"}.get(split, split)
                repeated += shared_files_notes(read["train"].files, read[split].files, about)
    sha256 = digests["train"]
    if len(digests) > 1:  # the digest includes which pairs belong to which split
        sha256 = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    full = {split: without_empty(rows, config.empty) for split, rows in read.items()}
    notes = skipped_notes(full.values()) + repeated
    if "val" not in full:
        full |= train_and_val(full["train"], None, config)[0]
    order = ["train", "val", *(split for split in full if split not in ("train", "val"))]
    first_rows = [row for rows in read.values() for row in rows.first_rows]
    return RowSplits({split: full[split] for split in order}, name, sha256, notes, first_rows)


def _read_set(data: Sequence[str], config: TranslateConfig) -> dict[str, Table]:
    """Returns all splits of a built-in or named set of pairs, and an empty dictionary for other data."""
    name = data[0] if len(data) == 1 else ""
    named = NAMED[name].pairs if name in NAMED else ()
    if name in PAIR_SETS or named:
        refuse_flags(config, ("source_column", "target_column", "header"), name)
    if name in PAIR_SETS:
        return builtin_tables(name, PAIR_SETS[name](config.seed))
    return {split: _parallel(fetch(source), fetch(target), name) for split, source, target in named}


def _read(specs: Sequence[str], config: TranslateConfig, watch: ProgressReporter) -> Table:
    """Reads a table, or two parallel files."""
    source, target = config.source_column, config.target_column
    if source is not None and target is not None:
        columns = Column((source,), "--source-column"), Column((target,), "--target-column")
        return read_table(specs, columns, HEADERS[config.header], watch)
    sets = [*PAIR_SETS, *(name for name, known in NAMED.items() if known.pairs)]
    found = [find_paths(spec, sets, watch) for spec in specs]
    paths = [path for files in found for path in files]
    if [len(files) for files in found] == [1, 1] and not any(map(table_kind, paths)):
        if file_identity(paths[0]) == file_identity(paths[1]):
            watch.note(f"{paths[0]} is both the source and the target: the model learns to copy.")
        return _parallel(paths[0], paths[1], " + ".join(specs))
    number = len(paths)
    what = "a table" if any(map(table_kind, paths)) else "one file" if number == 1 else f"{number:,} files"
    raise UsageError(
        f"Pairs cannot be read from {data_name(specs)}, {what}: give two parallel files, the source first, or a table "
        f"with --source-column and --target-column, by name or by position from 1, or one of: {', '.join(sets)}."
        f"{shown_first_row(read_first_row(specs))}"
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
    digests = tuple(text.sha256 for text in texts)
    return Table((sides[0], sides[1]), locations, name, FilesDigest(digests).hexdigest(), files=digests)


def _lines(text: FileText) -> list[str]:
    """Returns the lines of a text; an empty one after the last line break does not count."""
    lines = list(whole_lines(text))
    return lines if lines[-1] else lines[:-1]


class TranslateData(Seq2SeqData):
    """``TaskData`` of pairs of texts."""

    Config: ClassVar[type[TrainConfig]] = TranslateConfig
    Objective: ClassVar[Any] = TranslateTask
    Codec: ClassVar[type[TranslateCodec]] = TranslateCodec
    METRIC: ClassVar[Metric] = Metric("val_bleu", higher_is_better=True, label="BLEU (of 100)", most=100)
    UNIT: ClassVar[str] = "pairs"

    read = staticmethod(read_pairs)

    @staticmethod
    def new_codec(config: TranslateConfig, raw: RowSplits[Table]) -> TranslateCodec:
        sources, targets = raw.train.columns
        source = train_tokenizer(config, sources, config.lower)
        return TranslateCodec(source, train_tokenizer(config, targets, False), config.lower, config.max_length)

    @staticmethod
    def reuse_codec(codec: TranslateCodec, config: TranslateConfig, raw: RowSplits[Table]) -> TranslateCodec:
        check_same_level(config.level, codec.target)
        if codec.lower != config.lower:
            found, flag = ("in lower case", "--lowercase") if codec.lower else ("unchanged", "--no-lowercase")
            raise UsageError(f"The run of --init-from reads sources {found}: give {flag}, or leave out --init-from.")
        return replace(codec, max_length=config.max_length)

    @staticmethod
    def vocab_sizes(codec: TranslateCodec) -> dict[str, int]:
        return {"source_vocab": codec.source.vocab_size, "vocab_size": codec.target.vocab_size}

    def encoded(self, rows: Table, leave_out: bool) -> Examples:
        """Encodes pairs. With ``leave_out``, drops those with a side that is too long.

        Otherwise cuts long sources, and counts only the beginning of long targets in the loss; metrics use whole
        targets.
        """
        codec, most = self.codec, self.codec.max_length
        encoded = [(codec.encode_whole(source), codec.encode_target(target)) for source, target in zip(*rows.columns)]
        keep = [i for i, (a, b) in enumerate(encoded) if not leave_out or (a.size <= most and b.size < most)]
        inputs, targets = [encoded[i][0][:most] for i in keep], [encoded[i][1] for i in keep]
        lengths = np.array([[a.size, min(b.size + 1, most)] for a, b in zip(inputs, targets)], np.int64).reshape(-1, 2)
        sources, texts = [rows.columns[0][i] for i in keep], [rows.columns[1][i].strip() for i in keep]
        groups = [[i] for i in range(len(keep))]
        return Examples(inputs, sources, sources, texts, targets, lengths, groups, len(rows) - len(keep))

    def scheduled_sampling_prob(self, step: int) -> float:
        return self.config.scheduled_sampling * min(1.0, step / self.config.scheduled_sampling_steps)

    def model_options(self) -> dict[str, Any]:
        return {**super().model_options(), "use_scheduled_sampling": self.config.scheduled_sampling > 0}

    def summary(self) -> dict[str, str]:
        val, codec = self.splits["val"], self.codec
        means = self.splits["train"].lengths.mean(axis=0) - (0, 1)
        unknown = [unknown_share(side) for side in (val.inputs, val.targets)]
        return {
            **super().summary(),
            "tokens": f"{self.config.level} level, vocabularies of {codec.source.vocab_size:,} and "
            f"{codec.target.vocab_size:,}, {means[0]:.0f} and {means[1]:.0f} a text on average, {unknown[0]:.1%} and "
            f"{unknown[1]:.1%} unknown in validation",
        }

    def text_metrics(self, texts: Sequence[str], references: Sequence[Sequence[str]], final: bool) -> dict[str, Any]:
        """BLEU of words (at char and byte level: of characters) and exact matches; at the end also sacrebleu's scores.

        If a split has no text of four words, shorter n-grams are used: otherwise its BLEU would always be 0.
        """
        known = [[self._units(each) for each in group] for group in references]
        row: dict[str, Any] = {
            "bleu": bleu([self._units(text) for text in texts], known, self._orders)[-1],
            "exact": sum(text in group for text, group in zip(texts, references)) / len(texts),
        }
        return row | (sacrebleu_scores(texts, references) if final else {})

    @cached_property
    def _orders(self) -> int:
        return min(ORDERS, *(max(len(self._units(text)) for text in split.texts) for split in self.splits.values()))

    def _units(self, text: str) -> list[str]:
        return text.split() if self.config.level in SPACED_LEVELS else list(text)

    def headline(self, row: Mapping[str, Any]) -> str:
        return f"BLEU {row['val_bleu']:.1f}, {row['val_exact']:.1%} exactly right"

    def metrics_lines(self, metrics: Mapping[str, Any]) -> list[str]:
        unit = "words" if self.config.level in SPACED_LEVELS else "characters"
        first = f"{metrics['exact']:.2%} exactly right, tokens {metrics['token_accuracy']:.2%}, "
        first += f"{metrics['loss']:.4f} nats/token, BLEU of {unit} {metrics['bleu']:.2f}"
        if "chrf" not in metrics:
            return [first]
        words = f"BLEU {metrics['sacrebleu']:.2f}, " if "sacrebleu" in metrics else ""
        return [first, f"sacrebleu: {words}chrF {metrics['chrf']:.2f}"]

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        signature = report.get("val_signature")
        return super().report_lines(report) + ([("sacrebleu", str(signature))] if signature else [])

    def next_command(self, run: str) -> str:
        text = self.splits["val"].raw[0]
        return f"{echo_command(text)} | {shell_command('predict')} --run {shlex.quote(run)}"


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
    row: dict[str, Any] = {"chrf": float(chrf.corpus_score(list(texts), columns).score)}
    signature = f"chrF {chrf.get_signature()}"
    if any(len(text.split()) > 1 for group in references for text in group):  # BLEU of single words is 0
        row = {"sacrebleu": float(bleu_of_words.corpus_score(list(texts), columns).score), **row}
        signature = f"BLEU {bleu_of_words.get_signature()}; {signature}"
    return row | {"signature": signature}
