"""How this process becomes one of several that train one run, and how it leaves them; only ever on request."""

from __future__ import annotations

import jax

#: Seconds in which all must have come, and in which all must have gone.
COMING, GOING = 300, 30


def join(coordinator: str | None, processes: int | None, index: int | None, heartbeat: int) -> None:
    """Wait until all ``processes`` have met at ``coordinator`` (HOST:PORT); with None, as the cluster says.

    After ``heartbeat`` seconds without a sign a process counts as lost. Call it before anything uses a device. Raises
    ``RuntimeError``, ``ValueError`` or ``OSError`` where they cannot meet; the runtime itself ends a process for which
    the others do not come in time.
    """
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


def leave() -> None:
    """Go, once all have come to their end."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
