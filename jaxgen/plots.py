"""Pictures as PNG: losses, attention, confusion matrices, sample quality, comparisons, and sheets of captioned images.

All have one style, which ``theme`` describes. The classes are values that notebooks show, as HTML or as a picture.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np

from jaxgen import notebook
from jaxgen.colors import ink_on, to_hex
from jaxgen.errors import choose, counted
from jaxgen.fsutil import replace_file, write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: Where a figure is written: a path of jaxgen's own (``write_output`` is for those of users), or an open file.
Target = str | os.PathLike[str] | BinaryIO


# The style


class Theme(NamedTuple):
    """The colours of all pictures."""

    page: str
    ink: str  # texts
    grey: str  # axes
    grid: str
    weights: tuple[str, ...]  # of shares from 0 to 1
    cycle: tuple[str, ...]  # of curves; readers who do not tell red from green can tell them apart


_CYCLE = ("#3a7ec2", "#d95f0e", "#1f9e78", "#c766a4", "#e0a100", "#59b3e6", "#8a6bd1", "#8c8c8c")
THEMES = {
    "light": Theme("#ffffff", "#22262e", "#626873", "#e4e6ea", ("#f4f8fd", "#6ba3d0", "#0b3470"), _CYCLE),
    "dark": Theme("#16181d", "#e6e8ec", "#9aa1ad", "#31353d", ("#1d2129", "#3f78b5", "#e2effc"), _CYCLE),
}
#: Fonts with letters that Matplotlib's own lacks, as far as the machine has them.
FONTS = (
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Symbols2", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *(
        "Droid Sans Fallback",
        "PingFang SC",
        "Hiragino Sans",
        "Hiragino Sans GB",
        "Apple SD Gothic Neo",
        "Microsoft YaHei",
    ),
    *("Yu Gothic", "Malgun Gothic", "SimHei", "Segoe UI", "Nirmala UI", "Arial Unicode MS"),
)
#: Inches around a cropped figure, and between its parts; the height of a line of text, and the width of a letter.
GAP, LINE, LETTER = 0.25, 0.17, 0.078


def theme() -> Theme:
    """The colours of pictures: those of ``JAXGEN_THEME``, ``light`` (the default) or ``dark``.

    Raises ``UsageError`` for another value.
    """
    return THEMES[choose(os.environ.get("JAXGEN_THEME") or "light", THEMES, "theme of pictures (JAXGEN_THEME)")]


@contextmanager
def figure_file(path: Target, width: float, height: float, *, crop: bool = False) -> Iterator[Figure]:
    """An empty figure of ``width`` x ``height`` inches at 100 pixels per inch, written to ``path`` as PNG at the end.

    With ``crop``, the file shows what was drawn instead of that area. Matplotlib prints no messages. Raises
    ``CheckpointError`` when the file cannot be written.
    """
    from matplotlib.figure import Figure

    logger = logging.getLogger("matplotlib")  # it reports font caches and unusual home folders on standard error
    level, buffer, page = logger.level, io.BytesIO(), theme().page
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that no font has
        logger.setLevel(logging.CRITICAL)
        try:
            figure = Figure((width, height), dpi=100, facecolor=page)
            if not crop:
                figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08, wspace=0.04)
            yield figure
            _set_fonts(figure)
            area = "tight" if crop else None
            figure.savefig(buffer, format="png", dpi=figure.dpi, facecolor=page, bbox_inches=area, pad_inches=GAP)
        finally:
            logger.setLevel(level)
    if isinstance(path, (str, os.PathLike)):
        replace_file(Path(path), buffer.getvalue(), "plot again")
    else:
        path.write(buffer.getvalue())


def _set_fonts(figure: Figure) -> None:
    from matplotlib.text import Text

    powers = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _power_labels(axis)}
    for text in figure.findobj(Text):
        text.set(parse_math=text in powers, fontfamily=_fonts())  # a $ in a title or a label is a $


def _power_labels(axis: Any) -> list[Any]:
    """The numbers at a logarithmic axis, which are powers written as formulas."""
    logarithmic = axis.get_scale() == "log"
    return [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)] if logarithmic else []


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FONTS if name in there)]


def style_axes(axes: Axes, grid: Literal["both", "y", "none"] = "none") -> None:
    """Grid lines behind the data, small labels, and no frame except the line at the bottom of a grid."""
    look = theme()
    if grid != "none":
        axes.grid(axis=grid, color=look.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor(look.page)
    axes.tick_params(colors=look.grey, labelsize=9, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=look.ink, fontsize=10)
        axis.get_offset_text().set(color=look.grey, fontsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom" and grid != "none")
        spine.set_color(look.grey)


def write_title(figure: Figure, text: str, place: tuple[float, float] | None = None, width: float = 0.0) -> None:
    """Write a title of at most two lines at the top left, or above a ``place`` in inches in a ``width``."""
    look: dict[str, Any] = {"color": theme().ink, "fontsize": 12.5, "fontweight": "bold", "ha": "left"}
    shown = wrap(text, int((width or figure.get_figwidth()) / 0.118), 2)
    if place is None:
        figure.suptitle(shown, x=0.012, **look)
    else:
        figure.text(*place, shown, va="bottom", **look)


def add_legend(axes: Axes) -> None:
    """A legend above the axes, where it covers nothing."""
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1}
    look: dict[str, Any] = {"labelcolor": theme().ink, "handlelength": 1.4, "columnspacing": 1.4}
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=9, frameon=False, fontsize=9, **look, **place)


def count_steps(axes: Axes) -> None:
    """Whole numbers of steps along the x axis."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def add_scale(figure: Figure, image: Any, label: str, form: str = "{x:.0%}", **place: Any) -> None:
    """A colour bar: the scale of ``image``; ``place`` are arguments of ``Figure.colorbar``."""
    bar, look = figure.colorbar(image, **place), theme()
    bar.outline.set_visible(False)
    bar.set_label(label, color=look.ink, fontsize=9)
    bar.ax.tick_params(length=0, colors=look.grey, labelsize=8)
    (bar.ax.xaxis if place.get("orientation") == "horizontal" else bar.ax.yaxis).set_major_formatter(form)


def add_scale_below(figure: Figure, image: Any, label: str, top: float, form: str = "{x:.0%}") -> None:
    """A horizontal scale from ``top`` on, in inches, with its label beside it."""
    scale = figure.add_axes((0.0, top - 0.13, 2.6, 0.13))
    add_scale(figure, image, "", form, cax=scale, orientation="horizontal")
    figure.text(2.9, top, label, color=theme().ink, fontsize=FONT, va="top")


def write_note(axes: Axes, text: str) -> None:
    """Write ``text`` in the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme().grey)


def weights_map() -> Colormap:
    """The colours of shares from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("weights", theme().weights)


def shorten(text: str, width: int = 90) -> str:
    """``text`` on one line of at most ``width`` letters; those of Chinese, Japanese and Korean count twice.

    What cannot be drawn is U+FFFD: half a surrogate pair, or a character that controls the writing direction.
    """
    from rich.cells import cell_len, set_cell_size

    line = "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in " ".join(text.split()))
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


def wrap(text: str, width: int, most: int) -> str:
    """``text`` on at most ``most`` lines of at most ``width`` letters, as ``shorten`` counts them."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in shorten(text, 1 << 30).split(" "):
        for part in chop_cells(word, width):
            joined = f"{lines[-1]} {part}".strip()
            if cell_len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
    if len(lines) > most:
        lines[most - 1 :] = [shorten(" ".join(lines[most - 1 :]), width)]
    return "\n".join(lines)


# Curves

#: A row of ``metrics.jsonl`` or of a quality report.
Row = Mapping[str, Any]


class Best(NamedTuple):
    """The best checkpoint: its step, and the name and the label, with its unit, of the metric that decides."""

    step: int
    by: str = "val_loss"
    label: str = ""

    @property
    def axis(self) -> str:
        """The metric with its unit."""
        return self.label or self.by.removeprefix("val_").replace("_", " ")

    @property
    def name(self) -> str:
        """The metric without its unit."""
        return self.axis.partition(" (")[0]


class Mark(NamedTuple):
    """The point of the best checkpoint in a panel, and what the legend says of it."""

    step: float
    value: float
    text: str


def draw_losses(metrics: Sequence[Row], path: Target, title: str, target: str, best: Best) -> None:
    """Plot the losses of ``metrics`` (rows of ``metrics.jsonl``; any value may be absent) as a PNG at ``path``.

    A value whose row also has its ``_spread`` is the mean of several runs; a band shows the spread around it.

    Training loss per step and smoothed, validation loss with the ``best`` checkpoint, bits per character on the right
    where the rows have them; below it the metric that decides, if it is not the loss, and the learning rate. 1000 x 600
    pixels, with such a metric 1000 x 800. ``target`` is what the loss is per.
    """
    train, validation, rate = (_series(metrics, name) for name in ("train_loss", "val_loss", "learning_rate"))
    deciding = np.zeros((0, 2)) if best.by == "val_loss" else _series(metrics, best.by)
    loss_mark, mark = marks_of(metrics, best)
    heights = [5.0, *([3.0] if deciding.size else []), *([1.0] if rate.size else [])]
    with figure_file(path, 10, 8 if deciding.size else 6) as figure:
        write_title(figure, title)
        panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
        _draw_losses(panels[0], train, validation, loss_mark, target)
        _draw_spread(panels[0], metrics, "train_loss", theme().cycle[0])
        _draw_spread(panels[0], metrics, "val_loss", theme().cycle[1])
        if deciding.size:
            _draw_validation(panels[1], deciding, mark)
            _draw_spread(panels[1], metrics, best.by, theme().cycle[1])
            panels[1].set_ylabel(best.axis)
        if rate.size:
            _draw_rate(panels[-1], rate)
        for axes in panels:
            style_axes(axes, grid="y")
            axes.margins(x=0.015)
            count_steps(axes)
        _limit(panels[0], train, validation, loss_mark)
        if bits_per_nat := _bits_per_nat(metrics):
            _add_bits(panels[0], bits_per_nat)
        panels[-1].set_xlabel("step")
        for axes in panels:
            add_legend(axes)


def marks_of(metrics: Sequence[Row], best: Best) -> tuple[Mark | None, Mark | None]:
    """The marks of the ``best`` checkpoint at its loss and at the metric that decides; None where its row has none."""
    losses, figures = (dict(_series(metrics, name).tolist()) for name in ("val_loss", best.by))
    loss, figure, at = losses.get(best.step), figures.get(best.step), f"at step {best.step:,}"
    mark = None if figure is None else Mark(best.step, figure, f"best {best.name} {figure:.4g} {at}")
    if loss is None:
        return None, mark
    if best.by != "val_loss":
        return Mark(best.step, loss, f"loss {loss:.3f} at the best {best.name}"), mark
    bits_per_nat = _bits_per_nat(metrics)
    bits = f" ({loss * bits_per_nat:.3f} bits)" if bits_per_nat else ""
    return Mark(best.step, loss, f"best loss {loss:.3f}{bits} {at}"), None


def _draw_losses(axes: Axes, train: np.ndarray, validation: np.ndarray, mark: Mark | None, target: str) -> None:
    axes.set_ylabel(f"loss (nats per {target})")
    if not train.size and not validation.size:
        write_note(axes, "no losses yet")
        return
    if train.size:
        color = theme().cycle[0]
        axes.plot(*train.T, color=color, lw=0.8, alpha=0.45)
        dot = "o" if len(train) == 1 else None
        axes.plot(train[:, 0], smooth(*train.T), color=color, lw=2, marker=dot, ms=4.5, label="training, smoothed")
    _draw_validation(axes, validation, mark)


def _draw_validation(axes: Axes, points: np.ndarray, mark: Mark | None) -> None:
    """A curve over the evaluations with the best one."""
    look = theme()
    if points.size:
        line = axes.plot(*points.T, color=look.cycle[1], lw=1.8, marker="o", label="validation")[0]
        line.set(markersize=4.5 if len(points) <= 40 else 0, markeredgecolor=look.page, markeredgewidth=0.8)
    if mark is not None:
        ring: dict[str, Any] = {"mfc": look.page, "mec": look.cycle[1], "mew": 2.2, "ls": "none"}
        axes.plot([mark.step], [mark.value], "o", ms=9, zorder=5, label=mark.text, **ring)


def _draw_spread(axes: Axes, metrics: Sequence[Row], name: str, color: str) -> None:
    """A band of the spread of several runs around their mean, where the rows have both."""
    means, spreads = dict(_series(metrics, name).tolist()), dict(_series(metrics, f"{name}_spread").tolist())
    steps = sorted({*means} & {*spreads})
    low, high = ([means[step] + sign * spreads[step] for step in steps] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)


def _draw_rate(axes: Axes, rate: np.ndarray) -> None:
    color = theme().cycle[2]
    axes.plot(*rate.T, color=color, lw=1.6, marker="." if len(rate) == 1 else None)
    axes.fill_between(*rate.T, color=color, alpha=0.12, lw=0)
    axes.set_ylim(0, float(rate[:, 1].max()) * 1.15 or 1.0)
    axes.set_ylabel("learning\nrate")
    axes.locator_params(axis="y", nbins=3)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))


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
    high = high if mark is None else max(high, mark.value)
    span = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * span, high + 0.08 * span)


def _bits_per_nat(metrics: Sequence[Row]) -> float:
    """Bits per character divided by nats of loss, which is constant within a run; 0 if unknown."""
    losses = dict(_series(metrics, "val_loss").tolist())
    ratios = [bits / losses[step] for step, bits in _series(metrics, "val_bpc") if bits > 0 and losses.get(step, 0) > 0]
    return float(np.median(ratios)) if ratios else 0.0


def _add_bits(axes: Axes, bits_per_nat: float) -> None:
    functions = (partial(np.multiply, bits_per_nat), partial(np.multiply, 1 / bits_per_nat))
    right, look = axes.secondary_yaxis("right", functions=functions), theme()
    right.set_ylabel("bits per character", color=look.ink, labelpad=8)
    right.tick_params(colors=look.grey, labelsize=9, length=0)
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


#: The most letters of a label in the legend of a comparison.
MAX_NAME = 90


def draw_comparison(
    curves: Sequence[tuple[str, Sequence[Sequence[Row]]]], path: Target, title: str, target: str, best: Best
) -> None:
    """Plot the validation losses of runs as a PNG at ``path``: a colour for each label, a line for each of its runs.

    If another metric than the loss decides, it has a second panel. Arguments as of ``draw_losses``.
    """
    look = theme()
    panels = [("val_loss", f"validation loss (nats per {target})")]
    panels += [] if best.by == "val_loss" else [(best.by, f"validation: {best.axis}")]
    dashes = ("-", (0, (3, 1.5)), (0, (1, 1.2)))
    columns = max(1, 120 // (12 + max((min(len(text), MAX_NAME) for text, _ in curves), default=0)))
    with figure_file(path, 10, 3.4 + 2.8 * len(panels) + 0.2 * math.ceil(len(curves) / columns)) as figure:
        write_title(figure, title)
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, label) in zip(every, panels):
            for number, (text, runs) in enumerate(curves):
                turn, place = divmod(number, len(look.cycle))
                line: dict[str, Any] = {"color": look.cycle[place], "ls": dashes[turn % len(dashes)], "lw": 1.6}
                for index, metrics in enumerate(runs):
                    points = _series(metrics, name)
                    shown = shorten(text, MAX_NAME) if axes is every[0] and index == 0 else None
                    axes.plot(*points.T, marker="o", ms=3 if len(points) <= 40 else 0, label=shown, **line)
            axes.set_ylabel(label)
            style_axes(axes, grid="y")
            count_steps(axes)
        every[-1].set_xlabel("step")
        legend: dict[str, Any] = {"loc": "outside lower left", "ncols": columns, "handlelength": 3.5}
        figure.legend(labelcolor=look.ink, frameon=False, fontsize=9, **legend)


#: The most values of an axis of parallel coordinates that all have a label, and the letters of a label.
MAX_LEVELS, MAX_LEVEL = 9, 16


def draw_parallel(
    lines: Sequence[tuple[Mapping[str, Any], float]], path: Target, title: str, label: str, higher_is_better: bool
) -> None:
    """Plot trials of a sweep as parallel coordinates, a PNG at ``path``.

    Each of ``lines`` is a trial: its settings by name, and the figure that it reached. A setting is an axis, the figure
    (``label``) the last one; the better a trial, the stronger its colour, and the best has a colour of its own.
    """
    look, names = theme(), [*lines[0][0]] if lines else []
    figures = np.array([figure for _, figure in lines], dtype=float)
    with figure_file(path, max(6.0, 2.4 * (len(names) + 1)), 5) as figure:
        write_title(figure, title)
        axes = figure.subplots()
        style_axes(axes)
        axes.set(yticks=[], xlim=(-0.15, len(names) + 0.35), ylim=(-0.06, 1.06))
        if not lines:
            write_note(axes, "nothing to compare")
            return
        heights = [*(_levels(axes, place, [values[name] for values, _ in lines]) for place, name in enumerate(names))]
        heights.append(_scale(axes, len(names), figures))
        axes.set_xticks(range(len(names) + 1), [*(shorten(name, 2 * MAX_LEVEL) for name in names), label])
        axes.tick_params(axis="x", colors=look.ink, labelsize=10)
        ranks = np.argsort(np.argsort(-figures if higher_is_better else figures))
        for trial in np.argsort(-ranks):  # the best is drawn last
            best, share = ranks[trial] == 0, 1 - ranks[trial] / max(len(lines) - 1, 1)
            color = look.cycle[1] if best else weights_map()(0.25 + 0.6 * share)
            points = [height[trial] for height in heights]
            shown = f"best: {figures[trial]:.4g}" if best else None
            axes.plot(range(len(points)), points, color=color, lw=2.4 if best else 1.2, marker="o", ms=4, label=shown)
        add_legend(axes)


def _levels(axes: Axes, place: int, values: Sequence[Any]) -> list[float]:
    """Draw the axis of a setting; returns where the values are on it, from 0 to 1."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numbers and len(set(values)) > MAX_LEVELS:
        return _scale(axes, place, np.array(values, dtype=float))
    texts = [" ".join(map(str, value)) if isinstance(value, (list, tuple)) else value for value in values]
    known = sorted(set(texts)) if numbers else sorted(set(map(str, texts)))
    at = {str(level): (number + 0.5) / len(known) for number, level in enumerate(known)}
    for level, height in at.items():
        if len(known) <= 3 * MAX_LEVELS:
            _write_level(axes, place, height, level)
    axes.axvline(place, color=theme().grid, lw=1, zorder=0)
    return [at[str(text)] for text in texts]


def _scale(axes: Axes, place: int, values: np.ndarray) -> list[float]:
    """Draw an axis of numbers, logarithmic if they are far apart; returns where the values are, from 0 to 1."""
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and high >= 10 * low
    places = np.log(values) if logarithmic else values
    first, last = float(places.min()), float(places.max())
    for share in (0.0, 0.5, 1.0) if last > first else (0.5,):
        middle = first + share * (last - first)
        _write_level(axes, place, share, f"{math.exp(middle) if logarithmic else middle:.4g}")
    axes.axvline(place, color=theme().grid, lw=1, zorder=0)
    return [float(share) for share in (places - first) / (last - first)] if last > first else [0.5] * len(values)


def _write_level(axes: Axes, place: int, height: float, text: str) -> None:
    page = {"facecolor": theme().page, "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    style: dict[str, Any] = {"color": theme().ink, "fontsize": 9, "va": "center", "zorder": 6, "bbox": page}
    axes.text(place + 0.05, height, shorten(text, MAX_LEVEL), **style)


def draw_rates(rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Target) -> None:
    """Plot the losses of a learning-rate test, and the rate that it suggests, as a PNG at ``path``."""
    look = theme()
    with figure_file(path, 10, 6) as figure:
        write_title(figure, "Learning-rate test: one training in which the rate rises")
        axes = figure.subplots()
        axes.plot(rates, losses, color=look.cycle[0], lw=2, label="training, smoothed")
        at, ring = int(np.argmin(np.abs(np.subtract(rates, suggestion)))), look.cycle[1]
        label = f"suggestion: {suggestion:.2g}"
        axes.plot([suggestion], [losses[at]], "o", ms=9, mfc=look.page, mec=ring, mew=2.2, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss (nats)")
        style_axes(axes, grid="both")
        add_legend(axes)


#: A value of a row of a quality report, if it has one.
Value = Callable[[Row], float | None]
#: The panels of a quality plot: the label of the y axis, in which ``{unit}`` is that of n-grams, and the value.
PANELS: tuple[tuple[str, Value], ...] = (
    ("mean log-likelihood (nats per token)", lambda row: row["logp"]),
    ("distinct-2 (% of {unit} pairs that differ)", lambda row: _percent(row["distinct"][1])),
    ("words known from training (%)", lambda row: _percent(row["known_words"])),
)


def draw_quality(rows: Sequence[Row], real: Row | None, path: Target, title: str, unit: str) -> None:
    """Plot ``rows`` (temperature, logp, distinct, known_words) against the temperature as a PNG at ``path``.

    1200 x 500 pixels; a panel for each figure that a row has. The row of ``real`` text is a line across. Values may be
    absent.
    """
    look = theme()
    panels = [(label, value) for label, value in PANELS if _points(rows, value)] or [PANELS[0]]
    with figure_file(path, 12, 5) as figure:
        write_title(figure, title)
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, value) in zip(every, panels):
            if points := _points(rows, value):
                ring: dict[str, Any] = {"mfc": look.page, "mec": look.cycle[0], "mew": 2}
                axes.plot(*zip(*points), "o-", color=look.cycle[0], lw=1.6, ms=7, label="drawn texts", **ring)
            else:
                write_note(axes, "nothing to compare")
            if real is not None and (height := value(real)) is not None and math.isfinite(height):
                axes.axhline(height, color=look.cycle[1], lw=1.6, ls=(0, (4, 3)), label="validation text", zorder=1)
            axes.set_ylabel(label.format(unit=unit))
            axes.set_xlabel("temperature")
            style_axes(axes, grid="both")
            axes.margins(0.08)
        names = {name: handle for axes in every for handle, name in zip(*axes.get_legend_handles_labels())}
        if names:
            place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(names)}
            figure.legend(names.values(), names, labelcolor=look.ink, frameon=False, fontsize=9, **place)


def _points(rows: Sequence[Row], value: Value) -> list[tuple[float, float]]:
    """Temperature and value of each row that has both, by temperature."""
    points = [(row["temperature"], found) for row in rows if (found := value(row)) is not None and math.isfinite(found)]
    return sorted(points)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# Values


@dataclass(frozen=True)
class Picture:
    """A picture as PNG; notebooks show it.

    Example:
        >>> jaxgen.load("runs/language-1").history.plot()
        <jaxgen.Picture: 1000 x 600 pixels>
    """

    png: bytes

    @classmethod
    def drawn(cls, draw: Callable[[BinaryIO], None]) -> Picture:
        """What ``draw`` writes to a file."""
        buffer = io.BytesIO()
        draw(buffer)
        return cls(buffer.getvalue())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file."""
        write_output(path, self.png)

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        width, height = (int.from_bytes(self.png[at : at + 4]) for at in (16, 20))
        return f"<jaxgen.Picture: {width} x {height} pixels>"


class AttentionMap(NamedTuple):
    """The attention weights of one generated text, with labels. Notebooks show them as a table.

    Attributes:
        source: A label for each source position.
        written: The generated tokens.
        weights: float [T, S]; each row sums to 1.
        image: uint8 [Y, X, 3], if the source positions are a grid over it, row by row.
        texts: The source, the output and the reference, as far as they are known: names and texts.

    Example:
        >>> jaxgen.AttentionMap(["a", "cat"], ["eine", "Katze"], np.eye(2))
        <jaxgen.AttentionMap: 2 tokens over 2 source positions>
    """

    source: list[str]
    written: list[str]
    weights: np.ndarray
    image: np.ndarray | None = None
    texts: tuple[tuple[str, str], ...] = ()

    def with_text(self, name: str, text: str) -> AttentionMap:
        """The same map with another text beside it."""
        return self._replace(texts=(*self.texts, (name, text)))

    def plot(self) -> Picture:
        """A heat map; over an image, the image for each token."""
        return Picture.drawn(lambda file: draw_attention([self], file))

    def _repr_html_(self) -> str | None:
        if self.is_grid:
            return None
        texts = "".join(f"<div>{notebook.escape(name)}: {notebook.escape(text)}</div>" for name, text in self.texts)
        names = {"across": "source", "down": "output", "what": "attention weight"}
        return notebook.matrix(self.weights.tolist(), self.written, self.source, **names) + texts

    def _repr_png_(self) -> bytes | None:
        return self.plot().png if self.is_grid else None

    @property
    def is_grid(self) -> bool:
        """Whether the source positions are a square grid over an image."""
        return self.image is not None and math.isqrt(self.weights.shape[1]) ** 2 == self.weights.shape[1]

    def __repr__(self) -> str:
        rows, columns = self.weights.shape
        return f"<jaxgen.AttentionMap: {counted(rows, 'token')} over {counted(columns, 'source position')}>"


#: What the colours of a confusion matrix are.
SHARE_OF_LABEL = "share of the texts with the same true label"


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """How often texts of each true label were given each predicted label; notebooks show it as a table.

    Attributes:
        counts: int [true label, predicted label].
        labels: The labels.

    Example:
        >>> matrix = jaxgen.load("runs/classify-1").evaluate().confusion
        >>> matrix.labels, matrix.counts.shape
        (['bad', 'good'], (2, 2))
    """

    counts: np.ndarray
    labels: Sequence[str]

    @property
    def shares(self) -> np.ndarray:
        """The counts divided by the number of texts with the same true label."""
        shares: np.ndarray = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return shares

    def plot(self) -> Picture:
        """The matrix as a picture."""
        return Picture.drawn(lambda file: draw_confusion(self.counts, self.labels, file, self._headline()))

    def _repr_html_(self) -> str:
        texts = [[f"{count:,}" for count in row] for row in self.counts.tolist()]
        names = {"across": "predicted label", "down": "true label", "what": SHARE_OF_LABEL}
        return notebook.matrix(self.shares.tolist(), self.labels, self.labels, texts, **names)

    def __repr__(self) -> str:
        return f"<jaxgen.ConfusionMatrix: {counted(len(self.labels), 'label')}, {self._headline()}>"

    def _headline(self) -> str:
        total, right = int(self.counts.sum()), int(np.trace(self.counts))
        return f"{right / max(total, 1):.1%} of {counted(total, 'text')} right"


# Matrices and images

#: Inches of a cell, the font size in points, and the largest plot in inches.
CELL, FONT, MAX_WIDTH, MAX_HEIGHT = 0.26, 9.0, 30.0, 20.0
#: The least width of the texts below a map, and of the height of a scale, in inches.
TEXT_WIDTH, SCALE_HEIGHT = 4.0, 1.4
#: Of an overlay: images per row and inches of each, the longest label in letters, and the opacity of positions
#: without weight (with none at all, images could not be told apart).
COLUMNS, IMAGE_SIDE, MAX_TOKEN, MIN_OPACITY = 8, 1.3, 14, 0.12
#: The most images in an overlay; further ones are left out.
MAX_IMAGES = 24 * COLUMNS


def draw_attention(maps: Sequence[AttentionMap], path: Target) -> None:
    """Plot each of ``maps`` as a heat map, side by side and with cells of one size, as a PNG at ``path``.

    A row is a generated token, a column a source position; a scale says what colours mean, and the texts of a map stand
    below it. Maps whose source positions are a square grid over an image show that image for each token instead: the
    image itself, then one faded by the weights of each token. A token's largest weight is not faded, so uniform weights
    show the whole image.
    """
    with figure_file(path, 1, 1, crop=True) as figure:  # of one inch, so that places in it are in inches
        if all(each.is_grid for each in maps):
            _draw_faded_images(figure, maps)
        else:
            _draw_heat_maps(figure, maps)
        _set_fonts(figure)
        size = figure.get_tightbbox()
        figure.set_dpi(100 * min(1, MAX_WIDTH / (size.width + 2 * GAP), MAX_HEIGHT / (size.height + 2 * GAP)))


def _draw_heat_maps(figure: Figure, maps: Sequence[AttentionMap]) -> None:
    look, left = theme(), 0.0
    for each in maps:
        slanted = any(len(label) > 1 for label in each.source)
        slant: dict[str, Any] = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
        width, height = CELL * len(each.source), CELL * len(each.written)
        axes = figure.add_axes((left, -height, width, height))
        shares: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0, "cmap": weights_map()}
        image = axes.imshow(each.weights, aspect="auto", interpolation="nearest", **shares)
        style_axes(axes)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("source")
        axes.set_ylabel("output")
        for axis, labels, turned in ((axes.xaxis, each.source, slant), (axes.yaxis, each.written, {})):
            shown = [shorten(label, 2 * MAX_TOKEN) for label in labels]
            axis.set_ticks(range(len(labels)), shown, fontsize=FONT, color=look.ink, **turned)
        axes.tick_params(length=0, pad=FONT / 3)
        axes.spines[:].set(visible=True, color=look.grid, linewidth=0.8)
        _set_fonts(figure)
        labelled = figure.dpi_scale_trans.inverted().transform_bbox(axes.get_tightbbox())  # type: ignore[arg-type]
        axes.set_position((2 * left - labelled.x0, -height, width, height))
        block = max(labelled.width, TEXT_WIDTH if each.texts else 0.0)
        _write_texts(figure, each.texts, left, -height - GAP / 2, block)
        left += block + GAP
    tallest = CELL * max(len(each.written) for each in maps)
    height = min(max(tallest, SCALE_HEIGHT), 2 * SCALE_HEIGHT)
    scale = figure.add_axes((left, -height, 0.13, height))
    add_scale(figure, image, "attention weight", "{x:.1f}", cax=scale)


def _write_texts(figure: Figure, texts: Sequence[tuple[str, str]], left: float, top: float, width: float) -> float:
    """Write named texts below each other from a place in inches on; returns where they end."""
    look, column = theme(), 0.85
    style: dict[str, Any] = {"fontsize": FONT, "va": "baseline", "ha": "left"}
    for name, text in texts:
        figure.text(left, top - LINE, shorten(name, 10), color=look.grey, **style)
        for line in wrap(text, int((width - column) / LETTER), 4).split("\n"):
            top -= LINE
            figure.text(left + column, top, line, color=look.ink, **style)
    return top - LINE / 2


def _draw_faded_images(figure: Figure, maps: Sequence[AttentionMap]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    look, top, left_out, number = theme(), 0.0, 0, 0
    for each in maps:
        panels = [Panel(each.image, "image")] if each.image is not None else []
        panels += [
            Panel(fade(panels[0].image, weights), shorten(token, MAX_TOKEN))
            for token, weights in zip(each.written, each.weights)
        ]
        shown = panels[: MAX_IMAGES - number]
        number, left_out = number + len(shown), left_out + len(panels) - len(shown)
        if shown:
            top = _place_images(figure, shown, COLUMNS, IMAGE_SIDE, top)
            top = _write_texts(figure, each.texts, 0.0, top, COLUMNS * IMAGE_SIDE) - GAP
    if left_out:
        figure.text(0.0, top, f"{counted(left_out, 'more image')}, left out", color=look.grey, fontsize=FONT, va="top")
        top -= LINE
    faded = LinearSegmentedColormap.from_list("faded", [look.page, look.grey])
    label = "attention weight, as a share of the token's largest: the image fades where it is small"
    add_scale_below(figure, ScalarMappable(cmap=faded), label, top)


def fade(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``image`` (uint8 [Y, X, 3]) faded to the page where ``weights`` [S] of a square grid of positions are small."""
    side, page = math.isqrt(weights.size), np.frombuffer(bytes.fromhex(theme().page[1:]), np.uint8).astype(np.float64)
    rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
    share = weights.reshape(side, side) / max(float(weights.max()), 1e-12)
    opacity = (MIN_OPACITY + (1 - MIN_OPACITY) * share)[rows][:, columns, None]
    faded: np.ndarray = np.round(page - (page - image.astype(np.float64)) * opacity).astype(np.uint8)
    return faded


#: Of a sheet: images per row and inches of each, letters per line of text, and the most lines of one text.
SHEET_COLUMNS, SHEET_SIDE, LINE_LENGTH, MAX_LINES = 4, 2.4, 32, 5


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
    look, right = theme(), sum(caption in known for caption, known in zip(captions, references))
    panels = [
        Panel(
            image,
            wrap(caption, LINE_LENGTH, MAX_LINES) or "(nothing)",
            "" if caption in known else wrap(known[0], LINE_LENGTH, MAX_LINES),
        )
        for image, caption, known in zip(images, captions, references)
    ]
    title = f"Captions that equal a reference: {right:,} of {len(panels):,}"
    with figure_file(path, 1, 1, crop=True) as figure:
        lines = [(title, look.ink, "bold"), ("above: the model's caption", look.ink, "normal")]
        lines += [("below: a reference, where it differs", look.cycle[1], "normal")]
        for number, (text, color, weight) in enumerate(lines):
            style: dict[str, Any] = {"fontsize": FONT + (weight == "bold"), "fontweight": weight, "va": "top"}
            figure.text(0.0, -1.3 * LINE * number, text, color=color, **style)
        _place_images(figure, panels, SHEET_COLUMNS, SHEET_SIDE, -1.3 * LINE * len(lines) - GAP / 2)


def _place_images(figure: Figure, panels: Sequence[Panel], columns: int, side: float, top: float) -> float:
    """Draw ``panels`` in rows of images of ``side`` inches with its gap from ``top`` on; returns where they end."""
    look, image_side = theme(), 0.9 * side
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        above, below = (
            max(getattr(each, name).count("\n") + bool(getattr(each, name)) for each in row)
            for name in ("above", "below")
        )
        top -= LINE * above + 0.05
        for column, panel in enumerate(row):
            axes = figure.add_axes((column * side, top - image_side, image_side, image_side))
            axes.imshow(panel.image, interpolation="nearest", aspect="equal")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=look.grid, linewidth=0.8)
            axes.set_title(panel.above, fontsize=8, color=look.ink, pad=3)
            axes.set_xlabel(panel.below, fontsize=8, color=look.cycle[1], labelpad=3)
        top -= image_side + LINE * below + GAP / 2
    return top


#: With at most this many labels, cells show their counts; with more, only their colours.
MAX_COUNTED = 20
#: The longest label on an axis in letters, and the most labels on it.
MAX_LABEL, MAX_TICKS = 18, 100


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: Target, title: str) -> None:
    """Plot ``confusion`` [true label, predicted label] (counts) as a PNG at ``path``.

    Colours show shares of the texts with the same true label.
    """
    number, look = len(labels), theme()
    side = min(max(2.2, 0.55 * number), 11.5)
    share = ConfusionMatrix(confusion, labels).shares
    places = range(0, number, -(-number // MAX_TICKS))
    shown = [shorten(labels[place], MAX_LABEL) for place in places]
    size = min(10.0, 0.7 * 72 * side / len(places))
    with figure_file(path, 1, 1, crop=True) as figure:  # of one inch, so that places in it are in inches
        axes = figure.add_axes((0, -side, side, side))
        image = axes.imshow(share, cmap=weights_map(), vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        style_axes(axes)
        slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places, shown, fontsize=size, color=look.ink, **slant)
        axes.set_yticks(places, shown, fontsize=size, color=look.ink)
        axes.set_xlabel("predicted label")
        axes.set_ylabel("true label")
        if number <= MAX_COUNTED:
            for (row, column), count in np.ndenumerate(confusion):
                red, green, blue, _ = weights_map()(share[row, column], bytes=True)
                color = to_hex(ink_on((int(red), int(green), int(blue))))
                axes.text(column, row, f"{int(count):,}", ha="center", va="center", color=color, fontsize=9)
        height = min(side, 2 * SCALE_HEIGHT)
        scale = figure.add_axes((side + GAP, -height, 0.16, height))
        add_scale(figure, image, SHARE_OF_LABEL.replace(" with ", "\nwith "), cax=scale)
        _set_fonts(figure)
        around = figure.get_tightbbox()
        write_title(figure, title, place=(around.x0, 0.15), width=max(around.width, 5.0))


# Units of a model

#: Columns and lines of a text whose characters have colours; inches of a character.
TEXT_COLUMNS, TEXT_LINES, GLYPH = 90, 40, (0.1, 0.2)
#: The most units in a heat map, and inches of a token in it.
MAX_UNITS, TOKEN = 64, 0.115


def signed_map() -> Colormap:
    """The colours of values from -1 to 1: the page's own for 0."""
    from matplotlib.colors import LinearSegmentedColormap

    look = theme()
    return LinearSegmentedColormap.from_list("signed", [look.cycle[0], look.page, look.cycle[1]])


def draw_values(texts: Sequence[str], values: np.ndarray, path: Target, title: str) -> None:
    """Draw a text whose parts ``texts`` have the colours of ``values`` [T] as a PNG at ``path``.

    Lines are broken after ``TEXT_COLUMNS`` characters, and what is behind ``TEXT_LINES`` lines is left out.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    colors, most = signed_map(), float(np.abs(values).max()) or 1.0
    width, height = GLYPH
    with figure_file(path, 1, 1, crop=True) as figure:  # of one inch, so that places in it are in inches
        line, column, widest = 0, 0, 1
        for text, value in zip(texts, values.tolist()):
            color = colors(0.5 + 0.5 * value / most)
            red, green, blue = (round(255 * part) for part in color[:3])
            for character in text:
                if column == TEXT_COLUMNS:
                    line, column = line + 1, 0
                if line == TEXT_LINES:
                    break
                place = (column * width, -(line + 1) * height)
                box = Rectangle(place, width, height, color=color, lw=0, transform=figure.transFigure)
                figure.add_artist(box)
                glyph: dict[str, Any] = {"color": to_hex(ink_on((red, green, blue))), "ha": "center", "va": "center"}
                shown = "↵" if character == "\n" else shorten(character) or " "
                figure.text(place[0] + width / 2, place[1] + height / 2, shown, fontsize=8.5, **glyph)
                column += 1
                widest = max(widest, column)
                if character == "\n":
                    line, column = line + 1, 0
        bottom = -(min(line, TEXT_LINES - 1) + 1) * height - 0.75 * GAP
        shades = ScalarMappable(Normalize(-most, most), colors)
        add_scale_below(figure, shades, "value after each token", bottom, "{x:.2g}")
        write_title(figure, title, place=(0.0, 0.12), width=max(widest * width, 5.0))


def draw_inspection(
    texts: Sequence[str],
    surprise: np.ndarray,
    distance: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    path: Target,
    title: str,
) -> None:
    """Draw the tokens of a text as a PNG at ``path``: bits of each, distances of the states, and states as heat maps.

    Args:
        texts: The texts of the tokens, below the last map.
        surprise: Bits [T].
        distance: Distances of the states from those before [T, layers].
        arrays: The arrays of a layer by name [T, units]; of those with more than ``MAX_UNITS`` units, the units that
            vary most, in their own order.
        path: The file.
        title: The title.
    """
    look, size = theme(), len(texts)
    rows = {name: np.sort(np.argsort(-array.std(axis=0), kind="stable")[:MAX_UNITS]) for name, array in arrays.items()}
    heights = [1.2, 1.2, *(0.4 + 0.045 * len(units) for units in rows.values())]
    with figure_file(path, max(7.0, 1.8 + TOKEN * size), 1.0 + sum(heights)) as figure:
        write_title(figure, title)
        panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
        panels[0].bar(range(size), surprise, width=0.8, color=look.cycle[0])
        panels[0].set_ylabel("surprise\n(bits)")
        for layer in range(distance.shape[1]):
            panels[1].plot(distance[:, layer], color=look.cycle[layer % 8], lw=1.4, label=f"layer {layer}")
        panels[1].set_ylabel("distance\nof states")
        panels[1].set_ylim(bottom=0)
        for axes in panels[:2]:
            style_axes(axes, grid="y")
        if distance.shape[1] > 1:
            add_legend(panels[1])
        for axes, (name, array) in zip(panels[2:], arrays.items()):
            most = float(np.abs(array).max()) or 1.0
            shown, limits = array[:, rows[name]].T, {"vmin": -most, "vmax": most}
            image = axes.imshow(shown, aspect="auto", interpolation="nearest", cmap=signed_map(), **limits)
            style_axes(axes)
            part = "" if array.shape[1] <= MAX_UNITS else f", {MAX_UNITS} of {array.shape[1]:,}"
            axes.set_ylabel(f"units of {name}{part}")
            axes.set_yticks(range(0, len(rows[name]), 8), rows[name][::8])
            add_scale(figure, image, "", "{x:.2g}", ax=axes, pad=0.01, aspect=30)
        labels = ["↵" if text == "\n" else shorten(text, MAX_TOKEN) or "·" for text in texts]
        turned = {"rotation": 90} if max(map(len, labels)) > 1 else {}
        panels[-1].set_xticks(range(size), labels, fontsize=8, color=look.ink, **turned)
        panels[-1].set_xlim(-0.5, size - 0.5)


def draw_interpolation(
    probabilities: np.ndarray, tokens: Sequence[str], weights: Sequence[float], path: Target, title: str
) -> None:
    """Draw the probabilities [steps, tokens] of the next token between two states as a PNG at ``path``."""
    look = theme()
    with figure_file(path, max(6.0, 2.4 + 0.5 * len(weights)), 1.6 + 0.26 * len(tokens)) as figure:
        write_title(figure, title)
        axes = figure.subplots()
        shares: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0, "cmap": weights_map()}
        image = axes.imshow(probabilities.T, aspect="auto", interpolation="nearest", **shares)
        style_axes(axes)
        axes.set_yticks(range(len(tokens)), [shorten(token, MAX_LABEL) for token in tokens], color=look.ink)
        axes.set_xticks(range(len(weights)), [f"{weight:.2g}" for weight in weights])
        axes.set_xlabel("weight of the second state")
        axes.set_ylabel("next token")
        add_scale(figure, image, "probability", ax=axes, pad=0.02)
