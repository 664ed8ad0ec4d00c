"""What an evaluation sums up, set by set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.run import compiled
from jaxgen.training import make_global_mesh, on_one_device, spread_batch, spread_evaluation


def measured(task: Any, sets: Mapping[str, Any], params: Any, devices: int) -> dict[str, Any]:
    """The totals of each of the evaluation ``sets`` that has a target, its rows spread over ``devices``."""
    totals = {}
    for name, evaluation in sets.items():
        spread = devices if evaluation.rows % devices == 0 else 1  # then each process measures by itself
        eval_step = compiled.evaluation(task, spread)
        weights, carry, sums = params, task.initial_carry(evaluation.rows), []
        batches: Any = evaluation.batches()
        if spread > 1:
            mesh = make_global_mesh(spread)
            weights, carry = spread_evaluation(mesh, weights, carry)
            if jax.process_count() > 1:
                batches = (spread_batch(mesh, batch) for batch in batches)
        else:
            weights = on_one_device(weights)
        for batch in batches:
            carry, batch_totals = eval_step(weights, carry, batch)
            sums.append(batch_totals)  # read later: the device runs ahead of the host
        if sums:  # a split too short for a target has none
            totals[name] = _added(sums)
    return totals


def _added(sums: list[Any]) -> Any:
    """The sums of all batches, in NumPy's float64."""
    return jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *sums)
