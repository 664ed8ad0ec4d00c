"""The quality plot is drawn from any measurements."""

import math
import os

import pytest

from jaxgen.errors import CheckpointError
from jaxgen.plots import PANELS, _points, draw_quality


def row(temperature, distinct, logp=-1.0, known=0.9):
    return {"temperature": temperature, "distinct": [0.1, distinct, 0.9], "logp": logp, "known_words": known}


def size_of_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.runs
@pytest.mark.parametrize(
    ("rows", "real"),
    [
        ([row(0.0, 0.1), row(1.0, 0.8, -2.0, 0.5)], row(None, 0.7)),
        ([row(0.5, 0.1, known=None), row(0.0, None)], None),
        ([row(0.0, None, None, None)], None),
        ([], None),
    ],
    ids=["full", "no training text", "nothing measured", "empty"],
)
def test_a_picture_of_1200_by_500_is_drawn(tmp_path, rows, real):
    draw_quality(rows, real, tmp_path / "quality.png", "a $title$ with 漢字\nand lines " * 9, "word")
    assert size_of_png(tmp_path / "quality.png") == (1200, 500)
    assert os.listdir(tmp_path) == ["quality.png"]


def test_a_point_lies_at_its_temperature_and_at_what_its_panel_shows():
    rows = [row(1.0, 0.6, -3.0, None), row(0.5, 0.3, -2.0, 0.8), row(0.8, None, math.nan)]
    likelihood, distinct, known = (_points(rows, value) for _, value in PANELS)
    assert likelihood == [(0.5, -2.0), (1.0, -3.0)]
    assert distinct == [(0.5, 30.0), (1.0, 60.0)]
    assert known == [(0.5, 80.0), (0.8, 90.0)]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"quality\.png"):
        draw_quality([], None, tmp_path / "gone" / "quality.png", "", "word")
