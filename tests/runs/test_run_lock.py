"""One process trains a run: a second is refused, and the lock of a dead process is ignored."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.runs import lock as locking
from jaxgen.runs.lock import LOCK, RunLock

HOLDER = """
import sys
from jaxgen.runs.lock import RunLock
RunLock.take(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


FORKING = """
import os, sys, time
from jaxgen.runs.lock import RunLock
RunLock.take(sys.argv[1])
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path`` until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def pretend(folder, **changes):
    (folder / LOCK).write_text(json.dumps(locking.Owner.current().model_dump() | changes))


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks: what the file says decides."""
    monkeypatch.setattr(locking, "_system_lock", lambda _: None)


def test_a_second_process_is_refused_by_process_and_host_until_the_first_ends(holder, tmp_path):
    with pytest.raises(UsageError, match=rf"process {holder.pid} .*--run"):
        RunLock.take(tmp_path)
    holder.communicate("")
    assert os.listdir(tmp_path) == [], "a process that ends leaves nothing"
    RunLock.take(tmp_path)


def test_what_a_killed_process_left_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(tmp_path) == [LOCK]
    RunLock.take(tmp_path).release()
    assert os.listdir(tmp_path) == []


def test_without_locks_of_the_system_a_running_process_is_known_by_number_and_start(holder, tmp_path, no_locks):
    with pytest.raises(UsageError, match=f"process {holder.pid}"):
        RunLock.take(tmp_path)
    pretend(tmp_path, pid=holder.pid, started=locking.start_time(holder.pid) + 1)
    RunLock.take(tmp_path)  # the number was used again


def test_without_locks_of_the_system_a_dead_process_is_no_obstacle(tmp_path, no_locks):
    pretend(tmp_path, pid=2**22 + 1, started=5)
    RunLock.take(tmp_path)


def test_a_process_of_before_this_machine_started_is_no_obstacle(tmp_path, monkeypatch):
    pretend(tmp_path, boot="an earlier one")
    monkeypatch.setattr(locking, "_uptime", lambda: 30.0)
    now = os.stat(tmp_path / LOCK).st_mtime
    os.utime(tmp_path / LOCK, (now, now - 60))
    RunLock.take(tmp_path)


@pytest.mark.parametrize("changes", [{"boot": "theirs"}, {"boot": "theirs", "pid": 1}])
def test_a_process_on_another_machine_of_the_same_name_is_not_mistaken_for_one_of_this(tmp_path, changes):
    pretend(tmp_path, **changes)
    with pytest.raises(UsageError, match=f"delete .*{LOCK}"):
        RunLock.take(tmp_path)


def test_a_process_in_another_container_of_this_machine_is_seen_by_its_lock_or_by_its_signs(tmp_path, monkeypatch):
    pretend(tmp_path, pids="pid:[7]", pid=2**22 + 1)
    RunLock.take(tmp_path).release()  # the kernel is the same and shows no lock
    monkeypatch.setattr(locking, "_system_lock", lambda _: None)
    pretend(tmp_path, pids="pid:[7]", pid=2**22 + 1)
    with pytest.raises(UsageError, match="heartbeat"):
        RunLock.take(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"pid": "1"}', "x" * 5000, "{}"])
def test_a_file_of_that_name_that_is_no_lock_is_left_alone(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(CheckpointError, match=LOCK):
        RunLock.take(tmp_path)
    assert (tmp_path / LOCK).read_text() == content


def test_an_empty_file_is_what_a_process_left_that_was_killed_at_once(tmp_path):
    (tmp_path / LOCK).touch()
    RunLock.take(tmp_path)


def test_a_file_with_several_names_is_left_alone(tmp_path):
    pretend(tmp_path)
    os.link(tmp_path / LOCK, tmp_path / "theirs")
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(CheckpointError, match="hard links"):
        RunLock.take(tmp_path)
    assert (tmp_path / LOCK).read_bytes() == (tmp_path / "theirs").read_bytes() == before


def test_a_fork_does_not_keep_the_lock_of_a_holder_that_was_killed(tmp_path):
    """In processes of their own: the holder forks, is killed, and its child lives on."""
    holder = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    child = int(holder.stdout.readline())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    try:
        RunLock.take(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_a_process_on_another_host_is_told_with_what_to_do_if_it_is_gone(tmp_path):
    pretend(tmp_path, host="node-7", boot="theirs", pid=12)
    with pytest.raises(UsageError, match=rf"process 12 .*node-7.*delete .*{LOCK}"):
        RunLock.take(tmp_path)


def test_a_process_on_another_host_that_gives_no_sign_any_more_is_no_obstacle(tmp_path):
    pretend(tmp_path, host="node-7", boot="theirs", pid=12)
    now = os.stat(tmp_path / LOCK).st_mtime
    os.utime(tmp_path / LOCK, (now, now - locking.LEASE_SECONDS + 60))
    with pytest.raises(UsageError, match=f"{locking.LEASE_SECONDS} seconds"):
        RunLock.take(tmp_path)
    os.utime(tmp_path / LOCK, (now, now - locking.LEASE_SECONDS - 1))
    RunLock.take(tmp_path)
    assert os.listdir(tmp_path) == [LOCK]


def test_who_holds_the_lock_gives_signs_of_life_until_it_lets_go(tmp_path, monkeypatch):
    signs, given = [], threading.Event()
    monkeypatch.setattr(locking, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(locking.os, "utime", lambda path: (signs.append(path), given.set()))
    lock = RunLock.take(tmp_path)
    assert given.wait(30)
    assert signs[0] == tmp_path.resolve() / LOCK
    lock.release()
    assert lock._released.is_set()


def test_a_run_that_was_taken_over_is_not_written_any_more(tmp_path, monkeypatch):
    RunLock.check(tmp_path)  # nobody holds it
    lock = RunLock.take(tmp_path)
    RunLock.check(tmp_path)
    pretend(tmp_path, host="node-7", boot="theirs", pid=12)
    with pytest.raises(CheckpointError, match=r"rocess 12 .*node-7"):
        RunLock.check(tmp_path)
    monkeypatch.setattr(locking, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(locking.os, "utime", None)
    lock._heartbeat()  # ends, and gives no signs of life for the other
    lock.release()
    assert os.listdir(tmp_path) == [LOCK], "what the other holds stays"


def lose(run):
    shutil.rmtree(run)


def move(run):
    run.rename(run.with_name("away"))


def make_anew(run):
    move(run)
    run.mkdir()


def delete_the_lock(run):
    (run / LOCK).unlink()


def replace_the_lock(run):
    (run / LOCK).rename(run / "former")
    (run / LOCK).write_text((run / "former").read_text())


@pytest.mark.parametrize("strike", [lose, move, make_anew, delete_the_lock, replace_the_lock])
def test_a_run_whose_lock_is_gone_or_another_is_not_written_any_more(strike, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    RunLock.take(run)
    RunLock.check(run)
    strike(run)
    left = sorted(tmp_path.rglob("*"))
    gone = strike in (lose, move)
    with pytest.raises(CheckpointError, match="the folder was removed or moved" if gone else f"{LOCK} was removed"):
        RunLock.check(run)
    assert sorted(tmp_path.rglob("*")) == left


def test_a_link_in_its_place_is_refused_and_not_written_through(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="link"):
        RunLock.take(tmp_path / "run")
    assert not (tmp_path / "theirs").exists()


def test_one_process_may_make_two_trainers_but_train_one_at_a_time(tmp_path):
    assert RunLock.take(tmp_path) is RunLock.take(tmp_path)
    pid = f"{os.getpid()}"
    with pytest.raises(UsageError, match=pid), RunLock.training(tmp_path), RunLock.training(tmp_path):
        pytest.fail("two trainings at a time")
    with RunLock.training(tmp_path):
        assert os.listdir(tmp_path) == [LOCK]
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_deleted_is_taken_anew(tmp_path):
    first = RunLock.take(tmp_path)
    os.remove(tmp_path / LOCK)
    second = RunLock.take(tmp_path)
    first.release()
    assert second is not first
    assert os.listdir(tmp_path) == [LOCK], "the former holder must not remove what is not its own"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_lock_is_kept_unless_an_error_comes(tmp_path, error):
    def fail():
        with RunLock.kept(tmp_path):
            assert os.listdir(tmp_path) == [LOCK]
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []
    with RunLock.kept(tmp_path):
        pass
    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == [LOCK], "it was held before"
