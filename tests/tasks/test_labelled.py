"""Labelled texts from tables, folders, named and built-in sets; errors."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest
from builders import write

from jaxgen.data.tables import Labelled
from jaxgen.errors import DataError, UsageError
from jaxgen.runs.config import validate
from jaxgen.tasks.classify.data import LABELLED_SETS, ClassifyConfig, read_labelled

MAIL = "subject,body,spam\n" + "".join(f"s{i},b{i},{'yes' if i % 3 else 'no'}\n" for i in range(12))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(name, val=None, text=("t",), label="l", **options):
    settings = {"data": name, "val_data": val, "text_column": text, "label_column": label, **options}
    return read_labelled(validate(ClassifyConfig, settings))


def labels(splits):
    return sorted({*splits.train.columns[1]})


def pairs(rows):
    return list(zip(*rows.columns))


# What is read


TWINS = {"case": ("Spam", "spam"), "white space": ("not spam", "not  spam"), "form": ("caf\xe9", "cafe\u0301")}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_labels_that_hardly_differ_are_noted(twins):
    rows = "".join(f"{n},{label}\n" for n in range(3) for label in (*twins, "other"))
    write("t.csv", f"t,l\n{rows}")
    with pytest.warns(UserWarning, match="separate labels") as notes:
        assert labels(read("t.csv", val_rows=1)) == sorted([*twins, "other"])
    (note,) = notes
    assert all(ascii(label)[1:-1] in str(note.message) or label in str(note.message) for label in twins)
    assert "other" not in str(note.message)
    write("train.csv", "t,l\n" + "".join(f"{n},{label}\n" for n in range(3) for label in (twins[0], "other")))
    with pytest.raises(DataError, match="differs from"):
        read("train.csv", write("val.csv", f"t,l\n1,{twins[1]}\n"))


def test_a_file_in_two_class_folders_is_refused():
    for label, n in (("a", 1), ("a", 2), ("b", 1)):
        write(f"d/{label}/{n}.txt", f"{label} {n}")
    os.link("d/a/1.txt", "d/b/2.txt")
    with pytest.raises(DataError, match=r"d/b/2\.txt is the same file as d/a/1\.txt"):
        read("d", text=None, label=None)


def test_validation_data_that_are_the_training_data_are_noted():
    write("t.csv", "t,l\n1,a\n2,b\n")
    (note,) = read("t.csv", "t.csv").notes
    assert "validation data are training data" in note
    write("u.csv", "t,l\n3,a\n")
    assert read("t.csv", "u.csv").notes == []
    (note,) = read(("t.csv", "u.csv"), "u.csv").notes
    assert "validation data are training data" in note
    (note,) = read("t.csv", ("t.csv", "u.csv")).notes
    assert "1 of the 2 files" in note


def test_a_run_beside_class_folders_is_no_class():
    for label, n in (("a", 1), ("a", 2), ("b", 1), ("b", 2)):
        write(f"{label}/{n}.txt", f"{label} {n}")
    write("runs/classify-1/checkpoints/00000010/manifest.json", "{}")
    with pytest.warns(UserWarning, match="runs"):
        assert labels(read(".", text=None, label=None, val_rows=1)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("m.csv", MAIL),
        ("m.tsv", MAIL.replace(",", "\t")),
        ("m.jsonl", "".join(
            f'{{"spam": "{"yes" if i % 3 else "no"}", "subject": "s{i}", "body": "b{i}"}}\n' for i in range(12)
        )),
    ],
)  # fmt: skip
def test_the_same_rows_of_any_kind_of_table_are_the_same_examples(name, table):
    splits = read(write(name, table), text=("subject", "body"), label="spam", val_rows=3, seed=5)
    assert labels(splits) == ["no", "yes"]
    assert sorted(pairs(splits.train) + pairs(splits.val)) == sorted(
        (f"s{i} b{i}", "yes" if i % 3 else "no") for i in range(12)
    )
    assert len(splits.val) == 3
    held_out = read(write("other.csv", MAIL), text=("subject", "body"), label="spam", val_rows=3, seed=5).val
    assert pairs(splits.val) == pairs(held_out)


def test_a_table_without_a_header_is_read_by_position():
    splits = read(write("m.csv", "good,1\nbad,0\nfine,1\n"), text=("1",), label="2", val_rows=1)
    assert sorted(pairs(splits.train) + pairs(splits.val)) == [("bad", "0"), ("fine", "1"), ("good", "1")]


def test_space_around_a_label_is_no_part_of_it():
    assert labels(read(write("m.csv", "t,l\n1,x \n2, x\n3,y\n"), val_rows=1)) == ["x", "y"]


def test_a_tenth_is_held_out_unless_told_otherwise():
    name = write("m.csv", "t,l\n" + "".join(f"{i},{i % 2}\n" for i in range(100)))
    assert [len(read(name, **how).val) for how in ({}, {"val_fraction": 0.25}, {"val_rows": 7})] == [10, 25, 7]


def test_validation_rows_of_their_own_leave_the_data_whole():
    splits = read(write("m.csv", "t,l\n1,x\n2,y\n3,y\n"), write("v.csv", "l,t\nx,3\n"))
    assert (pairs(splits.train), pairs(splits.val)) == ([("1", "x"), ("2", "y"), ("3", "y")], [("3", "x")])
    assert splits.sha256 != read("m.csv", val_rows=1).sha256
    assert splits.sha256 != read("m.csv", write("v.csv", "l,t\nx,4\n")).sha256


def test_a_folder_of_folders_is_labelled_by_their_names():
    for name, text in {"pos/a.txt": "good", "pos/deep/b.txt": "fine", "neg/c.txt": "bad\n", "neg/.x": "hidden"}.items():
        write(f"reviews/{name}", text)
    splits = read("reviews", text=None, label=None, val_rows=1)
    assert labels(splits) == ["neg", "pos"]
    assert sorted(pairs(splits.train) + pairs(splits.val)) == [("bad\n", "neg"), ("fine", "pos"), ("good", "pos")]
    assert {"the file reviews/neg/c.txt"} < {*splits.train.locations, *splits.val.locations}


def test_a_file_moved_to_another_label_is_told_from_the_one_before():
    for name in ("pos/a.txt", "pos/d.txt", "neg/b.txt", "neg/c.txt"):
        write(f"reviews/{name}", name[-5])
    before = read("reviews", text=None, label=None, val_rows=1).sha256
    os.rename("reviews/neg/b.txt", "reviews/pos/b.txt")
    assert read("reviews", text=None, label=None, val_rows=1).sha256 != before


def test_the_digest_of_a_folder_is_over_each_label_and_the_bytes_of_its_file():
    files = {"cat/a.txt": b"purr", "cat/b.txt.gz": gzip.compress("miaow \u00e9".encode()), "dog/a.txt": b"woof"}
    for name, content in files.items():
        Path("sounds", name).parent.mkdir(parents=True, exist_ok=True)
        Path("sounds", name).write_bytes(content)
    found = read("sounds", text=None, label=None, val_rows=1)
    assert "miaow \u00e9" in [*found.train.columns[0], *found.val.columns[0]]
    each = [hashlib.sha256(name[:3].encode() + b"\0" + content).digest() for name, content in files.items()]
    assert found.train.sha256 == hashlib.sha256(b"".join(each)).hexdigest()


def test_a_file_that_looks_like_two_has_another_digest():
    write("two/pos/a.txt", "good")
    write("two/pos/d.txt", "fine")
    write("one/pos/a.txt", "goodpos\0fine")
    for folder in ("one", "two"):
        write(f"{folder}/neg/b.txt", "bad")
        write(f"{folder}/neg/c.txt", "worse")
    one, two = (read(folder, text=None, label=None, val_rows=1).train.sha256 for folder in ("one", "two"))
    assert one != two


@pytest.mark.skipif("JAXGEN_DATA" not in os.environ, reason="the named sets are not on this machine")
def test_ag_news_by_name_has_titles_descriptions_and_topics():
    splits = read("ag_news", text=None, label=None, val_rows=1000)
    assert labels(splits) == ["Business", "Sci/Tech", "Sports", "World"]
    assert (len(splits.train), len(splits.val)) == (6600, 1000)
    assert {*Counter(splits.train.columns[1] + splits.val.columns[1]).values()} == {1900}
    first = "Fears for T N pension after talks Unions representing workers at Turner"
    assert any(text.startswith(first) and label == "Business" for text, label in pairs(splits.train))
    titles = read("ag_news", text=("2",), label=None, val_rows=1000)
    assert any(text == "Fears for T N pension after talks" for text in titles.train.columns[0])
    assert read("ag_news", text=("3",), label="1", val_rows=1000).train.columns[1] == splits.train.columns[1]


@pytest.fixture
def builtin(monkeypatch):
    monkeypatch.setitem(
        LABELLED_SETS,
        "stdlib-packages",
        lambda seed: {"train": Labelled(["a", "b"], ["x", "y"]), "val": Labelled([f"c{seed}"], ["x"])},
    )


def test_a_built_in_set_has_splits_of_its_own_that_follow_from_the_seed(builtin):
    one, other = (read("stdlib-packages", text=None, label=None, seed=seed) for seed in (1, 2))
    assert (pairs(one.train), pairs(one.val)) == ([("a", "x"), ("b", "y")], [("c1", "x")])
    assert (labels(one), one.name) == (["x", "y"], "stdlib-packages")
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("flag", "given"),
    [
        ("--text-column", {"text": ("t",)}),
        ("--label-column", {"label": "l"}),
        ("--val-data", {"val": "v.csv"}),
        ("--val-rows", {"val_rows": 3}),
        ("--val-fraction", {"val_fraction": 0.5}),
    ],
)
def test_flags_for_which_a_built_in_set_has_no_use_are_refused(flag, given, builtin):
    with pytest.raises(UsageError, match=flag):
        read("stdlib-packages", **{"text": None, "label": None, **given})


# Every label can be learnt


def test_no_label_is_held_out_altogether():
    name = write("m.csv", "t,l\n" + "".join(f"{i},{'rare' if i in (4, 7) else 'often'}\n" for i in range(10)))
    held = Counter()
    for seed in range(30):
        splits = read(name, val_rows=6, seed=seed)
        assert sorted(int(text) for text, _ in pairs(splits.train) + pairs(splits.val)) == list(range(10))
        assert (labels(splits), len(splits.val)) == (["often", "rare"], 6)
        held[splits.val.columns[1].count("rare")] += 1
    assert {*held} == {0, 1}, "two rare rows of ten, of which six are held out"


def test_the_split_is_that_of_the_seed():
    name = write("m.csv", "t,l\n" + "".join(f"{i},{i % 2}\n" for i in range(50)))
    one, same, other = (read(name, val_rows=20, seed=seed) for seed in (1, 1, 2))
    assert pairs(one.val) == pairs(same.val) != pairs(other.val)
    assert [int(text) for text in one.val.columns[0]] == sorted(int(text) for text in one.val.columns[0])


@pytest.mark.parametrize(("letters", "held_out"), [("abcdef", None), ("aabb", 3)])
def test_rows_that_cannot_be_held_out_without_losing_a_label_are_refused(letters, held_out):
    with pytest.raises(DataError, match=r"cannot be held out.*labels"):
        read(write("m.csv", "t,l\n" + "".join(f"1,{label}\n" for label in letters)), val_rows=held_out)


def test_a_label_that_only_validation_has_is_named_with_its_row():
    write("m.csv", "t,l\n1,x\n2,y\n")
    with pytest.raises(DataError, match=r"'z' \(row 2 of v\.csv\) .*training data"):
        read("m.csv", write("v.csv", "t,l\n3,x\n4,z\n"))


def test_of_many_labels_ten_are_listed():
    write("m.csv", "t,l\n" + "".join(f"1,label{i:02d}\n" for i in range(25)))
    with pytest.raises(DataError, match="'label09'"):
        read("m.csv", write("v.csv", "t,l\n3,x\n"))


def test_a_single_label_leaves_nothing_to_tell_apart():
    with pytest.raises(DataError, match="'x'"):
        read(write("m.csv", "t,l\n1,x\n2,x\n3,x\n"))


# What cannot be used


def test_empty_rows_are_skipped_and_counted_in_both_files():
    write("m.csv", "t,l\n1,x\n,y\n2, \n3,y\n")
    splits = read("m.csv", write("v.csv", "t,l\n,x\n4,y\n"))
    assert (pairs(splits.train), pairs(splits.val)) == ([("1", "x"), ("3", "y")], [("4", "y")])
    assert splits.notes == ["3 with an empty part skipped"]


def test_empty_rows_are_refused_on_request():
    with pytest.raises(DataError, match="Row 2"):
        read(write("m.csv", "t,l\n1,x\n,y\n3,y\n"), empty="refuse")


def test_data_without_a_row_that_can_be_used_are_refused():
    with pytest.raises(DataError, match=r"m\.csv has no usable row"):
        read(write("m.csv", "t,l\n,x\n"))


def test_a_file_beside_the_folders_of_labels_is_named():
    write("reviews/pos/a.txt", "good")
    write("reviews/README", "about")
    with pytest.raises(DataError, match="reviews/README"):
        read("reviews", text=None, label=None)


def test_a_text_that_is_no_utf8_is_named():
    write("reviews/pos/a.txt", b"caf\xe9")
    with pytest.raises(DataError, match="0xe9"):
        read("reviews", text=None, label=None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"m\.csv"),
        ({"label": "l"}, "text"),
        ({"text": ("t",)}, "label"),
    ],
)
def test_columns_that_were_not_named_are_asked_for(given, said):
    write("m.csv", "t,l\n1,x\n")
    with pytest.raises(UsageError, match=f"{said}.*--label-column"):
        read("m.csv", **{"text": None, "label": None, **given})


def test_what_is_not_there_is_said_before_columns_are_asked_for():
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read("nowhere.csv", text=None, label=None)
    with pytest.raises(DataError, match="'stdlib-packages'"):
        read("stdlib-package", text=None, label=None)


@pytest.mark.parametrize("columns", [{}, {"text": None, "label": None}])
def test_a_built_in_set_stands_alone(columns):
    write("m.csv", "t,l\n1,x\n2,y\n")
    for data, val_data in ((("m.csv",), ("stdlib-packages",)), (("stdlib-packages", "m.csv"), None)):
        with pytest.raises(UsageError, match="stdlib-packages"):
            read(data, val_data, **columns)
