"""Locked dropout, and the noise inside cells of models: what each layer gets, and what a row's result depends on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, unroll
from jaxgen.cells.mingru import MinGRU
from jaxgen.errors import UsageError
from jaxgen.models import Classifier, Decoder, Encoder, EncoderDecoder, LanguageModel, ResidualBlock
from jaxgen.models.layers import Embedding, Stack, dropout, fold_in_rows
from jaxgen.training.step import drop_weights, row_keys
from jaxgen.types import TokenRows

B, T, H, V = 3, 6, 4, 7
KEYS = row_keys(jax.random.key(1), 5, B)
NOISE = {"zoneout": 0.3, "recurrent_dropout": 0.4}
ALL = {**NOISE, "dropout": 0.3, "embed_dropout": 0.3, "locked_dropout": True}
draw = np.random.default_rng(0)
X = draw.normal(size=(T, B, H)).astype(np.float32)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(module, *args):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda a: draw.normal(0, 0.7, a.shape).astype(a.dtype), shapes)


def close(got, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, wanted)


def test_embedding_rows_are_dropped_at_all_occurrences_of_a_token_in_a_row():
    embedding, cells = Embedding(V, H, row_dropout=0.5), [nn.SimpleCell(H)]  # a cell without a projection of its own
    tokens = np.random.default_rng(1).integers(0, V, (40, B)).astype(np.int32)
    matrix = np.ones((V, H), np.float32)
    (x,), _ = embedding.apply({"params": {"embedding": matrix}}, tokens, cells, KEYS, method="inputs")
    x = np.asarray(x)
    assert set(np.unique(x)) == {0.0, 2.0}
    dropped = [{int(tokens[t, b]) for t in range(40) if x[t, b, 0] == 0} for b in range(B)]
    kept = [{int(tokens[t, b]) for t in range(40) if x[t, b, 0] > 0} for b in range(B)]
    assert all(not (gone & there) for gone, there in zip(dropped, kept))
    assert len({frozenset(gone) for gone in dropped}) > 1  # each row has a mask of its own
    assert (x == x[..., :1]).all()  # the whole vector
    (same,), _ = embedding.apply({"params": {"embedding": matrix}}, tokens, cells, method="inputs")
    assert (same == 1).all()


def test_a_locked_mask_is_the_same_at_all_steps_and_another_for_each_row():
    ones = jnp.ones((T, B, 40))
    locked, free = (np.asarray(dropout(ones, 0.5, KEYS, locked)) for locked in (True, False))
    assert set(np.unique(locked)) == {0, 2}
    assert (locked == locked[:1]).all()
    assert len({row.tobytes() for row in locked[0]}) == B
    assert (free != free[:1]).any()


@pytest.mark.parametrize("block", [False, True])
def test_a_cell_gets_the_same_noise_in_a_block_and_alone(block):
    cell = partial(LSTM, **NOISE)
    layer = ResidualBlock(cell, H, layers=2, conv=0, mlp=0.0) if block else cell(features=H)
    stack = Stack([layer])
    carry = (layer.initialize_carry(jax.random.key(0), (B, H)),)
    params = random_params(stack, X, carry)
    (after,), y = jit(stack.apply)(params, X, carry, row_keys=KEYS)

    parts = params["params"]["cells_0"]
    inner, keys = parts["recurrence"] if block else parts, fold_in_rows(fold_in_rows(KEYS, 0), 2)
    x = X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 1e-6) * parts["cell_norm"]["scale"] if block else X
    method = lambda cell, x: unroll(cell, x, time_major=True, row_keys=keys)  # noqa: E731
    state, expected = jit(lambda x: cell(features=H).apply({"params": inner}, x, method=method))(x)
    if block:
        expected = X + np.asarray(expected) @ parts["output"]["kernel"] + parts["output"]["bias"]
    close((after, y), (state, expected))


def seq2seq():
    encoder = Encoder(V, GRU, H, bidirectional=True, **ALL)
    return EncoderDecoder(encoder, Decoder(V, LSTM, H, layers=2, attention="additive", **ALL))


TOKENS = draw.integers(0, V, (B, T)).astype(np.int32)
VALID = np.arange(T) < np.array([[T], [2], [4]])
MODELS = {
    "language": (LanguageModel(V, LSTM, H, layers=2, **ALL), (TOKENS,)),
    "mingru in blocks": (
        LanguageModel(V, MinGRU, H, block=ResidualBlock, **{**ALL, "recurrent_dropout": 0}),
        (TOKENS,),
    ),
    "classifier": (Classifier(V, 3, GRU, H, bidirectional=True, **ALL), (TOKENS, VALID)),
    "additive attention": (seq2seq(), (TokenRows(TOKENS, VALID), TOKENS)),
}


@pytest.mark.parametrize("name", ["language", *(pytest.param(n, marks=pytest.mark.slow) for n in [*MODELS][1:])])
def test_what_a_row_draws_depends_on_its_own_key_only(name):
    model, inputs = MODELS[name]
    assert model.has_dropout
    params = random_params(model, *inputs)
    run = jit(lambda keys, *inputs: jax.tree.leaves(model.apply(params, *inputs, row_keys=keys))[-1])
    together = run(KEYS, *inputs)
    close(run(KEYS[1:2], *jax.tree.map(lambda a: a[1:2], inputs))[0], together[1])
    assert np.abs(run(row_keys(jax.random.key(1), 6, B), *inputs) - together).max() > 1e-3


def test_weight_dropout_drops_entries_of_recurrent_matrices_only():
    params = random_params(LanguageModel(V, LSTM, H, layers=2), TOKENS)
    dropped = drop_weights(jax.tree.map(jnp.asarray, params), 0.25, jax.random.key(2))
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(dropped)):
        if path[-1].key != "recurrent_kernel":
            np.testing.assert_array_equal(after, before)
            continue
        kept = np.asarray(after) != 0
        np.testing.assert_allclose(after, np.where(kept, before / 0.75, 0), rtol=1e-6)
        assert 0.5 < kept.mean() < 0.95
    lower, upper = (dropped["params"]["stack"][f"cells_{i}"]["recurrent_kernel"] == 0 for i in (0, 1))
    assert (lower != upper).any()


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout"])
def test_noise_that_no_cell_of_a_model_can_have_is_refused(name):
    with pytest.raises(UsageError, match=name):
        LanguageModel(V, MinGRU, H, **{name: 0.1})
    mixed = LanguageModel(V, (MinGRU, LSTM), H, layers=2, **{name: 0.1})
    assert [getattr(cell, name, 0.0) for cell in mixed.make_layers()] == (
        [0.0, 0.1] if name != "weight_dropout" else [0.0] * 2
    )
