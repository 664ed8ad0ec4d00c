"""Learning-rate schedules by name, compared with their formulas."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.training.schedules import SCHEDULES, Rates, make_schedule, named_schedule

PEAK, WARMUP, HORIZON, FINAL = 0.2, 10, 110, 0.1
#: The schedules that begin with the warm-up.
WARMED_UP = [name for name in SCHEDULES if name != "one-cycle"]


def values(name, steps, **changes):
    settings = {"lr": PEAK, "warmup": WARMUP, "horizon": HORIZON, "final": FINAL} | changes
    schedule = make_schedule(name, **settings)
    return np.array([float(schedule(step)) for step in steps])


@pytest.mark.parametrize("name", WARMED_UP)
def test_the_warm_up_rises_in_a_straight_line_from_0(name):
    np.testing.assert_allclose(values(name, range(WARMUP + 1)), PEAK * np.arange(WARMUP + 1) / WARMUP, atol=1e-7)


@pytest.mark.parametrize("name", WARMED_UP)
def test_without_warm_up_the_first_step_has_the_whole_rate(name):
    np.testing.assert_allclose(values(name, [0], warmup=0), [PEAK], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_the_horizon_on_the_rate_stays_at_its_end_value(name):
    end = PEAK if name == "constant" else PEAK * FINAL
    np.testing.assert_allclose(values(name, [HORIZON, HORIZON + 1, 10 * HORIZON]), [end] * 3, rtol=1e-5)


DECAYING = np.array([WARMUP, 20, 47, 60, 99, HORIZON])


def test_the_cosine_is_half_a_cosine():
    done = (DECAYING - WARMUP) / (HORIZON - WARMUP)
    expected = PEAK * (FINAL + (1 - FINAL) * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(values("cosine", DECAYING), expected, rtol=1e-5)


def test_the_exponential_falls_by_a_constant_factor():
    done = (DECAYING - WARMUP) / (HORIZON - WARMUP)
    np.testing.assert_allclose(values("exponential", DECAYING), PEAK * FINAL**done, rtol=1e-5)


def test_the_linear_schedule_is_a_straight_line():
    done = (DECAYING - WARMUP) / (HORIZON - WARMUP)
    np.testing.assert_allclose(values("linear", DECAYING), PEAK * (1 - (1 - FINAL) * done), rtol=1e-5)


@pytest.mark.parametrize("drops", [1, 4.0])
def test_the_stepwise_schedule_falls_by_equal_factors_after_equal_numbers_of_steps(drops):
    number = int(drops)
    parts = np.arange(HORIZON - WARMUP) // ((HORIZON - WARMUP) / (number + 1))
    found = values("stepwise", range(WARMUP, HORIZON), options={"drops": drops})
    np.testing.assert_allclose(found, PEAK * FINAL ** (parts / number), rtol=1e-4)


def test_wsd_keeps_the_peak_until_the_decay():
    steps = np.arange(WARMUP, HORIZON + 1)
    expected = np.interp(steps, [WARMUP, 85, HORIZON], [PEAK, PEAK, PEAK * FINAL])
    np.testing.assert_allclose(values("wsd", steps, options={"decay": 0.25}), expected, rtol=1e-5)


def test_one_cycle_rises_and_falls_by_half_a_cosine():
    rates = values("one-cycle", range(101), horizon=100, options={"rise": 0.4, "start": 0.1})
    up, down = (1 - np.cos(np.pi * np.arange(41) / 40)) / 2, (1 + np.cos(np.pi * np.arange(61) / 60)) / 2
    np.testing.assert_allclose(rates[:41], PEAK * (0.1 + 0.9 * up), rtol=1e-5)
    np.testing.assert_allclose(rates[40:], PEAK * (FINAL + (1 - FINAL) * down), rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "linear", "one-cycle", "wsd"])
def test_a_schedule_may_end_at_0(name):
    np.testing.assert_allclose(values(name, [HORIZON, 2 * HORIZON], final=0.0), [0, 0], atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_other_rates_compile_nothing_again(name):
    traces = []

    def rate(step, rates):
        traces.append(None)
        return named_schedule(name)(step, rates)

    compiled = jax.jit(rate)
    for peak in (0.1, 0.2):
        given = Rates(*map(np.asarray, (np.float32(peak), np.int32(3), np.int32(50), np.float32(0.1))))
        np.testing.assert_allclose(compiled(np.int32(20), given), named_schedule(name)(20, given), rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "horizon"), [(100, 5), (5, 5), (0, 1), (10, 0), (0, 0)])
def test_a_horizon_shorter_than_the_warm_up_gives_finite_rates_within_the_peak(name, warmup, horizon):
    rates = values(name, range(12), warmup=warmup, horizon=horizon)
    assert np.isfinite(rates).all()
    assert ((rates >= 0) & (rates <= PEAK * (1 + 1e-6))).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_short_run_reaches_the_whole_rate_before_its_end(name):
    assert values(name, range(5), warmup=100, horizon=5).max() == pytest.approx(PEAK)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'cosine'"):
        values("cosin", [0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {"decay": 0.1}),
        ("wsd", {"rise": 0.1}),
        ("wsd", {"decay": 0.0}),
        ("one-cycle", {"rise": 1.5}),
        ("stepwise", {"drops": 2.5}),
    ],
)
def test_an_option_that_a_schedule_cannot_use_is_refused(name, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        named_schedule(name, options)
