"""The encoder: compared with PyTorch and with layers computed by hand, independence of padding, errors."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, Elman
from jaxgen.cells.torch import from_torch
from jaxgen.errors import UsageError
from jaxgen.models import Encoder
from jaxgen.models.layers import dropout

B, S, H = 4, 5, 6
SMALL, LARGE = 11, 30  # fewer and more tokens than there are in a batch of B * S
COUNTS = np.array([5, 3, 1, 0])
DIRECTIONS = ("forwards", "backwards")
VALID = np.arange(S)[None, :] < COUNTS[:, None]
FAST = {"xla_backend_optimization_level": 0}


def setup(vocab_size=SMALL, cell=GRU, dtype=np.float32, **options):
    """An encoder and random parameters; nothing is compiled."""
    model = Encoder(vocab_size, cell, H, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((B, S), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes)


def draw(vocab_size=SMALL, shape=(B, S), seed=1):
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)


def compiled(model):
    return jax.jit(lambda p, t, v, k=None: model.apply({"params": p}, t, v, k), compiler_options=FAST)


def encode(model, params, tokens, valid=None, keys=None):
    return jax.tree.map(np.asarray, compiled(model)(params, tokens, valid, keys))


def close(a, b, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), a, b)


def row_keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


# What it computes


@pytest.mark.parametrize(("cell", "kind"), [(GRU, "gru"), (LSTM, "lstm")])
def test_two_bidirectional_layers_are_those_of_pytorch_over_packed_sequences(cell, kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind.upper())(H, H, num_layers=2, bidirectional=True, batch_first=True)
    model, params = setup(SMALL, cell, layers=2, bidirectional=True)
    for layer in range(2):
        for reverse, name in enumerate(DIRECTIONS):
            params[f"{name}_{layer}"] = from_torch(theirs.state_dict(), kind, layer, bool(reverse))
    tokens, real = draw(), COUNTS > 0  # PyTorch packs no row without a token
    x = torch.tensor(params["embedding"]["embedding"][tokens])
    with torch.no_grad():
        packed = torch.nn.utils.rnn.pack_padded_sequence(x[real], COUNTS[real], batch_first=True)
        outputs, last = theirs(packed)
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=S)
    got = encode(model, params, tokens, VALID)
    close(got.outputs[real], outputs.numpy())
    last = last if kind == "lstm" else (last,)
    for layer, finals in enumerate(got.finals):
        for direction, state in enumerate(finals):
            ours = state[::-1] if kind == "lstm" else (state,)  # h first, as PyTorch has them
            close([leaf[real] for leaf in ours], [leaf[2 * layer + direction].numpy() for leaf in last])


def by_hand(model, params, x):
    """The layers without jaxgen: Flax's own ``nn.RNN``, and with it on flipped input, over x [B, S, D]."""
    for layer in range(model.layers):
        outputs = []
        for reverse, name in enumerate(DIRECTIONS[: 2 if model.bidirectional else 1]):
            rnn = nn.RNN(model.cell(features=H), reverse=bool(reverse), keep_order=True)
            outputs.append(rnn.apply({"params": {"cell": params[f"{name}_{layer}"]}}, x))
        x = jnp.concatenate(outputs, axis=-1)
    return x


@pytest.mark.parametrize("cell", [Elman, nn.GRUCell, nn.OptimizedLSTMCell], ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_any_cell_equals_the_layers_by_hand(cell, bidirectional):
    model, params = setup(LARGE, cell, layers=2, bidirectional=bidirectional)
    tokens = draw(LARGE)
    reference = jax.jit(lambda p: by_hand(model, p, jnp.asarray(p["embedding"]["embedding"])[tokens]))(params)
    close(encode(model, params, tokens).outputs, reference)


@pytest.mark.parametrize(("vocab_size", "embed"), [(SMALL, 3), (SMALL, 0), (LARGE, 0)])
def test_an_embedding_of_another_width_and_none_equal_the_layers_by_hand(vocab_size, embed):
    model, params = setup(vocab_size, embed=embed, bidirectional=True)
    tokens = draw(vocab_size)
    x = params["embedding"]["embedding"][tokens] if embed else np.eye(vocab_size, dtype=np.float32)[tokens]
    close(encode(model, params, tokens).outputs, jax.jit(partial(by_hand, model))(params, x))
    assert ("embedding" in params) is bool(embed)


def test_one_token_is_read_the_same_from_both_ends():
    model, params = setup(bidirectional=True)
    params["backwards_0"] = params["forwards_0"]
    outputs = encode(model, params, draw(shape=(B, 1))).outputs
    close(outputs[..., :H], outputs[..., H:])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_final_states_and_outputs_have_the_width_of_all_directions(bidirectional):
    model, _ = setup(cell=LSTM, layers=3, bidirectional=bidirectional)
    (outputs, finals), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), draw())
    assert outputs.shape == (B, S, H * (1 + bidirectional))
    shapes = jax.tree.map(lambda a: a.shape, finals)
    assert shapes == tuple(tuple(((B, H), (B, H)) for _ in range(1 + bidirectional)) for _ in range(3))


@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])  # by the token table, and without it
def test_gradients_agree_with_finite_differences(vocab_size):
    with jax.enable_x64(True):
        model, params = setup(vocab_size, partial(GRU, param_dtype=jnp.float64), np.float64, bidirectional=True)
        tokens, rng = draw(vocab_size), np.random.default_rng(2)
        weights = rng.normal(size=(B, S, 2 * H))

        def loss(params):
            outputs, finals = model.apply({"params": params}, tokens, VALID)
            return jnp.sum(outputs * weights) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(finals))

        value_and_grad = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)
        direction = jax.tree.map(lambda a: rng.normal(size=a.shape), params)
        moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-5 * d, params, direction) for s in (1, -1)]
        difference = (value_and_grad(moved[0])[0] - value_and_grad(moved[1])[0]) / 2e-5
        slopes = jax.tree.map(lambda g, d: jnp.sum(g * d), value_and_grad(params)[1], direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), difference, rtol=1e-7)


# Padding


@pytest.fixture(scope="module", params=[GRU, nn.GRUCell], ids=["own cell", "Flax cell"])
def padded(request):
    """A bidirectional encoder of two layers, its parameters, and a pass with its gradient, compiled once."""
    model, params = setup(SMALL, request.param, layers=2, bidirectional=True)

    def loss(params, tokens, valid):
        encoded = model.apply({"params": params}, tokens, valid)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(encoded)), encoded

    return params, jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)


def test_what_stands_in_padding_changes_no_bit_of_outputs_states_and_gradients(padded):
    params, run = padded
    pair = (run(params, np.where(VALID, draw(), junk).astype(np.int32), VALID) for junk in (0, SMALL - 1))
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_how_much_padding_there_is_changes_rounding_alone(padded):
    params, run = padded
    valid = VALID & (np.arange(S) < 3)[None, :]
    (_, short), short_gradient = run(params, draw()[:, :3], valid[:, :3])
    (_, long), long_gradient = run(params, draw(), valid)
    close((short.outputs, short.finals), (long.outputs[:, :3], long.finals), atol=1e-6)
    close(short_gradient, long_gradient, atol=1e-5)


def test_a_padded_row_is_read_as_alone_without_padding(padded):
    params, run = padded
    (_, together), _ = run(params, draw(), VALID)
    (_, alone), _ = run(params, draw()[1:2, :3], np.ones((1, 3), bool))
    close(jax.tree.map(lambda a: a[1:2], together.finals), alone.finals, atol=1e-6)
    close(together.outputs[1:2, :3], alone.outputs, atol=1e-6)


def test_padding_and_a_row_without_a_token_give_zeros(padded):
    params, run = padded
    (_, encoded), _ = run(params, draw(), VALID)
    assert (np.asarray(encoded.outputs)[~VALID] == 0).all()
    assert all((np.asarray(leaf)[3] == 0).all() for leaf in jax.tree.leaves(encoded.finals))


def test_no_row_sees_another(padded):
    params, run = padded
    tokens = draw()
    other = np.concatenate([tokens[:1], (tokens[1:] + 1) % SMALL])
    (_, a), _ = run(params, tokens, VALID)
    (_, b), _ = run(params, other, VALID)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), a, b)
    assert np.any(a.outputs[1] != b.outputs[1])


# Dropout


@pytest.fixture(scope="module")
def dropping():
    model, params = setup(layers=2, dropout=0.4, embed_dropout=0.3, bidirectional=True)
    return model, params, compiled(model)


def test_dropout_is_off_without_keys(dropping):
    _, params, run = dropping
    without, _ = setup(layers=2, bidirectional=True)
    close(run(params, draw(), VALID), encode(without, params, draw(), VALID))


def test_permuting_rows_with_their_keys_permutes_what_is_read(dropping):
    _, params, run = dropping
    order, keys = np.array([2, 0, 3, 1]), row_keys(1, 2, 3, 4)
    here, there = run(params, draw(), VALID, keys), run(params, draw()[order], VALID[order], keys[order])
    close(there, jax.tree.map(lambda a: a[order], here), atol=1e-6)


def test_a_row_is_dropped_by_its_own_key_alone(dropping):
    _, params, run = dropping
    a, b = (run(params, draw(), VALID, row_keys(1, second, 9, 9)).outputs for second in (2, 3))
    np.testing.assert_array_equal(a[0], b[0])
    assert np.any(a[1] != b[1])


def test_both_directions_read_the_same_dropped_embeddings(dropping):
    _, params, _ = dropping
    keys = row_keys(1, 2, 3, 4)
    one = Encoder(SMALL, GRU, H, embed_dropout=0.3, bidirectional=True)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    x = jnp.swapaxes(dropout(jnp.asarray(params["embedding"]["embedding"])[draw().T], 0.3, own), 0, 1)
    first = {name: params[name] for name in ("embedding", "forwards_0", "backwards_0")}
    close(encode(one, first, draw(), None, keys).outputs, jax.jit(partial(by_hand, one))(first, x))


def test_dropout_acts_on_what_layers_pass_upwards_and_not_on_final_states():
    model, params = setup(dropout=0.4, bidirectional=True)
    keys = row_keys(1, 2, 3, 4)
    dropped, plain = encode(model, params, draw(), None, keys), encode(model, params, draw())
    own = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    expected = jnp.swapaxes(dropout(jnp.swapaxes(plain.outputs, 0, 1), 0.4, own), 0, 1)
    close(dropped.outputs, expected)
    close(dropped.finals, plain.finals)


# What it refuses


@pytest.mark.parametrize("name", ["vocab_size", "hidden", "layers"])
@pytest.mark.parametrize("size", [0, -1, 2.5, None, True])
def test_a_size_that_is_no_positive_whole_number_is_refused(name, size):
    with pytest.raises(UsageError, match=f"{name}.*{size!r}"):
        Encoder(**{"vocab_size": SMALL, name: size})


def test_a_negative_embedding_is_refused():
    with pytest.raises(UsageError, match="embed"):
        Encoder(SMALL, embed=-1)


@pytest.mark.parametrize("name", ["dropout", "embed_dropout"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_its_range_is_refused(name, rate):
    with pytest.raises(UsageError, match=name):
        Encoder(SMALL, **{name: rate})


def test_an_unknown_form_and_an_unknown_precision_are_refused():
    with pytest.raises(UsageError, match="'fusde'"):
        Encoder(SMALL, form="fusde")
    with pytest.raises(UsageError, match="'float16'"):
        Encoder(SMALL, precision="float16")


def test_another_precision_with_a_flax_cell_is_refused():
    with pytest.raises(UsageError, match="GRUCell"):
        Encoder(SMALL, nn.GRUCell, precision="bfloat16")
