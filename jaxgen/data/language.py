"""The host side of language modelling: its options, its data, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from jaxgen.data.corpus import LanguageCorpus, Tokens, make_batches, prepare, stream_eval, window_eval
from jaxgen.data.task import EvalSet
from jaxgen.errors import UsageError, choose
from jaxgen.store.config import MAX_SIZE, Positive, Size, TrainConfig
from jaxgen.text import TOKENIZERS, Tokenizer

#: Targets that an evaluation during training scores at most; the last one scores the whole split.
EVAL_TOKENS = 200_000
#: Rows of an evaluation batch at least: nothing is learnt from it, so it need not be as small as a training batch.
EVAL_ROWS = 32
#: Targets scored by each windowed evaluation: 2,400 windows of 64 or 600 of 256.
WINDOW_TOKENS = 2_400 * 64


class LanguageConfig(TrainConfig):
    """Train a recurrent language model on any text."""

    task: ClassVar[str] = "language"

    data: tuple[str, ...] = ("python-docs",)
    """What to read: built-in (python-docs, python-source), a named set (tinyshakespeare, ag_news, multi30k), or
    files, folders and globs (.gz too)."""
    val_data: tuple[str, ...] | None = None
    """Validation text of its own. By default the tail of the data."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    """Share of the data held out at its end."""
    text_column: str | None = None
    """Column of a CSV, TSV or JSONL file to read, by name or by position from 1."""
    level: str = "char"
    """What a token is."""
    vocab_size: Positive | None = None
    """Largest vocabulary at word level (default 20000) and bpe level (default 8192)."""
    min_count: Positive | None = None
    """What is seen less often in the training text becomes <unk> (word level: default 2; char level: default 1)."""
    layout: Literal["stream", "windows", "documents"] | None = None
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
    tie: bool = False
    """Use the embedding as the output matrix too (needs --embed equal to --hidden)."""

    presets: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "tiny": (
            "LSTM 1x128, 400 steps: seconds, to see that everything works",
            {"hidden": 128, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 400},
        ),
        "small": (
            "LSTM 1x256, 1,400 steps: about two minutes on 2 CPU cores, readable text",
            {"hidden": 256, "layers": 1, "batch_size": 32, "seq_len": 64, "steps": 1400},
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

    @field_validator("data", "val_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value  # data = "book.txt" in a TOML file

    @model_validator(mode="after")
    def _settings_fit(self) -> LanguageConfig:
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
        return self


@dataclass(frozen=True)
class LanguageData:
    """A corpus with its batches and evaluations, as the trainer uses them."""

    config: LanguageConfig
    corpus: LanguageCorpus

    Config: ClassVar[type[TrainConfig]] = LanguageConfig

    @classmethod
    def load(cls, config: LanguageConfig, tokenizer: Tokenizer | None = None) -> LanguageData:
        """Read, split and encode the text; a given ``tokenizer`` (of a resumed run) is used as it is.

        Raises ``DataError`` for data that cannot be used, also when it is too short for one batch.
        """
        if tokenizer is not None and tokenizer.kind != config.level:
            raise UsageError(
                f"--level is {config.level}, but the run to begin from reads tokens of the level {tokenizer.kind}: "
                f"give --level {tokenizer.kind}, or leave out --init-from."
            )
        corpus = prepare(
            config.data,
            level=config.level,
            tokenizer_options=config.tokenizer_options(),
            tokenizer=tokenizer,
            text_column=config.text_column,
            layout=config.layout,
            documents=config.documents,
            val_fraction=config.val_fraction,
            val_data=config.val_data,
            seed=config.seed,
        )
        data = cls(config, corpus)
        _ = data.batches  # too little text is an error now, not after compilation
        return data

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
        """What ``LanguageTask.build`` needs."""
        c = self.config
        names = ("cell", "cell_options", "hidden", "layers", "embed", "dropout", "tie")
        return {"vocab_size": self.tokenizer.vocab_size, **{name: getattr(c, name) for name in names}}

    def identity(self) -> dict[str, str]:
        """What a resumed run compares: the data's name and the digest of its bytes."""
        return {"name": self.corpus.name, "sha256": self.corpus.sha256}

    def sample_prompt(self) -> str:
        """What samples during training continue: the first words of a line of validation text, or a new document."""
        lines = [] if self.has_documents else self.tokenizer.decode(self.corpus.val.ids[:1000]).splitlines()[1:]
        starts = (line.split()[:3] for line in lines)
        return next((" ".join(words) for words in starts if len(words) == 3 and "".join(words).isalpha()), "")

    def facts(self) -> dict[str, str]:
        """Lines for the reader: label and text."""
        train, val = self.corpus.train, self.corpus.val
        unknown = self.corpus.val_unknown
        return {
            "data": f"{self.corpus.name} (sha256 {self.corpus.sha256[:12]})",
            "text": f"{train.chars:,} characters to train on, {val.chars:,} to validate",
            "tokens": f"{self.config.level} level, vocabulary {self.tokenizer.vocab_size:,}, "
            f"{train.ids.size:,} + {val.ids.size:,} tokens"
            + (f", {unknown:,} unknown in validation ({unknown / val.ids.size:.2%})" if unknown else ""),
        }

    def eval_sets(self, final: bool) -> dict[str, EvalSet]:
        """The evaluations by name; ``val`` is the one that decides which checkpoint is best."""
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
        """Summed (nats, targets) by evaluation -> losses; those of ``val`` also per character and byte."""
        means = {name: nll / count for name, (nll, count) in totals.items() if count}
        row = {f"{name}_loss": loss for name, loss in means.items()}
        if "val" in means:
            row |= per_unit("val", means["val"], self.corpus.val)
        return row

    def bits_per_char(self, loss: float) -> float:
        """Nats a training token in bits a character."""
        return loss / math.log(2) / self.corpus.train.chars_per_token


def per_unit(name: str, loss: float, tokens: Tokens) -> dict[str, float]:
    """A loss in nats a token as perplexity and as bits per character and per byte of the text it stands for."""
    bits = loss / math.log(2)
    return {
        f"{name}_perplexity": math.exp(min(loss, 700.0)),
        f"{name}_bpc": bits / tokens.chars_per_token,
        f"{name}_bpb": bits / tokens.bytes_per_token,
    }


__all__ = ["LanguageConfig", "LanguageData"]
