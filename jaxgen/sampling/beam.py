"""Beam search: the W likeliest beginnings side by side, for any step function and B problems at once.

A hypothesis y of n tokens, the end-of-sequence token counted, has the score

    score(y) = log p(y) / n^alpha,    log p(y) = sum_t log p(y_t | y_<t)    (nats)

which is the length penalty of Hugging Face's ``generate`` and of fairseq: 0 ranks by probability, 1 by the mean
log-probability of a token, larger favours longer texts. (Wu et al. 2016, arXiv:1609.08144, section 7, divide by
((5 + n) / 6)^alpha instead.)

The search, at each step: every running beam is extended by every token. Of the extensions that rank among the W
likeliest, those that end are finished and set apart; the W likeliest that do not end run on, so that a finished
hypothesis takes no beam from the others. It stops when W hypotheses have finished ("first come, first served", Kasai et
al. 2022, arXiv:2204.05424, section 2), which makes W = 1 the greedy decode loop; or, earlier, when no running one can
come among the N best any more. At the length limit the running ones count as finished.

The bound: log p never grows, so what a running hypothesis becomes scores at most log p / max(m^alpha, L^alpha), with
m the least length that it can end at and L the limit. Once the N-th best finished is no worse, nothing can change.

Ties: the lower beam first; within a beam the token of the larger logit, then the lower id. Between hypotheses of equal
scores the one that finished first stays in front.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.sampling.decode import Step
from jaxgen.sampling.transforms.base import Chain, Context, Kinds, Last, check_whole, update_chain
from jaxgen.types import Array, Carry

MAX_WIDTH = 1_024
#: Powers of it, times a log-probability, stay far inside float32.
MAX_BEAM_LENGTH = 100_000


class Hypotheses(NamedTuple):
    """The N best of each of B problems, the best first. Where there are fewer, lengths are 0 and scores -inf."""

    tokens: Array  # [B, N, L] int32, padded behind the end
    lengths: Array  # [B, N] int32, the end-of-sequence token counted
    logp: Array  # [B, N], nats
    scores: Array  # [B, N], logp / length^alpha
    steps: Array  # int32, how many steps the loop made for all B


class _Finished(NamedTuple):
    """Hypotheses [B, N] set apart, the best first: candidate ``slot`` of step ``length - 1`` is their last token."""

    score: Array
    logp: Array
    length: Array
    slot: Array


class _Candidates(NamedTuple):
    """The likeliest extensions [B, K] of the running beams, the likeliest first."""

    logp: Array
    beam: Array
    token: Array


class _Trail(NamedTuple):
    """The candidates of every step, [L, B, K], and which candidate of the step before each extends."""

    token: Array
    parent: Array


class _Search(NamedTuple):
    carry: Carry  # rows b * W + w
    logits: Array  # [B * W, V], of the next token
    transforms: tuple[Any, ...]
    token: Array  # [B * W], the last one; -1 before the first
    logp: Array  # [B, W], falling; -inf for a beam that is not in use
    slot: Array  # [B, W], the candidate of the last step that each beam is
    trail: _Trail
    finished: _Finished
    ended: Array  # [B], how many hypotheses have finished
    done: Array  # [B]
    t: Array  # int32, steps made


def check_beam(width: int, length: int, n_best: int) -> None:
    """Raise ``UsageError`` for sizes of a search that cannot be used."""
    check_whole("A beam width", width, 1, MAX_WIDTH)
    check_whole("A length", length, 1, MAX_BEAM_LENGTH)
    if isinstance(n_best, bool) or not isinstance(n_best, int) or not 1 <= n_best <= width:
        raise UsageError(
            f"{n_best} hypotheses cannot be kept from {width} beams: give a whole number from 1 to {width}."
        )


def beam_states(chain: Chain, context: Context) -> tuple[Any, ...]:
    """The states of the transforms of a beam search. Raises ``UsageError`` for one whose state has rows.

    Such a transform (a repetition penalty, say) remembers what each row has drawn, and beams change places.
    """
    wider = context._replace(rows=context.rows + 1)
    for transform in chain.transforms:
        narrow, wide = (jax.tree.map(jnp.shape, transform.init(each)) for each in (context, wider))
        if narrow != wide:
            raise UsageError(
                f"{type(transform).__name__} remembers what each row has drawn, which beam search cannot follow: "
                "leave it out, or draw samples instead."
            )
    return chain.init(context)


def tile_beams(tree: Any, width: int) -> Any:
    """Arrays [B, ...] as [B * W, ...], row b * W + w being row b: how ``beam_search`` lays its beams out."""
    return jax.tree.map(lambda a: jnp.repeat(a, width, axis=0), tree)


def beam_search(
    step: Step,
    kinds: Kinds,
    weights: Any,
    carry: Carry,
    logits: Array,
    states: tuple[Any, ...],
    length_penalty: Array | float,
    *,
    width: int,
    length: int,
    n_best: int,
    eos: int,
    pad: int,
) -> Hypotheses:
    """The ``n_best`` hypotheses of at most ``length`` tokens for each of B problems; this module says how.

    ``carry`` has B rows in every leaf and ``logits`` [B, V] are those of the first token. ``step`` is called with
    B * W rows, row b * W + w being beam w of problem b, and its carry is reordered at every step: what stays the same
    throughout (an encoder's states) costs less among the ``weights``, laid out by ``tile_beams``. Problems do not see
    each other; the number of rows in a product can change float bits, as everywhere.

    ``kinds`` and ``states`` are transforms as in ``decode``, their states without rows (``beam_states``). They act on
    the logits in float32 ahead of the softmax, so that scores are of the distribution they leave: a forbidden token has
    no mass and the others share it. With ``eos=-1``, or forbidden, every hypothesis has the whole length.
    ``length_penalty`` (alpha, from -5 to 5) is traced; sizes are static, and ``UsageError`` is raised for those out of
    range.
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
        # Whole arrays with masks, no slices of them: two slices of what top_k gives make a full sort of it on a CPU.
        places = jnp.broadcast_to(jnp.arange(found.token.shape[1], dtype=jnp.int32), found.token.shape)
        ends, made = found.token == eos, search.t + 1
        ending = ends & (places < width) & (found.logp > -jnp.inf) & ~search.done[:, None]
        finished = _merged(search.finished, jnp.where(ending, found.logp, -jnp.inf), made, places, alpha)
        ended = search.ended + jnp.sum(ending, axis=1, dtype=jnp.int32)

        logp, slot = lax.top_k(jnp.where(ends, -jnp.inf, found.logp), width)
        bound = jnp.max(logp, axis=1) / jnp.maximum(_norm(jnp.minimum(made + 1, length), alpha), _norm(length, alpha))
        done = search.done | (ended >= width) | (bound <= finished.score[:, -1])

        rows = (jnp.arange(batch, dtype=jnp.int32)[:, None] * width + _take(found.beam, slot)).reshape(-1)
        token = _take(found.token, slot).reshape(-1)
        carry, logits = step(weights, jax.tree.map(lambda a: a[rows], search.carry), token)
        return _Search(carry, logits, transforms, token, logp, slot, trail, finished, ended, done, made)

    search = _start(carry, logits, states, width, length, n_best, pad)
    search = lax.while_loop(lambda search: (search.t < length) & ~jnp.all(search.done), one, search)
    running = jnp.where(search.done[:, None], -jnp.inf, search.logp)
    finished = _merged(search.finished, running, jnp.int32(length), search.slot, alpha)
    return Hypotheses(_traced(search.trail, finished, pad), finished.length, finished.logp, finished.score, search.t)


def _start(
    carry: Carry, logits: Array, states: tuple[Any, ...], width: int, length: int, n_best: int, pad: int
) -> _Search:
    batch, vocab = logits.shape
    candidates = min(2 * width, width * min(width + 1, vocab))
    nothing, none = jnp.full((batch, n_best), -jnp.inf), jnp.zeros((batch, n_best), jnp.int32)
    zeros = jnp.zeros((batch, width), jnp.int32)
    made = jnp.zeros((length, batch, candidates), jnp.int32)
    return _Search(
        carry=tile_beams(carry, width),
        logits=tile_beams(logits, width),
        transforms=states,
        token=jnp.full(batch * width, -1, jnp.int32),
        # All beams of a problem stand at one place: only the first is extended.
        logp=jnp.full((batch, width), -jnp.inf).at[:, 0].set(0.0),
        slot=zeros,
        trail=_Trail(made, made),
        finished=_Finished(nothing, nothing, none, none),
        ended=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        t=jnp.zeros((), jnp.int32),
    )


def _extensions(logits: Array, logp: Array) -> _Candidates:
    """The likeliest extensions of beams with ``logp`` [B, W] by tokens with ``logits`` [B * W, V]: at most 2W.

    Of 2W at most W end, so W that go on are among them. A beam gives W + 1 at most: W that go on and one that ends.
    They are taken by its logits: sums with a long text's log p round, and the order of its tokens must not.
    """
    batch, width = logp.shape
    ordered = jnp.where(logits == 0, 0.0, logits)  # top_k has -0.0 behind 0.0, argmax has them level
    values, token = lax.top_k(ordered, min(width + 1, logits.shape[-1]))  # of a matrix: no full sort on a CPU
    values = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    each = values.shape[-1]
    total = (logp[:, :, None] + values.reshape(batch, width, each)).reshape(batch, -1)
    total, place = lax.top_k(total, min(2 * width, width * each))
    return _Candidates(total, place // each, _take(token.reshape(batch, -1), place))


def _merged(finished: _Finished, logp: Array, length: Array, slot: Array, alpha: Array) -> _Finished:
    """The best of those that had finished and of more [B, M] of one length; -inf ``logp`` is none."""
    more = _Finished(logp / _norm(length, alpha), logp, jnp.broadcast_to(length, logp.shape), slot)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), finished, more)
    _, order = lax.top_k(both.score, finished.score.shape[1])
    return jax.tree.map(lambda a: _take(a, order), both)


def _traced(trail: _Trail, finished: _Finished, pad: int) -> Array:
    """The tokens [B, N, L] of finished hypotheses, followed from their ends to their beginnings."""

    def back(slot: Array, at: tuple[Array, _Trail]) -> tuple[Array, Array]:
        t, made = at
        inside = t < finished.length
        token = jnp.where(inside, _take(made.token, slot), pad)
        return jnp.where(inside, _take(made.parent, slot), slot), token

    steps = jnp.arange(trail.token.shape[0], dtype=jnp.int32)
    _, tokens = lax.scan(back, finished.slot, (steps, trail), reverse=True)
    return tokens.transpose(1, 2, 0)


def _norm(length: Array | int, alpha: Array) -> Array:
    return jnp.asarray(length, jnp.float32) ** alpha


def _take(values: Array, places: Array) -> Array:
    """values [B, N] at places [B, M] of each row."""
    return jnp.take_along_axis(values, places, axis=1)
