"""The decode loop: draw a token, step the model, repeat. It runs on the device at O(1) cost per token.

Samples are reproducible. Sample i of seed s draws its t-th token with the key ``fold_in(fold_in(key(s), i), t)``, where
t counts generated tokens. It therefore depends neither on other samples nor on how the text is split into chunks. The
number of rows in a matrix product can change float bits, so rows are decoded in blocks of a fixed size B (sample i is
row i % B of block i // B), and prompts are read one row at a time in chunks of ``PREFILL_CHUNK`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, PyTree, UInt32

from jaxgen.errors import check_int
from jaxgen.sampling.transforms.base import Chain, Context, Kinds, Last, update_chain
from jaxgen.types import Array, ArrayLike, Carry, Key, RowKeys

#: Default number of rows decoded together. One row has the lowest latency. The bits of a sample depend on this number,
#: so it must not depend on the number of samples requested.
DECODE_ROWS = 1
#: Number of prompt tokens read at once. The bits of a sample depend on it too.
PREFILL_CHUNK = 64
#: The generator is pinned, so that JAX_DEFAULT_PRNG_IMPL cannot change samples.
PRNG = "threefry2x32"
MAX_SEED = 2**32 - 1

#: ``step(weights, carry, token) -> (carry, logits)``
Step = Callable[[PyTree, Carry, Int[Array, "B"]], tuple[Carry, Float[Array, "B V"]]]


class Drawn(NamedTuple):
    """Tokens and their log-probabilities under the model itself, in nats, before any transform.

    After a row's end-of-sequence token both are padding (``pad`` and 0).
    """

    tokens: Int[Array, "B T"]
    logp: Float[Array, "B T"]


class DecodeState(NamedTuple):
    """The state of the decode loop for B rows: everything the next token depends on."""

    carry: Carry
    logits: Float[Array, "B V"]  # of the next token
    transforms: tuple[PyTree, ...]
    done: Bool[ArrayLike, "B"]  # rows that have drawn the end-of-sequence token
    t: Int[ArrayLike, ""]  # number of tokens generated so far
    token: Int[ArrayLike, "B"]  # the last generated token; -1 before the first

    @classmethod
    def start(
        cls,
        chain: Chain,
        carry: Carry,
        logits: Float[Array, "B V"],
        *,
        prompt: ArrayLike | Sequence[int] = (),
        eos: int = -1,
        **known: Any,
    ) -> DecodeState:
        """The state of rows that have read ``prompt``, which transforms may look at.

        ``carry`` and ``logits`` are those after the prompt; ``known`` are other fields of the transforms' ``Context``.
        """
        rows, vocab = logits.shape
        states = chain.init(Context(rows, vocab, np.asarray(prompt, np.int32), eos, **known))
        return cls(carry, logits, states, np.zeros(rows, bool), *Last.none(rows))


def check_seed(seed: object) -> int:
    """``seed``, if it fits into 32 bits; JAX would silently wrap a larger one around."""
    return check_int("The seed", seed, 0, MAX_SEED)


def make_key(seed: object) -> Key:
    """The key that ``jax.random.key`` makes of ``seed`` by default, whatever the environment sets.

    ``JAX_RANDOM_SEED_OFFSET`` would be added to the seed, and ``JAX_ENABLE_X64`` lets the sum exceed 32 bits.
    """
    return jax.random.wrap_key_data(jax.device_put(np.array([0, check_seed(seed)], np.uint32)), impl=PRNG)


def sample_keys(seed: int, indices: Int[ArrayLike, "B"]) -> RowKeys:
    """The keys of the samples ``indices`` of ``seed``."""
    return _fold_in_each(np.array([0, check_seed(seed)], np.uint32), indices)


@jax.jit
def _fold_in_each(seed: UInt32[ArrayLike, "2"], indices: Int[ArrayLike, "B"]) -> RowKeys:
    key = jax.random.wrap_key_data(jnp.asarray(seed), impl=PRNG)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def draw(keys: RowKeys, t: Int[ArrayLike, ""] | int, logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The t-th token of every row, drawn from softmax(logits) in float32."""

    def one(key: Key, row: Float[Array, "V"]) -> Int[Array, ""]:
        return jax.random.categorical(jax.random.fold_in(key, t), row.astype(jnp.float32), mode="low")

    # Pinned, like PRNG: this JAX setting and the mode also change which tokens are drawn.
    with jax.threefry_partitionable(True):
        return jax.vmap(one)(keys, logits)


def perturbed(keys: RowKeys, t: Int[ArrayLike, ""] | int, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """The perturbed logits whose argmax ``draw`` returns (the Gumbel-max trick)."""

    def one(key: Key, row: Float[Array, "V"]) -> Float[Array, "V"]:
        noise = jax.random.gumbel(jax.random.fold_in(key, t), row.shape, jnp.float32, mode="low")
        return row.astype(jnp.float32) + noise

    with jax.threefry_partitionable(True):
        return jax.vmap(one)(keys, logits)


def decode(
    step: Step,
    kinds: Kinds,
    weights: PyTree,
    state: DecodeState,
    keys: RowKeys,
    *,
    length: int,
    greedy: bool,
    eos: Int[ArrayLike, ""] | int,
    pad: int,
) -> tuple[DecodeState, Drawn]:
    """Generate ``length`` tokens for each row. Splitting the length over several calls does not change the result.

    Args:
        step: the decoding step of the model.
        kinds: the classes of the transforms whose states are in ``state`` (``Chain.kinds``).
        weights: the weights of ``step``.
        state: where to start.
        keys: one key per row, from ``sample_keys``.
        length: the number of tokens.
        greedy: take the most probable token (the lowest id among equals) instead of drawing one.
        eos: the end-of-sequence token; -1 if there is none.
        pad: the token after the end.

    Example:
        >>> from jaxgen.sampling.decode import DecodeState, sample_keys
        >>> step = lambda weights, carry, token: (carry, jax.nn.one_hot(token + 1, 4))  # after token i comes i + 1
        >>> state = DecodeState.start(jaxgen.chain(), (), jax.nn.one_hot(jnp.array([0]), 4))
        >>> keys = sample_keys(0, jnp.arange(1))
        >>> state, drawn = jaxgen.decode(step, (), None, state, keys, length=4, greedy=True, eos=-1, pad=0)
        >>> drawn.tokens.tolist()
        [[0, 1, 2, 3]]
    """

    def one(state: DecodeState, _: None) -> tuple[DecodeState, Drawn]:
        transforms, drawn = _draw_next(kinds, greedy, pad, state, keys)
        carry, logits = step(weights, state.carry, drawn.tokens)
        done = state.done | (drawn.tokens == eos)
        return DecodeState(carry, logits, transforms, done, state.t + 1, drawn.tokens), drawn

    state, drawn = lax.scan(one, state, None, length=length)
    return state, Drawn(drawn.tokens.T, drawn.logp.T)


def decode_rows(
    step: Step,
    kinds: Kinds,
    weights: PyTree,
    states: DecodeState,
    keys: RowKeys,
    *,
    length: int,
    greedy: bool,
    eos: Int[ArrayLike, ""] | int,
    pad: int,
) -> tuple[DecodeState, Drawn]:
    """``decode`` of one block of R rows that began at different times and have transforms with different options.

    Every leaf of ``states`` has a leading axis R before the state of a block of one row, ``keys`` are [R, 1], and the
    outputs are [R, 1, T]. The model steps all rows together. So a row gets the bits that it has in a block of R rows
    that ``decode`` generates.
    """

    def one(states: DecodeState, _: None) -> tuple[DecodeState, Drawn]:
        transforms, drawn = jax.vmap(partial(_draw_next, kinds, greedy, pad))(states, keys)
        carry, logits = step(weights, jax.tree.map(lambda a: a[:, 0], states.carry), drawn.tokens[:, 0])
        carry, logits = jax.tree.map(lambda a: a[:, None], (carry, logits))
        done = states.done | (drawn.tokens == eos)
        return DecodeState(carry, logits, transforms, done, states.t + 1, drawn.tokens), drawn

    states, drawn = lax.scan(one, states, None, length=length)
    return states, Drawn(*(jnp.moveaxis(each, 0, -1) for each in drawn))


def _draw_next(
    kinds: Kinds, greedy: bool, pad: int, state: DecodeState, keys: RowKeys
) -> tuple[tuple[PyTree, ...], Drawn]:
    """The next token of every row with its log-probability, [B] each, and the transforms' states after it."""
    plain = state.logits.astype(jnp.float32)
    transforms, logits = update_chain(kinds, state.transforms, plain, Last(state.t, state.token))
    token = jnp.argmax(logits, axis=-1) if greedy else draw(keys, state.t, logits)
    token = jnp.where(state.done, pad, token).astype(jnp.int32)
    return transforms, Drawn(token, jnp.where(state.done, 0.0, log_probability(plain, token)))


def log_probability(logits: Float[Array, "*batch V"], token: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log softmax(logits)[token], in nats."""
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def prefill_chunks(
    tokens: Int[np.ndarray, "length"], chunk: int = PREFILL_CHUNK
) -> list[tuple[Int[np.ndarray, "1 chunk"], Bool[np.ndarray, "1 chunk"]]]:
    """A prompt as masked chunks of a fixed shape: a list of (tokens, valid)."""
    pieces = []
    for start in range(0, len(tokens), chunk):
        piece = np.asarray(tokens[start : start + chunk], np.int32)
        padded = np.pad(piece, (0, chunk - piece.size))
        pieces.append((padded[None], (np.arange(chunk) < piece.size)[None]))
    return pieces
