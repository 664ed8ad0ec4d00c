"""Fixtures of the whole test session: strict dtypes, no network, and a cache of compiled functions."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from jaxgen import jitted, plots, plugins, runtime
from jaxgen.errors import show_flags
from jaxgen.trainer import callbacks

# A [B] array silently broadcast against [B, B] is the commonest wrong result in batched code.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # what spreads a batch is wrong on two devices first

#: Where an implicit dtype promotion raises. Not everywhere: optax's Adam computes `float ** int32`.
STRICT_DTYPES = {"cells", "contracts", "models"}
WORDS = [
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
#: Folders whose tests do not depend on how well XLA optimises. With OPTIMIZE=1 the contracts are compiled as for users.
QUICK = {
    "baselines",
    "cells",
    "cli",
    "contracts",
    "distributed",
    "faults",
    "fuzz",
    "inference",
    "models",
    "sampling",
    "server",
    "tasks",
    "trainer",
    "training",
}
if os.environ.get("OPTIMIZE") == "1":
    QUICK.remove("contracts")
#: XLA's older code generation for the CPU, which takes a third of the newer one's time, and in one piece.
OLDER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest):
    with jax.numpy_dtype_promotion("strict" if request.node.path.parent.name in STRICT_DTYPES else "standard"):
        yield


@pytest.fixture(autouse=True, scope="session")
def flags_in_messages():
    """Messages as the commands show them, with flags."""
    with show_flags():
        yield


@pytest.fixture(autouse=True, scope="session")
def blank_loss_plots():
    """The loss plot of a run is one pixel: drawing it at every evaluation takes longer than all else in a tiny run."""
    blank = io.BytesIO()
    Image.new("1", (1, 1)).save(blank, "PNG")
    with mock.patch.object(callbacks, "draw_losses", lambda rows, path, *_: path.write_bytes(blank.getvalue())):
        yield


@pytest.fixture(scope="session")
def loss_plots():
    """A context in which the loss plots of runs are drawn."""
    return partial(mock.patch.object, callbacks, "draw_losses", plots.draw_losses)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Tests reach this machine's own servers only."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(LOCAL):
            raise RuntimeError(f"A test tried to reach {address[0]!r} on the network: use a local server.")
        connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True, scope="session")
def older_code():
    """XLA's older code generation wherever its optimisations are switched off; JAX has no setting for it.

    Where XLA does not know the option any more, tests take longer and ask the same.
    """
    try:
        jax.jit(lambda: 0, compiler_options=OLDER)()
    except jax.errors.JaxRuntimeError:
        yield {}
        return
    former = compiler.get_compile_options

    def options(*args: Any, env_options_overrides: dict[str, Any] | None = None, **more: Any) -> Any:
        given = env_options_overrides or {}
        off = jax.config.values["jax_disable_most_optimizations"] or given.get("xla_backend_optimization_level") == 0
        return former(*args, env_options_overrides=OLDER | given if off else given, **more)

    with mock.patch.object(compiler, "get_compile_options", options):
        yield OLDER


@pytest.fixture(scope="module", autouse=True)
def compile_effort(request: pytest.FixtureRequest):
    """XLA without its optimisations where nothing asks for them."""
    if request.path.parent.name in QUICK:
        request.getfixturevalue("quick_compiles")
        yield
    else:
        forget()
        yield
        forget()


@pytest.fixture(scope="session")
def compiled(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with compiled functions that all workers share, below pytest's cache: a second session reads them.

    JAX finds an entry by the program, the flags and its own version; other processors have other folders.
    """
    cache = getattr(pytestconfig, "cache", None)  # missing with `-p no:cacheprovider`
    if cache is None:
        return tmp_path_factory.mktemp("compiled")
    folder = cache.mkdir(f"compiled-{jax.lib.__version__}-{runtime.processor()}")
    runtime.clean_cache(folder)
    return folder


@contextlib.contextmanager
def quickly(compiled: Path):
    """XLA without its optimisations and with a cache of what it compiled."""
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


def forget():
    """What was compiled with other settings must not serve here."""
    for function in vars(jitted).values():
        if hasattr(getattr(function, "__wrapped__", None), "cache_clear"):
            function.__wrapped__.cache_clear()


@pytest.fixture(scope="session")
def quick(compiled: Path):
    """A context for fixtures of the whole session, which are made before those of a module."""
    return partial(quickly, compiled)


@pytest.fixture(scope="module")
def quick_compiles(compiled: Path):
    """Quick compilations for the tests of a module, which ask nothing of XLA's optimisations."""
    with quickly(compiled):
        yield


@pytest.fixture(scope="session")
def quick_environment(compiled: Path, older_code: dict[str, Any]) -> dict[str, str]:
    """The same for a process of its own, which then computes the same bits: its environment."""
    flags = [f"--{name}={str(value).lower()}" for name, value in older_code.items()]
    return {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip(),
    }


@pytest.fixture
def without_plugins():
    """The registries, the loaded plugins and their modules are as without plugins, here and after the test.

    Returns a function that forgets all plugins, as a new process has none.
    """
    before = [dict(registry) for _, registry in plugins.REGISTRIES]

    def forget() -> None:
        plugins.LOADED.clear()
        for (_, registry), former in zip(plugins.REGISTRIES, before):
            registry.clear()
            registry.update(former)
        for name in [name for name in sys.modules if name.startswith((plugins.FILE_MODULE, "acme"))]:
            del sys.modules[name]

    yield forget
    forget()


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text in lines: its validation tail is too short for windowed evaluations, which saves time."""
    pick = random.Random(1)
    lines = [" ".join(pick.choice(WORDS) for _ in range(pick.randint(3, 6))).capitalize() for _ in range(30)]
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text(".\n".join(lines)[:630] + ".\n")
    return path
