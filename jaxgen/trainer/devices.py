"""How many devices a run uses, and whether they can hold it."""

from __future__ import annotations

import os

import jax

from jaxgen.errors import UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import TrainConfig
from jaxgen.runtime import need_devices
from jaxgen.tasks.base import TaskData
from jaxgen.training.data_parallel import data_parallel_size


def choose_devices(config: TrainConfig, load: float, processes: int) -> int:
    """The number of devices, over all processes, that share a batch: ``--devices``, else ``data_parallel_size``.

    ``load`` is the number of parameters per token of a batch. Raises ``UsageError`` for numbers that do not divide.
    """
    if config.batch_size % processes:
        raise UsageError(
            f"A batch of {config.batch_size} rows cannot be shared evenly by {processes} processes: start "
            "another number of them, or a new run with a --batch-size that their number divides."
        )
    if config.devices is None:
        return processes * data_parallel_size(config.batch_size // processes, jax.local_device_count(), load)
    if config.devices % processes:
        raise UsageError(
            f"--devices {config.devices} cannot be the same number of devices on each of {processes} processes: give "
            "the number of all together."
        )
    need_devices(config.devices // processes, f"--devices {config.devices} asks for {config.devices}")
    if config.batch_size % config.devices:
        raise UsageError(
            f"A batch of {config.batch_size} rows cannot be spread evenly over --devices {config.devices}: give a "
            "--batch-size that it divides, or other devices."
        )
    return config.devices


def rescale_devices(saved: LoadedRun, config: TrainConfig, data: TaskData, processes: int) -> str:
    """Check the devices of a resumed run or, with another number of processes, choose new ones.

    Returns a message about the change, empty if there is none. Changes ``saved.resolved``.
    """
    resolved = saved.resolved
    before = resolved.get("processes", 1)
    if not has_other_processes(saved, processes):
        who = f"The run {saved.directory.path} spreads its batches over {resolved['devices']}"
        need_devices(resolved["devices"] // processes, who)
        return ""
    if config.devices == saved.config.devices and not _can_have(config, processes):
        config = config.model_copy(update={"devices": None})  # the saved --devices is impossible with these processes
    devices = choose_devices(config, resolved["parameters"] / data.tokens_per_step, processes)
    former = f"{before} process{'' if before == 1 else 'es'} and {resolved['devices']}"
    resolved |= {"devices": devices, "processes": processes}
    return (
        f"The run was on {former} devices and goes on with {processes} and {devices}: its batches stay the same, and "
        "sums over them are rounded in another order."
    )


def has_other_processes(saved: LoadedRun, processes: int) -> bool:
    """Whether the run was trained by another number of processes."""
    return bool(saved.resolved.get("processes", 1) != processes)


def _can_have(config: TrainConfig, processes: int) -> bool:
    """Whether ``processes`` processes have the devices that ``--devices`` asks for."""
    each, rest = divmod(config.devices or processes, processes)
    return rest == 0 and each <= jax.local_device_count()


def check_memory(parameters: int, devices: int) -> None:
    """Raise ``UsageError`` for a model that this machine cannot hold.

    Training needs weights, gradient and two moments on each device, 4 bytes each. Checked only where the weights are
    in the computer's main memory and the system tells its size.
    """
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    needed, available = parameters * 16 * devices, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise UsageError(
            f"A model of {parameters:,} parameters needs at least {needed / 2**30:.0f} GiB to train, and this machine "
            f"has {available / 2**30:.0f} GiB. Choose a smaller --hidden, --layers or vocabulary"
            + (", or --devices 1." if devices > 1 else ".")
        )
