"""The picture of attention: where a decoder looks while it writes each token."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.store.plot import GRID, INK, save_picture
from jaxgen.store.sight_plot import render_sights


class Look(NamedTuple):
    """One text with where each of its tokens has looked."""

    source: list[str]  # [S] labels of the places
    written: list[str]  # [T] tokens
    weights: np.ndarray  # [T, S], each row adds up to 1
    image: np.ndarray | None = None  # uint8 [Y, X, 3], if the places are those of a grid over it, row by row


#: Inches of a cell and between maps, points of a letter, and inches of a picture at most.
CELL, GAP, FONT, WIDEST, HIGHEST = 0.26, 0.25, 9.0, 30.0, 20.0
#: Degrees by which the labels of places are turned, unless all are single letters.
TURNED = 60
POINTS = 72  # in an inch


def draw_attention(looks: Sequence[Look], path: str | os.PathLike[str]) -> None:
    """Draw each of ``looks`` as a heat map, side by side and with cells of one size, as a PNG at ``path``.

    A row is a token that is written, a column a place: the darker, the more it is looked at. Where the places are as
    many in rows as in columns over an image, it is the image that is drawn for each token (``sight_plot``). Raises
    ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: render_sights(looks) if all(map(_over_image, looks)) else _render(looks))


def _over_image(look: Look) -> bool:
    places = look.weights.shape[1]
    return look.image is not None and math.isqrt(places) ** 2 == places


def _render(looks: Sequence[Look]) -> bytes:
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


def _draw(axes: Any, look: Look, size: float, turned: int) -> None:
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
