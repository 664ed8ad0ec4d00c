"""Labels and numbers of texts, read from tables, and the vectors that condition a language model on them."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
from pydantic import BeforeValidator, Strict, model_validator

from jaxgen.data.datasets import BUILTIN, NAMED, NamedSet
from jaxgen.data.files import NO_PROGRESS, ProgressReporter
from jaxgen.data.in_memory import data_name
from jaxgen.data.tables import (
    TEXT_NAMES,
    Column,
    FirstRow,
    Table,
    capitalized,
    read_first_row,
    read_table,
    shown_first_row,
    usual_column,
)
from jaxgen.errors import DataError, UsageError, choose, listed
from jaxgen.fsutil import STRICT, load_strict
from jaxgen.tasks.labels import check_known, distinct_labels, label_names
from jaxgen.text import STANDARD, Reading
from jaxgen.tokenizers import SavedTokenizer, load_tokenizer
from jaxgen.tokenizers.base import Tokenizer
from jaxgen.training.windows import Conditions


@dataclass(frozen=True)
class RowMetadata:
    """Labels and numbers of N documents: ``labels`` (N, or none), ``numbers`` [N, F], and where each was read."""

    labels: list[str]
    numbers: np.ndarray  # float64
    locations: list[str]

    def __len__(self) -> int:
        return len(self.locations)

    def take(self, indices: np.ndarray) -> RowMetadata:
        """Returns the metadata of the documents at ``indices``, in that order."""
        chosen = indices.tolist()
        labels = [self.labels[i] for i in chosen] if self.labels else []
        return RowMetadata(labels, self.numbers[indices], [self.locations[i] for i in chosen])


@dataclass(frozen=True)
class ConditionedTexts:
    """Documents with their metadata.

    ``sha256`` is the ``FilesDigest`` of all files, ``files`` are those of each; ``line_ends`` counts the CR LF and CR
    that were read as LF.
    """

    texts: list[str]
    known: RowMetadata
    name: str
    sha256: str
    line_ends: int = 0
    first_rows: tuple[FirstRow, ...] = ()
    files: tuple[bytes, ...] = ()


def read_conditioning_columns(
    specs: Sequence[str],
    text_column: str | None = None,
    label_column: str | None = None,
    feature_columns: Sequence[str] = (),
    header: bool | None = None,
    watch: ProgressReporter = NO_PROGRESS,
    reading: Reading = STANDARD,
) -> ConditionedTexts:
    """Reads texts with their labels and numbers from CSV, TSV and JSONL files (``.gz`` too), or from a named set.

    Columns are given by name, or by position from 1; ``header`` is as in ``read_table``. A named set has a default text
    column, and names for the labels of its label column. Rows without text are left out.

    Raises:
        DataError: The data cannot be read, or a text has no label or number.
        UsageError: The data are not tables.
    """
    if built_in := [spec for spec in specs if spec in BUILTIN]:
        raise UsageError(
            f"The built-in data {built_in[0]} have no columns for --label-column or --feature-columns: give a .csv, "
            ".tsv or .jsonl file, or leave the flag out."
        )
    named = NAMED.get(specs[0]) if len(specs) == 1 else None
    text_column = text_column or (named.text_column if named else None)
    if text_column is None:
        row = read_first_row(specs)
        text_column = usual_column(row, TEXT_NAMES)
        if text_column is None:
            raise UsageError(
                f"Which column of {data_name(specs)} has the text?{shown_first_row(row)} Give --text-column, by name "
                "or by position from 1."
            )
        watch.note(f"Columns of {data_name(specs)}: {text_column!r} is the text; --text-column chooses another.")
    labels_of = [] if label_column is None else [label_column]
    columns = [Column((text_column,), "--text-column")]
    columns += [Column((name,), "--label-column", numbers=True) for name in labels_of]
    columns += [Column((name,), "--feature-columns", numbers=True) for name in feature_columns]
    rows = read_table(specs, columns, named.header if named else header, watch, reading)
    kept = [i for i, text in enumerate(rows.columns[0]) if text and not text.isspace()]
    if not kept:
        raise DataError(f"The data {rows.name} have no row with a text. Give rows with text, or check --text-column.")
    rows = rows.take(np.array(kept))
    labels = [] if label_column is None else _labels(rows, named, label_column)
    first = len(rows.columns) - len(feature_columns)
    numbers = [_numbers(rows, part, name) for part, name in zip(rows.columns[first:], feature_columns)]
    table = np.stack(numbers, axis=1) if numbers else np.zeros((len(rows), 0))
    known = RowMetadata(labels, table, rows.locations)
    about = rows.name, rows.sha256, rows.line_ends, rows.first_rows, rows.files
    return ConditionedTexts(rows.columns[0], known, *about)


def _labels(rows: Table, named: NamedSet | None, column: str) -> list[str]:
    """Returns the label of every row; raises ``DataError`` if one has none."""
    labels = label_names(rows.columns[1], named, column)
    if missing := [i for i, label in enumerate(labels) if not label]:
        raise DataError(
            f"{capitalized(rows.locations[missing[0]])} has a text but no label, one of {len(missing):,} such rows. "
            "Fill in the label, or remove the row."
        )
    return labels


def _numbers(rows: Table, cells: list[str], column: str) -> np.ndarray:
    """Returns a column as numbers, float64 [N]."""
    found = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            found[i] = float(cell)
        except ValueError:
            found[i] = math.nan
        if not math.isfinite(found[i]):
            raise DataError(
                f"{capitalized(rows.locations[i])} has {cell!r} in the column {column!r}, which is not a finite "
                "number: correct it, remove the row, or leave the column out of --feature-columns."
            )
    return found


@dataclass(frozen=True)
class Condition:
    """The condition of a text to generate: labels with shares that add up to 1, and a number for each feature.

    ``None`` stands for the mean of the training texts.
    """

    labels: tuple[tuple[str, float], ...] | None = None
    features: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, object]:
        """Returns the condition as JSON values."""
        labels = None if self.labels is None else dict(self.labels)
        return {"labels": labels, "features": None if self.features is None else list(self.features)}

    def __str__(self) -> str:
        shares = [f"{name}:{share:g}" for name, share in self.labels or ()]
        parts = [" ".join(shares) if len(shares) > 1 else shares[0].rpartition(":")[0]] if shares else []
        parts += [" ".join(f"{value:g}" for value in self.features)] if self.features is not None else []
        return ", ".join(parts) or "the mean"


def conditions_of(known: RowMetadata) -> list[Condition]:
    """Returns the condition of each document."""
    labels: Sequence[Any] = [((label, 1.0),) for label in known.labels] or [None] * len(known)
    numbers = [tuple(row) or None for row in known.numbers.tolist()]
    return [Condition(*both) for both in zip(labels, numbers)]


_Strings = Annotated[tuple[str, ...], Strict(False)]
_Numbers = Annotated[tuple[float, ...], Strict(False)]


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Conditioning:
    """Encodes conditions as vectors: the share of each label, then the standardised features.

    ``shares``, ``means`` and ``deviations`` are those of the training documents.
    """

    labels: _Strings = ()
    shares: _Numbers = ()
    features: _Strings = ()
    means: _Numbers = ()
    deviations: _Numbers = ()

    @model_validator(mode="after")
    def _consistent(self) -> Conditioning:
        if not self.width:
            raise ValueError("there must be labels or features")
        if len({*self.labels}) != len(self.labels) or len(self.shares) != len(self.labels):
            raise ValueError("each label must occur once and have one share")
        if not len(self.features) == len(self.means) == len(self.deviations):
            raise ValueError("each feature must have one mean and one deviation")
        if not all(deviation > 0 for deviation in self.deviations):
            raise ValueError("deviations must be above 0")
        return self

    @property
    def width(self) -> int:
        """The size of a vector."""
        return len(self.labels) + len(self.features)

    @classmethod
    def fit(cls, known: RowMetadata, features: Sequence[str], name: str) -> Conditioning:
        """Fits the training documents of the data ``name``.

        Raises:
            DataError: There is only one label, there are too many, or a feature is constant.
        """
        counts = Counter(known.labels)
        labels = distinct_labels(known.labels, name) if known.labels else []
        means, deviations = known.numbers.mean(axis=0), known.numbers.std(axis=0)
        for feature, deviation in zip(features, deviations):
            if not (math.isfinite(deviation) and deviation > 0):
                raise DataError(
                    f"The numbers of the column {feature!r} cannot be standardised: their standard deviation in the "
                    f"training texts of {name} is {deviation:g}. Leave the column out, or check it."
                )
        shares = tuple(counts[label] / len(known) for label in labels)
        return cls(tuple(labels), shares, tuple(features), tuple(means.tolist()), tuple(deviations.tolist()))

    def encode(self, known: RowMetadata) -> Conditions:
        """Returns the distinct vectors of documents; raises ``DataError`` for an unknown label."""
        check_known(known.labels, known.locations, self.labels)
        number = {label: i for i, label in enumerate(self.labels)}
        of = np.array([number[label] for label in known.labels], np.int64)
        if not self.features:
            return Conditions(of, np.eye(len(self.labels), dtype=np.float32))
        beside = of[:, None] if self.labels else np.zeros((len(known), 0))
        different, of = np.unique(np.concatenate([beside, known.numbers], axis=1), axis=0, return_inverse=True)
        vectors = self._standardised(different[:, beside.shape[1] :])
        if self.labels:
            shares = np.eye(len(self.labels))[different[:, 0].astype(np.int64)]
            vectors = np.concatenate([shares, vectors], axis=1)
        return Conditions(of.reshape(-1), vectors.astype(np.float32))

    def choose(
        self, labels: str | Mapping[str, float] | None = None, features: Sequence[float] | None = None
    ) -> Condition:
        """Returns a condition.

        Args:
            labels: One label, or labels with weights, of which only the proportions matter.
            features: A number for each feature.

        Raises:
            UsageError: A label is unknown, or weights or numbers cannot be used.
        """
        if labels is not None and not self.labels:
            raise UsageError(
                f"This run has no labels, only the features {listed(self.features)}. Give --features, or train with "
                "--label-column."
            )
        if features is not None and len(features) != len(self.features):
            known = f"it has {len(self.features)} ({listed(self.features)})" if self.features else "it has none"
            raise UsageError(f"{len(features)} numbers were given for the features of this run, but {known}.")
        if features is not None and not all(math.isfinite(value) for value in features):
            raise UsageError(f"Features of {' '.join(map(str, features))} cannot be used: give finite numbers.")
        if isinstance(labels, str):
            labels = {labels: 1.0}
        shares = None if labels is None else self._shares(labels)
        return Condition(shares, None if features is None else tuple(float(value) for value in features))

    def _shares(self, weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        for label in weights:
            choose(label, self.labels, "label")
        total = sum(weights.values())
        if not all(weight >= 0 for weight in weights.values()) or not 0 < total < math.inf:
            given = " ".join(f"{label}:{weight:g}" for label, weight in weights.items())
            raise UsageError(f"Weights of {given or 'no label'} cannot be used: give numbers above 0.")
        if math.isclose(total, 1.0, rel_tol=1e-12):  # keep the exact shares of a receipt
            total = 1.0
        return tuple((label, float(weight / total)) for label, weight in weights.items() if weight > 0)

    def vector(self, condition: Condition | None = None) -> np.ndarray:
        """Returns the vector of a condition, float32; what it leaves out is the mean of the training texts."""
        condition = condition or Condition()
        shares, named = np.array(self.shares), condition.labels
        if named is not None:
            weights = dict(named)
            shares = np.array([weights.get(label, 0.0) for label in self.labels])
        numbers = np.zeros(len(self.features))
        if condition.features is not None:
            numbers = self._standardised(np.array(condition.features))
        return np.concatenate([shares, numbers]).astype(np.float32)

    def _standardised(self, numbers: np.ndarray) -> np.ndarray:
        return (numbers - np.array(self.means)) / np.array(self.deviations)

    def most_common(self, number: int) -> list[str]:
        """Returns the most common labels of the training texts, in descending order."""
        return [self.labels[i] for i in np.argsort(-np.array(self.shares), kind="stable")[:number]]

    def summary(self) -> dict[str, str]:
        """Returns lines about the labels and the features, by title."""
        lines = {}
        if self.labels:
            common, rare = (max(self.shares), min(self.shares))
            most, least = (self.labels[self.shares.index(share)] for share in (common, rare))
            lines["labels"] = f"{len(self.labels)}, from {common:.1%} {most!r} to {rare:.1%} {least!r}"
        if self.features:
            each = (f"{name} {m:.3g} ± {d:.3g}" for name, m, d in zip(self.features, self.means, self.deviations))
            lines["features"] = ", ".join(each)
        return lines

    def example(self) -> str:
        """Returns command-line flags of an example condition."""
        if self.labels:
            label = self.most_common(1)[0]
            return f"--label{'=' if label.startswith('-') else ' '}{shlex.quote(label)}"
        return "--features " + " ".join(f"{mean:.3g}" for mean in self.means)

    def read(self, obj: Any) -> Condition:
        """Returns the condition that ``Condition.to_json`` described; raises ``UsageError``."""
        try:
            return self.choose(obj["labels"] and dict(obj["labels"]), obj["features"] and list(obj["features"]))
        except UsageError:
            raise
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise UsageError(f"A condition must have labels with their shares, and features: {error!r}.") from None

    def to_json(self) -> dict[str, object]:
        """Returns the JSON values that ``load_strict`` reads."""
        return {name: list(values) for name, values in asdict(self).items()}


def _read_conditioning(value: object) -> Conditioning:
    return value if isinstance(value, Conditioning) else load_strict(Conditioning, value, "language tokenizer.json")


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ConditionedCodec:
    """The tokenizer and the conditioning of a run with labels or features."""

    tokenizer: SavedTokenizer
    conditioning: Annotated[Conditioning, BeforeValidator(_read_conditioning)]

    def to_json(self) -> dict[str, object]:
        """Returns the JSON values that ``read_codec`` reads."""
        return {"conditioning": self.conditioning.to_json(), "tokenizer": self.tokenizer.to_json()}


#: The codec of language models: only a tokenizer, unless the run has labels or features.
TextCodec = Tokenizer | ConditionedCodec


def read_codec(obj: object) -> TextCodec:
    """Returns the codec that ``to_json`` described; raises ``CheckpointError``."""
    if not (isinstance(obj, dict) and "conditioning" in obj):
        return load_tokenizer(obj)
    return load_strict(ConditionedCodec, obj, "language tokenizer.json")


def split_codec(codec: TextCodec) -> tuple[Tokenizer, Conditioning | None]:
    """Returns the tokenizer of a codec, and its conditioning if it has one."""
    return (codec.tokenizer, codec.conditioning) if isinstance(codec, ConditionedCodec) else (codec, None)


def join_codec(tokenizer: Tokenizer, conditioning: Conditioning | None) -> TextCodec:
    """Returns a codec: the inverse of ``split_codec``."""
    return tokenizer if conditioning is None else ConditionedCodec(tokenizer, conditioning)
