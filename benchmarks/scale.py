"""Cost of data parallelism over 1 to 8 simulated devices on this machine's cores, and the bytes exchanged.

    python -m benchmarks.scale          about a minute; prints a table in Markdown

The devices are simulated: as many as asked share the cores there are, so the table tells what cutting a batch up and
exchanging gradients costs, not how a step gets faster on real ones. What is exchanged is read off the compiled step
(the operands of its all-reduces) and is the same there. `docs/scale.md` has the table.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine
from jaxgen import LanguageTask, jitted, keep_memory
from jaxgen.training.data_parallel import make_mesh, shard_state
from jaxgen.types import Batch

DEVICES, ROUNDS, STEPS, V = (1, 2, 4, 8), 9, 2, 96
SIZES = [(64, 128, 256, 1), (64, 64, 512, 1)]  # B, T, H, layers
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
#: An all-reduce of a compiled program: one array or a tuple of them.
ALL_REDUCE = re.compile(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(")


def exchanged(program: str) -> tuple[int, int]:
    """How many all-reduces a compiled program has, and the bytes of their operands."""
    found = ALL_REDUCE.findall(program)
    arrays = [array for each in found for array in re.findall(r"(\w+)\[([\d,]*)\]", each)]
    return len(found), sum(WIDTHS[kind] * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in arrays)


class Contestant:
    """Training spread over so many devices; ``turn`` gives the milliseconds of a step."""

    def __init__(self, sizes: tuple[int, int, int, int], devices: int) -> None:
        rows, length, hidden, layers = sizes
        options = {"hidden": hidden, "layers": layers, "embed": None, "dropout": 0.0, "tie": False}
        task = LanguageTask.build(vocab_size=V, cell="lstm", cell_options={}, **options)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        tokens = np.random.default_rng(0).integers(0, V, (STEPS, rows, length + 1), np.int32)
        shape = tokens[..., 1:].shape
        fields = tokens[..., :-1], tokens[..., 1:], np.zeros(shape, bool), np.ones(shape, bool)
        self.key, self.batches = jax.random.key(0), Batch(*map(jnp.asarray, fields))
        self.state = jitted.jit_init_state(task, optimizer, rows)(self.key)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        if devices > 1:
            self.state = shard_state(make_mesh(devices), self.state)
        self.steps = jitted.jit_train_steps(task, optimizer, devices)
        self.program = self._program(task, optimizer, devices)

    def _program(self, task: Any, optimizer: Any, devices: int) -> str:
        """The compiled step by itself, as text."""
        if devices == 1:
            return ""
        from jaxgen.training.data_parallel import shard_train_steps

        one = jax.tree.map(lambda a: a[:1], self.batches)
        steps = jax.jit(shard_train_steps(task, optimizer, make_mesh(devices)))
        return steps.lower(self.key, self.state, one, 1).compile().as_text()

    def turn(self) -> float:
        began = time.perf_counter()
        self.state, metrics = self.steps(self.key, self.state, self.batches, STEPS)
        jax.block_until_ready((self.state, metrics))
        return 1e3 * (time.perf_counter() - began) / STEPS


def main() -> None:
    keep_memory()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    print(machine.line(machine.facts()) + "\n")
    print("| LSTM, B, T, H, layers | parameters | devices | step, ms | of one device | all-reduces | MB a step |")
    print("|---|---|---|---|---|---|---|")
    for sizes in SIZES:
        contestants = [Contestant(sizes, devices) for devices in DEVICES]
        for each in contestants * 2:  # compile, then warm up
            each.turn()
        turns = [[each.turn() for each in contestants] for _ in range(ROUNDS)]
        medians = [statistics.median(times) for times in zip(*turns)]
        for devices, each, median in zip(DEVICES, contestants, medians):
            number, size = exchanged(each.program)
            label = ", ".join(map(str, sizes))
            print(
                f"| {label} | {each.parameters:,} | {devices} | {median:.1f} | {median / medians[0]:.2f} | {number} | "
                f"{size / 1e6:.2f} |",
                flush=True,
            )
        jax.clear_caches()


if __name__ == "__main__":
    main()
