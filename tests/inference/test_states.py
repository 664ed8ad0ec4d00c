"""Decoder states as values: saved, continued, branched, mixed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState, interpolate
from jaxgen.tokenizers import CharTokenizer

SETTINGS = GenerationConfig(length=20, temperature=1.0, seed=5)


def equal(a: DecoderState, b: DecoderState) -> None:
    jax.tree.map(np.testing.assert_array_equal, (a.carry, a.logits, a.tokens), (b.carry, b.logits, b.tokens))


def test_continuing_a_state_is_continuing_its_prompt(tiny):
    assert tiny.sample("", SETTINGS, state=tiny.read("abc"), num_samples=3) == tiny.sample(
        "abc", SETTINGS, num_samples=3
    )


def test_a_state_can_be_branched_without_being_used_up(tiny):
    state = tiny.read("abc")
    branches = [tiny.sample(text, SETTINGS, state=state)[0] for text in ("d", "e", "d")]
    assert branches[0] == branches[2] == tiny.sample("abcd", SETTINGS)[0]
    assert branches[1] == tiny.sample("abce", SETTINGS)[0]


@pytest.mark.runs
def test_blocks_of_any_size_continue_the_same_state(tiny):
    first = [
        tiny.sample("", GenerationConfig(1, 1.0, 5, block=n), state=tiny.read("abc"), num_samples=3) for n in (1, 3, 4)
    ]
    assert first[0] == first[1] == first[2]


def test_a_step_is_what_decoding_does(tiny):
    (sample,) = tiny.samples("abc", SETTINGS)
    state = tiny.read("abc")
    for token in sample.tokens:
        state, logits = tiny.step(state, int(token))
        np.testing.assert_array_equal(logits, state.logits[0])
    assert state.tokens.tolist() == [*tiny.tokenizer.encode("abc"), *sample.tokens]
    more = tiny.sample("", SETTINGS, state=state, num_samples=2)
    assert more == tiny.sample(sample.text, SETTINGS, state=tiny.read("abc"), num_samples=2)


@pytest.mark.parametrize("token", [-1, 99, True, 1.0])
def test_a_step_with_no_token_of_the_vocabulary_is_refused(tiny, token):
    with pytest.raises(UsageError, match="token"):
        tiny.step(tiny.read("a"), token)


def test_a_state_comes_back_from_a_file_bit_for_bit(tiny, tmp_path):
    state = tiny.read("abcab")
    tiny.save_state(tmp_path / "s.safetensors", state)
    again = tiny.load_state(tmp_path / "s.safetensors")
    equal(again, state)
    assert tiny.sample("c", SETTINGS, state=again) == tiny.sample("abcabc", SETTINGS)


def test_a_damaged_file_is_refused(tiny, tmp_path):
    path = tmp_path / "s.safetensors"
    tiny.save_state(path, tiny.read("ab"))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 20)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            tiny.load_state(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        tiny.load_state(path)


def test_a_file_that_is_not_there_or_something_else_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="read"):
        tiny.load_state(tmp_path / "none")
    for content in (b"", b"text", b"PK\x03\x04"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            tiny.load_state(tmp_path / "x")
    np.savez_compressed(tmp_path / "x.npz", leaf0=np.zeros(9))
    with pytest.raises(CheckpointError, match="damaged"):
        tiny.load_state(tmp_path / "x.npz")


def test_the_state_of_another_checkpoint_is_refused(tiny, tmp_path, monkeypatch):
    tiny.save_state(tmp_path / "s.safetensors", tiny.read("ab"))
    monkeypatch.setattr(tiny, "digest", "another")
    with pytest.raises(CheckpointError, match="checkpoint"):
        tiny.load_state(tmp_path / "s.safetensors")


def test_the_state_of_other_weights_that_no_run_has_is_refused(tiny, tmp_path):
    mine = Sampler(tiny.task, tiny.tokenizer, tiny._params)
    mine.save_state(tmp_path / "s", mine.read("ab"))
    equal(Sampler(tiny.task, tiny.tokenizer, tiny._params).load_state(tmp_path / "s"), mine.read("ab"))
    letters = CharTokenizer.train(["hgfedcba \n"[:-3] + "xyz"])
    assert letters.vocab_size == tiny.tokenizer.vocab_size
    others = jax.tree.map(lambda a: a + 1, tiny._params)
    for sampler in (Sampler(tiny.task, tiny.tokenizer, others), Sampler(tiny.task, letters, tiny._params)):
        with pytest.raises(CheckpointError, match="another model"):
            sampler.load_state(tmp_path / "s")


def test_the_state_of_another_model_is_refused(tiny, tmp_path):
    state = tiny.read("ab")
    tiny.save_state(tmp_path / "s.safetensors", DecoderState(state.carry[:1], state.logits, state.tokens))
    with pytest.raises(CheckpointError, match="another model"):
        tiny.load_state(tmp_path / "s.safetensors")


def test_the_ends_of_an_interpolation_are_the_states_themselves(tiny):
    a, b = tiny.read("abc"), tiny.read("hgf")
    equal(interpolate(a, b, 0.0), a)
    equal(interpolate(a, b, 1.0), b)


def test_the_logits_between_two_states_are_those_of_the_state_between(tiny):
    middle = interpolate(tiny.read("abc"), tiny.read("hgf"), 0.25)
    task, params = tiny.task, tiny.weights.params
    expected = task.model.apply({"params": params}, middle.carry[-1], method="logits")
    np.testing.assert_allclose(middle.logits, expected, atol=1e-5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_is_refused(tiny, weight):
    with pytest.raises(UsageError, match="outside"):
        interpolate(tiny.read("a"), tiny.read("b"), weight)
