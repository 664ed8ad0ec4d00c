"""The picture of a run is drawn from whatever rows there are."""

import logging
import math
import os

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.store import draw_losses
from jaxgen.store.plot import smooth

FULL = [
    {
        "step": step,
        "train_loss": 5 / step,
        "val_loss": 6 / step,
        "val_bpc": 6 / step / math.log(2),
        "learning_rate": 1e-3 / step,
    }
    for step in range(1, 130)
]


def size_of_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.parametrize(
    "rows",
    [
        FULL,
        [],
        FULL[:1],
        [{"step": 1}, {"train_loss": 2.0}, {"step": None, "val_loss": 1.0}],
        [{"step": 5, "train_loss": None, "val_loss": math.nan, "val_bpc": None, "learning_rate": 0.0}],
        [{"step": step, "val_loss": 2.0, "val_bpc": 3.0} for step in (1, 2)],
        [{"step": step, "train_loss": 0.0, "val_loss": 0.0, "val_bpc": 0.0} for step in (1, 2)],
    ],
    ids=["full", "empty", "one", "partial", "nulls", "validation", "zeros"],
)
def test_a_picture_of_1000_by_600_is_drawn(tmp_path, rows):
    draw_losses(rows, tmp_path / "loss.png", "a $title$ with 漢字\nand lines " * 9)
    assert size_of_png(tmp_path / "loss.png") == (1000, 600)
    assert os.listdir(tmp_path) == ["loss.png"]


def test_drawing_leaves_the_logging_of_matplotlib_as_it_was(tmp_path):
    logger = logging.getLogger("matplotlib")
    before = logger.level
    draw_losses([], tmp_path / "loss.png", "")
    assert logger.level == before


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"Could not write .*gone/loss\.png"):
        draw_losses([], tmp_path / "gone" / "loss.png", "")


def test_smoothing_keeps_a_straight_line_and_calms_the_tail():
    steps = np.arange(1.0, 1001.0)
    np.testing.assert_allclose(smooth(steps, 3 * steps), 3 * steps)
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(steps, noise)[300:900].std() < 0.4 * noise[300:900].std()
    assert smooth(steps, noise)[0] == noise[0]
