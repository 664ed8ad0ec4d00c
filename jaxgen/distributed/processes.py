"""Several processes that train one run: what they agree on, and what only the first of them does.

The first process, number 0, leads: it alone writes the run's folder and speaks. The others follow: they compute their
share of every batch. All take the same path through the program, and whatever could part their ways (a signal, a wrong
file, what lies in the run's folder) is agreed upon first: one that waits alone waits for ever.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgen.errors import DataError, JaxgenError, UsageError
from jaxgen.training.data_parallel import make_global_mesh, replicated_sharding, shard_local_rows
from jaxgen.training.step import StepMetrics, TrainState

#: Where the processes of the job that was joined met: HOST:PORT, or None where the cluster said it.
_met_at: list[str | None] = []
#: Seconds in which all must have come, and in which all must have gone.
COMING, GOING = 300, 30


def join(coordinator: str | None, processes: int | None, index: int | None, heartbeat: int) -> None:
    """Wait until all ``processes`` have met at ``coordinator`` (HOST:PORT); with None, as the cluster says.

    After ``heartbeat`` seconds without a sign a process counts as lost. Call it before anything uses a device. Raises
    ``RuntimeError``, ``ValueError`` or ``OSError`` where they cannot meet; the runtime itself ends a process for which
    the others do not come in time.
    """
    _met_at.append(coordinator)
    # A signal is agreed upon by the training loop; JAX's own way would take SIGTERM, and nothing but that.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        # Half-set variables of a cluster must not be read where everything was said.
        cluster_detection_method=None if coordinator is None else "deactivate",
        initialization_timeout=COMING,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=GOING,
    )
    jax.devices()


def unreachable() -> str | None:
    """The address that the name of this host stands for, if the job is on other hosts too and they cannot reach it.

    Processes that compute on CPUs find each other by these names.
    """
    try:
        here = _address(socket.gethostname())
        hosts = [address.rpartition(":")[0].strip("[]") for address in _met_at if address is not None]
        alone = any(ipaddress.ip_address(_address(host)).is_loopback for host in hosts)
        return here if ipaddress.ip_address(here).is_loopback and not alone else None
    except (OSError, ValueError):
        return None


def _address(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def leave() -> None:
    """Go, once all have come to their end."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


#: What must be the same on all processes, and how it is told when it is not.
FACTS: dict[str, tuple[type[JaxgenError], str]] = {
    "settings": (UsageError, "were started with other settings: give all the same flags and files of settings"),
    "versions": (UsageError, "have other versions of jaxgen, JAX or Python: install the same on all hosts"),
    "data": (DataError, "read other data: give all the same files"),
    "folder": (UsageError, "do not see the same run: its folder must lie on a disk that all of them can read"),
    "plan": (
        UsageError,
        "have other devices, and would compute in other ways: give --devices, or take hosts of one kind (on a CPU the "
        "number of cores counts, or JAX_NUM_CPU_DEVICES)",
    ),
}


class PeerError(JaxgenError):
    """Another process of the job cannot go on, and so none can; ``exit_code`` is the other's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostError(JaxgenError):
    """Another process of the job has gone without a word (exit code 6)."""

    exit_code = 6


class ProcessGroup:
    """The processes of a job: this one is number ``index`` of ``count``. One alone agrees with itself at no cost."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count
        #: Whether all are about to end for the same reason, so that none has to be told.
        self.ends_together = False
        self._asked = 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def leads(self) -> bool:
        return self.index == 0

    # --- what all know

    def gathered(self, value: Any) -> list[Any]:
        """The JSON ``value`` of each process, in their order."""
        if self.alone:
            return [value]
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self._everyone(np.array([mine.size], np.int32)).reshape(-1)
        every = self._everyone(np.pad(mine, (0, _rounded(int(sizes.max())) - mine.size)))
        return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes.tolist())]

    def told(self, value: Any = None) -> Any:
        """The JSON ``value`` of the leader."""
        return value if self.alone else self.gathered(value if self.leads else None)[0]

    def shared(self, tree: Any) -> Any:
        """The leader's arrays; the others give any of the same shapes."""
        if self.alone:
            return tree
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        # In one exchange: the order of several in a program may differ from process to process on a CPU.
        mine = np.concatenate([np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves])
        with exchanging():
            given = shard_local_rows(self._mesh, (mine if self.leads else np.zeros_like(mine))[None])
            theirs = np.asarray(_summed(spread_over=replicated_sharding(self._mesh))(given)).tobytes()
        starts = np.cumsum([0, *(leaf.nbytes for leaf in leaves)]).tolist()
        copies = [
            np.frombuffer(theirs, leaf.dtype, leaf.size, at).reshape(leaf.shape) for leaf, at in zip(leaves, starts)
        ]
        return jax.tree.unflatten(structure, copies)

    def whole(self, state: TrainState, devices: int) -> TrainState:
        """``state`` with all rows of its carry, which lie on ``devices`` of all processes."""
        if self.alone:
            return state
        everywhere = _same(spread_over=replicated_sharding(make_global_mesh(devices)))

        def gather(leaf: jax.Array) -> np.ndarray:
            with exchanging():
                return np.asarray(everywhere(leaf))

        return state._replace(carry=jax.tree.map(gather, state.carry))

    def _everyone(self, mine: np.ndarray) -> np.ndarray:
        """The array [...] of each process as a row, [P, ...]."""
        with exchanging():
            return np.asarray(
                _same(spread_over=replicated_sharding(self._mesh))(shard_local_rows(self._mesh, mine[None]))
            )

    @cached_property
    def _mesh(self) -> Mesh:
        """A device of each process: of all there may be another number on each."""
        return make_global_mesh(self.count)

    @contextmanager
    def together(self) -> Iterator[dict[str, str]]:
        """All go on behind the block, or none does: what one process raises in it, all raise.

        What is put under a name of ``FACTS`` into the dictionary that it gives must be the same on all.
        """
        facts: dict[str, str] = {}
        if self.alone:
            yield facts
            return
        failed: JaxgenError | SystemExit | None = None
        code, said = 0, ""
        try:
            yield facts
        except JaxgenError as error:
            failed, code, said = error, error.exit_code, str(error)
        except SystemExit as stop:  # the flag parser's, which has said why
            failed, code, said = stop, stop.code if isinstance(stop.code, int) else 1, "Its flags cannot be read."
        mine = {name: hashlib.sha256(fact.encode()).hexdigest() for name, fact in facts.items()}
        every = self.gathered({"code": code, "said": said, "facts": mine})
        self.ends_together = True
        if failed is not None:
            raise failed
        for number, each in enumerate(every):
            if each["code"]:
                raise PeerError(f"Process {number} of the job cannot go on. {each['said']}", each["code"])
        for name, (kind, what) in FACTS.items():
            others = [n for n, each in enumerate(every) if each["facts"].get(name) != every[0]["facts"].get(name)]
            if others:
                who = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
                raise kind(f"Process 0 and {who} of the job {what}.")
        self.ends_together = False

    # --- signals

    def asking(self, received: int | None, devices: int) -> tuple[Any, ...]:
        """What a compiled call gets of a signal that this process ``received``; nothing where there is one process."""
        if self.alone:
            return ()
        return (shard_local_rows(make_global_mesh(devices), np.full(devices // self.count, received or 0, np.int32)),)

    def heard(self, log: Any) -> StepMetrics:
        """The metrics of a call; whether any process asked in it to stop is remembered."""
        if self.alone:
            return log
        metrics, asked = log
        self._asked = max(self._asked, int(asked))
        return metrics

    def stops(self, received: int | None) -> bool:
        """Whether all know that one was asked to stop."""
        return received is not None if self.alone else self._asked > 0

    def signal(self, received: int | None) -> int | None:
        """The signal that any process ``received``. All ask at the same place."""
        if self.alone:
            return received
        found = max(self.gathered(max(received or 0, self._asked)))
        self.ends_together = found > 0
        return found or None


def process_group() -> ProcessGroup:
    """The processes of this job, as many as were joined (``jax.distributed``) before JAX was first used."""
    joined = jax.distributed.is_initialized()  # else no device need be asked
    return _team(jax.process_index(), jax.process_count()) if joined else _team(0, 1)


@cache
def _team(index: int, count: int) -> ProcessGroup:
    return ProcessGroup(index, count)


@contextmanager
def exchanging() -> Iterator[None]:
    """Say it in a sentence when an exchange with another process fails, which the runtime tells in several ways."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if process_group().alone or isinstance(error, JaxgenError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        if "context initialization failed" in str(error) and (address := unreachable()):
            raise UsageError(
                f"The processes of the job met and cannot reach each other: the name of this host, "
                f"{socket.gethostname()}, stands for {address}, an address that no other host can reach. Let it stand "
                "for the address that the others see, in /etc/hosts of each host."
            ) from None
        if isinstance(error, ValueError) and not re.search("gloo|UNKNOWN|UNAVAILABLE|INTERNAL", str(error), re.I):
            raise
        raise LostError(
            f"Another process of the job was lost ({str(error).splitlines()[0][:200].rstrip('.')}), and the others "
            "cannot go on without it. What was saved last is kept: start all processes again, with --resume auto."
        ) from None


@cache
def _same(spread_over: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=spread_over)


@cache
def _summed(spread_over: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array.sum(0, dtype=array.dtype), out_shardings=spread_over)


def _rounded(size: int) -> int:
    """A power of two, so that messages of all lengths have few shapes to compile for."""
    return 1 << max(6, (size - 1).bit_length())
