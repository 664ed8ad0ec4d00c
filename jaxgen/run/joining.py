"""How this process becomes one of several that train one run, and how it leaves them; only ever on request."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxgen.errors import UsageError

#: Seconds without a sign after which a process counts as lost, and seconds in which all must have come or gone.
HEARTBEAT, COMING, GOING = 60, 300, 30
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


def join(job: Job) -> None:
    """Wait until all processes of ``job`` have come. Call it before anything uses a device.

    Raises ``UsageError`` where they cannot be found.
    """
    import jax

    # A signal is agreed upon by the training loop; JAX's own way would take SIGTERM, and nothing but that.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.processes,
            job.index,
            # Half-set variables of a cluster must not be read where everything was said.
            cluster_detection_method=None if job.coordinator is None else "deactivate",
            initialization_timeout=COMING,
            heartbeat_timeout_seconds=job.heartbeat,
            shutdown_timeout_seconds=GOING,
        )
        jax.devices()
    except (RuntimeError, ValueError, OSError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if job.coordinator is None:
            raise UsageError(
                f"--distributed auto finds no job here ({why}): start it through SLURM, Open MPI, Kubernetes or on a "
                "TPU pod, or name all with --coordinator HOST:PORT --num-processes N --process-id I."
            ) from None
        raise UsageError(
            f"The {job.processes} processes of the job did not meet at {job.coordinator} ({why}). Start all of them, "
            f"each with its own --process-id, within {COMING // 60} minutes; process 0 runs on that host, and the port "
            "is free there and open to the others."
        ) from None


def leave() -> None:
    """Go, once all have come to their end."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
