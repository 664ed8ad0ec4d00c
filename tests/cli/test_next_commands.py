"""The command after "Next:" at the end of a training runs as it is printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.flags import RunConfig, read_flags, setting_flags
from jaxgen.cli.train import main as train_main
from jaxgen.tasks.base import echo_command, shell_command
from jaxgen.tasks.language.conditioning import Conditioning

ROOT = Path(__file__).parents[2]
SIZES = "--cell elman --hidden 8 --layers 1 --batch-size 4 --steps 2 --eval-every 0 --sample-every 0"
CELL = "from jaxgen.cells.elman import Elman\n\nclass Mine(Elman):\n    pass\n"


@pytest.fixture
def data(here: Path) -> Path:
    words = ["zürich", "größe", "fußball", "öl"]
    (here / "my book.txt").write_text(" ".join(words * 60))
    (here / "rows.csv").write_text("label,text\n" + "".join(f"{'ab'[i % 2]},it's {words[i % 4]}\n" for i in range(40)))
    (here / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"it's {i}\tdas {i}\n" for i in range(40)))
    (here / "my photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(here / f"my photos/{i}.png")
    (here / "my photos/captions.csv").write_text("image,caption\n" + "".join(f"{i}.png,number {i}\n" for i in range(8)))
    (here / "my cells").mkdir()
    (here / "my cells/mycells.py").write_text(CELL)
    return here


@pytest.mark.parametrize(
    ("command", "flags", "part"),
    [
        pytest.param(
            [ROOT / "train.py"],
            ["--data", "my book.txt", "--seq-len", "8"],
            "sample.py --run",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [ROOT / "jaxgen/__main__.py", "train"],
            ["--data", "my book.txt", "--level", "word", "--seq-len", "8"],
            "jaxgen sample --run",
            marks=pytest.mark.slow,
        ),
        (
            [ROOT / "train.py"],
            ["--plugin", "my cells/mycells.py", "--data", "my book.txt", "--cell", "mycells:Mine", "--seq-len", "8"],
            "--plugin 'my cells/mycells.py'",
        ),
        (
            [ROOT / "train.py"],
            ["classify", "--data", "rows.csv", "--text-column", "text", "--label-column", "label"],
            "jaxgen predict --run",
        ),
        pytest.param(
            [ROOT / "jaxgen/__main__.py", "train"],
            ["translate", "--data", "pairs.tsv", "--source-column", "source", "--target-column", "target"],
            "jaxgen predict --run",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [ROOT / "jaxgen/__main__.py", "train"],
            ["caption", "--data", "my photos", "--image-size", "8", "--patch", "2", "--widths", "16", "--blocks", "0"],
            "my photos/",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["script", "module", "cell", "classify", "translate", "caption"],
)
def test_the_next_command_runs_as_printed(
    data, quick_environment, command, flags, part, monkeypatch, capsys, without_plugins
):
    sizes = SIZES.replace("--cell elman ", "") if "--cell" in flags else SIZES
    more = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    # This process trains: it says what to type next from the words that it was started with.
    started = [*map(str, command), *flags, *sizes.split(), "--run", "my run"]
    monkeypatch.setattr(sys, "argv", started)
    assert train_main(started[len(command) :]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out.splitlines()[-1].removeprefix("Next: ")
    assert part in shown
    env = quick_environment | more
    tried = subprocess.run(["sh", "-c", shown], cwd=data, env=env, capture_output=True, text=True)
    assert tried.returncode == 0, (shown, tried.stderr)
    assert tried.stdout


@pytest.mark.parametrize("label", ["it's 3", "-a b", "--stop", "a:0.5"])
def test_the_example_of_a_label_is_read_as_that_label(label):
    known: Any = SimpleNamespace(labels=(label,), most_common=lambda _: [label])
    words = shlex.split(Conditioning.example(known))
    assert read_flags(words, [*setting_flags(RunConfig)]) == {"label": (label,)}


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("a b", "echo 'a b'"),
        ("\n it's \nb", """echo 'it'"'"'s'"""),
        (r"a\n", r"printf '%s\n' 'a\n'"),
        ("-n", r"printf '%s\n' -n"),
        ("a\tb", "echo 'a b'"),
        (" ", "echo 'a text'"),
    ],
)
def test_an_example_is_a_line_that_the_shell_writes_unchanged(text, command):
    assert echo_command(text) == command


@pytest.mark.parametrize(
    ("started", "name", "command"),
    [
        (["{here}/train.py", "--data", "x"], "sample", "python '{here}/sample.py'"),
        (["{here}/train.py"], "predict", "jaxgen predict"),
        (["/bin/jaxgen", "train"], "sample", "jaxgen sample"),
        (["mine.py", "train"], "sample", "jaxgen sample"),
    ],
)
def test_a_command_is_started_as_this_process_was(here, monkeypatch, started, name, command):
    folder = here / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for file in ("train.py", "sample.py", "mine.py"):
        (folder / file).touch()
    monkeypatch.setattr(sys, "argv", [word.format(here=folder) for word in started])
    monkeypatch.setattr(sys, "executable", "/bin/python")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert shell_command(name) == command.format(here=folder)


def test_where_nothing_is_installed_the_package_is_named(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py")])
    monkeypatch.setattr(sys, "executable", "/bin/python")
    monkeypatch.setattr(sys, "path", [str(ROOT), "/elsewhere"])
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name == "python" else None)
    assert shell_command("predict") == f"PYTHONPATH={ROOT} python -m jaxgen predict"
    monkeypatch.chdir(ROOT)
    for started in (str(ROOT / "train.py"), "train.py"):
        monkeypatch.setattr(sys, "argv", [started])
        assert shell_command("predict") == "python -m jaxgen predict"
