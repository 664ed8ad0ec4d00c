"""The attention plot: cells of one size and every label inside, for any texts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxgen.errors import CheckpointError
from jaxgen.plots import CELL, MAX_HEIGHT, MAX_WIDTH, THEMES, AttentionMap, draw_attention

WORDS = AttentionMap(
    ["A", "man", "in", "an", "orange", "hat"],
    ["Ein", "Mann", "mit", "einem", "orangefarbenen", "Hut", "<eos>"],
    np.eye(7, 6),
)
LETTERS = AttentionMap(list("21␣Nov"), [*"2026-11-21", "<eos>"], np.full((11, 6), 1 / 6))
LONG = AttentionMap([f"w{i}" for i in range(90)], [f"W{i}" for i in range(120)], np.full((120, 90), 1 / 90))
ODD = AttentionMap(["$x^2$", "東", "_", "\u202e\x00", "�"], ["مرحبا", "", "<eos>"], np.full((3, 5), 0.2))
ONE = AttentionMap(["a"], ["<eos>"], np.ones((1, 1)))


#: What a cell is drawn in that all is looked at.
DARK = tuple(bytes.fromhex(THEMES["light"].weights[-1][1:]))


def picture(path) -> np.ndarray:
    """[height, width, RGB]"""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def dark(path) -> np.ndarray:
    """[height, width], where a cell is looked at alone."""
    return (picture(path) == DARK).all(axis=-1)


@pytest.mark.runs
@pytest.mark.parametrize(
    "looks",
    [[WORDS], [LETTERS], [ONE], [ODD], [WORDS, ONE], [LONG, ONE]],
    ids=["words", "letters", "one", "odd", "two", "long"],
)
def test_nothing_reaches_the_edge_and_the_picture_has_a_bound(looks, tmp_path):
    draw_attention(looks, tmp_path / "map.png")
    drawn = picture(tmp_path / "map.png")
    for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert edge.min() == 255
    assert (drawn < 200).any()
    assert drawn.shape[0] <= 100 * MAX_HEIGHT + 1
    assert drawn.shape[1] <= 100 * MAX_WIDTH + 1


def test_what_is_looked_at_is_dark_and_lies_where_it_belongs(tmp_path):
    draw_attention([WORDS], tmp_path / "map.png")
    found, side = dark(tmp_path / "map.png"), round(100 * CELL)
    top, left = np.flatnonzero(found.any(axis=1)).min(), np.flatnonzero(found.any(axis=0)).min()
    for t, s in np.ndindex(6, 6):
        assert found[top + t * side + side // 2, left + s * side + side // 2] == (t == s)


def test_cells_are_as_large_beside_a_longer_text(tmp_path):
    draw_attention([ONE], tmp_path / "alone.png")
    draw_attention([WORDS._replace(weights=np.zeros((7, 6))), ONE], tmp_path / "beside.png")
    for name in ("alone", "beside"):
        side = np.sqrt(dark(tmp_path / f"{name}.png").sum())
        assert 100 * CELL - 4 < side < 100 * CELL, "all but the frame"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere"):
        draw_attention([ONE], tmp_path / "nowhere" / "map.png")
