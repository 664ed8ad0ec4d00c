"""The number of steps that fit into ``--minutes``: measured once, before the run starts, and then fixed."""

from __future__ import annotations

import math
import sys
import time
from typing import NamedTuple

from jaxgen.errors import UsageError, counted
from jaxgen.runs.config import MAX_STEPS, TrainConfig
from jaxgen.trainer.evaluate import EvalSchedule
from jaxgen.trainer.trainer import RunTrainer, Work

#: Calls of the compiled step that are timed for every shape of batches, after one that compiles.
MEASURED_CALLS = 3
#: Share of the time left after the measurement that is kept for checkpoints, logs and inexact measurements.
MARGIN = 0.1
#: By how much the minutes that a refusal names exceed the measured ones: another start can be slower.
SLACK = 1.25
#: Seconds kept for the plots and the end of the process.
ENDING = 2.0
#: Fewest steps of a run without ``--eval-every``. With fewer, most of the time would go into evaluations.
MIN_STEPS = 20


class Costs(NamedTuple):
    """Seconds of the parts of a run when nothing compiles."""

    step: float
    evaluation: float
    examples: float
    final: float  # the report at the end

    def run(self, config: TrainConfig, steps: int) -> float:
        """Seconds of a whole run of ``steps`` steps."""
        schedule = EvalSchedule.of(config, steps, steps)
        evaluations = -(-steps // schedule.evaluation) if schedule.evaluation else 1
        examples = (steps - 1) // schedule.sample if schedule.sample else 0
        return steps * self.step + evaluations * self.evaluation + examples * self.examples + self.final


def measure(trial: RunTrainer, began: float) -> Costs:
    """Measure the parts of the run that ``trial`` stands for. What this compiles, the run does not compile again.

    The time per step is that of each shape of batches, weighted by how often an epoch has it. ``began`` is when the
    command began. Raises ``UsageError`` once all of ``--minutes`` has gone into the measurement.
    """
    minutes = trial.config.minutes or 0.0

    def check_time(what: str = "reading the data and compiling have") -> None:
        took = trial.group.broadcast_json(time.perf_counter() - began)
        if took > minutes * 60 * (1 - MARGIN):
            raise UsageError(
                f"--minutes {minutes:g} is too short: {what} taken {took:.0f} seconds, and training has not begun. "
                f"Give --minutes {math.ceil(took / 15):g} or more, or --steps."
            )

    check_time("reading the data alone has")
    seconds, steps = 0.0, 0
    for step, often in trial.data.batches.shapes():
        trial.time_call(step)  # compiles
        usual = sorted(trial.time_call(step) for _ in range(MEASURED_CALLS))[MEASURED_CALLS // 2]
        seconds, steps = seconds + often * usual, steps + often
        check_time()

    def usual_seconds(work: Work, limit: float = math.inf) -> float:
        """Seconds of ``work``: of its second call, unless the first one, which compiles, took longer than ``limit``."""
        took = 0.0
        for _ in range(2):
            start = time.perf_counter()
            work()
            took = trial.group.broadcast_json(time.perf_counter() - start)
            check_time()
            if took > limit:
                break
        return took

    evaluation, report = trial.report_parts()
    metrics, generated, examples = (usual_seconds(work) for work in evaluation)
    # A run has about ten evaluations, so that two more cost little. It has one report.
    final_metrics, final_examples = (usual_seconds(work, minutes * 6) for work in report)
    final = final_metrics + generated * trial.data.final_generation_share + final_examples + ENDING
    return Costs(max(seconds / steps, sys.float_info.min), metrics + generated, examples, final)


def fitting_steps(config: TrainConfig, costs: Costs, elapsed: float) -> int:
    """The largest number of steps whose run ends in time, ``elapsed`` seconds of which are over.

    Raises ``UsageError`` if they are fewer than one evaluation needs.
    """
    least = config.eval_every or MIN_STEPS
    left = ((config.minutes or 0.0) * 60 - elapsed) * (1 - MARGIN)
    if costs.run(config, least) > left:
        needed = math.ceil(SLACK * (elapsed + costs.run(config, least) / (1 - MARGIN)) / 6) / 10
        raise UsageError(
            f"--minutes {config.minutes:g} is too short: {counted(least, 'step')}, the fewest that are evaluated, need "
            f"--minutes {needed:g} here, with compilation and evaluations. Give that or more, or --steps."
        )
    most = MAX_STEPS + 1
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if costs.run(config, middle) <= left else (least, middle)
    return least
