"""The distribution of the next token: the model's, and after each transform."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import Last
from jaxgen.sampling.transforms.temperature import Temperature, temperature_table
from jaxgen.tokenizers.base import Tokenizer, quote_token, token_json

#: Tokens that the name of a transform lists at most.
MAX_NAMED = 3


class Step(NamedTuple):
    """The distribution of the next token after a step: log-probabilities [V], -inf for tokens that cannot be drawn."""

    name: str
    logp: np.ndarray

    @property
    def tokens(self) -> int:
        """How many tokens can be drawn."""
        return int(np.isfinite(self.logp).sum())

    @property
    def entropy(self) -> float:
        """The entropy in bits."""
        logp = self.logp[np.isfinite(self.logp)].astype(np.float64)
        return float(-(np.exp(logp) * logp).sum() / np.log(2)) + 0.0  # no -0.0

    def best(self, number: int) -> np.ndarray:
        """The ``number`` most probable tokens that can be drawn, the most probable first."""
        return np.argsort(-self.logp, kind="stable")[: min(number, self.tokens)]

    def to_json(self, tokenizer: Tokenizer, top: int) -> dict[str, Any]:
        """The step with its ``top`` most probable tokens as JSON values."""
        best = [token_json(tokenizer, i, float(self.logp[i])) for i in self.best(top).tolist()]
        return {"after": self.name, "tokens": self.tokens, "entropy_bits": round(self.entropy, 6), "top": best}


def distribution_steps(sampler: Sampler, state: DecoderState, settings: GenerationConfig) -> list[Step]:
    """The distribution of the token after ``state``: the model's, and after each transform in turn."""
    chain = sampler.chain(settings)
    sampler.check_first(state.held, chain)
    logits = state.logits.astype(jnp.float32)
    states = chain.init(sampler.context(chain, 1, state.tokens, state.held, settings.length))
    steps = [Step("the model", np.asarray(jax.nn.log_softmax(logits)[0]))]
    for transform, each in zip(chain.transforms, states):
        # Arrays of JAX, as the decode loop has them: `update` may use `state.at`, which NumPy lacks.
        _, logits = transform.update(*jax.tree.map(jnp.asarray, (each, logits, Last.none(1))))
        steps.append(Step(transform_name(transform, sampler.tokenizer), np.asarray(jax.nn.log_softmax(logits)[0])))
    if settings.greedy:
        chosen = np.full(sampler.tokenizer.vocab_size, -np.inf, np.float32)
        chosen[np.argmax(logits[0])] = 0.0
        steps.append(Step("temperature 0", chosen))
    return steps


def transform_name(transform: Any, tokenizer: Tokenizer) -> str:
    """The flag of a transform with its number or its first tokens."""
    name = next((name for name, kind in TRANSFORMS.items() if kind is type(transform)), type(transform).__name__)
    value = getattr(transform, dataclasses.fields(transform)[0].name)
    if isinstance(transform, Temperature):
        value = float(temperature_table(value, transform.steps)[0])
    if isinstance(value, int | float):
        return f"{name} {value:g}"
    ids = [each for each in value if isinstance(each, int)] if isinstance(value, tuple) else []
    words = [name, *(quote_token(tokenizer, i) for i in ids[:MAX_NAMED])]
    return " ".join([*words, "…"] if len(ids) > MAX_NAMED else words)
