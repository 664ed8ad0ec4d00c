"""How this process becomes one of several that train one run, and how it leaves them; only ever on request."""

from __future__ import annotations

import ipaddress
import socket

import jax

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
