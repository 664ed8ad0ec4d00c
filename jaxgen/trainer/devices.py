"""Over which devices a run spreads its batches, and whether they can hold it."""

from __future__ import annotations

import os

import jax

from jaxgen.distributed.processes import process_group
from jaxgen.errors import UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import TrainConfig
from jaxgen.runtime import need_devices
from jaxgen.tasks.base import TaskData
from jaxgen.training.data_parallel import data_parallel_size


def choose_devices(config: TrainConfig, load: float) -> int:
    """The number of devices, over all processes, that share a batch: the setting, else ``data_parallel_size``."""
    processes = process_group().count
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


def rescale_devices(saved: LoadedRun, config: TrainConfig, data: TaskData) -> str:
    """Take the devices that the run had or, of another number of processes, those that it has now; in words, then."""
    resolved, now = saved.resolved, process_group().count
    then = resolved.get("processes", 1)
    if not other_processes(saved):
        who = f"The run {saved.directory.path} spreads its batches over {resolved['devices']}"
        need_devices(resolved["devices"] // now, who)
        return ""
    if config.devices == saved.config.devices and not _possible(config, now):
        config = config.model_copy(update={"devices": None})  # what was asked for then cannot be had of these
    devices = choose_devices(config, resolved["parameters"] / data.tokens_per_step)
    before = f"{then} process{'' if then == 1 else 'es'} and {resolved['devices']}"
    resolved |= {"devices": devices, "processes": now}
    return (
        f"The run was on {before} devices and goes on with {now} and {devices}: its batches stay the same, and sums "
        "over them are rounded in another order."
    )


def other_processes(saved: LoadedRun) -> bool:
    """Whether the run was on another number of processes than there are now."""
    return bool(saved.resolved.get("processes", 1) != process_group().count)


def _possible(config: TrainConfig, processes: int) -> bool:
    """Whether so many processes have the devices that the settings ask for."""
    each, rest = divmod(config.devices or processes, processes)
    return rest == 0 and each <= jax.local_device_count()


def check_memory(parameters: int, devices: int) -> None:
    """Refuse a model that this machine cannot hold: weights, gradient and two moments on each device, 4 bytes each.

    Only where the weights live in the computer's own memory and the system tells its size.
    """
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    needed, there = parameters * 16 * devices, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UsageError(
            f"A model of {parameters:,} parameters needs at least {needed / 2**30:.0f} GiB to train, and this machine "
            f"has {there / 2**30:.0f} GiB. Choose a smaller --hidden, --layers or vocabulary"
            + (", or --devices 1." if devices > 1 else ".")
        )
