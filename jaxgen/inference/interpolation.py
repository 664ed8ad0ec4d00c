"""What a model writes between the states after two prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from jaxgen import notebook
from jaxgen.errors import check_int
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import interpolate
from jaxgen.plots import Picture, draw_interpolation
from jaxgen.tokenizers.base import Tokenizer

MAX_STEPS = 1_000
#: Of each state the tokens that a picture shows, and of all states the most.
TOP, MAX_SHOWN = 4, 24


@dataclass(frozen=True, eq=False)
class Interpolation:
    """States on the line from that after one prompt to that after another, and what follows each of them.

    Attributes:
        start: The first prompt.
        end: The second prompt.
        weights: The weight of the second state at each step, from 0 to 1.
        texts: What the model writes after each state, with the same seed.
        probabilities: Those of the next token, float32 [steps, V].
        tokenizer: Decodes the tokens.

    Example:
        >>> between = jaxgen.load("runs/language-1").interpolate("the cat", "a dog", steps=3, length=20)
        >>> between.weights, len(between.texts), between.probabilities.shape[0]
        ([0.0, 0.5, 1.0], 3, 3)
    """

    start: str
    end: str
    weights: list[float]
    texts: list[str]
    probabilities: np.ndarray
    tokenizer: Tokenizer

    def top(self, number: int = TOP) -> list[int]:
        """The ids of the ``number`` most probable tokens at each step, in the order in which they become probable."""
        best = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :number]
        ids = list(dict.fromkeys(best.flatten().tolist()))
        ids = sorted(ids, key=lambda i: -float(self.probabilities[:, i].max()))[:MAX_SHOWN]
        place = np.arange(len(self.weights)) @ self.probabilities / np.maximum(self.probabilities.sum(axis=0), 1e-9)
        return sorted(ids, key=lambda i: float(place[i]))

    def _shown(self) -> tuple[list[str], np.ndarray]:
        ids = self.top()
        names = [repr(self.tokenizer.decode([i]))[1:-1].replace(" ", "·") or "<eos>" for i in ids]
        return names, self.probabilities[:, ids]

    def plot(self) -> Picture:
        """The probabilities of the next token along the way."""
        tokens, shares = self._shown()
        title = f"From {self.start!r} to {self.end!r}"
        return Picture.drawn(lambda file: draw_interpolation(shares, tokens, self.weights, file, title))

    def __repr__(self) -> str:
        return f"<jaxgen.Interpolation: {len(self.weights)} states from {self.start!r} to {self.end!r}>"

    def _repr_html_(self) -> str:
        tokens, shares = self._shown()
        names = {"across": "next token", "down": "weight", "what": "probability"}
        texts = notebook.table(["weight", "text"], ((f"{w:.2g}", text) for w, text in zip(self.weights, self.texts)))
        return texts + notebook.matrix(shares.tolist(), [f"{w:.2g}" for w in self.weights], tokens, **names)


def interpolate_prompts(
    sampler: Sampler, start: str, end: str, settings: GenerationConfig, steps: int = 5, unk: str = "error"
) -> Interpolation:
    """What the model writes after ``steps`` states from that after ``start`` to that after ``end``.

    Raises ``UsageError`` as ``interpolate`` does, and for fewer than two steps.
    """
    weights = np.linspace(0, 1, check_int("The number of steps", steps, 2, MAX_STEPS)).tolist()
    first, last = (sampler.read(text, unk=unk) for text in (start, end))
    states = [interpolate(first, last, weight) for weight in weights]
    texts: Iterable[str] = (sampler.sample("", settings, state=state)[0] for state in states)
    chances = [np.asarray(jax.nn.softmax(state.logits[0].astype(np.float32))) for state in states]
    return Interpolation(start, end, weights, list(texts), np.stack(chances), sampler.tokenizer)
