"""The runner of docs/records.md: what counts as done, and the tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.records import Row, fitted_line, path_of, plan, read, table, write, write_names

ROW = Row("goals", "a row", "--preset tiny", seeds=(0, 1))


def save(folder, row, seed, **figures):
    result = {"command": row.command, "seed": seed, "seconds": 50.4, "losses": {"val": 1.5}, "peak_memory_mb": 400}
    path_of(folder, row, seed).write_text(json.dumps({**result, **figures}))


def test_the_names_of_all_rows_give_files_of_their_own(tmp_path):
    paths = [path_of(tmp_path, row, seed) for row in plan() for seed in row.seeds]
    assert len(set(paths)) == len(paths)


def test_figures_of_another_command_count_as_missing(tmp_path):
    save(tmp_path, ROW, 0)
    save(tmp_path, ROW, 1, command="python train.py --preset base")
    assert read(tmp_path, ROW, 0) is not None
    assert read(tmp_path, ROW, 1) is None


def test_a_line_has_the_mean_and_the_spread_over_seeds(tmp_path):
    save(tmp_path, ROW, 0, losses={"val": 1.4, "windows_64": 1.6}, steps=20, best_step=20)
    save(tmp_path, ROW, 1, losses={"val": 1.6, "windows_64": 1.6}, steps=20, best_step=18)
    *_, line = table([ROW], tmp_path).splitlines()
    assert "1.500 ± 0.141 | 1.600 ± 0.000 | - | 18, last | 50 | - | 400 | 2 of 2" in line


def test_the_line_goes_through_the_runs_that_no_cheaper_run_beats(tmp_path):
    rows = [Row("scaling", name, f"--hidden {name}", seeds=(0,)) for name in "abcd"]
    for row, parameters, loss in zip(rows, (100, 400, 800, 1600), (2.0, 1.8, 5.0, 1.62)):
        save(tmp_path, row, 0, losses={"val": loss}, parameters=parameters, steps=10)
    assert "3 of 4" in fitted_line(rows, tmp_path)
    assert "lowers it by 10.0%" in fitted_line(rows, tmp_path)
    assert "few" in fitted_line(rows[:2], tmp_path)


def test_the_list_of_names_is_the_same_every_time(tmp_path):
    for name in "ab":
        write_names(tmp_path / name, 50)
    names = (tmp_path / "a").read_text().splitlines()
    assert len(set(names)) == len(names) == 50
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_rows_without_figures_are_counted(tmp_path):
    other = Row("goals", "another row", "--preset base", seeds=(0,))
    assert "2 rows" in table([ROW, other], tmp_path)
    save(tmp_path, other, 0, steps=20, best_step=20)
    assert "another row" in table([ROW, other], tmp_path)
    assert "1 row " in table([ROW, other], tmp_path)


def test_a_page_without_the_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit):
        write(page, tmp_path)
