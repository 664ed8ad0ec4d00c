"""Tables: several columns, unusable rows, and the split of rows."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.tables import Column, Table, header_decision, header_notes, hold_out, read_table, without_empty
from jaxgen.errors import DataError, UsageError

TEXT, LABEL = Column(("a", "b"), "--text-column"), Column(("l",), "--label-column", numbers=True)
TABLES = {
    "t.csv": 'a,l,b\none,x,1st\n"two, too",y,"2\nnd"\n',
    "t.tsv": 'a\tl\tb\none\tx\t1st\n"two\ty\t2 nd\n',
    "t.jsonl": '{"a": "one", "l": "x", "b": "1st"}\n\n{"b": "2nd", "a": "two", "l": 3}\n',
}
READ = {
    "t.csv": (["one 1st", "two, too 2\nnd"], ["x", "y"]),
    "t.tsv": (["one 1st", '"two 2 nd'], ["x", "y"]),
    "t.jsonl": (["one 1st", "two 2nd"], ["x", "3"]),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text):
    raw = text.encode() if isinstance(text, str) else text
    Path(name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return name


def rows(*parts, skipped=0):
    places = [f"row {n}" for n in range(1, len(parts[0]) + 1)]
    return Table(tuple(map(list, parts)), places, "it", "0", skipped)


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("name", TABLES)
def test_columns_are_read_by_name_and_joined_by_spaces(name, zipped):
    assert read_table([write(name + zipped, TABLES[name])], [TEXT, LABEL]).columns == READ[name]


def test_columns_by_position_make_every_row_data_unless_there_is_a_header():
    write("t.csv", "one,x\ntwo,y\n")
    columns = [Column(("1",), "--text-column"), Column(("2",), "--label-column")]
    assert read_table(["t.csv"], columns).columns == (["one", "two"], ["x", "y"])
    assert read_table(["t.csv"], columns, header=True).columns == (["two"], ["y"])


QUOTES = {
    "Excel": ('l\ta\n"x, y"\t"he said ""hi"""\nz\tplain\n', ["x, y", "z"], ['he said "hi"', "plain"]),
    "Python": ('l\ta\nx, y\t"two\nlines"\nz\t"a\ttab"\n', ["x, y", "z"], ["two\nlines", "a\ttab"]),
    "all fields": ('"l"\t"a"\n"x"\t"one"\n', ["x"], ["one"]),
    "some sentences": ('l\ta\nx\t"Yes, he said."\ny\t"No."\n', ["x", "y"], ['"Yes, he said."', '"No."']),
    "a quotation in a text": ('l\ta\nx\tthe "so, be it" man\n', ["x"], ['the "so, be it" man']),
    "one mark": ('l\ta\nx\t5" wide, 3" high\ny\t"a\n', ["x", "y"], ['5" wide, 3" high', '"a']),
}


@pytest.mark.parametrize(("table", "labels", "texts"), QUOTES.values(), ids=QUOTES)
def test_quotation_marks_in_tab_separated_text_are_read_only_where_programs_put_them(table, labels, texts):
    found = read_table([write("t.tsv", table)], [Column(("l",), "--label-column"), Column(("a",), "--text-column")])
    assert found.columns == (labels, texts)


def test_a_missing_column_is_told_with_the_columns_of_the_right_separator():
    write("t.csv", "text;label\n1;2\n")
    with pytest.raises(DataError, match=r"'nope' is not there.*'text', 'label'"):
        read_table(["t.csv"], [Column(("text",), "--text-column"), Column(("nope",), "--label-column")])
    with pytest.raises(DataError, match=r"'no' is not there.*'text', 'label'"):
        read_table(["t.csv"], [Column(("no",), "--text-column"), Column(("nope",), "--label-column")])


def test_a_tsv_file_may_have_another_separator():
    found = read_table([write("t.tsv", "l;a;b\n2;x;1\n")], [TEXT, LABEL])
    assert found.columns == read_table([write("u.tsv", "l,a,b\n2,x,1\n")], [TEXT, LABEL]).columns == (["x 1"], ["2"])


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;\r"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_first_line_of_excel_names_the_separator(first, name):
    found = read_table([write(name, f'{first}\na;l;b\n1;"x;y";2\n')], [TEXT, LABEL])
    assert found.columns == (["1 2"], ["x;y"])
    with pytest.raises(DataError, match=f"Line 4 of {name}"):
        read_table([write(name, f"{first}\na;l;b\n1;x;2\n1;x\n")], [TEXT, LABEL])


BY_POSITION = [Column(("1",), "--text-column"), Column(("2",), "--label-column")]
HEADED = {
    "usual names": ("text,label\nso,x\nla,y\n", True),
    "several words": ("Comment_Text,class-id\nso,x\n", True),
    "languages": ("german,en\nso,x\n", True),
    "an unusual name": ("text,verdict\nso,x\n", False),
    "numbers": ("0,1\na,x\n", False),
    "sentences": ("the text,the label\nso,x\n", False),
    "a label that occurs again": ("text,label\nso,x\nla,label\n", False),
    "numbered texts": ("text 1,label 1\ntext 2,label 2\n", False),
    "other scripts": ("текст,класс\nso,x\n", False),
}


@pytest.mark.parametrize(("table", "is_header"), HEADED.values(), ids=HEADED)
def test_a_first_row_is_a_header_if_it_has_usual_names_that_no_later_row_repeats(table, is_header):
    found = read_table([write("t.csv", table)], BY_POSITION)
    assert len(found) == table.count("\n") - is_header
    (row,) = found.first_rows
    assert row.is_header == is_header
    (note,) = header_notes(found.first_rows)
    assert "t.csv" in note
    assert ("--header no" if is_header else "--header yes") in note
    assert header_decision(found.first_rows) == ("yes" if is_header else "no")
    for header in (True, False):
        given = read_table(["t.csv"], BY_POSITION, header)
        assert (len(given), given.first_rows) == (table.count("\n") - header, ())


def test_of_several_files_each_is_decided_by_itself():
    files = [write("a.csv", "text,label\nso,x\n"), write("b.csv", "la,y\n"), write("c.jsonl", '["lo", "z"]\n')]
    found = read_table(files, BY_POSITION)
    assert found.columns == (["so", "la", "lo"], ["x", "y", "z"])
    assert len(header_notes(found.first_rows)) == 2
    assert header_decision(found.first_rows) is None


def test_numbers_in_a_header_are_names_if_all_are_there():
    write("t.csv", "0,1\na,x\nb,y\n")
    names = [Column(("0",), "--text-column"), Column(("1",), "--label-column")]
    assert read_table(["t.csv"], names, header=True).columns == (["a", "b"], ["x", "y"])
    assert read_table(["t.csv"], BY_POSITION, header=True).columns == (["a", "b"], ["x", "y"])
    with pytest.raises(UsageError, match="--header yes"):
        read_table(["t.csv"], names)


def test_a_name_with_no_header_is_refused():
    write("t.csv", "text,label\na,x\n")
    with pytest.raises(UsageError, match="--header no"):
        read_table(["t.csv"], [Column(("text",), "--text-column")], header=False)


@pytest.mark.parametrize("mixed", [[("a",), ("2",)], [("1", "b"), ("l",)], [("1",), ("l",)]])
def test_names_beside_positions_are_refused(mixed):
    """With the one the first row is a header, with the other data: rows would not stand side by side."""
    write("t.csv", TABLES["t.csv"])
    with pytest.raises(UsageError, match="by position"):
        read_table(["t.csv"], [Column(names, "--text-column") for names in mixed])


def test_an_empty_cell_leaves_no_space_where_columns_are_joined():
    write("t.csv", "a,b,l\n,1,x\n2,,y\n,,z\n")
    assert read_table(["t.csv"], [TEXT, LABEL]).columns[0] == ["1", "2", ""]


def test_several_files_follow_each_other_with_their_places():
    parts = [write("t.csv", "a,b,l\n1,2,x\n"), write("u.tsv", "l\ta\tb\ny\t3\t4\nz\t5\t6\n")]
    table = read_table(parts, [TEXT, LABEL])
    assert table.columns == (["1 2", "3 4", "5 6"], ["x", "y", "z"])
    assert table.locations == ["row 1 of t.csv", "row 1 of u.tsv", "row 2 of u.tsv"]
    assert table.name == "t.csv + u.tsv"


def test_a_table_given_twice_is_read_once_and_noted():
    write("t.csv", TABLES["t.csv"])
    with pytest.warns(UserWarning, match="given before"):
        assert read_table(["t.csv", "./t.csv", "*.csv"], [TEXT, LABEL]).columns == READ["t.csv"]


def test_the_digest_is_that_of_the_file_and_of_several_tells_what_stands_in_which():
    row, more = "a,b,l\n1,2,x\n", "a,b,l\n3,4,y\n"
    columns = [Column(("1",), "--text-column")]
    whole = read_table([write("whole.csv", row + more)], columns).sha256
    assert whole == hashlib.sha256((row + more).encode()).hexdigest()
    parts = [[row, more], [more, row], [row + "a,b,l\n", "3,4,y\n"]]
    cut = [read_table([write(f"{n}.csv", text) for n, text in enumerate(texts)], columns).sha256 for texts in parts]
    assert len({whole, *cut}) == 4


def test_a_folder_of_tables_is_read_in_the_order_of_their_names():
    Path("tables").mkdir()
    for name in ("b", "a"):
        write(f"tables/{name}.csv", f"a,b,l\n{name},1,x\n")
    assert read_table(["tables"], [TEXT, LABEL]).columns[0] == ["a 1", "b 1"]


def test_a_missing_column_lists_those_that_are_there():
    write("t.csv", "text,label\n1,2\n")
    with pytest.raises(DataError, match=r"'l'.*t\.csv"):
        read_table(["t.csv"], [Column(("text",), "--text-column"), LABEL])


@pytest.mark.parametrize("flag", ["--text-column", "--label-column"])
def test_a_position_that_no_row_has_is_told_by_its_flag(flag):
    write("t.csv", "1,2\n")
    with pytest.raises(DataError, match=flag):
        read_table(["t.csv"], [Column(("3",), flag)])
    with pytest.raises(UsageError, match=flag):
        read_table(["t.csv"], [Column(("0",), flag)])


@pytest.mark.parametrize("column", ["--5", "+-5", "-+1", "+", "9" * 10, "9" * 5_000])
def test_what_only_resembles_a_position_is_a_name(column):
    write("t.csv", "1,2\n")
    with pytest.raises(DataError, match=re.escape(column)):
        read_table(["t.csv"], [Column((column,), "--text-column")])
    with pytest.raises(UsageError, match="by position"):
        read_table(["t.csv"], [Column((column, "1"), "--text-column")])
    write("t.csv", f"{column},1\na,2\n")
    assert read_table(["t.csv"], [Column((column,), "--text-column")]).columns == (["a"],)


def test_a_ragged_row_is_told_by_its_line():
    write("t.csv", "a,b,l\n1,2,x\n3,4\n")
    with pytest.raises(DataError, match="Line 3"):
        read_table(["t.csv"], [TEXT, LABEL])


def test_numbers_are_labels_and_no_texts():
    write("t.jsonl", '{"a": 1, "b": "x", "l": true}\n')
    assert read_table(["t.jsonl"], [LABEL]).columns == (["true"],)
    with pytest.raises(DataError, match=r"line 1.*holds 1"):
        read_table(["t.jsonl"], [TEXT, LABEL])


def test_what_is_no_table_and_what_is_no_utf8_is_refused():
    with pytest.raises(UsageError, match=r"t\.txt"):
        read_table([write("t.txt", "a,b,l\n")], [TEXT])
    with pytest.raises(DataError, match="0xe9"):
        read_table([write("t.csv", "a,b,l\nxy\xe9,2,3\n".encode("latin-1"))], [TEXT])


# Rows without a part


def test_rows_with_an_empty_part_are_left_out_and_counted():
    left = without_empty(rows("a \nc", [*"1 34"]), "skip")
    assert left.columns == (["a", "c"], ["1", "4"])
    assert left.locations == ["row 1", "row 4"]
    assert left.skipped == 2


def test_a_row_with_an_empty_part_can_be_refused_and_is_named():
    with pytest.raises(DataError, match="--empty skip"):
        without_empty(rows("a \nc", [*"1 34"]), "refuse")


def test_null_in_json_is_an_empty_part():
    write(
        "t.jsonl", '{"a": "one", "b": null, "l": "x"}\n{"a": null, "b": null, "l": "y"}\n{"a": "3", "b": "", "l": null}'
    )
    table = read_table(["t.jsonl"], [TEXT, LABEL])
    left = without_empty(table, "skip")
    assert (left.columns, left.skipped) == ((["one"], ["x"]), 2)
    with pytest.raises(DataError, match="Row 2"):
        without_empty(table, "refuse")


@pytest.mark.parametrize("policy", ["skip", "refuse"])
def test_rows_that_are_all_full_are_left_alone(policy):
    assert without_empty(rows("ab", "12"), policy) == rows("ab", "12")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("  ", "ab"), "no usable row"),
        (("", ""), "no usable row"),
    ],
)
def test_no_row_that_can_be_used_is_an_error(parts, said):
    with pytest.raises(DataError, match=said):
        without_empty(rows(*parts), "skip")


# The split


@settings(deadline=None)
@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), st.integers(0, 2**32 - 1))
def test_a_split_parts_the_rows_and_keeps_their_order(sizes, seed):
    number, held_out = sizes
    train, val = hold_out(rows([str(i) for i in range(number)]), "it", seed, val_rows=held_out)
    kept, held = ([int(text) for text in split.columns[0]] for split in (train, val))
    assert len(held) == held_out
    assert sorted(kept + held) == list(range(number))
    assert (kept, held) == (sorted(kept), sorted(held))
    assert train.locations == [f"row {i + 1}" for i in kept]


def test_a_split_follows_from_the_seed():
    many = rows([str(i) for i in range(100)])
    once, again, other = (hold_out(many, "it", seed, val_rows=30) for seed in (1, 1, 2))
    assert once == again != other


@pytest.mark.parametrize("held_out", [0, 2, 3])
def test_a_split_that_leaves_a_side_empty_is_refused(held_out):
    with pytest.raises(DataError, match="--val-rows"):
        hold_out(rows("ab"), "it", 0, val_rows=held_out)


def test_rows_are_taken_in_the_order_asked_for():
    some = rows("abc", "123").take(np.array([2, 0]))
    assert some.columns == (["c", "a"], ["3", "1"])
    assert some.locations == ["row 3", "row 1"]
