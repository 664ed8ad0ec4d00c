"""The decoder: the papers' equations in NumPy, single steps equal the whole sequence, errors."""

from __future__ import annotations

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, Elman
from jaxgen.errors import UsageError
from jaxgen.models import Decoder
from jaxgen.models.layers import dropout

B, T, S, M, H = 3, 4, 5, 6, 7
SMALL, LARGE = 9, 20  # fewer and more tokens than there are in a batch of B * T
VALID = np.arange(S)[None, :] < np.array([5, 2, 1])[:, None]
FAST = {"xla_backend_optimization_level": 0}
NAMES = ["none", "general", "additive"]


@contextlib.contextmanager
def wide(on=True):
    """Float64, where the parameters of Flax's own layers are float32 until they are replaced."""
    with jax.enable_x64(on), jax.numpy_dtype_promotion("standard" if on else "strict"):
        yield


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def whole(decoder, tokens, finals, values, valid, row_keys=None):
    """What a decoder makes of a text from a source: ``DecoderOutput``, and logits."""
    carry, memory = decoder.init_decoder(finals, values, valid)
    written = decoder.decode(tokens, carry, memory, row_keys)
    return written, decoder.logits(written.features)


def sources(dtype=np.float32, widths=((3, 2), (4,))):
    """Final states of two layers (of two arrays, and of one), and general|additive."""
    finals = tuple(tuple(normal(20 + width, B, width, dtype=dtype) for width in layer) for layer in widths)
    return finals, normal(1, B, S, M, dtype=dtype), VALID


def draw(vocab_size=SMALL, shape=(B, T)):
    return np.random.default_rng(4).integers(0, vocab_size, shape).astype(np.int32)


def setup(vocab_size=SMALL, cell=GRU, dtype=np.float32, source=None, **options):
    """A decoder and random parameters, its biases included; nothing is compiled."""
    model = Decoder(vocab_size, cell, H, **options)
    source = sources(dtype) if source is None else source
    init = partial(model.init, method=whole)
    shapes = jax.eval_shape(init, jax.random.key(0), draw(vocab_size), *source)["params"]
    leaves, structure = jax.tree.flatten(shapes)
    return model, jax.tree.unflatten(structure, [0.5 * normal(i, *a.shape, dtype=dtype) for i, a in enumerate(leaves)])


def run(model, params, *inputs, method=whole, **options):
    """Compiled anew for every call."""
    apply = jax.jit(partial(model.apply, method=method), compiler_options=FAST)
    return jax.tree.map(np.asarray, apply({"params": params}, *inputs, **options))


def close(a, b, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), a, b)


# The equations


def attended(params, name, h, values):
    """The context of one row for the state h, and the weights: values [S', M] are those that are there."""
    p, keys = params["attending"], values @ params["attending"]["projection"]["kernel"]
    scores = keys @ h / np.sqrt(h.size) if name == "general" else np.tanh(h @ p["query_kernel"] + keys) @ p["vector"]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return shares @ values, shares


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm(p, carry, x, more):
    """One step; ``more`` is added to the input's part of the pre-activations, in the units in which cells have them:
    a sigmoid is half a tanh of half of what it gets (``jaxgen.cells.lstm.LSTM``)."""
    c, h = carry
    more = more * np.repeat([2, 2, 1, 2], H)
    i, f, g, o = np.split(x @ p["input"]["kernel"] + p["input"]["bias"] + more + h @ p["recurrent_kernel"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def gru(p, h, x, more):
    more = more * np.repeat([2, 2, 1], H)
    xr, xz, xn = np.split(x @ p["input"]["kernel"] + p["input"]["bias"] + more, 3)
    hr, hz, hn = np.split(h @ p["recurrent_kernel"], 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    h = (1 - z) * np.tanh(xn + r * (hn + p["recurrent_bias"])) + z * h
    return h, h


def by_hand(params, kind, name, tokens, finals, values, valid):
    """Features [B, T, H] and weights [B, T, S], row by row and step by step."""
    p, step = params["language"], {"lstm": lstm, "gru": gru}[kind]
    features, weights = np.zeros((B, T, H)), np.zeros((B, T, S))
    for b in range(B):
        there, carry = values[b, valid[b]], []
        for layer, bridge in enumerate((params["bridge_0"], params["bridge_1"])):
            given = np.concatenate([leaf[b] for leaf in finals[layer]])
            state = np.tanh(given @ bridge["kernel"] + bridge["bias"])
            carry.append((state[:H], state[H:]) if kind == "lstm" else state)
        for t in range(T):
            x = p["embedding"][tokens[b, t]]
            for layer in range(2):
                more = 0.0
                if layer == 0 and name == "additive":
                    before = carry[0][1] if kind == "lstm" else carry[0]
                    context, weights[b, t, valid[b]] = attended(params, name, before, there)
                    more = context @ params["context_kernel"]["kernel"]
                carry[layer], x = step(p["stack"][f"cells_{layer}"], carry[layer], x, more)
            if name == "general":
                context, weights[b, t, valid[b]] = attended(params, name, x, there)
            if name == "none":
                features[b, t] = x
            else:
                both = np.concatenate([context, x])
                features[b, t] = np.tanh(both @ params["combine"]["kernel"] + params["combine"]["bias"])
    return features, weights


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(  # with a token table, and without
    ("kind", "cell", "vocab_size"), [("lstm", LSTM, SMALL), ("gru", GRU, LARGE)], ids=["lstm", "gru"]
)
def test_two_layers_are_the_equations_of_the_papers(kind, cell, vocab_size, name):
    with wide():
        cell = partial(cell, param_dtype=jnp.float64)
        model, params = setup(vocab_size, cell, np.float64, layers=2, attention=name)
        inputs = draw(vocab_size), *sources(np.float64)
        written, logits = run(model, params, *inputs)
        features, weights = by_hand(params, kind, name, *inputs)
        np.testing.assert_allclose(written.features, features, atol=1e-10)
        if name == "none":
            assert written.weights is None
        else:
            np.testing.assert_allclose(written.weights, weights, atol=1e-10)
        output = params["language"]["output"]
        np.testing.assert_allclose(logits, features @ output["kernel"] + output["bias"], rtol=1e-5, atol=1e-5)
        assert logits.dtype == np.float32


def test_a_tied_decoder_has_no_output_matrix_and_uses_the_embedding():
    model, params = setup(attention="general", tie=True)
    assert set(params["language"]) == {"embedding", "output_bias", "stack"}
    written, logits = run(model, params, draw(), *sources())
    language = params["language"]
    close(logits, written.features @ language["embedding"].T + language["output_bias"])


# Steps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-10)])
def test_step_by_step_is_the_pass_over_the_whole_text(name, dtype, atol):
    with wide(dtype == "float64"):
        cell = partial(LSTM, param_dtype=jnp.dtype(dtype))
        model, params = setup(LARGE, cell, np.dtype(dtype), layers=2, attention=name)
        inputs = sources(np.dtype(dtype))
        written, _ = run(model, params, draw(LARGE), *inputs)

        @partial(jax.jit, compiler_options=FAST)
        def step(token, carry, memory, table):
            return model.apply({"params": params}, token, carry, memory, table=table, method="decode")

        carry, memory = run(model, params, *inputs, method="init_decoder")
        table, steps = run(model, params, method="token_table"), []
        for t in range(T):
            steps.append(step(draw(LARGE)[:, t : t + 1], carry, memory, table))
            carry = steps[-1].carry
        close(carry, written.carry, atol)
        joined = [[one[field] for one in steps] for field in (1, 2) if steps[0][field] is not None]
        close([np.concatenate(one, axis=1) for one in joined], [a for a in written[1:] if a is not None], atol)


@pytest.mark.parametrize("name", NAMES)
def test_a_flax_cell_writes_too_unless_its_input_is_added_to(name):
    if name == "additive":
        with pytest.raises(UsageError, match="GRUCell"):
            Decoder(SMALL, nn.GRUCell, H, attention=name)
        return
    model, params = setup(cell=nn.GRUCell, layers=2, attention=name)
    written, _ = run(model, params, draw(), *sources())
    carry, memory = run(model, params, *sources(), method="init_decoder")
    halves = []
    for part in (np.s_[:, :2], np.s_[:, 2:]):
        halves.append(run(model, params, draw()[part], carry, memory, method="decode"))
        carry = halves[-1].carry
    close(np.concatenate([half.features for half in halves], axis=1), written.features)


# Gradients, rows and steps


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name):
    with wide():
        model, params = setup(SMALL, partial(GRU, param_dtype=jnp.float64), np.float64, layers=2, attention=name)
        finals, values, valid = sources(np.float64)
        weights = normal(5, B, T, H, dtype=np.float64)

        def loss(inputs):
            params, finals, values = inputs
            written, _ = model.apply({"params": params}, draw(), finals, values, valid, method=whole)
            return jnp.sum(written.features * weights)

        value_and_grad = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)
        inputs = (params, finals, values)
        direction = jax.tree.map(lambda a: normal(7, *a.shape, dtype=np.float64), inputs)
        moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-5 * d, inputs, direction) for s in (1, -1)]
        difference = (value_and_grad(moved[0])[0] - value_and_grad(moved[1])[0]) / 2e-5
        slopes = jax.tree.map(lambda g, d: jnp.sum(g * d), value_and_grad(inputs)[1], direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), difference, rtol=1e-7)


@pytest.fixture(scope="module", params=NAMES)
def dropping(request):
    """A decoder that can drop, and its pass over a text with and without keys, compiled once each."""
    model, params = setup(LARGE, layers=2, attention=request.param, dropout=0.4, embed_dropout=0.3)
    apply = jax.jit(partial(model.apply, {"params": params}, method=whole), compiler_options=FAST)

    def read(tokens=None, source=None, keys=None):
        source = sources() if source is None else source
        return apply(draw(LARGE) if tokens is None else tokens, *source, keys)[0]

    return model, params, read


def row_keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


def test_no_step_sees_a_later_token_and_no_row_another(dropping):
    _, _, read = dropping
    tokens = draw(LARGE)
    for changed, here in ((np.s_[:, 2:], np.s_[:, :2]), (np.s_[1:], np.s_[0])):
        other = tokens.copy()
        other[changed] = (other[changed] + 1) % LARGE
        a, b = read(tokens).features, read(other).features
        np.testing.assert_array_equal(a[here], b[here])
        assert np.any(a != b)


def test_no_row_sees_what_another_is_written_from(dropping):
    _, _, read = dropping
    (first, second), values, valid = sources()
    other = (jax.tree.map(lambda a: a + (np.arange(B) > 0)[:, None], (first, second)), values + 1, valid)
    other[1][0] = values[0]
    a, b = read().features, read(source=other).features
    np.testing.assert_array_equal(a[0], b[0])
    assert np.any(a[1] != b[1])


def test_dropout_is_off_without_keys_and_on_with_them(dropping):
    model, params, read = dropping
    without, _ = setup(LARGE, layers=2, attention=model.attention)
    close(read().features, run(without, params, draw(LARGE), *sources())[0].features)
    assert np.any(read().features != read(keys=row_keys(1, 2, 3)).features, axis=(1, 2)).all()


def test_a_row_is_dropped_by_its_own_key_alone(dropping):
    _, _, read = dropping
    a, b = (read(keys=row_keys(1, second, 3)).features for second in (2, 9))
    np.testing.assert_array_equal(a[0], b[0])
    assert np.any(a[1] != b[1])


@pytest.mark.parametrize("name", ["none", "additive"])
def test_a_share_of_the_tokens_but_the_first_is_unknown_in_training(name):
    """Seen by a cell that forgets at once: what a step gives says which token it has read."""
    rows, length = 12, 60
    one_place = np.repeat(normal(1, 1, 1, M), rows, 0)
    source = (jax.tree.map(lambda a: np.repeat(a[:1], rows, 0), sources()[0]), one_place, np.ones((rows, 1), bool))
    plain, params = setup(cell=Elman, attention=name)
    forgetting = jax.tree_util.tree_map_with_path(
        lambda path, a: np.zeros_like(a) if "recurrent_kernel" in str(path) else a, params
    )
    read = np.full((rows, length), 3, np.int32)
    three, seven = (run(plain, forgetting, np.full_like(read, t), *source)[0].features for t in (3, 7))

    def unknown(*seeds):
        hiding = plain.clone(token_dropout=0.4, unknown=7)
        features = run(hiding, forgetting, read, *source, row_keys(*seeds))[0].features
        as_read, hidden = (np.abs(features - each).max(-1) < 1e-5 for each in (three, seven))
        assert (as_read ^ hidden).all()
        return hidden

    hidden, other = unknown(*range(rows)), unknown(*range(1, rows + 1))
    assert not hidden[:, 0].any()
    assert abs(hidden[:, 1:].mean() - 0.4) < 0.08
    np.testing.assert_array_equal(hidden[1:], other[:-1])  # a row's by its own key alone
    assert len(np.unique(hidden, axis=0)) == rows


def test_dropout_of_the_fed_layers_is_that_of_a_stack():
    """Contexts of zero leave a language model, whose dropout ``additive`` must then have."""
    fed, params = setup(layers=2, attention="additive", dropout=0.4, embed_dropout=0.3)
    plain = Decoder(SMALL, GRU, H, layers=2, dropout=0.4, embed_dropout=0.3)
    finals, values, _ = sources()
    nowhere, keys = np.zeros_like(VALID), row_keys(1, 2, 3)
    states = run(plain, params, draw(), finals, None, None, keys)[0].features
    combine = params["combine"]
    expected = np.tanh(states @ combine["kernel"][M:] + combine["bias"])
    close(run(fed, params, draw(), finals, values, nowhere, keys)[0].features, expected)


def test_dropout_of_embeddings_takes_the_key_of_the_layer_above_the_last():
    model, params = setup(LARGE, attention="additive", embed_dropout=0.4)
    keys = row_keys(1, 2, 3)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    x = dropout(jnp.asarray(params["language"]["embedding"])[draw(LARGE).T], 0.4, own)
    vectors = params | {"language": params["language"] | {"embedding": np.asarray(x.reshape(T * B, H))}}
    wide = Decoder(T * B, GRU, H, attention="additive")
    output = {"kernel": np.zeros((H, T * B), np.float32), "bias": np.zeros(T * B, np.float32)}
    vectors["language"]["output"] = output
    places = np.arange(T * B, dtype=np.int32).reshape(T, B).T
    expected = run(wide, vectors, places, *sources())[0].features
    close(run(model, params, draw(LARGE), *sources(), keys)[0].features, expected)


# Where it begins


@pytest.mark.parametrize(("layers", "matched"), [(1, [1]), (2, [0, 1]), (3, [0, 0, 1])])
def test_layers_begin_in_those_of_the_encoder_matched_from_the_top(layers, matched):
    model, params = setup(cell=LSTM, layers=layers)
    finals, *_ = source = sources()
    carry, memory = run(model, params, *source, method="init_decoder")
    assert memory == ()
    for layer, encoded in enumerate(matched):
        bridge = params[f"bridge_{layer}"]
        state = np.tanh(np.concatenate(finals[encoded], axis=1) @ bridge["kernel"] + bridge["bias"])
        close(carry[layer], (state[:, :H], state[:, H:]))


def test_any_arrays_can_be_begun_from():
    finals = ({"mean": normal(1, B, 2, 3)},)
    model, params = setup(source=(finals, None, None))
    carry, _ = run(model, params, finals, None, None, method="init_decoder")
    bridge = params["bridge_0"]
    close(carry, (np.tanh(finals[0]["mean"].reshape(B, 6) @ bridge["kernel"] + bridge["bias"]),))


def test_a_text_of_no_tokens_leaves_the_state_alone():
    for name in NAMES:
        model, params = setup(attention=name)
        carry, memory = run(model, params, *sources(), method="init_decoder")
        written = run(model, params, draw(shape=(B, 0)), carry, memory, method="decode")
        jax.tree.map(np.testing.assert_array_equal, written.carry, carry)
        assert written.features.shape == (B, 0, H)


# What it refuses


def test_an_unknown_attention_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'general'"):
        Decoder(SMALL, attention="genral")


@pytest.mark.parametrize("name", ["general", "additive"])
def test_attention_without_places_to_look_at_is_refused(name):
    finals, _, _ = sources()
    with pytest.raises(UsageError, match=name):
        setup(attention=name, source=(finals, None, None))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hidden": 0}, "`hidden` is 0"),
        ({"dropout": 1.0}, "`dropout` is 1.0"),
        ({"token_dropout": 1.0}, "`token_dropout` is 1.0"),
        ({"tie": True, "embed": 0}, "tie"),
        ({"form": "fusde"}, "Unknown form 'fusde'"),
    ],
)
def test_what_a_language_model_refuses_is_refused_when_the_decoder_is_made(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Decoder(SMALL, **options)
