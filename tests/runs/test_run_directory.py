"""The run folder: created once, found again, its JSON complete and strictly read."""

import builtins
import errno
import json
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import write

from jaxgen.errors import CheckpointError, JaxgenWarning, UsageError
from jaxgen.fsutil import replace_file, temporary_name, unwritable
from jaxgen.runs import lock as locking
from jaxgen.runs.directory import MARKER, START, RunDirectory
from jaxgen.runs.lock import LOCK


def made(path, root="runs"):
    """The folder of a new run, without its content."""
    with RunDirectory.new(path, "language", root) as make:
        return make().path


def test_runs_are_numbered_by_task(tmp_path):
    names = []
    for task in ("language", "language", "dates"):
        with RunDirectory.new(None, task, tmp_path / "runs") as make:
            names.append(make().path.name)
    assert names == ["language-1", "language-2", "dates-1"]


def test_the_next_number_is_beyond_the_highest(tmp_path):
    (tmp_path / "language-7").mkdir()
    assert made(None, tmp_path).name == "language-8"


def test_runs_started_at_once_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: made(None, tmp_path), range(32)))
    assert len(set(runs)) == 32


def test_a_named_run_is_made_with_its_parents_and_its_lock_is_held(tmp_path):
    path = made(tmp_path / "a" / "b é")
    assert path == tmp_path / "a" / "b é"
    assert os.listdir(path) == [LOCK]


def test_a_run_stays_in_its_folder_when_the_current_one_changes(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with RunDirectory.new("run", "language") as make:
        run = make()
        assert (str(run), run.relative_to_here()) == ("run", "..")
        monkeypatch.chdir(tmp_path / "there")
    run.write_json("report.json", {})
    assert os.listdir(tmp_path / "there") == []
    assert sorted(os.listdir(run.path)) == [LOCK, "report.json"], "the marker is gone too"
    assert str(run) == str(tmp_path / "here" / "run")  # what was given names another folder now


def test_one_process_starts_a_run_once(tmp_path):
    with (
        RunDirectory.new(tmp_path, "language"),
        pytest.raises(UsageError, match=f"{os.getpid()}"),
        RunDirectory.new(tmp_path, "language"),
    ):
        pytest.fail("it was started twice")


#: What stands in a folder that nobody marked: a run without its configuration, a start of another version, a user's.
UNMARKED = {
    "an n-gram run": ("checkpoints/00000000/manifest.json", "metrics.jsonl", "tokenizer.json"),
    "its checkpoint": ("checkpoints/00000000/manifest.json",),
    "temporary files": ("checkpoints/.tmp-0-1-ab/x", ".config.json.1-0a1b2c3d.tmp", "checkpoints/.tmp-mine/x"),
    "a tokenizer": ("tokenizer.json",),
    "a lock": (LOCK,),
    "a run": ("config.json",),
    "a broken marker": (START, "checkpoints/00000000/x"),
    "no marker of ours": (START,),
    "a thesis": ("thesis.tex",),
}
#: And what stands in a marked one beside what a start makes.
MARKED = {
    "a thesis": ("thesis.tex", "tokenizer.json"),
    "a run": ("config.json", "checkpoints/00000000/x"),
    "trained": ("checkpoints/00000007/x", "checkpoints/00000000/x", "tokenizer.json"),
    "a log": ("metrics.jsonl", "checkpoints/00000000/x"),
    "a look-alike": ("checkpoints/.tmp-0-1-ab/x",),
    "a file there": ("checkpoints/notes", "tokenizer.json"),
    "a file of that name": ("checkpoints",),
    "a folder of that name": ("tokenizer.json/mine",),
}


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("marker", "names"),
    [
        pytest.param(marker, names, id=f"{'marked' if marker else 'unmarked'}-{name}")
        for marker, cases in ((b"", UNMARKED), (MARKER, MARKED))
        for name, names in cases.items()
    ],
)
def test_nothing_in_a_folder_that_is_refused_is_changed(tmp_path, marker, names):
    for name in names:
        write(tmp_path / name, "{}")
    if marker:
        write(tmp_path / START, marker)
    before = content(tmp_path)
    with pytest.raises(UsageError, match=r"not empty|already holds"), RunDirectory.new(tmp_path, "language"):
        pytest.fail("it was taken")
    assert content(tmp_path) == before


def test_a_link_in_a_marked_folder_is_not_followed(tmp_path):
    run = tmp_path / "run"
    write(tmp_path / "mine" / "thesis.tex", "")
    write(run / START, MARKER)
    for name in ("checkpoints", "tokenizer.json"):
        (run / name).symlink_to(tmp_path / "mine")
        before = content(tmp_path)
        with pytest.raises(UsageError, match="not empty"):
            made(run)
        assert content(tmp_path) == before
        (run / name).unlink()


def test_what_a_killed_start_left_is_taken_over(tmp_path):
    for name in ("tokenizer.json", "checkpoints/00000000/x", f"checkpoints/{temporary_name('00000000')}/x"):
        write(tmp_path / name, "")
    for name in (START, "config.json", "tokenizer.json"):
        write(tmp_path / temporary_name(name), "{")
    write(tmp_path / START, MARKER)
    with RunDirectory.new(tmp_path, "language"):
        assert sorted(os.listdir(tmp_path)) == [LOCK, START]
    assert os.listdir(tmp_path) == [LOCK]


def test_a_start_that_another_process_goes_on_with_is_left_to_it(tmp_path, monkeypatch):
    for name in (LOCK, "tokenizer.json"):
        write(tmp_path / name, "")
    write(tmp_path / START, MARKER)
    before = content(tmp_path)
    monkeypatch.setattr(locking, "_system_lock", lambda _: False)
    with pytest.raises(UsageError, match="another process"):
        made(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["a/b", ""])
def test_a_start_that_fails_leaves_what_was_there(tmp_path, error, name):
    def fail(path, root="runs"):
        with RunDirectory.new(path, "language", root) as make:
            run = make()
            for each in ("tokenizer.json", "checkpoints/00000000/x"):
                write(run.path / each, "")
            raise error

    for path, root in ((tmp_path / name, "runs"), (None, tmp_path / name)):
        with pytest.raises(error):
            fail(path, root)
        assert os.listdir(tmp_path) == []


def test_a_start_that_fails_when_all_is_written_leaves_the_run(tmp_path):
    def fail():
        with RunDirectory.new(tmp_path, "language"):
            write(tmp_path / "config.json", "{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_run_that_is_trained_is_cleaned_of_what_killed_processes_left(tmp_path):
    dead = temporary_name("metrics.jsonl")
    mine = [".report.json.1-0a1b2c3d.tmp", ".metrics.jsonl.4194305-0a1b2c3d.tmp", ".swap.tmp", "notes.tmp", ".start"]
    for name in (dead, *mine):
        write(tmp_path / name, "")
    write(tmp_path / START, MARKER)
    before = content(tmp_path)
    RunDirectory(tmp_path).clean()
    assert content(tmp_path) == before, "it is not a run"
    write(tmp_path / "config.json", "{}")
    RunDirectory(tmp_path).clean()
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", *mine])
    write(tmp_path / START, "mine")
    RunDirectory(tmp_path).clean()
    assert (tmp_path / START).read_text() == "mine"


@pytest.mark.parametrize("path", ["file", "file/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--run DIR"):
        made(path)
    with pytest.raises(UsageError, match=path):
        made(None, path)


def test_a_place_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="Permission denied"), RunDirectory.new(None, "language"):
        pytest.fail("it goes on")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_exists_but_takes_no_files_is_named(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(UsageError, match="Read-only"):
        made(tmp_path)


def test_a_run_is_opened(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert RunDirectory.open(tmp_path).path == tmp_path


def test_opening_what_is_no_run_says_what_is_missing(tmp_path):
    (tmp_path / "file").write_text("")
    for name, missing in [("", "has no config.json"), ("none", "does not exist"), ("file", "is not a folder")]:
        with pytest.raises(CheckpointError, match=missing):
            RunDirectory.open(tmp_path / name)


@pytest.mark.parametrize("more", ["checkpoints/00000007/x", "metrics.jsonl", "samples.txt"])
def test_a_run_whose_config_is_gone_is_told_from_a_start_that_was_killed(tmp_path, more):
    for name in ("checkpoints/00000000/x", "tokenizer.json", LOCK, temporary_name("config.json")):
        write(tmp_path / name, "")
    write(tmp_path / START, MARKER)
    RunDirectory(tmp_path).check_config()
    write(tmp_path / more, "")
    for ask in (RunDirectory.open, lambda path: RunDirectory(path).check_config()):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            ask(tmp_path)
    (tmp_path / more).unlink()
    (tmp_path / START).unlink()
    with pytest.raises(CheckpointError, match="damaged run"):
        RunDirectory(tmp_path).check_config()


def test_a_folder_in_which_nothing_was_trained_holds_no_damaged_run(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine" / "note.txt").write_text("")
    for name in ("", "mine", "none", "file", "file/below"):
        RunDirectory(tmp_path / name).check_config()
    (tmp_path / "mine" / "checkpoints").mkdir()
    RunDirectory(tmp_path / "mine").check_config()


def test_the_newest_run_is_the_one_whose_config_or_checkpoint_is_newest(tmp_path):
    for name, config, checkpoint in [("a", 100, 900), ("b", 500, None), ("c", 300, 400)]:
        steps = tmp_path / name / "checkpoints" / "00000001"
        steps.mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (config, config))
        os.utime(steps, (checkpoint or 0, checkpoint or 0))
    (tmp_path / "not-a-run").mkdir()
    assert RunDirectory.newest(tmp_path).path.name == "a"


def test_a_run_that_has_not_trained_is_the_newest_only_if_there_is_no_other(tmp_path):
    for name, step, written in [("trained", "00000010", 100), ("stopped", "00000000", 200)]:
        (tmp_path / name / "checkpoints" / step).mkdir(parents=True)
        write(tmp_path / name / "config.json", "{}")
        for path in (tmp_path / name / "config.json", tmp_path / name / "checkpoints" / step):
            os.utime(path, (written, written))
    assert RunDirectory.newest(tmp_path).path.name == "trained"
    write(tmp_path / "stopped" / "report.json", "{}")  # counted n-grams have no steps
    assert RunDirectory.newest(tmp_path).path.name == "stopped"


def runs_in(folder, *names):
    for place, name in enumerate(names):
        write(folder / name / "config.json", "{}")
        (folder / name / "checkpoints" / "00000001").mkdir(parents=True)
        for path in (folder / name / "config.json", folder / name / "checkpoints" / "00000001"):
            os.utime(path, (1000 + place, 1000 + place))


def test_links_to_themselves_among_the_runs_are_left_out(tmp_path):
    runs_in(tmp_path, "a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").symlink_to("config.json")
    with pytest.warns(JaxgenWarning, match=r"b \(.*loop \("):
        assert RunDirectory.newest(tmp_path).path.name == "a"
    for name in ("loop", "loop/run"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            RunDirectory.open(tmp_path / name)
        with pytest.raises(UsageError, match="--run DIR"):
            made(tmp_path / name)


@pytest.mark.parametrize("call", ["stat", "scandir", "open"])
def test_a_run_that_cannot_be_read_is_left_out_with_a_note(tmp_path, monkeypatch, call):
    runs_in(tmp_path, "a", "b")
    module = builtins if call == "open" else os
    real = getattr(module, call)

    def denied(path, *rest, **more):
        if "/b" in os.fspath(path).removeprefix(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    monkeypatch.setattr(module, call, denied)
    with pytest.warns(JaxgenWarning, match=r"b \(Permission denied"):
        assert RunDirectory.newest(tmp_path, lambda task: task == "language").path.name == "a"
    if call == "stat":
        with pytest.raises(CheckpointError, match="cannot be read"):
            RunDirectory.open(tmp_path / "b")


def test_a_folder_of_runs_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        RunDirectory.newest(tmp_path)


def test_a_run_and_a_checkpoint_may_disappear_while_the_newest_is_looked_for(tmp_path, monkeypatch):
    runs_in(tmp_path, "a", "b", "c")
    entries = {path: [*os.scandir(tmp_path / path / "checkpoints")] for path in ("a", "b")}
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "a" / "checkpoints" / "00000001").rmdir()
    os.utime(tmp_path / "a" / "config.json", (5000, 5000))
    monkeypatch.setattr(os, "listdir", lambda _: ["a", "b", "c"])
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entries.get(Path(path).parent.name) or scandir(path))
    assert RunDirectory.newest(tmp_path).path.name == "a"


@pytest.mark.parametrize("root", ["", "none"])
def test_no_run_at_all_says_how_to_make_one(tmp_path, root):
    with pytest.raises(CheckpointError, match=r"train\.py"):
        RunDirectory.newest(tmp_path / root)


def test_the_parts_of_a_run_lie_where_the_design_says(tmp_path):
    run = RunDirectory(tmp_path)
    paths = [run.config_path, run.tokenizer_path, run.checkpoints_path, run.metrics_path, run.samples_path]
    assert [path.name for path in [*paths, run.plot_path]] == [
        *("config.json", "tokenizer.json", "checkpoints", "metrics.jsonl", "samples.txt", "loss.png")
    ]


def test_json_comes_back_as_written(tmp_path):
    run, value = RunDirectory(tmp_path), {"é\ud800\n": [1, 0.1, None, True, {"a": []}]}
    run.write_json("config.json", value)
    assert run.read_json("config.json") == value
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}])
def test_a_value_that_json_lacks_leaves_the_former_file(tmp_path, bad):
    run = RunDirectory(tmp_path)
    run.write_json("config.json", {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        run.write_json("config.json", {"a": bad})
    assert run.read_json("config.json") == {"a": 1}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space"), "No space"),
        (OSError(errno.EMFILE, "Too many"), "Too many.*ulimit"),
        (OSError(errno.ENFILE, "Too many"), "Too many"),
        (OSError(errno.ENOMEM, "Cannot allocate"), "memory"),
        (OSError(errno.EACCES, "Denied"), "writable"),
        (
            OSError(errno.EIO, "Input/output"),
            "Input/output",
        ),
        (MemoryError(), "memory"),
    ],
)
def test_what_is_advised_where_a_file_cannot_be_written_is_by_what_the_system_says(tmp_path, error, told):
    with pytest.raises(CheckpointError, match=told):
        raise unwritable(tmp_path / "a", error, "repeat the command", 10)


def test_a_folder_in_place_of_a_file_is_to_be_removed(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        RunDirectory(tmp_path).write_json("report.json", {})


def test_a_write_that_fails_leaves_the_former_file_and_no_other(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        replace_file(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'\xff{"a": 1}', "UTF-8"),
        (b'{"a": {"b": 1, "b": 2}}', "'b'"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b"9" * 5000, "integer"),
        (b'{"a": -1%s}' % (b"0" * 400), "integer"),
        (b"[" * 65 + b"]" * 65, "64"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "64"),
        (b"[" * 1_000_000, "64"),
    ],
)
def test_json_that_is_not_acceptable_is_refused_in_a_sentence(tmp_path, content, problem):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{problem}"):
        RunDirectory(tmp_path).read_json("config.json")


@pytest.mark.parametrize(
    "unit", [b"[],", *(pytest.param(each, marks=pytest.mark.runs) for each in (b"{},", b"1,", b'["",[[]]],'))]
)
def test_json_that_would_fill_the_memory_is_refused_before_it_is_made(tmp_path, unit):
    (tmp_path / "config.json").write_bytes(b"[" + unit * (2**26 // len(unit) - 9) + b"0]")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more than"):
            RunDirectory(tmp_path).read_json("config.json")
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_a_task_that_is_no_name_is_none(tmp_path):
    (tmp_path / "config.json").write_text('{"task": []}')
    assert RunDirectory(tmp_path).task() is None


def test_a_link_in_place_of_a_file_of_a_run_is_refused(tmp_path):
    (tmp_path / "theirs").write_text("{}")
    (tmp_path / "config.json").symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"config\.json.* link"):
        RunDirectory(tmp_path).read_json("config.json")


def test_json_of_64_levels_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b"[" * 64 + b"]" * 64)
    assert json.dumps(RunDirectory(tmp_path).read_json("config.json")).count("[") == 64


@pytest.mark.parametrize("size", [64 * 2**20 + 1, 2**42])
def test_json_larger_than_64_megabytes_is_refused_unread(tmp_path, size):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(size)  # sparse: takes no room
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="64 MB"):
            RunDirectory(tmp_path).read_json("config.json")
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_file_that_is_missing_or_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name, problem in [("config.json", "does not exist"), ("pipe.json", "regular file")]:
        with pytest.raises(CheckpointError, match=problem):
            RunDirectory(tmp_path).read_json(name)


def test_a_name_that_leaves_the_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name"):
        RunDirectory(tmp_path).read_json("../config.json")


@pytest.mark.skipif(os.name == "nt", reason="the current folder cannot be removed")
def test_a_run_elsewhere_is_of_use_in_a_current_folder_that_was_deleted(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    beside = RunDirectory("../run")
    here.rmdir()
    assert str(beside) == str(beside.path)
    assert RunDirectory(made(tmp_path / "run")).relative_to_here() == "."
