"""metrics.jsonl and samples.txt: complete lines, truncated exactly to the step a run resumes from."""

import json
import math
import os
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.runs import logs
from jaxgen.runs.logs import LogRecord, MetricsLog, append_sample, truncate_samples


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        log.append({"step": step, "train_loss": 1 / step})
    return log


def test_rows_come_back_as_written(log):
    assert log.read() == [{"step": step, "train_loss": 1 / step} for step in (10, 20, 30)]


def test_each_row_is_one_line_of_strict_json(log):
    log.append({"step": 40, "loss": math.nan, "deep": [{"x": -math.inf}], "text": "a\nb"})
    last = log.path.read_text().splitlines()[3]
    assert json.loads(last, parse_constant=pytest.fail) == {
        "step": 40,
        "loss": None,
        "deep": [{"x": None}],
        "text": "a\nb",
    }


def test_scalars_of_numpy_and_jax_are_numbers(log):
    log.append({"step": np.int64(40), "a": jnp.float32(0.5), "b": np.float32(math.inf), "c": np.bool_(True)})
    assert log.read()[-1] == {"step": 40, "a": 0.5, "b": None, "c": True}


def test_an_array_is_refused(log):
    with pytest.raises(TypeError, match="set"):
        log.append({"step": 40, "a": {1}})


def test_a_record_names_the_first_line_that_was_edited(log, monkeypatch):
    monkeypatch.setattr(logs, "SINGLE_ROWS", 3)
    rows = [{"step": step, "loss": np.float32(math.nan), "seconds": 9 * step} for step in range(6)]
    record = LogRecord()
    for row in rows:
        record.add(row)
    assert (record.rows, len(record.last)) == (6, 3)
    again = [{"step": row["step"], "loss": None, "seconds": 1, "tokens_per_second": 2} for row in rows]
    assert record.changed_line(again) is None  # timings differ between equal runs
    for index, line in enumerate(["lines 1 to 3"] * 3 + ["line 4", "line 5", "line 6"]):
        edited = [*again[:index], {**again[index], "loss": 0.5}, *again[index + 1 :]]
        assert record.changed_line(edited) == line
        assert record.changed_line([*again[:index], *again[index + 1 :]]) == line
        assert record.changed_line([*again[:index], {}, *again[index:]]) == line
    assert record.changed_line([*again, again[-1]]) == "line 7"
    assert record.changed_line([]) == "lines 1 to 3"
    assert LogRecord().changed_line([]) is None


@pytest.mark.parametrize("size", [2**27 + 1, 2**42])
def test_a_sparse_log_is_refused_without_reading_it(tmp_path, size):
    log, samples = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "samples.txt"
    for path in (log.path, samples):
        path.touch()
        os.truncate(path, size)
    asks = [log.read, lambda: log.truncate(1), lambda: log.append({"step": 1})]
    asks += [lambda: truncate_samples(samples, 1), lambda: append_sample(samples, 1, "a")]
    tracemalloc.start()
    try:
        for ask in asks:
            with pytest.raises(CheckpointError, match="larger than 128 MB"):
                ask()
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unit", [b"\n", b"{}\n", b'{"a": [[],[],[],[],[],[],[],[]]}\n', b"=== step 1 ===\n"])
def test_a_log_of_millions_of_parts_is_refused_before_they_are_made(tmp_path, unit):
    log, samples = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "samples.txt"
    for path in (log.path, samples):
        path.write_bytes(unit * (2**20 + 1))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="parts"):
            log.truncate(1) if unit[:1] != b"=" else truncate_samples(samples, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_row_of_megabytes_is_not_parsed(log):
    log.path.write_bytes(log.path.read_bytes() + b'{"step": 40, "text": "' + b"a" * 2**20 + b'"}\n{}\n')
    assert [len(row) for row in log.rows()] == [2, 2, 2, 0, 0]


def test_a_log_that_does_not_exist_is_empty(tmp_path):
    log = MetricsLog(tmp_path / "none.jsonl")
    log.truncate(5)
    assert log.read() == []


def test_truncation_drops_later_rows_and_keeps_the_others_byte_for_byte(log):
    before = log.path.read_bytes().splitlines(keepends=True)
    log.truncate(20)
    assert log.path.read_bytes() == b"".join(before[:2])


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_dropped_when_reading_appending_and_truncating(log, cut):
    whole = log.path.read_bytes()
    torn = whole[: len(whole) - cut]
    rows = [10, 20] if cut > 1 else [10, 20, 30]  # without its newline alone, the row is still whole
    log.path.write_bytes(torn)
    assert [row["step"] for row in log.read()] == rows
    log.append({"step": 40})
    assert [row["step"] for row in log.read()] == [*rows, 40]
    log.path.write_bytes(torn)
    log.truncate(100)
    assert log.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: len(rows)])


@pytest.mark.parametrize(
    "text", [b"", b"\r", b"xx", b"[1]", b"null", b"\xff", b"[" * 10**5, b'{"a": 1e999}', b'{"a": NaN}']
)
def test_a_line_that_is_no_row_is_a_change_there_and_stays(log, text):
    record, known = LogRecord(), log.read()
    for row in known:
        record.add(row)
    first, *rest = log.path.read_bytes().splitlines(keepends=True)
    edited = b"".join([first, text + b"\n", *rest])
    log.path.write_bytes(edited)
    log.truncate(30)
    assert log.path.read_bytes() == edited
    assert log.read() == known
    assert record.changed_line(log.rows()) == "line 2"


def spoil(log, line):
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"train_loss"', b'"train_loss\x00')
    log.path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(("step", "line"), [(10, 1), (10, 2), (20, 2), (15, 1), (5, 0)])
def test_a_spoilt_line_beyond_the_step_goes_with_the_others(log, step, line):
    whole = log.path.read_bytes().splitlines(keepends=True)
    spoil(log, line)
    log.truncate(step)
    assert log.path.read_bytes() == b"".join(whole[: step // 10])


@pytest.mark.parametrize(("step", "line"), [(30, 1), (20, 0), (20, 1), (10, 0), (30, 2)])
def test_a_spoilt_line_up_to_the_step_stays(log, step, line):
    spoil(log, line)
    before = log.path.read_bytes().splitlines(keepends=True)
    log.truncate(step)
    assert log.path.read_bytes() == b"".join(before[: step // 10])


def test_a_line_that_tells_no_step_goes_once_all_up_to_the_step_are_there(log):
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[2])
    log.truncate(10)
    assert log.path.read_bytes() == lines[0]


def test_what_is_logged_is_on_the_disk_before_a_checkpoint_stands_for_it(log, samples, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log.append({"step": 40})
    append_sample(samples, 40, "more")
    assert synced == [log.path.stat().st_size, samples.stat().st_size]


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
def test_a_link_in_place_of_a_log_is_not_written_through_and_a_pipe_not_waited_for(tmp_path, name):
    path, theirs = tmp_path / name, tmp_path / "theirs"
    log = MetricsLog(path)
    asks = (lambda: log.append({"step": 1}), log.read, lambda: log.truncate(0))
    if name == "samples.txt":
        asks = (lambda: append_sample(path, 1, "a"), lambda: truncate_samples(path, 0))
    for make, problem in ((lambda: path.symlink_to(theirs), "is a link"), (lambda: os.mkfifo(path), "not a regular")):
        make()
        for ask in asks:
            with pytest.raises(CheckpointError, match=problem):
                ask()
        path.unlink()
    assert os.listdir(tmp_path) == []


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path / "gone" / "metrics.jsonl").append({"step": 1})


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.txt"
    append_sample(path, 10, "Once upon é\ud800")
    append_sample(path, 20, "=== step 5 ===\nfake\n\\=== step 99 ===\n=== step")
    append_sample(path, 30, "later\n")
    return path


def test_samples_are_readable_sections(samples):
    assert samples.read_text(encoding="utf-8").startswith("=== step 10 ===\nOnce upon é\\ud800\n\n=== step 20 ===\n")


def test_samples_beyond_the_step_are_dropped_whatever_the_text_says(samples):
    whole = samples.read_bytes()
    truncate_samples(samples, 20)
    assert samples.read_bytes() == whole[: whole.index(b"=== step 30")]
    truncate_samples(samples, 10)
    assert samples.read_bytes() == whole[: whole.index(b"=== step 20")]


def test_a_torn_section_is_dropped_and_the_next_begins_afresh(samples):
    whole = samples.read_bytes()
    first_two = whole[: whole.index(b"=== step 30")]
    for end in range(len(first_two) + 1, len(whole)):
        if whole[end - 1 : end] == b"\n":
            continue  # ends with a line: a whole section as far as anyone can tell
        samples.write_bytes(whole[:end])
        append_sample(samples, 30, "later")
        assert samples.read_bytes() == whole


def test_samples_that_do_not_exist_need_no_truncation(tmp_path):
    truncate_samples(tmp_path / "samples.txt", 3)
    assert not (tmp_path / "samples.txt").exists()
