"""What an evaluation sums up, set by set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen import jitted
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import Predictor, Writing
from jaxgen.inference.sampler import Sampler
from jaxgen.training.data_parallel import make_global_mesh, shard_batch, shard_evaluation, unreplicate
from jaxgen.types import AttentionMap


def evaluate(task: Any, sets: Mapping[str, Any], params: Any, devices: int) -> dict[str, Any]:
    """The totals of each of the evaluation ``sets`` that has a target, its rows spread over ``devices``."""
    totals = {}
    for name, evaluation in sets.items():
        spread = devices if evaluation.rows % devices == 0 else 1  # then each process measures by itself
        eval_step = jitted.jit_eval_step(task, spread)
        weights, carry, sums = params, task.initial_carry(evaluation.rows), []
        batches: Any = evaluation.batches()
        if spread > 1:
            mesh = make_global_mesh(spread)
            weights, carry = shard_evaluation(mesh, weights, carry)
            if jax.process_count() > 1:
                batches = (shard_batch(mesh, batch) for batch in batches)
        else:
            weights = unreplicate(weights)
        for batch in batches:
            carry, batch_totals = eval_step(weights, carry, batch)
            sums.append(batch_totals)  # read later: the device runs ahead of the host
        if sums:  # a split too short for a target has none
            totals[name] = _added(sums)
    return totals


def _added(sums: list[Any]) -> Any:
    """The sums of all batches, in NumPy's float64."""
    return jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *sums)


class Made:
    """``jaxgen.data.task.Model`` over a task and its present weights; nothing is compiled before it is asked."""

    def __init__(self, task: Any, data: Any, seed: int) -> None:
        self._task, self._data, self._seed = task, data, seed
        self._params: Any = None
        self._sampler: Sampler | None = None
        self._predictor: Predictor | None = None

    def with_params(self, params: Any) -> Made:
        """Other weights of the same shapes, without compiling anything again."""
        self._params = params
        return self

    def write(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that goes on from ``prompt``, drawn with the run's seed; what the vocabulary lacks is left out."""
        if self._sampler is None:
            documents = self._data.has_documents
            self._sampler = Sampler(self._task, self._data.codec, self._params, documents=documents)
        sampler = self._sampler.with_params(self._params)
        sampler = sampler if label is None else sampler.conditioned(label)
        return sampler.sample(prompt, GenerationConfig(length, temperature, self._seed), unk="skip")[0]

    def answer(self, inputs: Sequence[Any], beam: int = 0) -> list[Any]:
        """The outputs for ``inputs``, in order; texts are written greedily, or are the likeliest of ``beam`` beams."""
        return list(self._predicting().predict(inputs, Writing(beam=beam)))

    def attention(self, source: Any) -> AttentionMap:
        """Where the model looks while it writes the text for ``source``."""
        return self._predicting().attention(source)

    def _predicting(self) -> Predictor:
        if self._predictor is None:
            self._predictor = Predictor(self._task, self._data.codec, self._params)
        return self._predictor.with_params(self._params)
