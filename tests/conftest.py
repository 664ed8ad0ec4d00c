"""Settings of the whole test session: its environment, and the lanes. The fixtures are in `shared_fixtures.py`.

The command-line options and `filterwarnings = error` stand in `pyproject.toml`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

# Before JAX is imported. Set JAX_PLATFORMS yourself to run the suite on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the commands do: a compiled function from the cache prints errors

# Before jaxgen is imported. CHECK_SHAPES=1 checks the types and shapes in the signatures of these packages at run time.
if os.environ.get("CHECK_SHAPES") == "1":
    import beartype
    from jaxtyping import install_import_hook

    beartype.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int will do as a float
    install_import_hook([f"jaxgen.{part}" for part in ("cells", "models", "sampling", "training")], "beartype.check")

# Each worker, and each process that a test starts, would compile the source of every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts something in the background has it ignore Ctrl-C, and what it starts too: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing makes many small objects: a tenth of the suite's time went to looking them over.
gc.set_threshold(200_000, 20, 20)

#: What `pytest` selects by default, as in `pyproject.toml`.
QUICK_LANE = "not slow and not runs and not loggers and not notebooks and not browser"
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
    "cli/test_adaptation_commands.py",
    "cli/test_caption_commands.py",
    "cli/test_chat_prompt.py",
    "cli/test_evaluating.py",
    "cli/test_explain_command.py",
    "cli/test_interactive.py",
    "cli/test_label_flags.py",
    "cli/test_mixture_commands.py",
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
    "contracts/test_transform_checks_can_fail.py",
    "distributed/test_several_processes.py",
    "faults",
    "fuzz",
    "golden",
    "inference/test_beam_search.py",
    "inference/test_engine.py",
    "inference/test_inspection.py",
    "inference/test_patterned_samples.py",
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
    "trainer/test_teachers.py",
    "trainer/test_tensorboard.py",
    "trainer/test_training_runs.py",
    "trainer/test_translation_runs.py",
    "training/test_key_stream.py",
    "training/test_parallel.py",
    "training/test_seed_steps.py",
}
TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """A file named on the command line is tested whole, up to its slow tests: `pytest tests/models/test_decoder.py`."""
    named = [Path(config.invocation_params.dir, arg.partition("::")[0]) for arg in config.args]
    if config.option.markexpr == QUICK_LANE and any(path.is_file() for path in named):
        config.option.markexpr = "not slow"
    # The process that only hands out the tests needs none of it, and the workers wait until that has started.
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")


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
