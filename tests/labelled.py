"""A small table with labels and numbers, and a run trained on it: the label is the letter, the number its count."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from jaxgen.runs.config import validate
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.trainer.run import start

#: What a text is, by its label and its number.
TEXTS = {(label, n): letter * n for label, letter in (("first", "a"), ("second", "b")) for n in (1, 2, 3)}


def write_table(folder: Path, copies: int = 20) -> Path:
    """``copies`` rows of each text, shuffled."""
    rows = [f"{label},{n},{text}" for (label, n), text in TEXTS.items() for _ in range(copies)]
    random.Random(0).shuffle(rows)
    path = folder / "rows.csv"
    path.write_text("\n".join(["kind,size,text", *rows]) + "\n")
    return path


def settings(table: Path, run: Path, **more: Any) -> LanguageConfig:
    """Those of a run that learns the table in a hundred steps."""
    columns = {"text_column": "text", "label_column": "kind", "feature_columns": ("size",)}
    sizes = {"cell": "gru", "hidden": 16, "batch_size": 8, "seq_len": 8, "lr": 0.03, "warmup": 5, "devices": 1}
    rhythm = {"steps": 100, "eval_every": 0, "sample_every": 0}
    return validate(LanguageConfig, {"data": str(table), "run": str(run), **columns, **sizes, **rhythm, **more})


def train(folder: Path) -> Path:
    """The folder of a finished run."""
    start(settings(write_table(folder), folder / "run")).train()
    return folder / "run"
