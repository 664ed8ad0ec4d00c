"""Reading text files: what a user may name, and an error for each thing that cannot be read."""

import csv
import gzip
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from builders import read_texts, write

from jaxgen.data.datasets import BUILTIN, NAMED, NamedFile, NamedSet, python_source
from jaxgen.data.files import FilesDigest
from jaxgen.errors import DataError, UsageError
from jaxgen.runs.directory import MARKER, START
from jaxgen.text import KEEP_NEWLINES, Reading


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXGEN_DATA", raising=False)


def refused(error, *specs, **options):
    with pytest.raises(error) as caught:
        read_texts(specs, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("level", "newlines", "expected", "line_ends"),
    [
        ("char", None, "\ufeffone\ntwo\nthree\u2028\x85\n\0é\u0301🎉\n", 3),
        ("char", "keep", "\ufeffone\r\ntwo\rthree\u2028\x85\n\0é\u0301🎉\r", 0),
        ("byte", None, "\ufeff\ufeffone\r\ntwo\rthree\u2028\x85\n\0é\u0301🎉\r", 0),
        ("byte", "lf", "\ufeff\ufeffone\ntwo\nthree\u2028\x85\n\0é\u0301🎉\n", 3),
    ],
)
def test_one_byte_order_mark_is_dropped_and_line_ends_become_lf(level, newlines, expected, line_ends):
    text = "\ufeff\ufeffone\r\ntwo\rthree\u2028\x85\n\0é\u0301🎉\r"
    source = read_texts([write("a.txt", text)], level=level, reading=Reading.of_level(level, newlines))
    assert (source.texts, source.line_ends) == ([expected], line_ends)
    assert source.name == "a.txt"
    assert source.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (source.default_documents, source.by_row) == (None, False)


def test_several_files_keep_their_order():
    source = read_texts([write("b.txt", "b"), write("a.txt", "a")])
    assert source.texts == ["b", "a"]
    assert source.name == "b.txt + a.txt"


def test_the_same_bytes_cut_into_other_files_have_another_digest():
    texts = [["abc"], ["ab", "c"], ["a", "bc"], ["c", "ab"]]
    found = [read_texts([write(f"{n}.txt", text) for n, text in enumerate(each)]).sha256 for each in texts]
    assert len({*found}) == len(texts)


@pytest.mark.parametrize(
    ("specs", "texts"),
    [
        (["a.txt", "a.txt"], ["a"]),
        (["a.txt", "./a.txt", "b.txt"], ["a", "b"]),
        (["b.txt", "link.txt", "hard.txt"], ["b", "a"]),
        (["d", "d/c.txt"], ["c"]),
        (["d/c.txt", "d", "*.txt"], ["c", "a", "b"]),
    ],
)
def test_a_file_given_twice_is_read_once_and_noted(specs, texts):
    for name in ("a.txt", "b.txt", "d/c.txt"):
        write(name, Path(name).stem)
    Path("link.txt").symlink_to("a.txt")
    os.link("a.txt", "hard.txt")
    with pytest.warns(UserWarning, match="given before") as notes:
        source = read_texts(specs)
    assert (source.texts, len(notes)) == (texts, 1)
    assert source.sha256 == FilesDigest(hashlib.sha256(text.encode()).digest() for text in texts).hexdigest()


def test_a_built_in_corpus_given_twice_is_read_once_and_noted():
    with pytest.warns(UserWarning, match="'python-docs'"):
        assert len(read_texts(["python-docs", "python-docs"]).texts) == 1


def test_files_with_the_same_content_are_all_read():
    assert read_texts([write("a.txt", "a"), write("b.txt", "a")]).texts == ["a", "a"]


def test_a_folder_is_read_in_sorted_order_without_hidden_files():
    for name in ("d/z.txt", "d/a/2.md", "d/a/1", "d/.hidden", "d/.git/x", "d/empty"):
        write(name, "" if name == "d/empty" else name)
    assert read_texts(["d"]).texts == ["d/a/1", "d/a/2.md", "", "d/z.txt"]


def test_a_glob_is_read_in_sorted_order_and_goes_into_folders():
    for name in ("b.txt", "a.txt", "d/c.txt", "d/e.md"):
        write(name, name)
    assert read_texts(["*.txt"]).texts == ["a.txt", "b.txt"]
    assert read_texts(["**/*.txt"]).texts == ["a.txt", "b.txt", "d/c.txt"]


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.txt", "d/**/*.txt", "**/d/**/*.txt", "./**/**/[a-c].*"])
def test_a_glob_follows_no_links_to_folders_into_circles(pattern):
    for name in ("d/c.txt", "d/e/b.txt", "d/.hidden/a.txt", "d/e/.a.txt"):
        write(name, name)
    links = {"d/self": ".", "d/up": "..", "d/e/up": "..", "d/e/nowhere.txt": "none", "d/e/it": "it"}
    for link, target in links.items():
        Path(link).symlink_to(target)
    assert sorted(read_texts([pattern]).texts) == ["d/c.txt", "d/e/b.txt"]
    assert read_texts([str(Path.cwd() / pattern)]).texts == read_texts([pattern]).texts


@pytest.mark.parametrize("spec", ["loop", "loop/a.txt", "loop/*", "loop/**/*", "**/none/*"])
def test_a_link_to_itself_is_refused(spec):
    Path("loop").symlink_to("loop")
    Path("here").symlink_to(".")
    refused(DataError, spec)


RUNS = {
    "a run": {"r/config.json": '{"task": "", "config": {}, "resolved": {}}', "r/samples.txt": "x"},
    "a run without its configuration": {"r/checkpoints/00000010/manifest.json": "{}", "r/metrics.jsonl": "x"},
    "a start that was killed": {f"r/{START}": MARKER, "r/tokenizer.json": "{}", "r/checkpoints/.x.tmp/model": "x"},
}


@pytest.mark.parametrize("files", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("spec", [".", "d", "**/*", "d/*/*"])
def test_runs_in_a_folder_are_left_out_and_noted(files, spec):
    write("d/a/text.txt", "text")
    for name, content in files.items():
        write(f"d/{name}", content)
    with pytest.warns(UserWarning, match="runs: 'd/r'") as notes:
        assert read_texts([spec]).texts == ["text"]
    assert len(notes) == 1
    last = list(files)[-1]
    for named in (f"d/{last}", f"{Path('d', last).parent}/[m-s]*"):  # what is named is read
        assert read_texts([named]).texts == [files[last]]


def test_a_folder_that_is_a_run_is_refused():
    write("r/checkpoints/00000010/manifest.json", "{}")
    assert "'r' is a run" in refused(DataError, "r")
    with pytest.warns(UserWarning, match="runs: 'r'"):
        assert "no files" in refused(DataError, ".")


def test_configurations_and_checkpoints_of_others_are_data():
    for name in ("config.json", "tokenizer.json", "vocab.json", "checkpoints/1.txt"):
        write(f"d/model/{name}", '{"task": "text"}')
    assert len(read_texts(["d"]).texts) == 4


def test_a_file_whose_name_looks_like_a_glob_is_that_file():
    assert read_texts([write("a[1].txt", "x")]).texts == ["x"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.bin"])
def test_gzip_is_recognised_by_its_content(name):
    assert read_texts([write(name, gzip.compress(b"one", mtime=0) + gzip.compress(b"two"))]).texts == ["onetwo"]


def test_a_pipe_is_read():
    read_end, write_end = os.pipe()
    os.write(write_end, b"piped")
    os.close(write_end)
    try:
        assert read_texts([f"/dev/fd/{read_end}"]).texts == ["piped"]
    finally:
        os.close(read_end)


def test_the_byte_level_reads_any_bytes():
    raw = bytes(range(256))
    assert read_texts([write("a", raw)], level="byte").texts[0].encode("utf-8", "surrogateescape") == raw


def test_bytes_that_are_not_utf8_are_named_with_their_offset():
    message = refused(DataError, write("a.txt", b"abc\xe9def"))
    assert "a.txt" in message
    assert "0xe9" in message
    assert "--level byte" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["abc", "Plain text.\n" * 99, "Это текст, и не короткий.\n" * 9, "naïve œuvre\n", "漢字 and words"]
)
def test_utf16_is_recognised(encoding, text):
    raw = text.encode(encoding)
    assert "UTF-16" in refused(DataError, write("a.txt", raw))
    assert "UTF-16" in refused(DataError, write("a.txt.gz", gzip.compress(raw)))
    assert "UTF-16" in refused(DataError, write("a.csv", raw), text_column="1")
    assert read_texts(["a.txt"], level="byte").texts[0].encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize(
    "text", ["a", "\0", "a\0", "a\0\0b", "one\0two\0three\0", "\x01\x02\x03\x04" * 9, "\ta\tb\tc\n" * 9]
)
def test_other_texts_with_control_characters_are_read(text):
    assert read_texts([write("a.txt", text)]).texts == [text]


def test_what_is_missing_is_named_and_the_nearest_suggested():
    assert "'tinyshakespeare'" in refused(DataError, "tinyshakespear")
    assert "'python-docs'" in refused(DataError, "python_docs")
    write("d/novel.txt", "x")
    assert "'d/novel.txt'" in refused(DataError, "d/novle.txt")
    message = refused(DataError, "no/such/file.bin")
    assert "'no/such/file.bin'" in message
    assert "ag_news" in message


@pytest.mark.parametrize("spec", ["", "nul\0byte", "~a\0b", "x" * 5000, "~nobody-here/x", "a/*\0"])
def test_a_path_that_no_system_has_is_a_data_error(spec):
    assert "no file or folder" in refused(DataError, spec)


def test_a_pattern_without_matches_is_a_data_error():
    assert "'*.nothing'" in refused(DataError, "*.nothing")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_empty_data_is_a_data_error(content):
    assert "empty" in refused(DataError, write("a.txt", content))


def test_an_empty_folder_is_a_data_error():
    Path("d").mkdir()
    assert "no files" in refused(DataError, "d")


def test_a_device_is_refused():
    assert "device" in refused(DataError, "/dev/zero")


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"text" * 99, mtime=0)[:-12],
        gzip.compress(b"text", mtime=0)[:5],
        b"\x1f\x8b\x08\x00" + b"\xff" * 40,
    ],
)
def test_a_damaged_gzip_file_is_a_data_error(content):
    assert "damaged" in refused(DataError, write("a.gz", content))


def test_a_file_named_gz_that_is_not_is_a_data_error():
    assert "not gzip" in refused(DataError, write("a.gz", "plain"))


@pytest.mark.parametrize("column", [None, "1"])
def test_a_file_without_permission_is_a_data_error(column, monkeypatch):
    def deny(*args, **options):
        raise PermissionError(13, "Permission denied")

    write("a.csv", "x")
    monkeypatch.setattr(Path, "read_bytes", deny)
    monkeypatch.setattr("builtins.open", deny)
    assert "Permission denied" in refused(DataError, "a.csv", text_column=column)


def test_nothing_given_is_a_usage_error():
    assert "No data" in refused(UsageError)


TABLE = 'id,title,body\r\n1,"Hello, ""you""",b1\r\n\r\n2,"two\nlines",b2\r\n'


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.csv.gz"])
def test_a_csv_column_is_read_by_name_row_by_row(name):
    write(name, gzip.compress(TABLE.encode()) if name.endswith("gz") else TABLE)
    source = read_texts([name], text_column="title")
    assert source.texts == ['Hello, "you"', "two\nlines"]
    assert (source.by_row, source.default_documents) == (True, "row")


def test_a_header_is_recognised_where_columns_are_given_by_position():
    write("a.csv", TABLE)
    for header, first in ((None, []), (True, []), (False, ["body"])):
        source = read_texts(["a.csv"], text_column="3", header=header)
        assert list(source.texts) == [*first, "b1", "b2"]
        assert [row.is_header for row in source.first_rows] == [True] * (header is None)


def test_a_byte_order_mark_is_no_part_of_the_first_column_name():
    assert read_texts([write("a.csv", "\ufefftext\nx\n")], text_column="text").texts == ["x"]


def test_tsv_has_no_quoting():
    assert read_texts([write("a.tsv", 'n\tt\n1\t"a\n2\tb"c\n')], text_column="t").texts == ['"a', 'b"c']


def test_jsonl_is_read_by_key_or_by_position():
    rows = [{"t": "a\nb", "n": 1}, {"t": "é"}]
    lines = "\n\n".join(map(json.dumps, rows)) + "\r\n"
    assert read_texts([write("a.jsonl", lines)], text_column="t").texts == ["a\nb", "é"]
    assert read_texts([write("b.jsonl", '["x", "y"]\n')], text_column="2").texts == ["y"]


def test_a_field_of_any_length_is_read_and_the_limit_of_the_csv_module_is_kept():
    before = csv.field_size_limit()
    assert len(read_texts([write("a.csv", "t\n" + "x" * 200_000)], text_column="t").texts[0]) == 200_000
    assert csv.field_size_limit() == before


def test_an_unknown_column_lists_those_that_are_there():
    assert "'id', 'title', 'body'" in refused(DataError, write("a.csv", TABLE), text_column="titel")
    assert "'u', 'v'" in refused(DataError, write("a.jsonl", '{"u": "1", "v": "2"}'), text_column="t")
    assert "once" in refused(DataError, write("b.csv", "a,a\n1,2\n"), text_column="a")


def test_a_position_out_of_range_is_refused():
    assert "from 1 to 3" in refused(DataError, write("a.csv", TABLE), text_column="4")
    assert "from 1" in refused(UsageError, "a.csv", text_column="0")
    assert "from 1" in refused(UsageError, "a.csv", text_column="-1")


def test_malformed_rows_are_named_by_line():
    assert "Line 3" in refused(DataError, write("a.csv", "a,b\n1,2\n3\n"), text_column="a")
    assert "b.csv" in refused(DataError, write("b.csv", 'a,b\n"open,2\n'), text_column="a")
    for name, line in {"c": "{", "d": "3", "e": '{"a": 3}', "f": "[" * 99_999, "g": '{"b": "x"}'}.items():
        message = refused(DataError, write(f"{name}.jsonl", '{"a": "x"}\n' + line), text_column="a")
        assert f"ine 2 of {name}.jsonl" in message


def test_a_malformed_row_is_named_by_the_line_where_it_begins():
    message = refused(DataError, write("a.csv", 'a,b\n\n"x\ny",1\n2,"open\n3,4\n5,6\n'), text_column="a")
    assert "5" in message
    message = refused(DataError, write("b.csv", 'a,b\n1,2\n"x\ny"\n'), text_column="a")
    assert "Line 3" in message


def test_null_is_an_empty_cell():
    assert read_texts([write("a.jsonl", '{"t": null}\n{"t": "x"}\n')], text_column="t").texts == ["", "x"]


def test_half_a_character_in_jsonl_is_refused_with_its_line():
    whole, half = '{"t": "\\ud83c\\udf89"}\n', '{"t": "a\\ud83c"}\n'
    assert read_texts([write("a.jsonl", whole)], text_column="t").texts == ["🎉"]
    message = refused(DataError, write("b.jsonl", whole + half), text_column="t")
    assert "line 2 of b.jsonl holds half of a surrogate pair, \\ud83c" in message
    bytes_as_they_are = read_texts([write("c.jsonl", b'{"t": "\xff"}\n')], text_column="t", level="byte")
    assert bytes_as_they_are.texts[0].encode("utf-8", "surrogateescape") == b"\xff"


@pytest.mark.parametrize("value", ["true", "3", "3.5"])
def test_what_is_no_text_is_shown_as_json(value):
    assert f" {value}, " in refused(DataError, write("a.jsonl", f'{{"t": {value}}}'), text_column="t")
    assert f" {value}. " in refused(DataError, write("b.jsonl", value), text_column="t")


@pytest.mark.parametrize("depth", [1, 600, *range(950, 1000)])
def test_arrays_in_place_of_text_are_refused_however_deeply_they_are_nested(depth):
    for row in (f'{{"t": {"[" * depth}{"]" * depth}}}', "[" * depth + "]" * depth):
        refused(DataError, write("a.jsonl", row), text_column="t")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_recognised(separator):
    write("a.csv", f"n{separator}t\n1{separator}a\n2{separator}b, c\n")
    assert list(read_texts(["a.csv"], text_column="t").texts) == ["a", "b, c"]
    assert list(read_texts(["a.csv"], text_column="2", header=True).texts) == ["a", "b, c"]
    assert list(read_texts(["a.csv"], text_column="1").texts) == ["n", "1", "2"]
    write("b.csv", f"yes\nyes{separator} no\n")  # one column
    assert list(read_texts(["b.csv"], text_column="1").texts) == ["yes", f"yes{separator} no"]
    write("c.csv", f"yes{separator} no\n")  # one sentence
    assert list(read_texts(["c.csv"], text_column="1").texts) == [f"yes{separator} no"]


def test_a_column_of_what_is_no_table_is_a_usage_error():
    assert "a.txt" in refused(UsageError, write("a.txt", "x"), text_column="a")
    assert "python-docs" in refused(UsageError, "python-docs", text_column="a")


def test_a_table_is_plain_text_without_a_column():
    source = read_texts([write("a.csv", TABLE)], reading=KEEP_NEWLINES)
    assert source.texts == [TABLE]
    assert not source.by_row


def test_line_ends_in_cells_become_lf_unless_they_are_kept():
    specs = [write("a.csv", 't,n\r\n"a\r\nb",1\r"c\rd",2\r'), write("b.jsonl", '\ufeff{"t": "e\\r\\nf"}\r{"t": "g"}')]
    source = read_texts(specs, text_column="t")
    assert (source.texts, source.line_ends) == (["a\nb", "c\nd", "e\nf", "g"], 3)
    kept = read_texts(specs, text_column="t", reading=KEEP_NEWLINES)
    assert (kept.texts, kept.line_ends) == (["a\r\nb", "c\rd", "e\r\nf", "g"], 0)


def test_a_table_with_no_rows_is_empty():
    assert "empty" in refused(DataError, write("a.csv", "a,b\n"), text_column="a")


def test_ways_to_cut_documents_are_checked_against_the_data():
    write("a.csv", TABLE)
    assert "'line'" in refused(UsageError, "a.csv", documents="lines")
    assert ".csv" in refused(UsageError, "a.csv", documents="row")
    assert "row" in refused(UsageError, "a.csv", documents="file", text_column="id")


def test_rows_and_whole_texts_do_not_mix(monkeypatch):
    monkeypatch.setenv("JAXGEN_DATA", str(Path.cwd()))
    monkeypatch.setitem(NAMED, "rows", rows_set())
    assert "mix" in refused(UsageError, "rows", write("b.txt", "x"))


def rows_set():
    content = b'"3","a title","x"\n"1","another","y"\n'
    write("rows/r.csv", content)
    file = NamedFile("rows/r.csv", "http://127.0.0.1:9/none", hashlib.sha256(content).hexdigest())
    return NamedSet((file,), "", text_column="2", documents="row")


def test_a_named_set_brings_its_column_and_documents(monkeypatch):
    monkeypatch.setenv("JAXGEN_DATA", str(Path.cwd()))
    monkeypatch.setitem(NAMED, "rows", rows_set())
    source = read_texts(["rows"])
    assert source.texts == ["a title", "another"]
    assert (source.by_row, source.default_documents) == (True, "row")
    assert read_texts(["rows"], text_column="3").texts == ["x", "y"]


def test_python_docs_is_one_text_of_prose_and_the_same_each_time():
    source = read_texts(["python-docs"])
    assert len(source.texts) == 1
    assert len(source.texts[0]) > 300_000
    assert source == read_texts(["python-docs"])
    assert source.default_documents == "blank-line"


def test_python_docs_without_pydoc_data_names_the_alternative(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "python-source" in refused(DataError, "python-docs")


def test_python_source_leaves_tests_and_packages_out_and_stops_at_its_limit(monkeypatch):
    for name in ("b.py", "a/x.py", "test/t.py", "a/tests/t.py", "site-packages/p.py", "c.txt", "_sysconfigdata_x.py"):
        write(name, name)
    write("latin.py", b"\xe9")
    assert python_source(".") == ["a/x.py", "b.py"]
    monkeypatch.setattr("jaxgen.data.datasets._SOURCE_LIMIT", 7)
    assert python_source(".") == ["a/x.py"]


def test_python_source_is_there_and_says_so_where_it_is_not():
    assert any("class JSONDecoder" in text for text in BUILTIN["python-source"].texts())
    Path("none").mkdir()
    with pytest.raises(DataError, match=r"\.py"):
        python_source("none")


def test_a_folder_that_cannot_be_listed_is_a_data_error(monkeypatch):
    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", str(root)))
        return []

    write("d/a.txt", "x")
    monkeypatch.setattr(os, "walk", walk)
    assert "Permission denied" in refused(DataError, "d")


def test_a_path_in_a_folder_without_permission_is_a_data_error(monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jaxgen.data.files.os.stat", deny)
    with pytest.raises(DataError, match="reached"):
        read_texts(["locked/a.txt"])
    monkeypatch.undo()


def test_one_spec_may_be_given_as_a_string():
    assert read_texts(write("a.txt", "x")).texts == ["x"]
