"""Encode a word as a vector and decode the vector back to the word.

    python examples/autoencoder.py

A sequence autoencoder. The encoder reads a word letter by letter, and the state that it ends in is the vector. The
decoder begins in that state and runs on without any input, ``jaxgen.unroll(cell, None, carry, length=T)``; a linear
layer names a letter at each step. (Dai & Le 2015, arXiv:1511.01432, feed the decoder its letters too; here the vector
is all that it gets.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxgen
from jaxgen.data.datasets import BUILTIN

#: The letters; the first symbol ends a word and fills up what is behind it.
SYMBOLS = ".abcdefghijklmnopqrstuvwxyz"


class Autoencoder(nn.Module):
    """Words of letters [B, T] <-> vectors [B, H], one GRU each way."""

    hidden: int = 96

    def setup(self) -> None:
        self.reader, self.writer = jaxgen.GRU(self.hidden), jaxgen.GRU(self.hidden)
        self.letters = nn.Dense(len(SYMBOLS))

    def encode(self, words: jax.Array) -> jax.Array:
        """The state [B, H] in which the encoder ends; it does not read the symbols that fill up a word."""
        vectors, _ = jaxgen.unroll(self.reader, jax.nn.one_hot(words, len(SYMBOLS)), valid=words > 0)
        return vectors

    def decode(self, vectors: jax.Array, length: int) -> jax.Array:
        """Logits [B, length, symbols] from vectors alone: the decoder has no input at any step."""
        _, states = jaxgen.unroll(self.writer, None, vectors, length=length)
        return self.letters(states)

    def __call__(self, words: jax.Array) -> jax.Array:
        return self.decode(self.encode(words), words.shape[1])


def pack(words: Sequence[str], length: int) -> np.ndarray:
    """Words as numbers of symbols, int32 [N, length], each with its end behind it."""
    return np.array([[SYMBOLS.index(letter) for letter in word.ljust(length, SYMBOLS[0])] for word in words], np.int32)


def unpack(logits: Any) -> list[str]:
    """The likeliest symbol at each step of [N, T, symbols], up to the first end."""
    rows = np.asarray(logits).argmax(axis=-1).tolist()
    return ["".join(SYMBOLS[symbol] for symbol in row).split(SYMBOLS[0])[0] for row in rows]


def train(model: Autoencoder, words: np.ndarray, steps: int, batch: int = 64, lr: float = 4e-3, seed: int = 0) -> Any:
    """Parameters after so many steps of Adam on the cross-entropy of every symbol, ends included."""
    key = jax.random.key(seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps))
    params = jax.jit(model.init)(key, words[:1])

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, rows), rows).mean()

    def step(state: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, memory = state
        rows = jnp.asarray(words)[jax.random.randint(key, (batch,), 0, len(words))]
        updates, memory = optimizer.update(jax.grad(loss)(params, rows), memory)
        return (optax.apply_updates(params, updates), memory), None

    keys = jax.random.split(jax.random.fold_in(key, 1), steps)
    (params, _), _ = jax.jit(partial(jax.lax.scan, step))((params, optimizer.init(params)), keys)
    return params


def common_words(number: int) -> list[str]:
    """The commonest words of three to nine letters in Python's own documentation."""
    found = re.findall(r"\b[a-z]{3,9}\b", "\n".join(BUILTIN["python-docs"].texts()))
    return [word for word, _ in Counter(found).most_common(number)]


def main() -> None:
    """Train on a thousand words, then show some of them, and a few that were never seen, with what comes back."""
    words, unseen = common_words(1000), common_words(1200)[1000:]
    model, length = Autoencoder(), 10
    params = train(model, pack(words, length), steps=2500)
    again = jax.jit(lambda rows: model.apply(params, rows))
    for name, some in (("seen in training", words), ("never seen", unseen)):
        back = unpack(again(pack(some, length)))
        right = sum(a == b for a, b in zip(some, back))
        print(f"{name}: {right} of {len(some)} come back exactly")
        for word, copy in list(zip(some, back))[:: len(some) // 8]:
            print(f"    {word:10} {copy}")
    ends = model.apply(params, pack(["while", "class"], length), method=Autoencoder.encode)
    between = jnp.linspace(0, 1, 5)[:, None] * (ends[1] - ends[0])[None, :] + ends[:1]
    print("between two vectors:", *unpack(model.apply(params, between, length, method=Autoencoder.decode)))


if __name__ == "__main__":
    main()
