"""Launches a training command as one process of a job of several, and reports how it ended.

When another process of the job is lost, JAX's runtime ends this one at once, in C++, before it can report the error.
So the command starts itself again as a child process, and the parent waits and reports the reason.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from jaxgen.errors import UsageError, check_int
from jaxgen.trainer.signals import StopSignals, stop_signals

if TYPE_CHECKING:  # the parent process waits without loading JAX
    from jaxgen.trainer.process_group import ProcessGroup

#: Environment variable of the child: the process id of its parent, and the descriptor of the pipe to which the child
#: writes once it has joined the other processes.
LAUNCHED = "JAXGEN_LAUNCHED_BY"
#: Exit code of a command that lost another process of its job.
LOST = 6
#: Linux's prctl option for the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
#: Seconds without the other processes after which a message says so.
MEETING_NOTICE = 10.0
#: Seconds within which two signals count as one: a signal to a whole process group reaches a process twice.
SAME_SIGNAL = 2.0
#: The largest number of processes in a job; more are a typing error.
MAX_PROCESSES = 100_000


@dataclass(frozen=True)
class Job:
    """Processes that meet at ``coordinator`` (HOST:PORT, served by process 0), or as the cluster says if it is None.

    ``heartbeat`` is the number of seconds without a heartbeat after which a process counts as lost. Raises
    ``UsageError`` for values that no job can have.
    """

    coordinator: str | None
    processes: int | None
    index: int | None
    heartbeat: int

    def __post_init__(self) -> None:
        check_int("--heartbeat", self.heartbeat, 1, 86_400)
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
            raise UsageError(
                f"--coordinator {self.coordinator} is no address: give the host of process 0 and a free port there, as "
                "in --coordinator 10.0.0.1:1234."
            )
        check_int("--process-id", self.index, 0, check_int("--num-processes", self.processes, 1, MAX_PROCESSES) - 1)

    def __str__(self) -> str:
        number = "" if self.processes is None else f"{self.processes} "
        return f"the {number}processes of the job" + ("" if self.coordinator is None else f" at {self.coordinator}")


def launch(job: Job, work: Callable[[], int], log: Callable[[str], None]) -> int:
    """Run the command ``work`` as a process of ``job``; returns its exit code.

    In the process that the user started, this starts the same command as a child and waits for it. In the child, it
    calls ``work``, which must call ``meet``. ``log`` prints a line on standard error.
    """
    if os.environ.get(LAUNCHED) is None:
        return _watch_child(job, log)
    _end_with_parent(int(os.environ[LAUNCHED].split()[0]))
    try:
        code = work()
    except BaseException:  # a bug: an ordinary exit would wait for the other processes
        traceback.print_exc()
        code = 1
    return _leave_job(code)


def meet(job: Job) -> ProcessGroup:
    """Wait for the other processes of ``job``; returns the group of all of them. Raises ``UsageError``."""
    from jaxgen.distributed.processes import join, process_group

    if job.index == 0 and job.coordinator is not None:
        _check_port(job)
    try:
        join(job.coordinator, job.processes, job.index, job.heartbeat)
    except (RuntimeError, ValueError, OSError, LookupError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if job.coordinator is not None:
            raise _did_not_meet(job, why) from None
        raise UsageError(
            f"--distributed auto finds no job here ({why}): start it through SLURM, Open MPI, Kubernetes or on a TPU "
            "pod, or name all with --coordinator HOST:PORT --num-processes N --process-id I."
        ) from None
    if launched := os.environ.pop(LAUNCHED, ""):
        StopSignals.watch()
        os.write(int(launched.split()[1]), b"met")
    return process_group()


def _check_port(job: Job) -> None:
    """Raise ``UsageError`` if process 0 cannot listen where the others look for it: the runtime would crash."""
    port = int(str(job.coordinator).rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise UsageError(
            f"Process 0 cannot listen on port {port} ({error.strerror}): give another in --coordinator, the same on "
            "all processes."
        ) from None


def _did_not_meet(job: Job, why: str) -> UsageError:
    return UsageError(
        f"Not all of {job} joined ({why}). Start all of them at about the same time, each with its own --process-id; "
        "process 0 runs on that host, and the port is free there and open to the others."
    )


def _leave_job(code: int) -> int:
    """End this process with an exit code; waits for the others only if they are known to end too."""
    from jaxgen.distributed.processes import leave, process_group
    from jaxgen.runs.lock import RunLock

    if code == 0 or process_group().ends_together:
        with suppress(RuntimeError):  # another process may be lost by now; this one ends anyway
            leave()
        return code
    RunLock.release_all()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # a closed stream
            stream.flush()
    os._exit(code)


class _Child:
    """This command as a child process. Signals to this process are passed on to it."""

    def __init__(self) -> None:
        self.stopped_by, self.met = 0, False
        self._stopped_at = 0.0
        self._meeting, writer = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        for number in stop_signals():
            signal.signal(number, self._forward)
        # In a process group of its own: Ctrl-C at a terminal reaches the parent alone, which forwards it once.
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, LAUNCHED: f"{os.getpid()} {writer}"},
            pass_fds=[writer],
            process_group=0,
        )
        os.close(writer)
        if self.stopped_by:  # a signal came before the child existed
            self._process.kill()

    def wait_to_meet(self, seconds: float) -> bool:
        """Whether the child met the others, or ended, within ``seconds``."""
        if not select.select([self._meeting], [], [], seconds)[0]:
            return False
        self.met |= bool(os.read(self._meeting, 1))  # nothing to read: the pipe was closed
        return True

    def wait(self) -> int:
        """The exit code of the child; negative for the signal that ended it."""
        assert self._process is not None
        return self._process.wait()

    def _forward(self, number: int, _: FrameType | None) -> None:
        """The first signal asks the child to stop; a later one, or one before it has joined the others, kills it."""
        first = not self.stopped_by
        if first:
            self.stopped_by, self._stopped_at = number, time.monotonic()
        if self._process is None:
            return
        if first and (self.met or self.wait_to_meet(0)):
            self._process.send_signal(number)
        elif first or time.monotonic() - self._stopped_at > SAME_SIGNAL:
            self._process.kill()


def _watch_child(job: Job, log: Callable[[str], None]) -> int:
    """Run this command as a child; returns its exit code, or the one for the way in which it ended."""
    child = _Child()
    if not child.wait_to_meet(MEETING_NOTICE) and not child.met:
        log(f"Waiting for {job} …")
    code = child.wait()
    child.wait_to_meet(0)
    if code >= 0:
        return code
    if child.stopped_by:
        log("Stopped." if child.met else "Stopped while waiting for the other processes of the job.")
        return 128 + child.stopped_by
    name = signal.Signals(-code).name
    if not child.met:
        log(f"error: {_did_not_meet(job, f'the runtime ended with {name}')}")
        return LOST
    if -code == signal.SIGABRT:
        log("error: Another process of the job was lost. Start all processes again, with --resume auto.")
        return LOST
    log(f"error: This process of the job was ended by {name}. Start all processes again, with --resume auto.")
    return 128 - code


def _end_with_parent(parent: int) -> None:
    """Let the system kill this process when the process ``parent``, which launched it, ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it has ended already
        os._exit(128 + signal.SIGKILL)
