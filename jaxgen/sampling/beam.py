"""Beam search of width W over any step function, for B problems at once.

A hypothesis y of n tokens, including the end-of-sequence token, has the score

    score(y) = log p(y) / n^alpha,    log p(y) = sum_t log p(y_t | y_<t)    (nats)

This is the length penalty of Hugging Face's ``generate`` and of fairseq: alpha = 0 ranks by probability, alpha = 1 by
the mean log-probability per token, and larger values favour longer texts. (Wu et al. 2016, arXiv:1609.08144, section 7,
divide by ((5 + n) / 6)^alpha instead.)

Each step extends every running beam by every token. Extensions that end, and rank among the W most probable, are stored
as finished. The W most probable extensions that do not end become the new beams, so a finished hypothesis does not
reduce the number of beams. The search stops when W hypotheses have finished ("first come, first served", Kasai et al.
2022, arXiv:2204.05424, section 2), so W = 1 is greedy decoding. It stops earlier if no running hypothesis can still
reach the N best. At the length limit the running hypotheses count as finished.

The bound: log p never increases, so the continuations of a running hypothesis score at most
log p / max(m^alpha, L^alpha), where m is the shortest length at which it can end and L is the limit. Once the N-th best
finished hypothesis scores at least that, the result is final.

Ties: the lower beam comes first; within a beam the token with the larger logit, then the lower id. Of hypotheses with
equal scores the one that finished first ranks first.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from jaxgen.errors import UsageError, check_int
from jaxgen.sampling.decode import Step
from jaxgen.sampling.transforms.base import Chain, Context, Kinds, Last, update_chain
from jaxgen.types import Array, ArrayLike, Carry

MAX_WIDTH = 1_024
#: Its powers times a log-probability stay well inside the range of float32.
MAX_BEAM_LENGTH = 100_000


class Hypotheses(NamedTuple):
    """The N best hypotheses of each of B problems, best first. Unused places have length 0 and score -inf."""

    tokens: Int[Array, "B N L"]  # padded after the end
    lengths: Int[Array, "B N"]  # including the end-of-sequence token
    logp: Float[Array, "B N"]  # nats
    scores: Float[Array, "B N"]  # logp / length^alpha
    steps: Int[Array, ""]  # the number of steps that the loop ran


class _Finished(NamedTuple):
    """Finished hypotheses, best first. Their last token is candidate ``slot`` of step ``length - 1``."""

    score: Float[Array, "B N"]
    logp: Float[Array, "B N"]
    length: Int[Array, "B N"]
    slot: Int[Array, "B N"]


class _Candidates(NamedTuple):
    """The most probable extensions of the running beams, in order."""

    logp: Float[Array, "B candidates"]
    beam: Int[Array, "B candidates"]
    token: Int[Array, "B candidates"]


class _Trail(NamedTuple):
    """The candidates of every step; ``parent`` is the candidate of the previous step that each extends."""

    token: Int[Array, "L B candidates"]
    parent: Int[Array, "L B candidates"]


class _Search(NamedTuple):
    carry: Carry  # B * W beams: row b * W + w is beam w of problem b
    logits: Float[Array, "beams V"]  # of the next token
    transforms: tuple[PyTree, ...]
    token: Int[Array, "beams"]  # the last one; -1 before the first
    logp: Float[Array, "B W"]  # in descending order; -inf for an unused beam
    slot: Int[Array, "B W"]  # each beam as an index into the candidates of the last step
    trail: _Trail
    finished: _Finished
    ended: Int[Array, "B"]  # number of finished hypotheses
    done: Bool[Array, "B"]
    t: Int[Array, ""]  # number of steps so far


def check_beam(width: int, length: int, n_best: int) -> tuple[int, int, int]:
    """Returns the sizes of a beam search as Python integers. Raises ``UsageError`` for invalid ones."""
    width = check_int("The beam width", width, 1, MAX_WIDTH)
    length = check_int("The length", length, 1, MAX_BEAM_LENGTH)
    return width, length, check_int(f"The number of hypotheses to keep of {width} beams", n_best, 1, width)


def beam_states(chain: Chain, context: Context) -> tuple[PyTree, ...]:
    """The initial states of the transforms of a beam search.

    Raises:
        UsageError: if the state of a transform has a row axis. Such a transform (a repetition penalty, for example)
            tracks the tokens of each row, but beam search reorders its rows.
    """
    wider = context._replace(rows=context.rows + 1)
    for transform in chain.transforms:
        narrow, wide = (jax.tree.map(jnp.shape, transform.init(each)) for each in (context, wider))
        if narrow != wide:
            raise UsageError(
                f"{type(transform).__name__} tracks the tokens of each row, and beam search reorders rows: "
                "leave it out, or draw samples instead."
            )
    return chain.init(context)


def tile_beams(tree: PyTree, width: int) -> PyTree:
    """Each row of [B, ...] repeated W times, [B * W, ...]: the layout of the beams in ``beam_search``."""
    return jax.tree.map(lambda a: jnp.repeat(a, width, axis=0), tree)


def beam_search(
    step: Step,
    kinds: Kinds,
    weights: PyTree,
    carry: Carry,
    logits: Float[Array, "B V"],
    states: tuple[PyTree, ...],
    length_penalty: Float[ArrayLike, ""] | float,
    *,
    width: int,
    length: int,
    n_best: int,
    eos: Int[ArrayLike, ""] | int,
    pad: int,
) -> Hypotheses:
    """The ``n_best`` best hypotheses of each of B independent problems. The module docstring describes the search.

    Args:
        step: the decoding step. It is called with B * W rows; row b * W + w is beam w of problem b.
        kinds: the classes of the transforms. They are applied to the float32 logits before the softmax, so scores refer
            to the transformed distribution: the mass of a forbidden token goes to the others.
        weights: the weights of ``step``. Put what is constant during decoding (an encoder's states, laid out by
            ``tile_beams``) here rather than into ``carry``, which is reordered at every step.
        carry: where decoding starts, B rows in every leaf.
        logits: those of the first token.
        states: the states of the transforms, from ``beam_states``.
        length_penalty: alpha, from -5 to 5; traced.
        width: the number of beams W.
        length: the maximum number of tokens.
        n_best: the number of hypotheses to return.
        eos: the end-of-sequence token. If it is -1 or forbidden, every hypothesis has the full length.
        pad: the token after the end.

    Raises:
        UsageError: for sizes out of range.
    """
    check_beam(width, length, n_best)
    batch = logits.shape[0]
    alpha = jnp.asarray(length_penalty, jnp.float32)

    def one(search: _Search) -> _Search:
        last = Last(search.t, search.token)
        transforms, left = update_chain(kinds, search.transforms, search.logits.astype(jnp.float32), last)
        found = _extensions(left, search.logp)
        trail = _Trail(
            search.trail.token.at[search.t].set(found.token),
            search.trail.parent.at[search.t].set(_take(search.slot, found.beam)),
        )
        # Masks instead of slices: with two slices of its result, XLA's CPU backend turns top_k into a full sort.
        places = jnp.broadcast_to(jnp.arange(found.token.shape[1], dtype=jnp.int32), found.token.shape)
        ends, generated = found.token == eos, search.t + 1
        ending = ends & (places < width) & (found.logp > -jnp.inf) & ~search.done[:, None]
        finished = _merged(search.finished, jnp.where(ending, found.logp, -jnp.inf), generated, places, alpha)
        ended = search.ended + jnp.sum(ending, axis=1, dtype=jnp.int32)

        logp, slot = lax.top_k(jnp.where(ends, -jnp.inf, found.logp), width)
        soonest = jnp.minimum(generated + 1, length)
        bound = jnp.max(logp, axis=1) / jnp.maximum(_norm(soonest, alpha), _norm(length, alpha))
        done = search.done | (ended >= width) | (bound <= finished.score[:, -1])

        rows = (jnp.arange(batch, dtype=jnp.int32)[:, None] * width + _take(found.beam, slot)).reshape(-1)
        token = _take(found.token, slot).reshape(-1)
        carry, logits = step(weights, jax.tree.map(lambda a: a[rows], search.carry), token)
        return _Search(carry, logits, transforms, token, logp, slot, trail, finished, ended, done, generated)

    search = _start(carry, logits, states, width, length, n_best)
    search = lax.while_loop(lambda search: (search.t < length) & ~jnp.all(search.done), one, search)
    running = jnp.where(search.done[:, None], -jnp.inf, search.logp)
    finished = _merged(search.finished, running, jnp.int32(length), search.slot, alpha)
    return Hypotheses(_traced(search.trail, finished, pad), finished.length, finished.logp, finished.score, search.t)


def _start(
    carry: Carry, logits: Float[Array, "B V"], states: tuple[PyTree, ...], width: int, length: int, n_best: int
) -> _Search:
    batch, vocab = logits.shape
    kept = min(2 * width, width * min(width + 1, vocab))
    nothing, none = jnp.full((batch, n_best), -jnp.inf), jnp.zeros((batch, n_best), jnp.int32)
    zeros = jnp.zeros((batch, width), jnp.int32)
    empty = jnp.zeros((length, batch, kept), jnp.int32)
    return _Search(
        carry=tile_beams(carry, width),
        logits=tile_beams(logits, width),
        transforms=states,
        token=jnp.full(batch * width, -1, jnp.int32),
        # All beams of a problem start identical, so only the first is extended.
        logp=jnp.full((batch, width), -jnp.inf).at[:, 0].set(0.0),
        slot=zeros,
        trail=_Trail(empty, empty),
        finished=_Finished(nothing, nothing, none, none),
        ended=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        t=jnp.zeros((), jnp.int32),
    )


def _extensions(logits: Float[Array, "beams V"], logp: Float[Array, "B W"]) -> _Candidates:
    """The (at most 2W) most probable extensions of beams with log-probability ``logp`` and next-token ``logits``.

    Each beam has one ending extension, so at most W of the 2W end and at least W can continue. For the same reason
    W + 1 candidates per beam are enough. A beam's candidates are selected by their logits, not by their sums with the
    beam's log p: rounding those sums could change the order of its tokens.
    """
    batch, width = logp.shape
    ordered = jnp.where(logits == 0, 0.0, logits)  # top_k ranks -0.0 after 0.0; argmax treats them as equal
    values, token = lax.top_k(ordered, min(width + 1, logits.shape[-1]))  # 2-D: on a CPU this avoids a full sort
    values = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    each = values.shape[-1]
    total = (logp[:, :, None] + values.reshape(batch, width, each)).reshape(batch, -1)
    total, place = lax.top_k(total, min(2 * width, width * each))
    return _Candidates(total, place // each, _take(token.reshape(batch, -1), place))


def _merged(
    finished: _Finished,
    logp: Float[Array, "B more"],
    length: Int[Array, ""],
    slot: Int[Array, "B more"],
    alpha: Float[Array, ""],
) -> _Finished:
    """``finished`` and more hypotheses of the same length; entries with ``logp`` -inf are ignored."""
    more = _Finished(logp / _norm(length, alpha), logp, jnp.broadcast_to(length, logp.shape), slot)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), finished, more)
    _, order = lax.top_k(both.score, finished.score.shape[1])
    return jax.tree.map(lambda a: _take(a, order), both)


def _traced(trail: _Trail, finished: _Finished, pad: int) -> Int[Array, "B N L"]:
    """The tokens of the finished hypotheses, found by following ``trail`` from their ends backwards."""

    def back(slot: Int[Array, "B N"], at: tuple[Array, _Trail]) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        t, candidates = at
        inside = t < finished.length
        token = jnp.where(inside, _take(candidates.token, slot), pad)
        return jnp.where(inside, _take(candidates.parent, slot), slot), token

    steps = jnp.arange(trail.token.shape[0], dtype=jnp.int32)
    _, tokens = lax.scan(back, finished.slot, (steps, trail), reverse=True)
    return tokens.transpose(1, 2, 0)


def _norm(length: Int[Array, ""] | int, alpha: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(length, jnp.float32) ** alpha


def _take(values: Shaped[Array, "B values"], places: Int[Array, "B places"]) -> Shaped[Array, "B places"]:
    """``values`` at the indices ``places`` of each row."""
    return jnp.take_along_axis(values, places, axis=1)
