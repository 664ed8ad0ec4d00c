"""Averages of the weights, compared with NumPy over the weights of every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.training.averaging import AVERAGES, NEVER, NTASGD, Averaged, drop_longer, exchange, named_average
from jaxgen.training.optimizer import make_optimizer
from jaxgen.training.schedules import Rates

STEPS = 8
PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)}


def trained(average, begin=0, change=lambda step, state: state, **options):
    """The weights after each step from the first on, [STEPS, ...], and the average after the last.

    ``change`` is applied to the state before each step.
    """
    optimizer = make_optimizer("sgd", "constant", clip=0.0, average=average, average_options=options)
    rates = Rates(0.1, 0, STEPS, 1.0, begin)
    params, state, series = PARAMS, optimizer.init(PARAMS), []
    update = jax.jit(optimizer.update)
    for seed in range(STEPS):
        gradient = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2)), jnp.float32)}
        updates, state = update(gradient, change(seed, state), params, rates=rates)
        params = optax.apply_updates(params, updates)
        series.append(np.asarray(params["w"], np.float64))
    return np.array(series), np.asarray(state.average["w"])


@pytest.mark.parametrize("name", ["tail", "nt-asgd"])
@pytest.mark.parametrize("begin", [0, 5])
def test_a_tail_average_is_the_mean_of_the_weights_from_a_step_on(name, begin):
    weights, average = trained(name, begin)
    np.testing.assert_allclose(average, weights[begin:].mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_that_has_not_begun_is_the_weights(name):
    weights, average = trained(name, NEVER)
    np.testing.assert_array_equal(average, weights[-1].astype(np.float32))


def test_an_exponential_average_weights_steps_by_how_long_ago_they_were():
    weights, average = trained("ema", decay=0.3)
    expected = np.asarray(PARAMS["w"], np.float64)
    for n, each in enumerate(weights):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * each
    np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_an_average_leaves_the_steps_as_they_are():
    weights, _ = trained("ema")
    plain = make_optimizer("sgd", "constant", clip=0.0)
    params, state = PARAMS, plain.init(PARAMS)
    for seed in range(STEPS):
        gradient = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2)), jnp.float32)}
        updates, state = plain.update(gradient, state, params, rates=Rates(0.1, 0, STEPS, 1.0))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(weights[-1], params["w"], rtol=1e-6)


def test_schedule_free_keeps_its_average_in_the_state():
    ours, theirs = make_optimizer("schedule-free", 0.1, clip=0.0), optax.contrib.schedule_free_adamw(0.1, b2=0.99)
    params, state, state2 = PARAMS, ours.init(PARAMS), theirs.init(PARAMS)
    for _ in range(3):
        updates, state = ours.update(params, state, params)
        _, state2 = theirs.update(params, state2, params)
        params = optax.apply_updates(params, updates)
    x = optax.contrib.schedule_free_eval_params(state2, params)
    np.testing.assert_allclose(state.average["w"], x["w"], rtol=1e-5)


@pytest.mark.parametrize("drops", [[], [3], [3, 5], [2, 3, 6], [STEPS - 1]])
def test_two_tails_are_means_since_the_last_drop_and_the_one_before(drops):
    states = []

    def change(step, state):
        states.append(drop_longer(state) if step in drops else state)
        return states[-1]

    weights, average = trained("two-tailed", change=change)
    longer, shorter = [0, 0, *drops][-2:]
    np.testing.assert_allclose(average, weights[longer:].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert [int(begin) for begin in states[-1].begins] == [longer, shorter]
    if shorter < STEPS - 1:
        before = states[-1].shorter["w"]
        np.testing.assert_allclose(before, weights[shorter:-1].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_exchanging_twice_changes_nothing():
    state = Averaged((), {"w": 1}, 0)
    assert exchange({"w": 2}, state) == ({"w": 1}, Averaged((), {"w": 2}, 0))
    assert exchange(*exchange({"w": 2}, state)) == ({"w": 2}, state)


def test_nt_asgd_begins_where_an_evaluation_is_worse_than_the_best_of_older_ones():
    costs = [[10, 3.0], [20, 2.0], [30, 2.5], [40, 1.9], [50, 2.1], [60, 2.2]]
    average = NTASGD(patience=2)
    assert [average.begin(100, costs[:n]) for n in range(7)] == [NEVER] * 5 + [50, 50]
    assert NTASGD(patience=5).begin(100, costs) == NEVER


def test_a_tail_begins_after_its_share_of_the_run():
    assert named_average("tail", {"start": 0.75}).begin(200, []) == 150


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ema", {"decay": 1.0}),
        ("tail", {"start": -0.1}),
        ("nt-asgd", {"patience": 1.5}),
        ("nt-asgd", {"patience": float("nan")}),
        ("ema", {"start": 0.5}),
    ],
)
def test_an_option_that_an_average_cannot_use_is_refused(name, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        named_average(name, options)


def test_two_averages_at_once_are_refused():
    with pytest.raises(UsageError, match="average"):
        make_optimizer("schedule-free", 0.1, average="ema")
