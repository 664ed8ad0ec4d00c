"""Tiny runs, compiled quickly and once a worker: what these tests ask does not depend on how well XLA optimises."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxgen.cli.sample import main as sample_main
from jaxgen.cli.train import main as train_main

WORDS = (
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
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which this worker keeps compiled functions."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def quick_compiles(compiled: Path):
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    former = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in former.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text in lines: its validation tail is too short for windowed evaluations, which saves time."""
    pick = random.Random(1)
    lines = [" ".join(pick.choice(WORDS) for _ in range(pick.randint(3, 6))).capitalize() for _ in range(30)]
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text(".\n".join(lines)[:630] + ".\n")
    return path


class Outcome(NamedTuple):
    """What a command did: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def call(main: Callable[[list[str]], int], args: Sequence[object], flags: str = "") -> Outcome:
    """Run a command in this process; a message of the flag parser leaves by ``SystemExit``."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, args), *flags.split()])
        except SystemExit as stop:
            code = stop.code
    out.flush()
    return Outcome(code, out.buffer.getvalue().decode("utf-8"), err.getvalue())


@pytest.fixture
def train() -> Callable[..., Outcome]:
    """``train.py`` with these arguments, and with ``flags``, which are split at spaces."""
    return lambda *args, flags="": call(train_main, args, flags)


@pytest.fixture
def sample() -> Callable[..., Outcome]:
    """``sample.py`` with these arguments."""
    return lambda *args: call(sample_main, args)


@pytest.fixture(scope="session")
def small(book: Path) -> list[str]:
    """Flags of the smallest run worth the name."""
    flags = f"--data {book} --preset tiny --cell elman --hidden 8 --batch-size 4 --seq-len 8"
    return flags.split()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> tuple[Path, Outcome]:
    """A finished run of 30 steps, and what training it printed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    done = call(train_main, [*small, "--run", run], "--steps 30 --eval-every 10 --lr 0.02 --warmup 2")
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
