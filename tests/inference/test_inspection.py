"""The arrays of an inspection are those of the cells, step by step; units can be held; states can be interpolated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxgen
from jaxgen import GenerationConfig, LanguageTask, Sampler, Scorer, UsageError
from jaxgen.cells import CELLS
from jaxgen.inference.inspection import clamped, inspect_text
from jaxgen.inference.interpolation import interpolate_prompts
from jaxgen.models.blocks import BLOCKS
from jaxgen.tokenizers import ByteTokenizer, CharTokenizer

TEXT = "fab dig\nhe bad egg a beef\ncab"
TOKENIZER = CharTokenizer.train(["abcdefghi \n"])


def sampler_of(cell: str, layers: int = 2, tokenizer=TOKENIZER, **options) -> Sampler:
    """A model with weights large enough that what was read matters."""
    options = {"cell": cell, "cell_options": {}, "hidden": 8, "layers": layers, **options}
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, **options)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * normal(size=a.shape), a.dtype), shapes)
    return Sampler(task, tokenizer, params)


def by_hand(sampler: Sampler) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """States of layers of plain cells and log-probabilities after each token, from calls of the cells alone."""
    params = jax.tree.map(np.asarray, sampler.params)
    ids = [*sampler.prompt_ids(""), *sampler.tokenizer.encode(TEXT)]
    cells = sampler.task.model.make_layers()
    steps = [jax.jit(lambda p, c, x, cell=cell: cell.apply({"params": p}, c, x)) for cell in cells]
    carries = [cell.initialize_carry(jax.random.key(0), (1, 8)) for cell in cells]
    states, logp = [], []
    for token in ids:
        x = params["embedding"][token][None]
        for layer, step in enumerate(steps):
            carries[layer], x = step(params["stack"][f"cells_{layer}"], carries[layer], x)
        logits = np.asarray(x) @ params["output"]["kernel"] + params["output"]["bias"]
        states.append([cell.state_arrays(carry) for cell, carry in zip(cells, carries)])
        logp.append(logits[0] - np.log(np.exp(logits[0]).sum()))
    layers = range(len(cells))
    arrays = [{k: np.stack([np.ravel(s[i][k]) for s in states]) for k in states[0][i]} for i in layers]
    return arrays, np.stack(logp)


@pytest.mark.parametrize("cell", CELLS)
def test_states_and_probabilities_are_those_of_the_cell_step_by_step(cell):
    sampler = sampler_of(cell)
    seen = inspect_text(sampler, TEXT)
    states, logp = by_hand(sampler)
    assert seen.text == TEXT
    for found, expected in zip(seen.states, states):
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name][1:], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.log(seen.probabilities), logp[1:], rtol=1e-3, atol=1e-4)
    both = [np.concatenate([*layer.values()], axis=1) for layer in states]
    moved = [np.linalg.norm(np.diff(layer, axis=0), axis=1) for layer in both]
    np.testing.assert_allclose(seen.distance, np.stack(moved, axis=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cell", ["elman", "gla", "gru", "lru", "slstm"])
@pytest.mark.parametrize("block", [name for name in BLOCKS if name != "plain"])
def test_every_block_shows_its_cell_and_its_gates(cell, block):
    seen = inspect_text(sampler_of(cell, block=block), TEXT)
    unbound = CELLS[cell](features=8)
    names = [*unbound.state_arrays(unbound.initialize_carry(jax.random.key(0), (1, 8)))]
    assert [*seen.states[1]] == [*names, "conv"]
    for name, gate in seen.gates[1].items():
        assert ((gate >= 0) & (gate <= 1)).all(), name
        assert gate.std() > 0 or cell == "lru"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_surprise_is_what_the_scorer_gives(cell):
    sampler = sampler_of(cell)
    seen, scored = inspect_text(sampler, TEXT), Scorer(sampler).per_token(TEXT)
    np.testing.assert_array_equal(seen.tokens, scored.tokens)
    np.testing.assert_allclose(seen.surprise, scored.logp / -np.log(2), rtol=1e-4, atol=1e-4)
    following = np.log2(seen.probabilities[np.arange(len(TEXT) - 1), seen.tokens[1:]])
    np.testing.assert_allclose(seen.surprise[1:], -following, rtol=1e-4, atol=1e-4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_gates_are_those_of_the_equations():
    lstm, gru = sampler_of("lstm", layers=1), sampler_of("gru", layers=1)
    for sampler, gates in ((lstm, "ifo"), (gru, "rz")):
        params = jax.tree.map(np.asarray, sampler.params)
        seen, cell = inspect_text(sampler, TEXT), params["stack"]["cells_0"]
        x = params["embedding"][seen.tokens[1:]] @ cell["input"]["kernel"] + cell["input"]["bias"]
        a = x + seen.states[0]["h"][:-1] @ cell["recurrent_kernel"]
        parts = dict(zip("ifgo" if gates == "ifo" else "rzn", np.split(a, a.shape[1] // 8, axis=1)))
        assert "".join(seen.gates[0]) == gates
        for name in gates:
            np.testing.assert_allclose(seen.gates[0][name][1:], sigmoid(parts[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", ["gru", "lru", "qrnn", "slstm"])
def test_a_unit_that_is_held_keeps_its_value_at_every_token(cell):
    sampler = sampler_of(cell)
    array = [*inspect_text(sampler, TEXT).states[0]][-1]
    other = clamped(sampler, {f"0:{array}:5": 0.75, f"1:{array}:2": -0.5})
    seen, before = inspect_text(other, TEXT), inspect_text(sampler, TEXT)
    assert (seen.unit(f"0:{array}:5").values == 0.75).all()
    assert (seen.unit(f"1:{array}:2").values == -0.5).all()
    assert np.abs(seen.probabilities - before.probabilities).max() > 0.01


def test_a_held_gru_is_the_gru_of_the_equations_with_that_unit_replaced():
    sampler = sampler_of("gru", layers=1)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), sampler.params)
    cell, h = params["stack"]["cells_0"], np.zeros(8)
    seen = inspect_text(clamped(sampler, {"0:h:5": 0.75}), TEXT)
    for t, token in enumerate([*sampler.prompt_ids(""), *seen.tokens]):
        x = params["embedding"][token] @ cell["input"]["kernel"] + cell["input"]["bias"]
        u = h @ cell["recurrent_kernel"]
        r, z = sigmoid(x[:8] + u[:8]), sigmoid(x[8:16] + u[8:16])
        n = np.tanh(x[16:] + r * (u[16:] + cell["recurrent_bias"]))
        h = (1 - z) * n + z * h
        h[5] = 0.75
        logits = h @ params["output"]["kernel"] + params["output"]["bias"]
        if t:
            np.testing.assert_allclose(seen.states[0]["h"][t - 1], h, atol=1e-5)
            chances = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(seen.probabilities[t - 1], chances, atol=1e-5)


def test_a_unit_inside_a_block_can_be_held_and_its_convolution_not():
    sampler = sampler_of("lstm", block="griffin", block_options={})
    assert (inspect_text(clamped(sampler, {"1:c:3": 2.0}), TEXT).unit("1:c:3").values == 2.0).all()
    with pytest.raises(UsageError, match="conv"):
        clamped(sampler, {"1:conv:3": 2.0})


@pytest.mark.parametrize("values", [{"9:0": 1.0}, {"0:h:8": 1.0}, {"0:h:0": np.nan}, {"0:h:0": 1e39}, {"0:f:0": 1.0}])
def test_a_unit_that_cannot_be_held_is_refused(values):
    with pytest.raises(UsageError):
        clamped(sampler_of("lstm"), values)


def test_flax_cells_have_states_and_no_gates():
    task = LanguageTask(jaxgen.LanguageModel(TOKENIZER.vocab_size, nn.LSTMCell, hidden=8))
    sampler = Sampler(task, TOKENIZER, task.init(jax.random.key(0)))
    seen = inspect_text(sampler, TEXT)
    assert ({*seen.states[0]}, seen.gates) == ({"0", "1"}, [{}])
    np.testing.assert_allclose(seen.surprise, Scorer(sampler).per_token(TEXT).logp / -np.log(2), atol=1e-4)
    with pytest.raises(UsageError, match="held"):
        clamped(sampler, {"0:0:1": 1.0})


def test_a_character_of_several_tokens_is_that_of_the_last():
    seen = inspect_text(sampler_of("gru", layers=1, tokenizer=ByteTokenizer()), "aé b", probabilities=False)
    assert seen.texts == ["a", "", "é", " ", "b"]
    assert seen.probabilities is None


def test_what_cannot_be_inspected_is_refused():
    sampler = sampler_of("gru")
    for text in ("", "Z"):
        with pytest.raises(UsageError):
            inspect_text(sampler, text)
    assert inspect_text(sampler, "Zab", unk="skip").text == "ab"
    assert inspect_text(sampler, TEXT, most=7).text == TEXT[:7]


def test_the_ends_of_an_interpolation_are_the_texts_after_the_prompts():
    sampler, settings = sampler_of("gru"), GenerationConfig(length=20, seed=4)
    between = interpolate_prompts(sampler, "fab", "egg\n", settings, steps=3)
    assert between.weights == [0, 0.5, 1]
    assert [between.texts[0], between.texts[2]] == sampler.sample("fab", settings) + sampler.sample("egg\n", settings)
    np.testing.assert_allclose(between.probabilities.sum(axis=1), 1, atol=1e-5)
    middle = (sampler.read("fab").logits + sampler.read("egg\n").logits)[0] / 2
    np.testing.assert_allclose(between.probabilities[1], jax.nn.softmax(middle), atol=1e-5)
    assert between.plot().png.startswith(b"\x89PNG")
    assert "weight" in between._repr_html_()
    with pytest.raises(UsageError):
        interpolate_prompts(sampler, "a", "b", settings, steps=1)
