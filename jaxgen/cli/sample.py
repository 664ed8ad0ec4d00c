"""``sample.py`` and ``jaxgen sample``: a prompt in, text out; everything that is not text goes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import guarded, parse, say
from jaxgen.errors import DataError, UsageError

if TYPE_CHECKING:
    from jaxgen.run import Piece

DESCRIPTION = """Write text with a trained model. The same run, prompt, settings and seed always give the same text.

    python sample.py                                      the newest run in runs/
    python sample.py --prompt "The " --temperature 0.5
    python sample.py --temperature 0.3 0.8 1.3            one section for each
    echo "To be" | python sample.py --prompt-file -       prompt from standard input"""


class SampleConfig(BaseModel):
    """Flags of ``sample.py``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run. Default: the newest in runs/."""
    prompt: str | None = None
    """Text to continue."""
    prompt_file: str | None = None
    """File with the text to continue; - for standard input. One line break at its end is left out."""
    length: int = 500
    """Tokens to generate."""
    temperature: tuple[float, ...] = (0.8,)
    """0: always the likeliest token. Low: safe and repetitive. 1: the model as it is. High: wild. Several: one
    section each."""
    num_samples: int = 1
    """Texts to draw; text i is the same however many are drawn."""
    seed: int = 0
    """Another seed, other texts."""
    top_k: int | None = None
    """Draw among the K likeliest tokens only."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together reach this probability."""
    block: int | None = None
    """Rows that decode together (default: 1). More make many texts sooner, 256 about six times. Text i may then be
    another text than by default, but is the same for the same number, which is printed with the speed."""
    unk: Literal["error", "skip"] = "error"
    """What to do with prompt characters that the model has never seen."""
    raw: bool = False
    """Write control characters as they are on a terminal too."""


def main(args: Sequence[str] | None = None) -> int:
    """Sample; returns the exit code."""
    return guarded(lambda: sample(list(sys.argv[1:] if args is None else args)), text_alone=True)


def sample(args: list[str]) -> None:
    config = parse(SampleConfig, args, prog="sample.py", description=DESCRIPTION)
    prompt = read_prompt(config)

    from jaxgen.run import Sampler, Settings
    from jaxgen.run.host import need_backend
    from jaxgen.sampling import ROWS

    if not config.temperature:
        raise UsageError("--temperature was given without a number: give one or more, for example 0.8.")
    block = ROWS if config.block is None else config.block
    settings = [
        Settings(config.length, temperature, config.seed, config.top_k, config.top_p, block)
        for temperature in config.temperature
    ]
    need_backend()
    sampler = Sampler.load(config.run)
    if config.top_k is not None and config.top_k > sampler.tokenizer.vocab_size:
        say(
            f"note: --top-k {config.top_k} is more than the vocabulary of {sampler.tokenizer.vocab_size}; all are kept."
        )
    streams = [sampler.stream(prompt, each, num_samples=config.num_samples, unk=config.unk) for each in settings]
    writer = Writer(escape=sys.stdout.isatty() and not config.raw)
    speed = Speed(block, note="" if block == ROWS else f" in blocks of {block}")
    for each, stream in zip(settings, streams):
        if len(settings) > 1:
            writer.heading(f"temperature {each.temperature:g}")
        writer.write_all(speed.timed(stream), prompt, config.num_samples)
    say(str(speed))


def read_prompt(config: SampleConfig) -> str:
    """The prompt from the flag, a file or standard input."""
    if config.prompt is not None and config.prompt_file is not None:
        raise UsageError("--prompt and --prompt-file were given together: give one of them.")
    if config.prompt_file is None:
        return config.prompt or ""
    try:
        raw = sys.stdin.buffer.read() if config.prompt_file == "-" else Path(config.prompt_file).read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The prompt in {config.prompt_file} is not UTF-8 at byte offset {error.start}. Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"The prompt file {config.prompt_file} cannot be read: {error.strerror}.") from None
    # `echo` and editors end every file in a line break, which a model would take for the end of the line.
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


class Speed:
    """Counts tokens as they are made. The first chunk of a stream waits for compilation, so it is counted apart."""

    def __init__(self, block: int, note: str = "") -> None:
        self.block, self.note = block, note
        self.first_tokens = self.later_tokens = 0
        self.first_seconds = self.later_seconds = 0.0

    def timed(self, stream: Iterator[Piece]) -> Iterator[Piece]:
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
        from jaxgen.cli.progress import visible

        if self.escape:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # what follows decides whether it is half a line break
            text = visible(text.removesuffix("\r"))
        sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """A line that names what follows."""
        self.put(f"--- {text} ---\n")

    def write_all(self, stream: Iterator[Piece], prompt: str, num_samples: int) -> None:
        """Every sample of ``stream`` behind its prompt, each ending in a line break."""
        turn = -1
        waiting: dict[int, str] = {}
        finished: set[int] = set()
        for piece in stream:
            waiting[piece.index] = waiting.get(piece.index, "") + piece.text
            if piece.last:
                finished.add(piece.index)
            if turn < 0:
                turn = self._begin(0, prompt, num_samples)
            while turn in waiting:
                self.put(waiting.pop(turn))
                if turn in finished:
                    self.put("\n")
                    if turn + 1 < num_samples:
                        turn = self._begin(turn + 1, prompt, num_samples)
                    else:
                        turn += 1

    def _begin(self, index: int, prompt: str, num_samples: int) -> int:
        if num_samples > 1:
            self.heading(f"sample {index}")
        self.put(prompt)
        return index
