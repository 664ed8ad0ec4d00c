"""Colours of tokens by their probability, for ``sample.py --color``, and by the value of a unit."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import IO, TYPE_CHECKING

from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style

from jaxgen.cli.common import log
from jaxgen.colors import ink_on, signed_color, to_hex

if TYPE_CHECKING:
    from jaxgen.inference.sampler import Sampler
    from jaxgen.inference.text_stream import Chunk
    from jaxgen.tokenizers.base import StreamDecoder

#: The smallest probability of each class of tokens, its name and its style. The colours go from blue to orange and red,
#: which colour-blind people tell apart, and are of medium luminance, readable on white and on black.
SCALE = (
    (0.5, "50% or more", "color(33)"),
    (0.2, "20-50%", "color(67)"),
    (0.05, "5-20%", "color(243)"),
    (0.01, "1-5%", "color(166)"),
    (0.0, "below 1%", "underline color(161)"),
)
#: Blanks of a smaller probability have a coloured background; others show no colour, so that words stay readable.
SURPRISING_BLANK = 0.05
#: Classes of values on each side of 0.
VALUE_STEPS = 4

Paint = Callable[[str], str]


def color_system(choice: str, file: IO[str]) -> ColorSystem | None:
    """The colours that ``file`` gets with ``--color`` ``always`` or ``auto``; ``None`` for none."""
    if choice == "always":
        return ColorSystem.EIGHT_BIT
    console = Console(file=file)
    return None if console.no_color else COLOR_SYSTEMS.get(console.color_system or "")


def paint(style: Style, system: ColorSystem | None, text: str) -> str:
    """``text`` with the codes of ``style`` around each of its lines: pagers forget a colour at the end of a line."""
    return "\n".join(style.render(line, color_system=system) for line in text.split("\n"))


def legend(system: ColorSystem | None) -> str:
    """A line that shows what the colours mean."""
    names = (paint(Style.parse(style), system, name) for _, name, style in SCALE)
    return f"probability under the model: {'  '.join(names)}"


def open_colors(choice: str, sampler: Sampler, held: str) -> TokenColors | None:
    """The colours for standard output, after their legend on standard error; ``None`` and a note without colours.

    Args:
        choice: ``auto`` or ``always``.
        sampler: What draws the samples.
        held: The space at the end of the prompt that begins the first token (see ``DecoderState``).
    """
    system = color_system(choice, sys.stdout)
    if system is None:
        log("note: standard output is no terminal with colours, or NO_COLOR is set: --color always writes them anyway.")
        return None
    log(legend(color_system(choice, sys.stderr)), painted=True)
    return TokenColors(lambda: sampler.tokenizer.stream_decoder(sampler.errors), held, system)


class TokenColors:
    """Gives each part of a sample's text the colour of the probability of the token that wrote it."""

    def __init__(self, new_decoder: Callable[[], StreamDecoder], held: str, system: ColorSystem) -> None:
        self._new_texts = lambda: _TokenTexts(new_decoder(), held)
        self._texts: dict[int, _TokenTexts] = {}
        styles = [Style.parse(style) for _, _, style in SCALE]
        self._paints: dict[tuple[int, bool], Paint] = {
            (number, blank): partial(paint, style + Style(reverse=blank), system)
            for number, style in enumerate(styles)
            for blank in (False, True)
        }

    def spans(self, chunk: Chunk) -> Iterator[tuple[str, Paint]]:
        """The text of ``chunk`` in parts, each with what colours it."""
        if chunk.index not in self._texts:
            self._texts[chunk.index] = self._new_texts()
        texts = self._texts.pop(chunk.index) if chunk.last else self._texts[chunk.index]
        for look, parts in groupby(texts.split(chunk), key=lambda part: _look(*part)):
            yield "".join(text for text, _ in parts), self._paints[look]


class ValueColors:
    """Gives parts of a text background colours by a value; blanks too, and none near 0, so that texts stay readable."""

    def __init__(self, most: float, system: ColorSystem) -> None:
        self._most, self._system = most or 1.0, system
        self._styles = {step: self._style(step / VALUE_STEPS) for step in range(-VALUE_STEPS, VALUE_STEPS + 1)}

    @staticmethod
    def _style(share: float) -> Style:
        background = signed_color(share)
        return Style(color=to_hex(ink_on(background)), bgcolor=to_hex(background)) if share else Style()

    def spans(self, parts: Iterable[tuple[str, float]]) -> Iterator[str]:
        """Parts of a text with the codes of the colours of their values."""
        for step, group in groupby(parts, key=lambda part: round(VALUE_STEPS * part[1] / self._most)):
            yield paint(self._styles[step], self._system, "".join(text for text, _ in group))

    def legend(self, what: str, system: ColorSystem | None) -> str:
        """A line that shows what the colours mean."""
        shares = (-1.0, -0.5, 0.0, 0.5, 1.0)
        return f"{what}: {' '.join(paint(self._style(s), system, f' {s * self._most:.2g} ') for s in shares)}"


def _look(text: str, logp: float) -> tuple[int, bool]:
    """The class of a token, and whether it is a blank with a coloured background."""
    probability = math.exp(min(logp, 0.0))
    number = next(i for i, (least, _, _) in enumerate(SCALE) if probability >= least)
    return number, not text.strip(" \t") and probability < SURPRISING_BLANK


class _TokenTexts:
    """Splits the text of one sample into the parts that its tokens wrote.

    A character of several tokens has the product of their probabilities.
    """

    def __init__(self, decoder: StreamDecoder, held: str) -> None:
        self._decoder, self._held = decoder, held
        #: How many characters of each token are not shown yet, and its log-probability.
        self._left: deque[tuple[int, float]] = deque()
        self._logp = 0.0  # of tokens that have completed no character

    def split(self, chunk: Chunk) -> Iterator[tuple[str, float]]:
        """The parts of the text of ``chunk`` with their log-probabilities.

        The text may lag behind the tokens: the beginning of a stop string is held back.
        """
        for token, logp in zip(chunk.tokens, chunk.logp.tolist()):
            self._logp += logp
            text = self._decoder.feed(token)
            if self._held and text:
                text, self._held = text.removeprefix(self._held), ""
            if text:
                self._left.append((len(text), self._logp))
                self._logp = 0.0
        rest = chunk.text
        while rest:
            size, logp = self._left.popleft() if self._left else (len(rest), self._logp)
            yield rest[:size], logp
            if size > len(rest):
                self._left.appendleft((size - len(rest), logp))
            rest = rest[size:]
