"""Cached token files: found again, verified, safe with several processes, errors on a full disk."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from jaxgen.data import token_cache as token_files
from jaxgen.data.token_cache import Part, get_or_create
from jaxgen.errors import DataError

IDS = np.arange(3000, dtype=np.uint16)
TYPE = np.dtype(np.uint16)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "tokens"


def parts():
    yield Part(IDS[:1000], (1, 10))
    yield Part(IDS[1000:], (2, 20))


def never():
    raise AssertionError("it was made again")


def kept(make=parts, key="a", dtype=TYPE, notes=None):
    found = get_or_create(key, dtype, make, IDS.nbytes, never if notes is None else notes.append)
    np.testing.assert_array_equal(found.ids, IDS)
    assert found.counts == (3, 30)
    return found


def test_what_was_kept_is_found_and_not_made_again(folder):
    kept()
    kept(never)
    assert len(list(folder.iterdir())) == 1


def test_what_follows_from_something_else_lies_elsewhere(folder):
    kept()
    kept(key="b")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_nothing_at_all_can_be_kept_too(dtype):
    for make in (lambda: iter(()), never):
        found = get_or_create("empty", np.dtype(dtype), make, 0, never)
        assert (found.ids.size, found.ids.dtype, found.counts) == (0, dtype, ())


def cut(raw):
    return raw[: len(raw) // 2]


def flip(raw):
    return raw[:77] + bytes([raw[77] ^ 1]) + raw[78:]


def flip_record(raw):
    return raw[: IDS.nbytes + 40] + b"x" + raw[IDS.nbytes + 41 :]


def longer(raw):
    return b"\0\0" + raw


def short(raw):
    return b'{"sha256": ""}'


def other_counts(raw):
    record = json.loads(raw[IDS.nbytes :])
    record["counts"][0] += 1
    return raw[: IDS.nbytes] + json.dumps(record).encode().ljust(1024)


def nested(raw):
    return raw[: IDS.nbytes] + b"[" * 1024


NOTHING, ZEROS = lambda raw: b"", lambda raw: b"\0" * len(raw)


@pytest.mark.parametrize("damage", [cut, flip, flip_record, short, other_counts, nested, longer, NOTHING, ZEROS])
def test_a_damaged_file_is_told_of_and_made_again(damage, folder):
    kept()
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    notes = []
    kept(notes=notes)
    assert len(notes) == 1
    assert str(path) in notes[0]
    assert "encoded again" in notes[0]
    kept(never)


def test_a_folder_in_its_place_is_told_before_anything_is_made(folder):
    kept()
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="folder"):
        kept(never)


def test_a_link_is_replaced_and_not_followed(folder, tmp_path):
    kept()
    (path,) = folder.iterdir()
    path.rename(tmp_path / "mine")
    path.symlink_to(tmp_path / "mine")
    kept(notes=[])
    assert not path.is_symlink()
    assert (tmp_path / "mine").exists()


def test_what_was_mapped_outlives_its_file(folder):
    found = kept()
    (path,) = folder.iterdir()
    path.unlink()
    np.testing.assert_array_equal(found.ids, IDS)
    kept()


def test_two_that_make_the_same_do_not_harm_each_other(folder):
    def meanwhile():
        kept()  # another process has begun and ended
        yield from parts()

    kept(meanwhile)
    kept(never)
    assert len(list(folder.iterdir())) == 1


def test_what_stops_the_making_leaves_nothing(folder):
    def stopped():
        yield from parts()
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        get_or_create("a", TYPE, stopped, 0, never)
    assert list(folder.iterdir()) == []
    kept()


def test_what_killed_makers_left_is_removed_and_the_work_of_others_is_not(folder):
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    machine, stem = token_files._machine(), "0" * 64
    dead, alive = (folder / f".{stem}.{machine}.{number}-01234567.tmp" for number in (process.pid, os.getppid()))
    elsewhere, old = (folder / f".{stem}.{other}.{process.pid}-01234567.tmp" for other in ("00000000", "11111111"))
    mine = folder / ".notes.tmp"
    for path in (dead, alive, elsewhere, old, mine):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(mine, (0, 0))
    kept()
    assert {path for path in folder.iterdir() if path.suffix == ".tmp"} == {alive, elsewhere, mine}


@pytest.mark.parametrize("what", ["a file", "homeless", "relative"])
def test_without_a_cache_folder_the_file_has_no_name(what, tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    places = {"a file": lambda: tmp_path / "file", "homeless": homeless, "relative": lambda: Path("~")}
    monkeypatch.setattr(token_files, "user_cache", places[what])
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    kept()
    kept()  # nothing to find
    assert set(tmp_path.rglob("*")) == before


def test_no_room_is_told_with_the_path_and_the_size(folder):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(DataError, match="too large") as error:
            get_or_create("a", TYPE, parts, IDS.nbytes, never)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(folder) in str(error.value)
    assert list(folder.iterdir()) == []
    kept()


def test_files_not_used_for_the_longest_time_go_when_there_are_too_many_bytes(folder, monkeypatch):
    monkeypatch.setattr(token_files, "MAX_CACHE_BYTES", 3 * (IDS.nbytes + token_files.TRAILER))
    for number, key in enumerate("abc"):
        kept(key=key)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number + 1, number + 1))
    kept(never, key="a")  # it is used
    kept(key="d")
    assert len(list(folder.iterdir())) == 3
    for key in "acd":
        kept(never, key=key)
