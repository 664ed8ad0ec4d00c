"""What several processes agree on, as one alone does it; the rest needs real ones (test_several_processes)."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from jaxgen.distributed import processes as joining
from jaxgen.distributed import processes as module
from jaxgen.distributed.processes import LostError, PeerError, ProcessGroup, exchanging, process_group
from jaxgen.errors import DataError, UsageError
from jaxgen.training import TrainState


def exchange(monkeypatch: pytest.MonkeyPatch, others: list) -> ProcessGroup:
    """The first of several processes, of which the others always say the same."""
    team = ProcessGroup(0, len(others) + 1)
    monkeypatch.setattr(team, "gathered", lambda mine: [mine, *others])
    return team


def said(code=0, sentence="", **facts):
    return {"code": code, "said": sentence, "facts": facts}


def test_a_process_that_was_joined_to_none_is_alone_and_leads():
    team = process_group()
    assert (team.alone, team.leads, team.count) == (True, True, 1)
    assert team is process_group()


def test_one_alone_agrees_with_itself_at_no_cost():
    team, state = ProcessGroup(), TrainState(np.zeros(()), {}, {}, np.ones((2, 3)))
    assert team.gathered({"a": 1}) == [{"a": 1}]
    assert team.told("x") == "x"
    assert team.shared(state) is state
    assert team.whole(state, 1) is state
    assert team.asking(15, 2) == ()
    assert team.heard("log") == "log"
    assert (team.stops(None), team.stops(15)) == (False, True)
    assert (team.signal(None), team.signal(15)) == (None, 15)
    with pytest.raises(DataError), team.together():
        raise DataError("no data")


def test_what_one_raises_all_raise_with_its_exit_code(monkeypatch):
    team = exchange(monkeypatch, [said(), said(3, "There is no file 'x'.")])
    sentence = r"Process 2 of the job cannot go on. There is no file 'x'."
    with pytest.raises(PeerError, match=sentence) as caught, team.together():
        pass
    assert caught.value.exit_code == 3
    assert team.ends_together


def test_whoever_failed_raises_its_own(monkeypatch):
    team = exchange(monkeypatch, [said(3, "There is no file 'x'.")])
    with pytest.raises(UsageError, match="mine"), team.together():
        raise UsageError("mine")
    assert team.ends_together


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("settings", UsageError, "Process 0 and process 2 of the job were started with other settings"),
        ("versions", UsageError, "have other versions"),
        ("data", DataError, "read other data"),
    ],
)
def test_what_must_be_the_same_is_compared(monkeypatch, name, kind, sentence):
    digest = hashlib.sha256(b"mine").hexdigest()
    team = exchange(monkeypatch, [said(**{name: digest}), said(**{name: "another"})])
    with pytest.raises(kind, match=sentence), team.together() as facts:
        facts[name] = "mine"
    same = exchange(monkeypatch, [said(**{name: digest})])
    with same.together() as facts:
        facts[name] = "mine"
    assert not same.ends_together


def test_a_bug_is_told_to_nobody_and_keeps_its_traceback(monkeypatch):
    team = ProcessGroup(0, 2)
    monkeypatch.setattr(team, "gathered", None)
    with pytest.raises(ZeroDivisionError), team.together():
        _ = 1 / 0
    assert not team.ends_together


def test_a_failing_exchange_is_a_sentence_where_there_are_several(monkeypatch):
    def fail():
        with exchanging():
            raise jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed\nand more")

    with pytest.raises(jax.errors.JaxRuntimeError):
        fail()
    monkeypatch.setattr(module, "process_group", lambda: ProcessGroup(1, 2))
    with pytest.raises(LostError, match=r"lost \(Gloo all-reduce failed: Connection closed\).*--resume auto") as caught:
        fail()
    assert caught.value.exit_code == 6


def test_too_little_memory_is_no_lost_process(monkeypatch):
    monkeypatch.setattr(module, "process_group", lambda: ProcessGroup(1, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"), exchanging():
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
    monkeypatch.setattr(module, "process_group", lambda: ProcessGroup(1, 2))
    monkeypatch.setattr(joining, "_met_at", [met_at])
    monkeypatch.setattr("socket.gethostname", lambda: name)
    with pytest.raises(kind, match="stands for 127.0.1.1" if kind is UsageError else "was lost"), exchanging():
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo context initialization failed: Connection refused")


def test_flags_that_cannot_be_read_are_told_to_the_others(monkeypatch):
    team, told = ProcessGroup(0, 2), []
    monkeypatch.setattr(team, "gathered", lambda mine: told.append(mine) or [mine, said()])
    with pytest.raises(SystemExit), team.together():
        raise SystemExit(2)
    assert (told[0]["code"], team.ends_together) == (2, True)
