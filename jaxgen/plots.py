"""Plots as PNG files: losses, attention, confusion matrices, sample quality, and sheets of captioned images."""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np

from jaxgen.fsutil import replace_file
from jaxgen.types import AttentionMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Where a figure is written: a path of jaxgen's own (``write_output`` is for those of users), or an open file.
Target = str | os.PathLike[str] | BinaryIO
INK, GREY, GRID = "#22262e", "#737985", "#e4e6ea"
TRAIN, VALIDATION, RATE = "#4c78a8", "#d9622b", "#3f8f6b"
#: Inches around a cropped figure, and between maps.
GAP = 0.25


@contextmanager
def figure_file(path: Target, width: float, height: float, *, crop: bool = False) -> Iterator[Figure]:
    """An empty figure of ``width`` x ``height`` inches at 100 pixels per inch, written to ``path`` as PNG at the end.

    With ``crop``, the file shows what was drawn instead of that area. Matplotlib prints no messages. Raises
    ``CheckpointError`` when the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    logger = logging.getLogger("matplotlib")  # it reports font caches and unusual home folders on standard error
    level, buffer = logger.level, io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        logger.setLevel(logging.CRITICAL)
        try:
            figure = Figure((width, height), dpi=100, facecolor="white", layout=None if crop else "constrained")
            yield figure
            for text in figure.findobj(Text):
                text.set_parse_math(False)  # a $ in a title or a label is a $
            area = "tight" if crop else None
            figure.savefig(buffer, format="png", dpi=figure.dpi, bbox_inches=area, pad_inches=GAP)
        finally:
            logger.setLevel(level)
    if isinstance(path, (str, os.PathLike)):
        replace_file(Path(path), buffer.getvalue(), "plot again")
    else:
        path.write(buffer.getvalue())


def style_axes(axes: Axes, grid: Literal["both", "y"]) -> None:
    """Grey grid lines behind the data, small labels, and no frame except the line at the bottom."""
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GREY)


def annotate(axes: Axes, point: tuple[float, float], text: str, offset: tuple[float, float], **style: Any) -> None:
    """Write ``text`` on a white box, ``offset`` in points from ``point``."""
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85}
    style |= {"textcoords": "offset points", "fontweight": "bold", "bbox": box, "zorder": 6}
    axes.annotate(text, point, xytext=offset, **style)


def write_note(axes: Axes, text: str) -> None:
    """Write ``text`` in the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


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


def draw_losses(metrics: Sequence[Row], path: Target, title: str, target: str, best: Best) -> None:
    """Plot the losses of ``metrics`` (rows of ``metrics.jsonl``; any value may be absent) as a PNG at ``path``.

    1000 x 600 pixels: training loss per step and smoothed, validation loss with the ``best`` checkpoint, bits per
    character on the right where the rows have them, learning rate below. ``target`` is what the loss is per.
    """
    from matplotlib.ticker import StrMethodFormatter

    train, validation = _series(metrics, "train_loss"), _series(metrics, "val_loss")
    rate, mark = _series(metrics, "learning_rate"), mark_of(metrics, best)
    with figure_file(path, 10, 6) as figure:
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
        if rate.size:
            losses, below = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
            _draw_rate(below, rate)
        else:
            losses = below = figure.subplots()
        _draw_losses(losses, train, validation, mark, target)
        _limit(losses, train, validation, mark)
        if bits_per_nat := _bits_per_nat(metrics):
            _add_bits(losses, bits_per_nat)
        for axes in {losses, below}:
            style_axes(axes, grid="y")
            axes.margins(x=0.015)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.get_major_locator().set_params(integer=True)
        below.set_xlabel("step", color=INK)
        losses.set_title(shorten(title), loc="left", color=INK, fontsize=13, fontweight="bold", pad=12)


def mark_of(metrics: Sequence[Row], best: Best) -> Mark | None:
    """The mark of the ``best`` checkpoint; None if its row has no validation loss."""
    losses, figures = (dict(_series(metrics, name).tolist()) for name in ("val_loss", best.by))
    loss, figure = losses.get(best.step), figures.get(best.step)
    if loss is None:
        return None
    if best.by == "val_loss" or figure is None:
        bits_per_nat = _bits_per_nat(metrics)
        text = f"best loss {loss:.3f}" + (f" ({loss * bits_per_nat:.3f} bits)" if bits_per_nat else "")
    else:
        text = f"best {best.by.removeprefix('val_').replace('_', ' ')} {figure:.3f} (loss {loss:.3f})"
    return Mark(best.step, loss, f"{text} at step {best.step:,}")


def _draw_losses(axes: Axes, train: np.ndarray, validation: np.ndarray, mark: Mark | None, target: str) -> None:
    if not train.size and not validation.size:
        write_note(axes, "no losses yet")
        return
    if train.size:
        axes.plot(*train.T, color=TRAIN, lw=0.8, alpha=0.45, marker="." if len(train) == 1 else None)
        axes.plot(train[:, 0], smooth(*train.T), color=TRAIN, lw=2, label="training")
    if validation.size:
        size = 4.5 if len(validation) <= 40 else 0
        line = axes.plot(*validation.T, color=VALIDATION, lw=1.8, marker="o", label="validation")[0]
        line.set(markersize=size, markeredgecolor="white", markeredgewidth=0.8)
    if mark is not None:
        steps = np.concatenate([train[:, 0], validation[:, 0]])
        side = "right" if mark.step > (steps.min() + steps.max()) / 2 else "left"
        axes.plot([mark.step], [mark.loss], "o", ms=9, mfc="white", mec=VALIDATION, mew=2.2, zorder=5)
        annotate(axes, (mark.step, mark.loss), mark.text, (0, 18), ha=side, va="bottom", color=VALIDATION)
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)
    axes.set_ylabel(f"loss (nats per {target})", color=INK)


def _draw_rate(axes: Axes, rate: np.ndarray) -> None:
    axes.plot(*rate.T, color=RATE, lw=1.6, marker="." if len(rate) == 1 else None)
    axes.fill_between(*rate.T, color=RATE, alpha=0.12, lw=0)
    axes.set_ylim(0, max(float(rate[:, 1].max()) * 1.15, 1e-12))
    axes.set_ylabel("learning rate", color=INK, fontsize=9)
    axes.locator_params(axis="y", nbins=3)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
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


def _bits_per_nat(metrics: Sequence[Row]) -> float:
    """Bits per character divided by nats of loss, which is constant within a run; 0 if unknown."""
    losses = dict(_series(metrics, "val_loss").tolist())
    ratios = [bits / losses[step] for step, bits in _series(metrics, "val_bpc") if bits > 0 and losses.get(step, 0) > 0]
    return float(np.median(ratios)) if ratios else 0.0


def _add_bits(axes: Axes, bits_per_nat: float) -> None:
    functions = (partial(np.multiply, bits_per_nat), partial(np.multiply, 1 / bits_per_nat))
    right = axes.secondary_yaxis("right", functions=functions)
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
    """[N, 2]: step and value of the rows where both are finite numbers."""
    points = np.array([(row.get("step"), row.get(name)) for row in metrics], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


#: Inches of a cell, the font size in points, and the largest plot in inches.
CELL, FONT, MAX_WIDTH, MAX_HEIGHT = 0.26, 9.0, 30.0, 20.0
#: Of an overlay: images per row and inches of each, the longest label in characters, and the opacity of positions
#: without weight (with none at all, images could not be told apart).
COLUMNS, IMAGE_SIDE, MAX_TOKEN, MIN_OPACITY = 8, 1.3, 14, 0.12
#: The most rows of images in an overlay; further ones are left out.
MAX_ROWS = 24


def draw_attention(maps: Sequence[AttentionMap], path: Target) -> None:
    """Plot each of ``maps`` as a heat map, side by side and with cells of one size, as a PNG at ``path``.

    A row is a generated token, a column a source position; darker cells have more weight. Maps whose source positions
    are a square grid over an image show that image for each token instead: the image itself, then one faded by the
    weights of each token. A token's largest weight is not faded, so uniform weights show the whole image.
    """
    panels: list[Panel | None] = []
    for each in maps:
        if each.image is None or math.isqrt(each.weights.shape[1]) ** 2 != each.weights.shape[1]:
            _draw_heat_maps(maps, path)
            return
        panels.append(Panel(each.image))
        panels += [
            Panel(fade(each.image, weights), shorten(token, MAX_TOKEN))
            for token, weights in zip(each.written, each.weights)
        ]
        panels += [None] * (-len(panels) % COLUMNS)
    _draw_images(panels[: MAX_ROWS * COLUMNS], path, COLUMNS, IMAGE_SIDE)


def _draw_heat_maps(maps: Sequence[AttentionMap], path: Target) -> None:
    slanted = any(len(label) > 1 for each in maps for label in each.source)
    slant: dict[str, Any] = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    with figure_file(path, 1, 1, crop=True) as figure:  # of one inch, so that places in it are in inches
        left = 0.0
        for each in maps:
            width, height = CELL * len(each.source), CELL * len(each.written)
            axes = figure.add_axes((left, -height, width, height))
            axes.imshow(each.weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
            axes.xaxis.tick_top()
            axes.set_xticks(range(len(each.source)), each.source, fontsize=FONT, color=INK, **slant)
            axes.set_yticks(range(len(each.written)), each.written, fontsize=FONT, color=INK)
            axes.tick_params(length=0, pad=FONT / 3)
            axes.spines[:].set(color=GRID, linewidth=0.8)
            labelled = figure.dpi_scale_trans.inverted().transform_bbox(axes.get_tightbbox())  # type: ignore[arg-type]
            axes.set_position((2 * left - labelled.x0, -height, width, height))
            left += labelled.width + GAP
        size = figure.get_tightbbox()
        figure.set_dpi(100 * min(1, MAX_WIDTH / (size.width + 2 * GAP), MAX_HEIGHT / (size.height + 2 * GAP)))


def fade(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``image`` (uint8 [Y, X, 3]) faded to white where ``weights`` [S] of a square grid of positions are small."""
    side = math.isqrt(weights.size)
    rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
    share = weights.reshape(side, side) / max(float(weights.max()), 1e-12)
    opacity = (MIN_OPACITY + (1 - MIN_OPACITY) * share)[rows][:, columns, None]
    faded: np.ndarray = np.round(255 - (255 - image.astype(np.float64)) * opacity).astype(np.uint8)
    return faded


#: Of a sheet: images per row and inches of each, characters per line of text, and the most lines of one text.
SHEET_COLUMNS, SHEET_SIDE, LINE_LENGTH, MAX_LINES = 4, 2.4, 34, 5
#: Inches of a line of text.
LINE_HEIGHT = 0.16


class Panel(NamedTuple):
    """An image (uint8 [Y, X, 3]) with a text above it, and one below it in another colour."""

    image: np.ndarray
    above: str = ""
    below: str = ""


def draw_contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    path: Target,
) -> None:
    """Draw ``images`` (uint8 [Y, X, 3]) with ``captions`` as a PNG at ``path``.

    An image whose caption is not one of its ``references`` has the first of them below it.
    """
    panels = [
        Panel(image, _wrap(caption) or "(nothing)", "" if caption in known else _wrap(known[0]))
        for image, caption, known in zip(images, captions, references)
    ]
    _draw_images(panels, path, min(SHEET_COLUMNS, len(panels)), SHEET_SIDE)


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, LINE_LENGTH, max_lines=MAX_LINES, placeholder=" …"))


def _draw_images(panels: Sequence[Panel | None], path: Target, columns: int, side: float) -> None:
    """Draw ``panels`` in rows of ``columns`` images of ``side`` inches; nothing in the place of a ``None``."""
    rows = math.ceil(len(panels) / columns)
    shown = [panel for panel in panels if panel]
    lines = 2 + max(each.above.count("\n") for each in shown) + max(each.below.count("\n") for each in shown)
    with figure_file(path, columns * side, rows * (side + LINE_HEIGHT * lines)) as figure:
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes, panel in itertools.zip_longest(places, panels):
            if panel is None:
                axes.axis("off")
                continue
            axes.imshow(panel.image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=GRID, linewidth=0.8)
            axes.set_title(panel.above, fontsize=8, color=INK, pad=3)
            axes.set_xlabel(panel.below, fontsize=8, color=VALIDATION, labelpad=3)


#: With at most this many labels, cells show their counts; with more, only their colours.
MAX_COUNTED = 20
#: The longest label on an axis, in characters.
MAX_LABEL = 18


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: Target, title: str) -> None:
    """Plot ``confusion`` [true label, predicted label] (counts) as a PNG at ``path``.

    Colours show shares of the texts with the same true label.
    """
    number = len(labels)
    side = min(max(4.5, 2.2 + 0.55 * number), 14.0)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # Half a surrogate pair cannot be drawn.
    short = [shorten(label.encode("utf-8", "replace").decode(), MAX_LABEL) for label in labels]
    size = 10 if number <= MAX_COUNTED else max(4, 200 // number)
    with figure_file(path, side + 0.6, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set_xticks(range(number), short, rotation=40, ha="right", rotation_mode="anchor", fontsize=size, color=INK)
        axes.set_yticks(range(number), short, fontsize=size, color=INK)
        axes.set_xlabel("predicted", color=GREY)
        axes.set_ylabel("true", color=GREY)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if number <= MAX_COUNTED:
            for (row, column), count in np.ndenumerate(confusion):
                colour = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, f"{int(count):,}", ha="center", va="center", color=colour, fontsize=9)
        bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, colors=GREY, labelsize=8)
        bar.ax.yaxis.set_major_formatter("{x:.0%}")
        axes.set_title(shorten(title), loc="left", color=INK, fontsize=12, fontweight="bold", pad=12)


#: x, y and label.
Point = tuple[float, float, str]
#: The y axis of each panel: name in the rows, label, factor.
PANELS = (("logp", "mean log-likelihood (nats a token)", 1.0), ("known_words", "words known from training (%)", 100.0))


def draw_quality(rows: Sequence[Row], real: Row | None, path: Target, title: str, unit: str) -> None:
    """Plot ``rows`` (temperature, logp, known_words, distinct) and the row of ``real`` text as a PNG at ``path``.

    1000 x 600 pixels: mean log-likelihood against distinct-2, and beside it the share of known words where the rows
    have it. Values may be absent.
    """
    panels = [panel for panel in PANELS if panel is PANELS[0] or _points(rows, panel[0], panel[2])]
    with figure_file(path, 10, 6) as figure:
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.06)  # type: ignore[union-attr,call-arg]
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, label, factor) in zip(all_axes, panels):
            _draw_panel(axes, _points(rows, name, factor), _points([real] if real else [], name, factor))
            axes.set_ylabel(label, color=INK)
            axes.set_xlabel(f"distinct-2 (share of {unit} pairs that are new)", color=INK)
            style_axes(axes, grid="both")
            axes.margins(0.12)
        if missing := [_label(row["temperature"]) for row in rows if row["distinct"][1] is None]:
            all_axes[0].plot([], [], " ", label=f"no {unit} pairs at {', '.join(missing)}")
        if all_axes[0].lines:
            all_axes[0].legend(loc="best", frameon=False, labelcolor=INK)
        figure.suptitle(shorten(title), x=0.012, ha="left", color=INK, fontsize=13, fontweight="bold")


def _points(rows: Sequence[Row], name: str, factor: float) -> list[Point]:
    """x, y and label of each row that has both values."""
    complete = [row for row in rows if row["distinct"][1] is not None and row[name] is not None]
    return [(row["distinct"][1], factor * row[name], _label(row["temperature"])) for row in complete]


def _label(temperature: float | None) -> str:
    return "validation text" if temperature is None else f"{temperature:g}"


def _draw_panel(axes: Axes, drawn: Sequence[Point], real: Sequence[Point]) -> None:
    if not drawn and not real:
        write_note(axes, "nothing to compare")
        return
    x, y = [point[0] for point in drawn], [point[1] for point in drawn]
    axes.plot(x, y, color=TRAIN, lw=1.6, alpha=0.6)
    axes.plot(x, y, "o", ms=9, mfc="white", mec=TRAIN, mew=2, zorder=3, label="drawn, by temperature")
    for at, height, label in drawn:
        annotate(axes, (at, height), label, (8, 7), color=TRAIN, fontsize=11)
    for at, height, label in real:
        axes.axhline(height, color=VALIDATION, lw=0.9, ls=(0, (4, 4)), alpha=0.7)
        axes.axvline(at, color=VALIDATION, lw=0.9, ls=(0, (4, 4)), alpha=0.7)
        axes.plot([at], [height], "D", ms=8, mfc=VALIDATION, mec="white", mew=1.2, zorder=4, label=label)


def draw_comparison(curves: Sequence[tuple[str, Sequence[Sequence[Row]]]], path: Target) -> None:
    """Plot the validation losses of runs as a PNG at ``path``: a colour for each label, a line for each of its runs."""
    with figure_file(path, 10, 6) as figure:
        axes = figure.subplots()
        for number, (label, runs) in enumerate(curves):
            for index, metrics in enumerate(runs):
                name = shorten(label, 60) if index == 0 else None
                axes.plot(
                    *_series(metrics, "val_loss").T, color=f"C{number % 10}", lw=1.6, marker="o", ms=3, label=name
                )
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("validation loss (nats)", color=INK)
        style_axes(axes, grid="y")
        figure.legend(loc="outside lower center", frameon=False, ncols=1)


def draw_rates(rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Target) -> None:
    """Plot the losses of a learning-rate test, and the rate that it suggests, as a PNG at ``path``."""
    with figure_file(path, 10, 6) as figure:
        axes = figure.subplots()
        axes.plot(rates, losses, color=TRAIN, lw=2)
        axes.axvline(suggestion, color=VALIDATION, lw=1.4, ls="--", label=f"suggestion: {suggestion:.2g}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate", color=INK)
        axes.set_ylabel("training loss (nats), smoothed", color=INK)
        style_axes(axes, grid="both")
        figure.legend(loc="outside upper right", frameon=False, labelcolor=INK)
