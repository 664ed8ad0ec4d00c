"""From texts to a tokenizer and two splits of tokens."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxgen.data.batches import BATCHES, DocumentBatches, StreamBatches, WindowBatches, make_batches
from jaxgen.data.eval_batches import stream_eval, window_eval
from jaxgen.data.progress import SILENT, Counter, ProgressReporter, track
from jaxgen.data.sources import TextStream
from jaxgen.data.splits import VAL_FRACTION, Splits, fingerprint, read_splits, split_documents
from jaxgen.data.token_cache import Part, get_or_create
from jaxgen.data.tokens import Tokens
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.tasks.language.conditioning import Conditioning, RowMetadata
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import EOS, Tokenizer, in_pieces
from jaxgen.tokenizers.pieces import Encoded, encode_pieces, evenly

__all__ = [
    "BATCHES",
    "VAL_FRACTION",
    "DocumentBatches",
    "LanguageCorpus",
    "Splits",
    "StreamBatches",
    "Tokens",
    "WindowBatches",
    "fingerprint",
    "make_batches",
    "prepare",
    "read_splits",
    "split_documents",
    "stream_eval",
    "window_eval",
]


#: Characters that are encoded at once, which bounds what is needed beside the tokens.
PIECE = 1 << 18
#: Characters of running text from which its tokens are kept in a file that is mapped, and not in memory.
LARGE = 1 << 25


@dataclass(frozen=True)
class LanguageCorpus:
    """A tokenizer and the two splits it was made for; the vocabulary comes from ``train`` alone.

    ``sha256`` is the ``FilesDigest`` of the data, ``val_sha256`` that of the validation data (None when it was
    held out of the data); ``documents`` is the way the texts were cut (layout ``documents``, else None);
    ``conditioning`` says how labels and numbers beside the texts become the ``conditions`` of the splits, if there are
    any.
    """

    tokenizer: Tokenizer
    name: str
    sha256: str
    val_sha256: str | None
    layout: str
    documents: str | None
    train: Tokens
    val: Tokens
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
    watch: ProgressReporter = SILENT,
) -> LanguageCorpus:
    """Read texts, split them, train a tokenizer on the training split (or use the one given) and encode both.

    ``layout`` defaults to documents when ``documents`` is given or the data are rows of a table, else to stream.
    Stream and windows split the joined text at ``int(n * (1 - val_fraction))`` characters, documents by a seeded
    shuffle; ``val_data`` replaces the split. A given ``tokenizer`` decides the level. With ``label_column`` or
    ``feature_columns`` every row of a table is a document of which these are known; a given ``conditioning`` says what
    they mean, else it follows from the training split. Running text is read in pieces, and the tokens of a large one
    are kept in a file (``jaxgen.data.token_cache``), so that neither need fit into memory. ``watch`` follows it all.
    Raises ``UsageError`` for values out of range and ``DataError`` for data that cannot be used.
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
        watch=watch,
    )
    if conditioning is None and splits.train_known is not None:
        conditioning = Conditioning.fit(splits.train_known, feature_columns, splits.name)
    if tokenizer is None:
        counter = Counter(watch, "learning the vocabulary", sum(map(len, splits.train)))
        tokenizer = TOKENIZERS[level].train((track(in_pieces(text), counter) for text in splits.train), **options)
    encoded = (encode_split(tokenizer, part, splits.layout, watch) for part in (splits.train, splits.val))
    train, val = map(_conditioned, encoded, (splits.train_known, splits.val_known), (conditioning, conditioning))
    splits.check()
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
        conditioning=conditioning,
    )


def _conditioned(tokens: Tokens, known: RowMetadata | None, conditioning: Conditioning | None) -> Tokens:
    """``tokens`` with what is known of their documents."""
    if known is None or conditioning is None:
        return tokens
    return replace(tokens, conditions=conditioning.encode(known))


def encode_split(
    tokenizer: Tokenizer, texts: Sequence[str | TextStream], layout: str, watch: ProgressReporter = SILENT
) -> Tokens:
    """The tokens of one split: with layout ``documents`` each text ends in EOS and its start is kept."""
    counter = Counter(watch, "encoding", sum(map(len, texts)))
    if len(texts) == 1 and isinstance(texts[0], TextStream) and len(texts[0]) >= LARGE:
        return _kept(tokenizer, texts[0], counter)
    dtype = _id_type(tokenizer)
    end = np.array([EOS], dtype).tobytes() if layout == "documents" else b""
    # One buffer each: parts put together at the end are there twice.
    grown, starts, amounts = bytearray(), array("q"), (0, 0, 0)
    for text in texts:
        starts.append(len(grown) // dtype.itemsize)
        for part in _encoded(tokenizer, text, counter):
            grown += part.ids.astype(dtype).tobytes()
            amounts = amounts[0] + part.chars, amounts[1] + part.bytes, amounts[2] + part.unknown
        grown += end
    ids = np.frombuffer(grown, dtype)
    return Tokens(ids, np.frombuffer(starts, np.int64) if layout == "documents" else None, *amounts)


def _id_type(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every id."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _encoded(tokenizer: Tokenizer, text: str | TextStream, counter: Counter) -> Iterator[Encoded]:
    return encode_pieces(tokenizer, evenly(track(in_pieces(text), counter), PIECE), unk="keep")


def _kept(tokenizer: Tokenizer, text: TextStream, counter: Counter) -> Tokens:
    """The tokens of a text in a file."""

    def parts() -> Iterator[Part]:
        for part in _encoded(tokenizer, text, counter):
            yield Part(part.ids, (part.chars, part.bytes, part.unknown))
        text.check()

    dtype = _id_type(tokenizer)
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.to_json()]).encode()).hexdigest()
    ids, (chars, size, unknown) = get_or_create(key, dtype, parts, len(text) * dtype.itemsize, counter.watch.note)
    return Tokens(ids, None, chars, size, unknown)
