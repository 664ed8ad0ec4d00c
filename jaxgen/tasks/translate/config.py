"""The settings of a translator's run."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator, model_validator

from jaxgen.runs.config import Fraction, Positive, Size
from jaxgen.tasks.rows_config import Seq2SeqConfig


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
