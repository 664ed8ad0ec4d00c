"""The most probable tokens at each place of a text, while it is generated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.errors import check_int
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState

#: Tokens of a compiled call.
CHUNK = 64
#: The largest number of alternatives.
MAX_ALTERNATIVES = 100


class Alternatives:
    """The ``top`` most probable tokens at each token of a text that continues a state, under the model itself.

    Args:
        sampler: The model.
        start: The state before the text.
        top: How many; fewer if the vocabulary has fewer.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> found = Alternatives(sampler, sampler.read("the "), top=2).feed(sampler.tokenizer.encode("cat"))
        >>> len(found), len(found[0])
        (3, 2)
    """

    def __init__(self, sampler: Sampler, start: DecoderState, top: int) -> None:
        self.top = min(check_int("The number of alternatives", top, 1, MAX_ALTERNATIVES), sampler.tokenizer.vocab_size)
        self._score = jitted.jit_score(sampler.task, self.top)
        self._weights, self._carry, self._logits = sampler.weights_at(start), start.carry, start.logits
        self._last: int | None = None  # the last token, which is not read yet

    def feed(self, tokens: np.ndarray) -> list[list[tuple[int, float]]]:
        """For each of the next tokens [T] of the text: the most probable ids there, with log-probabilities in nats."""
        found: list[list[tuple[int, float]]] = []
        if tokens.size and self._last is None:
            logp = np.asarray(jax.nn.log_softmax(self._logits[0].astype(jnp.float32)))
            best = np.argsort(-logp, kind="stable")[: self.top]
            found.append([(int(i), float(logp[i])) for i in best if logp[i] > -np.inf])
            self._last, tokens = int(tokens[0]), tokens[1:]
        for at in range(0, tokens.size, CHUNK):
            targets = tokens[at : at + CHUNK]
            read = np.concatenate([[self._last], targets[:-1]])
            room = CHUNK - targets.size
            inputs = [np.pad(each.astype(np.int32), (0, room))[None] for each in (read, targets)]
            valid = (np.arange(CHUNK) < targets.size)[None]
            arguments = *inputs, np.zeros((1, CHUNK), bool), valid, self._carry
            self._carry, scored = self._score(self._weights, self._carry, *arguments)
            top, top_logp = (np.asarray(each)[0, : targets.size] for each in (scored.top, scored.top_logp))
            found += [list(zip(ids, logp)) for ids, logp in zip(top.tolist(), top_logp.tolist())]
            self._last = int(targets[-1])
        return found
