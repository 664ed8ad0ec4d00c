"""``jaxgen runs``, ``jaxgen info`` and ``jaxgen doctor``: what is known of runs and of this installation."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest

import jaxgen
from jaxgen.cli.bench import main as bench
from jaxgen.cli.compare import main as compare
from jaxgen.cli.doctor import main as doctor
from jaxgen.cli.info import main as info
from jaxgen.cli.runs import main as runs
from jaxgen.runs.directory import MARKER, START
from jaxgen.runs.lock import RunLock
from jaxgen.trainer.speed import measure_speed


@pytest.fixture
def folder(run, tmp_path):
    """A folder with a run, one that is damaged, and what is no run."""
    shutil.copytree(run, tmp_path / "whole")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text('{"sha256": "a"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    return tmp_path


def test_runs_are_listed_and_damaged_ones_are_named(folder, command):
    done = command(runs, [folder])
    assert done.code == 0, done.err
    head, line = done.out.splitlines()
    assert head.split()[0] == "run"
    assert line.split()[:2] == [str(folder / "whole"), "language"]
    assert "damaged" in done.err
    (row,) = map(json.loads, command(runs, [folder, "--json"]).out.splitlines())
    report = json.loads((folder / "whole" / "report.json").read_text())
    assert row["best"] == pytest.approx(report["val_loss"], abs=1e-3)
    assert row["step"] == row["steps"] == report["step"]


@pytest.mark.parametrize("name", ["empty", "nowhere", "file"])
def test_a_folder_without_runs_exits_with_4(folder, command, name):
    done = command(runs, [folder / name])
    assert (done.code, done.out) == (4, "")


def test_a_run_in_place_of_a_folder_of_runs_is_refused(folder, command):
    done = command(runs, [folder / "whole"])
    assert done.code == 2
    assert "jaxgen info" in done.err


def test_a_run_is_shown_with_its_settings_and_arrays(folder, command):
    done = command(info, [folder / "whole"])
    assert done.code == 0, done.err
    facts = json.loads(command(info, [folder / "whole", "--json"]).out)
    model = jaxgen.load(folder / "whole")
    assert facts["settings"]["hidden"] == model.config.hidden
    assert sum(size for _, _, size in facts["arrays"]) == facts["parameters"]
    assert all(name in done.out for name, *_ in facts["arrays"])
    assert f"{facts['parameters']:,}" in done.out
    assert command(info, [folder / "damaged"]).code == 4


def test_runs_are_compared_with_their_spread_over_seeds(train, small, command):
    for name, flags in {"a": "--seed 1", "b": "--seed 2", "c": "--seed 1 --lr 0.02"}.items():
        done = train(*small, "--run", name, flags=f"--steps 4 --eval-every 2 {flags}")
        assert done.code == 0, done.err
    done = command(compare, ["a", "b", "c", "--picture", "curves.png"])
    assert done.code == 0, done.err
    head, both, alone = done.out.splitlines()
    assert "lr" in head.split()
    assert ("±" in both, "±" in alone) == (True, False)
    best = [jaxgen.load(name).history["val_loss"] for name in "ab"]
    assert f"{statistics.mean(map(min, best)):.4f}" in both
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("names", "code"), [([], 2), (["whole"], 2), (["whole", "whole"], 2), (["whole", "nowhere"], 4)]
)
def test_a_comparison_of_nothing_is_refused(names, code, folder, command):
    assert command(compare, [folder / name for name in names]).code == code


def test_the_doctor_names_versions_and_devices(command, monkeypatch):
    monkeypatch.setenv("JAXGEN_DATA", "some/folder")
    done = command(doctor, [])
    assert done.code == 0, done.err
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert {"python", "jax", "jaxgen", "jaxlib", "flax", "optax", "devices", "memory", "processor"} <= {*lines}
    assert lines["jaxgen"].startswith(jaxgen.__version__)
    assert "tokenizers" in lines  # of an extra
    assert "pytest" not in lines
    assert lines["JAXGEN_DATA"] == "some/folder"


@pytest.fixture
def several(run, tmp_path):
    """Three runs of the same data, which differ in their best figure; one that was never trained; a killed start."""
    folder = tmp_path / "several"
    for number, name in enumerate(("good", "worse", "worst", "never")):
        shutil.copytree(run, folder / name)
        path = folder / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"val_loss": row["val_loss"] + number}) + "\n" for row in rows))
    (folder / "never" / "metrics.jsonl").unlink()
    for checkpoint in (folder / "never" / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    (folder / "killed").mkdir()
    (folder / "killed" / START).write_bytes(MARKER)
    (folder / "notes.txt").write_text("mine")
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_what_was_never_trained_is_removed_once_asked_to(several, command):
    before = names(several)
    done = command(runs, [several, "--prune"])
    assert done.code == 0, done.err
    assert {Path(line.split()[0]).name for line in done.out.splitlines()[1:]} == {"never", "killed"}
    assert "--yes" in done.err
    assert names(several) == before
    assert command(runs, [several, "--prune", "--yes"]).code == 0
    assert names(several) == before - {"never", "killed"}
    done = command(runs, [several, "--prune", "--yes"])
    assert (done.code, done.out) == (0, "")


def test_all_but_the_best_are_removed_unless_they_are_trained(several, command):
    lock = RunLock.take(several / "worst")
    rows = [json.loads(line) for line in command(runs, [several], "--prune --keep 1 --json").out.splitlines()]
    assert {Path(row["run"]).name for row in rows} == {"worse", "never", "killed"}
    done = command(runs, [several], "--prune --keep 1 --yes")
    assert done.code == 0, done.err
    assert "trained" in done.err
    lock.release()
    assert names(several) == {"good", "worst", "notes.txt"}


def test_runs_that_are_named_are_removed_or_refused(several, command):
    named = [several / "good", several / "worse", "--prune", "--yes"]
    (several / "worse" / "mine.txt").write_text("")
    done = command(runs, named)
    assert done.code == 2
    assert "mine.txt" in done.err
    assert {"good", "worse"} <= names(several), "all or nothing"
    (several / "worse" / "mine.txt").unlink()
    assert command(runs, [*named, "--keep", "1"]).code == 2
    assert command(runs, named).code == 0
    assert names(several).isdisjoint({"good", "worse"})


@pytest.mark.parametrize("flags", ["--yes", "--keep 2", "--prune --keep 0"])
def test_flags_that_only_make_sense_for_pruning_are_refused_without_it(flags, several, command):
    before = names(several)
    assert command(runs, [several], flags).code == 2
    assert names(several) == before


@pytest.mark.runs
def test_a_run_is_timed_beside_large_products(run, command, monkeypatch):
    measured = []

    def measure_once(*given):
        if not measured:
            measured.append(measure_speed(*given))
        return measured[0]

    monkeypatch.setattr("jaxgen.trainer.speed.measure_speed", measure_once)
    done = command(bench, [run, "--json", "--seconds", "0.1"])
    assert done.code == 0, done.err
    speed = json.loads(done.out)
    assert 0 < speed["share"] < 1
    assert speed["products"] / speed["step_seconds"] < speed["ceiling"]
    assert min(speed["sampled_alone"], speed["sampled_together"], speed["weight_bytes"]) > 0
    assert "tokens/s" in command(bench, [run, "--seconds", "0.1"]).out
