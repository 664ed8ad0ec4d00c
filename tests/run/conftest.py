"""Tiny runs, compiled quickly and once a worker: what these tests ask does not depend on how well XLA optimises."""

from __future__ import annotations

import random
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

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
