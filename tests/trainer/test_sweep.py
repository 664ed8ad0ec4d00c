"""A sweep: what it tries, that it trains no trial twice, and that it can be stopped anywhere."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxgen
from jaxgen.cli.sweep import main, table
from jaxgen.plots import draw_parallel
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.trainer import sweep as module
from jaxgen.trainer.signals import Interrupted
from jaxgen.trainer.sweep import Round, Space, Sweep, draws, grid, rounds, suggest
from jaxgen.trainer.trainer import RunTrainer


def test_a_grid_has_every_combination_once():
    found = grid({"lr": [1e-3, 2e-3], "hidden": [4, 8, 16]})
    assert len(found) == len({tuple(each.items()) for each in found}) == 6
    assert {"lr": 2e-3, "hidden": 16} in found


def test_halving_trains_few_trials_long():
    assert rounds(9, 900, 3) == [Round(9, 100), Round(3, 300), Round(1, 900)]
    assert rounds(6, 90, 3) == [Round(6, 10), Round(2, 30), Round(1, 90)]
    assert rounds(1, 90, 3) == [Round(1, 90)]
    assert rounds(5, 90, None) == [Round(5, 90)]
    with pytest.raises(jaxgen.UsageError):
        rounds(100, 10, 2)


def test_draws_lie_in_their_ranges_and_repeat_with_their_seed():
    spaces = [
        Space(name="lr", low=1e-4, high=1e-1),
        Space(name="hidden", low=8, high=12, whole=True),
        Space(name="cell", choices=["gru", "lstm"]),
    ]
    found = draws(spaces, 400, 3)
    assert found == draws(spaces, 400, 3) != draws(spaces, 400, 4)
    rates = np.array([each["lr"] for each in found])
    assert 1e-4 <= rates.min() < 2e-4
    assert np.median(rates) == pytest.approx(10**-2.5, rel=0.5)  # evenly on a logarithmic scale
    assert {each["hidden"] for each in found} == {8, 9, 10, 11, 12}
    assert {each["cell"] for each in found} == {"gru", "lstm"}
    assert len(draws(spaces[2:], 400, 3)) == 2  # there are no more


def test_a_narrow_range_is_drawn_from_evenly():
    shares = np.linspace(0, 1, 101, endpoint=False)
    values = [Space(name="dropout", low=0.0, high=0.5).draw(share) for share in shares]
    np.testing.assert_allclose(values, 0.5 * shares, atol=1e-4)


def test_optuna_looks_near_what_was_good():
    pytest.importorskip("optuna")
    spaces, done = [Space(name="x", low=-1.0, high=1.0), Space(name="name", choices=["a", "b"])], []
    for _ in range(30):
        values = suggest(spaces, done, 0)
        assert values == suggest(spaces, done, 0)
        done.append((values, (values["x"] - 0.5) ** 2 + (values["name"] == "a")))
    last = [values for values, _ in done[-8:]]
    assert statistics.mean(abs(values["x"] - 0.5) for values in last) < 0.3
    assert [values["name"] for values in last].count("b") > 4


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.runs)])
def test_trials_are_drawn_as_parallel_coordinates(theme, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_THEME", theme)
    values = [{"lr": 10.0 ** -(n % 12), "cell": "ab"[n % 2], "data": [f"{n}.txt"]} for n in range(14)]
    lines = [(each, 1.0 + number) for number, each in enumerate(values)]
    for name, some in {"many": lines, "one": lines[:1], "none": []}.items():
        draw_parallel(some, tmp_path / f"{name}.png", "a sweep", "loss", False)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def sizes(book):
    return f"--data {book} --preset tiny --cell elman --batch-size 4 --seq-len 8 --eval-every 3 --warmup 1".split()


def rows(capsys) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def taken(monkeypatch):
    """The steps that the trainers take, as (folder, first step, how many)."""
    steps: list[tuple[str, int, int]] = []
    read = RunTrainer.read_metrics

    def reading(self, stop, log, number, step, clock):
        steps.append((self.run.path.name, step - number, number))
        return read(self, stop, log, number, step, clock)

    monkeypatch.setattr(RunTrainer, "read_metrics", reading)
    return steps


@pytest.mark.runs
def test_a_sweep_trains_every_combination_and_sorts_them(sizes, tmp_path, capsys, taken):
    folder = tmp_path / "sweep"
    command = [*sizes, "--steps", "6", "--grid", "lr=1e-5,3e-2", "hidden=4,8", "--run", str(folder)]
    assert main([*command, "--json"]) == 0
    found = rows(capsys)
    assert len(found) == 4
    means = [row["mean"] for row in found]
    assert means == sorted(means)
    assert found[0]["values"]["lr"] == 3e-2
    for row in found:
        history = jaxgen.load(row["run"]).history["val_loss"]
        assert row["mean"] == pytest.approx(min(history))
        assert jaxgen.load(row["run"]).config.hidden == row["values"]["hidden"]
    assert (folder / "sweep.png").exists()
    assert sum(number for *_, number in taken) == 24
    assert main([*command, "--json"]) == 0
    assert rows(capsys) == found
    assert main(["--run", str(folder)]) == 0
    assert capsys.readouterr().out == table(found)
    assert sum(number for *_, number in taken) == 24  # nothing was trained again
    assert main([*command[:-4], "lr=1e-5", "--run", str(folder)]) == 2


@pytest.mark.runs
def test_a_sweep_that_was_stopped_goes_on_where_it_stopped(sizes, tmp_path, capsys, taken, monkeypatch):
    folder = tmp_path / "sweep"
    command = [*sizes, "--steps", "6", "--grid", "lr=1e-3,3e-2", "hidden=4,8", "--json"]
    assert main([*command, "--run", str(tmp_path / "whole")]) == 0
    whole = rows(capsys)
    counted = [*taken]
    taken.clear()
    train = RunTrainer.train

    def stopped(self):
        if self.run.path.name == "trial-3":
            for progress in self:
                if progress.step >= 3:
                    raise Interrupted(2, "at step 3; saved", str(self.run))
        return train(self)

    with monkeypatch.context() as patch:
        patch.setattr("jaxgen.trainer.trainer.MAX_STEPS_PER_CALL", 3)
        patch.setattr(RunTrainer, "train", stopped)
        assert main([*command, "--run", str(folder)]) == 130
    assert f"jaxgen sweep --run {folder}" in capsys.readouterr().err
    assert main(["--run", str(folder), "--json"]) == 0
    found = rows(capsys)
    assert [(row["values"], row["figures"]) for row in found] == [(row["values"], row["figures"]) for row in whole]
    done = {name: sorted(first for run, first, _ in taken if run == name) for name, *_ in counted}
    assert done["trial-1"] == done["trial-4"]
    assert sum(number for *_, number in taken) <= 24 + 3  # the steps after the last checkpoint of trial 3


@pytest.mark.runs
def test_halving_continues_the_best_and_they_are_the_runs_of_all_steps(sizes, tmp_path, capsys, taken):
    folder, grid = tmp_path / "sweep", ["--grid", "lr=1e-5,1e-3,1e-2,3e-2", "hidden=4"]
    assert main([*sizes, "--steps", "24", *grid, "--halving", "2", "--run", str(folder), "--json"]) == 0
    found = rows(capsys)
    assert [row["steps"] for row in found] == [24, 12, 6, 6]
    assert sum(number for *_, number in taken) == 4 * 6 + 2 * 6 + 12  # each step once
    best = found[0]
    alone = tmp_path / "alone"
    rate = str(best["values"]["lr"])
    jaxgen.train(
        run=alone,
        data=Path(sizes[1]),
        preset="tiny",
        cell="elman",
        batch_size=4,
        seq_len=8,
        eval_every=3,
        warmup=1,
        steps=24,
        lr=float(rate),
        hidden=4,
        progress=False,
    )
    last = [CheckpointStore(Path(run) / "checkpoints").digest(24) for run in (alone, best["run"])]
    assert last[0] == last[1]


@pytest.mark.runs
def test_seeds_are_trained_together_and_their_mean_decides(sizes, tmp_path, capsys):
    folder = tmp_path / "sweep"
    grid = ["--grid", "lr=1e-5,3e-2", "hidden=4", "--seeds", "0,5"]
    assert main([*sizes, "--steps", "6", *grid, "--run", str(folder), "--json"]) == 0
    best, _ = rows(capsys)
    assert len(best["figures"]) == 2
    assert best["mean"] == pytest.approx(statistics.mean(best["figures"]))
    assert best["spread"] == pytest.approx(statistics.stdev(best["figures"]))
    assert json.loads((Path(best["run"]) / "seeds.json").read_text())["vmapped"] is True
    assert main(["--run", str(folder)]) == 0
    assert "±" in capsys.readouterr().out


@pytest.mark.runs
def test_a_trial_that_diverges_is_last_and_not_tried_again(sizes, tmp_path, capsys, monkeypatch):
    train, tried = module.Sweep._train_run, []

    def failing(self, trial, config, steps):
        tried.append(trial)
        if trial == 1:
            raise jaxgen.DivergedError("The loss became nan at step 3.")
        train(self, trial, config, steps)

    monkeypatch.setattr(Sweep, "_train_run", failing)
    command = [*sizes, "--steps", "3", "--grid", "hidden=4,8", "--run", str(tmp_path / "sweep"), "--json"]
    assert main(command) == main(command) == 0
    assert tried == [1, 2]
    last = rows(capsys)[-1]
    assert (last["trial"], last["mean"]) == (1, None)
    assert "nan" in last["problem"]


@pytest.mark.runs
def test_every_task_can_be_searched(tmp_path, capsys):
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"{'a b ' * (n % 30 + 1)},{'xy'[n % 2]}\n" for n in range(80)))
    columns = ["--text-column", "text", "--label-column", "label", "--steps", "2", "--batch-size", "4"]
    command = ["classify", "--data", str(texts), *columns, "--grid", "cell=gru,lstm", "hidden=4"]
    assert main([*command, "--run", str(tmp_path / "sweep"), "--json"]) == 0
    assert {row["metric"] for row in rows(capsys)} == {"val_accuracy"}


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--grid lrr=1",
        "--grid lr=1e-3,x",
        "--grid hidden=8,0",
        "--grid cell=elman,elmann",
        "--grid lr",
        "--grid lr=",
        "--grid lr=1,2 lr=3",
        "--grid lr=1,2 --lr 1",
        "--grid seed=1,2",
        "--grid cell_options=1",
        "--grid locked_dropout=true,maybe",
        "--grid lr=1 --trials 3",
        "--grid lr=1,2 --halving 1",
        "--grid lr=1,2 --halving 2 --epochs 1",
        "--grid steps=10,20 --halving 2",
        "--grid lr=1,2 --minutes 1",
        "--grid lr=1,2 --seeds 0",
        "--random lr=1..0",
        "--random cell=a..b",
        "--random lr=1e-3..1e-2 --trials 0",
        "--random lr=1e-3..1e-2 --halving 2 --optuna",
        "--grid hidden=8 layers=1,2 --data nowhere.txt",
    ],
)
def test_wrong_flags_are_refused_before_anything_is_trained(flags, book, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in flags else ["--data", str(book)]
    assert main([*data, "--batch-size", "4", "--seq-len", "8", *flags.split()]) in (2, 3)
    assert capsys.readouterr().err.startswith("error: ")
    assert not [*tmp_path.iterdir()]
