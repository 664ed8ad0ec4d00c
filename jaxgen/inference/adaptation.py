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
    """How a text is read: with weights that adapt, a cache, and another temperature, or by default as the model is.

    Args:
        adapt: How the weights adapt.
        cache: The neural cache.
        temperature: Divides the logits.

    Example:
        >>> jaxgen.AdaptiveOptions(jaxgen.Adaptation()).plain, jaxgen.AdaptiveOptions().plain
        (False, True)
    """

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
    def for_scorer(self) -> dict[str, Any]:
        """The arguments of ``Scorer``."""
        return {"adapt": self.adapt, "cache": self.cache, "temperature": self.temperature}

    @property
    def segment(self) -> int:
        """Tokens of a segment."""
        return Adaptation.segment if self.adapt is None else self.adapt.segment


class Segment(NamedTuple):
    """Inputs of a segment and the tokens that follow them; the last segment of a text is filled up."""

    tokens: Any  # int32 [T]
    targets: Any  # int32 [T]
    valid: Any  # bool [T]


#: The weights of each model of a mixture; ``None`` stands for one.
MemberParams = tuple[Any, ...]


class Values(NamedTuple):
    """What the distributions depend on beside the weights that adapt, as arrays: other values need no compilation."""

    temperature: Any  # float32
    cache: CacheOptions
    fixed: MemberParams  # the weights of the members that do not adapt
    mixture: Any  # what the weights of a mixture depend on


class SegmentScores(NamedTuple):
    """The log-probability of each target, and the most probable tokens with theirs."""

    logp: Any  # float32 [T], nats
    top: Any  # int32 [T, top]
    top_logp: Any  # float32 [T, top]


#: The carry of each member, and its neural cache if it has one.
Memory = tuple[tuple[Carry, CacheState | None], ...]


@dataclass(frozen=True)
class ReadSegment:
    """Reads a segment of one text with the members of a task: what ``dynamic_evaluation`` calls. Pure.

    ``params`` are the weights of each member that adapts, and ``None`` for the others.
    """

    task: Any
    top: int = 0

    def __call__(
        self, values: Values, params: MemberParams, memory: Memory, segment: Segment
    ) -> tuple[Array, tuple[Memory, SegmentScores]]:
        """What the weights are to lower, the memory after the segment, and the scores of its targets.

        The first is the sum of the members' own mean negative log-likelihoods: each adapts as it would alone.
        """
        members, loss, after, found = members_of(self.task), jnp.zeros(()), [], []
        for member, own, fixed, before in zip(members, params, values.fixed, memory):
            cost, memory_after, logp = _read_member(member, fixed if own is None else own, values, before, segment)
            loss += 0.0 if own is None else cost
            after.append(memory_after)
            found.append(logp)
        logp = found[0] if values.mixture is None else self.task.mix(values.mixture, found)
        chosen = jnp.take_along_axis(logp, segment.targets[:, None], axis=-1)[:, 0]
        top_logp, top = jax.lax.top_k(logp, self.top)
        scores = SegmentScores(jnp.where(segment.valid, chosen, 0.0), top.astype(jnp.int32), top_logp)
        return loss, (tuple(after), scores)


def _read_member(
    member: Any, params: Params, values: Values, memory: tuple[Carry, CacheState | None], segment: Segment
) -> tuple[Array, tuple[Carry, CacheState | None], Array]:
    """The mean negative log-likelihood of one model itself, its memory, and its log-probabilities [T, V]."""
    carry, cache = memory
    valid = segment.valid
    carry, states, logits = member.outputs(params, carry, segment.tokens[None], valid[None])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits[0], segment.targets)
    # A segment that is not full counts less: its gradient is noisier.
    loss = jnp.sum(jnp.where(valid, nll, 0.0)) / valid.size
    logits, states = jax.lax.stop_gradient((logits[0], states[0]))
    if not states.shape[-1]:  # a model that is counted: its probabilities stay as they are
        return loss, (carry, cache), jax.nn.log_softmax(logits, axis=-1)
    logp = jax.nn.log_softmax(logits / values.temperature, axis=-1)
    if cache is not None:
        cache, logp = read_with_cache(cache, values.cache, states, segment.targets, valid, logp)
    return loss, (carry, cache), logp


def members_of(task: Any) -> tuple[Any, ...]:
    """The models of a mixture, or the one model of another task."""
    members: tuple[Any, ...] = getattr(task, "members", (task,))
    return members


def can_adapt(params: Params) -> bool:
    """Whether gradient descent can change ``params``: those of a model that is counted hold whole numbers."""
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))


def split_params(task: Any, params: Params) -> tuple[MemberParams, MemberParams]:
    """The weights of each member that adapts, and of each that does not."""
    every = params["members"] if hasattr(task, "members") else (params,)
    return tuple(p if can_adapt(p) else None for p in every), tuple(None if can_adapt(p) else p for p in every)


def join_params(task: Any, params: Params, adapted: MemberParams) -> Params:
    """``params`` with the weights of the members that have adapted."""
    if not hasattr(task, "members"):
        return params if adapted[0] is None else adapted[0]
    pairs = zip(params["members"], adapted)
    return {**params, "members": tuple(old if new is None else new for old, new in pairs)}


class AdaptiveReader:
    """Reads one text in order, in pieces. ``state`` is everything that the next piece depends on.

    Args:
        task: The task: a language model, or a mixture of some.
        params: The trained weights.
        carry: The carry of one row before the text.
        options: How to read.
        top: The number of most probable tokens to return at each position.
        state: Where an earlier reader of the same models, without a cache, ended.

    Raises:
        UsageError: No model in it can adapt.
    """

    def __init__(
        self,
        task: Any,
        params: Params,
        carry: Carry,
        options: AdaptiveOptions,
        top: int = 0,
        state: AdaptedState | None = None,
    ) -> None:
        members = members_of(task)
        self._trained, fixed = split_params(task, params)
        if all(each is None for each in self._trained) or not all(hasattr(each, "outputs") for each in members):
            raise UsageError(
                "Only a recurrent network can adapt, have a cache or another temperature, and this model has none: "
                "leave out --adapt, --cache and --temperature, or give another run."
            )
        self._options, cache, adapt = options, options.cache, options.adapt
        carries = carry if hasattr(task, "members") else (carry,)
        memory = []
        for member, own, before in zip(members, self._trained, carries):
            kept = None if cache is None or own is None else _empty_cache(member, own, before, cache.size)
            memory.append((before, kept))
        self._run: Callable[..., tuple[AdaptedState, SegmentScores]] = jitted.jit_dynamic_evaluation(
            ReadSegment(task, top)
        )
        weight, sharpness = (0.0, 0.0) if cache is None else (cache.weight, cache.sharpness)
        mixture = {name: params[name] for name in ("bias", "slope")} if hasattr(task, "members") else None
        numbers = _float32((options.temperature, CacheOptions(weight, sharpness)))
        self._values = Values(numbers[0], numbers[1], fixed, mixture)
        self._rates = None if adapt is None else _float32(Rates(adapt.rate, adapt.decay))
        self._shape = max(1, CALL // options.segment), options.segment
        start = AdaptedState.start(self._trained, tuple(memory)) if state is None else state
        self.state = jax.tree.map(jnp.copy, start)  # each call donates it
        #: Seconds spent compiling.
        self.compile_seconds = 0.0

    @property
    def carry(self) -> Carry:
        """The carry of the task after the text."""
        carries = tuple(carry for carry, _ in self.state.carry)
        return carries if self._values.mixture is not None else carries[0]

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
        padded = [np.pad(each, (0, self.block - size)).astype(np.int32) for each in (tokens, targets)]
        segments = Segment(*(each.reshape(self._shape) for each in (*padded, valid)))
        scores = self._call(segments, -(-size // length))
        found = SegmentScores(*(np.asarray(each).reshape(self.block, *each.shape[2:])[:size] for each in scores))
        if np.isnan(found.logp).any():
            adapt = self._options.adapt
            raise DivergedError(
                "A log-probability is not a number: "
                + ("the model has diverged." if adapt is None else f"the weights diverged at the rate {adapt.rate:g}.")
                + " Give a smaller --adapt-rate, or another run."
            )
        return found

    def _call(self, segments: Segment, count: int) -> SegmentScores:
        args = self._trained, self._values, self.state, segments, np.int32(count), self._rates
        self.state, scores = self._run(*args)
        return jax.block_until_ready(scores)


def _empty_cache(member: Any, params: Params, carry: Carry, size: int) -> CacheState:
    one = np.zeros((1, 1), np.int32)
    return CacheState.empty(size, jax.eval_shape(member.outputs, params, carry, one, one > 0)[1].shape[-1])


def _float32(tree: Any) -> Any:
    return jax.tree.map(np.float32, tree)
