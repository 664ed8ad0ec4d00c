"""Plots as PNG files: losses, attention, confusion matrices, sample quality, and sheets of captioned images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxgen.fsutil import replace_file
from jaxgen.types import AttentionMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure
import textwrap

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


#: A row of ``metrics.jsonl`` or of a quality report.
Row = Mapping[str, Any]


class Best(NamedTuple):
    """The best checkpoint: its step, and the name of the metric that decides."""

    step: int
    by: str = "val_loss"


class Mark(NamedTuple):
    """The point of the best checkpoint in the plot, and its label."""

    step: float
    loss: float
    text: str


def draw_losses(
    metrics: Sequence[Row],
    path: str | os.PathLike[str],
    title: str,
    target: str = "token",
    best: Best | None = None,
) -> None:
    """Plot the losses of ``metrics`` (rows of ``metrics.jsonl``; any value may be absent) as a PNG at ``path``.

    1000 x 600 pixels: training loss per step and smoothed, validation loss with the best checkpoint (by default that of
    the lowest loss), bits per character on the right where the rows have them, learning rate below. ``target`` is what
    the loss is per. Raises ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _loss_figure(metrics, title, target, best))


def _loss_figure(metrics: Sequence[Row], title: str, target: str, best: Best | None) -> Figure:
    from matplotlib.ticker import StrMethodFormatter

    train, validation = _series(metrics, "train_loss"), _series(metrics, "val_loss")
    rate = _series(metrics, "learning_rate")
    figure = new_figure(10, 6, "constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    if rate.size:
        losses, below = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        _draw_rate(below, rate)
    else:
        losses = below = figure.subplots()
    bits_per_nat = _bits_per_nat(validation, _series(metrics, "val_bpc"))
    mark = mark_of(metrics, best)
    _draw_losses(losses, train, validation, mark, target)
    _limit(losses, train, validation, mark)
    if bits_per_nat:
        _add_bits(losses, bits_per_nat)
    for axes in {losses, below}:
        style_axes(axes, grid="y")
        axes.margins(x=0.015)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.get_major_locator().set_params(integer=True)
    below.set_xlabel("step", color=INK)
    losses.set_title(shorten(title), loc="left", color=INK, fontsize=13, fontweight="bold", pad=12, parse_math=False)
    return figure


def mark_of(metrics: Sequence[Row], best: Best | None = None) -> Mark | None:
    """The mark of the ``best`` checkpoint, or of that with the lowest validation loss; None if it has no loss."""
    validation = _series(metrics, "val_loss")
    if best is None and validation.size:
        best = Best(int(validation[np.argmin(validation[:, 1]), 0]))
    found = validation[validation[:, 0] == best.step] if best is not None else validation
    if best is None or not found.size:
        return None
    step, loss = found[0]
    figures = _series(metrics, best.by)
    figure = figures[figures[:, 0] == step]
    if best.by == "val_loss" or not figure.size:
        bits_per_nat = _bits_per_nat(validation, _series(metrics, "val_bpc"))
        bits = f" ({loss * bits_per_nat:.3f} bits)" if bits_per_nat else ""
        return Mark(step, loss, f"best loss {loss:.3f}{bits} at step {step:,.0f}")
    name = best.by.removeprefix("val_").replace("_", " ")
    return Mark(step, loss, f"best {name} {figure[0, 1]:.3f} (loss {loss:.3f}) at step {step:,.0f}")


def _draw_losses(axes: Axes, train: np.ndarray, validation: np.ndarray, mark: Mark | None, target: str) -> None:
    if not train.size and not validation.size:
        axes.text(0.5, 0.5, "no losses yet", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    if train.size:
        marker = "." if len(train) == 1 else None
        axes.plot(*train.T, color=TRAIN, lw=0.8, alpha=0.45, marker=marker)
        axes.plot(train[:, 0], smooth(*train.T), color=TRAIN, lw=2, label="training")
    if validation.size:
        size = 4.5 if len(validation) <= 40 else 0
        axes.plot(
            *validation.T, color=VALIDATION, lw=1.8, marker="o", ms=size, mec="white", mew=0.8, label="validation"
        )
        steps = np.concatenate([train[:, 0], validation[:, 0]])
        if mark is not None:
            _draw_mark(axes, mark, (steps.min() + steps.max()) / 2)
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)
    axes.set_ylabel(f"loss (nats per {target})", color=INK)


def _draw_mark(axes: Axes, mark: Mark, middle: float) -> None:
    axes.plot([mark.step], [mark.loss], "o", ms=9, mfc="white", mec=VALIDATION, mew=2.2, zorder=5)
    axes.annotate(
        mark.text,
        (mark.step, mark.loss),
        xytext=(0, 18),
        textcoords="offset points",
        ha="right" if mark.step > middle else "left",
        va="bottom",
        color=VALIDATION,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": "none", "alpha": 0.85},
        zorder=6,
    )


def _draw_rate(axes: Axes, rate: np.ndarray) -> None:
    axes.plot(*rate.T, color=RATE, lw=1.6, marker="." if len(rate) == 1 else None)
    axes.fill_between(*rate.T, color=RATE, alpha=0.12, lw=0)
    axes.set_ylim(0, max(float(rate[:, 1].max()) * 1.15, 1e-12))
    axes.set_ylabel("learning rate", color=INK, fontsize=9)
    axes.locator_params(axis="y", nbins=3)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    axes.yaxis.get_offset_text().set(color=GREY, fontsize=8)


def _limit(axes: Axes, train: np.ndarray, validation: np.ndarray, mark: Mark | None) -> None:
    """Limit the loss axis to the late part of training: the first steps and rare spikes may lie outside.

    The best checkpoint always lies inside.
    """
    values = np.concatenate([train[:, 1], validation[:, 1]])
    if len(values) < 2:
        return
    low, high = values.min(), values.max()
    if len(train) >= 100:
        early = len(train) // 33
        high = max(smooth(*train.T)[early], np.quantile(train[early:, 1], 0.995))
        if validation.size:
            high = max(high, np.quantile(validation[:, 1], 0.9))
    high = high if mark is None else max(high, mark.loss)
    span = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * span, high + 0.08 * span)


def _bits_per_nat(loss: np.ndarray, bits: np.ndarray) -> float:
    """Bits per character divided by nats of loss, which is constant within a run; 0 if the rows do not tell."""
    losses = {step: value for step, value in loss if value > 0}
    ratios = [value / losses[step] for step, value in bits if step in losses and value > 0]
    return float(np.median(ratios)) if ratios else 0.0


def _add_bits(axes: Axes, bits_per_nat: float) -> None:
    right = axes.secondary_yaxis(
        "right", functions=(partial(np.multiply, bits_per_nat), partial(np.multiply, 1 / bits_per_nat))
    )
    right.set_ylabel("bits per character", color=INK, labelpad=8)
    right.tick_params(colors=GREY, labelsize=9, length=0)
    right.spines["right"].set_visible(False)


def smooth(steps: np.ndarray, values: np.ndarray, width: float = 0.1) -> np.ndarray:
    """A moving mean over the steps within a share ``width`` below and above each step.

    The window is symmetric in log(step): short at the steep start, long in the noisy tail.
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps / (1 + width), side="left")
    # As many points on either side, so that the ends are not biased towards the middle.
    index = np.arange(len(steps))
    reach = np.minimum(index - first, len(steps) - 1 - index)
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _series(metrics: Sequence[Row], name: str) -> np.ndarray:
    """[N, 2]: step and value of the rows where both are finite numbers, by step."""
    points = [(row.get("step"), row.get(name)) for row in metrics]
    finite = {step: value for step, value in points if _is_number(step) and _is_number(value)}
    return np.array(sorted(finite.items()), dtype=float).reshape(-1, 2)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


#: Inches of a cell and between maps, the font size in points, and the largest plot in inches.
CELL, GAP, FONT, MAX_WIDTH, MAX_HEIGHT = 0.26, 0.25, 9.0, 30.0, 20.0
#: Degrees by which the source labels are rotated, unless all are single letters.
ROTATION = 60
POINTS_PER_INCH = 72
#: Of an overlay: images per row and inches of each, the longest label in characters, and the opacity of positions
#: without weight (with none at all, images could not be told apart).
COLUMNS, IMAGE_SIDE, MAX_TOKEN, MIN_OPACITY = 8, 1.3, 14, 0.12
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
            text = shorten(panel[1], MAX_TOKEN)
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


#: With at most this many labels, cells show their counts; with more, only their colours.
MAX_COUNTED = 20
#: The longest label on an axis, in characters.
MAX_LABEL = 18


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: str | os.PathLike[str], title: str) -> None:
    """Plot ``confusion`` [true label, predicted label] (counts) as a PNG at ``path``.

    Colours are shares of the texts with a true label. Raises ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _confusion_figure(np.asarray(confusion), labels, title))


def _confusion_figure(confusion: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    number = len(labels)
    side = min(max(4.5, 2.2 + 0.55 * number), 14.0)
    figure = new_figure(side + 0.6, side, "constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    labels = [label.encode("utf-8", "replace").decode() for label in labels]  # half a surrogate pair cannot be drawn
    short = [shorten(label, MAX_LABEL) for label in labels]
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
    save_figure(path, lambda: _quality_figure(rows, real, title, unit))


def _quality_figure(rows: Sequence[Row], real: Row | None, title: str, unit: str) -> Figure:
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


#: Images per row, characters per line of text, and the most lines of one text.
SHEET_COLUMNS, LINE_LENGTH, MAX_LINES = 4, 34, 5
#: Inches: the side of an image, the height of a line of text, and the gap between images.
SHEET_SIDE, LINE_HEIGHT, SHEET_GAP = 2.0, 0.15, 0.25
SHEET_FONT = 8


def draw_contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    path: str | os.PathLike[str],
) -> None:
    """Draw ``images`` (uint8 [Y, X, 3]) with ``captions`` as a PNG at ``path``.

    A caption that is not one of its image's ``references`` is followed by the first of them, in another colour. Raises
    ``CheckpointError`` when it cannot be written.
    """
    save_figure(path, lambda: _sheet_figure(images, captions, references))


def _sheet_figure(images: Sequence[np.ndarray], captions: Sequence[str], references: Sequence[Sequence[str]]) -> Figure:
    written = [_lines(caption) or ["(nothing)"] for caption in captions]
    instead = [[] if caption in known else _lines(known[0]) for caption, known in zip(captions, references)]
    rows, across = math.ceil(len(images) / SHEET_COLUMNS), min(SHEET_COLUMNS, len(images))
    below = LINE_HEIGHT * max(len(one) + len(other) for one, other in zip(written, instead)) + SHEET_GAP
    width, height = across * (SHEET_SIDE + SHEET_GAP) + SHEET_GAP, rows * (SHEET_SIDE + below) + SHEET_GAP
    figure = new_figure(width, height)
    for n, (image, first, second) in enumerate(zip(images, written, instead)):
        row, column = divmod(n, SHEET_COLUMNS)
        left, top = SHEET_GAP + column * (SHEET_SIDE + SHEET_GAP), SHEET_GAP + row * (SHEET_SIDE + below)
        axes = figure.add_axes((left / width, 1 - (top + SHEET_SIDE) / height, SHEET_SIDE / width, SHEET_SIDE / height))
        axes.axis("off")
        axes.imshow(image, interpolation="nearest")
        for number, line in enumerate([*first, *second]):
            down = top + SHEET_SIDE + 0.06 + LINE_HEIGHT * number
            colour = INK if number < len(first) else VALIDATION
            at = ((left + SHEET_SIDE / 2) / width, 1 - down / height)
            text = figure.text(*at, line, ha="center", va="top", fontsize=SHEET_FONT, color=colour)
            text.set_parse_math(False)
    return figure


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_LENGTH, max_lines=MAX_LINES, placeholder=" …")
