"""Flags that say how a model adapts to the text that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from jaxgen.cli.common import log
from jaxgen.cli.flags import CommandConfig, Excludes, Needs, Rules, is_written
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.adaptation import Adaptation, AdaptiveOptions
    from jaxgen.inference.fitting import AdaptiveFit
    from jaxgen.inference.sampler import Sampler


class AdaptationConfig(CommandConfig):
    """Flags of the step by which weights adapt."""

    in_adaptation: ClassVar[Group] = Group("Adaptation")
    adapt_rate: float = 1e-3
    """How far one step of adaptation moves the weights."""
    adapt_decay: float = 0.01
    """The share of the way back to the trained weights that each step of adaptation goes."""
    adapt_segment: int = 64
    """Tokens of a segment: the weights change after each."""

    @property
    def adaptation(self) -> Adaptation:
        """The adaptation that these flags describe. Raises ``UsageError`` for a value out of range."""
        from jaxgen.inference.adaptation import Adaptation

        return Adaptation(self.adapt_rate, self.adapt_decay, self.adapt_segment)


class AdaptiveScoringConfig(AdaptationConfig):
    """Flags of commands that score text with a model that adapts to it."""

    in_adaptation: ClassVar[Group] = Group("Adaptation")
    adapt: bool = False
    """Adapt the weights to each text while it is scored (dynamic evaluation): a segment is scored first, and then
    changes them by one step. Each text starts from the trained weights."""
    cache: int = 0
    """Make the tokens among the last N more probable where the model is in a similar state (a neural cache): for
    words."""
    cache_weight: float = 0.1
    """The share of the cache in each probability."""
    cache_sharpness: float = 0.3
    """How strongly the cache prefers similar states."""
    temperature: float = 1.0
    """Divides the logits: above 1 for a model that is too sure of itself."""
    fit: bool = False
    """Fit the temperature, and the numbers of --adapt and --cache, on the text that the run kept from training
    (train.py --holdout). Numbers that you give are kept."""


#: Flags that count as given even with their default value, each with the number that ``--fit`` then leaves alone.
FITTED = {
    "--adapt-rate": ("adapt", "rate"),
    "--adapt-decay": ("adapt", "decay"),
    "--cache-sharpness": ("cache", "sharpness"),
    "--cache-weight": ("cache", "weight"),
    "--temperature": ("temperature",),
}
STEP_FLAGS = ("--adapt-rate", "--adapt-decay", "--adapt-segment")
IN_ORDER = ("--lanes", "--state cold")
ADAPTIVE_RULES: Rules = (
    *(Needs(flag, ("--adapt",), "is about adaptation") for flag in STEP_FLAGS),
    *(Needs(flag, ("--cache",), "is about the cache") for flag in ("--cache-weight", "--cache-sharpness")),
    Excludes("--adapt", (*IN_ORDER, "--lines"), "follows one text from its beginning to its end"),
    Excludes("--cache", (*IN_ORDER, "--lines"), "follows one text from its beginning to its end"),
    Excludes("--temperature", IN_ORDER, "reads a text in order"),
    Excludes("--fit", IN_ORDER, "reads a text in order"),
)


def adaptive_options(
    config: AdaptiveScoringConfig, args: Sequence[str], sampler: Sampler | None = None
) -> AdaptiveOptions:
    """The options that the flags describe; with ``sampler`` and ``--fit``, fitted ones.

    Raises:
        UsageError: A value is out of range, or there is no text to fit on.
        DataError: That text is missing or has changed.
    """
    from jaxgen.inference.adaptation import AdaptiveOptions, NeuralCache

    cache = NeuralCache(config.cache, config.cache_weight, config.cache_sharpness) if config.cache else None
    options = AdaptiveOptions(config.adaptation if config.adapt else None, cache, config.temperature)
    if config.fit and sampler is not None:
        from jaxgen.inference.fitting import fit_options

        fit = fit_options(sampler, options, [key for flag, key in FITTED.items() if is_written(args, flag)])
        log(describe_fit(fit))
        options = fit.options
    return options


def describe_fit(fit: AdaptiveFit) -> str:
    """What was fitted, as the flags that give the same again, with the losses on the held-out text."""
    adapt, cache, flags = fit.options.adapt, fit.options.cache, []
    if adapt is not None:
        flags.append(f"--adapt --adapt-rate {adapt.rate:g} --adapt-decay {adapt.decay:g}")
    if cache is not None:
        flags.append(f"--cache {cache.size} --cache-weight {cache.weight:g} --cache-sharpness {cache.sharpness:g}")
    flags.append(f"--temperature {fit.options.temperature:g}")
    return (
        f"fitted: {' '.join(flags)}\non {fit.score.tokens:,} held-out tokens: {fit.score.nats_per_token:.4f} nats a "
        f"token, {fit.plain.nats_per_token:.4f} without."
    )
