"""The host side of language modelling: its options, its data, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jaxgen.data.corpus import (
    BATCHES,
    VAL_FRACTION,
    LanguageCorpus,
    Splits,
    Tokens,
    identity,
    make_batches,
    prepare,
    read_splits,
    stream_eval,
    window_eval,
)
from jaxgen.data.task import EvalSet
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.store.config import MAX_SIZE, Fraction, Positive, Size, TrainConfig
from jaxgen.text import TOKENIZERS, Tokenizer

#: Targets that an evaluation during training scores at most; the last one scores the whole split.
EVAL_TOKENS = 200_000
#: Rows of an evaluation batch at least: nothing is learnt from it, so it need not be as small as a training batch.
EVAL_ROWS = 32
#: Targets scored by each windowed evaluation: 2,400 windows of 64 or 600 of 256.
WINDOW_TOKENS = 2_400 * 64
#: Longer n-grams than these are typing errors: almost none of them occurs twice.
MAX_ORDER = 32
#: Settings that one kind of model reads and others do not: most are about layers and about training by gradients.
ONLY = {
    "ngram": {"order"},
    "rnn": {*TrainConfig.model_fields, "embed", "embed_dropout", "stride", "tie"}
    - {"batch_size", "model", "run", "seed"},
}
#: What ``build`` of each kind of model takes from the settings.
BUILT_FROM = {
    "ngram": ("order",),
    "rnn": ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "embed_dropout", "tie", "precision"),
}
#: Share of unknown training tokens above which a borrowed vocabulary is refused: the model would learn <unk> instead.
MAX_UNKNOWN = 0.2


class LanguageConfig(TrainConfig):
    """Train a language model on any text: a recurrent one, or one to compare it with."""

    task: ClassVar[str] = "language"

    data: tuple[str, ...] = ("python-docs",)
    """What to read: built-in (python-docs, python-source), a named set (tinyshakespeare, ag_news, multi30k), or
    files, folders and globs (.gz too)."""
    val_data: tuple[str, ...] | None = None
    """Validation text of its own. By default the tail of the data."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the data held out at its end (documents: drawn at random). Default: 0.1."""
    text_column: str | None = None
    """Column of a CSV, TSV or JSONL file to read, by name or by position from 1."""
    level: str = "char"
    """What a token is."""
    vocab_size: Positive | None = None
    """Largest vocabulary at word level (default 20000) and bpe level (default 8192)."""
    min_count: Positive | None = None
    """What is seen less often in the training text becomes <unk> (word level: default 2; char level: default 1)."""
    layout: str | None = None
    """stream (default): contiguous lanes, state carried from window to window. windows: shuffled windows from a zero
    state. documents (default for rows of a table): texts of their own, each ending in <eos>."""
    documents: Literal["line", "blank-line", "file", "row"] | None = None
    """What a document is; implies --layout documents."""
    stride: Positive | None = None
    """Distance between the starts of windows (layout windows). Default: --seq-len."""
    seq_len: Size = 64
    """Steps of a window: how far gradients reach back."""
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Width of the token embedding. Default: --hidden. 0: one-hot vectors straight into the cell."""
    embed_dropout: Fraction = 0.0
    """Share of each embedding dropped in training, of every occurrence anew."""
    tie: bool = False
    """Use the embedding as the output matrix too (needs --embed equal to --hidden)."""

    order: Annotated[int, Field(gt=0, le=MAX_ORDER)] = 5
    """Longest n-grams that --model ngram counts, in tokens."""

    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "LSTM 1x128, 400 steps: seconds, to see that everything works",
            {"hidden": 128, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 400},
        ),
        "small": (
            "LSTM 1x256, 1,200 steps: under two minutes on 2 CPU cores, readable text",
            {"hidden": 256, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 1200},
        ),
        "base": (
            "LSTM 1x384 with dropout, 1,800 steps: two to three minutes on 2 CPU cores, much better text",
            {"hidden": 384, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 1800, "dropout": 0.2},
        ),
        "medium": (
            "LSTM 2x512 with dropout, 6,000 steps: hours on 2 CPU cores, minutes on an accelerator",
            {"hidden": 512, "layers": 2, "batch_size": 64, "seq_len": 128, "steps": 6000, "dropout": 0.3, "lr": 2e-3},
        ),
        "large": (
            "LSTM 3x1024 with dropout, 20,000 steps: for an accelerator",
            {
                "hidden": 1024,
                "layers": 3,
                "batch_size": 128,
                "seq_len": 256,
                "steps": 20000,
                "dropout": 0.4,
                "lr": 1e-3,
            },
        ),
    }

    def tokenizer_options(self) -> dict[str, int]:
        """The tokenizer options that were given; the level's own defaults hold for the rest."""
        given = {"min_count": self.min_count, "vocab_size": self.vocab_size}
        return {name: value for name, value in given.items() if value is not None}

    def reading(self) -> dict[str, Any]:
        """What says, beside ``data``, which texts are read and how they are split."""
        return {
            "level": self.level,
            "text_column": self.text_column,
            "layout": self.layout,
            "documents": self.documents,
            "val_fraction": VAL_FRACTION if self.val_fraction is None else self.val_fraction,
            "val_data": self.val_data,
            "seed": self.seed,
        }

    @field_validator("data", "val_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value  # data = "book.txt" in a TOML file

    @model_validator(mode="after")
    def _settings_fit(self) -> LanguageConfig:
        self._check_model()
        if self.layout is not None:
            choose(self.layout, BATCHES, "layout")
        if self.tie and self.embed not in (None, self.hidden):
            raise ValueError(f"--tie needs --embed equal to --hidden, which are {self.embed} and {self.hidden}")
        if self.stride is not None and self.layout != "windows":
            raise ValueError(f"--stride {self.stride} has a meaning with --layout windows alone: leave it out")
        known = TOKENIZERS[choose(self.level, TOKENIZERS, "level")].OPTIONS
        for name, value in self.tokenizer_options().items():
            if name not in known:
                levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} has no meaning with --level {self.level}: leave it out, "
                    f"or give --level {levels}"
                )
        if self.documents is not None and self.layout not in (None, "documents"):
            raise ValueError(f"--documents {self.documents} has no meaning with --layout {self.layout}")
        if self.val_fraction is not None and self.val_data:
            raise ValueError(
                f"--val-fraction {self.val_fraction} has no meaning with --val-data {' '.join(self.val_data)}, "
                "which holds nothing out: leave one of them out"
            )
        return self

    def _check_model(self) -> None:
        """Raise ``UsageError`` for a setting of other models, which a preset is too; what it has set is not."""
        choose(self.model, ONLY, "model")
        preset = self.presets[self.preset][1]
        for other, names in ONLY.items():
            usual = {name: (value := _default(type(self), name), preset.get(name, value)) for name in sorted(names)}
            given = [name for name, values in usual.items() if getattr(self, name) not in values]
            if other != self.model and given:
                raise ValueError(
                    f"--{given[0].replace('_', '-')} {getattr(self, given[0])} has no meaning with --model "
                    f"{self.model}: leave it out, or give --model {other}"
                )


def _default(kind: type[TrainConfig], name: str) -> Any:
    return kind.model_fields[name].get_default(call_default_factory=True)


@dataclass(frozen=True)
class LanguageData:
    """A corpus with its batches and evaluations, as the trainer uses them."""

    config: LanguageConfig
    corpus: LanguageCorpus

    Config: ClassVar[type[TrainConfig]] = LanguageConfig

    @classmethod
    def load(cls, config: LanguageConfig, tokenizer: Tokenizer | None = None) -> LanguageData:
        """Read, split and encode the text; a given ``tokenizer`` (of a resumed run) is used as it is.

        Raises ``DataError`` for data that cannot be used, also when a split is too short for one batch or when
        ``--init-from`` brings a vocabulary that lacks too much of the text.
        """
        if tokenizer is not None and tokenizer.kind != config.level:
            raise UsageError(
                f"--level is {config.level}, but the run to begin from reads tokens of the level {tokenizer.kind}: "
                f"give --level {tokenizer.kind}, or leave out --init-from."
            )
        options = config.tokenizer_options()
        corpus = prepare(config.data, tokenizer_options=options, tokenizer=tokenizer, **config.reading())
        data = cls(config, corpus)
        _ = data.batches  # too little text is an error now, not after compilation
        data._check_validation()
        # A run that goes on made its vocabulary for this text, whatever it lacks: only a borrowed one is checked.
        if tokenizer is not None and config.init_from is not None:
            data._check_vocabulary()
        return data

    @staticmethod
    def texts(config: LanguageConfig) -> Splits:
        """Read and split the text, without encoding it; ``DataError`` for data that cannot be used."""
        return read_splits(config.data, **config.reading())

    def _check_validation(self) -> None:
        there, needed = self.corpus.val.ids.size, self.config.seq_len + 1
        if self.corpus.layout == "windows" and there < needed:
            more = "a longer --val-data" if self.config.val_data else "a larger --val-fraction"
            raise DataError(
                f"The validation split has {there:,} tokens, but --layout windows needs at least {needed:,} "
                f"(--seq-len + 1). Give more text, {more}, or a smaller --seq-len."
            )

    def _check_vocabulary(self) -> None:
        unknown, there = self.corpus.train_unknown, self.corpus.train.ids.size
        if unknown > MAX_UNKNOWN * there:
            raise DataError(
                f"{unknown / there:.0%} of the training tokens are unknown to the vocabulary of --init-from "
                f"{self.config.init_from}, and at most {MAX_UNKNOWN:.0%} may be. Start without --init-from, or give "
                "text like that which the vocabulary was made for."
            )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @property
    def has_documents(self) -> bool:
        """Whether <eos> ends a text, so that the model may draw it."""
        return self.corpus.layout == "documents"

    @property
    def batches(self) -> Any:
        """The training batches, a pure function of (seed, step)."""
        c = self.config
        return make_batches(self.corpus.layout, self.corpus.train, c.batch_size, c.seq_len, c.seed, c.stride)

    def model_options(self) -> dict[str, Any]:
        """What ``build`` of the model needs."""
        chosen = {name: getattr(self.config, name) for name in BUILT_FROM[self.config.model]}
        return {"vocab_size": self.tokenizer.vocab_size, **chosen}

    def identity(self) -> dict[str, str]:
        """What a resumed run compares: the data's name and the digest of its bytes (``Splits.identity``)."""
        return identity(self.corpus.name, self.corpus.sha256, self.corpus.val_sha256)

    def sample_prompt(self) -> str:
        """What samples during training continue: the first words of a line of validation text, or a new document."""
        lines = [] if self.has_documents else self.tokenizer.decode(self.corpus.val.ids[:1000]).splitlines()[1:]
        starts = (line.split()[:3] for line in lines)
        return next((" ".join(words) for words in starts if len(words) == 3 and "".join(words).isalpha()), "")

    def facts(self) -> dict[str, str]:
        """Lines for the reader: label and text."""
        train, val = self.corpus.train, self.corpus.val
        unknown = [
            f"{count:,} unknown in {split} ({count / tokens.ids.size:.2%})"
            for split, count, tokens in (
                ("training", self.corpus.train_unknown, train),
                ("validation", self.corpus.val_unknown, val),
            )
            if count
        ]
        return {
            "data": f"{self.corpus.name} (sha256 {self.corpus.sha256[:12]})",
            "text": f"{train.chars:,} characters to train on, {val.chars:,} to validate",
            "tokens": f"{self.config.level} level, vocabulary {self.tokenizer.vocab_size:,}, "
            + ", ".join([f"{train.ids.size:,} + {val.ids.size:,} tokens", *unknown]),
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """The evaluations by name; ``val`` is the one that decides which checkpoint is best.

        Those that carry the state (``stateful``, and ``val`` unless the layout is windows) share running text out over
        lanes, each but the first warmed by up to 256 preceding tokens that are not scored. Documents stay whole.
        """
        c, val = self.config, self.corpus.val
        limit = None if final else EVAL_TOKENS
        rows = max(c.batch_size, EVAL_ROWS)
        stateful = EvalSet(rows, partial(stream_eval, val, rows, c.seq_len, limit_tokens=limit))
        if self.has_documents:
            return {"val": stateful}
        cold = self.corpus.layout == "windows"
        sets = {"val": self._windows(c.seq_len) if cold else stateful}
        if final:
            sets |= {f"windows_{n}": self._windows(n) for n in (64, 256) if val.ids.size > n}
            sets |= {"stateful": stateful} if cold else {}
        return sets

    def _windows(self, length: int) -> EvalSet:
        rows = max(self.config.batch_size, EVAL_ROWS)
        count = max(1, WINDOW_TOKENS // length)
        return EvalSet(rows, partial(window_eval, self.corpus.val, count, length, 0, rows))

    def report(self, totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Summed (nats, targets) by evaluation -> losses, also per character; that of ``val`` also per byte.

        ``val_unknown`` counts the unknown tokens of the whole validation split.
        """
        val = self.corpus.val
        means = {name: nll / count for name, (nll, count) in totals.items() if count}
        row = {f"{name}_loss": loss for name, loss in means.items()}
        if "val" in means:
            row |= {**per_unit("val", means["val"], val), "val_unknown": self.corpus.val_unknown}
        others = {name: loss for name, loss in means.items() if name != "val"}
        return row | {f"{name}_bpc": per_unit(name, loss, val)[f"{name}_bpc"] for name, loss in others.items()}

    def bits_per_char(self, loss: float) -> float:
        """Nats a training token in bits a character."""
        return loss / math.log(2) / self.corpus.train.chars_per_token


def per_unit(name: str, loss: float, tokens: Tokens) -> dict[str, float]:
    """A loss in nats a token as perplexity and as bits per character and per byte of the text it stands for.

    With unknown tokens the bits are a lower bound: to predict <unk> is not to predict the text behind it.
    """
    bits = loss / math.log(2)
    return {
        f"{name}_perplexity": math.exp(min(loss, 700.0)),
        f"{name}_bpc": bits / tokens.chars_per_token,
        f"{name}_bpb": bits / tokens.bytes_per_token,
    }


__all__ = ["LanguageConfig", "LanguageData"]
