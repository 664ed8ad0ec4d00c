"""The decode loop: draw a token, step the model, repeat; on the device, O(1) a token.

Reproducibility (the first promise). Sample i of seed s draws its t-th token with the key
``fold_in(fold_in(key(s), i), t)``, t counting generated tokens, so that neither its neighbours nor the chunks in
which text is handed out can matter. Because the number of rows in a matrix product changes float bits, rows run in
blocks of a fixed number (sample i of blocks of R is row i % R of block i // R), and prompts one row at a time in chunks
of ``PREFILL_CHUNK``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.sampling.transforms.base import Chain, Context, Kinds, Last, update_chain
from jaxgen.types import Array, Carry, Key

#: Rows that decode together unless asked otherwise: by itself, one text is made soonest. Part of what fixes a sample's
#: bits: never chosen by how many samples are asked for.
DECODE_ROWS = 1
#: Tokens of prompt that are read at once. Fixes bits too.
PREFILL_CHUNK = 64
#: The generator is pinned: a user's JAX_DEFAULT_PRNG_IMPL must not change their samples.
PRNG = "threefry2x32"
MAX_SEED = 2**32 - 1

#: ``step(weights, carry, token [R]) -> (carry, logits [R, V])``
Step = Callable[[Any, Carry, Array], tuple[Carry, Array]]
#: ``prefill(weights, carry, logits [R, V], tokens [R, P], valid [R, P]) -> (carry, logits [R, V])``
Prefill = Callable[[Any, Carry, Array, Array, Array], tuple[Carry, Array]]


class Drawn(NamedTuple):
    """Tokens [R, T] and what the model itself gave each, before any transform: log-probabilities in nats, float32.

    Behind a row's end-of-sequence token both are padding (``pad`` and 0).
    """

    tokens: Array
    logp: Array


class DecodeState(NamedTuple):
    """Where R rows stand: everything the next token depends on."""

    carry: Carry
    logits: Array  # [R, V], of the next token
    transforms: tuple[Any, ...]
    done: Array  # [R], rows that have drawn the end-of-sequence token
    t: Array  # int32, tokens generated so far
    token: Array  # [R], the last of them; -1 before the first

    @classmethod
    def start(cls, chain: Chain, carry: Carry, logits: Array, *, prompt: Any = (), eos: int = -1) -> DecodeState:
        """Rows that have read ``prompt`` (for the transforms that go by it) and stand at ``carry`` and ``logits``."""
        rows, vocab = logits.shape
        states = chain.init(Context(rows, vocab, np.asarray(prompt, np.int32), eos))
        return cls(carry, logits, states, jnp.zeros(rows, bool), *Last.none(rows))


def check_seed(seed: int) -> int:
    """Return ``seed`` if JAX can tell it from every other seed; it wraps around silently beyond 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"A seed of {seed!r} cannot be used: give a whole number from 0 to {MAX_SEED}.")
    return seed


def sample_keys(seed: int, indices: Array) -> Key:
    """The keys of the samples ``indices`` [R] of ``seed``."""
    return _fold_in_each(jax.random.key(check_seed(seed), impl=PRNG), indices)


@jax.jit
def _fold_in_each(key: Key, indices: Array) -> Key:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def draw(keys: Key, t: Array, logits: Array) -> Array:
    """Draw the t-th token of every row from softmax(logits [R, V]) in float32."""

    def one(key: Key, row: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, t), row.astype(jnp.float32), mode="low")

    # Pinned like PRNG: two more settings of JAX (this one and the mode) would draw other tokens.
    with jax.threefry_partitionable(True):
        return jax.vmap(one)(keys, logits)


def perturbed(keys: Key, t: Array, logits: Array) -> Array:
    """The numbers [R, V] of which ``draw`` takes the largest (the Gumbel-max trick)."""

    def one(key: Key, row: Array) -> Array:
        noise = jax.random.gumbel(jax.random.fold_in(key, t), row.shape, jnp.float32, mode="low")
        return row.astype(jnp.float32) + noise

    with jax.threefry_partitionable(True):
        return jax.vmap(one)(keys, logits)


def decode(
    step: Step,
    kinds: Kinds,
    weights: Any,
    state: DecodeState,
    keys: Key,
    *,
    length: int,
    greedy: bool,
    eos: int,
    pad: int,
) -> tuple[DecodeState, Drawn]:
    """Generate ``length`` tokens a row: returns the new state and what was drawn.

    ``kinds`` are the classes of the transforms whose states ``state`` holds (``Chain.kinds``). ``greedy`` takes the
    likeliest token (the lowest id among equals) and draws nothing. Splitting a length into several calls
    changes no bit.
    """

    def one(state: DecodeState, _: None) -> tuple[DecodeState, Drawn]:
        plain = state.logits.astype(jnp.float32)
        transforms, logits = update_chain(kinds, state.transforms, plain, Last(state.t, state.token))
        token = jnp.argmax(logits, axis=-1) if greedy else draw(keys, state.t, logits)
        token = jnp.where(state.done, pad, token).astype(jnp.int32)
        logp = jnp.where(state.done, 0.0, log_probability(plain, token))
        carry, logits = step(weights, state.carry, token)
        done = state.done | (token == eos)
        return DecodeState(carry, logits, transforms, done, state.t + 1, token), Drawn(token, logp)

    state, drawn = lax.scan(one, state, None, length=length)
    return state, Drawn(drawn.tokens.T, drawn.logp.T)


def log_probability(logits: Array, token: Array) -> Array:
    """log softmax(logits [..., V])[token [...]], in nats."""
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def prefill_chunks(
    tokens: np.ndarray, rows: int = 1, chunk: int = PREFILL_CHUNK
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a prompt into masked chunks of fixed shape: a list of (tokens, valid), each [R, P], all rows alike."""
    pieces = []
    for start in range(0, len(tokens), chunk):
        piece = np.asarray(tokens[start : start + chunk], np.int32)
        padded = np.zeros((rows, chunk), np.int32)
        padded[:, : piece.size] = piece
        valid = np.broadcast_to(np.arange(chunk) < piece.size, (rows, chunk))
        pieces.append((padded, valid))
    return pieces
