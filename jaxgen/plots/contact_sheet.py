"""A contact sheet: images with their captions under them."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxgen.plots.figure import INK, VALIDATION, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images per row, characters per line of text, and the most lines of one text.
COLUMNS, LINE_LENGTH, MAX_LINES = 4, 34, 5
#: Inches: the side of an image, the height of a line of text, and the gap between images.
IMAGE_SIDE, LINE_HEIGHT, GAP = 2.0, 0.15, 0.25
FONT = 8


def draw_contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    path: str | os.PathLike[str],
) -> None:
    """Draw ``images`` (uint8 [Y, X, 3]) with ``captions`` as a PNG at ``path``.

    A caption that is not one of its image's ``references`` is followed by the first of them, in another colour. Raises
    ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _draw(images, captions, references))


def _draw(images: Sequence[np.ndarray], captions: Sequence[str], references: Sequence[Sequence[str]]) -> Figure:
    written = [_lines(caption) or ["(nothing)"] for caption in captions]
    instead = [[] if caption in known else _lines(known[0]) for caption, known in zip(captions, references)]
    rows, across = math.ceil(len(images) / COLUMNS), min(COLUMNS, len(images))
    below = LINE_HEIGHT * max(len(one) + len(other) for one, other in zip(written, instead)) + GAP
    width, height = across * (IMAGE_SIDE + GAP) + GAP, rows * (IMAGE_SIDE + below) + GAP
    figure = new_figure(width, height)
    for n, (image, first, second) in enumerate(zip(images, written, instead)):
        row, column = divmod(n, COLUMNS)
        left, top = GAP + column * (IMAGE_SIDE + GAP), GAP + row * (IMAGE_SIDE + below)
        axes = figure.add_axes((left / width, 1 - (top + IMAGE_SIDE) / height, IMAGE_SIDE / width, IMAGE_SIDE / height))
        axes.axis("off")
        axes.imshow(image, interpolation="nearest")
        for number, line in enumerate([*first, *second]):
            down = top + IMAGE_SIDE + 0.06 + LINE_HEIGHT * number
            colour = INK if number < len(first) else VALIDATION
            at = ((left + IMAGE_SIDE / 2) / width, 1 - down / height)
            text = figure.text(*at, line, ha="center", va="top", fontsize=FONT, color=colour)
            text.set_parse_math(False)
    return figure


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_LENGTH, max_lines=MAX_LINES, placeholder=" …")
