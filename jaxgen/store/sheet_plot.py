"""A contact sheet: images with their captions under them."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxgen.store.plot import INK, VALIDATION, save_picture

#: Images in a row, and characters of a caption's line.
ACROSS, LINE = 4, 30


def draw_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], right: Sequence[bool], path: str | os.PathLike[str]
) -> None:
    """Draw ``images`` (uint8 [Y, X, 3]) with ``captions`` as a PNG at ``path``; wrong ones stand in another colour.

    Raises ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: _render(images, captions, right))


def _render(images: Sequence[np.ndarray], captions: Sequence[str], right: Sequence[bool]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    texts = [textwrap.fill(caption, LINE, max_lines=6, placeholder=" …") or "(nothing)" for caption in captions]
    rows, across = math.ceil(len(images) / ACROSS), min(ACROSS, len(images))
    below = 0.17 * max(text.count("\n") + 1 for text in texts)
    figure = Figure(figsize=(2.3 * across, (2.1 + below) * rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, across, squeeze=False).ravel()
    for axes in every:
        axes.axis("off")
    for axes, image, text, fits in zip(every, images, texts, right):
        axes.imshow(image, interpolation="nearest")
        colour = INK if fits else VALIDATION
        label = axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=colour)
        label.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
