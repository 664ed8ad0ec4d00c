"""Numbers are fitted on the text that a run held out, one after the other on fixed grids."""

from __future__ import annotations

import numpy as np
import pytest
from builders import language_config, write

from jaxgen.errors import UsageError
from jaxgen.inference import fitting
from jaxgen.inference.adaptation import Adaptation, AdaptiveOptions, NeuralCache
from jaxgen.inference.fitting import GRIDS, fit_options, search_grids
from jaxgen.inference.mixture import fit_mixture
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.trainer.run import start

EVERYTHING = AdaptiveOptions(Adaptation(), NeuralCache())


def distance(options):
    """A loss whose minimum lies on the grids, but not where the search begins."""
    numbers = (options.adapt.rate, options.adapt.decay, options.cache.sharpness, options.cache.weight)
    best = (2e-3, 0.03, 0.1, 0.05)
    return sum(abs(np.log(a / b)) for a, b in zip(numbers, best)) + abs(options.temperature - 1.1)


def test_each_number_is_the_best_of_its_grid():
    wanted = AdaptiveOptions(Adaptation(2e-3, 0.03, 64), NeuralCache(500, 0.05, 0.1), 1.1)
    assert search_grids(EVERYTHING, distance) == wanted


def test_numbers_that_are_given_stay_and_what_is_off_stays_off():
    kept = search_grids(EVERYTHING, distance, [("adapt", "rate"), ("temperature",)])
    assert (kept.adapt.rate, kept.adapt.decay, kept.temperature) == (1e-3, 0.03, 1.0)
    only = search_grids(AdaptiveOptions(), lambda options: abs(options.temperature - 0.9))
    assert only == AdaptiveOptions(temperature=0.9)


def test_the_search_goes_on_where_an_end_of_a_grid_is_the_best():
    far = search_grids(EVERYTHING, lambda each: abs(np.log(each.adapt.rate / 0.03)) + each.adapt.decay)
    assert 0.02 < far.adapt.rate < 0.04
    assert 0 < far.adapt.decay < 1e-4
    most = search_grids(EVERYTHING, lambda each: -each.cache.weight)
    assert 0.3 < most.cache.weight < 1


def test_a_model_of_no_run_has_no_text_to_fit_on(tiny):
    with pytest.raises(UsageError, match="run"):
        fit_options(tiny, EVERYTHING)


@pytest.mark.runs
@pytest.mark.parametrize(("number", "more"), [(400, {}), (100, {"documents": "line"})])
def test_the_held_out_text_is_what_is_scored(tmp_path, monkeypatch, number, more):
    monkeypatch.chdir(tmp_path)
    lines = np.random.default_rng(0).choice(["aab\n", "cad\n", "abba\n"], number)
    write("a.txt", "".join(lines))
    start(language_config("a.txt", "run", steps=5, eval_every=5, holdout=0.1, **more)).train()
    monkeypatch.setattr(fitting, "GRIDS", {key: values[:2] for key, values in GRIDS.items()})
    monkeypatch.setattr(fitting, "MOST_BEYOND", 0)
    sampler = Sampler.load("run")
    fit = fit_options(sampler, AdaptiveOptions(Adaptation(segment=4), NeuralCache(9)))
    assert fit.score.tokens == fit.plain.tokens > 30
    assert fit.score.logp > fit.plain.logp
    texts = fitting.held_out_text([sampler])
    assert "".join(texts) in "".join(lines) or more
    again = sum(score.logp for score, _ in Scorer(sampler, **fit.options.for_scorer).score_each(texts))
    assert fit.score.logp == pytest.approx(again)
    counted = {"model": "ngram", "hidden": 256, "cell": "lstm", "order": 2}
    start(language_config("a.txt", "ngram", holdout=0.1, **counted, **more)).train()
    mixture = fit_mixture(["run", "ngram"], reading=fit.options)
    assert mixture.losses[0] == pytest.approx(-again / fit.score.tokens, rel=1e-4)
    assert mixture.losses[1] == pytest.approx(fit_mixture(["run", "ngram"]).losses[1])
