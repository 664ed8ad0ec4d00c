"""The systems that ``benchmarks.cpu`` compares, each in its own process so that settings stay separate.

    python -m benchmarks.systems jaxgen       reads requests as lines of JSON and answers each with one

All train the same model: an embedding as wide as the state, LSTM or GRU layers (GRU: reset after the product), a
linear output, mean cross-entropy, gradients clipped to a global norm of 1, Adam at 1e-3; random tokens. The batches lie
ready as arrays of the system, so that no host transfer is timed anywhere. What each does by its nature stays in its
time: jaxgen carries the state from batch to batch and reports the gradient's norm; Keras hands every loss back to the
host. jaxgen prepares its process as its commands do; all others are as installed, PyTorch with its fused Adam, but for
the two called tuned.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from jaxgen.runtime import cores, keep_memory

RING = 8  # batches in memory, used in turns
RATE, CLIP, TEMPERATURE = 1e-3, 1.0, 1.0
CHUNK = 32  # characters that each stream decodes in one call


@dataclass(frozen=True)
class Sizes:
    """A piece of work. Decoding reads ``batch`` as the number of streams; sgemm is [batch*length, H] x [H, 4H]."""

    hidden: int
    batch: int
    length: int = 1
    layers: int = 1
    cell: str = "lstm"
    vocab: int = 96


@dataclass(frozen=True)
class Job:
    """``run(calls)`` does the work and returns how many units (steps, characters, products) took how many seconds."""

    parameters: int
    run: Callable[[int], tuple[int, float]]


def loop(once: Callable[[int], Any], wait: Callable[[Any], object] = lambda last: None) -> Callable:
    """The ``run`` of a job that calls ``once`` with 0, 1, 2, … and then waits for what the last call gave."""

    def run(calls: int) -> tuple[int, float]:
        began = time.perf_counter()
        for i in range(calls):
            last = once(i)
        wait(last)
        return calls, time.perf_counter() - began

    return run


def random_tokens(s: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int32 [RING, B, T]."""
    tokens = np.random.default_rng(0).integers(0, s.vocab, (RING, s.batch, s.length + 1), np.int32)
    return tokens[:, :, :-1], tokens[:, :, 1:]


class Jax:
    """What the systems on JAX share."""

    def __init__(self) -> None:
        import jax

        self.threads, self.devices = cores(), len(jax.devices())

    def sgemm(self, s: Sizes) -> Job:
        """A product of float32 matrices by itself."""
        import jax
        import jax.numpy as jnp

        a, b = jnp.ones((s.batch * s.length, s.hidden)), jnp.ones((s.hidden, 4 * s.hidden))
        product = jax.jit(jnp.matmul)
        return Job(0, loop(lambda i: product(a, b).block_until_ready()))


class Jaxgen(Jax):
    """This library, through the functions that its commands call, on as many devices as they would use."""

    def __init__(self, **options: str) -> None:
        self._options = options  # of the model, beside its sizes
        from jaxgen.cli.common import prepare_process

        prepare_process()
        import jaxgen.api  # noqa: F401

        super().__init__()

    def _begin(self, task: Any, optimizer: Any, rows: int, key: Any) -> tuple[Any, Callable]:
        """A fresh state and ``(key, state, batches, count) -> (state, metrics)``, as the trainer makes them."""
        from jaxgen import jitted
        from jaxgen.training.data_parallel import data_parallel_size, make_mesh, shard_state

        state = jitted.jit_init_state(task, optimizer, rows)(key)
        devices = data_parallel_size(rows, self.devices)
        if devices > 1:
            state = shard_state(make_mesh(devices), state)
        return state, jitted.jit_train_steps(task, optimizer, devices)

    def _task(self, s: Sizes) -> Any:
        from jaxgen import LanguageTask

        sizes: dict[str, Any] = {"hidden": s.hidden, "layers": s.layers, "embed": None, "dropout": 0.0, "tie": False}
        sizes |= self._options
        return LanguageTask.build(vocab_size=s.vocab, cell=s.cell, cell_options={}, **sizes)

    def train(self, s: Sizes) -> Job:
        """Steps in compiled calls of up to as many as the trainer would put into one."""
        import jax
        import jax.numpy as jnp
        import optax

        from jaxgen.trainer.trainer import steps_per_call
        from jaxgen.types import Batch

        optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
        key = jax.random.key(0)
        state, steps = self._begin(self._task(s), optimizer, s.batch, key)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        most = steps_per_call(parameters, s.batch * s.length)
        inputs, targets = (field[np.arange(most) % RING] for field in random_tokens(s))
        batches = Batch(inputs, targets, np.zeros(inputs.shape, bool), np.ones(inputs.shape, bool))
        batches = jax.tree.map(jnp.asarray, batches)

        def run(calls: int) -> tuple[int, float]:
            nonlocal state
            began = time.perf_counter()
            for done in range(0, calls, most):
                state, metrics = steps(key, state, batches, min(most, calls - done))
            jax.block_until_ready((state, metrics))
            return calls, time.perf_counter() - began

        return Job(parameters, run)

    def decode(self, s: Sizes) -> Job:
        """Texts as ``sample.py`` makes them, decoded to strings; timed as it times itself, from the first chunk on."""
        import jax

        from jaxgen import GenerationConfig, Sampler
        from jaxgen.cli.speed import SamplingSpeed
        from jaxgen.sampling.decode import DECODE_ROWS
        from jaxgen.tokenizers.base import NUM_SPECIAL
        from jaxgen.tokenizers.char import CharTokenizer

        task = self._task(s)
        params = jax.jit(task.init)(jax.random.key(0))
        sampler = Sampler(task, CharTokenizer(range(32, 32 + s.vocab - NUM_SPECIAL)), params)

        def run(calls: int) -> tuple[int, float]:
            block = max(DECODE_ROWS, s.batch)  # one stream as by default, many with --block
            settings = GenerationConfig(length=CHUNK * (calls + 1), temperature=TEMPERATURE, seed=0, block=block)
            speed = SamplingSpeed(block)
            for _ in speed.measure(sampler.stream("", settings, num_samples=s.batch)):
                pass
            return speed.later_tokens, speed.later_seconds

        return Job(sum(leaf.size for leaf in jax.tree.leaves(params)), run)


class Flax(Jax):
    """Linen's own cells in ``nn.RNN``, one jitted step with its state donated."""

    def __init__(self) -> None:
        import flax  # noqa: F401

        super().__init__()

    def train(self, s: Sizes) -> Job:
        import jax
        import jax.numpy as jnp
        import optax
        from flax import linen as nn

        cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[s.cell]
        layers = [nn.RNN(cell(s.hidden)) for _ in range(s.layers)]
        model = nn.Sequential([nn.Embed(s.vocab, s.hidden), *layers, nn.Dense(s.vocab)])
        optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
        inputs, targets = ([jnp.asarray(batch) for batch in field] for field in random_tokens(s))

        def step(state: Any, x: Any, y: Any) -> tuple[Any, Any]:
            def mean_loss(params: Any) -> Any:
                return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

            params, slots = state
            loss, grads = jax.value_and_grad(mean_loss)(params)
            updates, slots = optimizer.update(grads, slots, params)
            return (optax.apply_updates(params, updates), slots), loss

        compiled = jax.jit(step, donate_argnums=0)
        params = jax.jit(model.init)(jax.random.key(0), inputs[0])
        state = (params, jax.jit(optimizer.init)(params))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

        def once(i: int) -> Any:
            nonlocal state
            state, loss = compiled(state, inputs[i % RING], targets[i % RING])
            return state, loss

        return Job(parameters, loop(once, jax.block_until_ready))


class Keras(Jax):
    """Keras 3 on JAX through ``train_on_batch``, which waits for the loss of every step."""

    def __init__(self) -> None:
        os.environ["KERAS_BACKEND"] = "jax"  # read at the import
        self.keras = import_module("keras")
        super().__init__()

    def train(self, s: Sizes) -> Job:
        import jax.numpy as jnp

        keras, layers = self.keras, self.keras.layers
        cell = {"lstm": layers.LSTM, "gru": partial(layers.GRU, reset_after=True)}[s.cell]
        recurrent = [cell(s.hidden, return_sequences=True) for _ in range(s.layers)]
        start, embedding = keras.Input((s.length,), dtype="int32"), layers.Embedding(s.vocab, s.hidden)
        model = keras.Sequential([start, embedding, *recurrent, layers.Dense(s.vocab)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(RATE, global_clipnorm=CLIP), loss)
        inputs, targets = ([jnp.asarray(batch) for batch in field] for field in random_tokens(s))
        return Job(model.count_params(), loop(lambda i: model.train_on_batch(inputs[i % RING], targets[i % RING])))


class Torch:
    """PyTorch's layers, eager, time in front; everything on the CPU is done when a call returns."""

    devices = 1

    def __init__(self, threads: int, bfloat16: bool = False) -> None:
        import torch

        self._bfloat16 = bfloat16  # products by autocast; the loss in float32
        torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()

    def sgemm(self, s: Sizes) -> Job:
        """A product of float32 matrices by itself."""
        import torch

        a, b = torch.ones(s.batch * s.length, s.hidden), torch.ones(s.hidden, 4 * s.hidden)
        out = torch.empty(s.batch * s.length, 4 * s.hidden)
        return Job(0, loop(lambda i: torch.mm(a, b, out=out)))

    def train(self, s: Sizes) -> Job:
        import torch
        from torch.nn import functional

        embedding, output = torch.nn.Embedding(s.vocab, s.hidden), torch.nn.Linear(s.hidden, s.vocab)
        layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[s.cell](s.hidden, s.hidden, s.layers)
        parameters = list(torch.nn.ModuleList([embedding, layers, output]).parameters())
        optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
        ready = (np.ascontiguousarray(field.swapaxes(1, 2)) for field in random_tokens(s))
        inputs, targets = (torch.from_numpy(field).long() for field in ready)

        def once(i: int) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                logits = output(layers(embedding(inputs[i % RING]))[0]).float()
            functional.cross_entropy(logits.flatten(0, 1), targets[i % RING].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()

        return Job(sum(p.numel() for p in parameters), loop(once))

    def decode(self, s: Sizes) -> Job:
        """A loop over ``nn.LSTM`` with one step of time."""
        import torch

        layers = torch.nn.LSTM(s.hidden, s.hidden, s.layers)

        def step(x: Any, state: Any) -> tuple[Any, Any]:
            y, state = layers(x[None], state)
            return y[0], state

        return self._decoding(s, step, None)

    def decode_cells(self, s: Sizes) -> Job:
        """A loop over ``nn.LSTMCell``, which is made for single steps."""
        import torch

        cells = [torch.nn.LSTMCell(s.hidden, s.hidden) for _ in range(s.layers)]

        def step(x: Any, states: Any) -> tuple[Any, Any]:
            new = []
            for cell, old in zip(cells, states):
                new.append(cell(x, old))
                x = new[-1][0]
            return x, new

        return self._decoding(s, step, [None] * s.layers)

    def _decoding(self, s: Sizes, step: Callable, state: Any) -> Job:
        import torch

        embedding, output = torch.nn.Embedding(s.vocab, s.hidden), torch.nn.Linear(s.hidden, s.vocab)
        token = torch.zeros(s.batch, dtype=torch.long)

        def run(calls: int) -> tuple[int, float]:
            nonlocal token, state
            drawn, began = [], time.perf_counter()
            with torch.inference_mode():
                for _ in range(CHUNK * calls):
                    x, state = step(embedding(token), state)
                    token = torch.multinomial(torch.softmax(output(x) / TEMPERATURE, -1), 1)[:, 0]
                    drawn.append(token)
                torch.stack(drawn).tolist()
            return s.batch * len(drawn), time.perf_counter() - began

        return Job(0, run)


def tuned(make: Callable[[], Any]) -> Any:
    """A system whose process has the allocator settings that jaxgen's commands give theirs."""
    if not keep_memory():
        raise ModuleNotFoundError("the settings are glibc's", name="glibc")
    return make()


SYSTEMS: dict[str, Callable[[], Any]] = {
    "jaxgen": Jaxgen,
    "jaxgen-bfloat16": lambda: Jaxgen(precision="bfloat16"),
    "torch-1": lambda: Torch(threads=1),
    "torch-all": lambda: Torch(threads=cores()),
    "torch-bfloat16": lambda: Torch(threads=cores(), bfloat16=True),
    "torch-tuned": lambda: tuned(lambda: Torch(threads=cores())),
    "flax": Flax,
    "flax-tuned": lambda: tuned(Flax),
    "keras": Keras,
}


def peak_mb() -> float:
    """The most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


class Requests:
    """What a process can be asked to do: every method takes a request's fields and returns the answer's."""

    def __init__(self, name: str) -> None:
        self.system = SYSTEMS[name]()
        self.jobs: dict[int, Job] = {}

    def about(self) -> dict[str, Any]:
        return {"threads": self.system.threads, "devices": self.system.devices, "imported_mb": peak_mb()}

    def prepare(self, job: int, work: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Build ``work`` and do it once: ``first_s`` traces and compiles, ``setup_s`` is all before it."""
        began = time.perf_counter()
        self.jobs[job] = getattr(self.system, work)(Sizes(**sizes))
        built = time.perf_counter()
        self.jobs[job].run(1)
        first = time.perf_counter()
        return {"parameters": self.jobs[job].parameters, "setup_s": built - began, "first_s": first - built}

    def run(self, job: int, calls: int) -> dict[str, Any]:
        units, seconds = self.jobs[job].run(calls)
        return {"units": units, "seconds": seconds}

    def forget(self) -> dict[str, Any]:
        """Drop all jobs with what was compiled for them."""
        self.jobs.clear()
        gc.collect()
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        return {}

    def memory(self) -> dict[str, Any]:
        return {"peak_mb": peak_mb()}


def main() -> None:
    """Serve until the other side closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not belong among the answers

    def answer(fields: dict[str, Any]) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        requests = Requests(sys.argv[1])
    except ModuleNotFoundError as error:
        return answer({"missing": error.name})
    answer(requests.about())
    for line in sys.stdin:
        fields = json.loads(line)
        answer(getattr(requests, fields.pop("do"))(**fields))
    return None


if __name__ == "__main__":
    main()
