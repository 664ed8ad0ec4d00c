"""Training: the state, one pure step, and the optimisers."""

from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from jaxgen.training.state import TrainState, create_state
from jaxgen.training.step import StepMetrics, eval_step, train_step, train_steps

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "StepMetrics",
    "TrainState",
    "create_state",
    "eval_step",
    "make_optimizer",
    "make_schedule",
    "train_step",
    "train_steps",
]
