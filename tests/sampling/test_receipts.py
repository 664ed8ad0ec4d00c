"""Receipts: what was drawn can be drawn again, and a difference is found where it is."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxgen.errors import DataError
from jaxgen.run import Sampler, Settings
from jaxgen.run.receipts import receipt, replay
from jaxgen.sampling.transforms import NoRepeatNgram, TopP

SETTINGS = Settings(50, 1.1, 9, transforms=(NoRepeatNgram(3), TopP(0.95)), stop=("ab",), block=3)


def written(sampler, settings=SETTINGS, prompt="abc", number=4, **more):
    """The receipts of some samples, as read from a file."""
    samples = sampler.samples(prompt, settings, num_samples=number, **more)
    made = [receipt(sampler, settings, sample, prompt=prompt, unk="error") for sample in samples]
    return [json.loads(json.dumps(each)) for each in made]


@pytest.fixture(scope="module")
def receipts(tiny):
    return written(tiny)


@pytest.mark.parametrize("index", range(4))
def test_a_replayed_sample_is_identical(tiny, receipts, index):
    result = replay(tiny, receipts[index])
    assert (result.index, result.at, result.tokens) == (index, None, len(receipts[index]["tokens"]))
    assert result.drift < 1e-5


@pytest.mark.parametrize("settings", [replace(SETTINGS, temperature=0), Settings(40, (2.0, 0.5), 1)])
def test_greedy_and_scheduled_samples_are_identical_too(tiny, settings):
    assert all(replay(tiny, each).at is None for each in written(tiny, settings, number=2))


def test_an_altered_token_is_found_with_the_gap_by_which_the_other_won(tiny, receipts):
    tokens = list(receipts[1]["tokens"])
    was, tokens[4] = tokens[4], next(i for i in range(3, 9) if i != tokens[4])
    result = replay(tiny, receipts[1] | {"tokens": tokens})
    assert (result.at, result.was, result.now) == (4, tokens[4], was)
    assert result.gap > 0


def test_the_gap_is_that_of_the_numbers_that_were_compared(tiny):
    greedy = written(tiny, Settings(5, 0), number=1)[0]
    state = tiny.read("abc")
    for token in greedy["tokens"][:3]:
        state, _ = tiny.step(state, token)
    other = int(np.argsort(np.asarray(state.logits[0])[3:])[-2]) + 3
    expected = float(state.logits[0].max() - state.logits[0, other])
    greedy["tokens"][3] = other
    np.testing.assert_allclose(replay(tiny, greedy).gap, expected, rtol=1e-5)


def test_other_weights_differ_and_say_how_far_they_are(tiny, receipts):
    other = Sampler(tiny.task, tiny.tokenizer, jax.tree.map(lambda a: a * 1.5, tiny.weights.params))
    results = [replay(other, each) for each in receipts]
    assert any(result.at is not None for result in results)


def test_a_text_that_ended_elsewhere_differs_at_its_end(tiny, receipts):
    longest = max(receipts, key=lambda each: len(each["tokens"]))
    shorter = longest | {"tokens": longest["tokens"][:-1], "logp": longest["logp"][:-1]}
    result = replay(tiny, shorter)
    assert (result.at, result.was, result.now) == (len(shorter["tokens"]), None, longest["tokens"][-1])


def test_what_the_clock_ended_is_compared_up_to_there(tiny, receipts):
    cut = receipts[2] | {"tokens": receipts[2]["tokens"][:3], "logp": receipts[2]["logp"][:3], "end": "time"}
    assert replay(tiny, cut).at is None


@pytest.mark.parametrize(
    "change",
    [
        {"receipt": 99},
        {"tokens": "abc"},
        {"tokens": [1]},
        {"tokens": None, "logp": None},
        {"logp": [["x"]], "tokens": [1]},
        {"settings": {}},
        {"settings": None},
        {"state": "x"},
        {"state": {"file": "/nonexistent", "sha256": "0"}},
        {"index": "first"},
        {"prompt": None},
    ],
)
def test_what_is_no_receipt_is_refused(tiny, receipts, change):
    with pytest.raises(DataError, match="line 7"):
        replay(tiny, receipts[0] | change, "line 7")


def test_what_is_not_even_an_object_is_refused(tiny):
    for value in (None, [], "text", 3):
        with pytest.raises(DataError):
            replay(tiny, value)
