"""How fast a run trains and samples on this machine, beside the speed of large matrix products."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.trainer.run import trial
from jaxgen.trainer.trainer import RunTrainer
from jaxgen.training.products import count_products
from jaxgen.training.step import train_steps

#: Side of the square matrices whose product shows what the processor reaches at most.
SIDE = 1024
#: Tokens of a text, and texts together, of which sampling is timed.
LENGTH, TEXTS = 256, 256


@dataclass(frozen=True)
class Speed:
    """Figures of a run on this machine; those of sampling are ``None`` for tasks that do not continue texts."""

    ceiling: float  # FLOP/s of large float32 products on all devices
    devices: int
    parameters: int
    step_seconds: float
    tokens_per_second: float  # in training
    products: int  # FLOP of the products of a training step
    sampled_alone: float | None = None  # tokens per second of one text
    sampled_together: float | None = None  # of many texts at once
    weight_bytes: int | None = None  # that one token of one text reads

    @property
    def share(self) -> float:
        """The share of ``ceiling`` that the products of training reach, all time counted."""
        return self.products / self.step_seconds / self.ceiling

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {**asdict(self), "share": self.share}


def measure_speed(saved: LoadedRun, seconds: float = 3.0) -> Speed:
    """Time training steps with the settings of a run and, of a language model, sampling from it.

    Args:
        saved: The run; nothing of it changes.
        seconds: How long each measurement takes, compilation aside.

    Raises:
        UsageError: It is an n-gram model.
        DataError: Its data cannot be read.
    """
    decided = {name: value for name, value in saved.resolved["model"].items() if name == "precision"}  # not ``auto``
    trainer = trial(saved.config.model_copy(update=decided))
    usual = usual_step(trainer)
    step = _usual(lambda: trainer.time_call(usual), seconds)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    found: dict[str, Any] = {
        "step_seconds": step,
        "tokens_per_second": trainer.data.units_per_step * trainer.batches.relative_size(usual) / step,
        "products": products_of_step(trainer),
    }
    if saved.config.task == "language":
        found |= _sampling(Sampler.load(saved.directory.path), seconds)
    return Speed(measure_ceiling(trainer.devices, seconds / 3), trainer.devices, parameters, **found)


def usual_step(trainer: RunTrainer) -> int:
    """A step whose batch has the commonest shape."""
    return max(trainer.batches.shapes(), key=lambda shape: shape[1])[0]


def products_of_step(trainer: RunTrainer) -> int:
    """FLOP of the products of one training step of the commonest shape, on all devices together."""
    batches = trainer.inputs.on_host(usual_step(trainer), 1)
    accumulate = trainer.config.accumulate
    step = partial(train_steps, trainer.learner, trainer.optimizer, read=trainer.inputs.read, accumulate=accumulate)
    return count_products(step, trainer.key, trainer.gathered_state(), batches, 1, trainer.rates)


def measure_ceiling(devices: int, seconds: float) -> float:
    """FLOP/s of float32 products of large square matrices, one on each of ``devices`` at the same time."""
    product = jax.jit(lambda a, b: a @ b)
    drawn = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    places = jax.local_devices()[:devices]
    matrices = [jax.device_put(drawn, place) for place in places]

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready([product(each, each) for each in matrices])
        return time.perf_counter() - began

    return 2 * SIDE**3 * len(places) / _usual(once, seconds, best=True)


def _sampling(sampler: Sampler, seconds: float) -> dict[str, Any]:
    """Tokens per second of one text, of many, and the bytes of weights that a token of one text reads."""

    def rate(texts: int) -> float:
        settings = GenerationConfig(LENGTH, 1.0)

        def once() -> float:
            began = time.perf_counter()
            made = sum(sample.tokens.size for sample in sampler.samples("", settings, num_samples=texts))
            return (time.perf_counter() - began) / max(made, 1)

        return 1 / _usual(once, seconds)

    # Each weight is multiplied once for a token: two operations, and four bytes to read.
    step = count_products(sampler.task.step, sampler.weights, sampler.initial_state().carry, jnp.zeros(1, jnp.int32))
    return {"sampled_alone": rate(1), "sampled_together": rate(TEXTS), "weight_bytes": 2 * step}


def _usual(once: Any, seconds: float, best: bool = False) -> float:
    """The median, or the least, of what ``once`` returns, again and again; the first call compiles."""
    once()
    began, found = time.perf_counter(), list[float]()
    while len(found) < 3 or time.perf_counter() - began < seconds:
        found.append(once())
    return min(found) if best else statistics.median(found)
