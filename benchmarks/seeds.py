"""Several seeds in one call against one call for each: ``python -m benchmarks.seeds``.

Prints, for LSTMs of several sizes, how many times as fast as one call for each seed ``seed_train_steps`` trains four
seeds, on one device and spread over all. The ways take turns, and the best of several rounds counts, so
that other work on the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgen
from benchmarks.machine import facts, line
from jaxgen.data.batches import Tokens, make_batches
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.training.data_parallel import make_mesh, shard_batch
from jaxgen.training.seeds import seed_train_steps
from jaxgen.training.step import create_state, train_steps
from jaxgen.training.windows import Windows

SEEDS, VOCABULARY = 4, 64


def measure(hidden: int, rows: int, length: int, steps: int, rounds: int) -> dict[str, float]:
    """Devices -> how many times as fast it is as one call for each seed."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, 100_000)
    task = jaxgen.LanguageTask(jaxgen.LanguageModel(VOCABULARY, jaxgen.LSTM, hidden=hidden))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    texts = [make_batches("stream", Tokens(ids, None, ids.size, ids.size), rows, length, seed) for seed in range(SEEDS)]
    pipelines = [InputPipeline(each, steps, 1, rows, ProcessGroup()) for each in texts]
    given, read = [each.next(0, steps) for each in pipelines], pipelines[0].read
    keys = [jax.random.key(seed) for seed in range(SEEDS)]
    states = [create_state(task, optimizer, key, rows) for key in keys]
    alone = jax.jit(partial(train_steps, task, optimizer, read=read))
    work = {"apart": lambda: [alone(*each, steps) for each in zip(keys, states, given)]}
    runs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(keys, states, (each.window_index for each in given)))
    for devices in sorted({1, max(n for n in range(1, jax.device_count() + 1) if SEEDS % n == 0)}):
        mesh = None if devices == 1 else make_mesh(devices)
        key, state, index = runs if mesh is None else shard_batch(mesh, runs)
        together = seed_train_steps(task, optimizer, read, True, mesh)
        call = jax.jit(
            lambda k, s, i, run=together: run(k, s, Windows(given[0].text, i, given[0].offsets), steps, None)
        )
        work[f"{devices} devices"] = partial(call, key, state, index)
    for each in work.values():
        jax.block_until_ready(each())
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, each in work.items():
            began = time.perf_counter()
            jax.block_until_ready(each())
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: best["apart"] / seconds for name, seconds in best.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    jaxgen.keep_memory()
    jaxgen.offer_cores()
    for hidden in args.hidden:
        found = measure(hidden, args.rows, args.length, args.steps, args.rounds)
        print(f"LSTM {hidden}:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()), flush=True)
    print(line(facts()))


if __name__ == "__main__":
    main()
