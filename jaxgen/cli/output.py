"""What ``sample.py`` writes: texts on standard output in order, and how fast they were generated."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from jaxgen.cli.common import escape_controls, log

if TYPE_CHECKING:
    from jaxgen.inference.text_stream import Chunk, Sample


class SamplingSpeed:
    """Counts generated tokens. The first chunk of a stream waits for compilation, so it is counted separately."""

    def __init__(self, parallel: int, note: str = "") -> None:
        """``parallel`` is the number of samples whose first chunks arrive together."""
        self.parallel, self.note = parallel, note
        self.first_tokens = self.later_tokens = 0
        self.first_seconds = self.later_seconds = 0.0

    def measure(self, stream: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass on the chunks of ``stream`` and time them."""
        arrived = began = time.perf_counter()
        first, before = True, -1
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
            yield chunk
        self.first_seconds += arrived - began
        self.later_seconds += time.perf_counter() - arrived

    def __str__(self) -> str:
        tokens, seconds = self.first_tokens + self.later_tokens, self.first_seconds + self.later_seconds
        total = f"{tokens:,} tokens{self.note} in {seconds:.2f} s"
        if not self.later_tokens:
            return total
        rate = self.later_tokens / max(self.later_seconds, 1e-9)
        return (
            f"{total}; {rate:,.0f} tokens/s after the first {self.first_tokens:,} "
            f"({self.first_seconds:.1f} s to the first)"
        )


class SampleWriter:
    """Writes samples to standard output in order: the first of a block as it is generated, the others after it."""

    def __init__(self, escape: bool) -> None:
        self.escape, self._held = escape, ""

    def write(self, text: str) -> None:
        """Write text and flush."""
        if self.escape:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # the next character decides whether it is a line break
            text = escape_controls(text.removesuffix("\r"))
        sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """Write a line that names what follows."""
        self.write(f"--- {text} ---\n")

    def write_best(self, samples: Iterable[Sample], prompt: str, number: int) -> None:
        """Write the selected samples, each with its index and the mean log-probability that selected it."""
        for sample in samples:
            about = f"sample {sample.index}, {sample.mean_logp:.4f} nats a token"
            if number > 1:
                self.heading(about)
            self.write(prompt + sample.text + "\n")
            if number == 1:  # standard output holds only the text
                log(about)

    def write_json(self, values: Iterable[Mapping[str, object]]) -> None:
        """Write one line of JSON for each value."""
        for value in values:
            self.write(json.dumps(value, ensure_ascii=False) + "\n")

    def write_all(self, stream: Iterator[Chunk], prompt: str, first: int, num_samples: int) -> None:
        """Write every sample of ``stream`` after its prompt, each followed by a line break."""
        turn, begun = first, False
        waiting: dict[int, str] = {}
        finished: set[int] = set()
        for chunk in stream:
            waiting[chunk.index] = waiting.get(chunk.index, "") + chunk.text
            if chunk.last:
                finished.add(chunk.index)
            while turn in waiting:
                if not begun:
                    self._begin(turn, prompt, num_samples)
                self.write(waiting.pop(turn))
                begun = turn not in finished
                if not begun:
                    self.write("\n")
                    turn += 1

    def _begin(self, index: int, prompt: str, num_samples: int) -> None:
        if num_samples > 1:
            self.heading(f"sample {index}")
        self.write(prompt)
