"""What a model thinks of a text: log-probabilities, token by token and together."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.errors import UsageError, choose
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scoring_batches import CHUNK, FILL, PackedBatch, Segment, pack, stateful_segments, whole, windows
from jaxgen.sampling.decode import prefill_chunks
from jaxgen.tokenizers.base import EOS
from jaxgen.tokenizers.pieces import UNKNOWNS, Encoded, encode_pieces


class TokenScores(NamedTuple):
    """Tokens in the order of the text, with what the model gave each and the ``top`` likeliest in its place."""

    tokens: np.ndarray  # int32 [n]
    logp: np.ndarray  # float32 [n], nats
    top: np.ndarray  # int32 [n, top], the likeliest first
    top_logp: np.ndarray  # float32 [n, top], nats


@dataclass(frozen=True)
class Score:
    """The log-probability of a text in nats, and how much text it is.

    ``tokens`` counts what was scored, <eos> too; ``chars`` and ``bytes`` the text it stands for, so that bits per
    character include what the end costs, as in a run's evaluations. ``unknown`` tokens count as <unk>, and bits
    are then a lower bound; those that were skipped are in none of these sums. ``forced`` counts cuts that may have
    changed a few ids.
    """

    logp: float = 0.0
    tokens: int = 0
    chars: int = 0
    bytes: int = 0
    unknown: int = 0
    forced: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def nats_per_token(self) -> float:
        """The mean negative log-likelihood; NaN without tokens, as everything below without what it divides by."""
        return -self.logp / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_char(self) -> float:
        return -self.logp / math.log(2) / self.chars if self.chars else math.nan

    @property
    def bits_per_byte(self) -> float:
        return -self.logp / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Candidate:
    """A continuation among others. ``rank`` counts from 1; those that are equally likely have the same."""

    rank: int
    index: int
    text: str
    score: Score
    tied: bool


def concat(parts: Sequence[TokenScores], top: int) -> TokenScores:
    """The tokens of several parts in order; ``top`` is how many likeliest they come with."""
    if not parts:
        none = np.zeros((0, top), np.float32)
        return TokenScores(np.zeros(0, np.int32), np.zeros(0, np.float32), none.astype(np.int32), none)
    return TokenScores(*(np.concatenate(field) for field in zip(*parts)))


#: How the state begins: with the text alone, or anew in every window.
STATES = ("carried", "cold")
#: Rows that are scored side by side where none goes on from another.
ROWS = 64
MAX_LANES = 1_024
#: Targets of a lane's turn, and tokens before it that warm its state. As in ``stream_eval``.
LANE, BURN_IN = 4_096, 256
MAX_WINDOW = 1 << 16
MAX_TOP = 1_000
#: Tokens that are laid out at once, at most; each of the likeliest that come back with one counts as two more.
MAX_TOKENS = 1 << 18


class Scorer:
    """Scores texts with a sampler's model. Compiled once, then any text of any length runs without a new compile.

    ``state="carried"`` reads a text from its start to its end with one state. ``lanes`` of them read it side by side,
    sooner (as many at once as memory is meant for): every 4,096 tokens the state then begins anew, warmed by the 256
    tokens before. ``state="cold"`` begins it
    anew, with nothing but the token before, for every ``window`` of tokens: far sooner, and a text scores worse.

    A model of documents reads <eos> in front of a text, and its <eos> is scored at the end (unless ``end`` is false).
    A model of running text knows no start: a text is then scored as it stands behind a line break, and has no end.
    ``top`` is the number of likeliest tokens to give for every place, up to 1,000. ``unk`` is ``error``, ``skip`` or
    ``keep`` (an unknown is then scored as the token <unk>). Raises ``UsageError`` for values out of range.
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
    ) -> None:
        self.sampler = sampler
        self.state, self.unk = choose(state, STATES, "state"), choose(unk, UNKNOWNS, "way to treat unknowns (--unk)")
        self.window = _whole_number(window, "A window", 1, MAX_WINDOW)
        self.lanes = _whole_number(lanes, "The number of lanes", 1, MAX_LANES)
        most = min(MAX_TOP, sampler.tokenizer.vocab_size)
        self.top = _whole_number(top, "The number of likeliest tokens (--top)", 0, most)
        if state == "cold" and lanes > 1:
            raise UsageError("Lanes share out one carried state, and windows are cold: give one of the two.")
        if end and not sampler.documents:
            raise UsageError("This model was trained on running text, which has no end to score: leave the end out.")
        self.end = sampler.documents if end is None else end
        #: Seconds that went into compiling, which no speed should count.
        self.startup = 0.0
        self._function: Any = None

    @classmethod
    def load(cls, run: str | Path | None = None, **options: Any) -> Scorer:
        """The best checkpoint of a run (by default of the newest in ``runs/``). Raises ``CheckpointError``."""
        return cls(Sampler.load(run), **options)

    def score(self, text: str | Iterable[str], prompt: str = "") -> Score:
        """The score of a text, or of one that comes in pieces, behind ``prompt`` (which is read and not scored)."""
        reading = self.stream(text, prompt)
        deque(reading, maxlen=0)
        return reading.score

    def per_token(self, text: str | Iterable[str], prompt: str = "") -> TokenScores:
        """All tokens of a text with their log-probabilities; they take memory, which ``stream`` does not."""
        return concat(list(self.stream(text, prompt)), self.top)

    def stream(self, text: str | Iterable[str], prompt: str = "", where: str = "The text") -> Reading:
        """Score a text in constant memory: iterate over the result for its tokens, then ask it for its score.

        ``where`` names the text in messages.
        """
        return Reading(self, [text] if isinstance(text, str) else text, prompt, where)

    def score_each(
        self, texts: Iterable[str], prompt: str = "", where: str = "Text"
    ) -> Iterator[tuple[Score, TokenScores]]:
        """Score texts side by side, each from a state of its own behind ``prompt``: many short ones are done sooner.

        Each is held in memory whole, and ``lanes`` have no meaning here. ``where`` names the texts, which are counted
        from 1, in messages.
        """
        prompt_ids, waiting = self._prompt_ids(prompt), deque[tuple[Encoded, int]]()

        def segments() -> Iterator[Segment]:
            for number, text in enumerate(texts, start=1):
                encoded = self._whole(text, f"{where} {number}")
                found = [whole(encoded.ids, int(prompt_ids[-1]))]
                if self.state == "cold" and encoded.ids.size:
                    found = list(windows([encoded.ids], int(prompt_ids[-1]), self.window))
                waiting.append((encoded, len(found)))
                yield from found

        parts: list[TokenScores] = []
        for part in self._run(segments(), prompt_ids, self._rows(ROWS, self.window if self.state == "cold" else FILL)):
            parts.append(part)
            if len(parts) == waiting[0][1]:
                yield _total(waiting.popleft()[0], parts), concat(parts, self.top)
                parts = []

    def rank(self, prompt: str, candidates: Sequence[str]) -> list[Candidate]:
        """Continuations of ``prompt``, the likeliest first; of equally likely ones the one given first.

        Each is encoded by itself, as it stands. Their ends are scored if the scorer was made with ``end=True``.
        """
        if not candidates:
            raise UsageError("There are no candidates to rank: give two or more continuations of the prompt.")
        # Of two that are the same neither may win by a bit that its row in a matrix product has changed.
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

    def _prompt_ids(self, prompt: str) -> np.ndarray:
        """What is read in front of a text: all but the last for the state alone, the last with the text."""
        if prompt and (self.state == "cold" or self.lanes > 1):
            raise UsageError(
                "A prompt is read into one state that is carried through the text: leave out the prompt, or give "
                "--state carried and --lanes 1."
            )
        return self.sampler.prompt_ids(prompt, self.unk)

    def _encoded(self, pieces: Iterable[str], where: str) -> Iterator[Encoded]:
        """The ids of a text in pieces, with that of its end."""
        yield from encode_pieces(self.sampler.tokenizer, pieces, unk=self.unk, where=where)
        if self.end:
            yield Encoded(np.array([EOS], np.int32), 0, 0, 0)

    def _whole(self, text: str, where: str) -> Encoded:
        parts = list(self._encoded([text], where))
        ids = np.concatenate([part.ids for part in parts]) if parts else np.zeros(0, np.int32)
        return Encoded(ids, *(sum(getattr(part, name) for part in parts) for name in ("chars", "bytes", "unknown")))

    def _segments(self, ids: Iterable[np.ndarray], start: int) -> tuple[Iterator[Segment], int]:
        """One text as segments, and the rows to lay them in."""
        if self.state == "cold":
            return windows(ids, start, self.window), self._rows(ROWS, self.window)
        if self.lanes > 1:
            return windows(ids, start, LANE, BURN_IN), self._rows(self.lanes, LANE)
        return stateful_segments(ids, start), 1

    def _rows(self, most: int, steps: int) -> int:
        """Rows of ``steps`` tokens, or of as many as a row is filled with, that memory is meant for: 1 to ``most``."""
        return max(1, min(most, MAX_TOKENS // (max(steps, FILL) * (1 + 2 * self.top))))

    def _run(self, segments: Iterator[Segment], prompt_ids: np.ndarray, rows: int) -> Iterator[TokenScores]:
        """The scores of each segment in order. The next ones are on their way while these are read."""
        slabs = pack(segments, rows)
        first = next(slabs, None)  # before anything is compiled: what cannot be encoded raises here
        if first is None:
            return
        initial = self._initial(prompt_ids, rows)
        if self._function is None:
            began = time.perf_counter()
            self._function = jitted.jit_score(self.sampler.task, self.top)
            jax.block_until_ready(self._function(self.sampler.weights, initial, *_chunk(first, 0), initial))
            self.startup = time.perf_counter() - began
        carry, ahead = initial, None
        for slab in chain([first], slabs):
            carry, scored = _dispatch(self._function, self.sampler.weights, carry, initial, slab)
            if ahead is not None:
                yield from _collect(*ahead)
            ahead = slab, scored
        if ahead is not None:
            yield from _collect(*ahead)

    def _initial(self, prompt_ids: np.ndarray, rows: int) -> Any:
        """The state of ``rows`` rows after the prompt without its last token, which is read with the text."""
        state = self.sampler.blank()
        carry, logits = state.carry, state.logits
        for tokens, valid in prefill_chunks(prompt_ids[:-1]):
            prefill = jitted.jit_prefill(self.sampler.task)
            carry, logits = prefill(self.sampler.weights, carry, logits, tokens, valid)
        return jax.tree.map(lambda a: jnp.repeat(a, rows, axis=0), carry)


class Reading:
    """One text being scored: an iterator over its tokens as they are; ``score`` is that of what has come so far."""

    def __init__(self, scorer: Scorer, pieces: Iterable[str], prompt: str, where: str) -> None:
        self._scorer, self._where, self._score = scorer, where, Score()
        self._prompt_ids = scorer._prompt_ids(prompt)
        self._parts = self._run(pieces)

    @property
    def score(self) -> Score:
        """Of the whole text once the iterator has ended."""
        return self._score

    def __iter__(self) -> Iterator[TokenScores]:
        return self._parts

    def _run(self, pieces: Iterable[str]) -> Iterator[TokenScores]:
        amount = Score()

        def ids() -> Iterator[np.ndarray]:
            nonlocal amount
            for part in self._scorer._encoded(pieces, self._where):
                amount += Score(0.0, 0, part.chars, part.bytes, part.unknown, int(part.forced))
                yield part.ids

        segments, rows = self._scorer._segments(ids(), int(self._prompt_ids[-1]))
        for part in self._scorer._run(segments, self._prompt_ids, rows):
            self._score += _sum(part)
            yield part
        self._score += amount


def _dispatch(function: Any, weights: Any, carry: Any, initial: Any, slab: PackedBatch) -> tuple[Any, list[Any]]:
    """Start scoring a slab: the carry behind it, and what its chunks will give."""
    scored = []
    for at in range(0, slab.tokens.shape[1], CHUNK):
        carry, part = function(weights, carry, *_chunk(slab, at), initial)
        scored.append(part)
    return carry, scored


def _chunk(slab: PackedBatch, at: int) -> list[np.ndarray]:
    return [field[:, at : at + CHUNK] for field in (slab.tokens, slab.targets, slab.reset, slab.valid)]


def _collect(slab: PackedBatch, scored: list[Any]) -> Iterator[TokenScores]:
    logp, top, top_logp = (np.concatenate([np.asarray(each) for each in field], axis=1) for field in zip(*scored))
    for row, start, end in slab.places:
        here = row, slice(start, end)
        yield TokenScores(slab.targets[here], logp[here], top[here], top_logp[here])


def _sum(part: TokenScores) -> Score:
    return Score(float(part.logp.sum(dtype=np.float64)), part.logp.size)


def _total(encoded: Encoded, parts: list[TokenScores]) -> Score:
    return sum(map(_sum, parts), Score(0.0, 0, encoded.chars, encoded.bytes, encoded.unknown))


def _whole_number(value: Any, what: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{what} of {value!r} cannot be used: give a whole number from {least} to {most:,}.")
    return value
