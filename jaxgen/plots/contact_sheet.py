"""A contact sheet: images with their captions under them."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxgen.plots.loss import INK, VALIDATION, save_picture

#: Images in a row, characters of a line of text, and lines of one text at most.
ACROSS, LINE, LINES = 4, 34, 5
#: Inches: an image's side, a line of text, and what is left around both.
SIDE, HIGH, GAP = 2.0, 0.15, 0.25
FONT = 8


def draw_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    path: str | os.PathLike[str],
) -> None:
    """Draw ``images`` (uint8 [Y, X, 3]) with ``captions`` as a PNG at ``path``.

    A caption that is none of its image's ``references`` has the first of them under it, in another colour. Raises
    ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: _render(images, captions, references))


def _render(images: Sequence[np.ndarray], captions: Sequence[str], references: Sequence[Sequence[str]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = [_lines(caption) or ["(nothing)"] for caption in captions]
    instead = [[] if caption in known else _lines(known[0]) for caption, known in zip(captions, references)]
    rows, across = math.ceil(len(images) / ACROSS), min(ACROSS, len(images))
    below = HIGH * max(len(one) + len(other) for one, other in zip(written, instead)) + GAP
    width, height = across * (SIDE + GAP) + GAP, rows * (SIDE + below) + GAP
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    for n, (image, first, second) in enumerate(zip(images, written, instead)):
        row, column = divmod(n, ACROSS)
        left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + below)
        axes = figure.add_axes((left / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height))
        axes.axis("off")
        axes.imshow(image, interpolation="nearest")
        for number, line in enumerate([*first, *second]):
            down = top + SIDE + 0.06 + HIGH * number
            colour = INK if number < len(first) else VALIDATION
            at = ((left + SIDE / 2) / width, 1 - down / height)
            text = figure.text(*at, line, ha="center", va="top", fontsize=FONT, color=colour)
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, max_lines=LINES, placeholder=" …")
