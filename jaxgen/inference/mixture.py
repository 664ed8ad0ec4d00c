"""Mixtures of runs: a sampler of several runs, and weights that are fitted on a text that none of them has read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxgen.errors import UsageError, check_kind, counted
from jaxgen.fsutil import StrictModel, json_sha256
from jaxgen.inference.adaptation import AdaptiveOptions, can_adapt
from jaxgen.inference.fitting import MAX_CHARACTERS, held_out_text
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.tasks.language.mixture import MixtureTask

#: A run, given by its folder or as a sampler.
Run: TypeAlias = "str | os.PathLike[str] | Sampler"
#: A model that reads as it is.
PLAIN = AdaptiveOptions()
#: Decimals of fitted numbers. They are rounded before use, so that the numbers that are shown are the exact ones.
DECIMALS = 4
#: The smallest fitted weight.
LEAST = 10.0**-DECIMALS
#: Segments of a held-out text that are scored together.
LANES = 32
#: EM stops when no weight changes by more, or after this many iterations.
TOLERANCE, MAX_ITERATIONS = 1e-7, 5_000
#: The penalty on the squared slopes of a gate, in nats for the whole text: it only matters for very short texts.
RIDGE = 1e-3


class Member(StrictModel):
    """A run of a mixture, and the digest of its checkpoint."""

    run: str | None
    checkpoint: str


class Mixture(StrictModel):
    """What determines a mixture, as receipts record it: either ``weights`` or ``gate``.

    ``weights`` has a share for each member; they add up to 1. ``gate`` has the bias and the slope of each
    (``MixtureTask``).
    """

    members: list[Member]
    weights: list[float] | None = None
    gate: list[float] | None = None

    @property
    def digest(self) -> str:
        """The digest of the checkpoints and numbers, which does not depend on where the runs are."""
        return json_sha256([[each.checkpoint for each in self.members], self.weights, self.gate])[:16]

    def open(self) -> Sampler:
        """The sampler of this mixture. Raises ``UsageError`` if a member was not a run."""
        runs = [each.run for each in self.members if each.run is not None]
        if len(runs) < len(self.members):
            raise UsageError("A member of this mixture was no run in a folder, so that it cannot be loaded.")
        return mix(runs, self.weights, gate=self.gate)


def mix(runs: Sequence[Run], weights: Sequence[float] | None = None, *, gate: Sequence[float] | None = None) -> Sampler:
    """A sampler of the mixture of several runs, whose probabilities are the weighted sums of theirs.

    The runs may be of different models, n-grams included, and the same one may occur again.

    Args:
        runs: Folders of language models with the same tokens, or samplers.
        weights: A positive number for each; they are divided by their sum. Default: equal weights.
        gate: Instead of weights: the bias and the slope of each run, as ``fit_mixture`` finds them.

    Raises:
        UsageError: The runs have different tokens, or the numbers cannot be used.
        CheckpointError: A run is missing or damaged.

    Example:
        >>> sampler = jaxgen.mix(["runs/language-1", "runs/language-1"], [3, 1])
        >>> len(sampler.sample("the ", jaxgen.GenerationConfig(length=20))[0])
        20
    """
    samplers = open_members(runs)
    count = len(samplers)
    if weights is not None and gate is not None:
        raise UsageError("A mixture has weights or a gate: give one of the two.")
    shares = numbers = None
    if gate is None:
        given = _numbers("The weights", [1.0] * count if weights is None else weights, count)
        shares = _shares(given)
        if wrong := [weight for weight, share in zip(given, shares) if not (weight > 0 and share > 0)]:
            raise UsageError(f"The weight {wrong[0]:g} of a mixture is not positive: leave the run out, or give more.")
        bias, slope = [math.log(share) for share in shares], [0.0] * count
    else:
        numbers = _numbers("The gate", gate, 2 * count)
        bias, slope = numbers[::2], numbers[1::2]
    first, members = samplers[0], [Member(run=_name(each), checkpoint=each.weights_digest()) for each in samplers]
    task = MixtureTask(tuple(each.task for each in samplers), gated=gate is not None)
    arrays = {"bias": np.asarray(bias, np.float32), "slope": np.asarray(slope, np.float32)}
    params = {"members": tuple(each.params for each in samplers), **jax.device_put(arrays)}
    sampler = Sampler(task, first.codec, params, documents=first.documents, reading=first.reading)
    record = Mixture(members=members, weights=shares, gate=numbers)
    sampler.mixture, sampler.digest = record.model_dump(exclude_none=True), record.digest
    every = [plugin for each in samplers for plugin in each.plugins]
    sampler.plugins = [plugin for i, plugin in enumerate(every) if plugin not in every[:i]]
    return sampler


def _shares(weights: list[float]) -> list[float]:
    """``weights`` divided by their sum, unless that is 1 but for rounding: those of a receipt stay the same."""
    most = max(map(abs, weights)) or 1.0  # first by the largest: the sum of large numbers may be infinite
    total = math.fsum(weight / most for weight in weights)
    return weights if math.isclose(total * most, 1.0, rel_tol=1e-12) else [w / most / (total or 1.0) for w in weights]


def _name(sampler: Sampler) -> str | None:
    return None if sampler.directory is None else str(sampler.directory)


def _numbers(what: str, values: Sequence[float], number: int) -> list[float]:
    """``values`` as finite numbers. Raises ``UsageError`` unless there are ``number`` of them."""
    given = list(check_kind(what, values, Sequence | np.ndarray, "a list of numbers"))
    if len(given) != number:
        raise UsageError(f"{what} of this mixture must be {number} numbers, and {len(given)} were given.")
    try:
        found = [float(value) for value in given]
    except (TypeError, ValueError):
        raise UsageError(f"{what} of a mixture must be numbers, and {given!r} was given.") from None
    if not all(map(math.isfinite, found)):
        raise UsageError(f"{what} of a mixture must be finite numbers, and {found} was given.")
    return found


def read_members(words: Sequence[str], flag: str) -> tuple[list[str], list[float] | None]:
    """The runs and weights of ``RUN:WEIGHT ...``; without weights ``None``. A name may itself contain a colon.

    Raises ``UsageError``, which names ``flag``, if some runs have a weight and some have none.
    """
    runs: list[str] = []
    weights: list[float] = []
    for word in words:
        run, _, number = word.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            run = ""
        if not run or os.path.isdir(word):
            runs.append(word)
        else:
            runs.append(run)
            weights.append(weight)
    if weights and len(weights) < len(runs):
        raise UsageError(
            f"{flag} {' '.join(words)} names {counted(len(runs), 'run')} and {counted(len(weights), 'weight')}: give "
            "each run a weight, as in runs/language-1:0.7, or none."
        )
    return runs, weights or None


def open_members(runs: Sequence[Run]) -> list[Sampler]:
    """The samplers of the runs of a mixture. Raises ``UsageError`` if they cannot be mixed."""
    right = 'a list of two or more runs, for example jaxgen.mix(["runs/language-1", "runs/language-2"])'
    if isinstance(runs, str) or len(check_kind("A mixture", runs, Sequence, right)) < 2:
        raise UsageError(f"A mixture got {runs!r}: give {right}.")
    opened: dict[str, Sampler] = {}  # a run that occurs again shares its weights

    def sampler_of(run: Run) -> Sampler:
        if isinstance(run, Sampler):
            return run
        name = os.fspath(check_kind("A mixture", run, str | os.PathLike, right))
        if name not in opened:
            opened[name] = Sampler.load(name)
        return opened[name]

    samplers = [sampler_of(run) for run in runs]
    for other in samplers[1:]:
        _check_alike(samplers[0], other)
    return samplers


def _check_alike(first: Sampler, other: Sampler) -> None:
    """Raise ``UsageError`` unless two models give probabilities to the same tokens of the same texts."""
    differ = {
        "tokens": first.tokenizer.to_json() != other.tokenizer.to_json(),
        "labels or features": first.conditioning != other.conditioning,
        "layouts (one of documents, one of running text)": first.documents != other.documents,
        "ways to read text (--newlines)": first.reading != other.reading,
    }
    for what, different in differ.items():
        if different:
            names = [_name(each) or repr(each) for each in (first, other)]
            raise UsageError(
                f"{names[0]} and {names[1]} have different {what} and cannot be mixed: give runs that were trained "
                "with the same --data and --level, or from one another with --init-from."
            )


@dataclass(frozen=True)
class MixtureFit:
    """Numbers of a mixture, fitted on a held-out text: ``weights`` or ``gate``, as ``mix`` takes them.

    Attributes:
        weights: The weights, or ``None``.
        gate: The bias and slope of each run, or ``None``.
        loss: Nats per token of the mixture on the text.
        losses: Those of each run alone.
        tokens: Tokens of the text.
    """

    weights: list[float] | None
    gate: list[float] | None
    loss: float
    losses: list[float]
    tokens: int


def fit_mixture(runs: Sequence[Run], *, gated: bool = False, reading: AdaptiveOptions = PLAIN) -> MixtureFit:
    """Fit the weights of a mixture on the text that all its runs held out (``--holdout``). Draws nothing at random.

    Args:
        runs: Folders of runs that were trained with the same ``--holdout`` of the same data, or their samplers.
        gated: Fit a gate: two numbers for each run, by which its weight depends on how sure it is.
        reading: How the networks read the text; if not as they are by default, at most ``MAX_CHARACTERS`` of it.

    Raises:
        UsageError: A run may have read the text: it held out none, or another one.
        DataError: The text is missing or has changed.

    Example:
        >>> runs = ["runs/language-1", "runs/language-1"]
        >>> fit = jaxgen.fit_mixture(runs)
        >>> fit.weights
        [0.5, 0.5]
        >>> sampler = jaxgen.mix(runs, fit.weights)
    """
    samplers = open_members(runs)
    text = held_out_text(samplers, None if reading.plain else MAX_CHARACTERS)
    scored = [_per_token(sampler, text, int(gated), reading) for sampler in samplers]
    logp = np.stack([found[0] for found in scored], axis=1)
    weights = fit_weights(logp)
    losses = [float(loss) for loss in -logp.mean(axis=0)]
    if not gated:
        return MixtureFit(weights, None, mixture_loss(logp, np.log(weights)), losses, len(logp))
    confidence = np.stack([found[1][:, 0] for found in scored], axis=1)
    gate = fit_gate(logp, confidence, np.log(weights))
    scores = np.array(gate[::2]) + np.array(gate[1::2]) * confidence
    return MixtureFit(None, gate, mixture_loss(logp, scores), losses, len(logp))


def _per_token(sampler: Sampler, texts: list[str], top: int, reading: AdaptiveOptions) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each token of the texts [N], and those of the ``top`` most probable ones there."""
    how = reading if can_adapt(sampler.params) else PLAIN
    if sampler.documents or not how.plain:
        scorer = Scorer(sampler, top=top, unk="keep", **how.for_scorer)
        parts = [tokens for _, tokens in scorer.score_each(texts)]
    else:
        scorer = Scorer(sampler, lanes=LANES, top=top, unk="keep")
        parts = [scorer.per_token(text) for text in texts]
    logp, top_logp = (np.concatenate(field).astype(np.float64) for field in list(zip(*parts))[1::2])
    return logp, top_logp


def fit_weights(logp: np.ndarray) -> list[float]:
    """The weights that maximise the likelihood of a mixture, by EM, rounded.

    Args:
        logp: The log-probability of each token by each model, [N, M].
    """
    p = np.exp(logp - logp.max(axis=1, keepdims=True))
    weights = np.full(logp.shape[1], 1 / logp.shape[1])
    for _ in range(MAX_ITERATIONS):
        joint = weights * p
        before, weights = weights, (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(weights - before).max() < TOLERANCE:
            break
    return [float(weight) for weight in np.maximum(weights.round(DECIMALS), LEAST)]


def fit_gate(logp: np.ndarray, confidence: np.ndarray, start: np.ndarray) -> list[float]:
    """The bias and slope of each model that maximise the likelihood of a gated mixture, rounded.

    Args:
        logp: The log-probability of each token by each model, [N, M].
        confidence: The log-probability of the most probable token there, [N, M].
        start: The biases to begin with, [M]; the slopes begin at 0.
    """
    from scipy.optimize import minimize  # takes a second to import, and every training run imports this module

    number = logp.shape[1]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        bias, slope = theta[:number], theta[number:]
        prior = _log_softmax(bias + slope * confidence)
        total = np.logaddexp.reduce(prior + logp, axis=1)
        pull = np.exp(prior) - np.exp(prior + logp - total[:, None])  # the derivative by the scores
        gradient = np.concatenate([pull.sum(axis=0), (pull * confidence).sum(axis=0) + 2 * RIDGE * slope])
        return (RIDGE * (slope**2).sum() - total.sum()) / len(logp), gradient / len(logp)

    found = minimize(objective, np.concatenate([start, np.zeros(number)]), jac=True, method="L-BFGS-B").x
    found[:number] -= found[0]
    pairs = found.reshape(2, number).T.round(DECIMALS) + 0.0  # no -0.0
    return [float(value) for value in pairs.ravel()]


def mixture_loss(logp: np.ndarray, scores: np.ndarray) -> float:
    """Nats per token of a mixture whose weights are the softmax of ``scores`` ([M] or [N, M])."""
    prior = _log_softmax(np.broadcast_to(scores, logp.shape))
    return -float(np.logaddexp.reduce(prior + logp, axis=1).mean())


def _log_softmax(scores: np.ndarray) -> Any:
    return scores - np.logaddexp.reduce(scores, axis=1)[:, None]
