"""One run trained by several real processes: the same result, one record, and an end that all of them share."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen.cli.processes import LOST
from jaxgen.run.saved import SavedRun
from jaxgen.store import CheckpointStore
from tests.run.jobs import Jobs, ended_by

FLAGS = (
    "--preset tiny --cell elman --hidden 8 --batch-size 8 --seq-len 8 --steps 20 --eval-every 8 --dropout 0.2 --lr 0.02"
)


@pytest.fixture
def jobs(book: Path, tmp_path: Path, quick_environment: dict[str, str]) -> Jobs:
    (tmp_path / "book.txt").write_bytes(Path(book).read_bytes())
    return Jobs(tmp_path, quick_environment)


def train(jobs: Jobs, processes: int, run: str, *flags: str, **options):
    return jobs.run(processes, "--data", "book.txt", "--run", run, *FLAGS.split(), *flags, **options)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Losses and weights, up to the order in which sums were rounded."""
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(other)]
    for mine, theirs in zip(rows(one), rows(other)):
        for name in ("train_loss", "val_loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=tolerance), name
    weights = [SavedRun.open(run).params()[1] for run in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, weights)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def check_quiet(ended) -> None:
    """A process that follows says nothing but what the runtime prints."""
    assert "Traceback" not in ended.err
    assert "step" not in ended.out


def test_two_processes_train_what_one_does_and_stop_together(jobs):
    """The fast part of all that follows: a signal to one that follows, and going on with another number."""
    one = train(jobs, 0, "one")
    assert one[0].code == 0, one[0].err
    stopped = train(jobs, 2, "two", meets=(1, "launcher", signal.SIGTERM, 9))
    assert [ended.code for ended in stopped] == [ended_by(signal.SIGTERM)] * 2, stopped
    at = CheckpointStore(jobs.folder / "two" / "checkpoints").latest()
    assert 9 < at < 20
    assert f"at step {at}; saved. Continue with: python train.py --run two --resume auto" in stopped[0].err
    assert f"at step {at}; saved by process 0 of the job" in stopped[1].err
    check_quiet(stopped[1])
    again = train(jobs, 0, "two", "--resume", "auto")
    assert again[0].code == 0, again[0].err
    assert "The run was on 2 processes" in again[0].out
    check_same(jobs.folder / "one", jobs.folder / "two")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["itself", "launcher"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_and_the_job_goes_on_when_started_again(jobs, lost, who):
    killed = train(jobs, 2, "run", meets=(lost, who, signal.SIGKILL, 11))
    codes = [ended.code for ended in killed]
    assert codes[lost] == (-signal.SIGKILL if who == "launcher" else ended_by(signal.SIGKILL))
    if who == "itself":
        assert "ended by SIGKILL. Start all processes again" in killed[lost].err
    other = killed[1 - lost]
    assert other.code == LOST, other
    assert "Another process of the job was lost" in other.err
    assert CheckpointStore(jobs.folder / "run" / "checkpoints").latest() == 8
    again = train(jobs, 2, "run", "--resume", "auto")
    assert [ended.code for ended in again] == [0, 0], again
    whole = train(jobs, 2, "whole")
    assert [ended.code for ended in whole] == [0, 0], whole
    stores = [CheckpointStore(jobs.folder / run / "checkpoints") for run in ("run", "whole")]
    assert stores[0].digest() == stores[1].digest(), "as if nothing had happened: bit for bit"
    assert (jobs.folder / "run" / "samples.txt").read_bytes() == (jobs.folder / "whole" / "samples.txt").read_bytes()
    check_same(jobs.folder / "run", jobs.folder / "whole", 0.0)
