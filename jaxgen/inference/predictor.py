"""Predictor: answers inputs in order, with a label for a text, or a text for a text or an image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.data.bucketing import bucket_width
from jaxgen.errors import DataError, UsageError, check_int, check_kind, counted, is_iterable
from jaxgen.inference.generation_config import GenerationConfig, short_repr, with_forbidden
from jaxgen.inference.loading import LoadedRun, TrainedModel
from jaxgen.plots import AttentionMap
from jaxgen.sampling.beam import beam_states, tile_beams
from jaxgen.sampling.decode import DecodeState, sample_keys
from jaxgen.sampling.transforms.base import Context
from jaxgen.tokenizers.base import EOS, PAD, UNK
from jaxgen.types import Array, Carry, Params

#: Inputs that are computed together. Fixed, because the number of rows in a matrix product changes float bits, and an
#: answer must depend only on its own input.
BLOCK_ROWS = 32
#: Inputs that are read ahead, so that inputs of similar lengths can be computed together.
READ_AHEAD = 32 * BLOCK_ROWS
#: Tokens that one compiled call generates.
DECODE_CHUNK = 32


@dataclass(frozen=True)
class DecodingConfig:
    """How to generate answers that are texts.

    Attributes:
        settings: Settings of sampling. Default: greedy, up to the longest text that the codec allows.
        beam: The number of beams; 0 for no beam search.
        length_penalty: The length penalty of beam search.

    Example:
        >>> jaxgen.DecodingConfig(beam=5, length_penalty=0.6)
        DecodingConfig(beam=5, length_penalty=0.6)
    """

    settings: GenerationConfig | None = None
    beam: int = 0
    length_penalty: float = 1.0

    def __repr__(self) -> str:
        return short_repr(self)


class DecodedText(NamedTuple):
    """A generated text.

    Attributes:
        tokens: Its ids without <eos>.
        logp: Its log-probability in nats, <eos> included. In beam search, <unk> and <pad> have probability 0.
        ended: Whether it ends with <eos>.
    """

    tokens: np.ndarray
    logp: float
    ended: bool

    def __repr__(self) -> str:
        return f"<DecodedText: {counted(self.tokens.size, 'token')}, {self.logp:.3f} nats>"


class UnreadableInput(NamedTuple):
    """An input that cannot be read, in place of its answer."""

    source: Source
    error: DataError


#: An input as the codec reads it: a line of text, an image file, an array of features.
Source = Any
#: An encoded input, and an answer: the codec of each task has its own.
Example = Any
Answer = dict[str, Any]


class Predictor(TrainedModel):
    """Answers inputs with a trained model. More inputs of the same widths need no new compilation.

    Example:
        >>> predictor = jaxgen.Predictor.load("runs/classify-1")
        >>> answer, = predictor.predict(["what a good film"])
        >>> sorted(answer["probabilities"])
        ['bad', 'good']
    """

    def __init__(self, task: Any, codec: Any = None, params: Params | None = None) -> None:
        if codec is None or params is None:
            raise UsageError(
                "A predictor needs a task, a codec and weights: call jaxgen.Predictor.load(run) for a trained run."
            )
        super().__init__(task, params)
        self.codec = codec
        #: How the run read its inputs: columns and header of tables, and whether texts had several lines.
        self.input_columns: tuple[str, ...] | None = None
        self.header: str | None = None
        self.trained_on_whole_files = False

    @classmethod
    def load(cls, run: str | Path | None = None) -> Predictor:
        """A predictor with the best checkpoint of a run.

        Args:
            run: The folder of the run. Default: the newest in ``runs/`` whose task answers inputs.

        Raises:
            CheckpointError: The run is missing or damaged.
            UsageError: The task of the run answers no inputs.
        """
        saved = LoadedRun.open(run, "predict")
        _, params, digest = saved.params_and_digest()
        predictor = cls(saved.task, saved.codec, params)
        predictor.digest = digest
        predictor.input_columns = getattr(saved.config, "input_columns", None)
        given = getattr(saved.config, "header", "auto")
        predictor.header = saved.resolved.get("header") if given == "auto" else given
        predictor.trained_on_whole_files = bool(saved.resolved.get("whole_files"))
        predictor.directory = saved.directory
        return predictor

    def predict(
        self,
        inputs: Iterable[Source],
        decoding: DecodingConfig | None = None,
        read_ahead: int | None = None,
        *,
        strict: bool = True,
    ) -> Iterator[Answer | UnreadableInput]:
        """An iterator over the answers, one for each input, in order.

        An answer depends only on its own input (and, if texts are drawn, on the number of the input).

        Args:
            inputs: What the codec reads.
            decoding: How to generate answers that are texts.
            read_ahead: Inputs to read before the first answer. Default: 1,024.
            strict: Raise for an input that cannot be read. Otherwise yield an ``UnreadableInput`` for it.

        Raises:
            UsageError: The settings cannot be used.
            DataError: An input cannot be read.
        """
        if isinstance(inputs, (str, bytes, Path)) or not is_iterable(inputs):
            raise UsageError(f"The inputs are of the type {type(inputs).__name__}: give a list of inputs, [input].")
        right = "jaxgen.DecodingConfig, for example DecodingConfig(GenerationConfig(length=100))"
        decoding = DecodingConfig() if decoding is None else check_kind("A predictor", decoding, DecodingConfig, right)
        if decoding.settings is not None:
            check_int("The length of an answer", decoding.settings.length, 1)
        ahead = (
            READ_AHEAD if read_ahead is None else check_int("The number of inputs to read ahead", read_ahead, 1, 10**9)
        )
        return self._all_answers(iter(inputs), decoding, ahead, strict)

    def _all_answers(
        self, waiting: Iterator[Source], decoding: DecodingConfig, ahead: int, strict: bool
    ) -> Iterator[Answer | UnreadableInput]:
        first = 0
        while some := list(islice(waiting, ahead)):
            yield from self._answers(some, first, decoding, strict)
            first += len(some)

    def _answers(
        self, inputs: Sequence[Source], first: int, decoding: DecodingConfig, strict: bool
    ) -> list[Answer | UnreadableInput]:
        codec = self.codec
        examples: list[Example] = [None] * len(inputs)
        answers: list[Any] = [None] * len(inputs)
        by_widths: dict[tuple[int, ...], list[int]] = {}
        for i, each in enumerate(inputs):
            if not codec.FILES:
                check_kind("An input", each, str, "one text (str)")
            try:
                examples[i] = codec.encode(each)
            except DataError as error:
                if strict:
                    raise
                answers[i] = UnreadableInput(each, error)
            else:
                by_widths.setdefault(codec.widths(examples[i]), []).append(i)
        for widths, which in sorted(by_widths.items()):
            for start in range(0, len(which), BLOCK_ROWS):
                block = which[start : start + BLOCK_ROWS]
                # Padded with row 0; garbage rows might never generate <eos>.
                padded = block + block[:1] * (BLOCK_ROWS - len(block))
                packed = codec.pack([examples[i] for i in padded], widths, BLOCK_ROWS)
                numbers = first + np.array(padded)
                outputs: list[Any]
                if self.task.ANSWER == "texts":
                    outputs = self.texts(packed, numbers, len(block), decoding)
                else:
                    outputs = self.values(packed, len(block))
                for i, output in zip(block, outputs):
                    answers[i] = codec.answer(inputs[i], output)
        return answers

    def values(self, inputs: Example, count: int) -> list[Any]:
        """Answers that are arrays, computed in one call: a pytree for each of the first ``count`` rows."""
        rows = jax.device_get(jitted.jit_predict(self.task)(self.weights, inputs))
        return [jax.tree.map(lambda a, i=i: a[i], rows) for i in range(count)]

    def texts(self, inputs: Example, numbers: np.ndarray, count: int, decoding: DecodingConfig) -> list[DecodedText]:
        """Answers that are texts, generated token by token, for each of the first ``count`` rows."""
        memory, carry, logits = jitted.jit_encode(self.task)(self.weights, inputs)
        if decoding.beam:
            return self._beam_search(memory, carry, logits, count, decoding)
        settings = self._settings(decoding)
        chain = settings.chain((PAD, UNK))
        state = DecodeState.start(chain, carry, logits, eos=EOS)
        decoder = jitted.jit_decode(self.task, chain.kinds, DECODE_CHUNK, settings.greedy)
        keys, chunks = sample_keys(settings.seed, jnp.asarray(numbers)), []
        for _ in range(-(-settings.length // DECODE_CHUNK)):
            state, drawn = decoder((self.weights, memory), state, keys)
            chunks.append(jax.device_get(drawn))
            if np.asarray(state.done).all():
                break
        tokens = np.concatenate([chunk.tokens for chunk in chunks], axis=1)[:, : settings.length]
        logp = np.concatenate([chunk.logp for chunk in chunks], axis=1)[:, : settings.length]
        # ``fsum`` is exact, so that the number of padded steps does not matter.
        return [_decoded_text(tokens[row], math.fsum(logp[row])) for row in range(count)]

    @property
    def has_attention(self) -> bool:
        """Whether answers are texts, written with attention to the input."""
        return bool(self.task.ANSWER == "texts" and self.task.model.decoder.attention != "none")

    def attention(self, source: Source, decoding: DecodingConfig | None = None, number: int = 0) -> AttentionMap:
        """The attention weights while the model generates the text for an input, <eos> included.

        Args:
            source: The input.
            decoding: How to generate the text.
            number: The number of the input, on which a drawn text depends.

        Raises:
            UsageError: The model has no attention.
        """
        if not self.has_attention:
            raise UsageError(
                "This model has no attention: it can be drawn for runs of the tasks translate and caption with an "
                '--attention other than "none".'
            )
        codec, example = self.codec, self.codec.encode(source)
        packed = codec.pack([example] * BLOCK_ROWS, codec.widths(example), BLOCK_ROWS)
        (text,) = self.texts(packed, np.full(BLOCK_ROWS, number), 1, decoding or DecodingConfig())
        tokens = np.full((BLOCK_ROWS, bucket_width(text.tokens.size + 1)), PAD, np.int32)
        tokens[0, : text.tokens.size + 1] = [EOS, *text.tokens]
        weights = np.asarray(jitted.jit_attention(self.task)(self.weights, packed, tokens))[0]
        attention_map: AttentionMap = codec.attention_map(source, text, weights)
        return attention_map

    def _settings(self, decoding: DecodingConfig) -> GenerationConfig:
        return decoding.settings or GenerationConfig(length=self.codec.longest, temperature=0.0)

    def _beam_search(
        self, memory: Any, carry: Carry, logits: Array, count: int, decoding: DecodingConfig
    ) -> list[DecodedText]:
        settings = self._settings(decoding)
        chain = with_forbidden((PAD, UNK), settings.transforms)
        states = beam_states(chain, Context(BLOCK_ROWS * decoding.beam, logits.shape[-1], eos=EOS))
        search = jitted.jit_beam_search(self.task, chain.kinds, decoding.beam, settings.length, 1)
        weights = self.weights, tile_beams(memory, decoding.beam)
        found = jax.device_get(search(weights, carry, logits, states, jnp.float32(decoding.length_penalty)))
        best = zip(found.tokens[:, 0], found.lengths[:, 0], found.logp[:, 0])
        return [_decoded_text(tokens[:length], float(logp)) for tokens, length, logp in list(best)[:count]]


def _decoded_text(tokens: np.ndarray, logp: float) -> DecodedText:
    """The text of tokens up to <eos>."""
    ends = np.flatnonzero(tokens == EOS)
    return DecodedText(tokens[: ends[0]] if ends.size else tokens, logp, bool(ends.size))
