"""Data-parallel runs: the number of devices is recorded, resuming is exact, checkpoints load anywhere."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.sampler import Sampler
from jaxgen.jitted import one_at_a_time
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import RunTrainer
from tests.edited import edit

pytestmark = pytest.mark.skipif("jax.local_device_count() != 2", reason="counts on two devices")
Config = DATA["language"].Config
ROWS = {"batch_size": 16, "dropout": 0.3, "steps": 12, "eval_every": 6}
SIZES = {"hidden": 8, "cell": "elman", "seq_len": 8, "lr": 0.02, "warmup": 0, "sample_every": 0, "schedule": "constant"}


def settings(book, run, **more):
    return Config(**{"data": (str(book),), "run": str(run), **SIZES, **more})


@pytest.fixture(scope="module")
def spread(book, tmp_path_factory):
    path = tmp_path_factory.mktemp("spread") / "run"
    start(settings(book, path, **ROWS)).train()
    return path


def digest(run):
    return CheckpointStore(run / "checkpoints").digest()


def resolved(run):
    return json.loads((run / "config.json").read_text())["resolved"]


def test_what_the_rule_gives_is_written_down(spread, book, tmp_path):
    assert resolved(spread)["devices"] == 2
    alone = tmp_path / "alone"
    start(settings(book, alone, **ROWS, devices=1))
    assert resolved(alone)["devices"] == 1
    few = tmp_path / "few"
    start(settings(book, few, **{**ROWS, "batch_size": 14}))
    assert resolved(few)["devices"] == 1


def test_two_devices_learn_what_one_learns(spread, book, tmp_path):
    alone = tmp_path / "alone"
    start(settings(book, alone, **ROWS, devices=1)).train()
    losses = [[row["val_loss"] for row in MetricsLog(run / "metrics.jsonl").read()] for run in (spread, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
def test_every_function_of_a_spread_run_is_compiled_once(book, tmp_path, caplog):
    """Arrays that begin on one device and come back on two would compile it a second time."""
    trainer = start(settings(book, tmp_path / "run", **{**ROWS, "hidden": 9, "sample_every": 6}))
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        trainer.train()
    names = [record.getMessage().split()[1] for record in caplog.records if record.msg.startswith("Compiling")]
    expected = ["jit(decode)", "jit(eval_step)", "jit(prefill)", "jit(sharded_train_steps)"]
    assert sorted(name for name in names if name in expected) == expected


def test_a_spread_run_reports_on_its_best_checkpoint(book, tmp_path, monkeypatch):
    metrics = RunTrainer._metrics

    def worse_with_time(self, params, final):
        found = metrics(self, params, final)
        return found if final else {**found, "val_loss": found["val_loss"] + float(self.state.step)}

    monkeypatch.setattr(RunTrainer, "_metrics", worse_with_time)
    run = tmp_path / "run"
    finished = start(settings(book, run, **{**ROWS, "eval_every": 4})).train()
    assert (finished.best_step, finished.step) == (4, 12)
    rows = {row["step"]: row["val_loss"] for row in MetricsLog(run / "metrics.jsonl").read()}
    np.testing.assert_allclose(finished.report["val_loss"], rows[4] - 4, rtol=1e-5)


def test_a_run_on_two_devices_goes_on_bit_for_bit(spread, book, tmp_path):
    run = tmp_path / "run"
    first = settings(book, run, **{**ROWS, "steps": 6})
    start(first).train()
    resume(str(run), first.model_copy(update={"steps": 12})).train()
    assert digest(run) == digest(spread)


def test_a_run_of_two_devices_is_sampled_from_on_one(spread):
    sampler = Sampler.load(spread)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(sampler.weights) if isinstance(leaf, jax.Array))
    assert len(sampler.sample("The ")) == 1


def test_more_devices_than_there_are_is_an_error_that_says_how_many(book, tmp_path):
    with pytest.raises(UsageError, match="--devices 3"):
        start(settings(book, tmp_path / "run", **{**ROWS, "batch_size": 24}, devices=3))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_out_evenly_is_an_error(book, tmp_path):
    with pytest.raises(UsageError, match="--devices 2"):
        start(settings(book, tmp_path / "run", **{**ROWS, "batch_size": 15}, devices=2))


def test_a_run_recorded_with_more_devices_says_what_it_needs(spread, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(spread / name, run)
    edit(run, "resolved", "devices", value=4)
    with pytest.raises(UsageError, match="JAX_NUM_CPU_DEVICES=4"):
        resume(str(run))


def test_devices_may_not_change_in_the_middle_of_a_run(spread, book):
    with pytest.raises(UsageError, match="--devices"):
        resume(str(spread), settings(book, spread, **ROWS, devices=1))


def test_a_function_spread_over_devices_waits_for_the_one_before():
    """Two in flight on the devices of one CPU can wait for each other's threads for ever."""
    happened = []

    class Output:
        def __init__(self, name):
            self.name = name

        def block_until_ready(self):
            happened.append(f"{self.name} is ready")
            if self.name == "b":
                raise RuntimeError("b failed, and that is not c's fault")
            return self

    def function(name):
        happened.append(f"{name} starts")
        return None, Output(name)

    call = one_at_a_time(function)
    call("a"), one_at_a_time(function)("b"), call("c")
    assert happened == ["a starts", "a is ready", "b starts", "b is ready", "c starts"]
    call("")
