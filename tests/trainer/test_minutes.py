"""``--minutes``: how many steps fit, and what is too little."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jaxgen.errors import UsageError, counted
from jaxgen.runs.config import MAX_STEPS
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.trainer import minutes
from jaxgen.trainer.minutes import MARGIN, MIN_STEPS, Costs, fitting_steps
from jaxgen.trainer.progress_state import Throughput

COSTS = Costs(step=0.1, evaluation=2.0, examples=1.0, final=5.0)


@pytest.mark.parametrize("more", [{}, {"eval_every": 50}, {"eval_every": 0}, {"sample_every": 7}])
def test_the_steps_are_the_most_whose_evaluations_and_report_fit_too(more):
    config = LanguageConfig(minutes=2.0, **more)
    steps = fitting_steps(config, COSTS, elapsed=20.0)
    left = (120 - 20) * (1 - MARGIN)
    assert COSTS.run(config, steps) <= left < COSTS.run(config, steps + 1)


def test_a_run_counts_its_evaluations_examples_and_report():
    config = LanguageConfig(eval_every=10, sample_every=20)
    assert COSTS.run(config, 45) == pytest.approx(45 * 0.1 + 5 * 2.0 + 2 * 1.0 + 5.0)
    assert COSTS.run(LanguageConfig(eval_every=0, sample_every=0), 45) == pytest.approx(45 * 0.1 + 2.0 + 5.0)


@pytest.mark.parametrize(("more", "least"), [({}, MIN_STEPS), ({"eval_every": 400}, 400)])
def test_too_few_minutes_are_refused_with_how_many_are_enough(more, least):
    with pytest.raises(UsageError, match=counted(least, "step")) as refused:
        fitting_steps(LanguageConfig(minutes=0.5, **more), COSTS, elapsed=20.0)
    enough = float(str(refused.value).split("need --minutes ")[1].split(" ")[0])
    slower = Costs(*(1.2 * seconds for seconds in COSTS))
    assert fitting_steps(LanguageConfig(minutes=enough, **more), slower, elapsed=24.0) >= least
    with pytest.raises(UsageError):
        fitting_steps(LanguageConfig(minutes=enough / 1.4, **more), COSTS, elapsed=20.0)


def test_the_measurement_itself_ends_when_the_time_is_over():
    called = []
    trial = SimpleNamespace(
        config=LanguageConfig(minutes=1.0),
        data=SimpleNamespace(batches=SimpleNamespace(shapes=lambda: [(0, 1), (1, 1)])),
        time_call=lambda step: called.append(step) or 0.1,
        group=SimpleNamespace(broadcast_json=lambda value: value),
    )
    with pytest.raises(UsageError, match="too short"):
        minutes.measure(trial, began=minutes.time.perf_counter() - 60)
    assert set(called) <= {0}


def test_steps_that_take_no_time_are_the_most_steps_that_a_run_has():
    free = Costs(minutes.sys.float_info.min, 0.0, 0.0, 0.0)
    assert fitting_steps(LanguageConfig(minutes=1e6), free, 0.0) == MAX_STEPS


def test_a_speed_is_known_after_half_a_second_without_compilation():
    throughput = Throughput()
    for seconds, known in ((30.0, None), (0.001, None), (0.3, None), (0.4, True)):
        throughput.dispatched({})
        throughput.completed(100, seconds)
        assert (throughput.measured is not None) == (known is not None)
    assert 100 / 0.4 < throughput.measured < 100 / 0.2


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1200, "1,200 steps")])
def test_a_noun_follows_its_number(number, text):
    assert counted(number, "step") == text
