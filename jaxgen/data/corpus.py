"""From texts to a tokenizer and two splits of tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgen.data.batches import (
    BATCHES,
    DocumentBatches,
    StreamBatches,
    Tokens,
    WindowBatches,
    make_batches,
    permutation,
)
from jaxgen.data.evaluation import stream_eval, window_eval
from jaxgen.data.reader import Source, read_texts
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.text import EOS, TOKENIZERS, UNK, Tokenizer, text_bytes

__all__ = [
    "BATCHES",
    "VAL_FRACTION",
    "DocumentBatches",
    "LanguageCorpus",
    "Splits",
    "StreamBatches",
    "Tokens",
    "WindowBatches",
    "make_batches",
    "prepare",
    "read_splits",
    "stream_eval",
    "window_eval",
]

#: Share of the data held out unless told otherwise.
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Splits:
    """The texts to train on and to validate with, before a tokenizer has seen them: documents, or one running text.

    The other fields are those of ``LanguageCorpus``.
    """

    train: list[str]
    val: list[str]
    name: str
    sha256: str
    val_sha256: str | None
    layout: str
    documents: str | None

    @property
    def identity(self) -> dict[str, str]:
        """What a run remembers of its data: their name and the digest of their bytes.

        With validation data, ``sha256`` is that of the two hexadecimal digests, training data first.
        """
        return identity(self.name, self.sha256, self.val_sha256)


@dataclass(frozen=True)
class LanguageCorpus:
    """A tokenizer and the two splits it was made for; the vocabulary comes from ``train`` alone.

    ``sha256`` is over the raw bytes of the data, ``val_sha256`` over those of the validation data (None when it was
    held out of the data); ``documents`` is the way the texts were cut (layout ``documents``, else None);
    ``train_unknown`` and ``val_unknown`` count the UNK ids in each split.
    """

    tokenizer: Tokenizer
    name: str
    sha256: str
    val_sha256: str | None
    layout: str
    documents: str | None
    train: Tokens
    val: Tokens
    train_unknown: int
    val_unknown: int


def identity(name: str, sha256: str, val_sha256: str | None) -> dict[str, str]:
    """As ``Splits.identity``."""
    if val_sha256 is not None:
        sha256 = hashlib.sha256(f"{sha256}{val_sha256}".encode()).hexdigest()
    return {"name": name, "sha256": sha256}


def prepare(
    specs: Sequence[str],
    *,
    level: str = "char",
    tokenizer_options: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    text_column: str | None = None,
    layout: str | None = None,
    documents: str | None = None,
    val_fraction: float = VAL_FRACTION,
    val_data: Sequence[str] | None = None,
    seed: int = 0,
) -> LanguageCorpus:
    """Read texts, split them, train a tokenizer on the training split (or use the one given) and encode both.

    ``layout`` defaults to documents when ``documents`` is given or the data are rows of a table, else to stream.
    Stream and windows split the joined text at ``int(n * (1 - val_fraction))`` characters, documents by a seeded
    shuffle; ``val_data`` replaces the split. A given ``tokenizer`` decides the level. Raises ``UsageError`` for
    values out of range and ``DataError`` for data that cannot be used.
    """
    level = tokenizer.kind if tokenizer is not None else choose(level, TOKENIZERS, "level")
    options = dict(tokenizer_options or {})
    if extra := sorted(options.keys() - TOKENIZERS[level].OPTIONS.keys()):
        allowed = ", ".join(TOKENIZERS[level].OPTIONS) or "none"
        raise UsageError(f"The level {level} has no option {extra[0]!r}; its options are: {allowed}.")
    splits = read_splits(
        specs,
        level=level,
        text_column=text_column,
        layout=layout,
        documents=documents,
        val_fraction=val_fraction,
        val_data=val_data,
        seed=seed,
    )
    if tokenizer is None:
        tokenizer = TOKENIZERS[level].train(splits.train, **options)
    train = encode_split(tokenizer, splits.train, splits.layout)
    val = encode_split(tokenizer, splits.val, splits.layout)
    if (val_data or val_fraction > 0) and val.ids.size < 2:
        raise DataError(
            f"The validation split has {val.ids.size} tokens, but at least 2 are needed. Give more text, "
            "a larger validation fraction, or a validation file with --val-data."
        )
    return LanguageCorpus(
        tokenizer=tokenizer,
        name=splits.name,
        sha256=splits.sha256,
        val_sha256=splits.val_sha256,
        layout=splits.layout,
        documents=splits.documents,
        train=train,
        val=val,
        train_unknown=int(np.count_nonzero(train.ids == UNK)),
        val_unknown=int(np.count_nonzero(val.ids == UNK)),
    )


def read_splits(
    specs: Sequence[str],
    *,
    level: str = "char",
    text_column: str | None = None,
    layout: str | None = None,
    documents: str | None = None,
    val_fraction: float = VAL_FRACTION,
    val_data: Sequence[str] | None = None,
    seed: int = 0,
) -> Splits:
    """Read texts and split them, as ``prepare`` does before it encodes them; errors as there."""
    if layout is not None:
        choose(layout, BATCHES, "layout")
    if not (isinstance(val_fraction, (int, float)) and 0 <= val_fraction < 1):
        raise UsageError(
            f"The validation fraction is {val_fraction!r}; it must be a number from 0 (no validation) to below 1."
        )
    if documents is not None and layout not in (None, "documents"):
        raise UsageError(f"--documents {documents} has no meaning with --layout {layout}. Give --layout documents too.")

    source = read_texts(specs, text_column=text_column, documents=documents, level=level)
    if layout is None:
        layout = "documents" if documents is not None or source.by_row else "stream"
    held_out = None
    if val_data:
        held_out = read_texts(val_data, text_column=text_column, documents=documents, level=level)
    if layout == "documents":
        cut = documents or _default_documents(source)
        train = split_documents(source.texts, cut)
        if held_out is not None:
            val = split_documents(held_out.texts, "line" if cut == "row" and not held_out.by_row else cut)
        else:
            train, val = _hold_out(train, val_fraction, seed, cut)
        if not train or (held_out is not None and not val):
            which = "validation data" if train else "data"
            raise DataError(f"There is no document with text in the {which} cut by {cut}. Give more text.")
    else:
        cut = None
        text = join_texts(source.texts)
        val_text = ""
        if held_out is not None:
            val_text = join_texts(held_out.texts)
        elif val_fraction > 0:
            at = int(len(text) * (1 - val_fraction))
            text, val_text = text[:at], text[at:]
        train, val = [text], [val_text] if val_text else []
    val_sha256 = None if held_out is None else held_out.sha256
    return Splits(train, val, source.name, source.sha256, val_sha256, layout, cut)


def encode_split(tokenizer: Tokenizer, texts: Sequence[str], layout: str) -> Tokens:
    """The tokens of one split: with layout ``documents`` each text ends in EOS and its start is kept."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    parts = [tokenizer.encode(text).astype(dtype) for text in texts]
    starts = None
    if layout == "documents":
        end = np.array([EOS], dtype)
        starts = np.cumsum([0, *(part.size + 1 for part in parts)], dtype=np.int64)[:-1]
        parts = [array for part in parts for array in (part, end)]
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return Tokens(ids, starts, sum(map(len, texts)), sum(len(text_bytes(text)) for text in texts))


def join_texts(texts: Iterable[str]) -> str:
    """The texts one after the other, with a newline between two where the first does not end in one."""
    filled = [text for text in texts if text]
    return "".join([text if text.endswith("\n") else text + "\n" for text in filled[:-1]] + filled[-1:])


def split_documents(texts: Iterable[str], by: str) -> list[str]:
    """Texts cut into documents by ``line``, ``blank-line``, ``file`` or ``row``; those without text are dropped."""
    if by == "line":
        found = [line.removesuffix("\r") for text in texts for line in text.split("\n")]
    elif by == "blank-line":
        found = [paragraph for text in texts for paragraph in _paragraphs(text)]
    else:
        found = list(texts)
    return [document for document in found if document and not document.isspace()]


def _paragraphs(text: str) -> list[str]:
    """Runs of lines that are not blank, inner line endings kept."""
    found: list[str] = []
    run: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            run.append(line)
        elif run:
            found.append("\n".join(run).removesuffix("\r"))
            run = []
    return found


def _default_documents(source: Source) -> str:
    if source.by_row:
        return "row"
    return source.default_documents or ("file" if len(source.texts) > 1 else "line")


def _hold_out(documents: list[str], val_fraction: float, seed: int, by: str) -> tuple[list[str], list[str]]:
    """The tail of a seeded shuffle becomes validation; both parts keep the order of the data."""
    if val_fraction == 0:
        return documents, []
    if len(documents) < 2:
        raise DataError(
            f"The data cut by {by} has {len(documents)} document{'' if len(documents) == 1 else 's'} with text, but at "
            "least 2 are needed to hold one out. Cut it otherwise with --documents, or give --val-data."
        )
    held = min(max(1, math.floor(len(documents) * val_fraction)), len(documents) - 1)
    order = permutation(len(documents), seed, 0, "split")
    train, val = np.sort(order[:-held]), np.sort(order[-held:])
    return [documents[i] for i in train], [documents[i] for i in val]
