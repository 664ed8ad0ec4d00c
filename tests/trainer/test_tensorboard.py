"""TensorBoard events of resumed runs: each point appears once, and a full disk does not block training."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import language_config

from jaxgen.errors import CheckpointError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trackers import EventFile

pytest.importorskip("tensorboardX")

settings = partial(language_config, steps=4, eval_every=1, sample_every=0, log=("tensorboard",))


def events(run: Path) -> Iterator[Any]:
    """All of them, in the order in which TensorBoard reads them: a length, a checksum, an event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((run / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def curve(run: Path, name: str) -> tuple[list[tuple[int, float]], int]:
    """The points that TensorBoard shows, and how many there are in the files.

    A session that begins takes the points from its step on away (TensorBoard's documentation of ``SessionLog``).
    """
    shown: list[tuple[int, float]] = []
    written = 0
    for event in events(run):
        if event.session_log.status == event.session_log.START:
            shown = [point for point in shown if point[0] < event.step]
        for value in event.summary.value:
            if value.tag == name:
                shown.append((event.step, value.simple_value))
                written += 1
    return shown, written


@pytest.mark.parametrize(("step", "again"), [(2, 2), (0, 4)])
def test_events_beyond_the_step_from_which_a_run_goes_on_are_no_longer_shown(step, again, book, tmp_path):
    run = tmp_path / "run"
    trainer = start(settings(book, run))
    trainer.recorder.store.keep_latest = 5
    trainer.train()
    CheckpointStore(run / "checkpoints").truncate(step)  # as if it had been killed in front of the next save
    resume(str(run)).train()
    rows = [(row["step"], pytest.approx(row["val_loss"])) for row in MetricsLog(run / "metrics.jsonl").read()]
    assert [number for number, _ in rows] == [1, 2, 3, 4]
    assert curve(run, "val_loss") == (rows, 4 + again)


def test_two_files_of_one_moment_are_both_kept(tmp_path):
    for step in (1, 2):
        EventFile(RunDirectory(tmp_path), step - 1).add_row({"loss": float(step)}, step)
    assert curve(tmp_path, "loss") == ([(1, 1.0), (2, 2.0)], 2)


def test_events_on_a_full_disk_are_an_error_and_nothing_waits(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    writer = EventFile(RunDirectory(tmp_path), 0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left"):
        writer.add_row({f"loss {number}": 1.0 for number in range(100)}, 1)  # more than any queue holds


def test_a_link_in_place_of_the_folder_is_not_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="is a link"):
        EventFile(RunDirectory(tmp_path / "run"), 0)
    assert list((tmp_path / "outside").iterdir()) == []
