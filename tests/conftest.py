"""Settings of the whole test session: lanes, strict dtypes, no network, and a cache of compiled functions.

The command-line options and `filterwarnings = error` stand in `pyproject.toml`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

# Before JAX is imported. Set JAX_PLATFORMS yourself to run the suite on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the commands do: a compiled function from the cache prints errors

from jaxtyping import install_import_hook

# Before jaxgen is imported. CHECK_SHAPES=1 checks the types and shapes in the signatures of these packages at run time.
if os.environ.get("CHECK_SHAPES") == "1":
    import beartype

    beartype.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int will do as a float
    install_import_hook([f"jaxgen.{part}" for part in ("cells", "models", "sampling", "training")], "beartype.check")

import jax
import pytest
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache

from jaxgen import jitted, plugins, runtime
from jaxgen.errors import show_flags

# A shell that starts something in the background has it ignore Ctrl-C, and what it starts too: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing makes many small objects: a tenth of the suite's time went to looking them over.
gc.set_threshold(200_000, 20, 20)

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
#: What `pytest` selects by default, as in `pyproject.toml`.
QUICK_LANE = "not slow and not runs and not loggers and not notebooks"
#: Files and folders whose tests train whole runs or whole models, start processes, run whole commands or compile much:
#: the lane `pytest -m runs`. Elsewhere a test of this kind is marked with `@pytest.mark.runs`.
RUNS = {
    "baselines/test_counted_runs.py",
    "baselines/test_ngram.py",
    "cells/test_attention_cell.py",
    "cells/test_forms.py",
    "cells/test_gla.py",
    "cells/test_linear.py",
    "cells/test_linear_cells.py",
    "cells/test_noise.py",
    "cells/test_nonlinear.py",
    "cells/test_precision.py",
    "cells/test_torch_weights.py",
    "cli/test_caption_commands.py",
    "cli/test_chat_prompt.py",
    "cli/test_evaluating.py",
    "cli/test_explain_command.py",
    "cli/test_interactive.py",
    "cli/test_label_flags.py",
    "cli/test_neurons_command.py",
    "cli/test_next_commands.py",
    "cli/test_ngram_commands.py",
    "cli/test_plugin_commands.py",
    "cli/test_predict_command.py",
    "cli/test_run_tables.py",
    "cli/test_sampling_commands.py",
    "cli/test_score_command.py",
    "cli/test_scripts.py",
    "cli/test_smoke.py",
    "cli/test_token_colors.py",
    "cli/test_training_commands.py",
    "cli/test_translating_commands.py",
    "cli/test_wrong_inputs.py",
    "contracts/test_checks_can_fail.py",
    "contracts/test_foreign_cells.py",
    "contracts/test_task_checks_can_fail.py",
    "contracts/test_tasks.py",
    "distributed/test_several_processes.py",
    "faults",
    "fuzz",
    "golden",
    "inference/test_beam_search.py",
    "inference/test_engine.py",
    "inference/test_inspection.py",
    "inference/test_predicting_texts.py",
    "inference/test_predictor.py",
    "inference/test_receipts.py",
    "inference/test_scoring.py",
    "inference/test_trailing_spaces.py",
    "interchange",
    "models/test_attention.py",
    "models/test_blocks.py",
    "models/test_classifier.py",
    "models/test_decoder.py",
    "models/test_dropout.py",
    "models/test_encoder.py",
    "models/test_image_encoder.py",
    "models/test_initial_states.py",
    "models/test_nnx.py",
    "runs/test_checkpoint_fuzz.py",
    "runs/test_killed_starts.py",
    "sampling/test_beam.py",
    "server",
    "tasks/test_caption_task.py",
    "tasks/test_classify_task.py",
    "tasks/test_translate_task.py",
    "test_documents.py",
    "test_examples.py",
    "test_site.py",
    "tokenizers/test_pieces.py",
    "trainer/test_classify_runs.py",
    "trainer/test_interrupts.py",
    "trainer/test_killed_processes.py",
    "trainer/test_labelled_runs.py",
    "trainer/test_large_texts.py",
    "trainer/test_one_trainer.py",
    "trainer/test_resuming.py",
    "trainer/test_spread_runs.py",
    "trainer/test_tensorboard.py",
    "trainer/test_training_runs.py",
    "trainer/test_translation_runs.py",
    "training/test_parallel.py",
}
TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """A file named on the command line is tested whole, up to its slow tests: `pytest tests/models/test_decoder.py`."""
    named = [Path(config.invocation_params.dir, arg.partition("::")[0]) for arg in config.args]
    if config.option.markexpr == QUICK_LANE and any(path.is_file() for path in named):
        config.option.markexpr = "not slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what the lane does not test."""
    path = collection_path.relative_to(TESTS).as_posix()
    return True if config.option.markexpr == QUICK_LANE and path in RUNS else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into one lane: `slow` if it is marked so, else `runs` if its file or folder is in ``RUNS``."""
    for item in items:
        path = item.path.relative_to(TESTS)
        listed = path.as_posix() in RUNS or path.parts[0] in RUNS
        if item.get_closest_marker("slow"):  # of a test that trains a run, some parameters may be slow
            item.own_markers = [mark for mark in item.own_markers if mark.name != "runs"]
        elif listed:
            item.add_marker("runs")
        if os.environ.get("CHECK_SHAPES") == "1" and "refused" in item.name:
            item.add_marker(pytest.mark.skip(reason="the check refuses arguments of a wrong type before jaxgen does"))


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
