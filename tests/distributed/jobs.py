"""Start jobs of several processes on this machine; one of them can be made to fail at a known step."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.builders import overridden

#: A training command that meets something once it has read the results of a step: a signal to itself, or to the
#: process that launched it.
SCRIPT = """
import os, sys
from jaxgen.cli.train import main

if "JAXGEN_LAUNCHED_BY" not in os.environ and "--coordinator" in sys.argv:
    sys.exit(main())  # only waits

import jaxgen.distributed.processes as joining
import jaxgen.trainer.callbacks as callbacks
import jaxgen.trainer.recorder as recorder
import jaxgen.trainer.trainer as trainer

joining.JOIN_TIMEOUT = int(os.environ["COMING"])
from jaxgen.errors import CheckpointError
# more
trainer.MAX_STEPS_PER_CALL = 3
what, step = os.environ.get("MEETS", "nothing:0").split(":")
read, met = trainer.RunTrainer.read_metrics, []

def reading(self, stop, log, number, at, clock):
    clock = read(self, stop, log, number, at, clock)
    if at >= int(step) and what != "nothing" and not met:
        met.append(at)
        meet()
    return clock

def meet():
    who, name = what.split()
    if who != "itself":
        os.kill(os.getppid(), int(name))
    if who != "launcher":
        os.kill(os.getpid(), int(name))

def late(method):
    def called(self, *args):
        meet()
        return method(self, *args)
    return called

if step.isdigit():
    trainer.RunTrainer.read_metrics = reading
elif what != "nothing":  # Class.method, before which it happens
    kind, name = step.split(".")
    kind = next(getattr(module, kind) for module in (trainer, recorder, callbacks) if hasattr(module, kind))
    setattr(kind, name, late(getattr(kind, name)))
if __name__ == "__main__":
    sys.exit(main())
"""
HEARTBEAT = 5


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Ended:
    """How one process of a job ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Jobs:
    """Starts jobs in ``folder``, whose processes have one device each, and waits for their end."""

    folder: Path
    environment: dict[str, str]

    def run(
        self,
        processes: int,
        *flags: object,
        meets: tuple[int | None, str, int, int | str] | None = None,
        devices: tuple[int, ...] = (),
        port: int | None = None,
        script: str = "",
        interrupted: bool = False,
        others: dict[int, list[str]] | None = None,
        number: int | None = None,
        coming: int = 120,
        timeout: float = 240,
    ) -> list[Ended]:
        """Train with ``flags`` in so many processes; 0: by one alone, without a job.

        ``meets``: (process or None for all, who is sent it: itself, its launcher or both, signal, step or the
        Class.method before which it comes). ``others``: more flags of some. ``devices``: how many each has.
        ``number``: how many they believe to be. ``coming``: seconds in which they must meet.
        ``script``: what they run before they train. ``interrupted``: they are, while they wait for each other.
        """
        file = self.folder / "job.py"
        file.write_text(SCRIPT.replace("# more", script))
        port, children = port or free_port(), []
        for index in range(max(processes, 1)):
            job = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", number or processes, "--process-id", index]
            job += ["--heartbeat", HEARTBEAT]
            command = [*flags, *(others or {}).get(index, []), *(job if processes else [])]
            there = devices[index] if devices else 1
            environment = {**self.environment, "JAX_NUM_CPU_DEVICES": str(there), "COMING": str(coming)}
            if meets is not None and meets[0] in (index, None):
                environment["MEETS"] = f"{meets[1]} {int(meets[2])}:{meets[3]}"
            children.append(
                subprocess.Popen(
                    [sys.executable, str(file), *overridden(command)],
                    cwd=self.folder,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            if interrupted:
                time.sleep(8)
                children[0].send_signal(signal.SIGINT)
            texts = [child.communicate(timeout=timeout) for child in children]
        finally:
            for child in children:
                child.kill()
        return [Ended(child.returncode, *text) for child, text in zip(children, texts)]


def ended_by(number: signal.Signals) -> int:
    """What a command exits with that a signal stopped."""
    return 128 + int(number)
