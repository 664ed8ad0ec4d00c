"""Texts by beam search: the likeliest that a model finds, instead of samples from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.inference.generation_config import with_forbidden
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.sampling.beam import beam_states, check_beam
from jaxgen.sampling.transforms.base import Context, check_number
from jaxgen.tokenizers.base import EOS


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found.

    ``tokens`` are its ids (<eos> too, which has no text), ``logp`` their summed log-probability in nats after the
    transforms, ``score`` that divided by the length to the power of the length penalty. ``end`` is eos or length.
    """

    text: str
    tokens: np.ndarray
    logp: float
    score: float
    end: str


class Search(NamedTuple):
    """The settings of a beam search, as ``beam`` takes them."""

    width: int = 5
    length: int = 500
    length_penalty: float = 1.0
    keep: int = 1
    transforms: tuple[Any, ...] = ()


def beam(
    sampler: Sampler,
    prompt: str = "",
    *,
    width: int = 5,
    length: int = 500,
    length_penalty: float = 1.0,
    keep: int = 1,
    state: DecoderState | None = None,
    transforms: tuple[Any, ...] = (),
    unk: str = "error",
) -> list[Hypothesis]:
    """The ``keep`` best texts of at most ``length`` tokens that ``width`` beams find, the best first.

    They continue ``prompt``, read from ``state`` on if one is given. A ``width`` of 1 is greedy decoding. Of a model of
    running text, which has no end, every text has the whole length. There are fewer than ``keep`` where fewer are
    possible. ``jaxgen.sampling.beam`` says how the search goes; there are no stop strings. Another ``length_penalty``
    (from -5 to 5; 0: the likeliest text, 1: the likeliest token on average) compiles nothing. Raises ``UsageError``
    before anything is compiled: for values out of range, for a transform that remembers what was drawn.
    """
    check_beam(width, length, keep)
    check_number("A length penalty", length_penalty, -5, 5, "a number from -5 to 5")
    chosen = with_forbidden(sampler.forbidden, transforms)
    states = beam_states(chosen, Context(width, sampler.tokenizer.vocab_size, eos=EOS))
    start = sampler.read(prompt, state, unk=unk)
    search = jitted.jit_beam_search(sampler.task, chosen.kinds, width, length, keep)
    found = search(sampler.weights, start.carry, start.logits, states, jnp.float32(length_penalty))
    tokens, lengths, logp, scores = (np.asarray(each)[0] for each in found[:4])
    hypotheses = []
    for row, size, total, score in zip(tokens, lengths.tolist(), logp.tolist(), scores.tolist()):
        if size:
            ids = row[:size]
            end = "eos" if ids[-1] == EOS else "length"
            hypotheses.append(Hypothesis(sampler.tokenizer.decode(ids), ids, total, score, end))
    return hypotheses
