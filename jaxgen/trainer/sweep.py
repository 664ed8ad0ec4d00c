"""A sweep: runs over several settings, chosen from a grid, at random or by Optuna, with or without successive halving.

Each trial is an ordinary run in the folder of the sweep, with several seeds a folder of runs. ``sweep.json`` there has
the plan and the results, so that a sweep that was killed continues: a trial with a result is not trained again, and one
without is resumed.
"""

from __future__ import annotations

import itertools
import math
import random
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.errors import CheckpointError, DataError, DivergedError, UsageError, counted
from jaxgen.fsutil import RESUME, StrictModel, load_strict, replace_file
from jaxgen.plots import Picture, draw_parallel
from jaxgen.runs.collection import is_seeds, make_collection, read_record, write_record
from jaxgen.runs.config import TrainConfig, validate
from jaxgen.runs.directory import SWEEP, RunDirectory
from jaxgen.runs.lock import RunLock
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.base import Metric
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.callbacks import Emit, Note, ignore
from jaxgen.trainer.run import prepare, resume, start, steps_of
from jaxgen.trainer.seeds import check_seeds, read_seeds, resume_seeds, seeds_config, train_seeds
from jaxgen.trainer.signals import Interrupted

#: The most trials of a sweep.
MAX_TRIALS = 10_000
#: Digits of a number that is drawn.
DIGITS = 4
#: How often a draw is repeated that gave a trial which is there already.
REDRAWS = 100
#: A range whose ends have at least this ratio is searched on a logarithmic scale.
LOG_RATIO = 10


class Space(StrictModel):
    """The values of a setting that are drawn from: a range, or choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False  # whole numbers only
    choices: list[Any] = []

    @property
    def logarithmic(self) -> bool:
        """Whether numbers are drawn evenly on a logarithmic scale."""
        return self.low > 0 and self.high >= LOG_RATIO * self.low

    def draw(self, share: float) -> Any:
        """The value at a share of the range, or of the choices, from 0 to 1 (exclusive)."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.logarithmic:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


class Result(StrictModel):
    """What a trial reached with a number of steps."""

    trial: int  # from 1
    steps: int
    figures: list[float]  # the best of each seed; none if one diverged
    problem: str = ""


class Plan(StrictModel):
    """The content of ``sweep.json``."""

    task: str
    config: dict[str, Any]  # the settings of all trials that were given
    seeds: list[int]
    several: bool  # whether a trial is a folder of seeds, and not a run
    halving: int | None  # after each round one of so many trials continues
    spaces: list[Space]  # what is drawn from; none of a grid
    number: int  # of trials
    optuna: bool
    trials: list[dict[str, Any]]  # the values of each trial; with Optuna those so far
    results: list[Result] = []


class Round(NamedTuple):
    """One round of a sweep: so many trials are trained to so many steps."""

    trials: int
    steps: int


def rounds(number: int, steps: int, keep: int | None) -> list[Round]:
    """The rounds of successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943); without ``keep`` a single one.

    Each round continues one of ``keep`` trials for ``keep`` times the steps, until one trial has all ``steps``. Raises
    ``UsageError`` if the first round would have no step.
    """
    if keep is None:
        return [Round(number, steps)]
    sizes = [number]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // keep))
    found = [Round(size, steps // keep ** (len(sizes) - 1 - place)) for place, size in enumerate(sizes)]
    if found[0].steps < 1:
        raise UsageError(
            f"--halving {keep} begins with {steps:,} / {keep}^{len(sizes) - 1} steps for {counted(number, 'trial')}, "
            "which is none: give more --steps, or fewer trials."
        )
    return found


def grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of some settings."""
    return [dict(zip(values, each)) for each in itertools.product(*values.values())]


def draws(spaces: Sequence[Space], number: int, seed: int) -> list[dict[str, Any]]:
    """Combinations drawn at random, each once: fewer than ``number`` if there are not so many."""
    found: list[dict[str, Any]] = []
    source = random.Random(seed)  # Python promises the same numbers for a seed in all versions
    for _ in range(number):
        for _ in range(REDRAWS):
            drawn = {space.name: space.draw(source.random()) for space in spaces}
            if drawn not in found:
                found.append(drawn)
                break
    return found


def suggest(spaces: Sequence[Space], done: Sequence[tuple[dict[str, Any], float | None]], seed: int) -> dict[str, Any]:
    """The next trial that Optuna's TPE sampler suggests (Bergstra et al. 2011), to lower a cost.

    ``done`` are the earlier trials with their costs; None for one that diverged.
    """
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds, state = optuna.distributions, optuna.trial.TrialState
    distributions: dict[str, Any] = {}
    for space in spaces:
        if space.choices:
            distributions[space.name] = kinds.CategoricalDistribution(range(len(space.choices)))
        elif space.whole:
            distributions[space.name] = kinds.IntDistribution(int(space.low), int(space.high), log=space.logarithmic)
        else:
            distributions[space.name] = kinds.FloatDistribution(space.low, space.high, log=space.logarithmic)
    # Another seed for each trial: the sampler starts anew, so that a resumed sweep goes on as if it had not stopped.
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=(seed + len(done)) % 2**32))
    places = {space.name: space.choices for space in spaces if space.choices}  # it takes numbers and strings only
    for values, cost in done:
        params = {name: places[name].index(value) if name in places else value for name, value in values.items()}
        ended: dict[str, Any] = {"value": cost} if cost is not None else {"state": state.FAIL}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, **ended))
    asked = study.ask(distributions).params
    return {name: places[name][value] if name in places else value for name, value in asked.items()}


def import_optuna() -> Any:
    """The module ``optuna``. Raises ``UsageError`` if it is not installed."""
    try:
        return import_module("optuna")
    except ImportError:
        raise UsageError('Optuna is not installed: pip install "jaxgen[optuna]".') from None


class Sweep:
    """A sweep in a folder, new or continued."""

    def __init__(self, folder: Path, plan: Plan, emit: Emit = ignore) -> None:
        self.folder, self.plan, self.emit = folder, plan, emit
        self.kind = DATA[plan.task].Config
        self.metric: Metric = DATA[plan.task].METRIC

    @classmethod
    def create(cls, path: str | None, plan: Plan, emit: Emit = ignore) -> Sweep:
        """A new sweep in a new folder, ``path`` or ``runs/sweep-N``.

        Every trial is checked as ``start`` checks it, data and model. Raises ``UsageError``, ``DataError`` and
        ``CheckpointError``; then there is no folder.
        """
        sweep = cls(Path("."), plan, emit)
        if plan.optuna:
            import_optuna()
        for number, values in enumerate(plan.trials, 1):
            config = sweep.config(values)
            with named(f"Trial {number} ({show_values(values)})"):
                if plan.several:
                    check_seeds(config, plan.seeds)
                if plan.halving is not None:
                    sweep.rounds(config)
                if config.model == "rnn":
                    prepare(config)
                elif plan.halving is not None:
                    raise UsageError(f"--model {config.model} is not trained in steps: leave out --halving.")
        sweep.folder = make_collection(path, "sweep")
        sweep._save()
        return sweep

    @classmethod
    def open(cls, folder: Path, emit: Emit = ignore) -> Sweep:
        """The sweep in a folder. Raises ``CheckpointError``."""
        plan: Plan = load_strict(Plan, read_record(folder / SWEEP), str(folder / SWEEP))
        if plan.task not in DATA:
            raise CheckpointError(f"{folder} is a sweep of the task {plan.task}, which needs a --plugin.")
        return cls(folder, plan, emit)

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The settings of a trial with these values."""
        seed = self.plan.seeds[0]
        return validate(self.kind, {"sample_every": 0, **self.plan.config, **values, "seed": seed})

    def rounds(self, config: TrainConfig) -> list[Round]:
        """The rounds of the sweep; the steps of a single one are those of each trial."""
        if self.plan.halving is None:
            return [Round(self.plan.number, 0)]
        if config.epochs is not None:
            raise UsageError("--halving counts steps: give --steps instead of --epochs.")
        return rounds(self.plan.number, steps_of(config), self.plan.halving)

    def run(self) -> list[dict[str, Any]]:
        """Train what is not trained yet; returns the ``rows``.

        Raises:
            Interrupted: A signal came; everything is saved, and another call continues.
            UsageError: Another process trains the sweep.
        """
        with RunLock.training(self.folder):
            going = [*range(1, self.plan.number + 1)]
            for each in self.rounds(self.config({})):
                going = self._best(going, each.trials)
                for trial in going:
                    self._train(trial, each.steps)
            rows = self.rows()
            self._draw(rows)
        return rows

    def _best(self, trials: list[int], number: int) -> list[int]:
        """The best of these trials by their last results, in their order; those that diverged are left out."""
        if number == len(trials):
            return trials
        costs = {trial: cost for trial in trials if (cost := self._cost(trial)) is not None}
        return sorted(sorted(costs, key=lambda trial: (costs[trial], trial))[:number])

    def _train(self, trial: int, steps: int) -> None:
        """Train a trial to ``steps`` (0: to its end), unless it has the result."""
        if trial > len(self.plan.trials):
            self._suggest()
        if self._result(trial, steps) is not None:
            return
        values = self.plan.trials[trial - 1]
        config = self.config(values)
        length = f", to step {steps:,}" if steps else ""
        self.emit(Note(f"Trial {trial} of {self.plan.number}{length}: {show_values(values)}"))
        problem = ""
        try:
            with named(f"Trial {trial} ({show_values(values)})"):
                self._train_run(trial, config, steps)
        except DivergedError as error:
            problem = str(error)
        except Interrupted as stop:
            where = f"in trial {trial}; saved. `jaxgen sweep --run {shlex.quote(str(self.folder))}` continues"
            raise Interrupted(stop.exit_code - 128, where) from None
        figures = [] if problem else self._figures(trial)
        self.plan.results.append(Result(trial=trial, steps=steps, figures=figures, problem=problem))
        self._save()
        if problem:
            self.emit(Note(f"Trial {trial} diverged."))
        elif figures:
            self.emit(Note(f"Trial {trial}: {self.metric.name} {show_figure(figures)}"))

    def _suggest(self) -> None:
        """Add the trial that Optuna suggests."""
        done = [(values, self._cost(trial)) for trial, values in enumerate(self.plan.trials, 1)]
        self.plan.trials.append(suggest(self.plan.spaces, done, self.plan.seeds[0]))
        self._save()

    def _train_run(self, trial: int, config: TrainConfig, steps: int) -> None:
        """Start the run or the runs of a trial, or continue them."""
        path, halving = self.path(trial), self.plan.halving is not None
        there = is_seeds(path) or RunDirectory(path).exists()
        if not there and self._result(trial) is not None:
            raise CheckpointError(f"{path} is missing: bring the run back, or begin another sweep.")
        horizon = steps_of(config) if halving else None  # the schedule is that of the whole run
        update: dict[str, Any] = {"run": str(path), **({"steps": steps} if halving else {})}
        if self.plan.several:
            if there:
                resume_seeds(path, seeds_config(path).model_copy(update=update), self._quiet)
            else:
                train_seeds(config.model_copy(update=update), self.plan.seeds, self._quiet, horizon)
        elif there:
            saved = config.model_copy(update=update)
            resume(path, saved, self._quiet).train()
        else:
            start(config.model_copy(update=update), self._quiet, horizon=horizon).train()

    def _quiet(self, event: Any) -> None:
        """Show progress and warnings of a trial."""
        if not isinstance(event, Note) or event.text.startswith("WARNING"):
            self.emit(event)

    def path(self, trial: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial-{trial}"

    def _figures(self, trial: int) -> list[float]:
        """The best figure of each run of a trial; none if a run has none."""
        path, figures = self.path(trial), []
        seeds = read_seeds(path) if self.plan.several else None
        runs = [path] if seeds is None else [seeds.folder_of(path, seed) for seed in seeds.seeds]
        for run in runs:
            best = self.metric.best_of(MetricsLog(RunDirectory(run).metrics_path).read())
            if best is None:
                return []
            figures.append(best)
        return figures

    def _result(self, trial: int, steps: int | None = None) -> Result | None:
        """The last result of a trial, or that with so many ``steps``."""
        known = (each for each in reversed(self.plan.results) if each.trial == trial)
        return next((each for each in known if steps in (None, each.steps)), None)

    def _cost(self, trial: int) -> float | None:
        """The last mean figure of a trial as a number to minimise; None if it has none or diverged."""
        last = self._result(trial)
        if last is None or not last.figures:
            return None
        mean = statistics.fmean(last.figures)
        return -mean if self.metric.higher_is_better else mean

    def rows(self) -> list[dict[str, Any]]:
        """The trials with their results: those that were trained longest first, of these the best."""
        rows: list[dict[str, Any]] = []
        for trial, values in enumerate(self.plan.trials, 1):
            if (last := self._result(trial)) is None:
                continue
            figures = last.figures
            rows.append(
                {
                    "trial": trial,
                    "run": str(self.path(trial)),
                    "values": values,
                    "metric": self.metric.name,
                    "mean": statistics.fmean(figures) if figures else None,
                    "spread": statistics.stdev(figures) if len(figures) > 1 else None,
                    "figures": figures,
                    "steps": last.steps or None,
                    "problem": last.problem,
                }
            )
        sign = -1 if self.metric.higher_is_better else 1
        rows.sort(key=lambda row: (-(row["steps"] or 0), math.inf if row["mean"] is None else sign * row["mean"]))
        return rows

    def _draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = [(row["values"], row["mean"]) for row in rows if row["mean"] is not None]
        title = f"{self.folder.name}: {counted(len(rows), 'trial')}"
        label, higher = self.metric.best_at(0).axis, self.metric.higher_is_better
        drawn = Picture.drawn(lambda file: draw_parallel(lines, file, title, label, higher))
        with suppress(CheckpointError):  # a full disk; the results are saved
            replace_file(self.folder / "sweep.png", drawn.png, RESUME)

    def _save(self) -> None:
        write_record(self.folder / SWEEP, self.plan)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Errors of the block begin with ``what``."""
    try:
        yield
    except (UsageError, DataError, CheckpointError) as error:
        kind = next(kind for kind in (UsageError, DataError, CheckpointError) if isinstance(error, kind))
        raise kind(f"{what}: {error}") from None


def show_values(values: Mapping[str, Any]) -> str:
    """The values of a trial in a few words."""
    return ", ".join(f"{name} {show_value(value)}" for name, value in values.items())


def show_value(value: Any) -> str:
    """A value as the command line would give it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_figure(figures: Sequence[float]) -> str:
    """The mean of some figures, with their spread."""
    return f"{statistics.fmean(figures):.4f}" + (f" ± {statistics.stdev(figures):.4f}" if len(figures) > 1 else "")
