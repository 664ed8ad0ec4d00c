"""The language model: outputs, carry, errors."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.equations import EQUATIONS
from flax import linen as nn

from jaxgen.cells import GRU, LSTM, Elman
from jaxgen.errors import UsageError
from jaxgen.models import LanguageModel
from jaxgen.models.layers import dropout

B, T, H = 3, 5, 6
SMALL, LARGE = 11, 30  # fewer and more tokens than there are in a batch of B * T
FAST = {"xla_backend_optimization_level": 0}  # for jax.jit: compiles in two thirds of the time
FLAX = [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell]


@cache
def setup(vocab_size=SMALL, cell=Elman, **options):
    """A model and random parameters, its biases included; nothing is compiled."""
    model = LanguageModel(vocab_size, cell, H, **options)
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(0)
    params = [(0.5 * rng.normal(size=leaf.shape)).astype(np.float32) for leaf in leaves]
    return model, jax.tree.unflatten(structure, params)


def draw(vocab_size=SMALL, shape=(B, T)):
    return np.random.default_rng(1).integers(0, vocab_size, shape).astype(np.int32)


@cache
def compiled(model, method="__call__"):
    def run(params, args, options):
        return model.apply({"params": params}, *args, method=method, **options)

    return jax.jit(run, compiler_options=FAST)


def apply(model, params, *args, method="__call__", **options):
    return jax.tree.map(np.asarray, compiled(model, method)(params, args, options))


def layers_by_hand(model, params, x):
    """The outputs of each layer [B, T, H] over the embedded tokens ``x`` [B, T, D], in NumPy."""
    each = []
    for layer in range(model.layers):
        weights, carry, ys = params["stack"][f"cells_{layer}"], np.zeros((B, H)), []
        step = EQUATIONS[model.cell.__name__.lower()]
        carry = (carry, carry) if model.cell is LSTM else carry
        for t in range(x.shape[1]):
            carry, y = step(weights, carry, x[:, t])
            ys.append(y)
        x = np.stack(ys, axis=1)
        each.append(x)
    return each


def by_hand(model, params, x):
    """The logits of the model over the embedded tokens ``x`` [B, T, D], in NumPy."""
    x = layers_by_hand(model, params, x)[-1]
    if model.tie:
        return x @ params["embedding"].T + params["output_bias"]
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def assert_by_hand(model, params, embed):
    tokens = draw(model.vocab_size)
    assert_close(apply(model, params, tokens)[1], by_hand(model, params, embed(params)[tokens]))


def embedding(params):
    return params["embedding"]


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# What it computes


@pytest.mark.parametrize(
    "layers", [pytest.param(1, marks=pytest.mark.runs), 2, pytest.param(3, marks=pytest.mark.runs)]
)
def test_any_number_of_layers_equals_the_layers_by_hand(layers):
    assert_by_hand(*setup(layers=layers, cell=LSTM), embedding)


@pytest.mark.runs
@pytest.mark.parametrize("cell", FLAX, ids=lambda cell: cell.__name__)
def test_flax_own_cells_in_the_model_equal_the_layers_by_hand(cell):
    model, params = setup(layers=2, cell=cell)
    tokens = draw()

    def both(params):
        x = params["embedding"][tokens]
        for layer in range(2):
            x = nn.RNN(cell(features=H)).apply({"params": {"cell": params["stack"][f"cells_{layer}"]}}, x)
        logits = x @ params["output"]["kernel"] + params["output"]["bias"][None, None, :]
        return model.apply({"params": params}, tokens)[1], logits

    assert_close(*jax.jit(both, compiler_options=FAST)(params))


def test_an_embedding_of_another_width_equals_the_layers_by_hand():
    assert_by_hand(*setup(embed=4), embedding)


@pytest.mark.parametrize("vocab_size", [SMALL, pytest.param(LARGE, marks=pytest.mark.runs)])
def test_embed_zero_is_a_one_hot_input(vocab_size):
    assert_by_hand(*setup(vocab_size, embed=0, cell=GRU), lambda params: np.eye(vocab_size))


def test_embed_zero_has_no_embedding():
    _, params = setup(embed=0)
    assert "embedding" not in params


def test_a_vocabulary_larger_than_the_batch_equals_the_layers_by_hand():
    assert_by_hand(*setup(LARGE), embedding)


def test_a_tied_model_equals_the_layers_by_hand():
    assert_by_hand(*setup(tie=True), embedding)


def test_logits_are_float32_with_low_precision_cells():
    model = LanguageModel(SMALL, partial(LSTM, param_dtype=jnp.bfloat16), H)
    (_, logits), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), draw())
    assert logits.dtype == jnp.float32


# The token table


def values_and_gradients(model, params, tokens, with_table):
    weights = np.random.default_rng(2).normal(size=(*tokens.shape, model.vocab_size)).astype(np.float32)

    def loss(params):
        table = model.apply({"params": params}, method="token_table") if with_table else None
        _, logits = model.apply({"params": params}, tokens, table=table)
        return jnp.sum(logits * weights), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)(params)


@pytest.mark.parametrize("embed", [None, pytest.param(0, marks=pytest.mark.runs)])
def test_a_table_given_equals_embedding_then_projecting_in_value_and_gradient(embed):
    model, params = setup(LARGE, embed=embed)
    tokens = draw(LARGE)
    assert_close(values_and_gradients(model, params, tokens, True), values_and_gradients(model, params, tokens, False))


def test_a_table_made_earlier_equals_one_made_inside():
    model, params = setup()
    table = apply(model, params, method="token_table")
    assert_close(apply(model, params, draw(), table=table), apply(model, params, draw()))


def test_a_flax_cell_has_no_table():
    model, params = setup(cell=nn.GRUCell)
    assert apply(model, params, method="token_table") is None


# Tying


def test_a_tied_model_has_no_output_matrix():
    _, params = setup(tie=True)
    assert set(params) == {"embedding", "output_bias", "stack"}


def test_a_tied_embedding_of_another_width_reads_a_projection():
    model, params = setup(embed=4, tie=True)
    hidden = layers_by_hand(model, params, params["embedding"][draw()])[-1]
    expected = hidden @ params["output_projection"]["kernel"] @ params["embedding"].T + params["output_bias"]
    np.testing.assert_allclose(apply(model, params, draw())[1], expected, atol=1e-5)


# Outputs of all layers, and mixtures


@pytest.mark.parametrize("tie", [False, True])
def test_the_output_layer_may_read_all_layers(tie):
    model, params = setup(layers=2, skip_connections=True, tie=tie)
    wide = np.concatenate(layers_by_hand(model, params, params["embedding"][draw()]), axis=-1)
    if tie:
        expected = wide @ params["output_projection"]["kernel"] @ params["embedding"].T + params["output_bias"]
    else:
        expected = wide @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(apply(model, params, draw())[1], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"tie": True, "embed": 4}, {"soft_cap": 2.0}])
def test_a_mixture_of_softmaxes_is_the_sum_of_the_weighted_softmaxes(options):
    model, params = setup(softmaxes=3, **options)
    hidden = np.random.default_rng(2).normal(size=(5, H)).astype(np.float32)
    found = apply(model, params, hidden, method="logits")
    softmax = lambda a: np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True)  # noqa: E731
    prior = softmax(hidden @ params["output_prior"]["kernel"])
    latent = np.tanh(hidden @ params["output_latent"]["kernel"] + params["output_latent"]["bias"])
    expected = 0.0
    for k, part in enumerate(np.split(latent, 3, axis=-1)):
        if model.tie:
            logits = part @ params["embedding"].T + params["output_bias"]
        else:
            logits = part @ params["output"]["kernel"] + params["output"]["bias"]
        logits = model.soft_cap * np.tanh(logits / model.soft_cap) if model.soft_cap else logits
        expected = expected + prior[:, k : k + 1] * softmax(logits)
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-6)


def test_the_tied_matrix_gets_the_sum_of_both_gradients():
    tied, params = setup(LARGE, tie=True)
    untied, _ = setup(LARGE)
    output = {"kernel": params["embedding"].T, "bias": params["output_bias"]}
    apart = {"embedding": params["embedding"], "stack": params["stack"], "output": output}
    tokens = draw(LARGE)
    (_, _), together = values_and_gradients(tied, params, tokens, False)
    (_, _), parts = values_and_gradients(untied, apart, tokens, False)
    np.testing.assert_allclose(together["embedding"], parts["embedding"] + parts["output"]["kernel"].T, atol=1e-5)


# Dropout


@pytest.fixture(scope="module")
def dropping():
    model, params = setup(layers=2, dropout=0.5)

    def run(tokens, keys):
        return model.apply({"params": params}, tokens, row_keys=keys)[1]

    return jax.jit(run, compiler_options=FAST), params


def row_keys(*seeds):
    return jax.vmap(jax.random.key)(np.array(seeds, np.uint32))


def test_dropout_is_off_without_keys(dropping):
    run, params = dropping
    without, _ = setup(layers=2)
    np.testing.assert_allclose(run(draw(), None), apply(without, params, draw())[1], atol=1e-5)


def test_dropout_is_on_with_keys(dropping):
    run, _ = dropping
    assert np.abs(run(draw(), row_keys(1, 2, 3)) - run(draw(), None)).min(axis=(1, 2)).max() > 0


def test_other_keys_drop_other_units(dropping):
    run, _ = dropping
    assert np.any(run(draw(), row_keys(1, 2, 3)) != run(draw(), row_keys(4, 5, 6)), axis=(1, 2)).all()


def test_permuting_rows_with_their_keys_permutes_the_logits(dropping):
    run, _ = dropping
    tokens, keys, order = draw(), row_keys(1, 2, 3), np.array([2, 0, 1])
    permuted = run(tokens[order], keys[order])
    np.testing.assert_allclose(permuted, np.asarray(run(tokens, keys))[order], atol=1e-6)


def test_another_rows_key_changes_nothing_in_this_row(dropping):
    run, _ = dropping
    a, b = run(draw(), row_keys(1, 2, 3)), run(draw(), row_keys(1, 9, 9))
    np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize(  # with a token table where nothing is dropped, and without
    "vocab_size", [SMALL, pytest.param(LARGE, marks=pytest.mark.runs)]
)
def test_dropout_of_embeddings_drops_units_of_every_occurrence_by_itself(vocab_size):
    model, params = setup(vocab_size, embed_dropout=0.4)
    tokens, keys = np.full((B, T), 4, np.int32), row_keys(1, 2, 3)
    of_layer = jax.vmap(lambda key: jax.random.fold_in(key, model.layers))(keys)
    embedded = np.broadcast_to(params["embedding"][4], (T, B, H))
    x = np.asarray(dropout(jnp.asarray(embedded), model.embed_dropout, of_layer))
    assert len(np.unique(x != 0, axis=0)) > 1
    got = apply(model, params, tokens, row_keys=keys)[1]
    np.testing.assert_allclose(got, by_hand(model, params, np.swapaxes(x, 0, 1)), atol=1e-5)
    np.testing.assert_allclose(
        apply(model, params, tokens)[1], by_hand(model, params, embedded.swapaxes(0, 1)), atol=1e-5
    )


# Carry in and out


@pytest.fixture(scope="module")
def carried():
    """A model of two layers, its parameters, and a run over a given number of steps, compiled once for each."""
    model, params = setup(layers=2, cell=(LSTM, Elman))

    def run(tokens, carry, masks):
        return apply(model, params, tokens, carry, **masks)

    start = jax.tree.map(lambda a: np.full_like(a, 0.3), model.initial_carry(B))
    return model, params, run, start


def test_two_halves_equal_the_whole(carried):
    _, _, run, start = carried
    middle, first = run(draw()[:, :2], start, {})
    end, second = run(draw()[:, 2:], middle, {})
    assert_close((end, np.concatenate([first, second], axis=1)), run(draw(), start, {}))


def test_no_carry_is_the_zero_carry(carried):
    model, _, run, _ = carried
    np.testing.assert_array_equal(run(draw(), None, {})[1], run(draw(), model.initial_carry(B), {})[1])


def test_a_reset_inside_equals_a_separate_run(carried):
    model, _, run, start = carried
    reset = np.zeros((B, T), bool)
    reset[:, 2] = True
    carry, logits = run(draw(), start, {"reset": reset})
    assert_close((carry, logits[:, 2:]), run(draw()[:, 2:], model.initial_carry(B), {}))


def test_tokens_in_padding_change_no_bit(carried):
    _, _, run, start = carried
    valid = np.arange(T)[None, :] < np.array([5, 3, 0])[:, None]
    a = run(draw(), start, {"valid": valid})
    b = run(np.where(valid, draw(), 0), start, {"valid": valid})
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_initial_state_for_each_step_is_one_for_each_row_where_they_agree(carried):
    model, _, run, start = carried
    reset = np.zeros((B, T), bool)
    reset[1, 3] = True
    rows = jax.tree.map(lambda a: np.random.default_rng(3).normal(size=a.shape).astype("f4"), model.initial_carry(B))
    steps = jax.tree.map(lambda a: np.where(reset[:, :, None], a[:, None], np.float32(7)), rows)
    assert_close(
        run(draw(), start, {"reset": reset, "initial": rows}), run(draw(), start, {"reset": reset, "initial": steps})
    )


# What it refuses


@pytest.mark.parametrize("name", ["vocab_size", "hidden", "layers"])
@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_a_size_that_is_no_positive_whole_number_is_refused(name, size):
    with pytest.raises(UsageError, match=f"{name}.*{size!r}"):
        LanguageModel(**{"vocab_size": SMALL, name: size})


def test_a_negative_embedding_is_refused():
    with pytest.raises(UsageError, match="embed"):
        LanguageModel(SMALL, embed=-1)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_dropout_outside_its_range_is_refused(rate):
    with pytest.raises(UsageError, match="dropout"):
        LanguageModel(SMALL, dropout=rate)


def test_tying_without_an_embedding_is_refused():
    with pytest.raises(UsageError, match="tie"):
        LanguageModel(SMALL, hidden=H, embed=0, tie=True)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_carries_than_layers_is_refused(count):
    model, params = setup(layers=2)
    with pytest.raises(UsageError, match="carries"):
        apply(model, params, draw(), model.initial_carry(B)[:1] * count)


def test_a_soft_cap_limits_the_logits_by_tanh():
    plain, params = setup()
    free, capped = (apply(model, params, draw())[1] for model in (plain, plain.clone(soft_cap=0.5)))
    np.testing.assert_allclose(capped, 0.5 * np.tanh(free / 0.5), rtol=1e-6, atol=1e-7)
    with pytest.raises(UsageError, match="soft_cap"):
        LanguageModel(SMALL, soft_cap=-1.0)


def test_a_table_of_one_hot_inputs_is_made_for_small_vocabularies_only(monkeypatch):
    monkeypatch.setattr("jaxgen.models.layers.ONE_HOT_TABLE", 10)
    for vocab, made in ((10, True), (11, False)):
        model = LanguageModel(vocab, hidden=3, embed=0)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        table = jax.eval_shape(lambda p, m=model: m.apply(p, method="token_table"), params)
        assert (table is not None) is made


@pytest.mark.parametrize("form", ["fusde", 7])
def test_a_form_that_is_none_is_refused_when_the_model_is_made(form):
    with pytest.raises(UsageError, match=str(form)):
        LanguageModel(5, form=form)
