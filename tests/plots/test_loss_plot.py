"""The loss plot is drawn from any rows of metrics."""

import logging
import math
import os

import numpy as np
import pytest

from jaxgen.errors import CheckpointError
from jaxgen.plots import Best, draw_losses, marks_of, smooth

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


@pytest.mark.runs
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
    draw_losses(rows, tmp_path / "loss.png", "a $title$ with 漢字\nand lines " * 9, "token", Best(1))
    assert size_of_png(tmp_path / "loss.png") == (1000, 600)
    assert os.listdir(tmp_path) == ["loss.png"]


def rows_of(losses, **figures):
    return [
        {"step": 10 * (i + 1), "val_loss": loss, **{name: values[i] for name, values in figures.items()}}
        for i, loss in enumerate(losses)
    ]


def test_the_best_checkpoint_is_marked_by_the_figure_that_chose_it():
    rows = rows_of([3.0, 2.0, 2.5], val_accuracy=[0.1, 0.5, 0.625])
    at_loss, at_accuracy = marks_of(rows, Best(30, "val_accuracy", "accuracy (share of texts)"))
    assert at_loss == (30, 2.5, "loss 2.500 at the best accuracy")
    assert at_accuracy == (30, 0.625, "best accuracy 0.625 at step 30")


def test_by_its_loss_the_best_checkpoint_is_marked_with_the_loss_and_its_bits():
    rows = rows_of([3.0, 2.0, 2.5], val_bpc=[6.0, 4.0, 5.0])
    assert marks_of(rows, Best(20)) == ((20, 2.0, "best loss 2.000 (4.000 bits) at step 20"), None)


def test_nothing_is_marked_where_the_best_checkpoint_has_no_loss():
    assert marks_of(rows_of([math.nan, 2.0]), Best(10)) == (None, None)
    assert marks_of([], Best(0, "val_bleu")) == (None, None)


def test_the_best_checkpoint_is_in_the_picture_though_its_loss_is_high(figures, tmp_path):
    """The loss falls, but the figure that chooses was best at first."""
    rows = [{**row, "val_accuracy": 1 / row["step"]} for row in FULL]
    for best, marked in ((Best(1, "val_accuracy"), True), (Best(0, "val_accuracy"), False)):
        draw_losses(rows, tmp_path / "loss.png", "", "token", best)
        assert (figures[-1].axes[0].get_ylim()[1] >= rows[0]["val_loss"]) == marked


def test_drawing_leaves_the_logging_of_matplotlib_as_it_was(tmp_path):
    logger = logging.getLogger("matplotlib")
    before = logger.level
    draw_losses([], tmp_path / "loss.png", "", "token", Best(0))
    assert logger.level == before


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"loss\.png"):
        draw_losses([], tmp_path / "gone" / "loss.png", "", "token", Best(0))


def test_smoothing_keeps_a_straight_line_and_calms_the_tail():
    steps = np.arange(1.0, 1001.0)
    np.testing.assert_allclose(smooth(steps, 3 * steps), 3 * steps)
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(steps, noise)[300:900].std() < 0.4 * noise[300:900].std()
    assert smooth(steps, noise)[0] == noise[0]
