"""The picture of a classifier's mistakes: which labels are taken for which."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from jaxgen.plots.loss import GREY, INK, save_picture, shorten

#: Labels whose counts are written into their cells, at most; of more, colour alone tells.
MOST_WRITTEN = 20
#: Characters of a label on an axis.
LABEL_LENGTH = 18


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: str | os.PathLike[str], title: str) -> None:
    """Draw ``confusion`` [C, C] (true label, label given; counts) as a PNG at ``path``.

    Colours are shares of a true label's rows. Raises ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: _render(np.asarray(confusion), labels, title))


def _render(confusion: np.ndarray, labels: Sequence[str], title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = len(labels)
    side = min(max(4.5, 2.2 + 0.55 * number), 14.0)
    figure = Figure(figsize=(side + 0.6, side), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    labels = [label.encode("utf-8", "replace").decode() for label in labels]  # no font has half a character
    short = [label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…" for label in labels]
    size = 10 if number <= MOST_WRITTEN else max(4, 200 // number)
    axes.set_xticks(range(number), short, rotation=40, ha="right", rotation_mode="anchor", fontsize=size, color=INK)
    axes.set_yticks(range(number), short, fontsize=size, color=INK)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.set_xlabel("taken for", color=GREY)
    axes.set_ylabel("is", color=GREY)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if number <= MOST_WRITTEN:
        for row in range(number):
            for column in range(number):
                colour = "white" if share[row, column] > 0.55 else INK
                text = f"{int(confusion[row, column]):,}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=GREY, labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title(shorten(title), loc="left", color=INK, fontsize=12, fontweight="bold", pad=12, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
