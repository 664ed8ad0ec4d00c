"""Text from a trained model: the host side of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError
from jaxgen.run import compiled
from jaxgen.run.saved import SavedRun
from jaxgen.sampling import (
    MAX_SEED,
    ROWS,
    DecodeState,
    Forbid,
    Temperature,
    TopK,
    TopP,
    check_seed,
    sample_keys,
)
from jaxgen.sampling.generate import prime_chunks
from jaxgen.sampling.transforms import Transform, init_chain
from jaxgen.text import EOS, PAD, UNK, Tokenizer

#: Tokens that one compiled call makes; text is handed out this often. Changes no bit.
STREAM_CHUNK = 32
MAX_LENGTH = 10_000_000
MAX_SAMPLES = 1_000_000
MAX_BLOCK = 4_096


@dataclass(frozen=True)
class Settings:
    """How to draw. Raises ``UsageError`` for values out of range, before JAX sees them."""

    length: int = 500
    temperature: float = 0.8
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    block: int = ROWS  # samples that decode together: many are made sooner in larger blocks, with other float bits
    extra: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if isinstance(self.block, bool) or not isinstance(self.block, int) or not 1 <= self.block <= MAX_BLOCK:
            raise UsageError(
                f"Blocks of {self.block!r} rows cannot be decoded: give a whole number from 1 to {MAX_BLOCK}."
            )
        if isinstance(self.length, bool) or not isinstance(self.length, int) or not 0 <= self.length <= MAX_LENGTH:
            raise UsageError(f"A length of {self.length!r} cannot be used: give a whole number from 0 to {MAX_LENGTH}.")
        if not (math.isfinite(self.temperature) and (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6)):
            raise UsageError(
                f"A temperature of {self.temperature} cannot be used: give 0 (always the likeliest token) or a "
                "number from 1e-6 to 1e6; 1 samples from the model as it is, lower is safer, higher is wilder."
            )
        self.transforms(())

    def transforms(self, forbidden: tuple[int, ...]) -> tuple[Transform, ...]:
        """The chain, in the order in which it is applied: forbid, temperature, top-k, top-p, then ``extra``."""
        chain: list[Transform] = [Forbid(forbidden)]
        if self.temperature > 0:
            chain.append(Temperature(self.temperature))
        if self.top_k is not None:
            chain.append(TopK(self.top_k))
        if self.top_p is not None:
            chain.append(TopP(self.top_p))
        return (*chain, *self.extra)


@dataclass(frozen=True)
class Piece:
    """Some more text of sample ``index``; ``tokens`` are its ids."""

    index: int
    text: str
    tokens: np.ndarray
    last: bool


class Sampler:
    """Draws texts from a task's model. Compiled once, then any prompt, seed and setting runs without a new compile."""

    def __init__(self, task: Any, tokenizer: Tokenizer, params: Any, *, documents: bool = False) -> None:
        self.task, self.tokenizer, self.documents = task, tokenizer, documents
        self._params, self._prepared = params, None
        self._prime = compiled.priming(task)
        self._forbidden = (PAD, UNK) if documents else (PAD, UNK, EOS)

    @classmethod
    def load(cls, run: str | Path | None = None) -> Sampler:
        """The best checkpoint of a run (by default of the newest run in ``runs/``). Raises ``CheckpointError``."""
        saved = SavedRun.open(run)
        return cls(saved.task, saved.tokenizer, saved.params()[1], documents=saved.has_documents)

    def with_params(self, params: Any) -> Sampler:
        """Other weights of the same shapes, without compiling anything again."""
        self._params, self._prepared = params, None
        return self

    @property
    def weights(self) -> Any:
        """What the decode loop reads, laid out at the first use: a prompt that cannot be read compiles nothing."""
        if self._prepared is None:
            self._prepared = compiled.preparation(self.task)(self._params)
        return self._prepared

    def prompt_ids(self, prompt: str, unk: str = "error") -> np.ndarray:
        """The ids that prime the state: the prompt's, behind <eos> when the model knows documents.

        A model of running text has no start of its own: an empty prompt is then read as a line break. Raises
        ``UsageError`` for characters that the vocabulary lacks (``unk="skip"`` leaves them out).
        """
        ids = self.tokenizer.encode_prompt(prompt, unk=unk)
        if self.documents:
            return np.concatenate([[EOS], ids]).astype(np.int32)
        if ids.size:
            return ids
        newline = self.tokenizer.encode("\n")
        return newline if newline.size and UNK not in newline else np.array([EOS + 1], np.int32)

    def _primed(self, ids: np.ndarray, rows: int, vocab: int) -> tuple[Any, jax.Array]:
        start = self.task.initial_carry(rows), jnp.zeros((rows, vocab), jnp.float32)
        carry, logits = self._beside_weights(start)
        for tokens, valid in prime_chunks(ids, rows):
            carry, logits = self._prime(self.weights, carry, logits, tokens, valid)
        return carry, logits

    def _beside_weights(self, tree: Any) -> Any:
        """``tree`` on the device of the weights, where every call leaves it: on another, the first call of a function
        would compile another one."""
        return jax.device_put(tree, next(iter(jax.tree.leaves(self.weights)[0].devices())))

    def stream(
        self, prompt: str = "", settings: Settings | None = None, *, num_samples: int = 1, unk: str = "error"
    ) -> Iterator[Piece]:
        """Yield the samples 0 … ``num_samples`` - 1 piece by piece as they are made, a block of rows at a time.

        Every sample's last piece says so. Raises ``UsageError`` before anything is compiled.
        """
        settings = settings or Settings()
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or not 1 <= num_samples <= MAX_SAMPLES:
            raise UsageError(f"{num_samples!r} samples cannot be drawn: give a whole number from 1 to {MAX_SAMPLES}.")
        ids = self.prompt_ids(prompt, unk)
        return self._stream(ids, settings, num_samples)

    def _stream(self, ids: np.ndarray, settings: Settings, num_samples: int) -> Iterator[Piece]:
        vocab = self.tokenizer.vocab_size
        chain = settings.transforms(self._forbidden)
        kinds = tuple(type(t) for t in chain)
        decoder = compiled.decoding(self.task, kinds, STREAM_CHUNK, settings.temperature == 0)
        rows = settings.block
        carry, logits = self._primed(ids, rows, vocab)
        for first in range(0, num_samples, rows):
            keys = sample_keys(settings.seed, jnp.arange(first, first + rows))
            start = DecodeState(
                carry, logits, init_chain(chain, rows, vocab), jnp.zeros(rows, bool), jnp.zeros((), jnp.int32)
            )
            asked = range(first, min(first + rows, num_samples))
            start, keys = self._beside_weights((start, keys))
            yield from self._block(decoder, start, keys, settings.length, asked)

    def _block(
        self, decoder: Callable, state: DecodeState, keys: jax.Array, length: int, indices: range
    ) -> Iterator[Piece]:
        texts = [self.tokenizer.stream_decoder() for _ in indices]
        running = [True] * len(indices)
        made, ahead = 0, None
        while made < length and any(running):
            if ahead is None:
                ahead = decoder(self.weights, state, keys)
            state, tokens = ahead
            more = made + STREAM_CHUNK < length
            ahead = decoder(self.weights, state, keys) if more else None  # runs while this chunk is read
            chunk = np.asarray(tokens)[:, : length - made]
            made += chunk.shape[1]
            for row, index in enumerate(indices):
                if running[row]:
                    ids = chunk[row]
                    ends = np.flatnonzero(ids == EOS)
                    ids = ids[: ends[0]] if ends.size else ids
                    running[row] = not ends.size and made < length
                    text = texts[row].feed(ids) + ("" if running[row] else texts[row].flush())
                    yield Piece(index, text, ids, not running[row])
        if length == 0:
            yield from (Piece(index, "", np.zeros(0, np.int32), True) for index in indices)

    def sample(
        self, prompt: str = "", settings: Settings | None = None, *, num_samples: int = 1, unk: str = "error"
    ) -> list[str]:
        """The generated texts, without the prompt; sample i is the same whatever ``num_samples`` is."""
        texts = [""] * num_samples if isinstance(num_samples, int) and 0 < num_samples <= MAX_SAMPLES else []
        for piece in self.stream(prompt, settings, num_samples=num_samples, unk=unk):
            texts[piece.index] += piece.text
        return texts


__all__ = ["MAX_SEED", "STREAM_CHUNK", "Piece", "Sampler", "Settings"]
