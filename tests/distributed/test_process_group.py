"""What processes agree on, tested in one process; test_several_processes.py uses real ones."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from jaxgen.distributed import processes
from jaxgen.distributed.processes import JaxProcessGroup, LostError, PeerError, process_group
from jaxgen.errors import DataError, UsageError
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.trainer.signals import StopSignals
from jaxgen.training.step import TrainState


def exchange(monkeypatch: pytest.MonkeyPatch, others: list) -> JaxProcessGroup:
    """The first of several processes, of which the others always report the same."""
    group = JaxProcessGroup(0, len(others) + 1)
    monkeypatch.setattr(group, "all_gather", lambda mine: [mine, *others])
    return group


def report(code=0, message="", **facts):
    return {"code": code, "message": message, "facts": facts}


def test_without_a_job_the_group_is_always_the_same_single_process():
    group = process_group()
    assert (group.is_single, group.is_main, group.count) == (True, True, 1)
    assert group is process_group()


def test_a_single_process_exchanges_nothing():
    group, state = ProcessGroup(), TrainState(np.zeros(()), {}, {}, np.ones((2, 3)))
    assert group.all_gather({"a": 1}) == [{"a": 1}]
    assert group.broadcast_json("x") == "x"
    assert group.broadcast_tree(state) is state
    assert group.gather_state(state, 1) is state
    signals = StopSignals()
    stop = group.stop_flag(signals, 2)
    assert stop.inputs() == ()
    assert stop.read("log") == "log"
    assert (stop.is_set, stop.agree()) == (False, None)
    signals.received = 15
    assert (stop.is_set, stop.agree()) == (True, 15)
    with pytest.raises(DataError), group.all_or_none():
        raise DataError("no data")


def test_a_stop_flag_is_set_when_the_steps_bring_it_and_all_agree_on_it(monkeypatch):
    group = JaxProcessGroup(0, 2)
    stop = group.stop_flag(StopSignals(), 2)
    stop.signals.received = 2
    assert not stop.is_set, "the other process does not know of it yet"
    assert stop.read(("metrics", np.int32(15))) == "metrics"
    assert stop.is_set
    monkeypatch.setattr(group, "all_gather", lambda mine: [mine, 0])
    assert (stop.agree(), group.ends_together) == (15, True)


def test_what_one_raises_all_raise_with_its_exit_code(monkeypatch):
    group = exchange(monkeypatch, [report(), report(3, "There is no file 'x'.")])
    with pytest.raises(PeerError, match=r"[Pp]rocess 2 .*'x'") as caught, group.all_or_none():
        pass
    assert caught.value.exit_code == 3
    assert group.ends_together


def test_the_process_that_failed_raises_its_own_error(monkeypatch):
    group = exchange(monkeypatch, [report(3, "There is no file 'x'.")])
    with pytest.raises(UsageError, match="mine"), group.all_or_none():
        raise UsageError("mine")
    assert group.ends_together


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [("settings", UsageError, "settings"), ("versions", UsageError, "versions"), ("data", DataError, "data")],
)
def test_what_must_be_the_same_is_compared(monkeypatch, name, kind, word):
    digest = hashlib.sha256(b"mine").hexdigest()
    group = exchange(monkeypatch, [report(**{name: digest}), report(**{name: "another"})])
    with pytest.raises(kind, match=f"process 2 .*{word}"), group.all_or_none() as facts:
        facts[name] = "mine"
    same = exchange(monkeypatch, [report(**{name: digest})])
    with same.all_or_none() as facts:
        facts[name] = "mine"
    assert not same.ends_together


def test_a_bug_is_reported_to_nobody_and_keeps_its_traceback(monkeypatch):
    group = JaxProcessGroup(0, 2)
    monkeypatch.setattr(group, "all_gather", None)
    with pytest.raises(ZeroDivisionError), group.all_or_none():
        _ = 1 / 0
    assert not group.ends_together


def test_a_failed_exchange_is_explained_where_there_are_several_processes():
    def fail(group):
        with group.translate_errors():
            raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed\nand more")

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail(ProcessGroup())
    with pytest.raises(LostError, match=r"Connection closed\).*--resume auto") as caught:
        fail(JaxProcessGroup(1, 2))
    assert caught.value.exit_code == 6


def test_too_little_memory_is_no_lost_process():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"),
        JaxProcessGroup(1, 2).translate_errors(),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


@pytest.mark.parametrize(
    ("name", "met_at", "kind"),
    [
        ("127.0.1.1", "10.0.0.1:1234", UsageError),
        ("127.0.1.1", None, UsageError),
        ("127.0.1.1", "127.0.0.1:1234", LostError),
        ("127.0.1.1", "[::1]:1234", LostError),
        ("10.0.0.2", "10.0.0.1:1234", LostError),
    ],
)
def test_hosts_that_cannot_reach_each_other_by_name_are_told_why(monkeypatch, name, met_at, kind):
    monkeypatch.setattr(processes, "_met_at", [met_at])
    monkeypatch.setattr("socket.gethostname", lambda: name)
    with (
        pytest.raises(kind, match="127.0.1.1" if kind is UsageError else "lost"),
        JaxProcessGroup(1, 2).translate_errors(),
    ):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo context initialization failed: Connection refused")
