"""The data of language modelling: a corpus, its batches and evaluations, and reports."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from jaxgen.data.batches import Tokens, make_batches, stream_eval, window_eval
from jaxgen.data.files import NO_PROGRESS, NoNotes, ProgressReporter
from jaxgen.data.tables import fingerprint
from jaxgen.errors import DataError, UsageError, counted
from jaxgen.runs.config import TrainConfig
from jaxgen.tasks.base import (
    EVAL_ROWS,
    MAX_COUNTED,
    EvalSet,
    Example,
    Inference,
    Metric,
    TaskData,
    check_same_level,
    shell_command,
)
from jaxgen.tasks.language.conditioning import Conditioning, TextCodec, join_codec, read_codec, split_codec
from jaxgen.tasks.language.config import BUILT_FROM, LanguageConfig
from jaxgen.tasks.language.corpus import LanguageCorpus, TextSplits, encode_splits, read_splits
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers.base import UNK, Tokenizer
from jaxgen.training.windows import Conditions

#: About how many targets an evaluation during training scores, all over the split; the final one scores all of them.
EVAL_TOKENS = 50_000
#: Targets scored by each windowed evaluation: 2,400 windows of 64 or 600 of 256.
WINDOW_TOKENS = 2_400 * 64
#: Share of unknown training tokens above which the vocabulary of --init-from is refused: the model would learn <unk>.
MAX_UNKNOWN = 0.2
#: Samples shown as examples during training, and at the end.
SAMPLE_LENGTH, SAMPLE_TEMPERATURE = 300, 0.8
FINAL_TEMPERATURES = (0.3, 0.8, 1.0)
#: Number of labels with examples, the most common ones.
EXAMPLE_LABELS = 4
#: An example is this many documents if they have at most this many tokens on average, else one.
DOCUMENTS, SHORT = 10, 80
#: The most characters of the prompt in the command that is shown at the end.
MAX_PROMPT = 20


@dataclass(frozen=True)
class LanguageData(TaskData):
    """``TaskData`` of a corpus."""

    config: LanguageConfig
    corpus: LanguageCorpus

    Config: ClassVar[type[TrainConfig]] = LanguageConfig
    Objective: ClassVar[Any] = LanguageTask
    COMMANDS: ClassVar[tuple[str, ...]] = (
        *("sample", "score", "evaluate", "explain", "interpolate", "neurons", "replay", "export"),
    )
    METRIC: ClassVar[Metric] = Metric("val_loss", higher_is_better=False)
    UNIT: ClassVar[str] = "tokens"
    TARGET: ClassVar[str] = "token"

    read_codec = staticmethod(read_codec)

    @staticmethod
    def vocab_sizes(codec: TextCodec) -> dict[str, int]:
        tokenizer, conditioning = split_codec(codec)
        return {"vocab_size": tokenizer.vocab_size, "condition": conditioning.width if conditioning else 0}

    @classmethod
    def load(
        cls, config: LanguageConfig, codec: TextCodec | None = None, watch: ProgressReporter = NO_PROGRESS
    ) -> LanguageData:
        """As ``TaskData.load``; also raises ``DataError`` for a split that is too short, or too many unknown tokens."""
        tokenizer, conditioning = (None, None) if codec is None else split_codec(codec)
        if tokenizer is not None:
            check_same_level(config.level, tokenizer)
        if codec is not None:
            _check_conditions(config, conditioning)
        splits = read_splits(config, watch)
        if splits.line_ends:
            watch.note(
                f"{splits.line_ends:,} line ends of {splits.name} (CR LF or CR) were read as LF; --newlines keep keeps "
                "them."
            )
        corpus = encode_splits(splits, config, tokenizer, conditioning, watch)
        data = cls(config, corpus)
        _ = data.batches  # too little text must be an error before compilation
        data._check_validation()
        # A resumed run made its vocabulary from this text: only that of another run is checked.
        if codec is not None and config.init_from is not None:
            data._check_vocabulary()
        return data

    @staticmethod
    def texts(config: LanguageConfig) -> TextSplits:
        """Reads and splits the text without encoding it; raises ``DataError``."""
        return read_splits(config, NoNotes())

    def _check_validation(self) -> None:
        there, needed = self.corpus.val.ids.size, self.config.seq_len + 1
        if self.corpus.layout == "windows" and there < needed:
            more = "a longer --val-data" if self.config.val_data else "a larger --val-fraction"
            raise DataError(
                f"The validation split has {counted(there, 'token')}, but --layout windows needs at least {needed:,} "
                f"(--seq-len + 1). Give more text, {more}, or a smaller --seq-len."
            )

    def _check_vocabulary(self) -> None:
        unknown, there = self.corpus.train.unknown, self.corpus.train.ids.size
        if unknown > MAX_UNKNOWN * there:
            raise DataError(
                f"{unknown / there:.0%} of the training tokens are unknown to the vocabulary of --init-from "
                f"{self.config.init_from}, and at most {MAX_UNKNOWN:.0%} may be. Give --extend-vocabulary "
                "or text similar to that of the other run, or leave out --init-from."
            )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @property
    def num_targets(self) -> int:
        return self.tokenizer.vocab_size

    def target_ids(self, split: str) -> np.ndarray:
        ids: np.ndarray = getattr(self.corpus, split).ids[:MAX_COUNTED]
        return ids

    @property
    def codec(self) -> TextCodec:
        """The tokenizer, with the labels and features if there are any."""
        return join_codec(self.tokenizer, self.corpus.conditioning)

    @property
    def units_per_step(self) -> int:
        return self.config.batch_size * self.config.seq_len

    @property
    def tokens_per_step(self) -> int:
        return self.units_per_step

    def resolved(self) -> dict[str, Any]:
        kept = {} if self.corpus.holdout is None else {"holdout": self._holdout()}
        return {"has_documents": self.has_documents, "header": self.corpus.header, **kept}

    def _holdout(self) -> dict[str, Any]:
        """What a run records of the text of --holdout."""
        holdout = self.corpus.holdout
        return {"sha256": self.corpus.holdout_sha256, "characters": 0 if holdout is None else holdout.chars}

    @property
    def has_documents(self) -> bool:
        """Whether texts end with <eos>, so that the model may sample it."""
        return self.corpus.layout == "documents"

    @property
    def batches(self) -> Any:
        c, layout = self.config, self.corpus.layout
        from_preset = layout != "stream" and c.cold_starts == c.preset_value("cold_starts")
        how = c.batch_size, c.seq_len, c.seed, c.stride, 0.0 if from_preset else c.cold_starts
        return make_batches(layout, self.corpus.train, *how, c.seq_len_spread, c.seq_len_warmup)

    def model_options(self) -> dict[str, Any]:
        chosen = self.config.model_arguments(BUILT_FROM[self.config.model])
        conditioning = self.corpus.conditioning
        more = {} if conditioning is None else {"condition": conditioning.width}
        return {"vocab_size": self.tokenizer.vocab_size, **chosen, **more}

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(self.corpus.name, self.corpus.sha256, self.corpus.val_sha256)

    def summary(self) -> dict[str, str]:
        c, train, val, conditioning = self.config, self.corpus.train, self.corpus.val, self.corpus.conditioning
        unknown = [
            f"{tokens.unknown:,} unknown in {split} ({tokens.unknown / tokens.ids.size:.2%})"
            for split, tokens in (("training", train), ("validation", val))
            if tokens.unknown
        ]
        held = "" if self.corpus.holdout is None else f", {self.corpus.holdout.chars:,} held out"
        return {
            "data": f"{self.corpus.name} (sha256 {self.corpus.sha256[:12]})",
            "text": f"{train.chars:,} characters to train on, {val.chars:,} to validate{held}",
            "tokens": f"{self.config.level} level, vocabulary {self.tokenizer.vocab_size:,}, "
            + ", ".join([f"{train.ids.size:,} + {val.ids.size:,} tokens", *unknown]),
            **({} if conditioning is None else conditioning.summary()),
            **({"teacher": f"{' '.join(c.teacher)}, {c.teacher_share:g} of the loss"} if c.teacher else {}),
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """``val``, and at the end more.

        Evaluations that carry the state (``stateful``, and ``val`` unless the layout is windows) divide running text
        among lanes; each but the first is warmed up with up to 256 preceding tokens that are not scored. Documents stay
        whole. ``blind`` evaluates conditioned texts from the mean condition, to show how much the conditions help.
        ``holdout`` evaluates the text of --holdout as ``val`` does its own.
        """
        val, holdout = self.corpus.val, self.corpus.holdout
        cold = self.corpus.layout == "windows"
        usual = self._windows if cold else self._stateful
        if not final:
            return {"val": self._windows(val) if cold else self._stateful(val, EVAL_TOKENS)}
        sets = {"val": usual(val)}
        if holdout is not None and (not cold or holdout.ids.size > self.config.seq_len):
            sets["holdout"] = usual(holdout)
        if self.has_documents:
            return sets | self._blind()
        sets |= {f"windows_{n}": self._windows(val, n) for n in (64, 256) if val.ids.size > n}
        return sets | ({"stateful": self._stateful(val)} if cold else {})

    @property
    def _eval_rows(self) -> int:
        return max(self.config.micro_batch_size, EVAL_ROWS)

    def _blind(self) -> dict[str, EvalSet]:
        conditioning, val = self.corpus.conditioning, self.corpus.val
        if conditioning is None:
            return {}
        everywhere = np.zeros(0 if val.doc_starts is None else val.doc_starts.size, np.uint8)
        return {"blind": self._stateful(replace(val, conditions=Conditions(everywhere, conditioning.vector()[None])))}

    def _stateful(self, tokens: Tokens, limit: int | None = None) -> EvalSet:
        rows = self._eval_rows
        return EvalSet(rows, partial(stream_eval, tokens, rows, self.config.seq_len, limit_tokens=limit))

    def _windows(self, tokens: Tokens, length: int | None = None) -> EvalSet:
        length, rows = length or self.config.seq_len, self._eval_rows
        count = max(1, WINDOW_TOKENS // length)
        return EvalSet(rows, partial(window_eval, tokens, count, length, 0, rows))

    def report(self, totals: Mapping[str, tuple[float, float]], final: bool = False) -> dict[str, float]:
        """Returns losses per token and per character, of ``val`` also per byte, from (nats, targets) per evaluation.

        ``val_unknown`` counts the unknown tokens of the whole validation split.
        """
        val = self.corpus.val
        means = {name: nll / count for name, (nll, count) in totals.items() if count}
        row = {f"{name}_loss": loss for name, loss in means.items()}
        if "val" in means:
            row |= {**per_unit("val", means["val"], val), "val_unknown": val.unknown}
        for name in (name for name in means if name != "val"):
            text = self.corpus.holdout if name == "holdout" else None
            row[f"{name}_bpc"] = per_unit(name, means[name], val if text is None else text)[f"{name}_bpc"]
        return row

    def bits_per_char(self, loss: float) -> float:
        """Converts nats per training token to bits per character."""
        return loss / math.log(2) / self.corpus.train.chars_per_token

    def examples(self, inference: Inference, final: bool) -> list[Example]:
        """A sample, at the end at several temperatures; with labels, a sample of each of the most common ones.

        A sample of short documents has several of them.
        """
        conditioning, default = self.corpus.conditioning, SAMPLE_TEMPERATURE
        if conditioning is not None and conditioning.labels:
            labels = conditioning.most_common(EXAMPLE_LABELS)
            number = -(-self._documents_in_example // len(labels))
            return [
                Example(f"{label}, temperature {default:g}", _some_documents(inference, number, default, label))
                for label in labels
            ]
        if self.has_documents:
            return [
                Example(f"temperature {chosen:g}", _some_documents(inference, self._documents_in_example, chosen))
                for chosen in (FINAL_TEMPERATURES if final else (default,))
            ]
        prompt = self._prompt()
        return [
            Example(f"temperature {chosen:g}", prompt + inference.generate(prompt, chosen, SAMPLE_LENGTH))
            for chosen in (FINAL_TEMPERATURES if final else (default,))
        ]

    @property
    def _documents_in_example(self) -> int:
        train = self.corpus.train
        number = 0 if train.doc_starts is None else train.doc_starts.size
        return DOCUMENTS if train.ids.size <= SHORT * number else 1

    def _prompt(self) -> str:
        """Returns the prompt of examples: the first words of a line of validation text, or ""."""
        lines = self.tokenizer.decode(self.corpus.val.ids[:1000]).splitlines()[1:]
        starts = (line.split()[:3] for line in lines)
        return next((" ".join(words) for words in starts if len(words) == 3 and "".join(words).isalpha()), "")

    def headline(self, row: Mapping[str, Any]) -> str:
        return f"{row['val_bpc']:.3f} bits/char" if "val_bpc" in row else ""

    def report_lines(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        rows = [("validation", f"{report['val_loss']:.4f} nats/token, perplexity {report['val_perplexity']:.2f}")]
        if "val_bpc" in report:
            rows.append(("", f"{report['val_bpc']:.4f} bits per character, {report['val_bpb']:.4f} bits per byte"))
        if "val_word_perplexity" in report and self.config.level in ("word", "bpe"):
            rows.append(("", f"perplexity {report['val_word_perplexity']:,.2f} per word"))
        for name, value in report.items():
            if name.startswith("windows_") and name.endswith("_loss"):
                rows.append((f"{name.split('_')[1]}-token windows", f"{value:.4f} nats/token, from a zero state"))
            elif name == "holdout_loss":
                rows.append(("held out", f"{value:.4f} nats/token, {report['holdout_bpc']:.4f} bits per character"))
            elif name == "stateful_loss":
                rows.append(("state carried", f"{value:.4f} nats/token"))
            elif name == "blind_loss":
                rows.append(("unconditioned", f"{value:.4f} nats/token, from the mean of all labels and features"))
        return rows

    def next_command(self, run: str) -> str:
        command, conditioning = f"{shell_command('sample')} --run {shlex.quote(run)}", self.corpus.conditioning
        if conditioning is not None:
            return f"{command} {conditioning.example()}"
        prompt = self._first_word()
        return f"{command} --prompt {shlex.quote(prompt)}" if prompt else command

    def _first_word(self) -> str:
        """The first word of the training text that can be a prompt; empty if there is none."""
        tokenizer = self.corpus.tokenizer
        words = (word[:MAX_PROMPT] for word in tokenizer.decode(self.corpus.train.ids[:100]).split())
        usable = (word for word in words if word.isprintable() and "\ufffd" not in word and not word.startswith("-"))
        return next((word for word in usable if UNK not in tokenizer.encode(word)), "")


def _some_documents(inference: Inference, number: int, temperature: float, label: str | None = None) -> str:
    """Returns generated documents as one text: each on a line, or with lines between them."""
    documents = inference.generate_documents(number, temperature, SAMPLE_LENGTH, label)
    return ("\n---\n" if any("\n" in each for each in documents) else "\n").join(documents)


def _check_conditions(config: LanguageConfig, conditioning: Conditioning | None) -> None:
    """Raises ``UsageError`` unless the settings name as many labels and features as the run of --init-from has."""
    has = (False, 0) if conditioning is None else (bool(conditioning.labels), len(conditioning.features))
    if (config.label_column is not None, len(config.feature_columns)) != has:
        labels = "labels" if has[0] else "no labels"
        raise UsageError(
            f"The run of --init-from has {labels} and {has[1] or 'no'} features, but --label-column and "
            "--feature-columns name others: give as many, or leave out --init-from."
        )


def per_unit(name: str, loss: float, tokens: Tokens) -> dict[str, float]:
    """Returns a loss in nats per token as perplexity (per token and per word), bits per character and bits per byte.

    With unknown tokens, the bits are a lower bound: predicting <unk> does not predict the text that it replaces.
    """
    bits = loss / math.log(2)
    return {
        f"{name}_perplexity": math.exp(min(loss, 700.0)),
        f"{name}_word_perplexity": math.exp(min(loss / tokens.words_per_token, 700.0)),
        f"{name}_bpc": bits / tokens.chars_per_token,
        f"{name}_bpb": bits / tokens.bytes_per_token,
    }
