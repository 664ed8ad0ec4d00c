"""The loss curve of a run, with the best checkpoint and the learning rate."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from jaxgen.plots.figure import GREY, INK, RATE, TRAIN, VALIDATION, new_figure, save_figure, shorten, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A row of ``metrics.jsonl``.
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
    save_figure(path, lambda: _draw(metrics, title, target, best))


def _draw(metrics: Sequence[Row], title: str, target: str, best: Best | None) -> Figure:
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
