"""All pictures have one style: named axes, legends beside the curves, texts that can be read on the page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from rich.cells import cell_len

from jaxgen.colors import luminance
from jaxgen.errors import UsageError
from jaxgen.plots import (
    THEMES,
    AttentionMap,
    Best,
    draw_attention,
    draw_comparison,
    draw_confusion,
    draw_contact_sheet,
    draw_losses,
    draw_quality,
    draw_rates,
    shorten,
    wrap,
)

ROWS = [
    {"step": step, "train_loss": 3 / step, "val_loss": 4 / step, "val_accuracy": 0.1 * step, "learning_rate": 1e-3}
    for step in range(1, 6)
]
MAP = AttentionMap(
    ["A", "man"],
    ["Ein", "Mann"],
    np.eye(2),
    texts=(("source", "A man"), ("output", "Ein Mann"), ("reference", "Der Mann")),
)
IMAGE = np.zeros((8, 8, 3), np.uint8)
DECIDING = Best(5, "val_accuracy", "accuracy (share of texts)")
QUALITY = [{"temperature": t, "logp": -1.0 - t, "distinct": [0.1, t / 2, 0.9], "known_words": 0.9} for t in (0.0, 1.0)]
PICTURES = {
    "losses": lambda file: draw_losses(ROWS, file, "run: data", "text", DECIDING),
    "attention": lambda file: draw_attention([MAP, MAP], file),
    "faded": lambda file: draw_attention([AttentionMap(list("1234"), ["a"], np.full((1, 4), 0.25), IMAGE)], file),
    "confusion": lambda file: draw_confusion(np.array([[3, 1], [0, 4]]), ["ham", "spam"], file, "all"),
    "quality": lambda file: draw_quality(QUALITY, QUALITY[0], file, "run", "word"),
    "comparison": lambda file: draw_comparison([("lr 1", [ROWS]), ("lr 2", [ROWS])], file, "two", "text", DECIDING),
    "rates": lambda file: draw_rates([1e-4, 1e-3, 1e-2], [3.0, 2.0, 4.0], 1e-3, file),
    "sheet": lambda file: draw_contact_sheet([IMAGE, IMAGE], ["a cat", "a dog"], [["a cat"], ["a cow"]], file),
}


def said(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.runs)])
@pytest.mark.parametrize("name", PICTURES)
def test_every_text_can_be_read_on_its_page(name, theme, figure_of):
    figure = figure_of(PICTURES[name], theme)
    assert figure.get_facecolor()[:3] == to_rgb(THEMES[theme].page)
    page = luminance(tuple(255 * c for c in figure.get_facecolor()[:3]))
    for text in figure.findobj(Text):
        if text.get_text().strip() and not text.get_text().isdigit():  # numbers stand on cells
            low, high = sorted((page, luminance(tuple(255 * c for c in to_rgb(text.get_color())))))
            assert (high + 0.05) / (low + 0.05) > 3, (text.get_text(), text.get_color())


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("losses", {"step", "loss (nats per text)", "accuracy (share of texts)", "learning\nrate"}),
        ("attention", {"source", "output", "reference", "Der Mann", "attention weight"}),
        ("confusion", {"true label", "predicted label", "share of the texts\nwith the same true label"}),
        ("rates", {"learning rate", "training loss (nats)", "suggestion: 0.001"}),
        ("quality", {"temperature", "mean log-likelihood (nats per token)", "validation text"}),
        ("comparison", {"step", "validation loss (nats per text)", "validation: accuracy (share of texts)"}),
        (
            "sheet",
            {"Captions that equal a reference: 1 of 2", "a dog", "a cow", "below: a reference, where it differs"},
        ),
    ],
)
def test_a_picture_says_what_it_shows(name, labels, figure_of):
    assert labels <= said(figure_of(PICTURES[name], "light"))


@pytest.mark.parametrize("name", ["losses", "comparison", "quality", "rates"])
def test_a_legend_and_a_title_cover_no_curve(name, figure_of):
    figure = figure_of(PICTURES[name], "light")
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert legends
    for each in [*legends, figure._suptitle]:
        box = each.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        for axes in figure.axes:
            inside = axes.get_window_extent()
            across = min(box.x1, inside.x1) - max(box.x0, inside.x0)
            assert across < 1 or min(box.y1, inside.y1) - max(box.y0, inside.y0) < 1


def test_an_unknown_theme_is_refused(monkeypatch):
    monkeypatch.setenv("JAXGEN_THEME", "drak")
    with pytest.raises(UsageError, match="dark"):
        PICTURES["losses"](io.BytesIO())


@pytest.mark.parametrize("text", ["word " * 30, "字" * 60, "a\ud800\u202e\x00b", "", "x" * 200, "مرحبا بالعالم " * 9])
def test_texts_of_any_script_have_a_width(text):
    assert cell_len(shorten(text, 20)) <= 20
    lines = wrap(text, 20, 3).split("\n")
    assert len(lines) <= 3
    assert all(cell_len(line) <= 20 and (line.isprintable() or "\u200d" in line) for line in lines)
    assert len(lines) < 3 or lines[-1].endswith("…")
