"""What ``sample.py`` writes: texts on standard output in order, and how fast they were made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import escape_controls, log

if TYPE_CHECKING:
    from jaxgen.inference.text_stream import Chunk, Sample


class Speed:
    """Counts tokens as they are made. The first chunk of a stream waits for compilation, so it is counted apart."""

    def __init__(self, block: int, note: str = "") -> None:
        self.block, self.note = block, note
        self.first_tokens = self.later_tokens = 0
        self.first_seconds = self.later_seconds = 0.0

    def timed(self, stream: Iterator[Chunk]) -> Iterator[Chunk]:
        """The pieces of ``stream``, which is timed from here on."""
        arrived = began = time.perf_counter()
        first, before = True, -1
        for piece in stream:
            next_block = piece.index // self.block > before // self.block
            if before < 0:
                arrived = time.perf_counter()
            elif piece.index <= before or next_block:  # beyond the first chunk
                first = False
            before = piece.index
            if first:
                self.first_tokens += piece.tokens.size
            else:
                self.later_tokens += piece.tokens.size
            yield piece
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


class Writer:
    """Puts samples on standard output in order: the first of a block as it is made, the others behind it."""

    def __init__(self, escape: bool) -> None:
        self.escape, self._held = escape, ""

    def put(self, text: str) -> None:
        """Write text now."""
        if self.escape:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # what follows decides whether it is half a line break
            text = escape_controls(text.removesuffix("\r"))
        sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """A line that names what follows."""
        self.put(f"--- {text} ---\n")

    def write_best(self, samples: Iterable[Sample], prompt: str, number: int) -> None:
        """Chosen samples, each of several with its number and the mean log-probability that it was chosen by."""
        for sample in samples:
            about = f"sample {sample.index}, {sample.mean_logp:.4f} nats a token"
            if number > 1:
                self.heading(about)
            self.put(prompt + sample.text + "\n")
            if number == 1:  # standard output is the text alone
                log(about)

    def write_json(self, values: Iterable[dict[str, Any]]) -> None:
        """A line of JSON for each."""
        for value in values:
            self.put(json.dumps(value, ensure_ascii=False) + "\n")

    def write_all(self, stream: Iterator[Chunk], prompt: str, first: int, num_samples: int) -> None:
        """Every sample of ``stream`` behind its prompt, each ending in a line break."""
        turn, begun = first, False
        waiting: dict[int, str] = {}
        finished: set[int] = set()
        for piece in stream:
            waiting[piece.index] = waiting.get(piece.index, "") + piece.text
            if piece.last:
                finished.add(piece.index)
            while turn in waiting:
                if not begun:
                    self._begin(turn, prompt, num_samples)
                self.put(waiting.pop(turn))
                begun = turn not in finished
                if not begun:
                    self.put("\n")
                    turn += 1

    def _begin(self, index: int, prompt: str, num_samples: int) -> None:
        if num_samples > 1:
            self.heading(f"sample {index}")
        self.put(prompt)
