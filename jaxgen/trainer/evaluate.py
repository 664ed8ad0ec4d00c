"""The parts of a training loop that follow from the settings (optimizer, schedule), evaluation and inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax
import numpy as np
import optax

from jaxgen import jitted
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.jitted import CACHE_SIZE
from jaxgen.plots import AttentionMap
from jaxgen.runs.config import TrainConfig
from jaxgen.tasks.base import EvalSet
from jaxgen.training.averaging import AVERAGES, named_average
from jaxgen.training.data_parallel import make_global_mesh, shard_batch, shard_evaluation, unreplicate
from jaxgen.training.optimizer import OPTIMIZERS, make_optimizer
from jaxgen.training.param_kinds import Kinds, param_kinds
from jaxgen.training.schedules import SCHEDULES, Rates, Schedule, named_schedule
from jaxgen.types import Params


@dataclass(frozen=True)
class EvalSchedule:
    """Steps between evaluations and between samples (0: only at the end), and the last step of the run."""

    evaluation: int
    sample: int
    last: int

    @classmethod
    def of(cls, config: TrainConfig, horizon: int, last: int) -> EvalSchedule:
        """The schedule of the settings; by default ten evaluations, each with a sample."""
        evaluation = max(1, horizon // 10) if config.eval_every is None else config.eval_every
        return cls(evaluation, evaluation if config.sample_every is None else config.sample_every, last)

    def following(self, step: int) -> int:
        """The next boundary after ``step``."""
        return min([self.last, *((step // n + 1) * n for n in (self.evaluation, self.sample) if n)])

    def evaluates(self, step: int) -> bool:
        return self.evaluation > 0 and step % self.evaluation == 0

    def samples(self, step: int) -> bool:
        return self.sample > 0 and step % self.sample == 0

    def is_boundary(self, step: int) -> bool:
        """Whether an uninterrupted run saves a checkpoint at ``step``."""
        return step == 0 or self.evaluates(step) or self.samples(step)


#: Share of the peak learning rate at the last step, unless ``--final-lr`` is given.
FINAL_LR = 0.02


def build_rates(config: TrainConfig, horizon: int, scale: float = 1.0, costs: Sequence[Sequence[float]] = ()) -> Rates:
    """What the learning rate over ``horizon`` steps and an average of the weights depend on.

    ``scale`` multiplies the rate. ``costs`` has the step and the cost of each evaluation so far.
    """
    warmup = min(config.warmup, horizon // 10)  # a short run must not be all warm-up
    final = FINAL_LR if config.final_lr is None else config.final_lr
    # Arrays, so that every call of the compiled step gets the same types.
    peak, final = np.asarray([config.lr * scale, final], np.float32)
    average = None if config.average == "none" else named_average(config.average, config.average_options)
    begin = 0 if average is None else average.begin(horizon, costs)
    return Rates(*map(np.asarray, (peak, np.int32(warmup), np.int32(horizon), final, np.int32(begin))))


def count_averages(config: TrainConfig) -> int:
    """The number of averages of the weights that an evaluation scores beside these."""
    if config.average == "none":
        return 0
    return 2 if getattr(AVERAGES.get(config.average), "two_tails", False) else 1


def jit_schedule(config: TrainConfig) -> Schedule:
    """The compiled schedule of the settings. Raises ``UsageError``."""
    schedule: Schedule = jax.jit(named_schedule(config.schedule, config.schedule_options))
    return schedule


def build_optimizer(config: TrainConfig, task: Any = None) -> optax.GradientTransformation:
    """The optimizer of the settings for the parameters of ``task``, whose updates take an argument ``rates``.

    Equal settings give the same object, so that they share compiled functions. Raises ``UsageError``.
    """
    options = dict(config.optimizer_options)
    if config.weight_decay:
        options["weight_decay"] = config.weight_decay
    entry = OPTIMIZERS.get(config.optimizer)
    return _cached_optimizer(
        # The registry entries, not only their names: a name can be registered again with another entry.
        entries=(entry, SCHEDULES.get(config.schedule), AVERAGES.get(config.average)),
        optimizer=config.optimizer,
        options=tuple(sorted(options.items())),
        clip=config.clip,
        schedule=config.schedule,
        schedule_options=tuple(sorted(config.schedule_options.items())),
        average=None if config.average == "none" else config.average,
        average_options=tuple(sorted(config.average_options.items())),
        kinds=param_kinds(task) if task is not None and getattr(entry, "needs_kinds", False) else (),
    )


@lru_cache(maxsize=CACHE_SIZE)
def _cached_optimizer(
    entries: tuple[Any, ...],
    optimizer: str,
    options: tuple[Any, ...],
    clip: float,
    schedule: str,
    schedule_options: tuple[Any, ...],
    average: str | None,
    average_options: tuple[Any, ...],
    kinds: Kinds,
) -> optax.GradientTransformation:
    return make_optimizer(
        optimizer,
        schedule,
        clip=clip,
        options=dict(options),
        kinds=kinds,
        schedule_options=dict(schedule_options),
        average=average,
        average_options=dict(average_options),
    )


def evaluate(task: Any, sets: Mapping[str, EvalSet], params: Params, devices: int) -> dict[str, Any]:
    """The sums, in float64, of ``task.evaluate`` over each of ``sets`` that has a target.

    Rows are sharded over ``devices``.
    """
    totals = {}
    for name, evaluation in sets.items():
        spread = devices if evaluation.rows % devices == 0 else 1  # else each process evaluates all rows
        eval_step = jitted.jit_eval_step(task, spread)
        weights, carry, sums = params, task.initial_carry(evaluation.rows), []
        batches = evaluation.batches()
        if spread > 1:
            mesh = make_global_mesh(spread)
            weights, carry = shard_evaluation(mesh, weights, carry)
            if jax.process_count() > 1:
                batches = (shard_batch(mesh, batch) for batch in batches)
        else:
            weights = unreplicate(weights)
        for batch in batches:
            carry, batch_totals = eval_step(weights, carry, batch)
            sums.append(batch_totals)  # read later, so that the device does not wait for the host
        if sums:  # a split too short for a target has none
            totals[name] = jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *sums)
    return totals


class TrainingInference:
    """``jaxgen.tasks.base.Inference`` with a sampler or a predictor, made and compiled at its first use."""

    def __init__(self, task: Any, data: Any, seed: int) -> None:
        self._task, self._data, self._seed = task, data, seed
        self._params: Params = {}

    def with_params(self, params: Params) -> TrainingInference:
        """Use other weights of the same shapes; compiles nothing again."""
        self._params = params
        return self

    def generate(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that continues ``prompt``, drawn with the run's seed. Characters without a token are left out."""
        settings = GenerationConfig(length, temperature, self._seed)
        return self._sampler_of(label).sample(prompt, settings, unk="skip")[0]

    def generate_documents(self, number: int, temperature: float, length: int, label: str | None = None) -> list[str]:
        """``number`` documents, drawn together with the run's seed."""
        settings = GenerationConfig(length, temperature, self._seed, block=number)
        return self._sampler_of(label).sample("", settings, num_samples=number)

    def _sampler_of(self, label: str | None) -> Sampler:
        sampler = self._sampler.with_params(self._params)
        return sampler if label is None else sampler.conditioned(label)

    def predict(self, inputs: Sequence[Any], beam: int = 0) -> list[Any]:
        """The outputs for ``inputs``, in order. Texts are decoded greedily, or by beam search with ``beam`` beams."""
        predictor = self._predictor.with_params(self._params)
        return list(predictor.predict(inputs, DecodingConfig(beam=beam)))

    def attention(self, source: Any) -> AttentionMap:
        """The attention weights while the model writes the text for ``source``."""
        return self._predictor.with_params(self._params).attention(source)

    @cached_property
    def _sampler(self) -> Sampler:
        how = {"documents": self._data.has_documents, "reading": self._data.config.reading}
        return Sampler(self._task, self._data.codec, self._params, **how)

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._task, self._data.codec, self._params)
