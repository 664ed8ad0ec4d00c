"""Several processes that train one run: how they find each other, and what they exchange."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgen.errors import DataError, JaxgenError, UsageError
from jaxgen.trainer.process_group import ProcessGroup, StopFlag
from jaxgen.trainer.signals import StopSignals
from jaxgen.training.data_parallel import make_global_mesh, replicated_sharding, shard_local_rows
from jaxgen.training.step import StepMetrics, TrainState

T = TypeVar("T")

#: The address at which the processes of this job met, HOST:PORT, or None if the cluster chose it.
_met_at: list[str | None] = []
#: Seconds in which all processes must join, and in which all must leave.
JOIN_TIMEOUT, LEAVE_TIMEOUT = 300, 30


def join(coordinator: str | None, processes: int | None, index: int | None, heartbeat: int) -> None:
    """Wait until all processes of the job have joined. Call it before anything uses a device.

    The arguments are the fields of ``launcher.Job``. Raises ``RuntimeError``, ``ValueError`` or ``OSError`` if the
    processes cannot meet. If some do not come in time, the runtime itself ends this process.
    """
    _met_at.append(coordinator)
    # The training loop agrees on signals. JAX's own service would take SIGTERM, and only that.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        # With all of it given, incomplete variables of a cluster must not be read.
        cluster_detection_method=None if coordinator is None else "deactivate",
        initialization_timeout=JOIN_TIMEOUT,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=LEAVE_TIMEOUT,
    )
    jax.devices()


def leave() -> None:
    """Leave the job; waits until all processes do."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def unreachable_address() -> str | None:
    """The address of this host's name, if the job has other hosts and they cannot reach that address.

    Processes that compute on CPUs find each other by these names.
    """
    try:
        here = _address(socket.gethostname())
        hosts = [address.rpartition(":")[0].strip("[]") for address in _met_at if address is not None]
        one_host = any(ipaddress.ip_address(_address(host)).is_loopback for host in hosts)
        return here if ipaddress.ip_address(here).is_loopback and not one_host else None
    except (OSError, ValueError):
        return None


def _address(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


#: What must be the same on all processes -> the error if it is not, and the rest of its message.
MUST_AGREE: dict[str, tuple[type[JaxgenError], str]] = {
    "settings": (UsageError, "were started with other settings: give all the same flags and configuration files"),
    "versions": (UsageError, "have other versions of jaxgen, JAX or Python: install the same on all hosts"),
    "plugins": (UsageError, "have other plugins: give the same files with --plugin"),
    "data": (DataError, "read other data: give all the same files"),
    "folder": (UsageError, "do not see the same run: its folder must lie on a disk that all of them can read"),
    "plan": (
        UsageError,
        "have other devices, and would compute in other ways: give --devices, or take hosts of one kind (on a CPU the "
        "number of cores counts, or JAX_NUM_CPU_DEVICES)",
    ),
}


class PeerError(JaxgenError):
    """Another process of the job failed, so that none can continue; ``exit_code`` is the other's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostError(JaxgenError):
    """Another process of the job was lost (exit code 6)."""

    exit_code = 6


class JaxStopFlag(StopFlag):
    """A stop flag that travels with the training steps, so that all processes see it after the same step."""

    def __init__(self, signals: StopSignals, group: JaxProcessGroup, devices: int) -> None:
        super().__init__(signals)
        self._group, self._devices, self._received = group, devices, 0

    def inputs(self) -> tuple[Any, ...]:
        mesh, here = make_global_mesh(self._devices), self._devices // self._group.count
        return (shard_local_rows(mesh, np.full(here, self.signals.received or 0, np.int32)),)

    def read(self, log: Any) -> StepMetrics:
        metrics, received = log
        self._received = max(self._received, int(received))
        return metrics

    @property
    def is_set(self) -> bool:
        return self._received > 0

    def agree(self) -> int | None:
        received = max(self._group.all_gather(max(self.signals.received or 0, self._received)))
        self._group.ends_together = received > 0
        return received or None


class JaxProcessGroup(ProcessGroup):
    """The processes that joined through ``jax.distributed``."""

    def all_gather(self, value: T) -> list[T]:
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self._gather_array(np.array([mine.size], np.int32)).reshape(-1)
        # Padded to a power of two, so that messages of all lengths have few shapes to compile for.
        padded = 1 << max(6, (int(sizes.max()) - 1).bit_length())
        rows = self._gather_array(np.pad(mine, (0, padded - mine.size)))
        return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist())]

    def broadcast_json(self, value: Any) -> Any:
        return self.all_gather(value if self.is_main else None)[0]

    def broadcast_tree(self, tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        # In one exchange: on a CPU, the order of several in a program may differ from process to process.
        mine = np.concatenate([np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves])
        with self.translate_errors():
            given = shard_local_rows(self._mesh, (mine if self.is_main else np.zeros_like(mine))[None])
            received = np.asarray(_jit_sum(out_shardings=replicated_sharding(self._mesh))(given)).tobytes()
        starts = np.cumsum([0, *(leaf.nbytes for leaf in leaves)]).tolist()
        copies = [
            np.frombuffer(received, leaf.dtype, leaf.size, at).reshape(leaf.shape) for leaf, at in zip(leaves, starts)
        ]
        return jax.tree.unflatten(structure, copies)

    def gather_state(self, state: TrainState, devices: int) -> TrainState:
        gather = _jit_identity(out_shardings=replicated_sharding(make_global_mesh(devices)))

        def gathered(leaf: jax.Array) -> np.ndarray:
            with self.translate_errors():
                return np.asarray(gather(leaf))

        return state._replace(carry=jax.tree.map(gathered, state.carry))

    @contextmanager
    def all_or_none(self) -> Iterator[dict[str, str]]:
        facts: dict[str, str] = {}
        failed: JaxgenError | None = None
        code, message = 0, ""
        try:
            yield facts
        except JaxgenError as error:
            failed, code, message = error, error.exit_code, str(error)
        digests = {name: hashlib.sha256(fact.encode()).hexdigest() for name, fact in facts.items()}
        reports = self.all_gather({"code": code, "message": message, "facts": digests})
        self.ends_together = True
        if failed is not None:
            raise failed
        _raise_for(reports)
        self.ends_together = False

    def stop_flag(self, signals: StopSignals, devices: int) -> StopFlag:
        return JaxStopFlag(signals, self, devices)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn what the runtime raises for a failed exchange into ``LostError`` or ``UsageError``."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if isinstance(error, JaxgenError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            if "context initialization failed" in str(error) and (address := unreachable_address()):
                raise UsageError(
                    f"The other processes cannot reach this host: its name, {socket.gethostname()}, stands for "
                    f"{address}. In /etc/hosts of each host, let its name stand for the address that the others see."
                ) from None
            if isinstance(error, ValueError) and not re.search("gloo|UNKNOWN|UNAVAILABLE|INTERNAL", str(error), re.I):
                raise
            why = str(error).splitlines()[0][:200].rstrip(".")
            raise LostError(
                f"Another process of the job was lost ({why}). Start all processes again, with --resume auto."
            ) from None

    def _gather_array(self, mine: np.ndarray) -> np.ndarray:
        """The array of each process as a row: [...] -> [processes, ...]."""
        with self.translate_errors():
            rows = shard_local_rows(self._mesh, mine[None])
            return np.asarray(_jit_identity(out_shardings=replicated_sharding(self._mesh))(rows))

    @cached_property
    def _mesh(self) -> Mesh:
        """One device of each process: the processes may have different numbers of devices."""
        return make_global_mesh(self.count)


def _raise_for(reports: list[dict[str, Any]]) -> None:
    """Raise ``PeerError`` if a process failed, or the error of ``MUST_AGREE`` for what differs between processes."""
    for index, report in enumerate(reports):
        if report["code"]:
            raise PeerError(f"Process {index} of the job cannot continue. {report['message']}", report["code"])
    for name, (kind, what) in MUST_AGREE.items():
        ours = reports[0]["facts"].get(name)
        others = [str(index) for index, report in enumerate(reports) if report["facts"].get(name) != ours]
        if others:
            who = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(others)}"
            raise kind(f"Process 0 and {who} of the job {what}.")


def process_group() -> ProcessGroup:
    """The group of the processes that joined, always the same object; without ``join`` that of a single process."""
    joined = jax.distributed.is_initialized()  # else no device needs to be initialized
    return _group(jax.process_index(), jax.process_count()) if joined else _group(0, 1)


@cache
def _group(index: int, count: int) -> ProcessGroup:
    return ProcessGroup() if count == 1 else JaxProcessGroup(index, count)


@cache
def _jit_identity(out_shardings: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=out_shardings)


@cache
def _jit_sum(out_shardings: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array.sum(0, dtype=array.dtype), out_shardings=out_shardings)
