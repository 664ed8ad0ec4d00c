"""Log-probabilities that a model gives texts, per token and in total."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxgen import jitted
from jaxgen.errors import UsageError, check_int, check_kind, check_text, choose, counted
from jaxgen.inference.adaptation import Adaptation, AdaptiveOptions, AdaptiveReader, NeuralCache
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.notebook import colored_tokens
from jaxgen.sampling.decode import prefill_chunks
from jaxgen.tokenizers.base import EOS, UNKNOWNS, Encoded, Tokenizer, encode_pieces
from jaxgen.types import Array, Carry

#: Steps of a compiled call.
CHUNK = 64
#: Targets of a segment of a text that is scored without windows.
SEGMENT = 4_096
#: Steps that every row has before a batch is scored.
FILL = 4 * CHUNK


class Segment(NamedTuple):
    """A part of a text: the model reads ``tokens`` [n] and predicts ``targets`` [n].

    The first ``skip`` targets are not scored: they warm up the state. ``fresh``: starts from a zero state.
    """

    tokens: np.ndarray
    targets: np.ndarray
    skip: int = 0
    fresh: bool = True


@dataclass(frozen=True)
class PackedBatch:
    """Segments packed into rows: fields [R, C], where C is a multiple of ``CHUNK``.

    ``places`` has the row, first column and end column of the scored targets of each segment, in order.
    """

    tokens: np.ndarray
    targets: np.ndarray
    reset: np.ndarray
    valid: np.ndarray
    places: list[tuple[int, int, int]]


def stateful_segments(ids: Iterable[np.ndarray], start: int) -> Iterator[Segment]:
    """Yields a text as segments that each continue the state of the one before; ``start`` is read first."""
    fresh = True
    for targets in rechunk(ids, SEGMENT):  # the same segments, and bits, wherever the text was cut
        yield whole_segment(targets, start)._replace(fresh=fresh)
        start, fresh = int(targets[-1]), False


def windows(ids: Iterable[np.ndarray], start: int, length: int, burn_in: int = 0) -> Iterator[Segment]:
    """Yields segments of ``length`` targets, each from a fresh state that reads up to ``burn_in`` earlier tokens.

    The first token that a segment reads is the one before it, as in ``window_eval``.
    """
    context = np.array([start], np.int32)
    for targets in rechunk(ids, length):
        skip = context.size - 1
        read = np.concatenate([context, targets])
        yield Segment(read[:-1], read[1:], skip)
        context = read[-(burn_in + 1) :]


def whole_segment(ids: np.ndarray, start: int) -> Segment:
    """Returns a text as one segment; ``start`` is read before its first token."""
    return Segment(np.concatenate([np.array([start], np.int32), ids])[: ids.size], ids)


def rechunk(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the same ids in arrays of ``size``; the last one may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for array in arrays:
        held.append(array)
        count += array.size
        if count >= size:
            joined = np.concatenate(held)
            end = count // size * size
            yield from joined[:end].reshape(-1, size)
            held, count = [joined[end:]], count - end
    if count:
        yield np.concatenate(held)


def pack(segments: Iterable[Segment], rows: int) -> Iterator[PackedBatch]:
    """Packs segments into batches of ``rows`` rows; the next segment is always appended to the shortest row.

    Segments that are not ``fresh`` need a single row, so that they follow the segment that they continue.
    """
    lanes: list[tuple[int, int]] = [(0, row) for row in range(rows)]
    held: list[tuple[int, int, Segment]] = []
    for segment in segments:
        filled, row = lanes[0]
        heapq.heapreplace(lanes, (filled + segment.targets.size, row))
        held.append((row, filled, segment))
        if lanes[0][0] >= FILL:
            yield _batch(held, rows, max(lanes)[0])
            lanes, held = [(0, row) for row in range(rows)], []
    if held:
        yield _batch(held, rows, max(lanes)[0])


def _batch(held: list[tuple[int, int, Segment]], rows: int, steps: int) -> PackedBatch:
    shape = rows, max(-(-steps // CHUNK), 1) * CHUNK  # one empty chunk for empty texts
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    reset, valid = np.zeros(shape, bool), np.zeros(shape, bool)
    places = []
    for row, at, segment in held:
        end = at + segment.targets.size
        tokens[row, at:end], targets[row, at:end], valid[row, at:end] = segment.tokens, segment.targets, True
        reset[row, at : min(at + 1, end)] = segment.fresh
        places.append((row, at + segment.skip, end))
    return PackedBatch(tokens, targets, reset, valid, places)


class TokenScores(NamedTuple):
    """Consecutive tokens of a text with their log-probabilities, and the ``top`` most probable tokens at each."""

    tokens: np.ndarray  # int32 [n]
    logp: np.ndarray  # float32 [n], nats
    top: np.ndarray  # int32 [n, top], the most probable first
    top_logp: np.ndarray  # float32 [n, top], nats

    def __repr__(self) -> str:
        return f"<jaxgen.TokenScores: {counted(self.tokens.size, 'token')}>"


@dataclass(frozen=True)
class Score:
    """The log-probability of a text, and its size.

    Attributes:
        logp: The sum over all tokens, in nats.
        tokens: Scored tokens, <eos> included.
        chars: Characters of the text. Bits per character include the cost of <eos>, as in a run's evaluations.
        bytes: Bytes of the text in UTF-8.
        words: What stands between white space, and line ends (also <eos>), as the literature counts words.
        unknown: Tokens scored as <unk>; bits are then a lower bound. Skipped ones are in none of these sums.
        forced: Places where a text without white space was cut, which may have changed a few tokens.

    Example:
        >>> jaxgen.Score(logp=-2.0, tokens=4, chars=4, bytes=4)
        <jaxgen.Score: -2.0000 nats for 4 tokens, perplexity 1.649, 0.7213 bits per character>
    """

    logp: float = 0.0
    tokens: int = 0
    chars: int = 0
    bytes: int = 0
    words: int = 0
    unknown: int = 0
    forced: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __repr__(self) -> str:
        unknown = f", {self.unknown:,} unknown" if self.unknown else ""
        ratios = [(self.perplexity, "perplexity {:.4g}"), (self.bits_per_char, "{:.4g} bits per character")]
        figures = "".join(f", {form.format(value)}" for value, form in ratios if value is not None)
        return f"<jaxgen.Score: {self.logp:.4f} nats for {counted(self.tokens, 'token')}{figures}{unknown}>"

    @property
    def nats_per_token(self) -> float | None:
        """The mean negative log-likelihood; None without tokens."""
        return -self.logp / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp(nats per token); None without tokens."""
        return None if self.nats_per_token is None else math.exp(min(self.nats_per_token, 700.0))

    @property
    def word_perplexity(self) -> float | None:
        """exp(nats per word); None without words."""
        return math.exp(min(-self.logp / self.words, 700.0)) if self.words else None

    @property
    def bits_per_char(self) -> float | None:
        """Bits per character; None without characters."""
        return -self.logp / math.log(2) / self.chars if self.chars else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte; None without bytes."""
        return -self.logp / math.log(2) / self.bytes if self.bytes else None

    def to_json(self) -> dict[str, Any]:
        """The sums and the ratios as JSON values."""
        names = ("logp", "tokens", "chars", "bytes", "words", "unknown", "nats_per_token", "perplexity")
        ratios = ("word_perplexity", "bits_per_char", "bits_per_byte")
        return {name: getattr(self, name) for name in (*names, *ratios)}


class Surprise(NamedTuple):
    """A token of a text, its position from 1, its bits, and the text around it."""

    position: int
    token: str
    bits: float
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class ScoredText:
    """A text with its score and those of its tokens. Notebooks colour the tokens by their probability.

    Attributes:
        score: The score of the whole text.
        tokens: Its tokens.
        tokenizer: Decodes them.

    Example:
        >>> scored = jaxgen.load("runs/language-1").score("the", details=True)
        >>> [text for text, logp in scored.parts], scored.score.tokens
        (['t', 'h', 'e'], 3)
    """

    score: Score
    tokens: TokenScores
    tokenizer: Tokenizer

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The text in tokens with their log-probabilities in nats, <eos> included."""
        return self.tokenizer.text_parts(self.tokens.tokens, self.tokens.logp)

    def bits(self, position: int) -> float:
        """The bits of the token at a position, from 1: -log2 of its probability."""
        return float(self.tokens.logp[position - 1]) / -math.log(2)

    def surprising(self, number: int = 10, around: int = 24) -> list[Surprise]:
        """The tokens with most bits, with ``around`` tokens before and half as many after them.

        Example:
            >>> scored = jaxgen.load("runs/language-1").score("the cat sat", details=True)
            >>> [each.position for each in scored.surprising(2)] == sorted(range(1, 12), key=scored.bits)[:-3:-1]
            True
        """
        ids, decode = self.tokens.tokens, self.tokenizer.decode
        return [
            Surprise(
                int(i) + 1,
                decode(ids[i : i + 1]) or "<eos>",
                self.bits(int(i) + 1),
                decode(ids[max(0, i - around) : i]),
                decode(ids[i + 1 : i + 1 + around // 2]),
            )
            for i in np.argsort(self.tokens.logp, kind="stable")[:number]
        ]

    def __repr__(self) -> str:
        return f"<jaxgen.ScoredText: {repr(self.score)[1:-1].removeprefix('jaxgen.Score: ')}>"

    def _repr_html_(self) -> str:
        return colored_tokens(self.parts, repr(self.score)[1:-1].removeprefix("jaxgen.Score: "))


@dataclass(frozen=True)
class Candidate:
    """A ranked continuation. ``rank`` counts from 1; equally probable candidates share a rank and are ``tied``."""

    rank: int
    index: int
    text: str
    score: Score
    tied: bool


def concat(parts: Iterable[TokenScores], top: int) -> TokenScores:
    """The tokens of several parts in order; ``top`` is the number of most probable tokens at each position."""
    empty = (
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, top), np.int32),
        np.zeros((0, top), np.float32),
    )
    return TokenScores(*(np.concatenate(field) for field in zip(empty, *parts)))


#: The state is reset only at the beginning of a text, or in every window.
STATES = ("carried", "cold")
#: Rows of independent segments that are scored together.
SCORE_ROWS = 64
MAX_LANES = 1_024
#: Targets of a lane segment, and earlier tokens that warm up its state. As in ``stream_eval``.
LANE_LENGTH, BURN_IN = 4_096, 256
MAX_WINDOW = 1 << 16
MAX_TOP = 1_000
#: The largest number of tokens in a batch; each of the ``top`` tokens returned with one counts as two more.
MAX_TOKENS = 1 << 18


class Scorer:
    """Scores texts with a sampler's model. Another text of any length needs no new compilation.

    A model of documents reads <eos> before a text and scores <eos> at its end. A model of running text has no start
    and end tokens: a text is scored as it stands after a line break.

    Args:
        sampler: The model.
        state: ``carried``: one state from the beginning of a text to its end. ``cold``: the state is reset for every
            window, with only the preceding token as context. Much faster, and a text scores worse.
        window: Tokens of a window of ``cold``.
        lanes: With ``carried``, segments of one text that are scored together (as many as fit in memory). With more
            than 1, the state is reset every 4,096 tokens and warmed up with the 256 tokens before.
        top: The number of most probable tokens to return at each position, up to 1,000.
        unk: What to do with characters that are not in the vocabulary: ``error``, ``skip``, or ``keep`` (score <unk>).
        end: Whether <eos> is scored. Default: whether the model has documents.
        adapt: Adapt the weights to each text while it is read.
        cache: Make recent tokens more probable.
        temperature: Divides the logits.

    Raises:
        UsageError: A value is out of range, or two do not fit together.

    Example:
        >>> score = jaxgen.Scorer.load("runs/language-1").score("the cat sat")
        >>> score.tokens, score.logp < 0
        (11, True)
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        state: str = "carried",
        window: int = 64,
        lanes: int = 1,
        top: int = 0,
        unk: str = "error",
        end: bool | None = None,
        adapt: Adaptation | None = None,
        cache: NeuralCache | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.sampler = (
            sampler
            if hasattr(sampler, "tokenizer")
            else check_kind("A scorer", sampler, Sampler, "a jaxgen.Sampler, or call jaxgen.Scorer.load(run)")
        )
        self.state, self.unk = choose(state, STATES, "state"), choose(unk, UNKNOWNS, "way to treat unknowns (--unk)")
        self.window = check_int("The window", window, 1, MAX_WINDOW)
        self.lanes = check_int("The number of lanes", lanes, 1, MAX_LANES)
        most = min(MAX_TOP, sampler.tokenizer.vocab_size)
        self.top = check_int("The number of most probable tokens (--top)", top, 0, most)
        if state == "cold" and lanes > 1:
            raise UsageError("Lanes need a carried state, and windows are cold: give one of the two.")
        if check_kind("A scorer", end, bool | None, "end as True, False or None") and not sampler.documents:
            raise UsageError("This model was trained on running text, which has no end to score: leave out --end.")
        self.end = sampler.documents if end is None else end
        #: Adaptation, cache and temperature.
        self.adaptive = AdaptiveOptions(adapt, cache, temperature)
        if not self.adaptive.plain and (state == "cold" or lanes > 1):
            raise UsageError(
                "A text is read in order, token by token, to adapt to it or with a cache or another temperature: leave "
                "out --state cold and --lanes."
            )
        #: Seconds spent compiling, to be left out of speeds.
        self.compile_seconds = 0.0
        self._function: Callable[..., tuple[Carry, Scored]] | None = None

    def __repr__(self) -> str:
        return f"<jaxgen.Scorer: state {self.state}, {self.sampler!r}>"

    def __getstate__(self) -> dict[str, Any]:
        """What ``pickle`` keeps: nothing that is compiled."""
        return {**vars(self), "_function": None}

    @classmethod
    def load(cls, run: str | Path | None = None, **options: Any) -> Scorer:
        """A scorer with the best checkpoint of a run (default: the newest in ``runs/``). Raises as ``Sampler.load``."""
        return cls(Sampler.load(run), **options)

    def score(self, text: str | Iterable[str], prompt: str = "") -> Score:
        """The score of a text, given whole or in pieces, after ``prompt``, which is read and not scored."""
        stream = self.stream(text, prompt)
        deque(stream, maxlen=0)
        return stream.score

    def per_token(self, text: str | Iterable[str], prompt: str = "") -> TokenScores:
        """All tokens of a text with their log-probabilities. ``stream`` needs less memory."""
        return concat(self.stream(text, prompt), self.top)

    def details(self, text: str | Iterable[str], prompt: str = "") -> ScoredText:
        """The score of a text and of each of its tokens."""
        stream = self.stream(text, prompt)
        tokens = concat(stream, self.top)
        return ScoredText(stream.score, tokens, self.sampler.tokenizer)

    def stream(self, text: str | Iterable[str], prompt: str = "", where: str = "The text") -> ScoreStream:
        """Score a text in constant memory: iterate over the result for its tokens, then read its ``score``.

        ``where`` names the text in error messages.
        """
        pieces = [text] if isinstance(text, str) else check_kind(where, text, Iterable, "a text, or its pieces")
        return ScoreStream(self, (check_text(where, piece) for piece in pieces), prompt, where)

    def score_each(
        self, texts: Iterable[str], prompt: str = "", where: str = "Text"
    ) -> Iterator[tuple[Score, TokenScores]]:
        """Score many texts together, each from its own state after ``prompt``. Fast for short texts.

        Each text is held in memory; ``lanes`` has no effect.

        Args:
            texts: The texts.
            prompt: Read before each text, and not scored.
            where: Names the texts in error messages, followed by a number from 1.

        Yields:
            The score of each text and its tokens, in order.
        """
        if isinstance(texts, str):
            raise UsageError("The texts to score are one text: give a list of texts, or call score(text).")
        if not self.adaptive.plain:
            for number, text in enumerate(texts, start=1):
                stream = self.stream(text, prompt, f"{where} {number}")
                tokens = concat(stream, self.top)
                yield stream.score, tokens
            return
        (prompt_ids, held), waiting = self._open_prompt(prompt), deque[tuple[Score, int]]()

        def segments() -> Iterator[Segment]:
            for number, text in enumerate(texts, start=1):
                encoded = list(self._encoded([check_text(f"{where} {number}", text)], f"{where} {number}", held))
                ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in encoded)])
                found = [whole_segment(ids, int(prompt_ids[-1]))]
                if self.state == "cold" and ids.size:
                    found = list(windows([ids], int(prompt_ids[-1]), self.window))
                waiting.append((sum(map(_size, encoded), Score()), len(found)))
                yield from found

        parts: list[TokenScores] = []
        rows = self._rows(SCORE_ROWS, self.window if self.state == "cold" else FILL)
        for part in self._run(segments(), prompt_ids, rows):
            parts.append(part)
            size, count = waiting[0]
            if len(parts) == count:
                waiting.popleft()
                yield sum(map(_sum, parts), size), concat(parts, self.top)
                parts = []

    def rank(self, prompt: str, candidates: Sequence[str]) -> list[Candidate]:
        """Rank continuations of ``prompt``, the most probable first; equally probable ones keep their order.

        Each candidate is encoded separately, exactly as it stands. A space at the end of the prompt begins the first
        token of a candidate, at levels whose tokens include the space before a word. <eos> after it is scored if
        ``end`` is true.
        """
        candidates = [] if isinstance(candidates, str) else list(candidates or ())
        if not candidates:
            raise UsageError("There are no candidates to rank: give two or more continuations of the prompt.")
        # Equal candidates are scored once: float bits can depend on the row of a batch.
        different = list(dict.fromkeys(candidates))
        scores = dict(zip(different, (score for score, _ in self.score_each(different, prompt, "Candidate"))))
        if nothing := [text for text in different if not scores[text].tokens]:
            raise UsageError(f"The candidate {nothing[0]!r} has no token to score: leave it out.")
        order = sorted(range(len(candidates)), key=lambda i: -scores[candidates[i]].logp)
        likelihoods = [scores[text].logp for text in candidates]
        return [
            Candidate(
                rank=1 + sum(other > likelihoods[i] for other in likelihoods),
                index=i,
                text=candidates[i],
                score=scores[candidates[i]],
                tied=likelihoods.count(likelihoods[i]) > 1,
            )
            for i in order
        ]

    def _open_prompt(self, prompt: str) -> tuple[np.ndarray, str]:
        """The ids that are read before a text, the last one in the same call as the text, and what is held back."""
        if check_text("The prompt", prompt) and (self.state == "cold" or self.lanes > 1):
            raise UsageError(
                "A prompt needs one state that is carried through the text: leave out the prompt, or give "
                "--state carried and --lanes 1."
            )
        return self.sampler.open_prompt(prompt, unk=self.unk)

    def _encoded(self, pieces: Iterable[str], where: str, held: str) -> Iterator[Encoded]:
        """The ids of a text in pieces after what was held back of the prompt, and <eos> if it is scored."""
        pieces = self.sampler.reading.pieces(pieces)
        yield from encode_pieces(self.sampler.tokenizer, pieces, unk=self.unk, where=where, held=held)
        if self.end:
            yield Encoded(np.array([EOS], np.int32), words=1)

    def _segments(self, ids: Iterable[np.ndarray], start: int) -> tuple[Iterator[Segment], int]:
        """One text as segments, and the number of rows to pack them in."""
        if self.state == "cold":
            return windows(ids, start, self.window), self._rows(SCORE_ROWS, self.window)
        if self.lanes > 1:
            return windows(ids, start, LANE_LENGTH, BURN_IN), self._rows(self.lanes, LANE_LENGTH)
        return stateful_segments(ids, start), 1

    def _rows(self, most: int, steps: int) -> int:
        """How many rows of at least ``steps`` tokens fit in memory: from 1 to ``most``."""
        return max(1, min(most, MAX_TOKENS // (max(steps, FILL) * (1 + 2 * self.top))))

    def _read_in_order(self, ids: Iterator[np.ndarray], prompt_ids: np.ndarray) -> Iterator[TokenScores]:
        """The scores of a text that is read in order after the prompt, to which the model adapts too."""
        first = next(ids, None)  # before anything is compiled: text that cannot be encoded raises here
        if first is None:
            return
        carry = self.sampler.initial_state().carry
        reader = AdaptiveReader(self.sampler.task, self.sampler.params, carry, self.adaptive, self.top)
        skip, last = prompt_ids.size - 1, prompt_ids[:1]
        for targets in rechunk(chain([prompt_ids[1:], first], ids), reader.block):
            for found in reader.read(np.concatenate([last, targets[:-1]]), targets):
                unread = slice(min(skip, targets.size), None)
                yield TokenScores(targets[unread], *(each[unread] for each in found))
            skip, last = max(skip - targets.size, 0), targets[-1:]
        self.compile_seconds = self.compile_seconds or reader.compile_seconds

    def _run(self, segments: Iterator[Segment], prompt_ids: np.ndarray, rows: int) -> Iterator[TokenScores]:
        """The scores of each segment in order. The next batch is computed while one is read."""
        batches = pack(segments, rows)
        first = next(batches, None)  # before anything is compiled: text that cannot be encoded raises here
        if first is None:
            return
        initial = self._initial(prompt_ids, rows)
        if self._function is None:
            began = time.perf_counter()
            self._function = jitted.jit_score(self.sampler.task, self.top)
            jax.block_until_ready(self._function(self.sampler.weights, initial, *_chunk(first, 0), initial))
            self.compile_seconds = time.perf_counter() - began
        carry, ahead = initial, None
        for batch in chain([first], batches):
            scored = []
            for at in range(0, batch.tokens.shape[1], CHUNK):
                carry, part = self._function(self.sampler.weights, carry, *_chunk(batch, at), initial)
                scored.append(part)
            if ahead is not None:
                yield from _collect(*ahead)
            ahead = batch, scored
        if ahead is not None:
            yield from _collect(*ahead)

    def _initial(self, prompt_ids: np.ndarray, rows: int) -> Carry:
        """The carry of ``rows`` rows after the prompt without its last token."""
        state = self.sampler.initial_state()
        carry, logits = state.carry, state.logits
        for tokens, valid in prefill_chunks(prompt_ids[:-1]):
            prefill = jitted.jit_prefill(self.sampler.task)
            carry, logits = prefill(self.sampler.weights, carry, logits, tokens, valid)
        return jax.tree.map(lambda a: jnp.repeat(a, rows, axis=0), carry)


class ScoreStream:
    """A text that is scored while it is iterated over; yields its tokens in parts.

    ``score`` is that of the tokens so far, and of the whole text when the iterator has ended.
    """

    def __init__(self, scorer: Scorer, pieces: Iterable[str], prompt: str, where: str) -> None:
        self.score = Score()
        self._parts = self._run(scorer, pieces, *scorer._open_prompt(prompt), where)

    def __iter__(self) -> Iterator[TokenScores]:
        return self._parts

    def _run(
        self, scorer: Scorer, pieces: Iterable[str], prompt_ids: np.ndarray, held: str, where: str
    ) -> Iterator[TokenScores]:
        size = Score()

        def ids() -> Iterator[np.ndarray]:
            nonlocal size
            for part in scorer._encoded(pieces, where, held):
                size += _size(part)
                yield part.ids

        if scorer.adaptive.plain:
            segments, rows = scorer._segments(ids(), int(prompt_ids[-1]))
            parts = scorer._run(segments, prompt_ids, rows)
        else:
            parts = scorer._read_in_order(ids(), prompt_ids)
        for part in parts:
            self.score += _sum(part)
            yield part
        self.score += size


class StateScorer:
    """Scores a text that continues a state, token by token, for example while it is generated.

    Args:
        sampler: The model.
        start: The state before the text.
        top: The number of most probable tokens to return at each position; fewer if the vocabulary has fewer.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> found = jaxgen.inference.scorer.StateScorer(sampler, sampler.read("the "), top=2).feed([7, 4])
        >>> found.logp.shape, found.top.shape
        ((2,), (2, 2))
    """

    def __init__(self, sampler: Sampler, start: DecoderState, top: int = 0) -> None:
        self.top = min(check_int("The number of most probable tokens", top, 0, MAX_TOP), sampler.tokenizer.vocab_size)
        self._score = jitted.jit_score(sampler.task, self.top)
        self._weights, self._carry, self._logits = sampler.weights_at(start), start.carry, start.logits
        self._last: int | None = None  # the last token, which is not read yet

    def feed(self, tokens: npt.ArrayLike) -> TokenScores:
        """The scores of the next tokens [T] of the text."""
        ids, parts = np.asarray(tokens, np.int32), list[TokenScores]()
        if ids.size and self._last is None:
            logp = np.asarray(jax.nn.log_softmax(self._logits[0].astype(jnp.float32)))
            best = np.argsort(-logp, kind="stable")[: self.top].astype(np.int32)
            parts.append(TokenScores(ids[:1], logp[ids[:1]], best[None], logp[best][None]))
            self._last, ids = int(ids[0]), ids[1:]
        for targets in np.split(ids, range(CHUNK, ids.size, CHUNK)) if ids.size else ():
            read = np.concatenate([[self._last], targets[:-1]])
            inputs = [np.pad(each.astype(np.int32), (0, CHUNK - targets.size))[None] for each in (read, targets)]
            valid = (np.arange(CHUNK) < targets.size)[None]
            arguments = *inputs, np.zeros((1, CHUNK), bool), valid, self._carry
            self._carry, scored = self._score(self._weights, self._carry, *arguments)
            parts.append(TokenScores(targets, *(np.asarray(each)[0, : targets.size] for each in scored)))
            self._last = int(targets[-1])
        return concat(parts, self.top)


#: The log-probabilities of a chunk [R, T], and the most probable tokens with theirs [R, T, top], on the device.
Scored = tuple[Array, Array, Array]


def _chunk(batch: PackedBatch, at: int) -> list[np.ndarray]:
    return [field[:, at : at + CHUNK] for field in (batch.tokens, batch.targets, batch.reset, batch.valid)]


def _collect(batch: PackedBatch, scored: list[Scored]) -> Iterator[TokenScores]:
    """Wait for the scores of a batch and yield those of each segment."""
    logp, top, top_logp = (np.concatenate([np.asarray(each) for each in field], axis=1) for field in zip(*scored))
    for row, start, end in batch.places:
        here = row, slice(start, end)
        yield TokenScores(batch.targets[here], logp[here], top[here], top_logp[here])


def _sum(part: TokenScores) -> Score:
    return Score(float(part.logp.sum(dtype=np.float64)), part.logp.size)


def _size(part: Encoded) -> Score:
    return Score(0.0, 0, part.chars, part.bytes, part.words, part.unknown, int(part.forced))
