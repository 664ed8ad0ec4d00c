"""Predictions: in order, each from its own input alone, for any number of inputs, with few compilations."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from builders import unpickled

from jaxgen import jitted
from jaxgen.data.bucketing import bucket_width
from jaxgen.inference import predictor
from jaxgen.inference.predictor import BLOCK_ROWS, Predictor
from jaxgen.tasks.classify.data import ClassifyCodec
from jaxgen.tasks.classify.objective import ClassifyTask
from jaxgen.tokenizers import CharTokenizer

LABELS = ("a", "b", "c")
LONGEST = 20


def random_params(task, seed=0):
    normal, shapes = np.random.default_rng(seed).normal, jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda a: normal(0, 0.7, a.shape).astype(a.dtype), shapes)


@pytest.fixture(scope="module")
def classifier():
    """A classifier with random weights: what a text is taken for depends on all of it."""
    codec = ClassifyCodec(CharTokenizer.train(["abcdefgh"]), LABELS, False, LONGEST)
    sizes = {"vocab_size": codec.tokenizer.vocab_size, "classes": 3}
    task = ClassifyTask.build(**sizes, cell="gru", cell_options={}, hidden=6, bidirectional=True)
    return Predictor(task, codec, random_params(task))


def texts(number, seed=0):
    """Texts of 0 to 30 letters."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh"), rng.integers(0, 31))) for _ in range(number)]


@pytest.fixture(scope="module")
def many(classifier):
    """More texts than go into a block of any width, and their answers."""
    given = texts(5 * BLOCK_ROWS)
    return given, list(classifier.predict(given))


def test_answers_come_in_the_order_of_the_inputs(many):
    given, answers = many
    assert [answer["text"] for answer in answers] == given
    assert len({answer["label"] for answer in answers}) > 1


def test_a_predictor_can_be_pickled(classifier, many):
    given, answers = many
    assert list(unpickled(classifier).predict(given[:3])) == answers[:3]


def test_an_answer_is_bitwise_that_of_its_input_alone(classifier, many):
    given, answers = many
    for place in (0, 1, 7, BLOCK_ROWS, 3 * BLOCK_ROWS + 5, len(given) - 1):
        assert list(classifier.predict([given[place]])) == [answers[place]]


def test_an_answer_does_not_depend_on_its_place_nor_on_its_neighbours(classifier, many):
    given, answers = many
    order = np.random.default_rng(1).permutation(len(given))
    assert list(classifier.predict([given[i] for i in order])) == [answers[i] for i in order]


def test_probabilities_are_those_of_the_model_without_padding(classifier, many):
    given, answers = many
    for text, answer in list(zip(given, answers))[:4]:  # each length is compiled
        ids = classifier.codec.encode(text)
        inputs = classifier.codec.pack([ids], (max(1, ids.size),), 1)
        expected = np.asarray(classifier.task.predict(classifier._params, inputs))[0]
        np.testing.assert_allclose([answer["probabilities"][label] for label in LABELS], expected, atol=2e-6)


@pytest.mark.parametrize("number", [0, 1, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_any_number_of_inputs_has_as_many_answers(number, classifier):
    given = ["abc"] * number
    assert [answer["text"] for answer in classifier.predict(given)] == given


def test_inputs_beyond_those_read_ahead_are_answered_alike(classifier, many, monkeypatch):
    given, answers = many
    for ahead in (1, 7, 50):
        monkeypatch.setattr(predictor, "READ_AHEAD", ahead)
        assert list(classifier.predict(iter(given[:60]))) == answers[:60]


def test_no_more_inputs_are_read_than_a_portion_ahead(classifier):
    taken = []

    def inputs():
        for text in texts(3 * predictor.READ_AHEAD):
            taken.append(text)
            yield text

    next(iter(classifier.predict(inputs())))
    assert len(taken) <= predictor.READ_AHEAD


def test_a_text_without_anything_is_answered_by_what_the_model_knows_without_one(classifier):
    bias = np.asarray(classifier._params["output"]["bias"], np.float64)
    expected = np.exp(bias) / np.exp(bias).sum()
    empty, blank, full = classifier.predict(["", " \t", "abc"])
    assert empty["probabilities"] == blank["probabilities"] != full["probabilities"]
    np.testing.assert_allclose([empty["probabilities"][label] for label in LABELS], expected, atol=2e-6)


def test_a_long_text_is_answered_by_its_beginning_and_says_how_much_was_not_read(classifier):
    long, beginning = classifier.predict(["abcdefgh" * 4, ("abcdefgh" * 4)[:LONGEST]])
    assert long["probabilities"] == beginning["probabilities"]
    assert (long["cut"], beginning["cut"]) == (32 - LONGEST, 0)


def test_as_many_functions_are_compiled_as_there_are_widths(classifier, many):
    widths = {bucket_width(min(len(text), LONGEST)) for text in many[0]}
    assert jitted.jit_predict(classifier.task)._cache_size() <= len(widths)
    before = jitted.jit_predict(classifier.task)._cache_size()
    list(classifier.predict(texts(100, seed=2)))
    assert jitted.jit_predict(classifier.task)._cache_size() == before


def test_other_weights_answer_otherwise_and_compile_nothing(classifier, many):
    given, answers = many
    before = jitted.jit_predict(classifier.task)._cache_size()
    other = Predictor(classifier.task, classifier.codec, classifier._params)
    other.with_params(random_params(classifier.task, seed=1))
    assert list(other.predict(given[:40])) != answers[:40]
    assert list(other.with_params(classifier._params).predict(given[:40])) == answers[:40]
    assert jitted.jit_predict(classifier.task)._cache_size() == before
