"""One tiny run of each task and every command on it: exit code 0 and the expected output."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.main import COMMANDS
from jaxgen.runs.removal import why_kept
from jaxgen.tasks.registry import TASKS

ROWS = [("fish wave", "sea"), ("tree road", "land"), ("wave ship", "sea"), ("road hill", "land")] * 3
TINY = "--cell elman --hidden 4 --batch-size 4 --steps 2 --eval-every 2 --devices 1"
COLUMNS = {
    "classify": "--text-column text --label-column kind --val-rows 4",
    "translate": "--source-column text --target-column kind --val-rows 4 --beam 0",
}


def photos(folder: Path) -> Path:
    """Write four images with a caption each."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    rows = "".join(f"{number}.png,{text}\n" for number, (text, _) in enumerate(ROWS[:4]))
    (folder / "captions.csv").write_text("image,caption\n" + rows)
    return folder


@pytest.fixture(scope="session")
def train_once(tmp_path_factory: pytest.TempPathFactory, quick, command) -> Callable[[str], tuple[Path, str]]:
    """From a task's name to its trained run and an input that the run can answer."""
    made: dict[str, tuple[Path, str]] = {}

    def train(name: str) -> tuple[Path, str]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "caption":
                data, flags = photos(folder), "--image-size 8 --patch 2 --widths 16 --blocks 0 --beam 0 --val-rows 1"
            else:
                data, flags = folder / "rows.csv", COLUMNS[name]
                data.write_text("text,kind\n" + "".join(f"{text},{kind}\n" for text, kind in ROWS))
            with quick():
                done = command(main_of("train"), [name, "--data", data, "--run", folder / "run"], f"{TINY} {flags}")
            assert done.code == 0, done.err
            made[name] = folder / "run", str(folder / "0.png") if name == "caption" else "fish wave"
        return made[name]

    return train


def main_of(name: str) -> Callable[[list[str]], int]:
    return importlib.import_module(f"jaxgen.cli.{name}").main


@pytest.mark.parametrize("name", sorted({*TASKS} - {"language"}))
def test_a_task_is_trained_and_answers(name, train_once, command, monkeypatch):
    run, given = train_once(name)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{given}\n".encode())))
    done = command(main_of("predict"), ["--run", run, *([given] if name == "caption" else [])])
    assert (done.code, done.out.count("\n")) == (0, 1), done.err
    assert why_kept(run) is None, "a new file of a run belongs into the list of files that may be removed"


#: Flags of every command that reads a run of the task language, and a part of what it writes.
ON_TEXT = {
    "sample": ("--prompt The --length 5", "The"),
    "score": ("--text The", "nats"),
    "evaluate": ("--num-samples 2 --length 20 --temperature 1 --no-plot", "temperature"),
    "explain": ("The --length 20", "the model"),
}


@pytest.mark.parametrize("name", ON_TEXT)
def test_a_command_reads_a_run_of_the_task_language(name, run, command):
    flags, part = ON_TEXT[name]
    done = command(main_of(name), ["--run", run], flags)
    assert done.code == 0, done.err
    assert part in done.out


def test_a_recorded_sample_is_replayed(run, command, here):
    drawn = command(main_of("sample"), ["--run", run], "--length 5 --json")
    (here / "receipt.jsonl").write_text(drawn.out)
    done = command(main_of("replay"), ["receipt.jsonl", "--run", run])
    assert done.code == 0, done.err


def test_n_grams_are_trained_and_sampled(book, command):
    done = command(
        main_of("train"), ["--data", book, "--run", "counted"], "--model ngram --order 3 --batch-size 4 --seq-len 8"
    )
    assert done.code == 0, done.err
    done = command(main_of("sample"), ["--run", "counted"], "--length 5")
    assert (done.code, len(done.out)) == (0, 6), done.err


def test_every_command_is_tried():
    elsewhere = {"export", "import"}  # tests/interchange/test_commands.py
    elsewhere |= {"bench", "compare", "doctor", "info", "runs"}  # test_run_tables.py
    elsewhere |= {"interpolate", "neurons"}  # test_neurons_command.py
    elsewhere |= {"completion"}  # test_completion.py
    elsewhere |= {"serve"}  # test_serve_command.py
    elsewhere |= {"sweep"}  # tests/trainer/test_sweep.py
    assert {*ON_TEXT, "predict", "replay", "train"} | elsewhere == {*COMMANDS}
