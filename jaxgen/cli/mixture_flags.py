"""Flags that say which model a command uses: one run, or a mixture of several."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxgen.cli.common import log, name_newest
from jaxgen.cli.flags import CommandConfig, Excludes, Needs, Rules, RunConfig, fill_value
from jaxgen.errors import UsageError, counted
from jaxgen.runs.groups import Group

if TYPE_CHECKING:
    from jaxgen.inference.adaptation import AdaptiveOptions
    from jaxgen.inference.mixture import MixtureFit
    from jaxgen.inference.sampler import Sampler


class MixtureFlags(CommandConfig):
    """Flags of a mixture."""

    in_model: ClassVar[Group] = Group("Model")
    mix: tuple[str, ...] = ()
    """Several runs with their weights, runs/a:0.7 runs/b:0.3, instead of --run: their probabilities are mixed. Without
    weights all count the same."""
    mix_fit: Literal["weights", "gate"] | None = None
    """Fit the weights of --mix on the text that all its runs held out (train.py --holdout). --mix-fit alone is weights.
    gate: weights that depend on how sure each run is. The numbers are printed, and can be given again."""
    mix_gate: tuple[float, ...] = ()
    """The numbers of a gate for --mix, as --mix-fit gate prints them: two for each run."""


class MixtureConfig(MixtureFlags, RunConfig):
    """Flags of the commands that use a language model or a mixture of several."""


MIXTURE_RULES: Rules = (
    Excludes("--mix", ("--run",), "names the runs"),
    Needs("--mix-fit", ("--mix",), "fits the weights of a mixture"),
    Needs("--mix-gate", ("--mix",), "weighs the runs of a mixture"),
    Excludes("--mix-fit", ("--mix-gate",), "finds the numbers"),
)


def fill_mixture_flags(args: Sequence[str]) -> list[str]:
    """``args`` with the value that ``--mix-fit`` has alone."""
    return fill_value(args, "--mix-fit", "weights")


def open_sampler(
    config: RunConfig, command: str, named: bool = True, reading: AdaptiveOptions | None = None
) -> Sampler:
    """The sampler of the run or of the mixture that the flags name; with ``named`` it says which, if they name none.

    Raises ``UsageError`` and ``CheckpointError``.
    """
    from jaxgen.inference.sampler import Sampler

    if isinstance(config, MixtureConfig) and config.mix:
        return open_mixture(config, reading)
    sampler = Sampler.load(config.run, command)
    if named:
        name_newest(config.run, sampler.directory)
    return sampler


def open_mixture(config: MixtureFlags, reading: AdaptiveOptions | None = None) -> Sampler:
    """The sampler of the mixture that the flags describe. Raises ``UsageError`` and ``CheckpointError``."""
    from jaxgen.inference.mixture import PLAIN, fit_mixture, mix, open_members, read_members

    runs, weights = read_members(config.mix, "--mix")
    if len(runs) < 2:
        raise UsageError(f"--mix names only {runs[0]}: give two or more runs, or --run {runs[0]}.")
    if weights is not None and (config.mix_fit or config.mix_gate):
        flag = "--mix-fit" if config.mix_fit else "--mix-gate"
        raise UsageError(f"{flag} decides the weights of the runs, and --mix names some: leave one of the two out.")
    samplers = open_members(runs)
    if config.mix_fit is None:
        return mix(samplers, weights, gate=config.mix_gate or None)
    fit = fit_mixture(samplers, gated=config.mix_fit == "gate", reading=reading or PLAIN)
    log(describe_fit(runs, fit))
    return mix(samplers, fit.weights, gate=fit.gate)


def describe_fit(runs: Sequence[str], fit: MixtureFit) -> str:
    """What was fitted, as the flags that give the same mixture again, with the losses on the held-out text."""
    if fit.weights is not None:
        flags = f"--mix {' '.join(shlex.quote(f'{run}:{weight}') for run, weight in zip(runs, fit.weights))}"
    else:
        flags = f"--mix {shlex.join(runs)} --mix-gate {' '.join(map(str, fit.gate or []))}"
    alone = ", ".join(f"{run} {loss:.4f}" for run, loss in zip(runs, fit.losses))
    return f"{flags}\nOn {counted(fit.tokens, 'held-out token')}: {fit.loss:.4f} nats a token; alone {alone}."
