"""Text from a trained model: the host side of sampling."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.batch_decode import count_sharing, count_together, device_layout, is_small
from jaxgen.inference.generation_config import MAX_LENGTH, GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.state import DecoderState, load_state, save_state
from jaxgen.inference.text_stream import Chunk, Sample, StreamingDetokenizer, collect, select_best
from jaxgen.sampling.decode import MAX_SEED, DecodeState, prefill_chunks, sample_keys
from jaxgen.sampling.transforms.base import Context, Last
from jaxgen.tasks.language.conditioning import Condition, TextCodec, split_codec
from jaxgen.tokenizers.base import EOS, PAD, UNK

#: Tokens that one compiled call makes; text is handed out this often. Changes no bit.
STREAM_CHUNK = 32
MAX_SAMPLES = 1_000_000


class Sampler:
    """Draws texts from a task's model. Compiled once, then any prompt, seed and setting runs without a new compile."""

    def __init__(
        self,
        task: Any,
        codec: TextCodec,
        params: Any,
        *,
        documents: bool = False,
    ) -> None:
        self.task, self.documents = task, documents
        #: What texts are read and written with, and what the run knows of labels and features, if it does.
        self.tokenizer, self.conditioning = split_codec(codec)
        #: What texts are to be about; ``None``, as what it leaves open, is the mean of the training texts.
        self.condition: Condition | None = None
        #: The run that the weights come from and their digest, if they come from one.
        self.path: Path | None = None
        self.digest = ""
        self._params, self._prepared = params, None
        self._prime, self._step = jitted.jit_prefill(task), jitted.jit_decode_step(task)

    @classmethod
    def load(cls, run: str | Path | None = None, command: str = "sample") -> Sampler:
        """The best checkpoint of a run (by default of the newest language model in ``runs/``).

        Raises ``CheckpointError``, and ``UsageError`` for a run whose task ``command`` cannot use.
        """
        saved = LoadedRun.open(run, command)
        step, params = saved.params()
        sampler = cls(saved.task, saved.codec, params, documents=saved.has_documents)
        sampler.path, sampler.digest = saved.directory.path, saved.checkpoints.digest(step)
        return sampler

    def with_params(self, params: Any) -> Sampler:
        """Other weights of the same shapes, without compiling anything again."""
        self._params, self._prepared, self.digest = params, None, ""
        return self

    def conditioned(
        self, labels: str | Mapping[str, float] | None = None, features: Sequence[float] | None = None
    ) -> Sampler:
        """A sampler with the same weights whose texts are of one label, or between several with their weights
        (``{"Sports": 1, "World": 3}``), and of these features, one number each.

        It says where the state begins: interpolation is between the vectors that the labels stand for. Raises
        ``UsageError`` for a run that knows none, for a label that is none, and for numbers that cannot be used.
        """
        if self.conditioning is None:
            raise UsageError(
                "This run knows neither labels nor features: leave them out, or train with --label-column or "
                "--feature-columns."
            )
        return self.under(self.conditioning.choose(labels, features))

    def under(self, condition: Condition | None) -> Sampler:
        """A sampler with the same weights whose texts are under ``condition``."""
        other = copy.copy(self)
        other.condition = condition
        return other

    @property
    def weights(self) -> Any:
        """What the decode loop reads, laid out at the first use: a prompt that cannot be read compiles nothing."""
        if self._prepared is None:
            self._prepared = jitted.jit_prepare(self.task)(self._params)
        return self._prepared

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that are never drawn: <pad> and <unk>, and <eos> of a model of running text."""
        return (PAD, UNK) if self.documents else (PAD, UNK, EOS)

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

    def read(self, prompt: str = "", state: DecoderState | None = None, *, unk: str = "error") -> DecoderState:
        """The state after reading ``prompt``, from a text's beginning or going on from ``state``. ``unk`` as above."""
        return self._read(self._ids(prompt, state, unk), state)

    def read_tokens(self, tokens: Any, state: DecoderState | None = None) -> DecoderState:
        """The state after token ids [T], nothing in front of them. Raises ``UsageError`` for ids out of range."""
        self.tokenizer.decode_bytes(tokens)
        return self._read(np.asarray(tokens, np.int32), state)

    def _ids(self, prompt: str, state: DecoderState | None, unk: str) -> np.ndarray:
        return self.prompt_ids(prompt, unk) if state is None else self.tokenizer.encode_prompt(prompt, unk=unk)

    def blank(self) -> DecoderState:
        """The state before anything is read. It has no logits to draw from yet."""
        carry, logits = self.task.initial_carry(1), jnp.zeros((1, self.tokenizer.vocab_size), jnp.float32)
        if self.conditioning is not None:
            vector = self.conditioning.vector(self.condition)[None]
            carry = jitted.jit_initial_states(self.task)(self.weights, vector)
        carry, logits = self._beside_weights((carry, logits))
        return DecoderState(carry, logits, np.zeros(0, np.int32))

    def _read(self, ids: np.ndarray, state: DecoderState | None) -> DecoderState:
        state = self.blank() if state is None else state
        # One row at a time, whatever is decoded from it: the number of rows changes float bits.
        carry, logits = self._beside_weights((state.carry, state.logits))
        for tokens, valid in prefill_chunks(ids):
            carry, logits = self._prime(self.weights, carry, logits, tokens, valid)
        return DecoderState(carry, logits, np.concatenate([state.tokens, ids]).astype(np.int32))

    def step(self, state: DecoderState, token: int) -> tuple[DecoderState, jax.Array]:
        """Read one token: the new state and the logits [V] of the next, for loops of your own."""
        whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not whole or not 0 <= token < self.tokenizer.vocab_size:
            raise UsageError(f"There is no token {token!r}: ids go from 0 to {self.tokenizer.vocab_size - 1}.")
        carry, logits = self._step(self.weights, self._beside_weights(state.carry), jnp.full(1, token, jnp.int32))
        return DecoderState(carry, logits, np.append(state.tokens, np.int32(token))), logits[0]

    def save_state(self, path: str | Path, state: DecoderState) -> None:
        """Write ``state`` to a file, with the digest of the weights that it belongs to."""
        save_state(path, state, {"checkpoint": self.digest})

    def load_state(self, path: str | Path) -> DecoderState:
        """The state in a file. Raises ``CheckpointError`` for one of other weights, or damaged."""
        like = self.blank()
        state, about = load_state(path, (like.carry, like.logits))
        if about.get("checkpoint") != self.digest or (state.tokens >= self.tokenizer.vocab_size).any():
            raise CheckpointError(
                f"The state in {path} belongs to the checkpoint {about.get('checkpoint')}, not to this one "
                f"({self.digest}): what it holds means nothing to other weights. Make it anew with --save-state."
            )
        return state

    def _beside_weights(self, tree: Any) -> Any:
        """``tree`` on the device of the weights, where every call leaves it: on another, the first call of a function
        would compile another one."""
        return jax.device_put(tree, next(iter(jax.tree.leaves(self.weights)[0].devices())))

    def stream(
        self,
        prompt: str = "",
        settings: GenerationConfig | None = None,
        *,
        num_samples: int = 1,
        first: int = 0,
        skip: int = 0,
        state: DecoderState | None = None,
        unk: str = "error",
    ) -> Iterator[Chunk]:
        """Yield the samples from ``first`` on, so many, piece by piece as they are made, block by block.

        They continue ``prompt``, read from ``state`` on if one is given. Every sample's last piece says so; of those
        that no time was left to begin (``Settings.max_seconds``) there is none. What the first ``skip`` tokens of each
        say is left out: a text resumed there is the same as in one go. Raises ``UsageError`` before anything is
        compiled.
        """
        settings = settings or GenerationConfig()
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or not 1 <= num_samples <= MAX_SAMPLES:
            raise UsageError(f"{num_samples!r} samples cannot be drawn: give a whole number from 1 to {MAX_SAMPLES}.")
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= MAX_SEED - MAX_SAMPLES:
            raise UsageError(f"There is no sample {first!r}: give a whole number from 0 to {MAX_SEED - MAX_SAMPLES}.")
        if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= MAX_LENGTH:
            raise UsageError(f"{skip!r} tokens cannot be skipped: give a whole number from 0 to {MAX_LENGTH}.")
        ids, chain = self._ids(prompt, state, unk), settings.chain(self.forbidden)
        history = ids if state is None else np.concatenate([state.tokens, ids])
        # Once, and before anything is compiled: a transform may refuse what this vocabulary has not.
        transforms = chain.init(Context(settings.block, self.tokenizer.vocab_size, history, EOS))
        how = chain.kinds, STREAM_CHUNK, settings.greedy
        return self._stream(how, settings, transforms, ids, state, range(first, first + num_samples), skip)

    def _stream(
        self,
        how: tuple[Any, int, bool],
        settings: GenerationConfig,
        transforms: Any,
        ids: np.ndarray,
        state: DecoderState | None,
        asked: range,
        skip: int,
    ) -> Iterator[Chunk]:
        deadline = time.monotonic() + (settings.max_seconds or float("inf"))
        rows, base = settings.block, asked.start // settings.block * settings.block
        carry, logits = self._read(ids, state).repeated(rows)
        start = DecodeState(carry, logits, transforms, jnp.zeros(rows, bool), *Last.none(rows))
        while base < asked.stop and (base <= asked.start or time.monotonic() < deadline):
            together = self.count_together(settings, transforms, asked.stop - base)
            end = base + together * rows
            indices = range(max(base, asked.start), min(end, asked.stop))
            texts = [StreamingDetokenizer(self.tokenizer, i, i - base, settings, skip) for i in indices]
            keys = sample_keys(settings.seed, jnp.arange(base, end))
            if together == 1:
                begun, keys = self._beside_weights((start, keys))
                decoder = partial(jitted.jit_decode(self.task, *how), self.weights)
            else:
                devices = count_sharing(together)
                weights, begun, keys = device_layout(self.weights, start, keys, together, devices)
                decoder = partial(jitted.jit_decode_blocks(self.task, *how, devices), weights)
            yield from self._blocks(decoder, begun, keys, settings.length, texts, deadline)
            base = end

    def count_together(self, settings: GenerationConfig, transforms: Any, number: int) -> int:
        """How many blocks go into one call when ``number`` samples are left to draw. Changes no bit."""
        if settings.max_seconds is not None or not is_small(self.weights, transforms):
            return 1
        return count_together(-(-number // settings.block), settings.block)

    def _blocks(
        self,
        decoder: Callable,
        state: DecodeState,
        keys: jax.Array,
        length: int,
        texts: list[StreamingDetokenizer],
        deadline: float,
    ) -> Iterator[Chunk]:
        made, ahead = 0, None
        while made < length and any(text.running for text in texts) and time.monotonic() < deadline:
            if ahead is None:
                ahead = decoder(state, keys)
            state, drawn = ahead
            more = made + STREAM_CHUNK < length
            ahead = decoder(state, keys) if more else None  # runs while this chunk is read
            tokens, logp = (np.asarray(each).reshape(-1, STREAM_CHUNK)[:, : length - made] for each in drawn)
            made += tokens.shape[1]
            for text in texts:
                if text.running:
                    yield text.more(tokens[text.row], logp[text.row])
        for text in texts:
            if text.running:
                yield text.cut("time" if length else "length")

    def sample(self, prompt: str = "", settings: GenerationConfig | None = None, **options: Any) -> list[str]:
        """The generated texts, without the prompt; arguments as those of ``stream``.

        Sample i is the same whatever ``num_samples`` is.
        """
        return [sample.text for sample in self.samples(prompt, settings, **options)]

    def samples(self, prompt: str = "", settings: GenerationConfig | None = None, **options: Any) -> Iterator[Sample]:
        """Whole samples in order, with tokens and log-probabilities; arguments as those of ``stream``."""
        return collect(self.stream(prompt, settings, **options))

    def best(
        self, prompt: str = "", settings: GenerationConfig | None = None, *, of: int, keep: int = 1, **options: Any
    ) -> list[Sample]:
        """The ``keep`` likeliest ``of`` so many samples, by mean log-probability of a token; the best first."""
        if not 1 <= keep <= of:
            raise UsageError(f"{keep} samples cannot be the best of {of}: give a number from 1 to {of}.")
        return select_best(self.samples(prompt, settings, num_samples=of, **options), keep)
