"""Running text read in pieces equals the whole text in memory, wherever files and pieces end."""

import gzip
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgen.data import files
from jaxgen.data import files as watch
from jaxgen.data.batches import make_batches
from jaxgen.data.sources import TextStream, open_texts
from jaxgen.errors import DataError
from jaxgen.tasks.language import corpus
from jaxgen.tasks.language.corpus import prepare
from jaxgen.text import Reading
from jaxgen.tokenizers import TOKENIZERS, UNK

EXACT = Reading.of_level("byte")
OPTIONS = {"char": {}, "byte": {}, "word": {"min_count": 1}, "bpe": {"vocab_size": 280}}
letters = st.sampled_from("abcab  .,'\r\n\ufeff\0é\u0301漢🎉")
texts = st.lists(st.lists(letters, max_size=40).map("".join), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(found, packed=()):
    names = []
    for number, text in enumerate(found):
        raw, zipped = text.encode(), number in packed
        names.append(f"{number}.txt")
        Path(names[-1]).write_bytes(gzip.compress(raw, mtime=0) if zipped else raw)
    return names


def joined(found):
    filled = [text for text in found if text]
    return "".join(text if text.endswith("\n") else text + "\n" for text in filled[:-1]) + "".join(filled[-1:])


@pytest.fixture
def tiny(monkeypatch):
    """Everything is large."""
    monkeypatch.setattr(files, "_BLOCK", 3)
    monkeypatch.setattr(corpus, "PIECE", 5)
    monkeypatch.setattr(corpus, "LARGE", 1)


@pytest.mark.runs
@pytest.mark.filterwarnings("ignore:The validation data are training data", "ignore:The last")
@pytest.mark.parametrize("level", OPTIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=texts,
    fraction=st.floats(0, 0.9),
    packed=st.sets(st.integers(0, 3)),
    held_out=st.none() | texts,
    newlines=st.sampled_from([None, "keep", "lf"]),
)
def test_tokens_on_the_disk_are_those_of_the_whole_text(level, found, fraction, packed, held_out, newlines, tiny):
    reading = Reading.of_level(level, newlines)
    names, found, more = write(found, packed), [reading.text(text) for text in found], {"newlines": newlines}
    whole, places = joined(found), [int(len(text) * (1 - fraction)) for text in found]
    train = joined(text[:at] for text, at in zip(found, places))
    val = joined(text[at:] for text, at in zip(found, places))
    if held_out is not None:
        Path("held-out").write_text(joined(held_out) or "x", newline="")
        train, val = whole, reading.text(joined(held_out) or "x")
        more["val_data"] = ["held-out"]
    options = {"level": level, "val_fraction": fraction, "tokenizer_options": OPTIONS[level], **more}
    tokenizer = TOKENIZERS[level].train([train], **OPTIONS[level])
    expected = [tokenizer.encode(text) for text in (train, val)]
    if not whole or ((fraction or held_out is not None) and expected[1].size < 2):
        with pytest.raises(DataError, match=r"empty|at least 2"):
            prepare(names, **options)
        return
    made = prepare(names, **options)
    assert made.tokenizer.to_json() == tokenizer.to_json()
    for tokens, ids, text in zip((made.train, made.val), expected, (train, val)):
        np.testing.assert_array_equal(tokens.ids, ids)
        assert (tokens.chars, tokens.bytes) == (len(text), len(text.encode()))
        assert tokens.unknown == np.count_nonzero(ids == UNK)


@pytest.mark.filterwarnings("ignore:The last")
def test_what_is_large_alters_neither_splits_nor_batches(monkeypatch):
    names = write(["the cat sat on the mat\r\n" * 40, "über den Zaun 🎉 " * 30], packed={1})
    before = {level: prepare(names, level=level, tokenizer_options=OPTIONS[level]) for level in OPTIONS}
    monkeypatch.setattr(corpus, "LARGE", 1)
    for level, old in before.items():
        new = prepare(names, level=level, tokenizer_options=OPTIONS[level])
        assert not new.train.ids.flags.writeable
        assert new.train.ids.dtype == old.train.ids.dtype
        assert (new.sha256, new.name, new.tokenizer.to_json()) == (old.sha256, old.name, old.tokenizer.to_json())
        for layout in ("stream", "windows"):
            batches = [make_batches(layout, each.train, 2, 4, seed=1) for each in (old, new)]
            for step in (0, 5, 60):
                for a, b in zip(*(each.batch(step) for each in batches)):
                    np.testing.assert_array_equal(a, b)


def test_a_file_is_read_as_often_as_it_is_wanted_and_a_pipe_is_kept():
    (name,) = write(["one two"])
    read_end, write_end = os.pipe()
    os.write(write_end, b"piped")
    os.close(write_end)
    try:
        text = TextStream.of(open_texts([name, f"/dev/fd/{read_end}"]))
    finally:
        os.close(read_end)
    assert ["".join(text), "".join(text)] == ["one two\npiped"] * 2
    assert ["".join(part) for part in text.cut(0.6)] == ["one \npip", "two\ned"]


@pytest.mark.parametrize("large", [1, 1 << 25])
@pytest.mark.parametrize("change", ["longer", "other", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_read_is_told_of(change, large, monkeypatch):
    (name,) = write(["abcdefgh" * 9])
    monkeypatch.setattr(corpus, "LARGE", large)
    train = TOKENIZERS["char"].train.__func__

    def meanwhile(cls, texts, **options):
        tokenizer = train(cls, texts, **options)
        time.sleep(0.01)  # what a file system's clock ticks in
        if change == "replaced":
            Path("new").write_text("abcdefgh" * 9)
            os.replace("new", name)
        elif change == "gone":
            Path(name).unlink()
        else:
            Path(name).write_text("abcdefgh" * 10 if change == "longer" else "hgfedcba" * 9)
        return tokenizer

    monkeypatch.setattr(TOKENIZERS["char"], "train", classmethod(meanwhile))
    with pytest.raises(DataError, match=r"0\.txt"):
        prepare([name])
    assert not list(Path("cache").rglob("*.t*"))  # nothing half-made


class Listener:
    def __init__(self):
        self.seen, self.notes = [], []

    def progress(self, what, done, total):
        self.seen.append((what, done, total))

    def note(self, text):
        self.notes.append(text)


def test_who_watches_is_told_how_much_is_done_of_what_is_large(tiny, monkeypatch):
    listener = Listener()
    prepare(write(["small" * 3]), watch=listener)
    assert listener.seen == []
    monkeypatch.setattr(watch, "REPORTED_FROM", 50)
    prepare(write(["é" * 20, "ab\n" * 20]), watch=listener)
    ends = {what: (done, total) for what, done, total in listener.seen}
    assert ends == {"reading": (100, 100), "learning the vocabulary": (72, 72), "encoding": (72, 72)}
    assert ["each of the 2 files" in note for note in listener.notes] == [True]
    assert all(a[1] <= b[1] for a, b in zip(listener.seen, listener.seen[1:]) if a[0] == b[0])


def test_damaged_tokens_are_made_again_and_that_is_told(tiny):
    names, listener = write(["the cat sat on the mat"]), Listener()
    first = prepare(names, watch=listener).train.ids.copy()
    for path in Path("cache").rglob("*.tokens"):
        path.write_bytes(b"\3" + path.read_bytes()[1:])
    second = prepare(names, watch=listener)
    np.testing.assert_array_equal(first, second.train.ids)
    assert len(listener.notes) == 2
    assert all("damaged" in note for note in listener.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(names)


def test_a_text_is_read_again_from_where_it_was_when_the_current_folder_changes(tmp_path, monkeypatch):
    Path("there").mkdir()
    Path("a.txt").write_text("here")
    text = TextStream.of(open_texts(["a.txt"]))
    monkeypatch.chdir("there")
    Path("a.txt").write_text("there")
    assert "".join(text) == "here"


@pytest.mark.parametrize("spec", ["a.txt", "*.txt", "books", "[b].txt"])
def test_relative_data_are_looked_up_here_and_then_where_the_run_was_started(tmp_path, monkeypatch, spec):
    started, here = tmp_path / "started [1]", tmp_path / "here"
    for folder in (started / "books", here):
        folder.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "books/c.txt"):
        (started / name).write_text("there")
    monkeypatch.chdir(here)
    with files.data_folders([tmp_path / "none", started]):
        found = files.find_paths(spec)
        assert {started / spec, started / "a.txt", started / "b.txt", started / "books" / "c.txt"} >= {*found}
        Path("a.txt").write_text("here")
        assert files.find_paths("a.txt") == [Path("a.txt")]
    with pytest.raises(DataError) as error, files.data_folders([started]):
        files.find_paths("c.txt")
    assert all(part in str(error.value) for part in ("'c.txt'", str(here), str(started), "--data"))
    (started / "d.txt").write_bytes(b"\xff")  # it is found, and is wrong otherwise
    with pytest.raises(DataError) as error, files.data_folders([started]):
        list(files.FileText(files.find_paths("d.txt")[0]))
    assert "was looked up" not in str(error.value)
