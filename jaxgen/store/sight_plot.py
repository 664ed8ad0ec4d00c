"""The picture of attention over images: for each token the image, as far as the decoder looks at it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgen.store.plot import GRID, INK

if TYPE_CHECKING:
    from jaxgen.store.attention_plot import Look

#: Images in a row and inches of one, letters of a token in one line under it, and what is left of the place least
#: looked at: images of which nothing can be seen could not be told apart.
ACROSS, SIDE, LABEL, LEAST = 8, 1.3, 14, 0.12
#: Rows of images in a picture, at most: what would come behind them is left out.
MOST_ROWS = 24


def render_sights(looks: Sequence[Look]) -> bytes:
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
