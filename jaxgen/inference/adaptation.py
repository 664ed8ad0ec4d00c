"""Read a text in order with a model that adapts to it: dynamic evaluation, a neural cache, a temperature."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import jitted
from jaxgen.errors import DivergedError, UsageError, check_int, check_kind
from jaxgen.sampling.neural_cache import CacheOptions, CacheState, read_with_cache
from jaxgen.sampling.transforms.base import check_number
from jaxgen.training.dynamic_evaluation import AdaptedState, Rates
from jaxgen.types import Array, Carry, Params

#: Tokens of a compiled call, as long as a segment is not longer.
CALL = 4_096
MAX_SEGMENT, MAX_CACHE = 1 << 14, 1 << 16


@dataclass(frozen=True)
class Adaptation:
    """How the weights adapt to the text that is read (dynamic evaluation, Krause et al. 2018, arXiv:1709.07432).

    Each segment is scored first, and then changes the weights by one step.

    Args:
        rate: The size of a step. 0 changes nothing.
        decay: The share of the way back to the trained weights that each step goes.
        segment: Tokens of a segment.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> scorer = jaxgen.Scorer.load("runs/language-1", adapt=jaxgen.Adaptation(rate=1e-3))
        >>> scorer.score("the cat sat on the mat").tokens
        22
    """

    rate: float = 1e-3
    decay: float = 0.01
    segment: int = 64

    def __post_init__(self) -> None:
        check_number("The rate of adaptation (--adapt-rate)", self.rate, 0, 1, "a number from 0 to 1, such as 0.001")
        check_number("The decay of adaptation (--adapt-decay)", self.decay, 0, 1, "a number from 0 to 1, such as 0.01")
        check_int("The segment of adaptation (--adapt-segment)", self.segment, 1, MAX_SEGMENT)


@dataclass(frozen=True)
class NeuralCache:
    """Recent tokens become more probable where the model is in a similar state (Grave et al. 2017, arXiv:1612.04426).

    Args:
        size: The number of recent tokens.
        weight: The share of the cache in each distribution (lambda in the paper).
        sharpness: How strongly similar states are preferred (theta in the paper).

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> scorer = jaxgen.Scorer.load("runs/language-1", cache=jaxgen.NeuralCache(size=100, weight=0.05))
        >>> scorer.score("the cat sat on the mat").tokens
        22
    """

    size: int = 500
    weight: float = 0.1
    sharpness: float = 0.3

    def __post_init__(self) -> None:
        check_int("The size of the cache (--cache)", self.size, 1, MAX_CACHE)
        check_number("The weight of the cache (--cache-weight)", self.weight, 0, 0.999, "a number from 0 to 0.999")
        check_number(
            "The sharpness of the cache (--cache-sharpness)", self.sharpness, 0, 1000, "a number from 0 to 1000"
        )


@dataclass(frozen=True)
class AdaptiveOptions:
    """How a text is read: with weights that adapt, a cache, and another temperature, or as the model is by default."""

    adapt: Adaptation | None = None
    cache: NeuralCache | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_kind("adapt", self.adapt, Adaptation | None, "a jaxgen.Adaptation")
        check_kind("cache", self.cache, NeuralCache | None, "a jaxgen.NeuralCache")
        check_number("The temperature of scoring", self.temperature, 0.01, 100, "a number from 0.01 to 100")

    @property
    def plain(self) -> bool:
        """Whether the model reads as it is."""
        return self == AdaptiveOptions()

    @property
    def segment(self) -> int:
        """Tokens of a segment."""
        return Adaptation.segment if self.adapt is None else self.adapt.segment


class Segment(NamedTuple):
    """Inputs of a segment and the tokens that follow them; the last segment of a text is filled up."""

    tokens: Any  # int32 [T]
    targets: Any  # int32 [T]
    valid: Any  # bool [T]


class Values(NamedTuple):
    """The options of the distributions as arrays: other values need no compilation."""

    temperature: Any  # float32
    cache: CacheOptions


class SegmentScores(NamedTuple):
    """The log-probability of each target, and the most probable tokens with theirs."""

    logp: Any  # float32 [T], nats
    top: Any  # int32 [T, top]
    top_logp: Any  # float32 [T, top]


#: The model's carry, and its neural cache if it has one.
Memory = tuple[Carry, CacheState | None]


@dataclass(frozen=True)
class ReadSegment:
    """Reads a segment of one text with a language task: what ``dynamic_evaluation`` calls. Pure."""

    task: Any
    top: int = 0

    def __call__(
        self, values: Values, params: Params, memory: Memory, segment: Segment
    ) -> tuple[Array, tuple[Memory, SegmentScores]]:
        """The mean negative log-likelihood of the model itself, the memory after the segment, and the scores."""
        carry, cache = memory
        valid = segment.valid
        carry, states, logits = self.task.outputs(params, carry, segment.tokens[None], valid[None])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits[0], segment.targets)
        # A segment that is not full counts less: its gradient is noisier.
        loss = jnp.sum(jnp.where(valid, nll, 0.0)) / valid.size
        logits, states = jax.lax.stop_gradient((logits[0], states[0]))
        logp = jax.nn.log_softmax(logits / values.temperature, axis=-1)
        if cache is not None:
            cache, logp = read_with_cache(cache, values.cache, states, segment.targets, valid, logp)
        chosen = jnp.take_along_axis(logp, segment.targets[:, None], axis=-1)[:, 0]
        top_logp, top = jax.lax.top_k(logp, self.top)
        scores = SegmentScores(jnp.where(valid, chosen, 0.0), top.astype(jnp.int32), top_logp)
        return loss, ((carry, cache), scores)


class AdaptiveReader:
    """Reads one text in order, in pieces. ``state`` is everything that the next piece depends on.

    Args:
        task: The task, which has the method ``outputs``.
        params: The trained weights.
        carry: The carry of one row before the text.
        options: How to read.
        top: The number of most probable tokens to return at each position.

    Raises:
        UsageError: The model cannot adapt.
    """

    def __init__(self, task: Any, params: Params, carry: Carry, options: AdaptiveOptions, top: int = 0) -> None:
        if not hasattr(task, "outputs"):
            raise UsageError(
                "Only a recurrent language model can adapt, have a cache or another temperature, and this one is a "
                f"{type(task).__name__}: leave out --adapt, --cache and --temperature, or give another run."
            )
        self._params, self._options = params, options
        self._run: Callable[..., tuple[AdaptedState, SegmentScores]] = jitted.jit_dynamic_evaluation(
            ReadSegment(task, top)
        )
        cache, adapt = options.cache, options.adapt
        if cache is not None:
            tokens, valid = np.zeros((1, 1), np.int32), np.zeros((1, 1), bool)
            states = jax.eval_shape(task.outputs, params, carry, tokens, valid)[1]
            memory: Memory = carry, CacheState.empty(cache.size, states.shape[-1])
        else:
            memory = carry, None
        weight, sharpness = (0.0, 0.0) if cache is None else (cache.weight, cache.sharpness)
        self._values: Values = _float32(Values(options.temperature, CacheOptions(weight, sharpness)))
        self._rates = None if adapt is None else _float32(Rates(adapt.rate, adapt.decay))
        self._shape = max(1, CALL // options.segment), options.segment
        self.state = AdaptedState.start(params, memory)
        #: Seconds spent compiling.
        self.compile_seconds = 0.0

    @property
    def block(self) -> int:
        """Tokens of a call. All pieces but the last one need a multiple of this many tokens, or of a segment's."""
        return self._shape[0] * self._shape[1]

    def read(self, tokens: np.ndarray, targets: np.ndarray) -> Iterator[SegmentScores]:
        """Read ``tokens`` [n] and score the ``targets`` [n] that follow them, in parts.

        Raises:
            DivergedError: A log-probability is not a number.
        """
        if not self.compile_seconds:
            began = time.perf_counter()
            self._call(Segment(*(np.zeros(self._shape, kind) for kind in (np.int32, np.int32, bool))), 0)
            self.compile_seconds = time.perf_counter() - began
        for at in range(0, tokens.size, self.block):
            part = tokens[at : at + self.block], targets[at : at + self.block]
            yield self._read_block(*part)

    def _read_block(self, tokens: np.ndarray, targets: np.ndarray) -> SegmentScores:
        size, (_, length) = tokens.size, self._shape
        valid = np.arange(self.block) < size
        padded = (np.pad(each, (0, self.block - size)).astype(np.int32) for each in (tokens, targets))
        segments = Segment._make(each.reshape(self._shape) for each in (*padded, valid))
        scores = self._call(segments, -(-size // length))
        found = SegmentScores._make(np.asarray(each).reshape(self.block, *each.shape[2:])[:size] for each in scores)
        if np.isnan(found.logp).any():
            adapt = self._options.adapt
            raise DivergedError(
                "A log-probability is not a number: "
                + ("the model has diverged." if adapt is None else f"the weights diverged at the rate {adapt.rate:g}.")
                + " Give a smaller --adapt-rate, or another run."
            )
        return found

    def _call(self, segments: Segment, count: int) -> SegmentScores:
        args = self._params, self._values, self.state, segments, np.int32(count), self._rates
        self.state, scores = self._run(*args)
        return jax.block_until_ready(scores)


def _float32(tree: Any) -> Any:
    return jax.tree.map(np.float32, tree)
