"""The forms of a recurrence compared: value and gradients of one layer, and a whole training step.

    python -m benchmarks.forms                    LSTM, GRU and Elman: about two minutes
    python -m benchmarks.forms mingru rglru       other cells of the registry, in every form that they have

It prints two tables in Markdown for each set of forms. All forms of a cell take turns in one run, after a warm-up, and
medians are compared: only the ratios to the plain scan, in brackets, mean something.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import CELLS, LanguageModel, LanguageTask, create_state, keep_memory, train_step
from jaxgen.cells import forms_of, unroll_projected
from jaxgen.types import Batch

SIZES = [(50, 50, 128), (32, 64, 256), (32, 128, 256), (64, 64, 512)]  # B, T, H
STEP_SIZES = [(50, 50, 128, 2), (32, 64, 256, 1), (32, 128, 256, 2)]  # B, T, H, layers
CELLS_SHOWN = ("lstm", "gru", "elman")
V = 96
ROUNDS = 15


def forms_here(name: str) -> list[str]:
    """The forms of a cell, without the kernel: outside of a TPU that is another scan."""
    return [form for form in forms_of(CELLS[name](features=8)) if form != "kernel" or jax.default_backend() == "tpu"]


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each call, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in times.items()}


def layer(name: str, batch: int, length: int, hidden: int) -> dict[str, float]:
    """Value and gradients of one recurrence over a projected input."""
    cell = CELLS[name](features=hidden)
    carry = cell.initialize_carry(jax.random.key(0), (batch, hidden))
    x = jnp.zeros((batch, hidden))
    params = cell.init(jax.random.key(0), carry, x)
    width = jax.eval_shape(lambda: cell.apply(params, x, method="project")).shape[-1]
    z, weight = (jax.random.normal(jax.random.key(i), (length, batch, k)) for i, k in ((1, width), (2, hidden)))

    def value(form: str, params, carry, z):
        carry, ys = cell.apply(params, carry, z, form=form, method=unroll_projected)
        return jnp.sum(ys * weight) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(carry))

    grads = {form: jax.jit(jax.grad(partial(value, form), argnums=(0, 1, 2))) for form in forms_here(name)}
    return medians({form: partial(grad, params, carry, z) for form, grad in grads.items()})


def step(name: str, batch: int, length: int, hidden: int, layers: int) -> dict[str, float]:
    """One training step: embedding, recurrent layers, output, cross-entropy, clipping, Adam."""
    optimizer, key = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), jax.random.key(0)
    tokens = np.random.default_rng(0).integers(3, V, (batch, length + 1), np.int32)
    batch_ = Batch(tokens[:, :-1], tokens[:, 1:], np.zeros((batch, length), bool), np.ones((batch, length), bool))
    model = LanguageModel(V, CELLS[name], hidden=hidden, layers=layers)
    calls = {}
    for form in forms_here(name):
        task = LanguageTask(dataclasses.replace(model, form=form))
        state = create_state(task, optimizer, key, rows=batch)
        calls[form] = partial(jax.jit(partial(train_step, task, optimizer, key)), state, batch_)
    return medians(calls)


def table(title: str, names: list[str], sizes: list[tuple[int, ...]], measure: Callable[..., dict[str, float]]) -> None:
    """Print a table of cells that have the same forms."""
    forms = forms_here(names[0])
    print(f"\n| {title} | {' | '.join(f'{form}, ms' for form in forms)} |\n|{'---|' * (1 + len(forms))}")
    for name, size in itertools.product(names, sizes):
        times = measure(name, *size)
        shown = [f"{times[form]:.1f} ({times['scan'] / times[form]:.2f})" for form in forms]
        print(f"| {name} {', '.join(map(str, size))} | {' | '.join(shown)} |", flush=True)


def main(names: list[str]) -> None:
    keep_memory()
    for _, same in itertools.groupby(names, forms_here):
        group = list(same)
        table("cell, B, T, H: one layer, value and gradients", group, SIZES, layer)
        table("cell, B, T, H, layers: whole training step", group, STEP_SIZES, step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        "python -m benchmarks.forms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cell", nargs="*", help=f"a registered cell: {', '.join(CELLS)}")
    names = parser.parse_args().cell or list(CELLS_SHOWN)
    if unknown := [name for name in names if name not in CELLS]:
        parser.error(f"unknown cell {unknown[0]!r}: choose from {', '.join(CELLS)}")
    main(names)
