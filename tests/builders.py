"""Shared builders: files of test data, and settings of tiny language runs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.sources import TextSource, open_texts
from jaxgen.inference.sampler import Sampler
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.text import in_pieces
from jaxgen.tokenizers import CharTokenizer
from jaxgen.tokenizers.base import Tokenizer


def write(path: Any, content: str | bytes) -> Any:
    """Write a file, text as UTF-8 with its line ends unchanged, make its parent folders, and return its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def unpickled(value: Any) -> Any:
    """Return a copy of ``value`` that went through pickle. The bytes were written here, so reading them is safe."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301


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


def overridden(args: Sequence[object]) -> list[str]:
    """Return the arguments of a command without flags, and their values, that follow again: the last ones count."""
    words = [str(arg) for arg in args]
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    names = [words[i].partition("=")[0] for i in starts]
    kept = words[: starts[0]] if starts else words
    for place, (start, end) in enumerate(zip(starts, [*starts[1:], len(words)])):
        if names[place] not in names[place + 1 :]:
            kept += words[start:end]
    return kept


def tiny_sampler(cell: str = "elman", tokenizer: Tokenizer | None = None, **options: Any) -> Sampler:
    """Return a sampler of a small model with random weights, so large that what was read matters for what is drawn."""
    tokenizer = CharTokenizer.train(["abcdefgh \n"]) if tokenizer is None else tokenizer
    sizes = {"cell": cell, "cell_options": {}, "hidden": 8, "layers": 2, **options}
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, **sizes)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    return Sampler(task, tokenizer, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes))
