"""Settings shared by the tasks whose data are rows of an input and its target: classify, translate, caption."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from jaxgen.errors import UsageError, choose
from jaxgen.runs.config import MAX_SIZE, Beam, Fraction, Positive, Size, TrainConfig
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import MAX_VOCAB, Tokenizer

VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCAB)]


class TokenizerSettings(Protocol):
    """The settings that say what a token is."""

    level: str
    min_count: int | None
    vocab_size: int | None


def tokenizer_options(config: TokenizerSettings) -> dict[str, int]:
    """Returns the options of ``Tokenizer.train`` that were given; the level has defaults for the others."""
    given = {"min_count": config.min_count, "vocab_size": config.vocab_size}
    return {name: value for name, value in given.items() if value is not None}


def check_level(config: TokenizerSettings) -> None:
    """Raises ``ValueError`` for an unknown level, and for an option that its tokenizer does not have."""
    known = TOKENIZERS[choose(config.level, TOKENIZERS, "level")].OPTIONS
    for name, value in tokenizer_options(config).items():
        if name not in known:
            levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
            raise ValueError(
                f"--{name.replace('_', '-')} {value} has no effect with --level {config.level}: leave it out, "
                f"or give --level {levels}"
            )


def check_same_level(level: str, tokenizer: Tokenizer) -> None:
    """Raises ``UsageError`` if ``--level`` differs from that of the run to initialise from."""
    if tokenizer.kind != level:
        raise UsageError(
            f"--level is {level}, but the run of --init-from has tokens of the level {tokenizer.kind}: give --level "
            f"{tokenizer.kind}, or leave out --init-from."
        )


class RowsConfig(TrainConfig):
    """Settings of tasks whose data are rows."""

    data: tuple[str, ...]
    """What to read."""
    val_data: tuple[str, ...] | None = None
    """Validation data, read like --data. Default: rows of the data, drawn at random."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the rows held out. Default: 0.1."""
    val_rows: Positive | None = None
    """Number of rows held out, instead of --val-fraction."""
    empty: Literal["skip", "refuse"] = "skip"
    """What to do with rows that have an empty part: skip and count them, or refuse them."""
    level: str = "char"
    """What a token is."""
    vocab_size: VocabSize | None = None
    """Largest vocabulary at word level (default 20000) and bpe level (default 8192)."""
    min_count: Positive | None = None
    """Tokens seen less often in the training text become <unk> (word level: default 2; char level: default 1)."""
    lowercase: bool | None = None
    """Convert texts to lower case. Default: at word level only."""
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Size of the token embedding. Default: --hidden. 0: one-hot vectors."""
    embed_dropout: Fraction = 0.0
    """Dropout of token embeddings in training, independent for every occurrence."""
    max_length: Size = 400
    """Longest text in tokens; the rest is cut off."""
    patience: Positive | None = None
    """Stop after this many evaluations without improvement (accuracy of labels, BLEU of translations, CIDEr of
    captions)."""
    buckets: Annotated[int, Field(gt=0, le=64)] = 8
    """Most groups of similar lengths that batches are drawn from; each group compiles one shape."""

    def tokenizer_options(self) -> dict[str, int]:
        """Returns the tokenizer options that were given."""
        return tokenizer_options(self)

    @property
    def lower(self) -> bool:
        """Whether texts are converted to lower case."""
        return self.level == "word" if self.lowercase is None else self.lowercase

    @field_validator("data", "val_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value  # data = "book.txt" in a TOML file

    @model_validator(mode="after")
    def _rows_fit(self) -> RowsConfig:
        choose(self.model, ("rnn",), f"model of the task {self.task}")
        check_level(self)
        held_out = {"val_fraction": self.val_fraction, "val_rows": self.val_rows, "val_data": self.val_data}
        given = [f"--{name.replace('_', '-')}" for name, value in held_out.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given together: give one of them")
        return self


class Seq2SeqConfig(RowsConfig):
    """Settings of tasks that write a text for each input."""

    attention: str = "general"
    """Attention of the decoder over the input: none (it sees only a summary of the input), additive (Bahdanau) or
    general (Luong, the fastest)."""
    token_dropout: Fraction = 0.0
    """Share of the decoder's input tokens replaced by <unk> in training, so that it relies more on the input."""
    label_smoothing: Fraction = 0.0
    """Share of each training target spread evenly over the vocabulary."""
    beam: Beam = 5
    """Beams of the final evaluation; 0: greedy decoding, as during training."""
