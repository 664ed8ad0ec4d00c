"""For a given seed the commands print what they printed when these values were recorded.

A refactoring may not change them. A new release of JAX may: then check that nothing in jaxgen changed what is computed,
and record the values anew with ``python tests/golden/test_golden_runs.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from shared_fixtures import forget

GOLDEN = Path(__file__).with_name("runs.json")
SIZES = ["--hidden", "12", "--batch-size", "4", "--steps", "12", "--eval-every", "6", "--lr", "0.02", "--seed", "3"]
TEXT = ["--seq-len", "16", "--sample-every", "6", "--optimizer", "adamw", "--cold-starts", "0", "--weight-decay", "0"]
SAMPLE = ["--length", "40", "--seed", "5", "--num-samples", "2"]
#: Name -> (flags of train.py, or None for a run made before; the command asked afterwards, its flags).
RUNS: dict[str, tuple[list[str], str, list[str]]] = {
    "char": (
        ["--data", "book.txt", "--cell", "lstm", *SIZES, *TEXT],
        "sample",
        ["--prompt", "The ", "--temperature", "0.8", *SAMPLE],
    ),
    "word": (
        ["--data", "book.txt", "--level", "word", "--cell", "gru", "--dropout", "0.2", "--layers", "1", *SIZES, *TEXT],
        "sample",
        ["--top-p", "0.9", *SAMPLE],
    ),
    "ngram": (["--data", "book.txt", "--model", "ngram", "--order", "4"], "sample", ["--prompt", "The ", *SAMPLE]),
    "greedy": (["--data", "book.txt", "--cell", "elman", *SIZES, *TEXT], "sample", ["--greedy", "--length", "40"]),
    "classify": (
        ["classify", "--data", "rows.csv", "--text-column", "text", "--label-column", "label", *SIZES],
        "predict",
        ["--json", "line.txt"],
    ),
    "translate": (["translate", *SIZES], "predict", ["date.txt"]),
}


def write_data(folder: Path) -> None:
    pick = random.Random(4)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "while",
        "dogs",
        "ran",
        "over",
        "hills",
        "and",
        "birds",
        "sang",
        "of",
        "rain",
        "in",
        "spring",
    ]
    lines = [" ".join(pick.choice(words) for _ in range(pick.randint(3, 9))).capitalize() for _ in range(160)]
    (folder / "book.txt").write_text(".\n".join(lines) + ".\n")
    (folder / "line.txt").write_text("the cat sat on a mat\n")
    (folder / "date.txt").write_text("21st Nov 1926\n")
    rows = [f"{'ab'[len(line) % 2]},{line}" for line in lines]
    (folder / "rows.csv").write_text("label,text\n" + "\n".join(rows) + "\n")


def call(command: str, *args: str) -> str:
    """What a command writes to standard output."""
    from importlib import import_module

    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = import_module(f"jaxgen.cli.{command}").main(list(args))
        except SystemExit as stop:
            code = stop.code
    assert code == 0, errors.getvalue()
    out.flush()
    return out.buffer.getvalue().decode()


def rows(run: str) -> list[dict[str, Any]]:
    """The rows of metrics without what a clock wrote."""
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in lines]


def made(name: str) -> dict[str, Any]:
    """The metrics and the text of a run, in the current folder."""
    flags, command, asked = RUNS[name]
    call("train", *flags, "--run", name)
    return {"rows": rows(name), "text": call(command, "--run", name, *asked)}


def near(row: dict[str, Any]) -> dict[str, Any]:
    return {k: pytest.approx(v, rel=2e-4, abs=1e-6) if isinstance(v, float) else v for k, v in row.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def check_as_recorded(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    now = made(name)
    assert now["text"] == golden["text"]
    assert now["rows"] == [near(row) for row in golden["rows"]]


#: The default, with all of XLA's optimisations, as for users. They take most of the time of these tests.
DEFAULT = "char"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == DEFAULT else pytest.mark.slow) for name in RUNS]
)
def test_a_run_gives_the_recorded_metrics_and_text(name: str, folder: Path):
    check_as_recorded(name)


@pytest.mark.parametrize("name", [name for name in RUNS if name != DEFAULT])
def test_a_run_that_is_compiled_quickly_gives_the_same_metrics_and_text(name: str, folder: Path, quick):
    forget()
    with quick():
        check_as_recorded(name)
    forget()


if __name__ == "__main__":
    import os

    os.chdir(tempfile.mkdtemp())
    write_data(Path.cwd())
    GOLDEN.write_text(json.dumps({name: made(name) for name in RUNS}, indent=1) + "\n")
