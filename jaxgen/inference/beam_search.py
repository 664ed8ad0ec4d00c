"""Beam search: the most probable texts of a model, instead of samples from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.errors import check_kind
from jaxgen.inference.generation_config import GenerationConfig, with_forbidden
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.sampling.beam import beam_states, check_beam
from jaxgen.sampling.transforms.base import Transform, check_number
from jaxgen.tokenizers.base import EOS


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found.

    Attributes:
        text: The text.
        tokens: Its ids, including <eos>, which has no text.
        logp: The sum of their log-probabilities in nats, after the transforms.
        score: ``logp`` / length ** length penalty.
        end: Why it ends: ``eos`` or ``length``.
    """

    text: str
    tokens: np.ndarray
    logp: float
    score: float
    end: str


class BeamConfig(NamedTuple):
    """Settings of a beam search; see ``beam``."""

    width: int = 5
    length: int = 500
    length_penalty: float = 1.0
    keep: int = 1
    transforms: tuple[Transform, ...] = ()


def beam(
    sampler: Sampler,
    prompt: str = "",
    *,
    width: int = 5,
    length: int = 500,
    length_penalty: float = 1.0,
    keep: int = 1,
    state: DecoderState | None = None,
    transforms: tuple[Transform, ...] = (),
    unk: str = "error",
) -> list[Hypothesis]:
    """The best texts that beam search finds, the best first (``jaxgen.sampling.beam`` has the algorithm).

    Args:
        sampler: The model.
        prompt: The text to continue.
        width: The number of beams. 1 is greedy decoding.
        length: The largest number of tokens. Texts of a model of running text, which has no end, all have this length.
        length_penalty: From -5 to 5. 0: the most probable text; 1: the largest mean log-probability per token.
            Another value needs no compilation.
        keep: How many texts. There are fewer if fewer are possible.
        state: Read the prompt after this state.
        transforms: Logit transforms.
        unk: What to do with prompt characters that are not in the vocabulary: ``error`` or ``skip``.

    Raises:
        UsageError: A value is out of range, or a transform depends on what each row has drawn. Nothing was compiled.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> best, second = jaxgen.beam(sampler, "the ", width=2, length=5, keep=2)
        >>> best.score >= second.score
        True
    """
    check_kind("beam", sampler, Sampler, "a jaxgen.Sampler")
    width, length, keep = check_beam(width, length, keep)
    check_number("A length penalty", length_penalty, -5, 5, "a number from -5 to 5")
    chosen = with_forbidden(sampler.forbidden, GenerationConfig(transforms=transforms).transforms)
    states = beam_states(chosen, sampler.context(chosen, width, length=length))
    start = sampler.read(prompt, state, unk=unk)
    sampler.check_first(start.held, chosen)
    search = jitted.jit_beam_search(sampler.task, chosen.kinds, width, length, keep)
    found = search(sampler.weights_at(start), start.carry, start.logits, states, jnp.float32(length_penalty))
    tokens, lengths, logp, scores = (np.asarray(each)[0] for each in found[:4])
    hypotheses = []
    for row, size, total, score in zip(tokens, lengths.tolist(), logp.tolist(), scores.tolist()):
        if size:
            ids = row[:size]
            end = "eos" if ids[-1] == EOS else "length"
            hypotheses.append(Hypothesis(sampler.decode(ids).removeprefix(start.held), ids, total, score, end))
    return hypotheses
