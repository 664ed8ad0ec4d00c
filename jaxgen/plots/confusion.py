"""The confusion matrix of a classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxgen.plots.figure import GREY, INK, new_figure, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: With at most this many labels, cells show their counts; with more, only their colours.
MAX_COUNTED = 20
#: The longest label on an axis, in characters.
MAX_LABEL = 18


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: str | os.PathLike[str], title: str) -> None:
    """Plot ``confusion`` [true label, predicted label] (counts) as a PNG at ``path``.

    Colours are shares of the texts with a true label. Raises ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _draw(np.asarray(confusion), labels, title))


def _draw(confusion: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    number = len(labels)
    side = min(max(4.5, 2.2 + 0.55 * number), 14.0)
    figure = new_figure(side + 0.6, side, "constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    labels = [label.encode("utf-8", "replace").decode() for label in labels]  # half a surrogate pair cannot be drawn
    short = [label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…" for label in labels]
    size = 10 if number <= MAX_COUNTED else max(4, 200 // number)
    axes.set_xticks(range(number), short, rotation=40, ha="right", rotation_mode="anchor", fontsize=size, color=INK)
    axes.set_yticks(range(number), short, fontsize=size, color=INK)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)
    axes.set_xlabel("taken for", color=GREY)
    axes.set_ylabel("is", color=GREY)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if number <= MAX_COUNTED:
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
    return figure
