"""The speed of sampling, for the commands that show it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from jaxgen.errors import counted
from jaxgen.runtime import MIN_SECONDS

if TYPE_CHECKING:
    from jaxgen.inference.text_stream import Chunk


class SamplingSpeed:
    """Counts generated tokens. The first chunk of a stream waits for compilation, so it is counted separately."""

    def __init__(self, parallel: int, note: str = "") -> None:
        """``parallel`` is the number of samples whose first chunks arrive together."""
        self.parallel, self.note = parallel, note
        #: Samples of the last stream that have ended.
        self.ended = 0
        self.first_tokens = self.later_tokens = 0
        self.first_seconds = self.later_seconds = 0.0

    def measure(self, stream: Iterator[Chunk]) -> Generator[Chunk, None, None]:
        """Pass on the chunks of ``stream`` and time them."""
        arrived = began = time.perf_counter()
        first, before, self.ended = True, -1, 0
        try:
            for chunk in stream:
                next_block = chunk.index // self.parallel > before // self.parallel
                if before < 0:
                    arrived = time.perf_counter()
                elif chunk.index <= before or next_block:  # beyond the first chunk
                    first = False
                before = chunk.index
                if first:
                    self.first_tokens += chunk.tokens.size
                else:
                    self.later_tokens += chunk.tokens.size
                self.ended += chunk.last
                yield chunk
        finally:  # also if the reader stops early
            self.first_seconds += arrived - began
            self.later_seconds += time.perf_counter() - arrived

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first chunk; ``None`` if there are none."""
        return self.later_tokens / max(self.later_seconds, 1e-9) if self.later_tokens else None

    def __str__(self) -> str:
        tokens, seconds = self.first_tokens + self.later_tokens, self.first_seconds + self.later_seconds
        total = f"{counted(tokens, 'token')}{self.note} in {seconds:.2f} s"
        if self.rate is None or self.later_seconds < MIN_SECONDS:
            return total
        return (
            f"{total}; {self.rate:,.0f} tokens/s after the first {self.first_tokens:,} "
            f"({self.first_seconds:.1f} s to the first)"
        )
