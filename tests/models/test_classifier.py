"""The classifier: poolings and logits computed by hand, independence of padding and other rows, dropout."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import Elman
from jaxgen.errors import UsageError
from jaxgen.models import Classifier
from jaxgen.models.classifier import POOLINGS

B, S, H, V, C = 4, 6, 5, 11, 3
COUNTS = [6, 3, 1, 0]
VALID = np.arange(S)[None, :] < np.array(COUNTS)[:, None]
FAST = {"xla_backend_optimization_level": 0}
TOKENS = np.random.default_rng(1).integers(0, V, (B, S)).astype(np.int32)


def setup(cell=Elman, **options):
    """A classifier and random parameters."""
    model = Classifier(V, C, cell, H, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, VALID)["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


def compiled(model):
    return jax.jit(lambda p, t, v, k=None: model.apply({"params": p}, t, v, k), compiler_options=FAST)


def row_keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


# Pooling


def pooled_by_hand(name, outputs, count, directions):
    """One row, in NumPy: outputs [S, M], of which ``count`` are of tokens."""
    there = outputs[:count]
    if count == 0:
        return np.zeros(outputs.shape[-1])
    if name == "last":
        half = outputs.shape[-1] // directions
        return np.concatenate([there[-1, :half], there[0, half:]]) if directions == 2 else there[-1]
    return there.max(axis=0) if name == "max" else there.mean(axis=0)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_that_by_hand(name, directions):
    outputs = np.random.default_rng(0).normal(size=(B, S, 4)).astype(np.float32) - 3  # the largest are negative
    outputs *= VALID[:, :, None]  # as an encoder gives them
    got = POOLINGS[name](jnp.asarray(outputs), jnp.asarray(VALID), directions)
    by_hand = [pooled_by_hand(name, row, count, directions) for row, count in zip(outputs, COUNTS)]
    np.testing.assert_allclose(got, by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", ["max", "mean"])
def test_what_outputs_say_in_padding_is_not_pooled(name):
    outputs = np.random.default_rng(0).normal(size=(B, S, 4)).astype(np.float32)
    pair = (POOLINGS[name](jnp.where(VALID[:, :, None], outputs, junk), VALID, 1) for junk in (0.0, jnp.inf))
    np.testing.assert_array_equal(*pair)


def test_a_gradient_goes_through_the_largest_output_alone():
    outputs = np.random.default_rng(0).normal(size=(1, S, 4)).astype(np.float32)
    gradient = jax.grad(lambda x: POOLINGS["max"](x, VALID[:1], 1).sum())(outputs)[0]
    np.testing.assert_array_equal(gradient, np.arange(S)[:, None] == outputs[0].argmax(axis=0))


# The whole


def by_hand(params, tokens, pooling):
    """An Elman network read from both ends, pooled, and the linear layer, of one text in NumPy."""
    p = jax.tree.map(np.float64, params)
    sides = []
    for name, order in (("forwards_0", 1), ("backwards_0", -1)):
        cell, h, outputs = p["encoder"][name], np.zeros(H), []
        for token in tokens[::order]:
            x = p["encoder"]["embedding"]["embedding"][token] @ cell["input"]["kernel"] + cell["input"]["bias"]
            h = np.tanh(x + h @ cell["recurrent_kernel"])
            outputs.append(h)
        sides.append(outputs[::order])
    outputs = np.concatenate([np.reshape(side, (len(tokens), H)) for side in sides], axis=-1)
    return pooled_by_hand(pooling, outputs, len(tokens), 2) @ p["output"]["kernel"] + p["output"]["bias"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_are_those_by_hand(pooling):
    model, params = setup(bidirectional=True, pooling=pooling)
    got = compiled(model)(params, TOKENS, VALID)
    expected = [by_hand(params, row[:count], pooling) for row, count in zip(TOKENS, COUNTS)]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.dtype == np.float32


@pytest.fixture(scope="module", params=POOLINGS)
def reading(request):
    """A classifier of two layers, its parameters, and its logits with their gradient, compiled once."""
    model, params = setup(Elman, layers=2, bidirectional=True, pooling=request.param)

    def loss(params, tokens, valid):
        logits = model.apply({"params": params}, tokens, valid)
        return jnp.sum(jnp.sin(logits)), logits

    return params, jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)


def test_what_stands_in_padding_changes_no_bit_of_logits_and_gradients(reading):
    params, run = reading
    pair = (run(params, np.where(VALID, TOKENS, junk).astype(np.int32), VALID) for junk in (0, V - 1))
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_how_much_padding_there_is_changes_rounding_alone(reading):
    params, run = reading
    valid = VALID[:, :4] & (np.arange(4) < 3)
    (_, short), short_gradient = run(params, TOKENS[:, :4], valid)
    (_, long), long_gradient = run(params, TOKENS, np.pad(valid, [(0, 0), (0, 2)]))
    np.testing.assert_allclose(long, short, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), long_gradient, short_gradient)


def test_no_row_sees_another(reading):
    params, run = reading
    other = np.concatenate([TOKENS[:1], (TOKENS[1:] + 1) % V])
    (_, a), (_, b) = (run(params, tokens, VALID)[0] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[3], b[3])  # which reads nothing
    assert np.any(a[1] != b[1])


def test_a_text_without_a_token_gets_what_the_last_layer_says_without_input(reading):
    params, run = reading
    (_, logits), _ = run(params, TOKENS, VALID)
    np.testing.assert_allclose(logits[3], params["output"]["bias"], atol=1e-6)


def test_any_cell_of_flax_can_be_used():
    model, params = setup(nn.GRUCell, bidirectional=True)
    assert compiled(model)(params, TOKENS, VALID).shape == (B, C)


# Dropout


@pytest.mark.parametrize("pooling", POOLINGS)
def test_dropout_acts_on_the_pooled_vector_and_not_on_what_is_pooled(pooling):
    """A unit of it is dropped or scaled: outputs dropped before would leave other largest and mean values."""
    model, params = setup(dropout=0.5, pooling=pooling)
    params["output"] = {"kernel": np.eye(H, C, dtype=np.float32), "bias": np.zeros(C, np.float32)}
    run = compiled(model)
    plain, dropped = run(params, TOKENS, VALID), run(params, TOKENS, VALID, row_keys(1, 2, 3, 4))
    kept = dropped[:3] != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(dropped[:3], np.where(kept, 2 * plain[:3], 0), rtol=1e-5)


def unknown_shares(rate, seeds):
    """Which tokens of texts are unknown in training: an embedding and a cell that pass on what is read as token 7."""
    model = Classifier(V, 2, Elman, 1, embed=1, token_dropout=rate, unknown=7, pooling="mean")
    cell = {"input": {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}, "recurrent_kernel": np.zeros((1, 1))}
    encoder = {"embedding": {"embedding": np.eye(V)[:, 7:8]}, "forwards_0": cell}
    output = {"kernel": np.ones((1, 2)) / np.tanh(1), "bias": np.zeros(2)}
    params = jax.tree.map(np.float32, {"encoder": encoder, "output": output})
    tokens = np.full((len(seeds), 200), 3, np.int32)
    run = jax.jit(lambda k: model.apply({"params": params}, tokens, np.ones_like(tokens, bool), k))
    return np.asarray(run(row_keys(*seeds)))[:, 0]


def test_a_share_of_the_tokens_is_unknown_in_training():
    shares = unknown_shares(0.3, range(20))
    assert abs(shares.mean() - 0.3) < 0.03
    assert len({*shares.round(4)}) > 5, "every text loses others"


def test_which_tokens_a_text_loses_follows_from_its_own_key():
    one, other = unknown_shares(0.3, [1, 2, 3]), unknown_shares(0.3, [3, 1, 5])
    np.testing.assert_allclose([one[0], one[2]], [other[1], other[0]])


def test_nothing_is_dropped_without_keys():
    dropping, params = setup(dropout=0.4, embed_dropout=0.3, token_dropout=0.3)
    whole, _ = setup()
    np.testing.assert_array_equal(*(compiled(model)(params, TOKENS, VALID) for model in (dropping, whole)))


# What is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "sum"}, "'sum'"),
        ({"classes": 1}, "at least 2"),
        ({"token_dropout": 1.0}, "Classifier's `token_dropout` is 1.0"),
        ({"hidden": 0}, "Encoder's `hidden` is 0"),
        ({"form": "fusde"}, "Unknown form 'fusde'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        Classifier(**{"vocab_size": V, "classes": C, **options})
