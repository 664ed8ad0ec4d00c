"""A training command as one process of several: its flags, and the launcher that watches over it.

The runtime ends a process at once, in C++, when another one of the job is lost. So the command starts itself once more
as a child and waits: what ends the child without a word, the parent can say.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from jaxgen.cli.common import flag_value, hold_descriptors, log
from jaxgen.errors import JaxgenError, UsageError, choose

#: Set for the child: the number of the process that launched it, and of the pipe into which it writes once it has
#: met the others.
LAUNCHED = "JAXGEN_LAUNCHED_BY"
#: What a command exits with when another process of its job was lost.
LOST = 6
#: Linux: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
PASSED_ON = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: Seconds after which it is said that the others have not come yet, and seconds between two signals that are one: who
#: signals a whole group reaches a process twice.
PATIENCE, AT_ONCE = 10.0, 2.0
FLAGS = ("--distributed", "--coordinator", "--num-processes", "--process-id", "--heartbeat")


#: Seconds without a sign after which a process counts as lost.
HEARTBEAT = 60
#: Processes of one job at most: more are a typing error.
MOST_PROCESSES = 100_000


@dataclass(frozen=True)
class Job:
    """Processes that find each other at ``coordinator`` (HOST:PORT, served by number 0); None: as the cluster says.

    Raises ``UsageError`` for values that no job has.
    """

    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    heartbeat: int = HEARTBEAT

    def __post_init__(self) -> None:
        if not 1 <= self.heartbeat <= 86_400:
            raise UsageError(f"--heartbeat {self.heartbeat} cannot be used: give seconds from 1 to 86,400.")
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
            raise UsageError(
                f"--coordinator {self.coordinator} is no address: give the host of process 0 and a free port there, as "
                "in --coordinator 10.0.0.1:1234."
            )
        if self.processes is None or not 1 <= self.processes <= MOST_PROCESSES:
            raise UsageError(
                f"--num-processes must be a whole number from 1 to {MOST_PROCESSES:,}, how many processes the job has; "
                f"{'none' if self.processes is None else self.processes} was given."
            )
        if self.index is None or not 0 <= self.index < self.processes:
            raise UsageError(
                f"--process-id must be a whole number from 0 to {self.processes - 1}, another one for each process of "
                f"the job; {'none' if self.index is None else self.index} was given."
            )


def flags() -> dict[str, Any]:
    """The flags as the command explains them."""
    from tyro.conf import arg

    def flag(kind: Any, metavar: str, text: str) -> Any:
        return Annotated[kind, arg(metavar=metavar, help=text)]

    return {
        "distributed": flag(
            str | None,
            "{auto}",
            "Train with other processes that a cluster started with the same command (SLURM, Open MPI, Kubernetes, a "
            "TPU pod): each computes its share of every batch.",
        ),
        "coordinator": flag(
            str | None, "HOST:PORT", "The same without a cluster that tells: where process 0 is to be found."
        ),
        "num_processes": flag(int | None, "N", "With --coordinator: how many processes there are."),
        "process_id": flag(int | None, "I", "With --coordinator: which of them this one is, from 0."),
        "heartbeat": flag(
            int | None,
            "SECONDS",
            f"How long a process may give no sign before it counts as lost. Default: {HEARTBEAT}.",
        ),
    }


def job(args: Sequence[str]) -> Job | None:
    """The job that the flags name, if they name one. Raises ``UsageError`` for flags that do not fit together."""
    auto, coordinator, *numbers = (flag_value(args, flag) for flag in FLAGS)
    if auto is None and coordinator is None:
        for flag, value in zip(FLAGS[2:], numbers):
            if value is not None:
                raise UsageError(f"{flag} {value} belongs to a job of several processes: give --coordinator too.")
        return None
    if auto is not None:
        choose(auto, ("auto",), "value for --distributed")
        named = [flag for flag, value in zip(FLAGS[1:4], (coordinator, *numbers)) if value is not None]
        if named:
            raise UsageError(f"--distributed auto asks the cluster, and {named[0]} was given: leave one of them out.")
    processes, index, heartbeat = (
        None if value is None else _whole(flag, value) for flag, value in zip(FLAGS[2:], numbers)
    )
    return Job(coordinator, processes, index, HEARTBEAT if heartbeat is None else heartbeat)


def _whole(flag: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{flag} is {value!r}: give a whole number.")
    return int(value)


def take_part(args: Sequence[str], work: Callable[[], int]) -> int:
    """Run the command ``work``, as one process of several if ``args`` say so; returns the exit code."""
    if {"-h", "--help"} & set(args):
        return work()
    hold_descriptors()  # else the pipe between the two processes could take the place of standard output
    try:
        named = job(args)
        if named is None:
            return work()
        if os.environ.get(LAUNCHED) is None:
            return _launch(named)
    except JaxgenError as error:
        log(f"error: {error}")
        return error.exit_code
    _end_with_parent(int(os.environ[LAUNCHED].split()[0]))
    try:
        code = work()
    except SystemExit as stop:  # the flag parser's
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # an error of ours: leaving in the usual way would wait for the others
        traceback.print_exc()
        code = 1
    return _left(code)


def joined(args: Sequence[str]) -> None:
    """Meet the other processes, if ``args`` name a job."""
    if (named := job(args)) is not None:
        _join(named)
        if launched := os.environ.pop(LAUNCHED, ""):
            from jaxgen.trainer.signals import StopSignals

            StopSignals.watch()
            os.write(int(launched.split()[1]), b"met")


def _join(named: Job) -> None:
    from jaxgen.distributed.processes import join

    if named.index == 0 and named.coordinator is not None:
        _check_port(named)
    try:
        join(named.coordinator, named.processes, named.index, named.heartbeat)
    except (RuntimeError, ValueError, OSError, LookupError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if named.coordinator is not None:
            raise not_met(named, why) from None
        raise UsageError(
            f"--distributed auto finds no job here ({why}): start it through SLURM, Open MPI, Kubernetes or on a TPU "
            "pod, or name all with --coordinator HOST:PORT --num-processes N --process-id I."
        ) from None


def _check_port(named: Job) -> None:
    """Raise ``UsageError`` if process 0 cannot listen where the others look for it: the runtime would crash."""
    port = int(str(named.coordinator).rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise UsageError(
            f"Process 0 cannot listen on port {port} ({error.strerror}): give another in --coordinator, the same on "
            "all processes."
        ) from None


def not_met(job: Job, why: str) -> UsageError:
    """The error for processes that did not find each other."""
    who = "processes of the job" if job.processes is None else f"{job.processes} processes of the job"
    return UsageError(
        f"The {who} did not meet{_at(job)} ({why}). Start all of them at about the same time, each with its own "
        "--process-id; process 0 runs on that host, and the port is free there and open to the others."
    )


def _at(job: Job) -> str:
    return "" if job.coordinator is None else f" at {job.coordinator}"


def _left(code: int) -> int:
    """Leave the job with an exit code. Who cannot expect the others to end too does not wait for them."""
    from jaxgen.distributed.processes import leave, process_group
    from jaxgen.runs.lock import RunLock

    if code == 0 or process_group().ends_together:
        with suppress(RuntimeError):  # that another is lost by now changes nothing for this one
            leave()
        return code
    RunLock.release_all()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # one that was closed
            stream.flush()
    os._exit(code)


class _Child:
    """This command once more, as a process that this one watches over."""

    def __init__(self) -> None:
        self.stopped_by, self._at, self.met = 0, 0.0, False
        self._told, tells = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        for number in PASSED_ON:
            if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        # In a group of its own: Ctrl-C at a terminal reaches this process alone, which passes it on once.
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, LAUNCHED: f"{os.getpid()} {tells}"},
            pass_fds=[tells],
            process_group=0,
        )
        os.close(tells)
        if self.stopped_by:  # while there was nobody to pass it on to
            self._process.kill()

    def wait_to_meet(self, seconds: float) -> bool:
        """Whether the child met the others, or ended, within some seconds."""
        if not select.select([self._told], [], [], seconds)[0]:
            return False
        self.met |= bool(os.read(self._told, 1))  # else it is the end of the pipe
        return True

    def wait(self) -> int:
        """Its exit code, negative for the signal that ended it."""
        assert self._process is not None
        return self._process.wait()

    def _pass_on(self, number: int, _: Any) -> None:
        """The first signal asks the child to stop. A later one ends it, and so does any before it met the others."""
        first = not self.stopped_by
        if first:
            self.stopped_by, self._at = number, time.monotonic()
        if self._process is None:
            return
        if first and (self.met or self.wait_to_meet(0)):
            self._process.send_signal(number)
        elif first or time.monotonic() - self._at > AT_ONCE:
            self._process.kill()


def _launch(named: Job) -> int:
    """Run this command as a child; returns its exit code, or what the end that it found comes to."""
    child = _Child()
    if not child.wait_to_meet(PATIENCE) and not child.met:
        who = "processes" if named.processes is None else f"{named.processes} processes"
        log(f"Waiting for the {who} of the job{_at(named)} …")
    code = child.wait()
    child.wait_to_meet(0)
    if code >= 0:
        return code
    if child.stopped_by:
        log("Stopped." if child.met else "Stopped while waiting for the other processes of the job.")
        return 128 + child.stopped_by
    name = signal.Signals(-code).name
    if not child.met:
        log(f"error: {not_met(named, f'the runtime ended with {name}')}")
        return LOST
    if -code == signal.SIGABRT:
        log(
            "error: Another process of the job was lost (or the coordinator was), and the others cannot go on without "
            "it. What was saved last is kept: start all processes again, with --resume auto."
        )
        return LOST
    log(f"error: This process of the job was ended by {name}. Start all processes again, with --resume auto.")
    return 128 - code


def _end_with_parent(parent: int) -> None:
    """Let the system end this process when the one that launched it ends (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it ended before
        os._exit(128 + signal.SIGKILL)
