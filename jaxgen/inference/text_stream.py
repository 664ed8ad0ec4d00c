"""Turns the tokens of the decode loop into text: chunks, whole samples, stop strings."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxgen.errors import counted
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.notebook import MAX_TOKENS, colored_tokens
from jaxgen.tokenizers.base import EOS, Tokenizer

#: Characters of a text that ``repr`` shows.
MAX_SHOWN = 60


class StopStrings:
    """Finds the first of some strings in a text that arrives in chunks.

    Text that may be the beginning of a stop string is held back until that is decided. The string that is complete
    first counts, and of several that are complete at the same position the longest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self._held = ""
        #: For each string the length of the longest beginning of it with which the text ends.
        self._matched = [0] * len(self.strings)

    def feed(self, text: str) -> tuple[str, str | None]:
        """Read more text; returns what certainly comes before any stop string, and the string that was found."""
        before, text = len(self._held), self._held + text
        for end in range(before + 1, len(text) + 1):
            found = ""
            for i, string in enumerate(self.strings):
                if self._match(i, string, text[end - 1]) == len(string) > len(found):
                    found = string
            if found:
                self._held, self._matched = "", [0] * len(self.strings)
                return text[: end - len(found)], found
        certain = len(text) - max(self._matched, default=0)
        self._held = text[certain:]
        return text[:certain], None

    def _match(self, i: int, string: str, character: str) -> int:
        """Read a character of the text for one string, as Knuth, Morris and Pratt do (1977, SIAM J. Comput. 6)."""
        size = self._matched[i]
        while size and string[size] != character:
            size = borders(string)[size - 1]
        self._matched[i] = size = size + (string[size] == character)
        return size

    @property
    def held(self) -> int:
        """The number of characters held back."""
        return len(self._held)

    def flush(self) -> str:
        """The text held back, after the last ``feed``."""
        rest, self._held = self._held, ""
        return rest


@lru_cache(maxsize=1024)
def borders(string: str) -> list[int]:
    """For each beginning of a string the length of its longest proper beginning that is also its end."""
    found, size = [0], 0
    for character in string[1:]:
        while size and string[size] != character:
            size = found[size - 1]
        size += string[size] == character
        found.append(size)
    return found


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next piece of a sample.

    Attributes:
        index: The number of the sample.
        text: The text. That of a stop string is left out.
        tokens: The token ids, including <eos> and those of a stop string.
        logp: The log-probability in nats that the model gave each token, before any transform.
        end: Why the sample ends here: ``length``, ``eos``, ``stop`` or ``time``; ``None`` if it continues.
    """

    index: int
    text: str
    tokens: np.ndarray
    logp: np.ndarray
    end: str | None = None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= MAX_SHOWN else f"{self.text[:MAX_SHOWN]}…"
        end = "" if self.end is None else f", end: {self.end}"
        return f"<jaxgen.{type(self).__name__} {self.index}: {text!r}, {counted(self.tokens.size, 'token')}{end}>"

    @property
    def last(self) -> bool:
        """Whether the sample ends here."""
        return self.end is not None


@dataclass(frozen=True, eq=False, repr=False)
class Sample(Chunk):
    """A whole sample, which always has an ``end``. Notebooks colour its tokens by their probability.

    Example:
        >>> sample = jaxgen.load("runs/language-1").generate("the ", length=20, details=True)
        >>> sample.tokens.size, len(sample.parts), sample.end
        (20, 20, 'length')
    """

    end: str
    tokenizer: Tokenizer | None = None

    @property
    def mean_logp(self) -> float:
        """The mean log-probability of a token in nats, by which samples are ranked; -inf without tokens."""
        return float(self.logp.mean()) if self.logp.size else -np.inf

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The text in tokens with their log-probabilities in nats, <eos> and a stop string included."""
        return [(self.text, math.nan)] if self.tokenizer is None else self.tokenizer.text_parts(self.tokens, self.logp)

    def _repr_html_(self) -> str:
        return colored_tokens(self.parts, f"sample {self.index}, end: {self.end}")


class Samples(list[Sample]):
    """Samples; notebooks show all of them."""

    def _repr_html_(self) -> str:
        shown, tokens = list[str](), 0
        for sample in self:
            if shown and tokens + len(sample.parts) > MAX_TOKENS:
                shown.append(f"The first {len(shown):,} of {len(self):,} samples.")
                break
            shown.append(sample._repr_html_())
            tokens += len(sample.parts)
        return "<hr>".join(shown)


def collect(chunks: Iterator[Chunk], tokenizer: Tokenizer | None = None) -> Iterator[Sample]:
    """The samples of a stream of chunks, in order of their numbers; ``tokenizer`` is for notebooks."""
    parts: dict[int, list[Chunk]] = {}
    done: dict[int, Sample] = {}
    turn: int | None = None
    for chunk in chunks:
        turn = chunk.index if turn is None else turn
        parts.setdefault(chunk.index, []).append(chunk)
        if chunk.end is not None:
            whole = joined(parts.pop(chunk.index))
            done[chunk.index] = Sample(whole.index, whole.text, whole.tokens, whole.logp, chunk.end, tokenizer)
        while turn in done:
            yield done.pop(turn)
            turn += 1


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Consecutive chunks of one sample as one."""
    text = "".join(chunk.text for chunk in chunks)
    tokens, logp = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("tokens", "logp"))
    return Chunk(chunks[0].index, text, tokens, logp, chunks[-1].end)


def select_best(samples: Iterable[Sample], keep: int) -> list[Sample]:
    """The ``keep`` samples with the largest mean log-probability of a token, the best first.

    Samples that ran out of time come last.
    """
    return heapq.nsmallest(keep, samples, key=lambda each: (each.end == "time", -each.mean_logp, each.index))


class StreamingDetokenizer:
    """Turns the tokens of one sample into text, up to a stop string.

    Args:
        tokenizer: Decodes the tokens.
        index: The number of the sample.
        row: Its row in the block.
        settings: The length and the stop strings.
        skip: The number of tokens at the beginning whose text is left out.
        held: The beginning of the first token's text that belongs to the prompt (see ``DecoderState``).
        errors: What becomes of bytes that are not UTF-8, as in ``StreamDecoder``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        index: int,
        row: int,
        settings: GenerationConfig,
        skip: int,
        held: str = "",
        errors: str = "replace",
    ) -> None:
        self.index, self.row, self.running = index, row, True
        self._decoder = tokenizer.stream_decoder(errors)
        self._stop = StopStrings(settings.stop)
        self._left, self._skip, self._drop, self._held = settings.length, skip, 0, held

    def feed(self, tokens: np.ndarray, logp: np.ndarray) -> Chunk:
        """The chunk of these tokens, up to the end of the text."""
        ends = np.flatnonzero(tokens == EOS)
        count = int(ends[0]) + 1 if ends.size else tokens.size
        hidden = min(self._skip, count)
        self._skip -= hidden
        _, _, stopped = self._read(tokens[:hidden])
        if hidden:
            self._drop = self._stop.held  # part of the text of hidden tokens
        if stopped:
            return self._chunk("", tokens[:0], logp[:0], "stop")
        text, taken, stopped = self._read(tokens[hidden:count])
        shown = slice(hidden, hidden + taken)
        self._left -= count
        end = "stop" if stopped else "eos" if ends.size else None if self._left else "length"
        return self._chunk(text, tokens[shown], logp[shown], end)

    def _read(self, tokens: np.ndarray) -> tuple[str, int, bool]:
        """The text that is certain after these tokens, how many were read, and whether a stop string is complete."""
        if not self._stop.strings:
            return self._decode(tokens), tokens.size, False
        text = ""
        for taken, token in enumerate(tokens, start=1):  # one at a time, to find the one that completes a stop string
            certain, found = self._stop.feed(self._decode(token))
            text += certain
            if found is not None:
                return text, taken, True
        return text, tokens.size, False

    def _decode(self, tokens: np.ndarray) -> str:
        """The text completed by these tokens, without what belongs to the prompt."""
        text = self._decoder.feed(tokens)
        if self._held and text:
            text, self._held = text.removeprefix(self._held), ""
        return text

    def finish(self, end: str) -> Chunk:
        """The last chunk of a text that ends here."""
        return self._chunk("", np.zeros(0, np.int32), np.zeros(0, np.float32), end)

    def _chunk(self, text: str, tokens: np.ndarray, logp: np.ndarray, end: str | None) -> Chunk:
        self.running = end is None
        if end is not None and end != "stop":  # what was held back: an incomplete character, part of a stop string
            certain, found = self._stop.feed(self._decoder.flush())
            text, end = (text + certain, "stop") if found is not None else (text + certain + self._stop.flush(), end)
        shown, self._drop = text[self._drop :], max(self._drop - len(text), 0)
        return Chunk(self.index, shown, tokens, logp, end)
