"""Single logit transforms: sets and ties, n-grams, schedules, extreme values, chains, errors.

What every transform of the registry must do, and that each does what Hugging Face's does, is in ``tests/contracts``.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxgen.errors import UsageError
from jaxgen.sampling.transforms import (
    Bias,
    EpsilonCutoff,
    EtaCutoff,
    Force,
    FrequencyPenalty,
    MinLength,
    MinP,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
)
from jaxgen.sampling.transforms.base import Context, Last, chain, update_chain
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.sampling.transforms.temperature import Linear, Temperature
from jaxgen.sampling.transforms.truncation import PAIRS

R, EOS = 3, 2
#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def _along(kinds, states, logits, tokens):
    def one(carry, now):
        (states, last), (logits, token) = carry, now
        states, logits = update_chain(kinds, states, logits, last)
        return (states, Last(last.t + 1, token)), logits

    return lax.scan(one, (states, Last.none(logits.shape[1])), (logits, tokens))[1]


def along(transform, logits, tokens, prompt=(), eos=EOS):
    """What a transform, or a chain, makes of logits [T, R, V] while tokens [T, R] are drawn."""
    whole = chain(transform)
    states = whole.init(Context(*np.shape(logits)[1:], np.asarray(prompt, np.int32), eos))
    return np.asarray(_along(whole.kinds, states, logits, np.asarray(tokens, np.int32)))


def apply(transform, logits):
    """The logits [R, V] of the first token after a transform or a chain."""
    logits = np.asarray(logits, np.float32)
    return along(transform, logits[None], np.zeros((1, len(logits))))[0]


def random_logits(vocab, rows=R, seed=0):
    return np.random.default_rng([seed, vocab]).normal(0, 2, (rows, vocab)).astype(np.float32)


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Sets: top-k, top-p, typical-p


def test_top_k_keeps_what_is_level_with_the_kth():
    np.testing.assert_array_equal(apply(TopK(2), [[1, 3, 2, 2, 2, 0]]), [[-np.inf, 3, 2, 2, 2, -np.inf]])


def test_top_p_keeps_what_is_level_with_the_least_likely_of_the_set():
    kept = np.isfinite(apply(TopP(0.5), np.log([[0.1, 0.4, 0.2, 0.2, 0.1]])))
    np.testing.assert_array_equal(kept, [[False, True, True, True, False]])


def test_typical_p_keeps_what_is_level_with_the_last_of_the_set():
    kept = np.isfinite(apply(TypicalP(0.3), np.log([[0.05, 0.2, 0.2, 0.55]])))
    np.testing.assert_array_equal(kept, [[False, True, True, False]])


def test_typical_p_can_leave_out_the_likeliest_token():
    kept = np.isfinite(apply(TypicalP(0.2), np.log([[0.6, 0.1, 0.1, 0.1, 0.1]])))
    np.testing.assert_array_equal(kept, [[True, False, False, False, False]])
    kept = np.isfinite(apply(TypicalP(0.2), np.log([[0.3, *[0.7 / 10] * 10]])))
    np.testing.assert_array_equal(kept, [[False, *[True] * 10]])


@pytest.mark.parametrize(
    "transform", [TopK(2), TopP(0.3), TypicalP(0.3), MinP(1.0), EpsilonCutoff(1.0), EtaCutoff(1.0)]
)
def test_among_equal_logits_all_are_kept(transform):
    logits = np.full((R, 17), -1.5, np.float32)
    np.testing.assert_array_equal(apply(transform, logits), logits)


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize("rows", [1, PAIRS])  # pair by pair, and by bisection
def test_top_k_orders_zeros_infinities_and_both_signs(k, rows):
    row = np.array([0.0, -0.0, 3e38, -3e38, -np.inf, 1e-30, -1e-30], np.float32)
    expected = np.where(row >= np.sort(row)[-k], row, -np.inf)
    np.testing.assert_array_equal(apply(TopK(k), np.tile(row, (rows, 1)))[-1], expected)


@pytest.mark.parametrize("transform", [TopK(9), TopP(0.9), TypicalP(0.7)])
def test_a_row_keeps_the_same_tokens_among_few_rows_and_many(transform):
    logits = random_logits(64, 300)
    assert 3 * 64**2 <= PAIRS < 300 * 64**2
    np.testing.assert_array_equal(apply(transform, logits)[:3], apply(transform, logits[:3]))


@pytest.mark.parametrize("p", [1e-300, 1e-45, 1e-30, 1e-10])
@pytest.mark.parametrize("kind", [TopP, TypicalP])
def test_a_p_that_nothing_is_less_likely_than_still_keeps_one_token(kind, p):
    assert (np.isfinite(apply(kind(p), random_logits(17))).sum(1) == 1).all()


def test_top_p_counts_the_probability_that_forbidding_left():
    kept = np.isfinite(apply(chain(Forbid((0,)), TopP(0.5)), np.log([[0.9, 0.06, 0.04]])))
    np.testing.assert_array_equal(kept, [[False, True, False]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1.0), st.floats(0.05, 20.0))
def test_top_p_keeps_the_nucleus_and_no_token_more(seed, p, spread):
    logits = np.float32(spread) * random_logits(30, seed=seed)
    kept, probability = np.isfinite(apply(TopP(p), logits)), softmax(logits)
    for row in range(R):
        mass, least = probability[row][kept[row]].sum(), probability[row][kept[row]].min()
        assert mass >= p - 1e-6, "what is kept reaches p"
        assert mass - least < p + 1e-6, "without its least likely token it would not"
        assert kept[row][probability[row] > least].all(), "and nothing likelier is left out"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    *(st.floats(1e-6, 1.0) for _ in range(5)),
    st.floats(1e-6, 1e6),
    st.sampled_from([1.0, 1e3, 1e30]),
)
def test_whatever_the_settings_something_is_left_that_was_there(seed, k, p, least, typical, epsilon, eta, t, spread):
    logits = np.float32(spread) * random_logits(30, seed=seed)
    logits[:, np.random.default_rng(seed).permutation(30)[: seed % 30]] = -np.inf
    cuts = TopK(k), TopP(p), MinP(least), TypicalP(typical), EpsilonCutoff(epsilon), EtaCutoff(eta)
    made = apply(chain(Temperature(t), *cuts), logits)
    assert np.isfinite(made).any(1).all()
    assert not np.isnan(made).any()
    assert not np.isfinite(made[np.isneginf(logits)]).any()


@pytest.mark.parametrize(
    "before",
    [
        *map(Temperature, (1e-6, 1.0, 1e6)),
        *(pytest.param(penalty, marks=pytest.mark.runs) for penalty in (RepetitionPenalty(0.6), FrequencyPenalty(0.3))),
    ],
)
def test_extreme_logits_and_extreme_temperatures_leave_the_likeliest(before):
    logits = [[-1e30, 1e30, -np.inf, 0.0, 5.0], [-1e30, -1e30, -np.inf, -np.inf, -1e30], [-9, 3e38, -np.inf, 0, -9]]
    text = np.tile(logits, (3, 1, 1)).astype(np.float32), np.ones((3, 3)), [0, 1, 2, 3, 4]
    for kind in (TopP, TypicalP, MinP, EpsilonCutoff, EtaCutoff):
        made = along(chain(before, kind(0.3)), *text)[2]
        np.testing.assert_array_equal(np.isfinite(made), [[0, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 1, 0, 0, 0]])


# Tokens by hand


def test_forbid_takes_the_ids_out_and_touches_nothing_else():
    logits = random_logits(17)
    expected = logits.copy()
    expected[:, [0, 3, 16]] = -np.inf
    np.testing.assert_array_equal(apply(Forbid((0, 3, 16)), logits), expected)


def test_biases_of_the_same_token_add_up():
    np.testing.assert_array_equal(apply(Bias(((1, 1.0), (1, 2.5))), np.zeros((1, 3))), [[0, 3.5, 0]])


def test_forced_tokens_come_one_after_the_other_and_then_all_is_free():
    logits = np.zeros((3, 1, 4), np.float32)
    made = np.isfinite(along(Force((3, 1)), logits, np.array([[3], [1], [0]])))
    np.testing.assert_array_equal(made[:, 0], [[0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]])


def test_a_forbidden_token_cannot_be_forced():
    logits = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(apply(chain(Forbid((3,)), Force((3,))), logits), [[0, 0, 0, -np.inf]])


def test_a_text_does_not_end_before_its_least_length():
    ends = np.isfinite(along(MinLength(2), np.zeros((4, 1, 4), np.float32), np.ones((4, 1))))[:, 0, EOS]
    np.testing.assert_array_equal(ends, [False, False, True, True])


def test_a_text_that_cannot_do_anything_else_ends_before_its_least_length():
    only_end = [[-np.inf, -np.inf, 1.0, -np.inf]]
    np.testing.assert_array_equal(apply(MinLength(5), only_end), only_end)


def test_a_text_without_an_end_has_no_use_for_a_least_length():
    logits = random_logits(5)
    np.testing.assert_array_equal(along(MinLength(3), logits[None], np.zeros((1, R)), eos=-1)[0], logits)


# What goes by the text


def test_the_prompt_counts_as_repeated_and_not_as_generated():
    logits, tokens = np.ones((2, 1, 4), np.float32), np.array([[3], [0]])
    expected = {
        RepetitionPenalty(2.0): [1, 0.5, 1, 0.5],
        PresencePenalty(2.0): [1, 1, 1, -1],
        FrequencyPenalty(2.0): [1, 1, 1, -1],
    }
    for penalty, after in expected.items():
        np.testing.assert_array_equal(along(penalty, logits, tokens, prompt=[1])[1, 0], after)


def test_a_frequency_penalty_grows_with_every_occurrence_and_a_presence_penalty_does_not():
    logits, tokens = np.zeros((4, 1, 2), np.float32), np.array([[1], [0], [1], [1]])
    np.testing.assert_array_equal(
        along(FrequencyPenalty(0.5), logits, tokens)[:, 0], [[0, 0], [0, -0.5], [-0.5, -0.5], [-0.5, -1]]
    )
    np.testing.assert_array_equal(
        along(PresencePenalty(0.5), logits, tokens)[:, 0], [[0, 0], [0, -0.5], [-0.5, -0.5], [-0.5, -0.5]]
    )


def completing(text, n):
    """The tokens that would complete a sequence of ``n`` in ``text`` once more, found by looking at all of them."""
    known = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return {token for token in set(text) if len(text) >= n - 1 and (*text[len(text) - n + 1 :], token) in known}


@pytest.mark.parametrize(("window", "prompt"), [(4, 20), (11, 0), (11, 3), (64, 20)])
def test_no_repeat_ngram_bans_what_a_search_through_the_window_finds(window, prompt):
    rng = np.random.default_rng([window, prompt])
    tokens = np.concatenate([rng.integers(0, symbols, (40, 4), np.int32) for symbols in (2, 3)], axis=1)
    read = rng.integers(0, 3, prompt, np.int32)
    logits = np.zeros((40, 8, 5), np.float32)  # of which two are never in the text, so that something is always left
    for n in (1, 2, 3, 4):
        made = along(NoRepeatNgram(n, window), logits, tokens, read)
        for t, row in np.ndindex(40, 8):
            text = [*read.tolist(), *tokens[:t, row].tolist()][-window:]
            assert set(np.flatnonzero(np.isneginf(made[t, row]))) == completing(text, n), (n, t, row)


def test_where_no_repeat_ngram_would_rule_out_everything_it_rules_out_nothing():
    logits = random_logits(3, 1)
    np.testing.assert_array_equal(along(NoRepeatNgram(1), logits[None], np.zeros((1, 1)), prompt=[0, 1, 2])[0], logits)


# Temperature


@pytest.mark.parametrize("value", [0.3, 1.3, 1e-6])
def test_temperature_divides_in_float32(value):
    logits = random_logits(17)
    np.testing.assert_allclose(apply(Temperature(value), logits), logits / np.float32(value), rtol=1e-6)


def temperatures(value, steps):
    """The temperatures at the first so many steps."""
    made = along(Temperature(value), np.ones((steps, 1, 2), np.float32), np.zeros((steps, 1)))
    return 1 / made[:, 0, 0]


@pytest.mark.runs
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((0.5, 2.0, 1.0), [0.5, 2.0, 1.0, 1.0, 1.0, 1.0]),
        ((0.5,), [0.5] * 6),
        (Linear(1.0, 2.0, 4), [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]),
        (Linear(2.0, 0.5, 1), [2.0, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (lambda t: 1 / (1 + t), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        (lambda t: jnp.float32(t + 1), [1, 2, 3, 4, 5, 6]),
    ],
    ids=["list", "list of one", "linear", "linear in one step", "function", "function of jax"],
)
def test_a_schedule_gives_each_step_its_temperature(value, expected):
    np.testing.assert_allclose(temperatures(value, 6), expected, rtol=1e-6)


def test_the_last_temperature_of_a_table_holds_beyond_its_end():
    np.testing.assert_allclose(
        temperatures(tuple(range(1, 71)), 140)[[0, 63, 64, 69, 70, 139]], [1, 64, 65, 70, 70, 70], rtol=1e-6
    )


def test_a_function_is_asked_for_4096_steps():
    state = Temperature(lambda t: t + 1.0).init(Context(R, 5))
    np.testing.assert_array_equal(state, np.arange(1, 4097))


def test_linear_is_the_function_that_it_says():
    schedule = Linear(0.3, 1.7, 1000)
    state = Temperature(schedule).init(Context(R, 5))
    np.testing.assert_array_equal(state[:1001], np.float32([schedule(t) for t in range(1001)]))


def test_schedules_of_different_lengths_share_one_compiled_function():
    states = [Temperature(value).init(Context(R, 5)) for value in ((0.5, 1.0), tuple([0.7] * 64), Linear(1.0, 0.5, 63))]
    assert len({state.shape for state in states}) == 1


# Chains


def test_a_chain_acts_in_its_order():
    logits = np.log([[0.45, 0.35, 0.2]])  # at temperature 0.25 the first alone reaches 0.7
    sharpened_first = np.isfinite(apply(chain(Temperature(0.25), TopP(0.7)), logits))
    cut_first = np.isfinite(apply(chain(TopP(0.7), Temperature(0.25)), logits))
    np.testing.assert_array_equal([sharpened_first[0], cut_first[0]], [[True, False, False], [True, True, False]])


def test_a_chain_in_a_chain_is_taken_apart():
    inner = chain(Temperature(0.5), TopK(3))
    assert chain(Forbid(()), inner, TopP(0.5)) == chain(Forbid(()), Temperature(0.5), TopK(3), TopP(0.5))
    assert chain(inner).kinds == (Temperature, TopK)


def test_a_chain_is_itself_a_pair_of_init_and_update():
    whole, logits = chain(Temperature(0.5), TopK(2)), random_logits(6)
    states, made = whole.update(whole.init(Context(R, 6)), jnp.asarray(logits), Last.none(R))
    np.testing.assert_array_equal(made, apply(whole, logits))
    assert jax.tree.structure(states) == jax.tree.structure(whole.init(Context(R, 6)))


def test_a_chain_of_nothing_changes_nothing():
    np.testing.assert_array_equal(apply(chain(), random_logits(6)), random_logits(6))


def test_a_whole_chain_with_other_options_needs_no_second_compilation():
    before = _along._cache_size()
    for first in (2, 3):
        apply(
            chain(Forbid((first,)), Temperature(first / 2), NoRepeatNgram(first), TopK(first), TopP(first / 4)),
            random_logits(9),
        )
    assert _along._cache_size() == before + 1


# Refusals

WRONG_NUMBERS = {
    "top-k is": (TopK, (0, -3, 2.5, True)),
    "top-p of": (TopP, (0.0, -0.1, 1.1, np.nan, "a", True)),
    "typical-p of": (TypicalP, (0.0, 1.1, np.nan)),
    "min-p of": (MinP, (-0.1, 1.1, np.nan, None)),
    "epsilon cut-off of": (EpsilonCutoff, (-0.1, 1.1, np.nan)),
    "eta cut-off of": (EtaCutoff, (-0.1, 1.1, np.inf)),
    "repetition penalty of": (RepetitionPenalty, (0.0, -1.0, 101.0, np.nan)),
    "presence penalty of": (PresencePenalty, (-101.0, np.inf, np.nan)),
    "frequency penalty of": (FrequencyPenalty, (101.0, np.nan)),
    "no-repeat-ngram is": (NoRepeatNgram, (0, 1001, 2.0, True)),
    "minimum length is": (MinLength, (-1, 1.5)),
    "temperature of": (Temperature, (0, -1.0, np.nan, np.inf, 1e-40, 1e39, True, "warm", None)),
}


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [(kind, value, what) for what, (kind, values) in WRONG_NUMBERS.items() for value in values],
)
def test_a_number_that_cannot_be_used_is_refused_with_a_sentence(kind, value, what):
    with pytest.raises(UsageError, match=rf"{re.escape(str(value))}.*\d"):
        kind(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forbid((5,)).init(Context(R, 5)), "is 5"),
        (lambda: Forbid((-1,)).init(Context(R, 5)), "is -1"),
        (lambda: Forbid((0, 1, 1)).init(Context(R, 2)), "at least one"),
        (lambda: Force((1, 5)).init(Context(R, 5)), "is 5"),
        (lambda: Force((True,)).init(Context(R, 5)), "is True"),
        (lambda: Bias(((7, 1.0),)).init(Context(R, 5)), "is 7"),
        (lambda: Bias(((1, np.inf),)), "inf"),
        (lambda: NoRepeatNgram(4, 3), "from 4"),
        (lambda: Temperature(()), "value"),
        (lambda: Temperature((1.0, 0.0)), "step 1"),
        (lambda: Temperature(lambda t: 3.0 - t), "step 3"),
        (lambda: Temperature(Linear(0.0, 1.0, 5)), "step 0"),
        (lambda: Temperature(Linear(1.0, np.nan, 5)), "step 5"),
        (lambda: Linear(1.0, 2.0, 0), "steps of a schedule is 0"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_a_sentence(make, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make()


def test_top_k_and_top_p_accept_a_single_token_vocabulary():
    np.testing.assert_array_equal(apply(chain(TopK(3), TopP(0.2)), np.full((R, 1), 2.0)), np.full((R, 1), 2.0))


@pytest.mark.parametrize("transform", [Temperature(Linear(1.0, 0.5, 3)), Force((1, 2)), TopK(2), NoRepeatNgram(2)])
def test_a_state_may_be_a_constant_of_a_compiled_function(transform):
    state, logits = transform.init(Context(R, 5)), random_logits(5)

    def at(t, update):
        return update(state, logits, Last(t, np.ones(R, np.int32)))[1]

    compiled = jax.jit(partial(at, update=transform.update), compiler_options=FAST)(np.int32(1))
    np.testing.assert_allclose(compiled, at(np.int32(1), transform.update), rtol=1e-6)
