"""The language objective: loss computed by hand, gradients, and decoding that agrees with the forward pass."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.registry import TASKS
from jaxgen.training.step import row_keys
from jaxgen.types import Batch

B, T, H = 4, 6, 5
SIZES = (7, 40)  # fewer tokens in the vocabulary than in a batch (looked up in a table), and more
RESET = np.zeros((B, T), bool)
RESET[0, 0] = RESET[1, 3] = RESET[2, [2, 5]] = True
MASK = np.ones((B, T), bool)
MASK[1, 4:] = MASK[3, :5] = False

#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}
compiled = partial(jax.jit, compiler_options=FAST)

build = partial(LanguageTask.build, cell="elman", cell_options={}, hidden=H, layers=1)
loss = compiled(LanguageTask.loss, static_argnums=0)
prefill = compiled(LanguageTask.prefill, static_argnums=0)
step = compiled(LanguageTask.step, static_argnums=0)
gradient = compiled(jax.grad(lambda p, task, c, b: task.loss(p, c, b)[1].nll), static_argnums=1)


def random_params(task, seed=0):
    normal = np.random.default_rng(seed).normal
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(normal(0, 0.7, a.shape), jnp.float32), shapes)


def random_batch(vocab, mask=MASK, seed=0):
    ids = np.random.default_rng(seed).integers(0, vocab, (B, T + 1)).astype(np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], RESET, mask)


def random_carry():
    return (jnp.asarray(np.random.default_rng(9).normal(size=(B, H)), jnp.float32),)


@pytest.fixture(scope="module", params=SIZES)
def case(request):
    task = build(vocab_size=request.param)
    return task, random_params(task), random_carry(), random_batch(request.param)


@pytest.fixture(scope="module")
def small():
    task = build(vocab_size=SIZES[0])
    return task, random_params(task), random_carry(), random_batch(SIZES[0])


@pytest.fixture(scope="module")
def keys():
    return row_keys(jax.random.key(3), 0, B)


def regularised(keys, vocab=SIZES[0], **options):
    """The task with something added to its loss, its totals in training and those of an evaluation, and its outputs."""
    task = build(vocab_size=vocab, **options)
    params, carry, batch = random_params(task), random_carry(), random_batch(vocab)

    def run(params, carry, batch):
        (_, trained), (_, evaluated) = task.loss(params, carry, batch, keys), task.evaluate(params, carry, batch)
        reset = jnp.asarray(batch.reset).T
        _, outputs = task.model.apply({"params": params}, batch.tokens.T, carry, reset=reset, method="states")
        return trained, evaluated, outputs, task.model.apply({"params": params}, outputs, method="logits")

    trained, evaluated, outputs, logits = compiled(run)(params, carry, batch)
    assert len(evaluated) == 2
    np.testing.assert_allclose(trained.nll, evaluated.nll, rtol=1e-5)  # what is reported is the cross-entropy alone
    assert trained.objective.weight == trained.targets == MASK.sum()
    return trained, np.asarray(outputs, np.float64), np.asarray(logits, np.float64), batch


def test_label_smoothing_spreads_a_share_of_the_target_over_the_vocabulary(keys):
    trained, _, logits, batch = regularised(keys, label_smoothing=0.2)
    vocab = logits.shape[-1]
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    target = 0.8 * np.eye(vocab)[batch.targets.T] + 0.2 / vocab
    expected = -(target * logp).sum(axis=-1)[MASK.T].sum()
    np.testing.assert_allclose(trained.objective.loss, expected, rtol=1e-5)


def test_activation_regularisation_adds_the_mean_square_of_the_outputs(keys):
    trained, outputs, _, _ = regularised(keys, ar=0.5)
    expected = 0.5 * (outputs**2).mean(axis=-1)[MASK.T].sum()
    np.testing.assert_allclose(trained.objective.loss - trained.nll, expected, rtol=1e-4)


def test_temporal_regularisation_adds_the_mean_square_of_changes_that_no_reset_makes(keys):
    trained, outputs, _, _ = regularised(keys, tar=0.5)
    expected = 0.0
    for b in range(B):
        for t in range(1, T):
            if MASK[b, t] and MASK[b, t - 1] and not RESET[b, t]:
                expected += 0.5 * ((outputs[t, b] - outputs[t - 1, b]) ** 2).mean()
    np.testing.assert_allclose(trained.objective.loss - trained.nll, expected, rtol=1e-4)


def test_temporal_regularisation_reads_the_outputs_before_dropout(keys):
    task = build(vocab_size=SIZES[0], dropout=0.5, tar=1.0)
    params, carry, batch = random_params(task), random_carry(), random_batch(SIZES[0])
    plain = dataclasses.replace(task, model=task.model.clone(dropout=0.0))
    both = compiled(lambda params: [each.loss(params, carry, batch, keys)[1] for each in (task, plain)])
    dropped, whole = both(params)
    np.testing.assert_allclose(dropped.objective.loss - dropped.nll, whole.objective.loss - whole.nll, rtol=1e-5)
    assert abs(dropped.nll - whole.nll) > 1e-3


@pytest.mark.parametrize("options", [{"label_smoothing": 1.0}, {"ar": -1.0}, {"tar": float("inf")}])
def test_a_weight_that_the_loss_cannot_have_is_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        build(vocab_size=SIZES[0], **options)


def by_hand(params, carry, batch):
    """The Elman network, its cross-entropy and its last state, row by row and step by step in NumPy."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    cell, h, nll = p["stack"]["cells_0"], np.asarray(carry[0], np.float64), 0.0
    for b in range(B):
        for t in range(T):
            before = np.zeros(H) if batch.reset[b, t] else h[b]
            x = p["embedding"][batch.tokens[b, t]] @ cell["input"]["kernel"] + cell["input"]["bias"]
            h[b] = np.tanh(x + before @ cell["recurrent_kernel"])
            logits = h[b] @ p["output"]["kernel"] + p["output"]["bias"]
            if batch.mask[b, t]:
                nll += np.log(np.exp(logits).sum()) - logits[batch.targets[b, t]]
    return nll, h


def test_the_loss_is_the_cross_entropy_by_hand(case):
    task, params, carry, batch = case
    np.testing.assert_allclose(loss(task, params, carry, batch)[1].nll, by_hand(params, carry, batch)[0], rtol=1e-5)


def test_the_carry_is_the_last_state_by_hand(case):
    task, params, carry, batch = case
    np.testing.assert_allclose(loss(task, params, carry, batch)[0][0], by_hand(params, carry, batch)[1], atol=1e-5)


def test_the_targets_that_count_are_counted(case):
    task, params, carry, batch = case
    assert loss(task, params, carry, batch)[1].targets == MASK.sum()


def test_a_masked_target_changes_neither_loss_nor_gradient(small):
    task, params, carry, batch = small
    other = batch._replace(targets=np.where(batch.mask, batch.targets, 3).astype(np.int32))
    assert (other.targets != batch.targets).any()
    assert loss(task, params, carry, batch)[1].nll == loss(task, params, carry, other)[1].nll
    pair = (gradient(params, task, carry, b) for b in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_without_a_target_the_gradient_is_exactly_zero(small):
    task, params, carry, batch = small
    for leaf in jax.tree.leaves(gradient(params, task, carry, batch._replace(mask=np.zeros((B, T), bool)))):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_a_row_without_targets_reads_its_tokens_for_nothing(small):
    task, params, carry, batch = small
    mask = batch.mask.copy()
    mask[2] = False
    batch = batch._replace(mask=mask)
    tokens = batch.tokens.copy()
    tokens[2] = (tokens[2] + 1) % SIZES[0]
    pair = (loss(task, params, carry, b)[1].nll for b in (batch, batch._replace(tokens=tokens)))
    np.testing.assert_array_equal(*pair)


def test_two_halves_with_the_carried_state_add_up_to_the_whole(small):
    task, params, carry, batch = small
    whole_carry, whole = loss(task, params, carry, batch)
    half, totals = carry, []
    for part in (slice(0, T // 2), slice(T // 2, T)):
        half, total = loss(task, params, half, Batch(*(np.ascontiguousarray(field[:, part]) for field in batch)))
        totals.append(total)
    np.testing.assert_allclose(sum(t.nll for t in totals), whole.nll, rtol=1e-6)
    assert sum(t.targets for t in totals) == whole.targets
    np.testing.assert_allclose(half[0], whole_carry[0], atol=1e-6)


def test_a_reset_row_forgets_the_carry_that_came_in(small):
    task, params, carry, batch = small
    batch = batch._replace(reset=np.eye(1, T, dtype=bool).repeat(B, 0))
    pair = (loss(task, params, start, batch) for start in (carry, task.initial_carry(B)))
    jax.tree.map(np.testing.assert_array_equal, *pair)


@pytest.fixture(scope="module", params=[SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.runs)])
def decoding(request):
    """An LSTM of two layers, what it has prepared for decoding, and its forward pass over some tokens."""
    task = build(vocab_size=request.param, cell="lstm", layers=2)
    params = random_params(task)
    tokens = random_batch(request.param).tokens
    forward = compiled(lambda p, t: task.model.apply({"params": p}, t))
    return task, compiled(task.prepare)(params), tokens, forward(params, tokens)


def close(got, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), got, wanted)


def test_stepping_token_by_token_is_the_forward_pass(decoding):
    task, prepared, tokens, (wanted_carry, wanted_logits) = decoding
    carry, logits = task.initial_carry(B), []
    for t in range(T):
        carry, now = step(task, prepared, carry, tokens[:, t])
        logits.append(now)
    close((carry, jnp.stack(logits, 1)), (wanted_carry, wanted_logits))


def test_priming_is_the_forward_pass_over_the_prompt(decoding):
    task, prepared, tokens, (carry, logits) = decoding
    got = prefill(task, prepared, task.initial_carry(B), jnp.zeros(logits[:, 0].shape), tokens, np.ones((B, T), bool))
    close(got, (carry, logits[:, -1]))


def test_priming_in_two_chunks_is_priming_in_one(decoding):
    task, prepared, tokens, (carry, logits) = decoding
    state = task.initial_carry(B), jnp.zeros(logits[:, 0].shape)
    for start, stop in ((0, T), (T, T + 2)):  # the last chunk is two tokens and padding
        some = np.concatenate([tokens, tokens], axis=1)[:, start:stop]
        padded = np.zeros((B, T), np.int32)
        padded[:, : some.shape[1]] = some
        state = prefill(task, prepared, *state, padded, np.arange(T)[None, :].repeat(B, 0) < some.shape[1])
    carry = task.initial_carry(B)
    for token in np.concatenate([tokens, tokens[:, :2]], axis=1).T:
        carry, logits = step(task, prepared, carry, token)
    close(state, (carry, logits))


def ragged(counts):
    return np.arange(T)[None, :] < np.array(counts)[:, None]


def test_what_stands_in_the_padding_of_a_prompt_changes_no_bit(decoding):
    task, prepared, tokens, (_, logits) = decoding
    valid, start = ragged([0, 1, 3, T]), (task.initial_carry(B), jnp.ones(logits[:, 0].shape))
    pair = (
        prefill(task, prepared, *start, np.where(valid, tokens, junk).astype(np.int32), valid)
        for junk in (0, task.model.vocab_size - 1)
    )
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_a_row_with_a_shorter_prompt_stops_at_its_end(decoding):
    task, prepared, tokens, (_, logits) = decoding
    counts = [1, 2, 3, T]
    got = prefill(task, prepared, task.initial_carry(B), jnp.zeros(logits[:, 0].shape), tokens, ragged(counts))[1]
    close(got, np.stack([logits[b, n - 1] for b, n in enumerate(counts)]))


def test_a_row_without_a_prompt_keeps_its_carry_and_logits_bitwise(decoding):
    task, prepared, tokens, (carry, logits) = decoding
    got_carry, got = prefill(task, prepared, carry, logits[:, 2], tokens, ragged([0, 1, 3, T]))
    np.testing.assert_array_equal(got[0], logits[0, 2])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), got_carry, carry)


def test_an_unknown_cell_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'lstm'"):
        build(vocab_size=7, cell="ltsm")


def test_an_option_the_cell_lacks_is_refused_with_those_it_has():
    with pytest.raises(UsageError, match="forget_bias"):
        build(vocab_size=7, cell="lstm", cell_options={"gates": 3})


@pytest.mark.parametrize("name", ["features", "parent", "name", "param_dtype"])
def test_an_option_that_the_model_sets_itself_is_refused(name):
    with pytest.raises(UsageError, match=name):
        build(vocab_size=7, cell_options={name: 3})


def test_an_option_of_the_cell_reaches_it():
    tanh, relu = (build(vocab_size=7, cell_options={"activation": name}) for name in ("tanh", "relu"))
    params, carry, batch = random_params(tanh), random_carry(), random_batch(7)
    assert loss(tanh, params, carry, batch)[1].nll != loss(relu, params, carry, batch)[1].nll


#: What is called of a task beside training: of one that answers inputs by how it does (``ANSWER``), else for sampling.
CALLED = {"values": ["predict"], "texts": ["init_decoder", "step"], None: ["prefill", "step", "score"]}


@pytest.mark.parametrize("name", TASKS)
def test_a_registered_task_has_the_functions_that_training_and_decoding_call(name):
    decoding = CALLED[getattr(TASKS[name], "ANSWER", None)]
    for function in ["build", "init", "initial_carry", "loss", "evaluate", "prepare", "resolved_options", *decoding]:
        assert callable(getattr(TASKS[name], function, None)), function


@pytest.mark.parametrize("name", TASKS)
def test_a_registered_task_is_a_frozen_dataclass_that_says_whether_training_is_random(name):
    assert dataclasses.is_dataclass(TASKS[name])
    assert TASKS[name].__dataclass_params__.frozen
    assert hasattr(TASKS[name], "is_random")
