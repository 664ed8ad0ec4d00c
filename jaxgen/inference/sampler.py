"""Draws texts from a trained model: the host side of sampling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen import jitted
from jaxgen.errors import UsageError, check_int, check_kind, check_text, counted
from jaxgen.fsutil import json_sha256, write_output
from jaxgen.inference.adaptation import Adaptation, AdaptiveOptions, AdaptiveReader, join_params
from jaxgen.inference.generation_config import MAX_LENGTH, GenerationConfig
from jaxgen.inference.loading import LoadedRun, TrainedModel
from jaxgen.inference.state import AdaptedWeights, DecoderState, load_state, state_bytes
from jaxgen.inference.text_stream import Chunk, Sample, StreamingDetokenizer, collect, select_best
from jaxgen.plugins import used_plugins
from jaxgen.runs.manifest import tree_sha256
from jaxgen.sampling.decode import MAX_SEED, PREFILL_CHUNK, DecodeState, Drawn, prefill_chunks, sample_keys
from jaxgen.sampling.transforms.base import Chain, Context, Kinds, Last, chain
from jaxgen.sampling.transforms.constraints import Forbid, Force
from jaxgen.tasks.language.conditioning import Condition, ConditionedCodec, TextCodec, join_codec, split_codec
from jaxgen.text import Reading
from jaxgen.tokenizers.base import EOS, PAD, UNK, Tokenizer, token_texts
from jaxgen.training.data_parallel import BATCH_AXIS, make_mesh
from jaxgen.training.dynamic_evaluation import AdaptedState
from jaxgen.types import Array, Params

#: From this many blocks on, a call decodes several of them; the largest number of rows of such a call.
MIN_BLOCKS, MAX_ROWS = 64, 256
#: Larger models or states of transforms are decoded one block per call, to limit its time and memory.
MAX_PARAMETERS, MAX_STATE_BYTES = 2_000_000, 2**17

Tree = TypeVar("Tree")
#: A pytree of arrays.
Arrays = Any


def blocks_per_call(blocks: int, rows: int) -> int:
    """How many of ``blocks`` of ``rows`` rows one call decodes: 1 or a power of two, so that few sizes are compiled."""
    if blocks < MIN_BLOCKS or rows * MIN_BLOCKS > MAX_ROWS:
        return 1
    return min(1 << (blocks - 1).bit_length(), 1 << ((MAX_ROWS // rows).bit_length() - 1))


def count_devices(blocks: int) -> int:
    """Over how many devices the blocks of a call are distributed: a power of two."""
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return min(1 << (devices.bit_length() - 1), blocks)


def device_layout(weights: Tree, state: Arrays, keys: Array, blocks: int, devices: int) -> tuple[Tree, Arrays, Array]:
    """The inputs of a call of several blocks on its devices.

    ``weights`` is copied to all devices. Every block starts from ``state`` and has its part of ``keys`` [blocks * R].
    """
    states = jax.tree.map(lambda a: jnp.broadcast_to(a, (blocks, *a.shape)), state)
    keys = keys.reshape(blocks, -1)
    if devices == 1:
        weights_device = next(iter(jax.tree.leaves(weights)[0].devices()))
        return weights, *jax.device_put((states, keys), weights_device)
    mesh = make_mesh(devices)
    replicated, sharded = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(BATCH_AXIS)))
    return jax.device_put(weights, replicated), *jax.device_put((states, keys), sharded)


#: Tokens of one compiled call, and of a chunk. Does not change results.
STREAM_CHUNK = 32
MAX_SAMPLES = 1_000_000


def check_best(keep: int, of: int) -> None:
    """Raise ``UsageError`` unless ``keep`` of ``of`` samples can be kept."""
    if not 1 <= check_int("The number to keep", keep, 1) <= check_int("The number of samples", of, 1):
        raise UsageError(f"{keep} samples cannot be the best of {of}: give a number of at least 1 and at most {of}.")


class Beginning(NamedTuple):
    """The ids of a prompt, the space that is held back of it, and the transforms of a text that continues it."""

    ids: np.ndarray
    held: str
    kinds: Kinds
    transforms: tuple[Any, ...]


class Sampler(TrainedModel):
    """Draws texts from a language model. Another prompt, seed or setting needs no new compilation.

    Args:
        task: The task, with its model.
        codec: The tokenizer, with labels and features if the run has them.
        params: The weights.
        documents: Whether texts end with <eos>.
        reading: How the run reads text, prompts too. Default: that of its level.

    Example:
        >>> sampler, settings = jaxgen.Sampler.load("runs/language-1"), jaxgen.GenerationConfig(length=20, seed=7)
        >>> texts = sampler.sample("the ", settings, num_samples=3)
        >>> sampler.sample("the ", settings, first=2)[0] == texts[2]
        True
    """

    def __init__(
        self,
        task: Any,
        codec: TextCodec | None = None,
        params: Params | None = None,
        *,
        documents: bool = False,
        reading: Reading | None = None,
    ) -> None:
        if codec is None or params is None:
            raise UsageError(
                "A sampler needs a task, a codec and weights: call jaxgen.Sampler.load(run) for a trained run."
            )
        check_kind("A sampler", codec, Tokenizer | ConditionedCodec, "a tokenizer as codec")
        super().__init__(task, params)
        self.documents = documents
        self.tokenizer, self.conditioning = split_codec(codec)
        self.reading = reading or Reading.of_level(self.tokenizer.kind)
        #: The labels and features of the texts; ``None`` is the mean of the training texts.
        self.condition: Condition | None = None
        #: The plugins that define a part of the run, for receipts.
        self.plugins: list[dict[str, Any]] = []
        #: The runs that are mixed, and their weights, if there are several (``jaxgen.mix``).
        self.mixture: dict[str, Any] | None = None
        #: The values at which units are held (``inspection.clamped``), for receipts.
        self.held: dict[str, float] = {}
        #: What becomes of bytes that are not UTF-8 in texts; see ``exact``.
        self.errors = "replace"

    @classmethod
    def load(cls, run: str | Path | None = None, command: str = "sample") -> Sampler:
        """A sampler with the best checkpoint of a run.

        Args:
            run: The folder of the run. Default: the newest language model in ``runs/``.
            command: The command that will use it.

        Raises:
            CheckpointError: The run is missing or damaged.
            UsageError: ``command`` cannot use the task of the run.
        """
        saved = LoadedRun.open(run, command)
        _, params, digest = saved.params_and_digest()
        sampler = cls(saved.task, saved.codec, params, documents=saved.has_documents, reading=saved.reading)
        sampler.directory, sampler.digest = saved.directory, digest
        sampler.plugins = used_plugins(saved.config)
        return sampler

    def conditioned(
        self, labels: str | Mapping[str, float] | None = None, features: Sequence[float] | None = None
    ) -> Sampler:
        """A sampler with the same weights for texts with these labels and features.

        They determine the initial state. Between several labels, the vectors that stand for them are interpolated.

        Args:
            labels: One label, or several with their weights: ``{"Sports": 1, "World": 3}``.
            features: One number for each feature.

        Raises:
            UsageError: The run has neither labels nor features, or a label or number cannot be used.
        """
        if self.conditioning is None:
            raise UsageError(
                "This run has neither labels nor features: leave them out, or train with --label-column or "
                "--feature-columns."
            )
        return self.with_condition(self.conditioning.choose(labels, features))

    def exact(self) -> Sampler:
        """A sampler with the same weights whose texts at byte level are exact.

        Bytes that are not UTF-8 are then lone surrogates instead of U+FFFD: ``text.encode("utf-8", "surrogateescape")``
        has the bytes. Prompts are read in this way in any case.
        """
        other = self._copy()
        other.errors = "surrogateescape" if self.tokenizer.kind == "byte" else "replace"
        return other

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of token ids. Raises ``UsageError`` for ids out of range."""
        return self.tokenizer.decode(tokens, self.errors)

    def with_condition(self, condition: Condition | None) -> Sampler:
        """A sampler with the same weights for texts under ``condition``."""
        other = self._copy()
        other.condition = condition
        return other

    def with_task(self, task: Any) -> Sampler:
        """A sampler with the same weights for another ``task``, whose parameters have the same names and shapes."""
        other = self._copy()
        other.task, other._computed = task, {}
        return other

    @property
    def codec(self) -> TextCodec:
        """The tokenizer, with labels and features if the run has them."""
        return join_codec(self.tokenizer, self.conditioning)

    @property
    def runs(self) -> list[str]:
        """The folder of the run, or those of a mixture; none if some weights come from no run."""
        found = [self.origin()] if self.mixture is None else self.mixture["members"]
        folders = [each.get("run") for each in found]
        return [] if None in folders else [str(folder) for folder in folders]

    def origin(self) -> dict[str, object]:
        """The run and checkpoint, the runs of a mixture with theirs, and units that are held, as JSON values."""
        mixed = {} if self.mixture is None else {"mix": self.mixture}
        held = {"clamp": self.held} if self.held else {}
        run = None if self.directory is None else str(self.directory)
        return {"run": run, "checkpoint": self.digest, **mixed, **held}

    def _about(self) -> str:
        condition = "" if self.condition is None else f", {self.condition}"
        return f"{self.tokenizer.kind} level, {self.tokenizer.vocab_size:,} tokens{condition}"

    def _copy(self) -> Sampler:
        """A sampler with the same weights; ``copy.copy`` would take them from the device."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that are never drawn: <pad> and <unk>, and <eos> of a model of running text."""
        return (PAD, UNK) if self.documents else (PAD, UNK, EOS)

    def chain(self, settings: GenerationConfig) -> Chain:
        """All transforms of ``settings`` behind the tokens that are never drawn.

        Of a model of running text, <eos> is among these unless a transform ends texts (``Regex``).
        """
        ends = any(getattr(each, "ends_texts", False) for each in chain(*settings.transforms).transforms)
        return settings.chain((PAD, UNK) if ends else self.forbidden)

    def context(
        self, chosen: Chain, rows: int, prompt: npt.ArrayLike = (), held: str = "", length: int = MAX_LENGTH
    ) -> Context:
        """What the transforms ``chosen`` know before the first token is drawn; see ``Context``."""
        never = {i for each in chosen.transforms if isinstance(each, Forbid) for i in each.ids}
        pieces = token_texts(self.tokenizer, never) if any(hasattr(each, "ends_texts") for each in chosen.kinds) else ()
        size, ids = self.tokenizer.vocab_size, np.asarray(prompt, np.int32)
        return Context(rows, size, ids, EOS, pieces, held, length, runs_on=not self.documents)

    def prompt_ids(self, prompt: str, unk: str = "error") -> np.ndarray:
        """The ids that the model reads before it generates.

        A model of documents reads <eos> before the prompt. A model of running text has no start token: an empty prompt
        is read as a line break. A space at the end of the prompt that begins the next token is not among the ids.

        Raises:
            UsageError: The prompt has characters that are not in the vocabulary; ``unk="skip"`` leaves them out.
        """
        return self.open_prompt(prompt, unk=unk)[0]

    def open_prompt(self, prompt: str, state: DecoderState | None = None, unk: str = "error") -> tuple[np.ndarray, str]:
        """``prompt_ids``, or those after ``state``, and the space that is held back (see ``DecoderState``)."""
        before = "" if state is None else check_kind("state", state, DecoderState, "a jaxgen.DecoderState").held
        ids, held = self.tokenizer.encode_prompt(self.reading.text(check_text("The prompt", prompt)), unk, before)
        if state is not None or (ids.size and not self.documents):
            return ids, held
        if self.documents:
            return np.concatenate([[EOS], ids]).astype(np.int32), held
        newline = self.tokenizer.encode("\n")
        return newline if newline.size and UNK not in newline else np.array([EOS + 1], np.int32), held

    def read(self, prompt: str = "", state: DecoderState | None = None, *, unk: str = "error") -> DecoderState:
        """The state after ``prompt``, read at the beginning of a text or after ``state``; see ``prompt_ids``."""
        return self._read(*self.open_prompt(prompt, state, unk), state)

    def read_tokens(self, tokens: npt.ArrayLike, state: DecoderState | None = None, held: str = "") -> DecoderState:
        """The state after token ids [T], read as they are, and the text ``held`` after them (see ``DecoderState``).

        Raises ``UsageError`` for ids out of range.
        """
        self.tokenizer.decode_bytes(tokens)
        return self._read(np.asarray(tokens, np.int32), held, state)

    def adapt(
        self,
        text: str,
        state: DecoderState | None = None,
        adaptation: Adaptation | None = None,
        *,
        unk: str = "error",
    ) -> DecoderState:
        """The state after ``text``, with weights that adapted to it while it was read; see ``Adaptation``.

        Only whole segments change the weights: the tokens after the last one are read, and change them once a segment
        is full. So to adapt to the rest of a text later gives the same weights.

        Args:
            text: The text.
            state: Continue from this state. Default: the beginning of a text.
            adaptation: How to adapt.
            unk: What to do with characters that are not in the vocabulary: ``error`` or ``skip``.

        Raises:
            UsageError: The text is shorter than a segment, or the model cannot adapt.
            DivergedError: The weights diverged.

        Example:
            >>> sampler = jaxgen.Sampler.load("runs/language-1")
            >>> state = sampler.adapt("the cat sat on the mat " * 10)
            >>> len(sampler.sample("the ", jaxgen.GenerationConfig(length=20), state=state)[0])
            20
        """
        ids, held = self.open_prompt(text, state, unk)
        adaptation, begun = adaptation or Adaptation(), self.initial_state() if state is None else state
        before = begun.adapted
        # What the weights have not adapted to yet is read again, from where they stopped.
        start = begun.tokens.size if before is None else before.read
        tokens = np.concatenate([begun.tokens[start:], ids]).astype(np.int32)
        count = (tokens.size - 1) // adaptation.segment * adaptation.segment
        if count <= 0:
            raise UsageError(
                f"The text to adapt to has {counted(tokens.size, 'token')}, and one step needs "
                f"{adaptation.segment + 1:,}: give a longer text, or a smaller --adapt-segment."
            )
        options, previous = AdaptiveOptions(adaptation), None if before is None else before.state
        reader = AdaptiveReader(self.task, self.params, begun.carry, options, state=previous)
        deque(reader.read(tokens[:count], tokens[1 : count + 1]), maxlen=0)
        adapted = self._adapted(reader.state, start + count)
        read = np.concatenate([begun.tokens[:start], tokens[:count]])
        return self._read(tokens[count:], held, DecoderState(reader.carry, begun.logits, read, adapted=adapted))

    def _adapted(self, state: AdaptedState, read: int) -> AdaptedWeights:
        params = join_params(self.task, self.params, state.params)
        return AdaptedWeights(state, read, jitted.jit_prepare(self.task)(params))

    def weights_at(self, state: DecoderState | None) -> Any:
        """The weights that read and draw what follows ``state``."""
        return self.weights if state is None or state.adapted is None else state.adapted.weights

    def initial_state(self) -> DecoderState:
        """The state before anything is read; its logits are zeros."""
        if self.conditioning is None:
            state: DecoderState = self._once("initial state", self._initial_state)
            return state
        return self._initial_state()

    def _initial_state(self) -> DecoderState:
        if self.conditioning is None:
            carry = jitted.jit_initial_carry(self.task, 1)()
        else:
            vector = self.conditioning.vector(self.condition)[None]
            carry = jitted.jit_initial_states(self.task)(self.weights, vector)
        logits = jax.device_put(np.zeros((1, self.tokenizer.vocab_size), np.float32))
        return DecoderState(*self._to_weights_device((carry, logits)), np.zeros(0, np.int32))

    def _read(self, ids: np.ndarray, held: str, state: DecoderState | None) -> DecoderState:
        *_, last = self.read_in_chunks(ids, held, state)
        return last

    def read_in_chunks(
        self, ids: np.ndarray, held: str = "", state: DecoderState | None = None
    ) -> Iterator[DecoderState]:
        """Read what ``open_prompt`` returned; yields the state after each chunk, the last one after everything."""
        if state is None:
            state = self.initial_state()
            carry, logits = state.carry, state.logits
        else:
            carry, logits = self._to_weights_device((state.carry, state.logits))
        # Always one row, however many are decoded afterwards: the number of rows changes float bits.
        prefill, weights = self._once("prefill", lambda: jitted.jit_prefill(self.task)), self.weights_at(state)
        chunks, tokens = prefill_chunks(ids), np.concatenate([state.tokens, ids]).astype(np.int32)
        for number, (read, valid) in enumerate(chunks, start=1):
            carry, logits = prefill(weights, carry, logits, read, valid)
            if number < len(chunks):
                end = state.tokens.size + number * PREFILL_CHUNK
                yield DecoderState(carry, logits, tokens[:end], adapted=state.adapted)
        if held:
            logits = jnp.where(self._begin_with(held), logits, -jnp.inf)
        yield DecoderState(carry, logits, tokens, held, state.adapted)

    def _begin_with(self, held: str) -> np.ndarray:
        """Which tokens begin with ``held``, bool [V]."""
        return np.array([piece.startswith(held.encode()) for piece in self.tokenizer.pieces])

    def check_first(self, held: str, chosen: Chain) -> None:
        """Raise ``UsageError`` if ``chosen`` allows no token that begins with the text ``held`` of the prompt."""
        if not held:
            return
        left = self._begin_with(held)
        for each in chosen.transforms:
            if isinstance(each, Forbid):
                left[list(each.ids)] = False
            elif isinstance(each, Force) and each.ids:
                left &= np.arange(left.size) == each.ids[0]
        if not left.any():
            raise UsageError(
                "The prompt ends with a space, which begins the first token, but such tokens are forbidden, or another "
                "is forced: leave out the space, or begin the forced text with one."
            )

    def step(self, state: DecoderState, token: int) -> tuple[DecoderState, jax.Array]:
        """Read one token; returns the new state and the logits [V] of the next token, for custom decoding loops."""
        token = check_int("The token", token, 0, self.tokenizer.vocab_size - 1)
        carry = self._to_weights_device(state.carry)
        step = self._once("step", lambda: jitted.jit_decode_step(self.task))
        carry, logits = step(self.weights_at(state), carry, jnp.full(1, token, jnp.int32))
        tokens = np.append(state.tokens, np.int32(token))
        return DecoderState(carry, logits, tokens, adapted=state.adapted), logits[0]

    def save_state(self, path: str | Path, state: DecoderState) -> None:
        """Write ``state`` and the digest of its weights to a file."""
        write_output(path, state_bytes(state, self.weights_digest()))

    def load_state(self, path: str | Path) -> DecoderState:
        """The state in a file. Raises ``CheckpointError`` if it is damaged or belongs to other weights."""
        like = self.initial_state()

        def unadapted() -> AdaptedState:
            return AdaptiveReader(self.task, self.params, like.carry, AdaptiveOptions(Adaptation())).state

        state = load_state(path, like, self.weights_digest(), unadapted)
        if state.adapted is None:
            return state
        return replace(state, adapted=self._adapted(state.adapted.state, state.adapted.read))

    def weights_digest(self) -> str:
        """The digest of the checkpoint or, for weights from elsewhere, of these and the tokenizer."""
        return self.digest or json_sha256([tree_sha256(self._params), self.tokenizer.to_json()])[:16]

    def _to_weights_device(self, tree: Tree) -> Tree:
        """``tree`` on the device of the weights; from another device, a function would compile again."""
        on_device: Tree = jax.device_put(tree, next(iter(jax.tree.leaves(self.weights)[0].devices())))
        return on_device

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
        **others: Any,
    ) -> Iterator[Chunk]:
        """Draw samples and yield them in chunks as they are generated, block by block.

        The last chunk of each sample has an ``end``. Samples that ``max_seconds`` left no time to begin have no chunk.

        Args:
            prompt: The text to continue.
            settings: How to draw.
            num_samples: How many samples.
            first: The number of the first one. Sample i is the same whatever the others are.
            skip: Leave out the text of the first tokens of each sample, to continue where a shorter one ended.
            state: Read the prompt after this state.
            unk: What to do with prompt characters that are not in the vocabulary: ``error`` or ``skip``.

        Raises:
            UsageError: A value is out of range. Nothing was compiled.
        """
        name = next(iter(others), "length")
        right = f'jaxgen.GenerationConfig, for example sample("The ", jaxgen.GenerationConfig({name}=…))'
        if others:
            raise UsageError(f"{name!r} is no argument here: settings of drawing belong to {right}.")
        settings = (
            GenerationConfig() if settings is None else check_kind("A sampler", settings, GenerationConfig, right)
        )
        num_samples = check_int("The number of samples", num_samples, 1, MAX_SAMPLES)
        first = check_int("The index of a sample", first, 0, MAX_SEED - MAX_SAMPLES)
        skip = check_int("The number of tokens to skip", skip, 0, MAX_LENGTH)
        begun = self.begin(prompt, settings, state, unk, settings.block)
        return self._stream(begun, settings, state, range(first, first + num_samples), skip)

    def begin(
        self, prompt: str, settings: GenerationConfig, state: DecoderState | None, unk: str, rows: int
    ) -> Beginning:
        """What is known before the prompt is read, for ``rows`` rows. Raises ``UsageError``; nothing is compiled."""
        (ids, held), chosen = self.open_prompt(prompt, state, unk), self.chain(settings)
        self.check_first(held, chosen)
        history = ids if state is None else np.concatenate([state.tokens, ids])
        # A transform may refuse tokens that this vocabulary does not have.
        transforms = chosen.init(self.context(chosen, rows, history, held, settings.length))
        return Beginning(ids, held, chosen.kinds, transforms)

    def _stream(
        self, begun: Beginning, settings: GenerationConfig, state: DecoderState | None, indices: range, skip: int
    ) -> Iterator[Chunk]:
        ids, held, kinds, transforms = begun
        decoding = kinds, STREAM_CHUNK, settings.greedy
        deadline = time.monotonic() + (settings.max_seconds or float("inf"))
        rows, base = settings.block, indices.start // settings.block * settings.block
        carry, logits = self._read(ids, held, state).repeated(rows)
        start = DecodeState(carry, logits, transforms, np.zeros(rows, bool), *Last.none(rows))
        while base < indices.stop and (base <= indices.start or time.monotonic() < deadline):
            blocks = self._blocks_per_call(settings, transforms, indices.stop - base)
            end = base + blocks * rows
            texts = [
                StreamingDetokenizer(self.tokenizer, i, i - base, settings, skip, held, self.errors)
                for i in range(max(base, indices.start), min(end, indices.stop))
            ]
            keys = sample_keys(settings.seed, np.arange(base, end, dtype=np.uint32))
            if blocks == 1:
                states, keys = self._to_weights_device((start, keys))
                decoder = partial(jitted.jit_decode(self.task, *decoding), self.weights_at(state))
            else:
                devices = count_devices(blocks)
                weights, states, keys = device_layout(self.weights_at(state), start, keys, blocks, devices)
                decoder = partial(jitted.jit_decode_blocks(self.task, *decoding, devices), weights)
            yield from self._decode(decoder, states, keys, settings.length, texts, deadline)
            base = end

    def _blocks_per_call(self, settings: GenerationConfig, transforms: tuple[Any, ...], number: int) -> int:
        """How many blocks one call decodes when ``number`` samples are left. Does not change results."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.weights))
        state = sum(leaf.nbytes for leaf in jax.tree.leaves(transforms))  # each block has its own
        if settings.max_seconds is not None or parameters > MAX_PARAMETERS or state > MAX_STATE_BYTES:
            return 1
        return blocks_per_call(-(-number // settings.block), settings.block)

    def _decode(
        self,
        decoder: Callable[[DecodeState, jax.Array], tuple[DecodeState, Drawn]],
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
                    yield text.feed(tokens[text.row], logp[text.row])
        for text in texts:
            if text.running:
                yield text.finish("time" if length else "length")

    def sample(self, prompt: str = "", settings: GenerationConfig | None = None, **options: Any) -> list[str]:
        """The generated texts without the prompt; the arguments are those of ``stream``."""
        return [sample.text for sample in self.samples(prompt, settings, **options)]

    def samples(self, prompt: str = "", settings: GenerationConfig | None = None, **options: Any) -> Iterator[Sample]:
        """Whole samples in order, with tokens and log-probabilities; the arguments are those of ``stream``."""
        return collect(self.stream(prompt, settings, **options), self.tokenizer)

    def best(
        self, prompt: str = "", settings: GenerationConfig | None = None, *, of: int, keep: int = 1, **options: Any
    ) -> list[Sample]:
        """The ``keep`` best of ``of`` samples by mean log-probability per token, the best first."""
        check_best(keep, of)
        return select_best(self.samples(prompt, settings, num_samples=of, **options), keep)
