"""Tables in pieces: rows do not depend on where a text was cut, and are those that Python's csv reads of the whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.columns import table_rows
from jaxgen.errors import DataError

OPTIONS = {"csv": {"strict": True}, "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["csv", "tsv"]),
    pieces=st.lists(st.text(st.sampled_from('a",\t\r\n\u2028\x85\x0b\ufeff'), max_size=6), max_size=8),
)
def test_rows_are_those_of_the_whole_text(kind, pieces):
    whole = io.StringIO("".join(pieces).removeprefix("\ufeff"), newline="")
    try:
        expected = [row for row in csv.reader(whole, **OPTIONS[kind]) if row]
    except csv.Error:
        expected = None
    try:
        found = [row for _, row in table_rows(iter(pieces), kind, Path("t"))]
    except DataError:
        found = None
    assert found == expected


def test_a_row_is_found_by_the_line_where_it_begins():
    rows = table_rows(iter(['a,"b\n', 'c"\r', "\nd,e\r", "f,g"]), "csv", Path("t"))
    assert list(rows) == [(1, ["a", "b\nc"]), (3, ["d", "e"]), (4, ["f", "g"])]
