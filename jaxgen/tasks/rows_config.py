"""What the settings of tasks whose data are rows have in common: an input, and what belongs to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jaxgen.errors import choose
from jaxgen.runs.config import MAX_SIZE, Beam, Fraction, Positive, Size, TrainConfig
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import MAX_VOCAB

#: Larger vocabularies are typing errors.
VocabSize = Annotated[int, Field(gt=0, le=MAX_VOCAB)]


def tokenizer_options(config: Any) -> dict[str, int]:
    """The tokenizer options that were given; the level's own defaults hold for the rest."""
    given = {"min_count": config.min_count, "vocab_size": config.vocab_size}
    return {name: value for name, value in given.items() if value is not None}


def check_level(config: Any) -> None:
    """Raise ``ValueError`` for a level that is none, and for an option that its tokenizer has not."""
    known = TOKENIZERS[choose(config.level, TOKENIZERS, "level")].OPTIONS
    for name, value in tokenizer_options(config).items():
        if name not in known:
            levels = " or ".join(level for level, kind in TOKENIZERS.items() if name in kind.OPTIONS)
            raise ValueError(
                f"--{name.replace('_', '-')} {value} has no meaning with --level {config.level}: leave it out, "
                f"or give --level {levels}"
            )


class RowsConfig(TrainConfig):
    """Settings of data that are rows."""

    data: tuple[str, ...]
    """What to read."""
    val_data: tuple[str, ...] | None = None
    """Validation rows of their own, read as the data are. By default rows of the data, drawn at random."""
    val_fraction: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    """Share of the rows held out. Default: 0.1."""
    val_rows: Positive | None = None
    """Number of rows held out, instead of --val-fraction."""
    empty: Literal["skip", "refuse"] = "skip"
    """What to do with rows of which a part is empty: skip them, and say how many, or refuse them."""
    level: str = "char"
    """What a token is."""
    vocab_size: VocabSize | None = None
    """Largest vocabulary at word level (default 20000) and bpe level (default 8192)."""
    min_count: Positive | None = None
    """What is seen less often in the training text becomes <unk> (word level: default 2; char level: default 1)."""
    lowercase: bool | None = None
    """Read texts in lower case. Default: at word level."""
    embed: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None = None
    """Width of the token embedding. Default: --hidden. 0: one-hot vectors straight into the cell."""
    embed_dropout: Fraction = 0.0
    """Share of each embedding dropped in training, of every occurrence anew."""
    max_length: Size = 400
    """Tokens of a text that are read; what is behind them is cut off."""
    patience: Positive | None = None
    """Stop after this many evaluations without a better one (accuracy of labels, BLEU of translations,
    CIDEr of captions)."""
    buckets: Annotated[int, Field(gt=0, le=64)] = 8
    """Groups of similar lengths that batches are made of: the shapes that are compiled, at most."""

    def tokenizer_options(self) -> dict[str, int]:
        """The tokenizer options that were given; the level's own defaults hold for the rest."""
        return tokenizer_options(self)

    @property
    def lower(self) -> bool:
        """Whether texts are read in lower case."""
        return self.level == "word" if self.lowercase is None else self.lowercase

    @field_validator("data", "val_data", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
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
    """Settings of what writes a text for each input."""

    attention: str = "general"
    """How the decoder looks back at the input: not at all (it has a summary of it alone), by additive scores
    (Bahdanau) or by general ones (Luong, the fastest)."""
    token_dropout: Fraction = 0.0
    """Share of the tokens written before that training reads as <unk>, so that more has to come from the input."""
    label_smoothing: Fraction = 0.0
    """Share of each training target that is spread evenly over the vocabulary."""
    beam: Beam = 5
    """Beams of the final evaluation; 0: greedy, as during training."""
