"""Evaluation and inference with the current weights of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen import jitted
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.tasks.base import EvalSet
from jaxgen.training.data_parallel import make_global_mesh, shard_batch, shard_evaluation, unreplicate
from jaxgen.types import AttentionMap, Params


def evaluate(task: Any, sets: Mapping[str, EvalSet], params: Params, devices: int) -> dict[str, Any]:
    """The sums of ``task.measure`` over each of ``sets`` that has a target, with rows sharded over ``devices``."""
    totals = {}
    for name, evaluation in sets.items():
        spread = devices if evaluation.rows % devices == 0 else 1  # else each process evaluates by itself
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
            sums.append(batch_totals)  # read later, so that the device need not wait for the host
        if sums:  # a split too short for a target has none
            totals[name] = _sum(sums)
    return totals


def _sum(sums: list[Any]) -> Any:
    """The sums over all batches, in float64."""
    return jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *sums)


class TrainingInference:
    """``jaxgen.tasks.base.Inference`` with a sampler or a predictor, made and compiled at its first use."""

    def __init__(self, task: Any, data: Any, seed: int) -> None:
        self._task, self._data, self._seed = task, data, seed
        self._params: Params = {}
        self._sampler: Sampler | None = None
        self._predictor: Predictor | None = None

    def with_params(self, params: Params) -> TrainingInference:
        """Use other weights of the same shapes; compiles nothing again."""
        self._params = params
        return self

    def generate(self, prompt: str, temperature: float, length: int, label: str | None = None) -> str:
        """A text that continues ``prompt``, drawn with the run's seed. Characters without a token are left out."""
        if self._sampler is None:
            documents = self._data.has_documents
            self._sampler = Sampler(self._task, self._data.codec, self._params, documents=documents)
        sampler = self._sampler.with_params(self._params)
        sampler = sampler if label is None else sampler.conditioned(label)
        return sampler.sample(prompt, GenerationConfig(length, temperature, self._seed), unk="skip")[0]

    def predict(self, inputs: Sequence[Any], beam: int = 0) -> list[Any]:
        """The outputs for ``inputs``, in order. Texts are decoded greedily, or by beam search with ``beam`` beams."""
        return list(self._loaded_predictor().predict(inputs, DecodingConfig(beam=beam)))

    def attention(self, source: Any) -> AttentionMap:
        """The attention weights while the model writes the text for ``source``."""
        return self._loaded_predictor().attention(source)

    def _loaded_predictor(self) -> Predictor:
        if self._predictor is None:
            self._predictor = Predictor(self._task, self._data.codec, self._params)
        return self._predictor.with_params(self._params)
