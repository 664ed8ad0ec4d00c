"""Text pairs from two parallel files, tables, named and built-in sets; errors."""

from __future__ import annotations

import gzip
import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from jaxgen.data.datasets import FOLDER_VARIABLE
from jaxgen.errors import DataError, UsageError
from jaxgen.runs.config import validate
from jaxgen.tasks.rows import RowSplits
from jaxgen.tasks.translate.data import TranslateConfig
from jaxgen.tasks.translate.data import read_pairs as read

ENGLISH = ["one", "two dogs", "three", "four", "five"]
GERMAN = ["eins", "zwei Hunde", "drei", "vier", "fünf"]
MULTI30K = Path(os.environ.get(FOLDER_VARIABLE, "nowhere"), "multi30k", "train.en.gz")


def read_pairs(data, val_data=None, test_data=None, **settings) -> RowSplits:
    """The pairs that these settings name."""
    places = {"data": data, "val_data": val_data, "test_data": test_data}
    return read(validate(TranslateConfig, {**places, **settings}))


def write(path: Path, lines: list[str], end: str = "\n", before: bytes = b"") -> str:
    raw = before + "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path / "a.en", ENGLISH), write(tmp_path / "a.de", GERMAN)


def pairs(splits: RowSplits) -> list[tuple[str, str]]:
    """All pairs to train on and to validate with, in no order."""
    return sorted(pair for split in ("train", "val") for pair in zip(*splits.splits[split].columns))


# Two files


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_line_n_of_one_file_belongs_to_line_n_of_the_other(end, mark, suffix, tmp_path):
    data = (
        write(tmp_path / f"a.en{suffix}", ENGLISH, end, mark),
        write(tmp_path / f"a.de{suffix}", GERMAN, "\n"),
    )
    found = read_pairs(data)
    assert pairs(found) == sorted(zip(ENGLISH, GERMAN))
    assert found.name == " + ".join(data)


def test_a_last_line_without_its_break_is_a_line(files, tmp_path):
    Path(files[0]).write_text("\n".join(ENGLISH))
    assert pairs(read_pairs(files)) == sorted(zip(ENGLISH, GERMAN))


def test_a_carriage_return_behind_the_last_line_break_is_an_empty_line(files):
    Path(files[0]).write_bytes("\n".join([*ENGLISH, "\r"]).encode())
    with pytest.raises(DataError, match=r"a\.en.*a\.de"):
        read_pairs(files)


def test_packed_files_are_never_whole_beside_their_lines_and_the_digest_is_that_of_their_bytes(tmp_path):
    lines, size = 24, 2**18
    data = [write(tmp_path / f"a.{side}.gz", [f"{n}{side * size}" for n in range(lines)]) for side in "xy"]
    tracemalloc.start()
    try:
        found = read_pairs(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(part) for part in found.splits.values()) == lines
    assert peak < 2.5 * lines * size  # both sides are twice that much
    each = b"".join(hashlib.sha256(Path(path).read_bytes()).digest() for path in data)
    assert found.sha256 == hashlib.sha256(each).hexdigest()


def test_the_number_of_pairs_held_out_is_as_asked_and_follows_from_the_seed(files):
    splits = [read_pairs(files, val_rows=2, seed=seed).splits["val"].columns for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert {len(sources) for sources, _ in splits} == {2}
    assert len({tuple(sources) for sources, _ in splits}) > 1
    assert len(read_pairs(files, val_fraction=0.6).splits["val"]) == 3


def test_validation_and_test_pairs_of_their_own_are_read_as_the_data_are(files, tmp_path):
    val = write(tmp_path / "v.en.gz", ["six"]), write(tmp_path / "v.de", ["sechs"])
    test = write(tmp_path / "t.en", ["seven"]), write(tmp_path / "t.de", ["sieben"])
    alone, more, most = read_pairs(files), read_pairs(files, val), read_pairs(files, val, test)
    assert list(most.splits) == ["train", "val", "test"]
    assert len(more.splits["train"]) == len(ENGLISH)
    assert most.splits["val"].columns == (["six"], ["sechs"])
    assert most.splits["test"].columns == (["seven"], ["sieben"])
    assert len({found.sha256 for found in (alone, more, most)}) == 3
    assert read_pairs(files, val, test).sha256 == most.sha256


def test_the_digest_tells_which_bytes_are_sources_and_which_pairs_are_which_split(files, tmp_path):
    other = write(tmp_path / "v.en", ["six"]), write(tmp_path / "v.de", ["sechs"])
    splits = [(files,), (files[::-1],), (files, files), (files, other), (files, None, other), (files, other, files)]
    found = [read_pairs(*each).sha256 for each in splits]
    for line_in_the_middle in ("a\nb", "c\nd"), ("a\nbc", "\nd"):
        for path, text in zip(files, line_in_the_middle):
            Path(path).write_text(text)
        found.append(read_pairs(files, other).sha256)
    assert len({*found}) == len(found)


@pytest.mark.parametrize("longer", [0, 1])
def test_files_of_different_length_name_the_line_where_they_part(longer, files):
    with Path(files[longer]).open("a") as file:
        file.write("more\n")
    with pytest.raises(DataError, match=f"line 6 of {files[longer]}"):
        read_pairs(files)


def test_a_side_of_white_space_is_skipped_and_counted_or_refused_by_its_line(files):
    Path(files[1]).write_text("eins\n \ndrei\n\nfünf\n")
    found = read_pairs(files)
    assert found.notes == ["2 with an empty part skipped"]
    assert pairs(found) == [("five", "fünf"), ("one", "eins"), ("three", "drei")]
    with pytest.raises(DataError, match="Line 2"):
        read_pairs(files, empty="refuse")


def test_what_is_skipped_is_counted_over_all_splits(files, tmp_path):
    val = write(tmp_path / "v.en", ["six", ""]), write(tmp_path / "v.de", ["sechs", "sieben"])
    assert read_pairs(files, val).notes == ["1 with an empty part skipped"]


@pytest.mark.parametrize(("text", "said"), [("", "no usable row"), ("\n\n", "no usable row")])
def test_without_a_pair_that_can_be_used_there_is_a_sentence(text, said, files):
    for path in files:
        Path(path).write_text(text)
    with pytest.raises(DataError, match=said):
        read_pairs(files)


def test_a_single_pair_cannot_be_split(files):
    for path in files:
        Path(path).write_text("one\n")
    with pytest.raises(DataError, match="1 of the 1"):
        read_pairs(files)


def test_what_is_not_utf8_is_named_with_its_place_and_no_level_is_promised_to_read_it(files):
    Path(files[1]).write_bytes("fünf\n".encode("latin-1"))
    with pytest.raises(DataError, match="0xfc") as error:
        read_pairs(files)
    assert "--level" not in str(error.value)


def test_a_damaged_gzip_file_is_named(files, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"eins\n" * 100)[:-9])
    with pytest.raises(DataError, match=r"cut\.gz"):
        read_pairs((files[0], str(cut)))


# What is neither two files nor a table


def test_one_file_three_files_and_a_folder_of_two_are_refused(files, tmp_path):
    for data, what in [
        (files[:1], "one file"),
        ((*files, files[0]), "3 files"),
        ((str(tmp_path),), "2 files"),
    ]:
        with pytest.raises(UsageError, match=f"{what}.*dates, multi30k"):
            read_pairs(data)


def test_a_table_wants_to_know_its_columns(tmp_path, files):
    table = write(tmp_path / "pairs.tsv", ["a\tb"])
    for data in ((table,), (table, files[0])):
        with pytest.raises(UsageError, match="--target-column"):
            read_pairs(data)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("date", "'dates'"),
        ("tinyshakespeare", "dates, multi30k"),
        ("nowhere.en", r"nowhere\.en"),
    ],
)
def test_a_name_that_is_no_set_of_pairs_is_refused_with_those_there_are(name, part):
    with pytest.raises(DataError, match=part):
        read_pairs((name,))


def test_one_file_on_both_sides_and_validation_pairs_that_are_the_training_pairs_are_noted(files):
    with pytest.warns(UserWarning, match="both the source and the target"):
        read_pairs((files[0], files[0]))
    assert "validation data are training data" in " ".join(read_pairs(files, files).notes)
    assert "test data are training data" in " ".join(read_pairs(files, test_data=files).notes)


# Tables


@pytest.fixture
def table(tmp_path: Path) -> str:
    return write(tmp_path / "pairs.tsv", ["id\tenglish\tgerman", *map("\t".join, zip("12345", ENGLISH, GERMAN))])


def test_two_columns_of_a_table_by_name_or_by_position(table, tmp_path):
    named = read_pairs((table,), source_column="english", target_column="german")
    assert pairs(named) == sorted(zip(ENGLISH, GERMAN))
    other = read_pairs((table,), source_column="german", target_column="english")
    assert pairs(other) == sorted(zip(GERMAN, ENGLISH))
    bare = write(tmp_path / "bare.csv", [f'"{a}","{b}"' for a, b in zip(ENGLISH, GERMAN)])
    assert pairs(read_pairs((bare,), source_column="1", target_column="2")) == sorted(zip(ENGLISH, GERMAN))


def test_a_missing_column_is_refused_with_those_there(table):
    with pytest.raises(DataError, match="'french'"):
        read_pairs((table,), source_column="english", target_column="french")


def test_an_empty_cell_is_named_by_its_row(tmp_path):
    table = write(tmp_path / "holes.tsv", ["a\tb", "\tc", "d\te"])
    with pytest.raises(DataError, match="Row 2"):
        read_pairs((table,), source_column="1", target_column="2", empty="refuse")


def test_columns_of_a_file_that_is_no_table_are_refused(files):
    with pytest.raises(UsageError, match=r"a\.en"):
        read_pairs(files, source_column="1", target_column="2")


# Built-in and named sets


@pytest.mark.runs
def test_dates_have_splits_of_their_own_that_follow_from_the_seed():
    found = read_pairs(("dates",), seed=3)
    assert list(found.splits) == ["train", "val", "held_out_dates", "held_out_pairs"]
    assert found.name == "dates"
    assert found.splits["val"].columns[1][0].count("-") == 2
    assert found.sha256 == read_pairs(("dates",), seed=3).sha256
    assert found.sha256 != read_pairs(("dates",), seed=4).sha256


def test_a_set_with_validation_pairs_may_be_given_others_and_more_to_judge(files):
    found = read_pairs(("dates",), files, files)
    assert list(found.splits) == ["train", "val", "held_out_dates", "held_out_pairs", "test"]
    assert found.splits["val"].columns == found.splits["test"].columns == (ENGLISH, GERMAN)
    assert found.sha256 != read_pairs(("dates",)).sha256


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"val_rows": 5}, "--val-rows"),
        ({"val_fraction": 0.5}, "--val-fraction"),
        ({"source_column": "1", "target_column": "2"}, "--source-column"),
    ],
)
def test_settings_without_meaning_for_a_set_are_refused(more, sentence):
    with pytest.raises(UsageError, match=sentence):
        read_pairs(("dates",), **more)


@pytest.mark.skipif(not MULTI30K.exists(), reason="JAXGEN_DATA names no folder with multi30k")
def test_multi30k_is_read_by_name_with_its_validation_and_test_pairs(files):
    found = read_pairs(("multi30k",))
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 29_000, "val": 1_014, "test": 1_000}
    assert found.splits["train"].columns[0][0] == "Two young, White males are outside near many bushes."
    assert found.splits["train"].columns[1][0].startswith("Zwei junge weiße Männer")
    own = read_pairs(files, ("multi30k",), ("multi30k",))
    assert [len(own.splits[name]) for name in ("train", "val", "test")] == [5, 1_014, 1_000]
