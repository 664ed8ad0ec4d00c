"""Data from the real pandas, polars and ``datasets``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxgen.data.in_memory import data_settings
from jaxgen.errors import DataError, UsageError

pytestmark = pytest.mark.loggers

ROWS = {"text": ["To be,", "or not", "tö be"], "label": [1, 2, 1], "score": [0.5, None, 2.0]}
CLASSIFY = {"text_column": "text", "label_column": "label"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(settings):
    (name,) = settings["data"]
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def pandas_frame():
    return pytest.importorskip("pandas").DataFrame(ROWS)


def polars_frame():
    return pytest.importorskip("polars").DataFrame(ROWS)


def dataset():
    return pytest.importorskip("datasets").Dataset.from_dict(ROWS)


def stream():
    return dataset().to_iterable_dataset()


def generated():
    """A stream that does not know its columns."""
    return pytest.importorskip("datasets").IterableDataset.from_generator(lambda: (dict(row) for row in AS_DICTS))


AS_DICTS = [dict(zip(ROWS, values)) for values in zip(*ROWS.values())]
MAKERS = [pandas_frame, polars_frame, dataset, stream, generated]


@pytest.mark.parametrize("make", MAKERS)
def test_a_table_is_read_by_its_columns(make):
    table = make()
    texts = data_settings(table, settings={"text_column": "text"})
    assert [row["text"] for row in rows(texts)] == ROWS["text"]
    labelled = data_settings(table, task="classify", settings=CLASSIFY)
    assert rows(labelled) == [{"text": text, "label": label} for text, label in zip(ROWS["text"], ROWS["label"])]
    assert rows(data_settings(table, task="classify")) == AS_DICTS, "what is missing is null"
    assert labelled == data_settings(ROWS, task="classify", settings=CLASSIFY), "the same content is the same file"
    with pytest.raises(UsageError, match="text_column"):
        data_settings(table)


@pytest.mark.parametrize("make", MAKERS[:-1])
def test_a_column_is_separate_texts(make):
    assert [row["text"] for row in rows(data_settings(make()["text"]))] == ROWS["text"]
    with pytest.raises(DataError, match="Text 1"):
        data_settings(make()["score"])


def test_strings_of_other_kinds_are_strings():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = [pandas.Series(["a", "b"], dtype=kind) for kind in ("string", "category", "object")]
    for column in [*columns, polars.Series(["a", "b"], dtype=polars.Categorical)]:
        assert [row["text"] for row in rows(data_settings(column))] == ["a", "b"]
    with pytest.raises(DataError, match="missing"):
        data_settings(pandas.Series(["a", None], dtype="string"))


def test_what_has_no_columns_of_its_own_is_refused():
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    for data in (datasets.DatasetDict(train=dataset()), polars_frame().lazy()):
        with pytest.raises(UsageError):
            data_settings(data, settings={"text_column": "text"})
    for data in (pandas.DataFrame([["a", "b"]], columns=["text", "text"]), pandas.DataFrame([["a"]])):
        with pytest.raises(DataError, match="rename"):
            data_settings(data)
