"""Logit transforms against the same filters written with a NumPy sort."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.sampling import TRANSFORMS, Forbid, Temperature, TopK, TopP
from jaxgen.sampling.transforms import init_chain, update_chain

R = 3
#: Compiles in half the time; how fast these few steps run does not matter.
FAST = {"xla_backend_optimization_level": 0}
SIZES = (2, 17, 5000)
update = jax.jit(update_chain, static_argnums=0, compiler_options=FAST)


def apply(chain, logits):
    """The logits after a chain, as NumPy."""
    kinds = tuple(type(transform) for transform in chain)
    return np.asarray(update(kinds, init_chain(chain, *logits.shape), logits)[1])


def random_logits(vocab, rows=R, seed=0):
    return np.random.default_rng([seed, vocab]).normal(0, 2, (rows, vocab)).astype(np.float32)


def softmax(row):
    e = np.exp(row.astype(np.float64) - row.max())
    return e / e.sum()


def keep_above(row, threshold):
    return np.where(row >= threshold, row, -np.inf)


def reference_top_k(row, k):
    return keep_above(row, np.sort(row)[-min(k, row.size)])


def reference_top_p(row, p):
    falling = np.sort(row)[::-1]
    needed = np.searchsorted(np.cumsum(softmax(falling)), p)
    return keep_above(row, falling[min(needed, row.size - 1)])


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("k", [1, 2, 7, 16, 900, 10_000])
def test_top_k_keeps_the_k_largest(vocab, k):
    logits = random_logits(vocab)
    np.testing.assert_array_equal(apply([TopK(k)], logits), [reference_top_k(row, k) for row in logits])


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_the_smallest_set_that_reaches_p(vocab, p):
    logits = random_logits(vocab)
    np.testing.assert_array_equal(apply([TopP(p)], logits), [reference_top_p(row, p) for row in logits])


def test_top_k_keeps_what_is_level_with_the_kth():
    logits = np.array([[1, 3, 2, 2, 2, 0]], np.float32)
    np.testing.assert_array_equal(apply([TopK(2)], logits), [[-np.inf, 3, 2, 2, 2, -np.inf]])


def test_top_p_keeps_what_is_level_with_the_least_likely_of_the_set():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.2, 0.1]], np.float32))
    kept = np.isfinite(apply([TopP(0.5)], logits))
    np.testing.assert_array_equal(kept, [[False, True, True, True, False]])


@pytest.mark.parametrize("transform", [TopK(2), TopP(0.3)])
def test_among_equal_logits_all_are_kept(transform):
    logits = np.full((R, 17), -1.5, np.float32)
    np.testing.assert_array_equal(apply([transform], logits), logits)


@pytest.mark.parametrize("k", range(1, 8))
def test_top_k_orders_zeros_infinities_and_both_signs(k):
    row = np.array([0.0, -0.0, 3e38, -3e38, -np.inf, 1e-30, -1e-30], np.float32)
    np.testing.assert_array_equal(apply([TopK(k)], row[None])[0], reference_top_k(row, k))


@pytest.mark.parametrize("p", [1e-300, 1e-45, 1e-30])
def test_a_top_p_that_float32_rounds_to_zero_still_keeps_the_likeliest_token(p):
    logits = random_logits(17)
    np.testing.assert_array_equal(np.isfinite(apply([TopP(p)], logits)), logits == logits.max(1, keepdims=True))


def test_forbid_takes_the_ids_out_and_touches_nothing_else():
    logits = random_logits(17)
    expected = logits.copy()
    expected[:, [0, 3, 16]] = -np.inf
    np.testing.assert_array_equal(apply([Forbid((0, 3, 16))], logits), expected)


@pytest.mark.parametrize("transform", [TopK(17), TopK(10), TopP(1.0), TopP(0.9999), Temperature(1.8), Temperature(1e6)])
def test_a_forbidden_token_never_comes_back(transform):
    kept = np.isfinite(apply([Forbid(tuple(range(9))), transform], random_logits(17)))
    assert not kept[:, :9].any()


def test_top_p_counts_the_probability_that_forbidding_left():
    logits = np.log(np.array([[0.9, 0.06, 0.04]], np.float32))
    kept = np.isfinite(apply([Forbid((0,)), TopP(0.5)], logits))
    np.testing.assert_array_equal(kept, [[False, True, False]])


@pytest.mark.parametrize("value", [0.3, 1.3, 1e-6])
def test_temperature_divides_in_float32(value):
    logits = random_logits(17)
    np.testing.assert_allclose(apply([Temperature(value)], logits), logits / np.float32(value), rtol=1e-6)


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("transform", [TopK(10_000), TopP(1.0), Temperature(1.0), Forbid(())])
def test_a_setting_that_changes_nothing_changes_no_bit(transform, vocab):
    logits = random_logits(vocab)
    np.testing.assert_array_equal(apply([transform], logits), logits)


@pytest.mark.parametrize("transform", [TopK(4), TopP(0.8), Temperature(0.7), Forbid((1,))])
def test_a_rows_result_does_not_depend_on_the_other_rows(transform):
    logits = random_logits(17)
    others = np.concatenate([logits[:1], 100 * random_logits(17, R - 1, seed=1)])
    np.testing.assert_array_equal(apply([transform], logits)[0], apply([transform], others)[0])


@pytest.mark.parametrize("transform", [TopK(4), TopP(0.8), Temperature(0.7), Forbid((1,))])
def test_vmap_gives_what_one_call_after_the_other_gives(transform):
    logits = np.stack([random_logits(17, seed=seed) for seed in range(4)])
    state = transform.init(R, 17)
    together = jax.jit(jax.vmap(type(transform).update, in_axes=(None, 0)))(state, logits)[1]
    np.testing.assert_array_equal(together, [apply([transform], rows) for rows in logits])


def test_a_chain_acts_in_its_order():
    logits = np.log(np.array([[0.45, 0.35, 0.2]], np.float32))  # at temperature 0.25 the first alone reaches 0.7
    sharpened_first = np.isfinite(apply([Temperature(0.25), TopP(0.7)], logits))
    cut_first = np.isfinite(apply([TopP(0.7), Temperature(0.25)], logits))
    np.testing.assert_array_equal([sharpened_first[0], cut_first[0]], [[True, False, False], [True, True, False]])


def test_other_option_values_need_no_second_trace():
    traces = []

    def counted(states, logits):
        traces.append(None)
        return update_chain((Forbid, Temperature, TopK, TopP), states, logits)

    compiled = jax.jit(counted, compiler_options=FAST)
    for chain in (
        [Forbid((0, 1)), Temperature(0.5), TopK(3), TopP(0.9)],
        [Forbid((2,)), Temperature(1.8), TopK(999), TopP(1.0)],
    ):
        compiled(init_chain(chain, R, 17), random_logits(17))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: Temperature(v), f"temperature of {v} ") for v in (0, -1.0, np.nan, np.inf, 1e-40, 1e39)),
        *((lambda k=k: TopK(k), f"top-k of {k} ") for k in (0, -3, 2.5, True)),
        *((lambda p=p: TopP(p), f"top-p of {p} ") for p in (0.0, -0.1, 1.1, np.nan)),
        (lambda: Forbid((5,)).init(R, 5), "token ids [5]: ids go from 0 to 4"),
        (lambda: Forbid((-1,)).init(R, 5), "token ids [-1]"),
        (lambda: Forbid((0, 1, 1)).init(R, 2), "every token of the vocabulary: leave at least one"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_a_sentence(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("make", [lambda: Temperature(0), lambda: TopK(0), lambda: TopP(2)])
def test_a_refusal_says_what_is_allowed(make):
    with pytest.raises(UsageError) as caught:
        make()
    assert re.search(r": give .*\d", str(caught.value))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_registered_transform_is_a_frozen_dataclass_of_options(name):
    assert TRANSFORMS[name].__dataclass_params__.frozen


def test_the_options_travel_as_arrays_in_the_state():
    states = init_chain([Forbid((0,)), Temperature(0.5), TopK(3), TopP(0.9)], R, 17)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(states))
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(states))


def test_top_k_and_top_p_accept_a_single_token_vocabulary():
    np.testing.assert_array_equal(apply([TopK(3), TopP(0.2)], jnp.full((R, 1), 2.0)), np.full((R, 1), 2.0))
