"""Runs whose windows have random or growing lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import language_config

from jaxgen.data.batches import random_bits
from jaxgen.errors import UsageError
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.callbacks import Note
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.seeds import train_seeds
from jaxgen.trainer.trainer import RunTrainer
from jaxgen.types import Batch

pytestmark = pytest.mark.runs

STEPS, LR = 20, 0.5
VARYING = [
    {"seq_len_spread": 2},
    {"seq_len_warmup": 9},
    {"seq_len_spread": 2, "seq_len_warmup": 7, "cold_starts": 0.0},
]
WHERE = {"one device": {}, "two devices": {"batch_size": 16, "devices": 2}, "accumulated": {"accumulate": 2}}


def settings(book, run, **more):
    plain = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.0}, "weight_decay": 0.0, "clip": 0.0, "lr": LR}
    plain |= {"schedule": "constant", "warmup": 0, "cold_starts": 0.0, "steps": STEPS, "eval_every": 5}
    return language_config(book, run, **{**plain, "sample_every": 0, **more})


def by_hand(trainer: RunTrainer, steps: int) -> dict:
    """The parameters after plain gradient descent in float64 on windows cut here, one after the other."""
    ids, config, task = trainer.data.corpus.train.ids, trainer.config, trainer.task
    n, rows = ids.size, config.batch_size
    lane, per_epoch = n // rows, n // rows // config.seq_len
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)  # noqa: E731
        params, carry, read = wide(trainer.state.params), wide(task.initial_carry(rows)), 0

        @jax.jit
        def gradient(params, carry, batch):
            def mean(params):
                after, totals = task.loss(params, carry, batch)
                return totals.nll / totals.targets, after

            return jax.grad(mean, has_aux=True)(params)

        for step in range(steps):
            epoch, k = divmod(step, per_epoch)
            read = 0 if k == 0 else read
            length = trainer.batches.length_at(step)
            first = int(random_bits(1, config.seed, epoch, "stream")[0]) % n + read + lane * np.arange(rows)
            at = first[:, None] + np.arange(length)
            reset = (at % n == 0) | ((np.arange(length) == 0) & (k == 0))
            tokens, targets = (ids[(at + shift) % n].astype(np.int32) for shift in (0, 1))
            grads, carry = gradient(params, carry, Batch(tokens, targets, reset, at % n != n - 1))
            scale = 1.0 if step < config.seq_len_warmup else length / config.seq_len
            params = jax.tree.map(lambda p, g, scale=scale: p - LR * scale * g, params, grads)
            read += length
        return jax.tree.map(np.asarray, params)


#: Every length on one device, and the last, which is of both kinds, in every place; `pytest -m slow` has the others.
LATER = [pytest.param(where, each, marks=pytest.mark.slow) for each in VARYING[:2] for where in [*WHERE][1:]]


@pytest.mark.parametrize(
    ("where", "varying"),
    [*(("one device", each) for each in VARYING), *((where, VARYING[-1]) for where in [*WHERE][1:]), *LATER],
)
def test_a_run_is_gradient_descent_on_windows_of_these_lengths(varying, where, book, tmp_path):
    if WHERE[where].get("devices", 1) > jax.local_device_count():
        pytest.skip("it needs two devices")
    trainer = start(settings(book, tmp_path / "run", **varying, **WHERE[where]))
    expected = by_hand(trainer, STEPS)
    assert len({trainer.batches.length_at(step) for step in range(STEPS)}) > 2
    trainer.train()
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-6),
        jax.device_get(trainer.state.params),
        expected,
    )


def rows_of(run):
    timings = ("tokens_per_second", "seconds")
    return [{k: v for k, v in row.items() if k not in timings} for row in MetricsLog(run / "metrics.jsonl").read()]


@pytest.mark.parametrize("varying", [VARYING[0], pytest.param(VARYING[1], marks=pytest.mark.slow), VARYING[2]])
def test_a_run_that_was_stopped_and_resumed_is_the_same_bit_for_bit(varying, book, tmp_path):
    more = {**varying, "cell": "gru", "dropout": 0.2, "optimizer": "adamw", "optimizer_options": {}, "lr": 0.01}
    whole = start(settings(book, tmp_path / "whole", **more))
    whole.train()
    for progress in start(settings(book, tmp_path / "parts", **more)):
        if progress.step >= 11:
            break
    parts = resume(tmp_path / "parts")
    assert int(parts.state.step) == 10
    parts.train()
    jax.tree.map(np.testing.assert_array_equal, parts.state, whole.state)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_the_metrics_have_the_learning_rate_of_their_step(book, tmp_path):
    trainer = start(settings(book, tmp_path / "run", seq_len_spread=2, eval_every=1))
    trainer.train()
    found = [row["learning_rate"] for row in rows_of(tmp_path / "run")]
    assert found == pytest.approx([LR * trainer.batches.length_at(step) / 8 for step in range(STEPS)])
    assert len(set(found)) > 2


def test_seeds_with_lengths_of_their_own_are_trained_one_after_the_other(book, tmp_path):
    notes = []
    config = settings(book, tmp_path / "seeds", seq_len_spread=2, steps=5)
    train_seeds(config, [3, 4], lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    assert any("--seq-len-spread" in note for note in notes)
    alone = start(settings(book, tmp_path / "alone", seq_len_spread=2, steps=5, seed=4, devices=1))
    alone.train()
    one = resume(RunDirectory(tmp_path / "seeds" / "seed-4").path)
    jax.tree.map(np.testing.assert_array_equal, one.state.params, alone.state.params)


def test_shorter_windows_are_not_counted_as_whole_ones(book, tmp_path):
    trainer = start(settings(book, tmp_path / "run", seq_len_warmup=STEPS * 2))
    counted = []
    trainer.throughput.completed = lambda units, seconds: counted.append(units)
    trainer.train()
    assert sum(counted) == sum(4 * trainer.batches.length_at(step) for step in range(STEPS))


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"seq_len_spread": 3}, "--seq-len-spread"),
        ({"seq_len_spread": -1}, "--seq-len-spread"),
        ({"seq_len_warmup": -1}, "--seq-len-warmup"),
        ({"seq_len_spread": 2, "layout": "windows"}, "--seq-len-spread"),
        ({"seq_len_warmup": 2, "documents": "line"}, "--seq-len-warmup"),
        ({"seq_len_spread": 2, "model": "ngram"}, "--seq-len-spread"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_there_is_a_run(more, flag, book, tmp_path):
    with pytest.raises(UsageError, match=flag):
        start(DATA["language"].Config(data=(str(book),), run=str(tmp_path / "run"), seq_len=8, batch_size=4, **more))
    assert not (tmp_path / "run").exists()
