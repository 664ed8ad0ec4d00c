"""Receipts: a sample can be regenerated from its receipt, and a difference is located."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxgen.errors import DataError
from jaxgen.inference.adaptation import Adaptation
from jaxgen.inference.beam_search import BeamConfig, beam
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.receipts import AdaptedTo, StateFile, StateOrigin, beam_receipt, read_receipt, receipt
from jaxgen.inference.receipts import replay as replay_receipt
from jaxgen.inference.sampler import Sampler
from jaxgen.sampling.transforms import Bias, NoRepeatNgram, TopP

SETTINGS = GenerationConfig(50, 1.1, 9, transforms=(NoRepeatNgram(3), TopP(0.95)), stop=("ab",), block=3)


def written(sampler, settings=SETTINGS, prompt="abc", number=4, **more):
    """The receipts of some samples, as read from a file."""
    samples = sampler.samples(prompt, settings, num_samples=number, **more)
    made = [receipt(sampler, settings, sample, prompt=prompt, unk="error") for sample in samples]
    return [json.loads(json.dumps(each)) for each in made]


def replay(sampler, value, where="the receipt"):
    """The replay of a receipt as it is read from a file."""
    return replay_receipt(sampler, read_receipt(value, where), where)


@pytest.fixture(scope="module")
def receipts(tiny):
    return written(tiny)


@pytest.mark.parametrize("index", range(4))
def test_a_replayed_sample_is_identical(tiny, receipts, index):
    result = replay(tiny, receipts[index])
    assert (result.index, result.first_divergence, result.tokens) == (index, None, len(receipts[index]["tokens"]))
    assert result.max_logp_diff < 1e-5


@pytest.mark.parametrize("settings", [replace(SETTINGS, temperature=0), GenerationConfig(40, (2.0, 0.5), 1)])
def test_greedy_and_scheduled_samples_are_identical_too(tiny, settings):
    assert all(replay(tiny, each).first_divergence is None for each in written(tiny, settings, number=2))


def test_an_altered_token_is_found_with_the_gap_by_which_the_other_won(tiny, receipts):
    tokens = list(receipts[1]["tokens"])
    was, tokens[4] = tokens[4], next(i for i in range(3, 9) if i != tokens[4])
    result = replay(tiny, receipts[1] | {"tokens": tokens})
    assert (result.first_divergence, result.recorded, result.regenerated) == (4, tokens[4], was)
    assert result.margin > 0


def test_the_gap_is_that_of_the_numbers_that_were_compared(tiny):
    greedy = written(tiny, GenerationConfig(5, 0), number=1)[0]
    state = tiny.read("abc")
    for token in greedy["tokens"][:3]:
        state, _ = tiny.step(state, token)
    other = int(np.argsort(np.asarray(state.logits[0])[3:])[-2]) + 3
    expected = float(state.logits[0].max() - state.logits[0, other])
    greedy["tokens"][3] = other
    np.testing.assert_allclose(replay(tiny, greedy).margin, expected, rtol=1e-5)


def test_other_weights_differ_and_say_how_far_they_are(tiny, receipts):
    other = Sampler(tiny.task, tiny.tokenizer, jax.tree.map(lambda a: a * 1.5, tiny.weights.params))
    results = [replay(other, each) for each in receipts]
    assert any(result.first_divergence is not None for result in results)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"text": "HELLO"}, "text"), ({"end": "eos"}, "end"), ({"seed": 99}, "seed"), ({"logp": 0.0}, "logp")],
)
def test_what_was_altered_beside_the_tokens_is_named(tiny, receipts, change, named):
    value = receipts[1]
    if named == "logp":
        change = {"logp": [0.0] * len(value["tokens"])}
    result = replay(tiny, value | change)
    assert (result.first_divergence, result.tampered_fields, result.identical) == (None, (named,), False)


def test_a_sample_behind_a_state_is_replayed_from_its_file(tiny, tmp_path):
    path = tmp_path / "s.npz"
    tiny.save_state(path, tiny.read("hgf"))
    (sample,) = tiny.samples("ab", SETTINGS, state=tiny.load_state(path))
    value = receipt(tiny, SETTINGS, sample, prompt="ab", unk="error", origin=StateOrigin(state=StateFile.of(str(path))))
    assert replay(tiny, value).identical
    assert replay(tiny, value | {"state": None}).first_divergence is not None
    tiny.save_state(path, tiny.read("hgg"))
    with pytest.raises(DataError, match="missing"):
        replay(tiny, value)


def test_a_sample_behind_a_text_that_was_adapted_to_is_replayed_from_its_file(tiny, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh \n" * 5)
    adapted = AdaptedTo.of(str(path), Adaptation(rate=0.05, segment=8), "error")
    tiny.save_state(tmp_path / "s", tiny.read("hgf"))
    origin = StateOrigin(state=StateFile.of(str(tmp_path / "s")), adapted_to=adapted)
    state = adapted.adapt(tiny, tiny.load_state(tmp_path / "s"))
    (sample,) = tiny.samples("ab", SETTINGS, state=state)
    value = json.loads(json.dumps(receipt(tiny, SETTINGS, sample, prompt="ab", unk="error", origin=origin)))
    assert replay(tiny, value).identical
    assert replay(tiny, value | {"adapted_to": value["adapted_to"] | {"rate": 0.0}}).first_divergence is not None
    path.write_text("abcdefgh \n" * 6)
    with pytest.raises(DataError, match="changed"):
        replay(tiny, value)


def test_unknown_characters_are_treated_as_they_were(tiny):
    (sample,) = tiny.samples("aΩb", SETTINGS, unk="skip")
    assert replay(tiny, receipt(tiny, SETTINGS, sample, prompt="aΩb", unk="skip")).identical


def test_the_gap_of_a_drawn_token_is_that_of_the_perturbed_logits(tiny):
    settings = GenerationConfig(6, 0.7, 12, block=2)
    value = written(tiny, settings, number=4)[3]
    state = tiny.read("abc")
    for token in value["tokens"][:4]:
        state, _ = tiny.step(state, token)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(12, impl="threefry2x32"), 3), 4)
    noise = jax.random.gumbel(key, state.logits[0].shape, mode="low")
    scores = np.asarray(state.logits[0] / 0.7 + noise)
    was, other = value["tokens"][4], next(i for i in range(3, 9) if i != value["tokens"][4])
    value["tokens"][4] = other
    np.testing.assert_allclose(replay(tiny, value).margin, scores[was] - scores[other], rtol=1e-4)


def test_a_text_of_a_beam_search_is_replayed_too(tiny):
    search = BeamConfig(3, 12, 0.5, 2, (Bias(((4, 1.5),)),))
    found = beam(tiny, "abc", **search._asdict())
    fixed = {"prompt": "abc", "unk": "error", "origin": StateOrigin()}
    values = [json.loads(json.dumps(beam_receipt(tiny, search, i + 1, each, **fixed))) for i, each in enumerate(found)]
    assert [replay(tiny, value).identical for value in values] == [True, True]
    assert replay(tiny, values[0] | {"rank": 2}).first_divergence is not None
    assert replay(tiny, values[0] | {"total_logp": -1.0}).tampered_fields == ("total_logp",)
    with pytest.raises(DataError, match="number 3"):
        replay(tiny, values[0] | {"rank": 3})


def test_a_text_that_ended_elsewhere_differs_at_its_end(tiny, receipts):
    longest = max(receipts, key=lambda each: len(each["tokens"]))
    shorter = longest | {"tokens": longest["tokens"][:-1], "logp": longest["logp"][:-1]}
    result = replay(tiny, shorter)
    assert (result.first_divergence, result.recorded, result.regenerated) == (
        len(shorter["tokens"]),
        None,
        longest["tokens"][-1],
    )


def test_what_the_clock_ended_is_compared_up_to_there(tiny, receipts):
    cut = receipts[2] | {"tokens": receipts[2]["tokens"][:3], "logp": receipts[2]["logp"][:3], "end": "time"}
    assert replay(tiny, cut).first_divergence is None


@pytest.mark.parametrize(
    "change",
    [
        {"receipt": 99},
        {"tokens": "abc"},
        {"tokens": [1]},
        {"tokens": None, "logp": None},
        {"tokens": None},
        {"tokens": 5},
        {"tokens": True},
        {"logp": [["x"]], "tokens": [1]},
        {"settings": {}},
        {"settings": None},
        {"state": "x"},
        {"state": {"file": "/nonexistent", "sha256": "0"}},
        {"index": "first"},
        {"index": -1},
        {"index": True},
        {"prompt": None},
        {"text": None},
        {"tokens": [5000], "logp": [0.0]},
        {"tokens": [10**30], "logp": [0.0]},
        {"tokens": [3.5], "logp": [0.0]},
        {"tokens": [-5], "logp": [0.0]},
        {"tokens": [3], "logp": [10**400]},
        {"unk": "drop"},
        {"settings": {**SETTINGS.to_json(), "temperature": 10**400}},
        {"settings": {**SETTINGS.to_json(), "max_seconds": "long"}},
        {"settings": {**SETTINGS.to_json(), "transforms": [{"name": "bias", "options": {"biases": [[1, 2, 3]]}}]}},
        {"settings": {**SETTINGS.to_json(), "transforms": [{"name": "bias", "options": {"biases": [["a", 2]]}}]}},
        *(
            {"settings": {**SETTINGS.to_json(), "transforms": [{"name": name, "options": {}}]}}
            for name in (5, None, True, [], {})
        ),
        {"beam": {"width": 2, "transforms": [{"name": 5, "options": {}}]}, "rank": 1, "total_logp": 0.0},
        {"beam": {"width": 2, "transforms": [], "more": 1}, "rank": 1, "total_logp": 0.0},
        {"beam": 5},
    ],
)
def test_what_is_no_receipt_is_refused(tiny, receipts, change):
    with pytest.raises(DataError, match="line 7"):
        replay(tiny, receipts[0] | change, "line 7")


@pytest.mark.parametrize("name", ["tokens", "logp", "settings", "end", "state", "unk", "checkpoint"])
def test_a_receipt_that_lacks_a_part_is_refused_by_its_name(tiny, receipts, name):
    with pytest.raises(DataError, match=name):
        replay(tiny, {key: value for key, value in receipts[0].items() if key != name})


def test_what_is_not_even_an_object_is_refused(tiny):
    for value in (None, [], "text", 3):
        with pytest.raises(DataError):
            replay(tiny, value)
