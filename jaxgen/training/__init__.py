"""Training: the state, one pure step, and the optimisers."""

from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from jaxgen.training.parallel import (
    count_devices,
    make_mesh,
    on_one_device,
    spread_eval_step,
    spread_evaluation,
    spread_state,
    spread_train_steps,
    spread_whole,
)
from jaxgen.training.reading import STACKED, OfText, Stacked
from jaxgen.training.state import TrainState, create_state
from jaxgen.training.step import StepMetrics, eval_step, train_step, train_steps

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "STACKED",
    "OfText",
    "Stacked",
    "StepMetrics",
    "TrainState",
    "count_devices",
    "create_state",
    "eval_step",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "on_one_device",
    "spread_eval_step",
    "spread_evaluation",
    "spread_state",
    "spread_train_steps",
    "spread_whole",
    "train_step",
    "train_steps",
]
