"""The classification objective: loss, confusion matrix and calibration computed by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.metrics import classification_metrics
from jaxgen.tasks.classify.objective import BINS, ClassifyTask, _confusion_and_calibration
from jaxgen.types import ClassificationBatch, TokenRows

B, S, V, C = 6, 5, 9, 3
VALID = np.arange(S)[None, :] < np.array([5, 3, 1, 4, 2, 0])[:, None]
TOKENS = np.random.default_rng(0).integers(0, V, (B, S)).astype(np.int32)
LABELS = np.array([0, 2, 1, 0, 1, 2], np.int32)
WEIGHTS = np.array([1, 0.5, 2, 0, 1.5, 1], np.float32)
FAST = {"xla_backend_optimization_level": 0}

build = partial(ClassifyTask.build, vocab_size=V, classes=C, cell="elman", cell_options={}, hidden=4)
loss = jax.jit(ClassifyTask.loss, static_argnums=0, compiler_options=FAST)
gradient = jax.jit(
    jax.grad(lambda p, task, b: task.loss(p, (), b)[1].objective.loss), static_argnums=1, compiler_options=FAST
)
predict = jax.jit(ClassifyTask.predict, static_argnums=0, compiler_options=FAST)


@pytest.fixture(scope="module")
def task():
    return build(bidirectional=True)


@pytest.fixture(scope="module")
def params(task):
    normal = np.random.default_rng(1).normal
    return jax.tree.map(
        lambda a: jnp.asarray(normal(0, 1.5, a.shape), a.dtype), jax.eval_shape(task.init, jax.random.key(0))
    )


def batch(weights=WEIGHTS, labels=LABELS, tokens=TOKENS):
    return ClassificationBatch(TokenRows(tokens, VALID), labels, weights)


def test_the_objective_is_the_weighted_cross_entropy_by_hand_and_what_is_reported_has_no_weights(task, params):
    nll = -np.log(np.float64(predict(task, params, batch().inputs))[range(B), LABELS])
    totals = loss(task, params, (), batch())[1]
    np.testing.assert_allclose(totals.objective, [(WEIGHTS * nll).sum(), WEIGHTS.sum()], rtol=1e-5)
    np.testing.assert_allclose([totals.nll, totals.targets], [nll[WEIGHTS > 0].sum(), B - 1], rtol=1e-5)


def test_probabilities_are_those_of_the_logits(task, params):
    logits = np.float64(task.model.apply({"params": params}, *batch().inputs))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(task, params, batch().inputs), expected, rtol=1e-5)


def test_the_confusion_matrix_counts_rows_that_count_whatever_their_weight(task, params):
    given = np.asarray(predict(task, params, batch().inputs)).argmax(axis=1)
    expected = np.zeros((C, C))
    for true, took, weight in zip(LABELS, given, WEIGHTS):
        expected[true, took] += weight > 0
    confusion = loss(task, params, (), batch())[1].confusion
    np.testing.assert_array_equal(confusion, expected)
    assert confusion.sum() == B - 1


def test_calibration_is_that_of_a_loop_over_rows():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, (200, C)).astype(np.float32)
    logits[:3] = [[50, 0, 0], [0, 0, 0], [0, 50, 0]]  # as sure as can be, and not at all
    labels, counts = rng.integers(0, C, 200).astype(np.int32), rng.random(200) < 0.8
    bins = [[[], []] for _ in range(BINS)]
    for row, label, there in zip(np.float64(logits), labels, counts):
        probabilities = np.exp(row) / np.exp(row).sum()
        if there:
            confidence = probabilities.max()
            at = min(int(confidence * BINS), BINS - 1)
            bins[at][0].append(confidence)
            bins[at][1].append(probabilities.argmax() == label)
    error = sum(len(sure) * abs(np.mean(sure) - np.mean(right)) for sure, right in bins if sure) / counts.sum()
    confusion, calibration = _confusion_and_calibration(jnp.asarray(logits), labels, counts)
    np.testing.assert_allclose(calibration[:, 0], [len(sure) for sure, _ in bins])
    np.testing.assert_allclose(calibration[:, 1], [sum(sure) for sure, _ in bins], rtol=1e-5)
    np.testing.assert_allclose(calibration[:, 2], [sum(right) for _, right in bins])
    figures = classification_metrics(np.asarray(confusion), np.asarray(calibration))
    np.testing.assert_allclose(figures["calibration_error"], error, rtol=1e-5)


def test_totals_of_two_halves_are_those_of_the_whole(task, params):
    whole = loss(task, params, (), batch())[1]
    halves = [
        loss(task, params, (), jax.tree.map(lambda a, part=part: a[part], batch()))[1]
        for part in (slice(0, 3), slice(3, 6))
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.tree.map(lambda a, b: a + b, *halves), whole)


def test_a_row_that_fills_up_a_batch_changes_neither_totals_nor_gradient(task, params):
    labels, tokens = LABELS.copy(), TOKENS.copy()
    labels[3], tokens[3] = 2, 1
    pair = [
        (loss(task, params, (), b)[1], gradient(params, task, b)) for b in (batch(), batch(WEIGHTS, labels, tokens))
    ]
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_a_row_counts_in_the_gradient_by_its_weight(task, params):
    one, two = (gradient(params, task, batch(np.eye(B, dtype=np.float32)[1] * weight)) for weight in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, atol=1e-6), one, two)


def test_no_row_counts_without_a_weight(task, params):
    totals = loss(task, params, (), batch(np.zeros(B, np.float32)))[1]
    assert all((np.asarray(leaf) == 0).all() for leaf in totals)


@pytest.mark.parametrize("name", ["dropout", "embed_dropout", "token_dropout", "recurrent_dropout", "zoneout"])
def test_training_is_random_with_any_dropout_and_only_then(name):
    assert build(**{name: 0.1}).is_random
    assert not build().is_random


def test_an_evaluation_is_without_dropout(params):
    dropping = build(bidirectional=True, dropout=0.5, embed_dropout=0.5, token_dropout=0.5)
    np.testing.assert_array_equal(
        dropping.evaluate(params, (), batch())[1].nll, build(bidirectional=True).evaluate(params, (), batch())[1].nll
    )


def test_what_a_rule_has_chosen_builds_the_same_task():
    assert build(**build().resolved_options()).model.form in ("fused", "scan")


def test_an_unknown_cell_and_its_options_are_refused():
    with pytest.raises(UsageError, match="'gruu'"):
        build(cell="gruu")
    with pytest.raises(UsageError, match="'x'"):
        build(cell_options={"x": 1})
