"""From texts to a tokenizer and two splits of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxgen.data.batches import (
    BATCHES,
    DocumentBatches,
    StreamBatches,
    Tokens,
    WindowBatches,
    make_batches,
)
from jaxgen.data.conditioning import Conditioning
from jaxgen.data.evaluation import stream_eval, window_eval
from jaxgen.data.known import Known
from jaxgen.data.splits import VAL_FRACTION, Splits, identity, join_texts, read_splits, split_documents
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.text import EOS, TOKENIZERS, UNK, Tokenizer
from jaxgen.text.pieces import encode_pieces

__all__ = [
    "BATCHES",
    "VAL_FRACTION",
    "DocumentBatches",
    "LanguageCorpus",
    "Splits",
    "StreamBatches",
    "Tokens",
    "WindowBatches",
    "identity",
    "join_texts",
    "make_batches",
    "prepare",
    "read_splits",
    "split_documents",
    "stream_eval",
    "window_eval",
]


#: Characters that are encoded at once, which bounds what is needed beside the text and its tokens.
PIECE = 1 << 18


@dataclass(frozen=True)
class LanguageCorpus:
    """A tokenizer and the two splits it was made for; the vocabulary comes from ``train`` alone.

    ``sha256`` is the ``FilesDigest`` of the data, ``val_sha256`` that of the validation data (None when it was
    held out of the data); ``documents`` is the way the texts were cut (layout ``documents``, else None);
    ``train_unknown`` and ``val_unknown`` count the UNK ids in each split. ``conditioning`` says how labels and numbers
    beside the texts become the ``conditions`` of the splits, if there are any.
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
    conditioning: Conditioning | None = None


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
    label_column: str | None = None,
    feature_columns: Sequence[str] = (),
    conditioning: Conditioning | None = None,
    seed: int = 0,
) -> LanguageCorpus:
    """Read texts, split them, train a tokenizer on the training split (or use the one given) and encode both.

    ``layout`` defaults to documents when ``documents`` is given or the data are rows of a table, else to stream.
    Stream and windows split the joined text at ``int(n * (1 - val_fraction))`` characters, documents by a seeded
    shuffle; ``val_data`` replaces the split. A given ``tokenizer`` decides the level. With ``label_column`` or
    ``feature_columns`` every row of a table is a document of which these are known; a given ``conditioning`` says what
    they mean, else it follows from the training split. Raises ``UsageError`` for values out of range and ``DataError``
    for data that cannot be used.
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
        label_column=label_column,
        feature_columns=feature_columns,
        seed=seed,
    )
    if conditioning is None and splits.train_known is not None:
        conditioning = Conditioning.fit(splits.train_known, feature_columns, splits.name)
    if tokenizer is None:
        tokenizer = TOKENIZERS[level].train(splits.train, **options)
    train = _conditioned(encode_split(tokenizer, splits.train, splits.layout), splits.train_known, conditioning)
    val = _conditioned(encode_split(tokenizer, splits.val, splits.layout), splits.val_known, conditioning)
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
        conditioning=conditioning,
    )


def _conditioned(tokens: Tokens, known: Known | None, conditioning: Conditioning | None) -> Tokens:
    """``tokens`` with what is known of their documents."""
    if known is None or conditioning is None:
        return tokens
    return replace(tokens, conditions=conditioning.encode(known))


def encode_split(tokenizer: Tokenizer, texts: Sequence[str], layout: str) -> Tokens:
    """The tokens of one split: with layout ``documents`` each text ends in EOS and its start is kept."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    end = np.array([EOS], dtype).tobytes() if layout == "documents" else b""
    grown, starts, chars, size = bytearray(), [], 0, 0  # one buffer: parts put together at the end are there twice
    for text in texts:
        starts.append(len(grown) // dtype.itemsize)
        slices = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        for part in encode_pieces(tokenizer, slices, unk="keep"):
            grown += part.ids.astype(dtype).tobytes()
            chars, size = chars + part.chars, size + part.bytes
        grown += end
    ids = np.frombuffer(grown, dtype)
    return Tokens(ids, np.array(starts, np.int64) if layout == "documents" else None, chars, size)
