"""Batches cut from a text on the device equal those of the host, and so does training, bit for bit."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxgen.data.batches import Tokens, make_batches
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS
from jaxgen.trainer import input_pipeline as feed
from jaxgen.trainer.process_group import ProcessGroup
from jaxgen.training.step import create_state, train_steps
from jaxgen.training.windows import DeviceText, HostBatches, Windows

B, T, CALLS = 4, 5, 8
DRAW = np.random.default_rng(0)


def running_text(size=107, vocab=50):
    return Tokens(DRAW.integers(3, vocab, size), None, size, size)


def documents(lengths):
    parts = [np.append(DRAW.integers(3, 50, n), EOS) for n in lengths]
    starts = np.cumsum([0, *(part.size for part in parts[:-1])])
    return Tokens(np.concatenate(parts), starts, 0, 0)


LAYOUTS = {
    "stream": running_text(),
    "windows": running_text(),
    "documents": documents([3, 11, 0, 7, 1, 20, 5, 5, 9, 2, 6]),
}


def taken(source, first, number):
    """The batches of steps first … first + number, as the compiled step would see them."""
    step = first
    while step < first + number:
        count = min(source.steps_in_call(step), first + number - step)
        given = source.next(step, count)
        yield from (jax.jit(source.read)(given, i) for i in range(count))
        step += count


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.skipif("jax.local_device_count() < 2"))])
@pytest.mark.parametrize(
    ("layout", "more"),
    [
        *((layout, {}) for layout in LAYOUTS),
        ("stream", {"cold_starts": 0.4}),
        ("stream", {"spread": 1, "warmup": 4}),
        ("windows", {"warmup": 7}),
    ],
)
def test_the_device_reads_what_the_host_reads(layout, more, devices):
    batches = make_batches(layout, LAYOUTS[layout], B, T, seed=3, **more)
    source = feed.InputPipeline(batches, CALLS, devices, B, ProcessGroup())
    assert isinstance(source.read, DeviceText)
    number = 3 * batches.steps_per_epoch + 1
    for step, got in enumerate(taken(source, 2, number), 2):
        for name, field, wanted in zip(got._fields, got, batches.batch(step)):
            np.testing.assert_array_equal(field, wanted, err_msg=f"{name} at step {step}")
            assert field.dtype == wanted.dtype


def test_a_text_is_held_once_in_the_smallest_type_that_holds_its_ids():
    for vocab, kind in ((50, "uint8"), (300, "uint16"), (70_000, "uint32")):
        ids = np.append(np.full(99, 5), vocab - 1)
        source = feed.InputPipeline(
            make_batches("stream", Tokens(ids, None, 0, 0), B, T, seed=0), CALLS, 1, B, ProcessGroup()
        )
        first, second = source.next(0, CALLS), source.next(CALLS, CALLS)
        assert isinstance(first, Windows)
        assert first.text is second.text
        assert first.text.dtype == kind


def test_a_call_ends_where_documents_are_shuffled_anew():
    batches = make_batches("documents", LAYOUTS["documents"], B, T, seed=3)
    source = feed.InputPipeline(batches, 100, 1, B, ProcessGroup())
    assert batches.steps_per_epoch > 2
    assert [source.steps_in_call(step) for step in (0, 1, batches.steps_per_epoch)] == [
        batches.steps_per_epoch,
        batches.steps_per_epoch - 1,
        batches.steps_per_epoch,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "more"), [("documents", {}), ("stream", {"warmup": 9}), ("stream", {"spread": 1})])
def test_a_text_too_long_for_the_device_trains_to_the_same_bits(layout, more, monkeypatch):
    batches = make_batches(layout, LAYOUTS[layout], B, T, seed=3, **more)
    task = LanguageTask.build(vocab_size=50, cell="elman", cell_options={}, hidden=4, dropout=0.2)
    optimizer, key = optax.sgd(0.1), jax.random.key(0)
    ends = []
    for most, kind in ((feed.MAX_DEVICE_TEXT_BYTES, DeviceText), (0, HostBatches)):
        monkeypatch.setattr(feed, "MAX_DEVICE_TEXT_BYTES", most)
        source = feed.InputPipeline(batches, CALLS, 1, B, ProcessGroup())
        assert isinstance(source.read, kind)
        state = jax.jit(partial(create_state, task, optimizer, rows=B))(key)
        steps, count = jax.jit(partial(train_steps, task, optimizer, read=source.read)), source.steps_in_call(0)
        ends.append(steps(key, state, source.next(0, min(count, 3)), min(count, 3)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
