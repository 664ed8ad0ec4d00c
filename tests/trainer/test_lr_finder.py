"""``--lr-find``: a range test of learning rates."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen.cli.train import main
from jaxgen.errors import UsageError
from jaxgen.trainer.lr_finder import HIGHEST, LOWEST, NEIGHBOURS, STEPS, find_lr, smoothed, suggest
from tests.builders import language_config, write


def test_smoothing_leaves_lines_and_keeps_falls_where_they_are():
    line = np.linspace(3.0, 1.0, 40)
    inside = slice(NEIGHBOURS, -NEIGHBOURS)
    np.testing.assert_allclose(smoothed(line)[inside], line[inside])
    step = np.r_[np.full(20, 2.0), np.full(20, 1.0)]
    assert abs(int(np.argmin(np.diff(smoothed(step)))) - 19) <= NEIGHBOURS


def test_the_suggestion_is_on_the_way_to_the_lowest_loss():
    rates = np.geomspace(1e-5, 1.0, 101)
    losses = 4 - 2 / (1 + np.exp(-2 * np.log(rates / 1e-2))) + 3 * np.clip(np.log10(rates / 1e-1), 0, None)
    assert suggest(rates, losses) == pytest.approx(1e-2, rel=0.2)
    assert suggest(rates, np.arange(101.0)) == rates[1]  # nothing but worse


@pytest.mark.runs
def test_a_test_leaves_no_run_and_repeats_itself(tmp_path):
    data = write(tmp_path / "text.txt", "abcd" * 400)
    config = language_config(data, tmp_path / "run", val_fraction=0.2)
    seen = []
    found = find_lr(config, watch=lambda step, rate, loss: seen.append((step, rate)))
    assert LOWEST <= found.suggestion <= HIGHEST
    assert len(found.rates) == len(found.losses) == len(seen) <= STEPS
    assert found == find_lr(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.runs
def test_the_command_draws_the_losses(tmp_path, capsys):
    data, picture = write(tmp_path / "text.txt", "abcd" * 400), tmp_path / "lr.png"
    size = ("--cell", "elman", "--hidden", "8", "--batch-size", "4", "--seq-len", "8", "--val-fraction", "0.2")
    assert main(["--data", str(data), *size, "--lr-find", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--lr" in capsys.readouterr().out
    assert main(["--data", str(data), *size, "--lr-find", str(tmp_path / "no" / "lr.png")]) == 2
    assert main(["--data", str(data), "--model", "ngram", "--lr-find", str(picture)]) == 2


def test_a_model_that_counts_has_no_learning_rate(tmp_path):
    config = language_config(write(tmp_path / "text.txt", "ab" * 99), tmp_path / "run").model_copy
    with pytest.raises(UsageError):
        find_lr(config(update={"model": "ngram"}))
