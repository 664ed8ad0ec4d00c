"""The n-gram model: its probabilities against the formulas, and its functions against each other."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.baselines import ngram
from jaxgen.baselines.ngram import FALLBACK, NGramTask, discounts, fit
from jaxgen.errors import DataError, UsageError

from .textbook import BEGIN, Textbook

EOS = 2


def running(vocab, length=150, seed=0):
    """A text in which some tokens are frequent and some words come back; ids from 3."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(3, vocab, rng.integers(1, 5)) for _ in range(8)]
    return np.concatenate([words[int(rng.integers(8) * rng.random())] for _ in range(length)])[:length]


def documents(vocab, seed=0):
    """Texts of 1 to 6 tokens, each ending in EOS."""
    text = running(vocab, seed=seed)
    cuts = np.cumsum(np.random.default_rng(seed).integers(1, 7, 30))
    return [[*part.tolist(), EOS] for part in np.split(text, cuts[cuts < text.size])]


def joined(texts):
    return np.concatenate(texts)


CASES = {
    "order 3": (running(7), 7, 3),
    "order 4": (running(6), 6, 4),
    "longer than the text": (np.array([3, 4, 3]), 5, 5),
    "documents": (joined(documents(6)), 6, 3),
    "documents, order 1": (joined(documents(6)), 6, 1),
}
#: Tokens of context that are read; the shorter ones stand behind others and a reset.
T = 3


@partial(jax.jit, static_argnums=0)
def after(model, params, tokens, reset):
    """The log-probabilities [R, V] after each row of ``tokens`` [R, T]."""
    return model.logits(params, model.read(params, model.initial_carry(tokens.shape[0]), tokens, reset)[:, -1])


def contexts(vocab):
    """Every context of 1 to T tokens: the tokens to read [R, T], where to reset, and the contexts as tuples."""
    found = [row for length in range(1, T + 1) for row in itertools.product(range(vocab), repeat=length)]
    tokens = np.array([(3,) * (T - len(row)) + row for row in found], np.int32)
    reset = np.array([T - len(row) for row in found])[:, None] == np.arange(T)
    return tokens, reset, found


def begun(row, eos=EOS):
    """A context as the formulas have it: the end of a text that was read begins the next."""
    return tuple(BEGIN if token == eos else token for token in row)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The formulas, every context, and the model's log-probabilities after each."""
    ids, vocab, order = CASES[request.param]
    model, params = fit(ids, vocab, order, EOS)
    tokens, reset, rows = contexts(vocab)
    return Textbook(ids.tolist(), vocab, order, EOS), rows, after(model, params, tokens, reset)


def test_probabilities_after_every_context_are_those_of_the_formulas(case):
    textbook, rows, found = case
    wanted = [[textbook.probability(v, begun(row)) for v in range(textbook.vocab_size)] for row in rows]
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-5)


def test_probabilities_add_up_to_one(case):
    np.testing.assert_allclose(np.log(np.exp(case[2]).sum(axis=1)), 0, atol=2e-6)


def test_the_cases_have_discounts_of_their_own_and_the_fallback():
    known = [Textbook(*CASES[name], EOS).discount(n) for name in ("order 3", "order 4") for n in (1, 3)]
    assert FALLBACK in known
    assert any(each != FALLBACK for each in known)


def test_a_vocabulary_of_two_tokens_is_enough():
    ids = [1, 1, 0, 1, 0, 1, 1, 1, 0]
    textbook, (model, params) = Textbook(ids, 2, 3, eos=0), fit(ids, 2, 3, eos=0)
    tokens, reset, rows = contexts(2)
    wanted = [[textbook.probability(v, begun(row, eos=0)) for v in (0, 1)] for row in rows]
    np.testing.assert_allclose(np.exp(after(model, params, tokens % 2, reset)), wanted, rtol=1e-5)


def test_without_anything_read_the_first_token_is_that_of_the_formulas():
    textbook, (model, params) = Textbook(*CASES["order 3"], EOS), fit(*CASES["order 3"], EOS)
    found = jax.jit(model.logits)(params, model.initial_carry(1))[0]
    np.testing.assert_allclose(np.exp(found), [textbook.probability(v, ()) for v in range(7)], rtol=1e-5)


def test_one_probability_and_all_of_them_agree_where_they_take_several_windows(monkeypatch):
    monkeypatch.setattr(ngram, "WINDOW", 3)
    model, params = fit(running(20, 400), 20, 4, EOS)
    assert np.diff(params["first"]).max() > 2 * ngram.WINDOW

    @jax.jit
    def both(params, tokens):
        carry = model.read(params, model.initial_carry(1), tokens)[0]
        every, carries = jnp.broadcast_to(jnp.arange(20), (60, 20)), jnp.broadcast_to(carry[:, None], (60, 20, 3))
        return model.logits(params, carry), model.log_probability(params, carries, every)

    np.testing.assert_array_equal(*both(params, running(20, 60, seed=1)[None].astype(np.int32)))


def test_no_context_reaches_from_one_document_into_another():
    texts = documents(6)
    one, other = (fit(joined(each), 6, 4, EOS)[1] for each in (texts, texts[::-1]))
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name])


@pytest.fixture(scope="module")
def four():
    """A model of order 4 with its compiled functions, and a text to read."""
    model, params = fit(running(7), 7, 4, EOS)
    return model, params, jax.jit(model.read), jax.jit(model.step), running(7, 10, seed=3)[None].astype(np.int32)


def test_reading_step_by_step_is_reading_at_once(four):
    model, params, read, step, tokens = four
    carry, carries = model.initial_carry(1), []
    for t in range(10):
        carry, logits = step(params, carry, tokens[:, t])
        carries.append(carry)
    whole = read(params, model.initial_carry(1), tokens, np.zeros((1, 10), bool))
    np.testing.assert_array_equal(np.stack(carries, axis=1), whole)
    np.testing.assert_array_equal(logits, jax.jit(model.logits)(params, whole[:, -1]))


def test_a_reset_forgets_what_was_read_before_it(four):
    model, params, read, _, tokens = four
    other = np.concatenate([(tokens[:, :4] + 1) % 7, tokens[:, 4:]], axis=1)
    at_4, never = np.arange(10)[None] == 4, np.zeros((1, 10), bool)
    for reset, same in ((at_4, True), (never, False)):
        one, two = (read(params, model.initial_carry(1), each, reset)[:, 4:] for each in (tokens, other))
        assert np.array_equal(one, two) == same


def test_what_was_never_counted_is_uniform():
    model = NGramTask(vocab_size=5, order=3, nodes=9, contexts=4)
    found = jax.jit(model.logits)(model.init(jax.random.key(0)), np.array([[3, 2]], np.int32))
    np.testing.assert_allclose(found, -np.log(5.0), rtol=1e-6)


def test_parameters_have_the_shapes_that_init_gives():
    model, params = fit(running(7), 7, 3, EOS)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {n: (a.shape, a.dtype) for n, a in shapes.items()} == {n: (a.shape, a.dtype) for n, a in params.items()}


def test_discounts_follow_from_the_counts_of_counts():
    assert discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])) == (0.5, 1.25, 1.0)
    assert discounts(np.array([1, 1, 2, 3])) == FALLBACK  # none occurs four times
    assert discounts(np.array([1, 2, 3, 3, 3, 3, 4])) == FALLBACK  # the second would be negative


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DataError, match="no tokens"):
        fit([], 5, 3, EOS)
    for ids in ([3, 5], [-1, 3], [0.5, 1.5], [[3, 4]]):
        with pytest.raises(UsageError, match="0 to 4"):
            fit(ids, 5, 3, EOS)
    with pytest.raises(UsageError, match="5"):
        fit([3, 4], 5, 3, eos=5)
    for order in (0, 2.0, True):
        with pytest.raises(UsageError, match="order"):
            fit([3, 4], 5, order, EOS)
