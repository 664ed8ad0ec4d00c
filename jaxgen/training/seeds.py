"""Training steps of several runs that differ in their seeds, in one call: ``train_steps`` under ``jax.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxgen.training.step import train_steps
from jaxgen.training.task import Task
from jaxgen.training.windows import DeviceText, HostBatches, Windows


def seed_train_steps(
    task: Task,
    optimizer: optax.GradientTransformation,
    read: HostBatches | DeviceText,
    shares_text: bool = False,
    mesh: Mesh | None = None,
) -> Callable:
    """``train_steps`` of several runs: ``(keys, states, batches, count, rates) -> (states, metrics)``.

    All arguments but ``count`` have a leading axis of runs, and so do the results. No run depends on another.

    Args:
        task: static.
        optimizer: static.
        read: as in ``train_steps``.
        shares_text: ``batches`` are ``Windows`` of one text; only its ``window_index`` has an axis of runs.
        mesh: spread the runs over the devices of its only axis, which exchange nothing. Their number must divide that
            of the runs.
    """
    one = partial(train_steps, task, optimizer, read=read)
    batches: Any = Windows(None, 0, None) if shares_text else 0  # type: ignore[arg-type]
    steps: Callable = jax.vmap(one, in_axes=(0, 0, batches, None, 0))
    if mesh is None:
        return steps
    runs, whole = PartitionSpec(*mesh.axis_names), PartitionSpec()
    parts: Any = Windows(whole, runs, whole, whole) if shares_text else runs  # type: ignore[arg-type]
    # The devices exchange nothing, so there is no need to check what varies between them.
    return jax.shard_map(
        steps, mesh=mesh, in_specs=(runs, runs, parts, whole, runs), out_specs=(runs, runs), check_vma=False
    )
