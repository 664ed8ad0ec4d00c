"""The picture of attention: where a decoder looks while it writes each token."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.plots.loss import GRID, INK, save_picture
from jaxgen.types import AttentionMap

#: Inches of a cell and between maps, points of a letter, and inches of a picture at most.
CELL, GAP, FONT, WIDEST, HIGHEST = 0.26, 0.25, 9.0, 30.0, 20.0
#: Degrees by which the labels of places are turned, unless all are single letters.
TURNED = 60
POINTS = 72  # in an inch


def draw_attention(looks: Sequence[AttentionMap], path: str | os.PathLike[str]) -> None:
    """Draw each of ``looks`` as a heat map, side by side and with cells of one size, as a PNG at ``path``.

    A row is a token that is written, a column a place: the darker, the more it is looked at. Where the places are as
    many in rows as in columns over an image, it is the image that is drawn for each token (``sight_plot``). Raises
    ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: render_sights(looks) if all(map(_over_image, looks)) else _render(looks))


def _over_image(look: AttentionMap) -> bool:
    places = look.weights.shape[1]
    return look.image is not None and math.isqrt(places) ** 2 == places


def _render(looks: Sequence[AttentionMap]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    left = [_widest(look.written) + GAP for look in looks]
    turned = max((len(label) for look in looks for label in look.source), default=1) > 1
    above = [_widest(look.source) * math.sin(math.radians(TURNED)) if turned else FONT / POINTS for look in looks]
    top = max(above) + GAP
    # A turned label of the last place leans to the right of it.
    right = [max(0.0, _widest(look.source[-1:]) * math.cos(math.radians(TURNED)) - CELL / 2) for look in looks]
    wide = [CELL * len(look.source) for look in looks]
    width = sum(left) + sum(wide) + sum(right) + GAP
    height = top + CELL * max(len(look.written) for look in looks) + GAP
    scale = min(1.0, WIDEST / width, HIGHEST / height)
    figure = Figure(figsize=(width * scale, height * scale), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    at = 0.0
    for look, before, across, behind in zip(looks, left, wide, right):
        high = CELL * len(look.written)
        box = ((at + before) / width, 1 - (top + high) / height, across / width, high / height)
        _draw(figure.add_axes(box), look, FONT * scale, TURNED if turned else 0)
        at += before + across + behind
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, look: AttentionMap, size: float, turned: int) -> None:
    axes.imshow(look.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    lean = {"rotation": turned, "ha": "left", "rotation_mode": "anchor"} if turned else {}
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(look.source)), look.source, fontsize=size, color=INK, **lean)
    axes.set_yticks(range(len(look.written)), look.written, fontsize=size, color=INK)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.tick_params(length=0, pad=size / 3)
    for spine in axes.spines.values():
        spine.set(color=GRID, linewidth=0.8)


def _widest(labels: Sequence[str]) -> float:
    """Inches that the longest of some labels takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=FONT)
    return (
        max((text_to_path.get_text_width_height_descent(label, font, False)[0] for label in labels), default=0) / POINTS
    )


#: Images in a row and inches of one, letters of a token in one line under it, and what is left of the place least
#: looked at: images of which nothing can be seen could not be told apart.
ACROSS, SIDE, LABEL, LEAST = 8, 1.3, 14, 0.12
#: Rows of images in a picture, at most: what would come behind them is left out.
MOST_ROWS = 24


def render_sights(looks: Sequence[AttentionMap]) -> bytes:
    """A PNG: a line of images for each look, first the image itself, then what is seen of it with each token.

    Of each image there is the more, the more it is looked at; the rest is white. The place that a token looks at most
    is shown as it is, so tokens that look everywhere alike show the whole image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[np.ndarray, str] | None] = []
    for look in looks:
        image: Any = look.image  # there: draw_attention has seen to that
        line = [(image, ""), *((seen(image, w), token) for token, w in zip(look.written, look.weights))]
        panels += [*line, *[None] * (-len(line) % ACROSS)]
    panels = panels[: MOST_ROWS * ACROSS]
    rows = math.ceil(len(panels) / ACROSS)
    figure = Figure(figsize=(SIDE * ACROSS, (SIDE + 0.15) * rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(rows, ACROSS, squeeze=False).ravel(), panels):
        if panel is None:
            axes.axis("off")
        else:
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=GRID, linewidth=0.8)
            axes.imshow(panel[0], interpolation="nearest")
            text = panel[1] if len(panel[1]) <= LABEL else panel[1][: LABEL - 1] + "…"
            label = axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=INK)
            label.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def seen(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``image`` uint8 [Y, X, 3] faded to white where ``weights`` [P] of places, row by row, are small; uint8."""
    side = math.isqrt(weights.size)
    rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
    share = weights.reshape(side, side) / max(float(weights.max()), 1e-12)
    left = (LEAST + (1 - LEAST) * share)[rows][:, columns, None]
    faded: np.ndarray = np.round(255 - (255 - image.astype(np.float64)) * left).astype(np.uint8)
    return faded
