"""Training on one device compared with all devices, in turns: when data parallelism over CPU cores is faster.

    python -m benchmarks.devices          about three minutes; prints a table in Markdown

Whole training step, embedding to Adam, through the functions that the trainer calls. The rule `data_parallel_size`
rests on this table (docs/performance.md).
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine
from jaxgen import LanguageTask, jitted, keep_memory, offer_cores
from jaxgen.training.data_parallel import make_mesh, shard_state
from jaxgen.types import Batch

V, STEPS, ROUNDS = 96, 2, 9
SIZES = [  # B, T, H, layers
    (50, 50, 128, 1),
    (32, 128, 128, 2),
    (32, 64, 256, 1),
    (64, 64, 256, 1),
    (32, 128, 256, 2),
    (64, 64, 256, 2),
    (64, 64, 384, 1),
    (64, 64, 384, 2),
    (32, 128, 512, 1),
    (64, 64, 512, 1),
    (64, 64, 512, 2),
]


class Contestant:
    """Training on so many devices; ``turn`` gives the milliseconds of a step."""

    def __init__(self, task: LanguageTask, optimizer: Any, batches: Batch, devices: int) -> None:
        self.key, self.batches = jax.random.key(0), batches
        self.state = jitted.jit_init_state(task, optimizer, batches.tokens.shape[1])(self.key)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        if devices > 1:
            self.state = shard_state(make_mesh(devices), self.state)
        self.steps = jitted.jit_train_steps(task, optimizer, devices)

    def turn(self) -> float:
        began = time.perf_counter()
        self.state, metrics = self.steps(self.key, self.state, self.batches, STEPS)
        jax.block_until_ready((self.state, metrics))
        return 1e3 * (time.perf_counter() - began) / STEPS


def compare(cell: str, rows: int, length: int, hidden: int, layers: int, devices: int) -> list[Any]:
    """The parameters, and the medians of one device and of several."""
    options = {"hidden": hidden, "layers": layers, "embed": None, "dropout": 0.0, "tie": False}
    task = LanguageTask.build(vocab_size=V, cell=cell, cell_options={}, **options)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    tokens = np.random.default_rng(0).integers(0, V, (STEPS, rows, length + 1), np.int32)
    fields = (
        tokens[..., :-1],
        tokens[..., 1:],
        np.zeros(tokens[..., 1:].shape, bool),
        np.ones(tokens[..., 1:].shape, bool),
    )
    contestant = partial(Contestant, task, optimizer, Batch(*map(jnp.asarray, fields)))
    one, many = contestant(1), contestant(devices)
    for each in (one, many, one, many):  # compile, then warm up
        each.turn()
    turns = [(one.turn(), many.turn()) for _ in range(ROUNDS)]
    jax.clear_caches()
    return [one.parameters, *(statistics.median(times) for times in zip(*turns))]


def main() -> None:
    keep_memory()
    offer_cores()
    devices = jax.local_device_count()
    print(machine.line(machine.facts()) + "\n")
    print(f"| cell, B, T, H, layers | parameters | one device, ms | {devices} devices, ms | ratio |")
    print("|---|---|---|---|---|")
    for cell in ("lstm", "gru"):
        for sizes in SIZES:
            parameters, one, many = compare(cell, *sizes, devices)
            label = ", ".join(map(str, (cell, *sizes)))
            print(f"| {label} | {parameters:,} | {one:.1f} | {many:.1f} | {one / many:.2f} |", flush=True)


if __name__ == "__main__":
    main()
