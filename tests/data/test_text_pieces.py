"""Files read in pieces: the same text, the byte offset of invalid UTF-8, bounded reads."""

import gzip
import io
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.files import check_readable, read_lines, read_pieces
from jaxgen.errors import DataError
from jaxgen.tasks.language.corpus import split_documents

TEXT = "one\r\ntwo €\n\n🎉 three\rfour\n" * 30


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("packed", [False, True])
def test_the_pieces_of_a_file_add_up_to_its_text(size, packed, tmp_path):
    path, raw = tmp_path / "a.txt", TEXT.encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    pieces = list(read_pieces(str(path), size=size))
    assert "".join(pieces) == TEXT
    assert max(map(len, pieces)) <= size + 3  # and what was left of a character


@pytest.mark.parametrize("size", [1, 5, 64, 10_000])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82x", b"\xc0\xaf", b"\xed\xa0\x80"])
def test_what_is_no_utf8_is_named_with_its_offset(size, bad, tmp_path):
    good = "a€🎉\n".encode() * 9
    (tmp_path / "a.txt").write_bytes(good + bad + good)
    with pytest.raises(DataError, match=rf"{bad[0]:#04x} at offset {len(good)}\b"):
        list(read_pieces(str(tmp_path / "a.txt"), size=size))


def test_a_character_that_the_end_of_the_file_cuts_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xe2\x82")
    with pytest.raises(DataError, match="0xe2 at offset 2"):
        list(read_pieces(str(tmp_path / "a.txt"), size=3))


def test_any_bytes_come_back_from_surrogates(tmp_path):
    raw = bytes(range(256)) * 2 + b"\xe2\x82"
    (tmp_path / "a.bin").write_bytes(raw)
    text = "".join(read_pieces(str(tmp_path / "a.bin"), any_bytes=True, size=3))
    assert text.encode("utf-8", "surrogateescape") == raw


def test_a_damaged_gzip_file_is_an_error_of_the_data(tmp_path):
    raw = gzip.compress(os.urandom(3000))
    for number, broken in enumerate((raw[:-500], raw[:200] + b"\0" * 90 + raw[290:])):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"damaged|not UTF-8"):
            list(read_pieces(str(path), any_bytes=True))


def test_a_minus_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a€".encode())))
    assert "".join(read_pieces("-", size=2)) == "a€"


def test_how_much_has_been_read_is_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    seen = []
    list(read_pieces(str(tmp_path / "a.txt"), size=40, seen=seen.append))
    assert sum(seen) == 100


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.text("ab \r\n\u2028", max_size=6), max_size=9))
def test_the_lines_of_a_text_in_pieces_are_its_documents_by_line(pieces):
    assert list(read_lines(pieces)) == list(split_documents(["".join(pieces)], "line"))


def test_missing_files_and_folders_are_named_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    check_readable([str(tmp_path / "a.txt"), "-"])
    with pytest.raises(DataError, match=r"b\.txt"):
        check_readable([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    with pytest.raises(DataError, match="folder"):
        check_readable([str(tmp_path)])
