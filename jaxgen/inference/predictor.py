"""Answers to inputs, in order: a label for a text, a text for a text or an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.data.bucketing import bucket_width
from jaxgen.errors import DataError, UsageError
from jaxgen.inference.generation_config import GenerationConfig, with_forbidden
from jaxgen.inference.loading import LoadedRun
from jaxgen.sampling.beam import beam_states, tile_beams
from jaxgen.sampling.decode import DecodeState, sample_keys
from jaxgen.sampling.transforms.base import Context
from jaxgen.tokenizers.base import EOS, PAD, UNK
from jaxgen.types import AttentionMap

#: Inputs that are computed together. Fixed, because the number of rows in a product changes float bits: an answer
#: depends on its own input alone.
ROWS = 32
#: Inputs that are read ahead, so that those of similar lengths can go together.
AHEAD = 32 * ROWS
#: Tokens that one compiled call writes.
CHUNK = 32


@dataclass(frozen=True)
class Writing:
    """How answers that are texts are written: by default greedily and as long as the model may have learnt to write
    (``longest`` of the codec), with ``beam`` the likeliest of so many beams."""

    settings: GenerationConfig | None = None
    beam: int = 0
    length_penalty: float = 1.0


class Text(NamedTuple):
    """A text that was written: its tokens, without the end, and its log-probability in nats, the end counted.

    Of a text of beam search, the probability is that among texts without <unk> and padding.
    """

    tokens: np.ndarray
    logp: float
    ended: bool


class Unread(NamedTuple):
    """An input that has no answer, and why."""

    source: Any
    error: DataError


class Predictor:
    """Answers inputs with a trained model: made once, then any inputs of the widths seen compile nothing."""

    def __init__(self, task: Any, codec: Any, params: Any) -> None:
        self.task, self.codec = task, codec
        #: The run that the weights come from, if they come from one.
        self.path: Path | None = None
        self._params, self._prepared = params, None

    @classmethod
    def load(cls, run: str | Path | None = None) -> Predictor:
        """The best checkpoint of a run (by default of the newest in ``runs/`` that answers inputs).

        Raises ``CheckpointError``, and ``UsageError`` for a run of a task that answers none.
        """
        saved = LoadedRun.open(run, "predict")
        predictor = cls(saved.task, saved.codec, saved.params()[1])
        predictor.path = saved.directory.path
        return predictor

    def with_params(self, params: Any) -> Predictor:
        """Other weights of the same shapes, without compiling anything again."""
        self._params, self._prepared = params, None
        return self

    @property
    def weights(self) -> Any:
        """What prediction reads, laid out at the first use."""
        if self._prepared is None:
            self._prepared = jitted.jit_prepare(self.task)(self._params)
        return self._prepared

    def predict(
        self, inputs: Iterable[Any], writing: Writing | None = None, ahead: int | None = None, *, strict: bool = True
    ) -> Iterator[Any]:
        """An answer for each input, in order, as the codec tells it; up to ``ahead`` inputs (1,024) are waited for.

        It depends on its own input alone (and, where texts are drawn, on the input's number). Raises ``UsageError``
        for settings that do not fit, and ``DataError`` for an input that cannot be read; unless ``strict``, an
        ``Unread`` stands in the place of its answer.
        """
        writing = writing or Writing()
        if writing.settings is not None and writing.settings.length < 1:
            raise UsageError("An answer of 0 tokens cannot be written: give a length of 1 or more.")
        waiting, first = iter(inputs), 0
        while some := list(islice(waiting, ahead or AHEAD)):
            yield from self._answers(some, first, writing, strict)
            first += len(some)

    def _answers(self, inputs: Sequence[Any], first: int, writing: Writing, strict: bool) -> list[Any]:
        codec = self.codec
        examples: list[Any] = [None] * len(inputs)
        answers: list[Any] = [None] * len(inputs)
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, each in enumerate(inputs):
            try:
                examples[i] = codec.encode(each)
            except DataError as error:
                if strict:
                    raise
                answers[i] = Unread(each, error)
            else:
                alike.setdefault(codec.widths(examples[i]), []).append(i)
        for widths, which in sorted(alike.items()):
            for start in range(0, len(which), ROWS):
                block = which[start : start + ROWS]
                # Filled up with the first: it is done when that is, which nonsense may never be.
                filled = block + block[:1] * (ROWS - len(block))
                packed = codec.pack([examples[i] for i in filled], widths, ROWS)
                numbers = first + np.array(filled)
                outputs = ANSWERS[self.task.ANSWER](self, packed, numbers, len(block), writing)
                for i, output in zip(block, outputs):
                    answers[i] = codec.answer(inputs[i], output)
        return answers

    def values(self, inputs: Any, numbers: np.ndarray, count: int, writing: Writing) -> list[Any]:
        """Numbers that a model computes at once: a tree of arrays for each of the first ``count`` rows."""
        del numbers, writing
        rows = jax.device_get(jitted.jit_predict(self.task)(self.weights, inputs))
        return [jax.tree.map(lambda a, i=i: a[i], rows) for i in range(count)]

    def texts(self, inputs: Any, numbers: np.ndarray, count: int, writing: Writing) -> list[Text]:
        """Texts that a model writes, a token at a time, for each of the first ``count`` rows."""
        memory, carry, logits = jitted.jit_encode(self.task)(self.weights, inputs)
        if writing.beam:
            return self._likeliest(memory, carry, logits, count, writing)
        settings = self._settings(writing)
        chain = settings.chain((PAD, UNK))
        state = DecodeState.start(chain, carry, logits, eos=EOS)
        decoder = jitted.jit_decode(self.task, chain.kinds, CHUNK, settings.greedy)
        keys, pieces = sample_keys(settings.seed, jnp.asarray(numbers)), []
        for _ in range(-(-settings.length // CHUNK)):
            state, drawn = decoder((self.weights, memory), state, keys)
            pieces.append(jax.device_get(drawn))
            if np.asarray(state.done).all():
                break
        tokens = np.concatenate([piece.tokens for piece in pieces], axis=1)[:, : settings.length]
        logp = np.concatenate([piece.logp for piece in pieces], axis=1)[:, : settings.length]
        return [_text(tokens[row], math.fsum(logp[row])) for row in range(count)]  # however long the others are

    def attention(self, source: Any, writing: Writing | None = None, number: int = 0) -> AttentionMap:
        """Where the model looks while it writes the text for input ``number``, and when it ends.

        Raises ``UsageError`` for a model without attention.
        """
        if self.task.ANSWER != "texts" or self.task.model.decoder.attention == "none":
            raise UsageError(
                "This model looks at no places while it writes: where one looks can be drawn for runs of the tasks "
                'translate and caption with an --attention other than "none".'
            )
        codec, example = self.codec, self.codec.encode(source)
        packed = codec.pack([example] * ROWS, codec.widths(example), ROWS)
        (text,) = self.texts(packed, np.full(ROWS, number), 1, writing or Writing())
        tokens = np.full((ROWS, bucket_width(text.tokens.size + 1)), PAD, np.int32)
        tokens[0, : text.tokens.size + 1] = [EOS, *text.tokens]
        places = np.asarray(jitted.jit_attention(self.task)(self.weights, packed, tokens))[0]
        attention_map: AttentionMap = codec.attention_map(source, text, places)
        return attention_map

    def _settings(self, writing: Writing) -> GenerationConfig:
        return writing.settings or GenerationConfig(length=self.codec.longest, temperature=0.0)

    def _likeliest(self, memory: Any, carry: Any, logits: Any, count: int, writing: Writing) -> list[Text]:
        settings = self._settings(writing)
        chain = with_forbidden((PAD, UNK), settings.transforms)
        states = beam_states(chain, Context(ROWS * writing.beam, logits.shape[-1], eos=EOS))
        search = jitted.jit_beam_search(self.task, chain.kinds, writing.beam, settings.length, 1)
        weights = self.weights, tile_beams(memory, writing.beam)
        found = jax.device_get(search(weights, carry, logits, states, jnp.float32(writing.length_penalty)))
        best = zip(found.tokens[:, 0], found.lengths[:, 0], found.logp[:, 0])
        return [_text(tokens[:length], float(logp)) for tokens, length, logp in list(best)[:count]]


def _text(tokens: np.ndarray, logp: float) -> Text:
    """The tokens in front of the end."""
    ends = np.flatnonzero(tokens == EOS)
    return Text(tokens[: ends[0]] if ends.size else tokens, logp, bool(ends.size))


#: How an answer comes about, by the ``ANSWER`` of a task.
ANSWERS: dict[str, Callable[..., list[Any]]] = {"texts": Predictor.texts, "values": Predictor.values}
