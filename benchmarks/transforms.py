"""The cost of each logit transform per decoding step, compared with a step that has only a temperature.

    python -m benchmarks.transforms       about two minutes; prints tables in Markdown

The step is the one of the sampler: an LSTM language model of one layer of 256, drawing and all, compiled once for each
chain and called with the state that it returned, so that penalties and n-grams have a history to go by.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from jaxgen import LanguageTask, jitted
from jaxgen.inference.sampler import STREAM_CHUNK
from jaxgen.sampling.decode import DecodeState, sample_keys
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import chain
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.sampling.transforms.temperature import Temperature

HIDDEN, ROUNDS, EOS = 256, 15, 2
SIZES = {(100, 1): 256, (50_000, 1): 32, (100, 256): 32}  # vocabulary and rows: steps a turn
OPTIONS = {
    "forbid": {"ids": (3, 5)},
    "bias": {"biases": ((7, 1.0),)},
    "repetition-penalty": {"penalty": 1.2},
    "presence-penalty": {"penalty": 0.5},
    "frequency-penalty": {"penalty": 0.2},
    "no-repeat-ngram": {"n": 4},
    "min-length": {"n": 1000},
    "force": {"ids": (8, 9)},
    "temperature": {"value": (1.0, 0.9, 0.8)},
    "top-k": {"k": 20},
    "top-p": {"p": 0.9},
    "min-p": {"p": 0.05},
    "typical-p": {"p": 0.9},
    "epsilon-cutoff": {"epsilon": 0.0005},
    "eta-cutoff": {"epsilon": 0.0005},
}
TOGETHER = ("top-k", "top-p")
PLAIN = chain(Forbid((0, 1)), Temperature(0.8))


class Contestant:
    """The sampler's step with one chain; ``turn`` gives the microseconds of a step."""

    def __init__(self, task: LanguageTask, weights: Any, names: tuple[str, ...], vocab: int, rows: int) -> None:
        together = chain(PLAIN, *(TRANSFORMS[name](**OPTIONS[name]) for name in names))
        prompt = np.random.default_rng(0).integers(3, vocab, 500)
        carry, logits = task.initial_carry(rows), jnp.zeros((rows, vocab), jnp.float32)
        self.state = DecodeState.start(together, carry, logits, prompt=prompt, eos=EOS)
        self.weights, self.keys = weights, sample_keys(0, jnp.arange(rows))
        self.steps = jitted.jit_decode(task, together.kinds, STREAM_CHUNK, False)
        self.calls = SIZES[vocab, rows] // STREAM_CHUNK

    def turn(self) -> float:
        began = time.perf_counter()
        for _ in range(self.calls):
            self.state, drawn = self.steps(self.weights, self.state, self.keys)
        jax.block_until_ready(drawn)
        return 1e6 * (time.perf_counter() - began) / (self.calls * STREAM_CHUNK)


def compare(vocab: int, rows: int, chains: list[tuple[str, ...]]) -> None:
    """A row of the table for each chain."""
    sizes = {"hidden": HIDDEN, "layers": 1, "embed": None, "dropout": 0.0, "tie": False}
    task = LanguageTask.build(vocab_size=vocab, cell="lstm", cell_options={}, **sizes)
    weights = jitted.jit_prepare(task)(task.init(jax.random.key(0)))
    contestants = [Contestant(task, weights, names, vocab, rows) for names in [(), *chains]]
    for each in contestants * 2:  # compile, then warm up
        each.turn()
    turns = [[each.turn() for each in contestants] for _ in range(ROUNDS)]
    plain = statistics.median(row[0] for row in turns)
    print(f"\nV = {vocab:,}, {rows} row{'s' * (rows > 1)}; with a temperature alone {plain:,.1f} µs a step\n")
    print("| added | µs a step | beside the temperature alone |\n|---|---|---|")
    for names, times in list(zip([(), *chains], zip(*turns)))[1:]:
        ratio = statistics.median(mine / row[0] for mine, row in zip(times, turns))
        print(f"| {' + '.join(names)} | {statistics.median(times):,.1f} | {100 * (ratio - 1):+.0f} % |", flush=True)
    jax.clear_caches()


def main() -> None:
    print(machine.line(machine.facts()))
    alone = [(name,) for name in TRANSFORMS]
    for vocab, rows in SIZES:
        compare(vocab, rows, [*alone, TOGETHER])


if __name__ == "__main__":
    main()
