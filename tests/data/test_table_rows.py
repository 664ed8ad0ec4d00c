"""Tables read in pieces have the rows that Python's csv module reads from the whole, wherever pieces end."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.tables import DIALECTS, Column, read_rows, read_table, table_rows
from jaxgen.errors import DataError
from jaxgen.text import whole_lines

OPTIONS = {"csv": {"strict": True}, "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["csv", "tsv"]),
    pieces=st.lists(st.text(st.sampled_from('a",\t\r\n\u2028\x85\x0b\ufeff'), max_size=6), max_size=8),
)
def test_rows_are_those_of_the_whole_text(kind, pieces):
    whole = io.StringIO("".join(pieces), newline="")
    try:
        expected = [row for row in csv.reader(whole, **OPTIONS[kind]) if row]
    except csv.Error:
        expected = None
    try:
        found = [row for _, row in table_rows(iter(pieces), DIALECTS[kind], Path("t"))]
    except DataError:
        found = None
    assert found == expected


def test_a_row_is_found_by_the_line_where_it_begins():
    rows = table_rows(iter(['a,"b\n', 'c"\r', "\nd,e\r", "f,g"]), DIALECTS["csv"], Path("t"))
    assert list(rows) == [(1, ["a", "b\nc"]), (3, ["d", "e"]), (4, ["f", "g"])]


def test_of_a_packed_table_only_the_columns_wanted_are_in_memory_and_the_digest_is_that_of_its_bytes(tmp_path):
    path, rows, other = tmp_path / "t.csv.gz", 40, "x" * 2**20  # unpacked 40 MiB, of which nothing is wanted
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(f"text {n},{other},label {n}\n" for n in range(rows))
    columns = [Column(("1",), "--text-column"), Column(("3",), "--label-column")]
    tracemalloc.start()
    try:
        found = read_table([str(path)], columns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.columns == ([f"text {n}" for n in range(rows)], [f"label {n}" for n in range(rows)])
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert peak < 15 * 2**20


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\nc,d\n")

    def growing(*args, **options):
        for row in read_rows(*args, **options):
            yield row
            path.write_text("a,b\nc,d\ne,f\n")

    monkeypatch.setattr("jaxgen.data.tables.read_rows", growing)
    with pytest.raises(DataError, match="changed while it was being read"):
        read_table([str(path)], [Column(("1",), "--text-column"), Column(("2",), "--label-column")])


def test_a_table_is_read_once_for_all_its_columns(tmp_path, monkeypatch):
    path, texts = tmp_path / "t.jsonl", []
    path.write_text('{"a": "1", "b": "2", "c": "3"}\n')
    monkeypatch.setattr("jaxgen.data.tables.whole_lines", lambda text: texts.append(text) or whole_lines(text))
    columns = [Column(("a", "b"), "--text-column"), Column(("c",), "--label-column")]
    assert read_table([str(path)], columns).columns == (["1 2"], ["3"])
    assert len(texts) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_table_that_can_be_read_but_once_gives_all_its_columns(tmp_path):
    os.mkfifo(tmp_path / "t.tsv")
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "t.tsv").write_text, "a\tb\nc\td\n")
        rows = read_table([str(tmp_path / "t.tsv")], [Column((n,), "--text-column") for n in "12"])
    assert rows.columns == (["a", "c"], ["b", "d"])
    assert rows.sha256 == hashlib.sha256(b"a\tb\nc\td\n").hexdigest()
