"""Reads and splits the texts of a language model, trains the tokenizer, and encodes both splits."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from jaxgen.data.batches import Tokens, permutation
from jaxgen.data.datasets import NAMED
from jaxgen.data.files import NO_PROGRESS, FilesDigest, ProgressCounter, ProgressReporter, read_lines, track
from jaxgen.data.sources import CompactStrings, TextSource, TextStream, open_texts
from jaxgen.data.tables import (
    HEADERS,
    VAL_FRACTION,
    FirstRow,
    capitalized,
    fingerprint,
    header_decision,
    header_notes,
    shared_files_notes,
)
from jaxgen.data.token_cache import Part, get_or_create
from jaxgen.errors import DataError, check_kind, counted, listed
from jaxgen.runs.config import validate
from jaxgen.tasks.base import tokenizer_options
from jaxgen.tasks.labels import twin_notes
from jaxgen.tasks.language.conditioning import ConditionedTexts, Conditioning, RowMetadata, read_conditioning_columns
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.text import Text, in_pieces, lines_with_ends
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.tokenizers.base import EOS, Encoded, Tokenizer, encode_pieces, evenly, text_bytes

#: Characters that are encoded at once, which bounds the memory needed besides the tokens.
PIECE = 1 << 18
#: Tokens of running text with at least this many characters are kept in a memory-mapped file.
LARGE = 1 << 25


@dataclass(frozen=True)
class TextSplits:
    """The training and validation texts before tokenization: documents, or one running text.

    ``holdout`` are the texts that ``--holdout`` keeps from training. ``train_known``, ``val_known`` and
    ``holdout_known`` are the labels and numbers of the documents, if such columns were read.
    ``has_validation`` is whether validation texts are required. ``line_ends`` counts the CR LF and CR that were read as
    LF, ``first_rows`` are those of tables that may be headers. The other fields are those of ``LanguageCorpus``.
    """

    train: Sequence[str | TextStream]
    val: Sequence[str | TextStream]
    name: str
    sha256: str
    val_sha256: str | None
    layout: str
    documents: str | None
    train_known: RowMetadata | None = None
    val_known: RowMetadata | None = None
    holdout: Sequence[str | TextStream] = ()
    holdout_known: RowMetadata | None = None
    has_validation: bool = True
    line_ends: int = 0
    first_rows: tuple[FirstRow, ...] = ()

    @property
    def fingerprint(self) -> dict[str, str]:
        """The name of the data and the digest of their bytes."""
        return fingerprint(self.name, self.sha256, self.val_sha256)

    def whole(self) -> tuple[list[str], list[str]]:
        """Returns the training and validation texts as strings."""
        train, val = (["".join(in_pieces(text)) for text in part] for part in (self.train, self.val))
        self.check()
        return train, val

    def holdout_sha256(self) -> str | None:
        """Returns the digest of the held-out text in UTF-8; None without one. Of documents, that of their digests."""
        digests = []
        for text in self.holdout:
            digest = hashlib.sha256()
            for piece in in_pieces(text):
                digest.update(text_bytes(piece))
            digests.append(digest.digest())
        return FilesDigest(digests).hexdigest() if digests else None

    def check(self) -> None:
        """Raises ``DataError`` if a file changed since it was first read; call it after the last reading."""
        for text in (*self.train[:1], *self.val[:1], *self.holdout[:1]):  # running text is one text
            if isinstance(text, TextStream):
                text.check()


@dataclass(frozen=True)
class LanguageCorpus:
    """A tokenizer and the splits it encoded; its vocabulary comes from ``train`` alone.

    ``holdout`` and the digest of its text are those of ``--holdout``, else None. ``sha256`` is the ``FilesDigest`` of
    the data, ``val_sha256`` that of the validation data (None when they were held out of the data). ``documents`` is
    how the texts were cut (layout ``documents``, else None). ``conditioning`` turns the labels and numbers of the
    documents into the ``conditions`` of the splits. ``header`` is the ``header_decision`` of tables.
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
    header: str | None = None
    holdout: Tokens | None = None
    holdout_sha256: str | None = None

    def __repr__(self) -> str:
        sizes = f"{self.train.ids.size:,} tokens for training, {self.val.ids.size:,} for validation"
        return f"<jaxgen.LanguageCorpus {self.name!r}: {sizes}, {self.tokenizer!r}>"


def prepare(
    specs: Sequence[str],
    *,
    level: str = "char",
    tokenizer_options: Mapping[str, int] | None = None,
    tokenizer: Tokenizer | None = None,
    newlines: str | None = None,
    text_column: str | None = None,
    layout: str | None = None,
    documents: str | None = None,
    val_fraction: float = VAL_FRACTION,
    val_data: Sequence[str] | None = None,
    holdout: float = 0.0,
    label_column: str | None = None,
    feature_columns: Sequence[str] = (),
    conditioning: Conditioning | None = None,
    seed: int = 0,
    watch: ProgressReporter = NO_PROGRESS,
) -> LanguageCorpus:
    """Reads and splits texts, trains a tokenizer on the training split (or uses the one given) and encodes both.

    Running text is read in pieces, and the tokens of a large text are kept in a file (``jaxgen.data.token_cache``),
    so neither has to fit into memory.

    Args:
        specs: Built-in corpora, named sets, files, folders or globs.
        level: What a token is, if no ``tokenizer`` is given.
        tokenizer_options: Options of ``Tokenizer.train``.
        tokenizer: Encodes the texts; by default one is trained.
        newlines: ``lf`` or ``keep``, see ``LanguageConfig``.
        text_column: Column of a table to read, by name or by position from 1.
        layout: ``stream``, ``windows`` or ``documents``. Default: documents for rows of a table or if ``documents`` is
            given, else stream.
        documents: How texts are cut into documents: by ``line``, ``blank-line``, ``file`` or ``row``.
        val_fraction: Share of the data held out: the tail of each file of running text, documents at random. 0: none.
        val_data: Validation data of their own, instead of holding some out.
        holdout: Share of the training data to keep from training too, as ``LanguageCorpus.holdout``.
        label_column: Column with the label of each document; every row of a table is then a document.
        feature_columns: Columns with numbers, likewise.
        conditioning: Encodes labels and numbers; by default it is fitted to the training split.
        seed: Seed of the split.
        watch: Receives progress and notes.

    Raises:
        UsageError: A value is out of range.
        DataError: The data cannot be used.

    Example:
        >>> corpus = jaxgen.prepare(["book.txt"])
        >>> corpus.tokenizer.decode(corpus.train.ids[:7])
        'the cat'
    """
    if tokenizer is not None:
        check_kind("prepare", tokenizer, Tokenizer, "a trained tokenizer, or a level")
    if tokenizer_options is not None:
        check_kind("prepare", tokenizer_options, Mapping, "tokenizer options as a dictionary")
    settings: dict[str, Any] = {
        "data": specs,
        "val_data": tuple(map(str, val_data)) if val_data else None,
        "val_fraction": None if val_data or val_fraction == 0 else val_fraction,
        "holdout": holdout or None,
        "level": level if tokenizer is None else tokenizer.kind,
        "newlines": newlines,
        "text_column": text_column,
        "label_column": label_column,
        "feature_columns": tuple(feature_columns),
        "layout": layout,
        "documents": documents,
        "seed": seed,
        **(tokenizer_options or {}),
    }
    config = validate(LanguageConfig, settings)
    splits = read_splits(config, watch, validation=val_fraction > 0 or bool(val_data))
    return encode_splits(splits, config, tokenizer, conditioning, watch)


def encode_splits(
    splits: TextSplits,
    config: LanguageConfig,
    tokenizer: Tokenizer | None = None,
    conditioning: Conditioning | None = None,
    watch: ProgressReporter = NO_PROGRESS,
) -> LanguageCorpus:
    """Encodes both splits; arguments and errors are those of ``prepare``."""
    if conditioning is None and splits.train_known is not None:
        conditioning = Conditioning.fit(splits.train_known, config.feature_columns, splits.name)
        for note in twin_notes(conditioning.labels):
            watch.note(note)
    if tokenizer is None or config.extend_vocabulary:
        counter = ProgressCounter(watch, "learning the vocabulary", sum(map(len, splits.train)))
        texts, options = (track(in_pieces(text), counter) for text in splits.train), tokenizer_options(config)
        if tokenizer is None:
            tokenizer = TOKENIZERS[config.level].train(texts, **options)
        else:
            tokenizer, new = tokenizer.extended(texts, **options)
            what = counted(len(new), f"new {tokenizer.unit}")
            watch.note(f"The vocabulary of --init-from was extended by {what}{': ' if new else ''}{listed(new)}.")
    for note in header_notes(splits.first_rows):
        watch.note(note)

    def encode(texts: Sequence[str | TextStream], known: RowMetadata | None) -> Tokens:
        tokens = encode_split(tokenizer, texts, splits.layout, watch)
        if known is None or conditioning is None:
            return tokens
        return replace(tokens, conditions=conditioning.encode(known))

    train, val = encode(splits.train, splits.train_known), encode(splits.val, splits.val_known)
    holdout = encode(splits.holdout, splits.holdout_known) if splits.holdout else None
    holdout_sha256 = splits.holdout_sha256()
    splits.check()
    if splits.has_validation and val.ids.size < 2:
        raise DataError(
            f"The validation split has {counted(val.ids.size, 'token')}, but at least 2 are needed. Give more text, "
            "a larger validation fraction, or a validation file with --val-data."
        )
    if config.holdout is not None and (holdout is None or holdout.ids.size < 2):
        raise DataError(
            f"--holdout {config.holdout:g} keeps {counted(0 if holdout is None else holdout.ids.size, 'token')} from "
            "training, but at least 2 are needed. Give more text, or a larger share."
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
        header=header_decision(splits.first_rows),
        holdout=holdout,
        holdout_sha256=holdout_sha256,
    )


def read_splits(config: LanguageConfig, watch: ProgressReporter = NO_PROGRESS, validation: bool = True) -> TextSplits:
    """Reads texts and splits them. Running text is not held in memory: it can be read again in pieces.

    Args:
        config: The settings.
        watch: Receives progress and notes.
        validation: Whether to hold out validation texts if there are no validation data.

    Raises:
        DataError: The data cannot be used.
    """
    fraction = (config.val_fraction or VAL_FRACTION) if validation else 0.0
    if config.is_conditioned:
        header = HEADERS[config.header]
        names = config.text_column, config.label_column, config.feature_columns, header, watch, config.reading
        table = read_conditioning_columns(config.data, *names)
        val_table = read_conditioning_columns(config.val_data, *names) if config.val_data else None
        tables = [table, val_table] if val_table else [table]
        _note_shared_files(table.files, val_table.files if val_table else (), watch)
        line_ends, first_rows = sum(each.line_ends for each in tables), sum((each.first_rows for each in tables), ())
        splits = _split_conditioned(table, val_table, fraction, config.holdout, config.seed)
        return replace(splits, has_validation=validation, line_ends=line_ends, first_rows=first_rows)

    documents, layout = config.documents, config.layout
    read = partial(
        open_texts,
        text_column=config.text_column,
        documents=documents,
        level=config.level,
        reading=config.reading,
        header=HEADERS[config.header],
        watch=watch,
    )
    source = read(config.data)
    val_data = config.val_data or (_own_validation(config) if validation else None)
    held_out = read(val_data) if val_data else None
    if layout is None:
        layout = "documents" if documents is not None or source.by_row else "stream"
    parts: Sequence[Sequence[str | TextStream]]
    if layout == "documents":
        cut = documents or _default_documents(source)
        parts = _documents(source, held_out, cut, fraction, config.holdout, config.seed)
    else:
        cut = None
        parts = _running(source, held_out, fraction, config.holdout, watch)
    train, val, kept = parts
    val_sha256 = None if held_out is None else held_out.sha256
    sources = [source, held_out] if held_out else [source]
    _note_shared_files(source.digests, held_out.digests if held_out else (), watch)
    line_ends, first_rows = sum(each.line_ends for each in sources), sum((each.first_rows for each in sources), ())
    about = source.name, source.sha256, val_sha256, layout, cut
    splits = TextSplits(train, val, *about, holdout=kept)
    return replace(splits, has_validation=validation, line_ends=line_ends, first_rows=first_rows)


def _own_validation(config: LanguageConfig) -> tuple[str, ...] | None:
    """The validation data of a named set, unless a share of it is to be held out."""
    named = NAMED.get(config.data[0]) if len(config.data) == 1 and config.val_fraction is None else None
    return (named.val,) if named is not None and named.val is not None else None


def _note_shared_files(train: Sequence[bytes], held_out: Sequence[bytes], watch: ProgressReporter) -> None:
    for note in shared_files_notes(train, held_out):
        watch.note(f"{capitalized(note)}.")


def _running(
    source: TextSource,
    held_out: TextSource | None,
    val_fraction: float,
    holdout: float | None,
    watch: ProgressReporter,
) -> tuple[Sequence[TextStream], ...]:
    """Splits running text, each of several files: one training text, and at most one each that validates or is kept."""
    text = TextStream.of(source)
    if held_out is not None:
        train, val = text, TextStream.of(held_out)
    else:
        train, val = text.cut(1 - val_fraction)
        if len(source.texts) > 1 and len(val):
            watch.note(
                f"The last {100 * val_fraction:g}% of each of the {len(source.texts):,} files of {source.name} "
                "validate. To hold out whole files, give them as --val-data."
            )
    train, kept = train.cut(1 - (holdout or 0.0))
    return [train], [val] if len(val) else [], [kept] if len(kept) else []


def _documents(
    source: TextSource, held_out: TextSource | None, cut: str, val_fraction: float, holdout: float | None, seed: int
) -> tuple[CompactStrings, ...]:
    """Splits documents, at random unless there are validation data of their own."""
    texts = split_documents(source.texts, cut)
    source.check()
    if held_out is not None:
        val = split_documents(held_out.texts, "line" if cut == "row" and not held_out.by_row else cut)
        held_out.check()
        if texts and not val:
            raise _no_documents("validation data", cut)
        val_fraction = 0.0
    train_rows, val_rows, kept_rows = _split_indices(len(texts), val_fraction, holdout, seed, cut)
    if not texts:
        raise _no_documents("data", cut)
    return texts.take(train_rows), texts.take(val_rows) if held_out is None else val, texts.take(kept_rows)


def _no_documents(which: str, cut: str) -> DataError:
    return DataError(f"There is no document with text in the {which} cut by {cut}. Give more text.")


def split_documents(texts: Iterable[Text], by: str) -> CompactStrings:
    """Cuts texts into documents by ``line``, ``blank-line``, ``file`` or ``row``; drops those without text."""
    if by == "line":
        return CompactStrings(line for text in texts for line in read_lines(in_pieces(text)))
    if by == "blank-line":
        return CompactStrings(paragraph for text in texts for paragraph in _paragraphs(in_pieces(text)))
    if not isinstance(texts, CompactStrings):
        texts = CompactStrings("".join(in_pieces(text)) for text in texts)
    return texts.take(np.flatnonzero([len(text) > 0 and not text.isspace() for text in texts]))


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    """Yields runs of lines that are not blank, with their inner line endings."""
    run: list[str] = []
    for line in chain(lines_with_ends(pieces), [""]):
        if line.strip():
            run.append(line)
        elif run:
            yield "".join(run).rstrip("\r\n")
            run = []


def _default_documents(source: TextSource) -> str:
    if source.by_row:
        return "row"
    return source.default_documents or ("file" if len(source.texts) > 1 else "line")


def _split_indices(
    count: int, val_fraction: float, holdout: float | None, seed: int, by: str
) -> tuple[np.ndarray, ...]:
    """The indices of the documents for training, for validation, and of those that are kept from training; sorted.

    The validation documents are the tail of a seeded shuffle. The others that are kept do not depend on the seed, so
    that runs of several seeds with the same validation data keep the same ones.
    """
    train, val = _tail(count, val_fraction, seed, 0, by)
    rows, kept = _tail(train.size, holdout or 0.0, 0, 1, by)
    return train[rows], val, train[kept]


def _tail(count: int, fraction: float, seed: int, epoch: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    """The indices of ``count`` documents without the tail of a shuffle, and of that tail, both sorted."""
    if fraction == 0:
        return np.arange(count), np.arange(0)
    if count < 2:
        raise DataError(
            f"The data cut by {by} has {count} document{'' if count == 1 else 's'} with text, but at "
            "least 2 are needed to hold one out. Cut it in another way with --documents, or give --val-data."
        )
    held = min(max(1, math.floor(count * fraction)), count - 1)
    order = permutation(count, seed, epoch, "split")
    return np.sort(order[:-held]), np.sort(order[-held:])


def _split_conditioned(
    source: ConditionedTexts,
    held_out: ConditionedTexts | None,
    val_fraction: float,
    holdout: float | None,
    seed: int,
) -> TextSplits:
    """Splits rows with labels or numbers at random; at least one text of each label is kept for training."""
    if held_out is not None:
        val_fraction = 0.0
    train, val, kept = _split_indices(len(source.texts), val_fraction, holdout, seed, "row")
    if labels := source.known.labels:
        for some in (val, kept):
            seen = {labels[i] for i in train}
            first = {labels[i]: i for i in reversed(some.tolist()) if labels[i] not in seen}
            train = np.sort(np.concatenate([train, np.array([*first.values()], np.int64)]))
        for some in (val, kept):
            if some.size and np.isin(some, train).all():
                raise DataError(
                    f"Every text of {source.name} that would be held out is the only one of its label, so none is "
                    "left. Give more rows, or check --label-column."
                )
        val, kept = np.setdiff1d(val, train), np.setdiff1d(kept, train)

    def part(rows: np.ndarray) -> tuple[list[str], RowMetadata]:
        return [source.texts[i] for i in rows.tolist()], source.known.take(rows)

    texts, known = part(train)
    val_texts, val_known = part(val) if held_out is None else (held_out.texts, held_out.known)
    kept_texts, kept_known = part(kept)
    about = source.name, source.sha256, None if held_out is None else held_out.sha256, "documents", "row"
    return TextSplits(texts, val_texts, *about, known, val_known, kept_texts, kept_known)


def encode_split(
    tokenizer: Tokenizer, texts: Sequence[str | TextStream], layout: str, watch: ProgressReporter = NO_PROGRESS
) -> Tokens:
    """Encodes one split; with layout ``documents``, ends each text in EOS and records where it starts."""
    counter = ProgressCounter(watch, "encoding", sum(map(len, texts)))
    if len(texts) == 1 and isinstance(texts[0], TextStream) and len(texts[0]) >= LARGE:
        return _kept(tokenizer, texts[0], counter)
    dtype = _id_type(tokenizer)
    end = np.array([EOS], dtype).tobytes() if layout == "documents" else b""
    # Append to one buffer: concatenating parts at the end would need the memory twice.
    grown, starts, chars, size, words, unknown = bytearray(), array("q"), 0, 0, 0, 0
    for text in texts:
        starts.append(len(grown) // dtype.itemsize)
        for part in _encoded(tokenizer, text, counter):
            grown += part.ids.astype(dtype).tobytes()
            chars, size = chars + part.chars, size + part.bytes
            words, unknown = words + part.words, unknown + part.unknown
        grown += end
        words += bool(end)
    ids = np.frombuffer(grown, dtype)
    doc_starts = np.frombuffer(starts, np.int64) if layout == "documents" else None
    return Tokens(ids, doc_starts, chars, size, words, unknown)


def _id_type(tokenizer: Tokenizer) -> np.dtype:
    """The smallest integer type that holds every id."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _encoded(tokenizer: Tokenizer, text: str | TextStream, counter: ProgressCounter) -> Iterator[Encoded]:
    return encode_pieces(tokenizer, evenly(track(in_pieces(text), counter), PIECE), unk="keep")


def _kept(tokenizer: Tokenizer, text: TextStream, counter: ProgressCounter) -> Tokens:
    """Encodes a large text into a memory-mapped file."""

    def parts() -> Iterator[Part]:
        for part in _encoded(tokenizer, text, counter):
            yield Part(part.ids, (part.chars, part.bytes, part.words, part.unknown))
        text.check()

    dtype = _id_type(tokenizer)
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.to_json()]).encode()).hexdigest()
    ids, (chars, size, words, unknown) = get_or_create(
        key, dtype, parts, len(text) * dtype.itemsize, counter.watch.note
    )
    return Tokens(ids, None, chars, size, words, unknown)
