"""The encoder-decoder objective: loss, padding, decoding, scheduled sampling and label smoothing."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.errors import UsageError
from jaxgen.models import Decoder, DecoderInput, EncoderDecoder, LanguageModel
from jaxgen.sampling.beam import beam_search, beam_states, tile_beams
from jaxgen.sampling.decode import DecodeState, decode, sample_keys
from jaxgen.sampling.transforms.base import Context, chain
from jaxgen.sampling.transforms.constraints import MinLength
from jaxgen.tasks.seq2seq.objective import EOS, Seq2SeqTask
from jaxgen.tasks.translate.objective import TranslateTask
from jaxgen.training.data_parallel import make_mesh, shard_train_steps
from jaxgen.training.step import TrainState, train_steps
from jaxgen.types import Seq2SeqBatch, TokenRows

B, S, T, H = 8, 5, 6, 12
SOURCE, VOCAB, PAD = 11, 9, 0
NAMES = ["none", "general", "additive"]
#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}
compiled = partial(jax.jit, compiler_options=FAST)

build = partial(TranslateTask.build, source_vocab=SOURCE, vocab_size=VOCAB, cell_options={}, hidden=H)
loss = compiled(lambda task, params, batch, keys=None: task.loss(params, (), batch, keys)[1], static_argnums=0)
gradient = compiled(jax.grad(lambda p, task, batch: task.loss(p, (), batch)[1].nll), static_argnums=1)
prepare = compiled(Seq2SeqTask.prepare, static_argnums=0)
begin = compiled(Seq2SeqTask.init_decoder, static_argnums=0)
step = compiled(Seq2SeqTask.step, static_argnums=0)
attention_weights = compiled(Seq2SeqTask.attention_weights, static_argnums=0)


def pairs(own=0.0):
    """Eight pairs: sources and targets of different lengths, and what follows <eos> differs from text to text."""
    rng = np.random.default_rng(0)
    valid = np.arange(S)[None, :] < rng.integers(2, S + 1, B)[:, None]
    lengths = rng.integers(2, T, B)  # of the texts, without <eos>
    text = rng.integers(3, VOCAB, (B, T)).astype(np.int32)
    places = np.arange(T)[None, :]
    targets = np.where(places < lengths[:, None], text, np.where(places == lengths[:, None], EOS, PAD)).astype(np.int32)
    tokens = np.concatenate([np.full((B, 1), EOS, np.int32), targets[:, :-1]], axis=1)
    source = np.where(valid, rng.integers(3, SOURCE, (B, S)), PAD).astype(np.int32)
    return Seq2SeqBatch(
        TokenRows(source, valid), tokens, targets, places <= lengths[:, None], np.full(B, own, np.float32)
    )


def random_params(task, seed=0):
    normal = np.random.default_rng(seed).normal
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(normal(0, 0.5, a.shape), jnp.float32), shapes)


def row_keys(seed=0, rows=B):
    return jax.random.split(jax.random.key(seed), rows)


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    cell = "lstm" if request.param == "general" else "gru"
    task = build(cell=cell, attention=request.param, bidirectional=True)
    return task, random_params(task)


# The loss


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def logits_of(task, params, batch):
    apply = compiled(lambda p, inputs, tokens: task.model.apply({"params": p}, inputs, tokens))
    return np.asarray(apply(params, batch.inputs, batch.tokens), np.float64)


def test_the_totals_are_those_of_the_logits_by_hand(case):
    task, params = case
    batch = pairs()
    logp = log_softmax(logits_of(task, params, batch))
    batch = batch._replace(targets=np.where(batch.mask, batch.targets, logp.argmax(-1)).astype(np.int32))
    given = np.take_along_axis(logp, batch.targets[..., None], -1)[..., 0]
    totals = loss(task, params, batch)
    np.testing.assert_allclose(totals.nll, -given[batch.mask].sum(), rtol=1e-5)
    assert totals.targets == batch.mask.sum()
    assert totals.correct == (logp.argmax(-1) == batch.targets)[batch.mask].sum()


def test_rows_add_up_in_any_order(case):
    task, params = case
    batch, order = pairs(), np.random.default_rng(1).permutation(B)
    whole = loss(task, params, batch)
    np.testing.assert_allclose(loss(task, params, jax.tree.map(lambda a: a[order], batch)).nll, whole.nll, rtol=1e-6)
    halves = [loss(task, params, jax.tree.map(lambda a, part=part: a[part], batch)) for part in (np.s_[:4], np.s_[4:])]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-6), *halves, whole)


def test_without_a_target_the_gradient_is_exactly_zero(case):
    task, params = case
    for leaf in jax.tree.leaves(gradient(params, task, pairs()._replace(mask=np.zeros((B, T), bool)))):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_every_parameter_gets_a_gradient(case):
    task, params = case
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params, task, pairs())):
        assert np.any(leaf), jax.tree_util.keystr(path)


# Decoding


def test_steps_from_the_first_token_are_the_forward_pass(case):
    task, params = case
    batch = pairs()
    prepared = prepare(task, params)
    memory, carry, logits = begin(task, prepared, batch.inputs)
    steps = [logits]
    for t in range(1, T):
        carry, logits = step(task, (prepared, memory), carry, batch.tokens[:, t])
        steps.append(logits)
    np.testing.assert_allclose(np.stack(steps, axis=1), logits_of(task, params, batch), atol=1e-5)


def test_every_leaf_of_what_decoding_begins_with_has_a_row_for_each_text(case):
    task, params = case
    memory, carry, logits = begin(task, prepare(task, params), pairs().inputs)
    assert {leaf.shape[0] for leaf in jax.tree.leaves((memory, carry, logits))} == {B}


def test_looking_gives_weights_of_the_places_that_are_there_to_every_step(case):
    task, params = case
    batch = pairs()
    if task.model.decoder.attention == "none":
        with pytest.raises(UsageError, match="none"):
            attention_weights(task, prepare(task, params), batch.inputs, batch.tokens)
        return
    places = np.asarray(attention_weights(task, prepare(task, params), batch.inputs, batch.tokens))
    assert places.shape == (*batch.tokens.shape, batch.inputs.tokens.shape[1])
    assert (np.swapaxes(places, 1, 2)[~batch.inputs.valid] == 0).all()
    np.testing.assert_allclose(places.sum(-1), 1, atol=1e-6)


@pytest.fixture(scope="module", params=[pytest.param("none", marks=pytest.mark.slow), *NAMES[1:]])
def trained(request):
    """A task that knows the eight pairs by heart, with its parameters."""
    task = build(cell="gru", attention=request.param, bidirectional=request.param == "general")
    optimizer, batch = optax.adam(0.03), jax.tree.map(jnp.asarray, pairs())
    params = task.init(jax.random.key(1))
    start = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ())

    @compiled
    def train(state):
        batches = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (150, *a.shape)), batch)
        return train_steps(task, optimizer, jax.random.key(0), state, batches, jnp.int32(150))

    state, metrics = train(start)
    assert metrics.loss[-1] < 0.05
    return task, state.params


def texts(targets, mask):
    return [row[counts].tolist() for row, counts in zip(np.asarray(targets), np.asarray(mask))]


@pytest.mark.runs
def test_greedy_decoding_recovers_the_texts_learnt_by_heart(trained):
    task, params = trained
    batch = pairs()

    @compiled
    def write(params, inputs):
        prepared = task.prepare(params)
        memory, carry, logits = task.init_decoder(prepared, inputs)
        state = DecodeState.start(chain(), carry, logits, eos=EOS)
        keys = sample_keys(0, jnp.arange(B))
        sizes = {"length": T, "greedy": True, "eos": EOS, "pad": PAD}
        return decode(task.step, (), (prepared, memory), state, keys, **sizes)[1].tokens

    assert texts(write(params, batch.inputs), batch.mask) == texts(batch.targets, batch.mask)


@pytest.mark.runs
def test_beam_search_recovers_the_texts_learnt_by_heart(trained):
    """Each at its own length: by itself a search stops when as many as it is wide have ended, however unlikely."""
    task, params = trained
    batch, width = pairs(), 3
    at_least = chain(MinLength(1))

    @compiled
    def write(params, inputs, states):
        prepared = task.prepare(params)
        memory, carry, logits = task.init_decoder(prepared, inputs)
        weights, sizes = (prepared, tile_beams(memory, width)), {"width": width, "length": T, "n_best": 1}
        return beam_search(task.step, at_least.kinds, weights, carry, logits, states, 0.0, **sizes, eos=EOS, pad=PAD)

    for b, text in enumerate(texts(batch.targets, batch.mask)):
        states = beam_states(chain(MinLength(len(text) - 1)), Context(width, VOCAB, eos=EOS))
        one = jax.tree.map(lambda a, b=b: a[b : b + 1], batch)
        found = write(params, one.inputs, states)
        assert found.tokens[0, 0, : found.lengths[0, 0]].tolist() == text


# Scheduled sampling


@pytest.fixture(scope="module")
def sampling():
    """A task that may read its own predictions, and the same without."""
    task = build(cell="gru", attention="general", use_scheduled_sampling=True)
    return task, dataclasses.replace(task, use_scheduled_sampling=False), random_params(task)


def test_gradients_agree_with_finite_differences(sampling):
    """Within what float32 logits allow; the networks are compared to more digits in the tests of models."""
    _, task, params = sampling
    batch = pairs()
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        wide = jax.tree.map(np.float64, params)
        direction = jax.tree.map(lambda a: rng.normal(size=a.shape), wide)
        moved = [jax.tree.map(lambda a, d, s=s: a + s * 1e-3 * d, wide, direction) for s in (1, -1)]
        difference = (loss(task, moved[0], batch).nll - loss(task, moved[1], batch).nll) / 2e-3
        slopes = jax.tree.map(lambda g, d: np.sum(g * d), gradient(wide, task, batch), direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), difference, rtol=2e-3)


def test_own_with_probability_zero_is_teacher_forcing_to_the_bit(sampling):
    task, forced, params = sampling
    jax.tree.map(
        np.testing.assert_array_equal,
        loss(task, params, pairs(), row_keys()),
        loss(forced, params, pairs(), row_keys()),
    )


def own_tokens(task, params, batch):
    """What the decoder reads when all but <eos> are its predictions of a pass over the text itself."""
    predictions = logits_of(task, params, batch).argmax(-1)
    return np.concatenate([batch.tokens[:, :1], predictions[:, :-1]], axis=1).astype(np.int32)


def test_own_with_probability_one_reads_its_own_predictions(sampling):
    task, forced, params = sampling
    batch = pairs(own=1.0)
    tokens = own_tokens(task, params, batch)
    assert (tokens != batch.tokens).any()
    expected = loss(forced, params, batch._replace(tokens=tokens))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), loss(task, params, batch, row_keys()), expected)


def test_own_with_a_probability_reads_about_that_share_of_its_own_predictions(sampling):
    task, _, params = sampling
    many = jax.tree.map(lambda a: np.tile(a, (40,) + (1,) * (a.ndim - 1)), pairs(own=0.3))
    tokens = jnp.asarray(many.tokens)

    @compiled
    def mixed(keys, own):
        start, memory = task._apply(params, many.inputs, method="init_decoder")
        return task._mixed(params, tokens, start, memory, own, keys)

    keys = row_keys(rows=40 * B)
    some, all_ = (np.asarray(mixed(keys, np.full(40 * B, own, np.float32))) for own in (0.3, 1.0))
    differs = all_ != many.tokens
    assert not differs[:, 0].any()
    assert ((some == many.tokens) | (some == all_)).all()
    count = differs.sum()
    assert abs((some != many.tokens).sum() / count - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)
    rows = (some != many.tokens)[:, 1:].reshape(40, -1)
    assert len(np.unique(rows, axis=0)) > 30  # rows of the same text draw for themselves


def test_a_row_reads_its_own_by_its_own_key_and_probability_alone(sampling):
    task, _, params = sampling
    tokens = jnp.asarray(pairs().tokens)

    @compiled
    def mixed(keys, own):
        start, memory = task._apply(params, pairs().inputs, method="init_decoder")
        return task._mixed(params, tokens, start, memory, own, keys)

    own = np.full(B, 0.5, np.float32)
    others = own * (np.arange(B) == B - 1)
    keys, other_keys = row_keys(1), jnp.concatenate([row_keys(2)[:-1], row_keys(1)[-1:]])
    here = mixed(keys, own)
    np.testing.assert_array_equal(here[-1], mixed(other_keys, own)[-1])
    np.testing.assert_array_equal(here[-1], mixed(keys, others)[-1])
    np.testing.assert_array_equal(mixed(keys, others)[:-1], tokens[:-1])
    assert np.any(here != mixed(other_keys, own))


def test_evaluation_never_reads_its_own(sampling):
    task, forced, params = sampling
    jax.tree.map(np.testing.assert_array_equal, loss(task, params, pairs(own=1.0)), loss(forced, params, pairs()))


def test_a_text_of_one_token_has_nothing_of_its_own_to_read(sampling):
    task, forced, params = sampling
    batch = pairs(own=1.0)
    short = batch._replace(tokens=batch.tokens[:, :1], targets=batch.targets[:, :1], mask=batch.mask[:, :1])
    jax.tree.map(
        np.testing.assert_array_equal, loss(task, params, short, row_keys()), loss(forced, params, short, row_keys())
    )


# Label smoothing


def test_smoothed_labels_are_those_by_hand_in_training_and_not_in_evaluation():
    task = build(cell="gru", label_smoothing=0.1)
    params, batch = random_params(task), pairs()
    logp = log_softmax(logits_of(task, params, batch))
    target = 0.9 * np.eye(VOCAB)[batch.targets] + 0.1 / VOCAB
    smoothed = -(target * logp).sum(-1)[batch.mask].sum()
    plain = -np.take_along_axis(logp, batch.targets[..., None], -1)[..., 0][batch.mask].sum()
    training, evaluation = loss(task, params, batch, row_keys()), loss(task, params, batch)
    np.testing.assert_allclose(training.objective, [smoothed, batch.mask.sum()], rtol=1e-5)
    np.testing.assert_allclose(evaluation.objective, [plain, batch.mask.sum()], rtol=1e-5)
    np.testing.assert_allclose([training.nll, evaluation.nll], plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, False),
        ({"dropout": 0.1}, True),
        ({"embed_dropout": 0.1}, True),
        ({"token_dropout": 0.1}, True),
        ({"zoneout": 0.1}, True),
        ({"locked_dropout": True}, False),
        ({"use_scheduled_sampling": True}, True),
        ({"label_smoothing": 0.1}, True),
    ],
)
def test_training_asks_for_keys_where_it_does_what_evaluation_does_not(options, wanted):
    assert build(cell="gru", **options).is_random is wanted


# Several devices, other encoders, one token


@pytest.mark.runs
def test_two_devices_train_as_one_does():
    task = build(cell="elman", attention="general", use_scheduled_sampling=True, dropout=0.2)
    optimizer, params = optax.sgd(0.1), random_params(task)
    batches = jax.tree.map(lambda a: jnp.asarray(a)[None], pairs(own=0.5))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ())
    one = compiled(partial(train_steps, task, optimizer))
    two = compiled(shard_train_steps(task, optimizer, make_mesh(2)))
    (a, log), (b, other) = (train(jax.random.key(0), state, batches, jnp.int32(1)) for train in (one, two))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), (a.params, log), (b.params, other))


class Numbers(nn.Module):
    """An encoder of a vector of numbers for each row: nothing to look at, a state to begin from."""

    has_dropout = False

    def encode(self, inputs, row_keys=None):
        return DecoderInput((inputs,))

    def example(self):
        return jnp.zeros((1, 3))


def test_any_encoder_that_gives_a_source_can_be_written_from():
    task = Seq2SeqTask(EncoderDecoder(Numbers(), Decoder(VOCAB, hidden=H)))
    params = random_params(task)
    batch = pairs()._replace(inputs=np.random.default_rng(1).normal(size=(B, 3)).astype(np.float32))
    bridge = params["decoder"]["bridge_0"]
    state = np.tanh(batch.inputs @ np.asarray(bridge["kernel"]) + np.asarray(bridge["bias"]))
    language = {"params": params["decoder"]["language"]}
    wanted = compiled(partial(LanguageModel(VOCAB, hidden=H).apply, language))
    logits = wanted(batch.tokens, ((state[:, :H], state[:, H:]),))[1]
    np.testing.assert_allclose(logits_of(task, params, batch), logits, atol=1e-5)
    prepared = prepare(task, params)
    memory, _, first = begin(task, prepared, batch.inputs)
    assert memory == ()
    np.testing.assert_allclose(first, logits[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_and_a_text_of_one_token_work(name):
    task = build(cell="elman", attention=name, bidirectional=True)
    one = jax.tree.map(lambda a: a[:1, :1] if a.ndim > 1 else a[:1], pairs())
    totals = loss(task, random_params(task), one)
    assert totals.targets == 1
    assert np.isfinite(totals.nll)


@pytest.mark.parametrize("name", ["general", "additive"])
def test_factors_rounded_to_bfloat16_change_the_loss_a_little(name):
    rounded, plain = (build(cell="elman", attention=name, precision=each) for each in ("bfloat16", "float32"))
    params = random_params(plain)
    got, expected = loss(rounded, params, pairs()).nll, loss(plain, params, pairs()).nll
    assert got != expected
    np.testing.assert_allclose(got, expected, rtol=0.02)


# What it is made of, and what it refuses


def test_initial_carries_are_nothing_and_the_form_chosen_is_told():
    task = build(cell="lstm")
    assert task.initial_carry(B) == ()
    assert task.resolved_options() == {"form": "fused" if jax.default_backend() == "cpu" else "scan"}


def test_sizes_reach_encoder_and_decoder():
    task = build(
        cell="lstm", cell_options={"forget_bias": 2.0}, layers=2, embed=4, bidirectional=True, dropout=0.1, form="scan"
    )
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert params["encoder"]["embedding"]["embedding"].shape == (SOURCE, 4)
    assert params["decoder"]["language"]["embedding"].shape == (VOCAB, 4)
    assert params["encoder"]["backwards_1"]["input"]["kernel"].shape == (2 * H, 4 * H)
    assert params["decoder"]["language"]["output"]["kernel"].shape == (H, VOCAB)
    assert (task.model.encoder.dropout, task.model.decoder.dropout, task.resolved_options()["form"]) == (
        0.1,
        0.1,
        "scan",
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cell": "ltsm"}, "'lstm'"),
        ({"cell": "lstm", "cell_options": {"gates": 3}}, "'gates'"),
        ({"cell": "lstm", "cell_options": {"features": 3}}, "'features'"),
        ({"cell": "lstm", "attention": "aditive"}, "'additive'"),
        ({"cell": "lstm", "label_smoothing": 1.0}, "label_smoothing"),
        ({"cell": "lstm", "source_vocab": 0}, "vocab_size"),
        ({"cell": "lstm", "eos": VOCAB}, f"{VOCAB - 1}"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(**options)
