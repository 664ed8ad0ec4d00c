"""The settings of a classifier's run."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from jaxgen.runs.config import Fraction
from jaxgen.tasks.rows_config import RowsConfig

_WORDS = {
    "level": "word",
    "cell": "gru",
    "hidden": 128,
    "layers": 1,
    "batch_size": 32,
    "bidirectional": True,
    "dropout": 0.5,
    "embed_dropout": 0.3,
    "token_dropout": 0.3,
    "lr": 2e-3,
    "buckets": 4,
    "steps": 1000,
}
_CHARACTERS = _WORDS | {
    "level": "char",
    "lowercase": True,
    "embed": 64,
    "dropout": 0.3,
    "embed_dropout": 0.1,
    "token_dropout": 0.1,
    "lr": 3e-3,
    "steps": 2400,
}


class ClassifyConfig(RowsConfig):
    """A text in, a label out: a classifier."""

    task: ClassVar[str] = "classify"

    data: tuple[str, ...] = ("stdlib-packages",)
    """Built-in set (stdlib-packages), named set (ag_news), CSV, TSV or JSONL files (.gz too) with --text-column and
    --label-column, or a folder with a subfolder of texts for each label."""
    text_column: tuple[str, ...] | None = None
    """Columns with the text, by name or by position from 1; several are joined by spaces."""
    label_column: str | None = None
    """Column with the label, by name or by position from 1."""
    token_dropout: Fraction = 0.0
    """Share of the tokens replaced by <unk> in training, at random."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weights the loss so that all labels count the same, however rare."""
    bidirectional: bool = False
    """Read every text in both directions."""
    pooling: str = "max"
    """How the outputs over the text are pooled: the last one, or the maximum or the mean of each unit."""

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
        "small": ("the same as words", _WORDS),
        "words": (
            "GRU 1x128 on words, bidirectional, strong dropout, 1,000 steps",
            _WORDS,
        ),
        "characters": (
            "GRU 1x128 on lower-case characters, bidirectional, 2,400 steps",
            _CHARACTERS,
        ),
    }

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_or_more_columns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value
