"""Fit the numbers of adaptation, a neural cache and a temperature on text that the run has not read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxgen.errors import DivergedError, UsageError
from jaxgen.inference.adaptation import AdaptiveOptions
from jaxgen.inference.loading import LoadedRun, unread_text
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Score, Scorer

#: At most this many characters of the held-out text are read, once for each value that is tried.
MAX_CHARACTERS = 100_000
#: The most values of a number that are tried beyond its grid.
MOST_BEYOND = 5
#: Values to try: of one number after the other, each with the best values of those before. Where the first or the last
#: value of a number is the best, the search goes on beyond it.
GRIDS: dict[tuple[str, ...], tuple[float, ...]] = {
    ("adapt", "rate"): (3e-4, 6e-4, 1e-3, 2e-3, 4e-3),
    ("adapt", "decay"): (0.001, 0.003, 0.01, 0.03),
    ("cache", "sharpness"): (0.03, 0.1, 0.3, 1.0, 3.0),
    ("cache", "weight"): (0.02, 0.05, 0.1, 0.2, 0.3),
    ("temperature",): (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2),
}


@dataclass(frozen=True)
class AdaptiveFit:
    """Options with fitted numbers.

    Attributes:
        options: The options.
        score: The score of the held-out text with them.
        plain: Its score by the model as it is.
    """

    options: AdaptiveOptions
    score: Score
    plain: Score


def fit_options(sampler: Sampler, options: AdaptiveOptions, fixed: Collection[tuple[str, ...]] = ()) -> AdaptiveFit:
    """Fit the numbers of ``options`` on the text that the run of ``sampler`` held out (``train.py --holdout``).

    Args:
        sampler: The model of a run.
        options: The adaptation and the cache, if they are to be used, and where to begin.
        fixed: Keys of ``GRIDS`` whose numbers stay.

    Raises:
        UsageError: The run has no held-out text.
        DataError: The text is missing or has changed.

    Example:
        >>> sampler = jaxgen.Sampler.load("runs/language-1")
        >>> fit = jaxgen.fit_options(sampler, jaxgen.AdaptiveOptions())
        >>> fit.score.perplexity <= fit.plain.perplexity
        True
    """
    texts = held_out_text([sampler])
    scores: dict[AdaptiveOptions, Score] = {}

    def score(options: AdaptiveOptions) -> Score:
        if options not in scores:
            scores[options] = _score(sampler, texts, options)
        return scores[options]

    best = search_grids(options, lambda each: -score(each).logp, fixed)
    return AdaptiveFit(best, score(best), score(AdaptiveOptions()))


def search_grids(
    options: AdaptiveOptions, loss: Callable[[AdaptiveOptions], float], fixed: Collection[tuple[str, ...]] = ()
) -> AdaptiveOptions:
    """The options with the smallest loss, found by trying the values of ``GRIDS`` for one number after the other."""
    for key, values in GRIDS.items():
        if key in fixed or getattr(options, key[0]) is None:
            continue
        tried = {value: loss(_with_number(options, key, value)) for value in values}
        for _ in range(MOST_BEYOND):
            best = min(tried, key=lambda value: tried[value])
            if (value := _beyond(sorted(tried), best)) is None:
                break
            try:
                tried[value] = loss(_with_number(options, key, value))
            except UsageError:  # no number may be so large
                break
        options = _with_number(options, key, min(tried, key=lambda value: tried[value]))
    return options


def _beyond(values: Sequence[float], best: float) -> float | None:
    """The next value beyond the first or last of ``values`` if that is the ``best``, in the ratio of the last two."""
    if len(values) < 2 or best not in (values[0], values[-1]):
        return None
    inner = values[1] if best == values[0] else values[-2]
    return float(f"{best * best / inner:.2g}")


def _with_number(options: AdaptiveOptions, key: tuple[str, ...], value: float) -> AdaptiveOptions:
    part: Any = value if len(key) == 1 else replace(getattr(options, key[0]), **{key[1]: value})
    return replace(options, **{key[0]: part})


def held_out_text(samplers: Sequence[Sampler], most: int | None = MAX_CHARACTERS) -> list[str]:
    """The text that all runs of ``samplers`` kept from training, or its first ``most`` characters, as ``unread_text``.

    Raises ``UsageError`` and ``DataError``.
    """
    if not all(each.runs for each in samplers):
        raise UsageError("Numbers are fitted on the text that a run held out, and this model is of no run: give them.")
    if samplers[0].conditioning is not None:
        raise UsageError("Numbers are not fitted for runs with labels or features: give them.")
    return unread_text([LoadedRun.open(run) for each in samplers for run in each.runs], most)


def _score(sampler: Sampler, texts: Sequence[str], options: AdaptiveOptions) -> Score:
    lanes = 32 if options.plain and not sampler.documents else 1
    scorer = Scorer(sampler, unk="keep", lanes=lanes, **options.for_scorer)
    try:
        if sampler.documents:
            return sum((score for score, _ in scorer.score_each(texts)), Score())
        return sum((scorer.score(text) for text in texts), Score())
    except DivergedError:
        return Score(-math.inf, 1)
