"""Counting n-grams, and their interpolated modified Kneser-Ney probabilities, in NumPy.

For a context h (the tokens before w) and h' (h without its first token):

    p(w | h) = (a(h w) - D(a(h w))) / sum_v a(h v) + backoff(h) p(w | h'),
    backoff(h) = sum_v D(a(h v)) / sum_v a(h v),

The recursion ends at the unigrams, which are interpolated with the uniform distribution, so no token has probability 0.
For the longest n-grams, a is the count. For shorter ones it is the number of different tokens that precede them (Kneser
& Ney 1995), except at the beginning of a text, where nothing can precede them and a is the count. The discounts D(1),
D(2) and D(3 and more) follow from each order's counts of counts (Chen & Goodman 1999, section 3, "modified Kneser-Ney
smoothing").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.baselines.ngram.model import NGram
from jaxgen.errors import DataError, UsageError

#: Discounts of an order whose counts of counts give no valid ones, for example if there are too few n-grams.
FALLBACK = (0.5, 1.0, 1.5)
#: Node numbers are int32, JAX's default integer type.
MAX_NODES = 2**31 - 1


class Level(NamedTuple):
    """The distinct n-grams of one length, sorted by their tokens."""

    parent: np.ndarray  # index in the previous level of the n-gram without its last token
    token: np.ndarray  # its last token
    suffix: np.ndarray  # index in the previous level of the n-gram without its first token
    counts: np.ndarray  # number of occurrences
    begins: np.ndarray  # whether it starts at the beginning of a text


def fit(tokens: Any, vocab_size: int, order: int, eos: int) -> tuple[NGram, dict[str, jax.Array]]:
    """Fit an n-gram model of up to ``order`` tokens to ``tokens`` [N]; return the model and its parameters.

    Every ``eos`` ends a text and begins the next one, and no n-gram spans two texts. The token ``eos`` is predicted at
    the end of a text and is the context at its beginning. Tokens without ``eos`` are a single text. Counting needs
    about 50 bytes of memory per token.

    Raises:
        UsageError: for ids outside the vocabulary.
        DataError: for no text or too many different n-grams.
    """
    ids = np.asarray(tokens)
    if ids.size == 0:
        raise DataError("There are no tokens to count n-grams of. Give more text.")
    if not 0 <= eos < vocab_size:
        raise UsageError(f"There is no token {eos} to end a text: ids go from 0 to {vocab_size - 1}.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocab_size:
        raise UsageError(
            f"N-grams are counted of ids from 0 to {vocab_size - 1} in one row: encode the text with its tokenizer."
        )
    model = NGram(vocab_size, order, vocab_size + 1, 1)  # checks both arguments before counting
    levels = count(np.concatenate([[eos], ids]), vocab_size, model.order, eos)
    params = {name: jnp.asarray(leaf) for name, leaf in smooth(levels).items()}
    return NGram(vocab_size, order, params["token"].size, params["backoff"].size), params


def count(text: np.ndarray, vocab_size: int, order: int, eos: int) -> list[Level]:
    """Count the n-grams of ``text``, which begins with ``eos``; return one level for each length from 1 to ``order``.

    The first level has the whole vocabulary. An n-gram is its first token followed by a shorter n-gram. So positions
    sorted by the shorter n-grams, then stably sorted by the token in front, are sorted by the longer n-grams. For
    tokens of at most 16 bits NumPy's stable sort takes linear time.
    """
    narrow = text.astype(np.min_scalar_type(vocab_size - 1))
    place = text.astype(np.int32)  # index, in its level, of the n-gram that begins at each position
    begins = np.arange(vocab_size) == eos
    nothing = np.zeros(vocab_size, np.int32)
    first = np.bincount(text[1:], minlength=vocab_size)
    levels = [Level(nothing, np.arange(vocab_size, dtype=np.int32), nothing, first, np.zeros(vocab_size, bool))]
    at, total = np.argsort(narrow, kind="stable"), vocab_size
    for length in range(2, order + 1):
        at = at[at > 0] - 1
        if length > 2:  # drop n-grams with an ``eos`` inside: they span two texts
            at = at[narrow[at + 1] != eos]
        at = at[np.argsort(narrow[at], kind="stable")]
        token, behind = narrow[at], place[at + 1]
        differs = np.ones(at.size, bool)
        differs[1:] = (token[1:] != token[:-1]) | (behind[1:] != behind[:-1])
        heads = np.flatnonzero(differs)
        one = at[heads]  # one position of each n-gram
        begins = begins[place[one]]
        last, counts = text[one + length - 1].astype(np.int32), np.diff(heads, append=at.size)
        levels.append(Level(place[one], last, behind[heads], counts, begins))
        place[at] = np.cumsum(differs, dtype=np.int32) - 1
        total += heads.size
        if total > MAX_NODES:
            raise DataError(f"This text has more than {MAX_NODES:,} different n-grams. Give a smaller --order.")
    return levels


def smooth(levels: list[Level]) -> dict[str, np.ndarray]:
    """Return the parameters of ``NGram``: the concatenated levels, with log-probabilities.

    Node 0 is the empty context. The nodes of the vocabulary follow, then those of the pairs, and so on.
    """
    vocab = levels[0].token.size
    probability, logp, token = np.full(1, 1 / vocab), [np.zeros(1)], [np.zeros(1, np.int64)]
    backoff, children = [np.zeros(1)], [np.zeros(1, np.int64)]
    for level, longer in zip(levels, [*levels[1:], None]):
        share = level.counts if longer is None else preceded(level, longer)
        discount = np.array([0.0, *discounts(share)])[np.minimum(share, 3)]
        contexts = probability.size
        total, taken = (np.bincount(level.parent, each, contexts) for each in (share, discount))
        total = np.where(total > 0, total, 1.0)  # avoids 0 / 0 for contexts without successors
        left = taken / total
        probability = (share - discount) / total[level.parent] + left[level.parent] * probability[level.suffix]
        logp.append(np.log(probability))
        token.append(level.token)
        if level is not levels[0]:
            backoff.append(np.log(np.where(left > 0, left, 1.0)))
            children.append(np.bincount(level.parent, minlength=contexts))
    first = 1 + vocab + np.concatenate([[0], np.cumsum(np.concatenate(children))])
    return {
        "backoff": np.concatenate(backoff).astype(np.float32),
        "first": first.astype(np.int32),
        "logp": np.concatenate(logp).astype(np.float32),
        "token": np.concatenate(token).astype(np.int32),
    }


def preceded(level: Level, longer: Level) -> np.ndarray:
    """Return how many different tokens precede each n-gram; for those that begin a text, their count."""
    return np.where(level.begins, level.counts, np.bincount(longer.suffix, minlength=level.token.size))


def discounts(counts: np.ndarray) -> tuple[float, ...]:
    """Return the discounts of n-grams with counts 1, 2, and 3 or more (Chen & Goodman 1999, section 3)."""
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == i)) for i in range(1, 5))
    if min(n1, n2, n3, n4) == 0:
        return FALLBACK
    share = n1 / (n1 + 2 * n2)
    found = (1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3)
    return found if all(0 < value < most for most, value in enumerate(found, start=1)) else FALLBACK
