"""The plot of ``jaxgen evaluate``: quality against diversity, a point for each temperature."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxgen.plots.figure import GREY, INK, TRAIN, VALIDATION, new_figure, save_figure, shorten, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A row of a quality report.
Row = Mapping[str, Any]
#: x, y and label.
Point = tuple[float, float, str]
#: The y axis of each panel: name in the rows, label, factor.
PANELS = (("logp", "mean log-likelihood (nats a token)", 1.0), ("known_words", "words known from training (%)", 100.0))


def draw_quality(
    rows: Sequence[Row],
    real: Row | None,
    path: str | os.PathLike[str],
    title: str,
    unit: str = "word",
) -> None:
    """Plot ``rows`` (temperature, logp, known_words, distinct) and the row of ``real`` text as a PNG at ``path``.

    1000 x 600 pixels: mean log-likelihood against distinct-2, and beside it the share of known words where the rows
    have it. Values may be absent. Raises ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _draw(rows, real, title, unit))


def _draw(rows: Sequence[Row], real: Row | None, title: str, unit: str) -> Figure:
    figure = new_figure(10, 6, "constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.06)  # type: ignore[union-attr,call-arg]
    panels = [panel for panel in PANELS if panel is PANELS[0] or _points(rows, panel[0], panel[2])]
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, label, factor) in zip(all_axes, panels):
        _draw_panel(axes, _points(rows, name, factor), _points([real] if real else [], name, factor))
        axes.set_ylabel(label, color=INK)
        axes.set_xlabel(f"distinct-2 (share of {unit} pairs that are new)", color=INK)
        style_axes(axes, grid="both")
        axes.margins(0.12)
    _explain(all_axes[0], [row for row in rows if row["distinct"][1] is None], unit)
    figure.suptitle(shorten(title), x=0.012, ha="left", color=INK, fontsize=13, fontweight="bold", parse_math=False)
    return figure


def _points(rows: Sequence[Row], name: str, factor: float) -> list[Point]:
    """x, y and label of each row that has both values."""
    complete = [row for row in rows if row["distinct"][1] is not None and row[name] is not None]
    return [(row["distinct"][1], factor * row[name], _label(row["temperature"])) for row in complete]


def _label(temperature: float | None) -> str:
    return "validation text" if temperature is None else f"{temperature:g}"


def _draw_panel(
    axes: Axes, drawn: Sequence[tuple[float, float, str]], real: Sequence[tuple[float, float, str]]
) -> None:
    if not drawn and not real:
        axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    x, y = [point[0] for point in drawn], [point[1] for point in drawn]
    axes.plot(x, y, color=TRAIN, lw=1.6, alpha=0.6)
    axes.plot(x, y, "o", ms=9, mfc="white", mec=TRAIN, mew=2, zorder=3, label="drawn, by temperature")
    for at, height, label in drawn:
        _annotate(axes, at, height, label, TRAIN)
    for at, height, label in real:
        axes.axhline(height, color=VALIDATION, lw=0.9, ls=(0, (4, 4)), alpha=0.7)
        axes.axvline(at, color=VALIDATION, lw=0.9, ls=(0, (4, 4)), alpha=0.7)
        axes.plot([at], [height], "D", ms=8, mfc=VALIDATION, mec="white", mew=1.2, zorder=4, label=label)


def _explain(axes: Axes, missing: Sequence[Row], unit: str) -> None:
    if missing:
        names = ", ".join(_label(row["temperature"]) for row in missing)
        axes.plot([], [], " ", label=f"no {unit} pairs at {names}")
    if axes.lines:
        axes.legend(loc="best", frameon=False, labelcolor=INK)


def _annotate(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 7),
        textcoords="offset points",
        color=color,
        fontsize=11,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
        zorder=5,
    )
