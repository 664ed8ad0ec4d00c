"""A model while it is being trained, as its data may ask it: to write, or to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxgen.run.predictor import Predictor, Writing
from jaxgen.run.sampler import Sampler
from jaxgen.run.settings import Settings
from jaxgen.store.attention_plot import Look


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
        return sampler.sample(prompt, Settings(length, temperature, self._seed), unk="skip")[0]

    def answer(self, inputs: Sequence[Any], beam: int = 0) -> list[Any]:
        """The outputs for ``inputs``, in order; texts are written greedily, or are the likeliest of ``beam`` beams."""
        return list(self._predicting().predict(inputs, Writing(beam=beam)))

    def attention(self, source: Any) -> Look:
        """Where the model looks while it writes the text for ``source``."""
        return self._predicting().attention(source)

    def _predicting(self) -> Predictor:
        if self._predictor is None:
            self._predictor = Predictor(self._task, self._data.codec, self._params)
        return self._predictor.with_params(self._params)
