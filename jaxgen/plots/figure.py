"""What all plots share: colours, a figure without a display, axes in one style, and saving as PNG."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxgen.fsutil import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID = "#22262e", "#737985", "#e4e6ea"
TRAIN, VALIDATION, RATE = "#4c78a8", "#d9622b", "#3f8f6b"


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """An empty figure of ``width`` x ``height`` inches at 100 pixels per inch, for writing to a file only."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: str | os.PathLike[str], draw: Callable[[], Figure]) -> None:
    """Write the figure that ``draw`` returns to ``path`` as PNG, without messages from matplotlib.

    Raises ``CheckpointError`` when it cannot be written.
    """
    logger = logging.getLogger("matplotlib")  # it announces font caches and odd home folders on standard error
    level = logger.level
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        logger.setLevel(logging.CRITICAL)
        try:
            draw().savefig(buffer, format="png")
        finally:
            logger.setLevel(level)
    replace_file(Path(path), buffer.getvalue())


def style_axes(axes: Axes, grid: Literal["both", "x", "y"]) -> None:
    """Grey grid lines behind the data, small labels, and no frame but the line at the bottom."""
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GREY)


def shorten(text: str, length: int = 90) -> str:
    """``text`` on one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
