"""Attention plots: the attention weights of each generated token, as a heat map or over an image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgen.plots.figure import GRID, INK, new_figure, save_figure
from jaxgen.types import AttentionMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches of a cell and between maps, the font size in points, and the largest plot in inches.
CELL, GAP, FONT, MAX_WIDTH, MAX_HEIGHT = 0.26, 0.25, 9.0, 30.0, 20.0
#: Degrees by which the source labels are rotated, unless all are single letters.
ROTATION = 60
POINTS_PER_INCH = 72
#: Of an overlay: images per row and inches of each, the longest label in characters, and the opacity of positions
#: without weight (with none at all, images could not be told apart).
COLUMNS, IMAGE_SIDE, MAX_LABEL, MIN_OPACITY = 8, 1.3, 14, 0.12
#: The most rows of images in an overlay; further ones are left out.
MAX_ROWS = 24


def draw_attention(maps: Sequence[AttentionMap], path: str | os.PathLike[str]) -> None:
    """Plot each of ``maps`` as a heat map, side by side and with cells of one size, as a PNG at ``path``.

    A row is a generated token, a column a source position; darker cells have more weight. Maps whose source positions
    are a square grid over an image show that image for each token (``attention_overlay``). Raises ``CheckpointError``
    when the file cannot be written.
    """
    overlay = all(each.image is not None and _is_square(each.weights.shape[1]) for each in maps)
    save_figure(path, lambda: attention_overlay(maps) if overlay else heat_maps(maps))


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def heat_maps(maps: Sequence[AttentionMap]) -> Figure:
    """A figure with the heat map of each of ``maps``, from left to right."""
    left = [_label_width(each.written) + GAP for each in maps]
    rotated = max((len(label) for each in maps for label in each.source), default=1) > 1
    sine, cosine = math.sin(math.radians(ROTATION)), math.cos(math.radians(ROTATION))
    above = [_label_width(each.source) * sine if rotated else FONT / POINTS_PER_INCH for each in maps]
    top = max(above) + GAP
    # The rotated label of the last position reaches to the right of its column.
    right = [max(0.0, _label_width(each.source[-1:]) * cosine - CELL / 2) for each in maps]
    widths = [CELL * len(each.source) for each in maps]
    width = sum(left) + sum(widths) + sum(right) + GAP
    height = top + CELL * max(len(each.written) for each in maps) + GAP
    scale = min(1.0, MAX_WIDTH / width, MAX_HEIGHT / height)
    figure = new_figure(width * scale, height * scale)
    x = 0.0
    for each, before, across, after in zip(maps, left, widths, right):
        down = CELL * len(each.written)
        box = ((x + before) / width, 1 - (top + down) / height, across / width, down / height)
        _draw_heat_map(figure.add_axes(box), each, FONT * scale, ROTATION if rotated else 0)
        x += before + across + after
    return figure


def _draw_heat_map(axes: Axes, attention: AttentionMap, size: float, rotation: int) -> None:
    axes.imshow(attention.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    rotated: dict[str, Any] = {"rotation": rotation, "ha": "left", "rotation_mode": "anchor"} if rotation else {}
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(attention.source)), attention.source, fontsize=size, color=INK, **rotated)
    axes.set_yticks(range(len(attention.written)), attention.written, fontsize=size, color=INK)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.tick_params(length=0, pad=size / 3)
    for spine in axes.spines.values():
        spine.set(color=GRID, linewidth=0.8)


def _label_width(labels: Sequence[str]) -> float:
    """The width in inches of the widest of ``labels``."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=FONT)
    widths = (text_to_path.get_text_width_height_descent(label, font, False)[0] for label in labels)
    return max(widths, default=0) / POINTS_PER_INCH


def attention_overlay(maps: Sequence[AttentionMap]) -> Figure:
    """A figure with a line of images for each map: the image itself, then one faded by the weights of each token.

    The position with the largest weight of a token is not faded, so that a token with uniform weights shows the whole
    image.
    """
    panels: list[tuple[np.ndarray, str] | None] = []
    for each in maps:
        if each.image is None:
            continue
        image = each.image
        line = [(image, ""), *((fade(image, weights), token) for token, weights in zip(each.written, each.weights))]
        panels += [*line, *[None] * (-len(line) % COLUMNS)]
    panels = panels[: MAX_ROWS * COLUMNS]
    rows = math.ceil(len(panels) / COLUMNS)
    figure = new_figure(IMAGE_SIDE * COLUMNS, (IMAGE_SIDE + 0.15) * rows, "constrained")
    for axes, panel in zip(figure.subplots(rows, COLUMNS, squeeze=False).ravel(), panels):
        if panel is None:
            axes.axis("off")
        else:
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=GRID, linewidth=0.8)
            axes.imshow(panel[0], interpolation="nearest")
            text = panel[1] if len(panel[1]) <= MAX_LABEL else panel[1][: MAX_LABEL - 1] + "…"
            label = axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=INK)
            label.set_parse_math(False)
    return figure


def fade(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``image`` (uint8 [Y, X, 3]) faded to white where ``weights`` [S] of a square grid of positions are small."""
    side = math.isqrt(weights.size)
    rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
    share = weights.reshape(side, side) / max(float(weights.max()), 1e-12)
    opacity = (MIN_OPACITY + (1 - MIN_OPACITY) * share)[rows][:, columns, None]
    faded: np.ndarray = np.round(255 - (255 - image.astype(np.float64)) * opacity).astype(np.uint8)
    return faded
