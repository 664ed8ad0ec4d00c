"""The picture of attention: where a decoder looks while it writes each token."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen.store.plot import INK, save_picture


class Look(NamedTuple):
    """One text with where each of its tokens has looked."""

    source: list[str]  # [S] labels of the places
    written: list[str]  # [T] tokens
    weights: np.ndarray  # [T, S], each row adds up to 1


def draw_attention(looks: Sequence[Look], path: str | os.PathLike[str]) -> None:
    """Draw each of ``looks`` as a heat map, side by side, as a PNG at ``path``.

    Raises ``CheckpointError`` when it cannot be written.
    """
    save_picture(path, lambda: _render(looks))


def _render(looks: Sequence[Look]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [max(2.5, 0.27 * len(look.source) + 1.2) for look in looks]
    height = max(2.5, *(0.27 * len(look.written) + 1.2 for look in looks))
    scale = min(1.0, 24 / sum(widths), 16 / height)
    size = (sum(widths) * scale + 0.4, height * scale + 0.4)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(looks), width_ratios=widths, squeeze=False)[0]
    for axes, look in zip(every, looks):
        axes.imshow(look.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        longest = max(map(len, look.source), default=1)
        turned = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if longest > 1 else {}
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(look.source)), look.source, fontsize=9 * scale, color=INK, **turned)
        axes.set_yticks(range(len(look.written)), look.written, fontsize=9 * scale, color=INK)
        for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            label.set_parse_math(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
