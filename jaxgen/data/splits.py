"""From what the user names to texts to train on and texts to validate with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from jaxgen.data.batches import BATCHES
from jaxgen.data.files import read_lines, whole_lines
from jaxgen.data.packed_texts import CompactStrings
from jaxgen.data.progress import SILENT, ProgressReporter
from jaxgen.data.sources import TextSource, TextStream, open_texts
from jaxgen.data.tokens import permutation
from jaxgen.errors import DataError, UsageError, choose
from jaxgen.tasks.language.conditioning import KnownSource, RowMetadata, read_conditioning_columns
from jaxgen.tokenizers.base import Text, in_pieces

#: Share of the data held out unless told otherwise.
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Splits:
    """The texts to train on and to validate with, before a tokenizer has seen them: documents, or one running text.

    ``train_known`` and ``val_known`` are what is known of the documents beside their text, if labels or numbers were
    read. The other fields are those of ``LanguageCorpus``.
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

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a run remembers of its data: their name and the digest of their bytes.

        With validation data, ``sha256`` is that of the two hexadecimal digests, training data first.
        """
        return fingerprint(self.name, self.sha256, self.val_sha256)

    def whole(self) -> tuple[list[str], list[str]]:
        """The texts to train on and to validate with as strings."""
        train, val = (["".join(in_pieces(text)) for text in part] for part in (self.train, self.val))
        self.check()
        return train, val

    def check(self) -> None:
        """Raise ``DataError`` if a file was changed since it was first read: ask once all has been read."""
        for text in (*self.train[:1], *self.val[:1]):  # running text is one text
            if isinstance(text, TextStream):
                text.check()


def fingerprint(name: str, sha256: str, val_sha256: str | None) -> dict[str, str]:
    """As ``Splits.fingerprint``."""
    if val_sha256 is not None:
        sha256 = hashlib.sha256(f"{sha256}{val_sha256}".encode()).hexdigest()
    return {"name": name, "sha256": sha256}


def read_splits(
    specs: Sequence[str],
    *,
    level: str = "char",
    text_column: str | None = None,
    layout: str | None = None,
    documents: str | None = None,
    val_fraction: float = VAL_FRACTION,
    val_data: Sequence[str] | None = None,
    label_column: str | None = None,
    feature_columns: Sequence[str] = (),
    seed: int = 0,
    watch: ProgressReporter = SILENT,
) -> Splits:
    """Read texts and split them, as ``prepare`` does before it encodes them; errors as there.

    Running text is not held in memory: it can be read again in pieces.
    """
    if layout is not None:
        choose(layout, BATCHES, "layout")
    if not (isinstance(val_fraction, (int, float)) and 0 <= val_fraction < 1):
        raise UsageError(
            f"The validation fraction is {val_fraction!r}; it must be a number from 0 (no validation) to below 1."
        )
    if documents is not None and layout not in (None, "documents"):
        raise UsageError(f"--documents {documents} has no meaning with --layout {layout}. Give --layout documents too.")
    if label_column is not None or feature_columns:
        if layout not in (None, "documents") or documents not in (None, "row"):
            other = f"--layout {layout}" if layout not in (None, "documents") else f"--documents {documents}"
            raise UsageError(f"Labels and features belong to rows, which {other} does not keep: leave it out.")
        names = text_column, label_column, feature_columns
        known = read_conditioning_columns(specs, *names)
        return _split_known(
            known, read_conditioning_columns(val_data, *names) if val_data else None, val_fraction, seed
        )

    reading: dict[str, Any] = {"text_column": text_column, "documents": documents, "level": level, "watch": watch}
    source = open_texts(specs, **reading)
    held_out = open_texts(val_data, **reading) if val_data else None
    if layout is None:
        layout = "documents" if documents is not None or source.by_row else "stream"
    train: Sequence[str | TextStream]
    val: Sequence[str | TextStream]
    if layout == "documents":
        cut = documents or _default_documents(source)
        train, val = _documents(source, held_out, cut, val_fraction, seed)
    else:
        cut = None
        train, val = _running(source, held_out, val_fraction)
    val_sha256 = None if held_out is None else held_out.sha256
    return Splits(train, val, source.name, source.sha256, val_sha256, layout, cut)


def _running(
    source: TextSource, held_out: TextSource | None, val_fraction: float
) -> tuple[Sequence[TextStream], Sequence[TextStream]]:
    """One text to train on, and one to validate with if there is any."""
    text = TextStream.of(source)
    if held_out is not None:
        return [text], [TextStream.of(held_out)]
    train, val = text.cut(int(len(text) * (1 - val_fraction)))
    return [train], [val] if len(val) else []


def _documents(
    source: TextSource, held_out: TextSource | None, cut: str, val_fraction: float, seed: int
) -> tuple[CompactStrings, CompactStrings]:
    """The documents to train on and those to validate with."""
    train = split_documents(source.texts, cut)
    source.check()
    if held_out is None:
        train, val = _hold_out(train, val_fraction, seed, cut)
    else:
        val = split_documents(held_out.texts, "line" if cut == "row" and not held_out.by_row else cut)
        held_out.check()
    if not train or (held_out is not None and not val):
        which = "validation data" if train else "data"
        raise DataError(f"There is no document with text in the {which} cut by {cut}. Give more text.")
    return train, val


def split_documents(texts: Iterable[Text], by: str) -> CompactStrings:
    """Texts cut into documents by ``line``, ``blank-line``, ``file`` or ``row``; those without text are dropped."""
    if by == "line":
        return CompactStrings(line for text in texts for line in read_lines(in_pieces(text)))
    if by == "blank-line":
        return CompactStrings(paragraph for text in texts for paragraph in _paragraphs(in_pieces(text)))
    if not isinstance(texts, CompactStrings):
        texts = CompactStrings("".join(in_pieces(text)) for text in texts)
    return texts.take(np.flatnonzero([len(text) > 0 and not text.isspace() for text in texts]))


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    """Runs of lines that are not blank, inner line endings kept."""
    run: list[str] = []
    for line in chain(whole_lines(pieces), [""]):
        if line.strip():
            run.append(line)
        elif run:
            yield "\n".join(run).removesuffix("\r")
            run = []


def _default_documents(source: TextSource) -> str:
    if source.by_row:
        return "row"
    return source.default_documents or ("file" if len(source.texts) > 1 else "line")


def _hold_out(
    documents: CompactStrings, val_fraction: float, seed: int, by: str
) -> tuple[CompactStrings, CompactStrings]:
    """The documents to train on and those held out, both in the order of the data."""
    train, val = _held_out(len(documents), val_fraction, seed, by)
    return documents.take(train), documents.take(val)


def _held_out(count: int, val_fraction: float, seed: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``count`` documents to train on and which to hold out, the tail of a seeded shuffle; both sorted."""
    if val_fraction == 0:
        return np.arange(count), np.arange(0)
    if count < 2:
        raise DataError(
            f"The data cut by {by} has {count} document{'' if count == 1 else 's'} with text, but at "
            "least 2 are needed to hold one out. Cut it otherwise with --documents, or give --val-data."
        )
    held = min(max(1, math.floor(count * val_fraction)), count - 1)
    order = permutation(count, seed, 0, "split")
    return np.sort(order[:-held]), np.sort(order[-held:])


def _split_known(source: KnownSource, held_out: KnownSource | None, val_fraction: float, seed: int) -> Splits:
    """Rows split as they are without labels, but that the first text of a label is never held out."""
    if held_out is not None:
        parts = source.texts, held_out.texts, source.name, source.sha256, held_out.sha256
        return Splits(*parts, "documents", "row", source.known, held_out.known)
    train, val = _held_out(len(source.texts), val_fraction, seed, "row")
    labels = source.known.labels
    if labels:
        seen = {labels[i] for i in train}
        first = {labels[i]: i for i in reversed(val.tolist()) if labels[i] not in seen}
        moved = np.array(sorted(first.values()), np.int64)
        if moved.size and moved.size == val.size:
            raise DataError(
                f"Every text of {source.name} that was held out has a label of its own, so that none is left to "
                "validate with. Give more rows, or check --label-column."
            )
        train, val = np.sort(np.concatenate([train, moved])), np.setdiff1d(val, moved)
    texts, val_texts = ([source.texts[i] for i in which.tolist()] for which in (train, val))
    known, val_known = (source.known.take(which) for which in (train, val))
    return Splits(texts, val_texts, source.name, source.sha256, None, "documents", "row", known, val_known)
