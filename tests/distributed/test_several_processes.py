"""One run trained by several real processes: the same result, one run folder, and a common end."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import overridden, write
from PIL import Image

from jaxgen.cli.train import main
from jaxgen.distributed.launcher import LOST
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.checkpoints import CheckpointStore
from tests.distributed.jobs import Jobs, ended_by

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
    weights = [LoadedRun.open(run).params()[1] for run in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, weights)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def check_quiet(ended) -> None:
    """A process that follows says nothing but what the runtime prints."""
    assert "Traceback" not in ended.err
    assert "step" not in ended.out


@pytest.fixture
def alone(jobs, monkeypatch, capsys):
    """Train in this process; returns what was printed."""
    monkeypatch.chdir(jobs.folder)

    def train(run: str, *flags: str) -> str:
        assert main(overridden(["--data", "book.txt", "--run", run, *FLAGS.split(), *flags])) == 0
        return capsys.readouterr().out

    return train


def test_two_processes_train_what_one_does_and_stop_together(jobs, alone):
    """The fast part of all that follows: a signal to one that follows, and going on with another number."""
    stopped = train(jobs, 2, "two", meets=(1, "launcher", signal.SIGTERM, 9))
    assert [ended.code for ended in stopped] == [ended_by(signal.SIGTERM)] * 2, stopped
    at = CheckpointStore(jobs.folder / "two" / "checkpoints").latest()
    assert 9 < at < 20
    assert f"step {at}" in stopped[0].err
    assert f"step {at}" in stopped[1].err
    check_quiet(stopped[1])
    assert "2 and 2 then" in alone("two", "--resume", "auto")
    alone("one")
    check_same(jobs.folder / "one", jobs.folder / "two")


@pytest.mark.slow
def test_two_processes_with_a_cell_of_ones_own_need_the_same_file(jobs):
    cell = (
        "import jax.numpy as jnp\nfrom jaxgen.cells.elman import Elman\n\nclass Mine(Elman):\n    one = jnp.ones(1)\n"
    )
    for folder, more in (("a", ""), ("b", "# another version\n")):
        write(jobs.folder / folder / "mine.py", cell + more)
    flags = ("--cell", "mine:Mine", "--steps", "2")
    differ = train(jobs, 2, "bad", *flags, others={0: ["--plugin", "a/mine.py"], 1: ["--plugin", "b/mine.py"]})
    assert [ended.code for ended in differ] == [2, 2], differ
    assert "other plugins" in differ[0].err
    lacks = train(jobs, 2, "bad", *flags, others={0: ["--plugin", "a/mine.py"], 1: ["--plugin", "missing.py"]})
    assert [ended.code for ended in lacks] == [2, 2], lacks
    assert "missing.py" in lacks[0].err
    assert not (jobs.folder / "bad").exists()
    same = train(jobs, 2, "run", *flags, "--plugin", "a/mine.py")
    assert [ended.code for ended in same] == [0, 0], same
    check_quiet(same[1])


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "who"), [(0, "launcher"), (1, "itself")])
def test_a_killed_process_ends_the_others_and_the_job_goes_on_when_started_again(jobs, lost, who):
    killed = train(jobs, 2, "run", meets=(lost, who, signal.SIGKILL, 11))
    codes = [ended.code for ended in killed]
    assert codes[lost] == (-signal.SIGKILL if who == "launcher" else ended_by(signal.SIGKILL))
    if who == "itself":
        assert "SIGKILL" in killed[lost].err
    other = killed[1 - lost]
    assert other.code == LOST, other
    assert "lost" in other.err
    assert CheckpointStore(jobs.folder / "run" / "checkpoints").latest() == 8
    again = train(jobs, 2, "run", "--resume", "auto")
    assert [ended.code for ended in again] == [0, 0], again
    whole = train(jobs, 2, "whole")
    assert [ended.code for ended in whole] == [0, 0], whole
    stores = [CheckpointStore(jobs.folder / run / "checkpoints") for run in ("run", "whole")]
    assert stores[0].digest() == stores[1].digest(), "as if nothing had happened: bit for bit"
    assert (jobs.folder / "run" / "samples.txt").read_bytes() == (jobs.folder / "whole" / "samples.txt").read_bytes()
    check_same(jobs.folder / "run", jobs.folder / "whole", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (2, "--layout windows"),
        (4, "--layout documents"),
        (4, "--layout stream"),
        (2, "--average two-tailed --seq-len-spread 2 --seq-len-warmup 6"),
    ],
)
def test_two_and_four_processes_compute_what_one_does(jobs, alone, number, flags):
    alone("one", *flags.split())
    ended = train(jobs, number, "several", *flags.split())
    assert [each.code for each in ended] == [0] * number, ended
    check_same(jobs.folder / "one", jobs.folder / "several")
    for each in ended[1:]:
        check_quiet(each)
    assert f"{number} devices" in ended[0].out


@pytest.mark.slow
def test_all_processes_stop_early_together(jobs, alone):
    """A learning rate too small for float32 leaves the weights alone: no evaluation is better than the first."""
    still = ("--lr", "1e-30", "--eval-every", "4", "--sample-every", "2", "--patience", "2", "--log", "csv")
    ended = train(jobs, 2, "two", *still)
    assert [each.code for each in ended] == [0, 0], ended
    assert [row["step"] for row in rows(jobs.folder / "two")] == [4, 8, 12]
    assert "patience" in ended[0].out
    check_quiet(ended[1])
    assert (jobs.folder / "two" / "metrics.csv").exists()
    alone("one", *still)
    check_same(jobs.folder / "one", jobs.folder / "two")


@pytest.mark.slow
def test_going_on_with_more_processes(jobs, alone):
    stopped = train(jobs, 0, "run", meets=(0, "itself", signal.SIGTERM, 9))
    assert stopped[0].code == ended_by(signal.SIGTERM), stopped
    ended = train(jobs, 4, "run", "--resume", "auto")
    assert [each.code for each in ended] == [0] * 4, ended
    assert "4 and 4" in ended[0].out
    alone("one")
    check_same(jobs.folder / "one", jobs.folder / "run")


def rows_of_a_table(folder: Path) -> None:
    lines = [f"{word} {n},{('odd', 'even')[n % 2 == 0]} {word}" for n in range(40) for word in ("cat", "dog", "a bird")]
    (folder / "rows.csv").write_text("a,b\n" + "\n".join(lines) + "\n")


def images_with_captions(folder: Path) -> None:
    draw, lines = np.random.default_rng(0), ["image,caption"]
    (folder / "photos").mkdir()
    for n in range(40):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "photos" / f"{n}.png")
        lines += [f"{n}.png,a {('small', 'very large')[n % 2]} {word}" for word in ("cat", "dog")]
    (folder / "photos" / "captions.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "flags"),
    [
        (rows_of_a_table, "classify --data rows.csv --text-column a --label-column b"),
        (rows_of_a_table, "translate --data rows.csv --source-column a --target-column b --preset tiny"),
        (images_with_captions, "caption --data photos --image-size 8 --patch 2 --widths 16 --blocks 0 --min-count 1"),
    ],
    ids=["classify", "translate", "caption"],
)
def test_examples_are_shared_too(jobs, monkeypatch, capsys, make, flags):
    make(jobs.folder)
    flags = f"{flags} --hidden 8 --batch-size 8 --steps 12 --eval-every 6 --dropout 0.1".split()
    monkeypatch.chdir(jobs.folder)
    assert main([*flags, "--run", "one"]) == 0
    ended = jobs.run(2, *flags, "--run", "two")
    assert [each.code for each in ended] == [0, 0], ended
    check_same(jobs.folder / "one", jobs.folder / "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("who", ["launcher", "both"])
def test_a_signal_to_all_processes_of_a_job_stops_them_once(jobs, number, who):
    """As a terminal and SLURM send it, the latter to launchers and children."""
    ended = train(jobs, 2, "run", meets=(None, who, number, 9))
    assert [each.code for each in ended] == [ended_by(number)] * 2, ended
    assert CheckpointStore(jobs.folder / "run" / "checkpoints").latest() > 8


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_before_the_first_step_stops_all_behind_it(jobs, asked):
    ended = train(jobs, 2, "run", meets=(asked, "launcher", signal.SIGTERM, "RunTrainer.init_state"))
    assert [each.code for each in ended] == [ended_by(signal.SIGTERM)] * 2, ended
    assert 0 < CheckpointStore(jobs.folder / "run" / "checkpoints").latest() < 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "where"),
    [
        (0, "LogWriter.on_evaluation"),
        (0, "LogWriter.on_sample"),
        (0, "Recorder.save"),
        (0, "RunTrainer._conclude"),
        (1, "RunTrainer._evaluate"),
        (1, "RunTrainer.finish"),
    ],
)
def test_a_process_that_is_killed_between_calls_ends_the_others_with_a_sentence(jobs, lost, where):
    ended = train(jobs, 2, "run", meets=(lost, "itself", signal.SIGKILL, where))
    assert ended[lost].code == ended_by(signal.SIGKILL), ended
    assert ended[1 - lost].code == LOST, ended
    assert "lost" in ended[1 - lost].err
    assert "Traceback" not in ended[1 - lost].err


@pytest.mark.slow
def test_a_leader_that_cannot_write_tells_the_others(jobs):
    (jobs.folder / "run").mkdir()
    ended = train(
        jobs, 2, "run", script="recorder.RunLock.check = lambda _: (_ for _ in ()).throw(CheckpointError('No.'))"
    )
    assert [each.code for each in ended] == [4, 4], ended
    assert "Process 0 of the job cannot continue. No." in ended[1].err


@pytest.mark.slow
def test_hosts_with_other_numbers_of_devices_are_told(jobs):
    ended = train(jobs, 2, "run", "--batch-size", "32", devices=(2, 1))
    assert [each.code for each in ended] == [2, 2], ended
    assert "devices" in ended[0].err
    same = train(jobs, 2, "run", "--batch-size", "32", "--devices", "2", devices=(2, 1))
    assert [each.code for each in same] == [0, 0], same


@pytest.mark.slow
def test_a_run_whose_devices_were_named_goes_on_with_another_number_of_processes(jobs):
    begun = train(jobs, 2, "run", "--devices", "2", "--steps", "8")
    assert [ended.code for ended in begun] == [0, 0], begun
    alone = train(jobs, 0, "run", "--resume", "auto", "--steps", "12")
    assert alone[0].code == 0, alone
    named = train(jobs, 4, "run", "--resume", "auto", "--steps", "16", "--devices", "4")
    assert [ended.code for ended in named] == [0] * 4, named
    assert "4 and 4" in named[0].out


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(jobs):
    with socket.create_server(("", 0)) as server:
        ended = jobs.run(1, *FLAGS.split(), number=2, port=server.getsockname()[1])
    assert ended[0].code == 2, ended
    assert "port" in ended[0].err


@pytest.mark.slow
def test_a_process_that_waits_for_another_can_be_stopped(jobs):
    ended = jobs.run(1, *FLAGS.split(), number=2, interrupted=True)
    assert ended[0].code == ended_by(signal.SIGINT), ended
    assert "Stopped" in ended[0].err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "others", "code", "sentences"),
    [
        ([], {1: ["--lr", "0.5"]}, 2, ["settings"] * 2),
        ([], {1: ["--data", "other.txt"]}, 3, ["data"] * 2),
        (
            [],
            {1: ["--data", "nowhere.txt"]},
            3,
            ["Process 1 of the job", "There is no file"],
        ),
        (["--run", "full"], {}, 2, ["is not empty", "Process 0 of the job"]),
        (["--batch-size", "7"], {}, 2, ["7 rows"] * 2),
        (["--devices", "3", "--batch-size", "9"], {}, 2, ["cannot be"] * 2),
        (
            [],
            {1: ["--hidden", "abc"]},
            2,
            ["Process 1 of the job", "--hidden"],
        ),
        (["--clip", "0", "--lr", "1e38", "--weight-decay", "0"], {}, 5, ["loss", "process 0"]),
    ],
    ids=["settings", "data", "no data", "folder", "rows", "devices", "flags", "diverged"],
)
def test_what_one_cannot_do_all_say_and_none_waits(jobs, flags, others, code, sentences):
    (jobs.folder / "other.txt").write_text("Another text, which is long enough to be trained on. " * 99)
    (jobs.folder / "full").mkdir()
    (jobs.folder / "full" / "mine").write_text("something")
    ended = train(jobs, 2, "run", *flags, others=others)
    assert [each.code for each in ended] == [code, code], ended
    for each, sentence in zip(ended, sentences):
        assert sentence in each.err
        assert "Traceback" not in each.err
    assert not (jobs.folder / "run" / "config.json").exists() or code == 5


@pytest.mark.slow
def test_processes_that_do_not_meet_say_so(jobs):
    ended = jobs.run(1, *FLAGS.split(), coming=5, number=2)
    assert ended[0].code == LOST
    assert "127.0.0.1:" in ended[0].err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--coordinator here", "--coordinator here"),
        ("--coordinator here:0", "--coordinator here:0"),
        ("--coordinator here:1 --process-id 0", "--num-processes is None"),
        ("--coordinator here:1 --num-processes 2 --process-id 2", "--process-id is 2"),
        ("--coordinator here:1 --num-processes two", "--num-processes is 'two'"),
        ("--coordinator here:1 --num-processes 2 --process-id 0 --heartbeat 0", "--heartbeat is 0"),
        ("--num-processes 2", "--num-processes"),
        ("--distributed yes", "--distributed 'yes'"),
        ("--distributed auto --coordinator here:1", "--distributed"),
    ],
)
def test_flags_that_name_no_job_are_refused_before_anything_starts(flags, sentence, monkeypatch, capsys):
    monkeypatch.setattr("subprocess.Popen", None)
    assert main(flags.split()) == 2
    assert sentence in capsys.readouterr().err
