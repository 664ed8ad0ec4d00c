"""Shared builders: files of test data, and settings of tiny language runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgen.data.sources import TextSource, open_texts
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.text import in_pieces


def write(path: Any, content: str | bytes) -> Any:
    """Write a file, text as UTF-8 with its line ends unchanged, make its parent folders, and return its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def language_config(data: Path, run: Path, **more: Any) -> LanguageConfig:
    """Return the settings of a tiny language model on ``data``; ``more`` overrides any of them."""
    sizes = {"cell": "elman", "hidden": 8, "batch_size": 4, "seq_len": 8}
    return LanguageConfig(**{"data": (str(data),), "run": str(run), **sizes, **more})


def read_texts(specs: Sequence[str], **options: Any) -> TextSource:
    """Return what ``open_texts`` does, with every text read whole and with the digests of all files."""
    source = open_texts(specs, **options)
    texts = ["".join(in_pieces(text)) for text in source.texts]
    source.check()
    files = [getattr(each, "sha256", each) for each in source.files]
    return replace(source, texts=texts, files=files, line_ends_in_cells=source.line_ends)
