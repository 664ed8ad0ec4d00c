"""Tiny runs shared by the command tests, compiled without XLA optimisations once per worker."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from builders import overridden

from jaxgen.cli.evaluate import main as evaluate_main
from jaxgen.cli.replay import main as replay_main
from jaxgen.cli.sample import main as sample_main
from jaxgen.cli.score import main as score_main
from jaxgen.cli.train import main as train_main


class Outcome(NamedTuple):
    """What a command did: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def call(
    main: Callable[[list[str]], int],
    args: Sequence[object],
    flags: str = "",
    encoding: str = "utf-8",
    newline: str = "",
) -> Outcome:
    """Run a command in this process; its help leaves by ``SystemExit``.

    ``encoding`` and ``newline`` are what the system chose for standard output.
    """
    out, err = io.TextIOWrapper(io.BytesIO(), encoding, newline=newline), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, args), *flags.split()])
        except SystemExit as stop:
            code = stop.code
    out.flush()
    # At byte level, a command may write bytes that are no text.
    return Outcome(code, out.buffer.getvalue().decode(out.encoding, "backslashreplace"), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Any command: its ``main`` with arguments, and with ``flags``, which are split at spaces."""
    return call


@pytest.fixture
def train() -> Callable[..., Outcome]:
    """``train.py`` with these arguments, and with ``flags``, split at spaces; later flags replace earlier ones."""
    return lambda *args, flags="", **output: call(train_main, overridden([*args, *flags.split()]), **output)


@pytest.fixture
def sample() -> Callable[..., Outcome]:
    """``sample.py`` with these arguments."""
    return lambda *args, **output: call(sample_main, args, **output)


@pytest.fixture
def replay() -> Callable[..., Outcome]:
    """``jaxgen replay`` with these arguments."""
    return lambda *args, **output: call(replay_main, args, **output)


@pytest.fixture
def score() -> Callable[..., Outcome]:
    """``jaxgen score`` with these arguments."""
    return lambda *args, **output: call(score_main, args, **output)


@pytest.fixture
def evaluate() -> Callable[..., Outcome]:
    """``jaxgen evaluate`` with these arguments, and with ``flags``, by default those for few short texts."""
    little = "--num-samples 3 --length 40 --temperature 0 1"
    return lambda *args, flags=little: call(evaluate_main, args, flags)


@pytest.fixture(scope="session")
def small(book: Path) -> list[str]:
    """Flags of the smallest run worth the name."""
    flags = f"--data {book} --preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8"
    return flags.split()


@pytest.fixture(scope="session")
def course() -> list[str]:
    """Flags for the length of the run that most tests read; whoever trains with them finds everything compiled."""
    return ["--steps", "30", "--eval-every", "10", "--lr", "0.02", "--warmup", "2"]


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, small: list[str], course: list[str], quick, loss_plots
) -> tuple[Path, Outcome]:
    """A finished run of 30 steps, and what training it printed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    with quick(), loss_plots():
        done = call(train_main, [*small, *course, "--run", run])
    assert done.code == 0, done.err
    return run, done


@pytest.fixture
def run(trained: tuple[Path, Outcome]) -> Path:
    """The folder of the finished run; copy it before changing anything in it."""
    return trained[0]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to break."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in an empty folder of its own, in a window of 80 columns."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder
