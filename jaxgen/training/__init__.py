"""Training: the state, one pure step, and the optimisers."""

from jaxgen.training.data_parallel import (
    asked_train_steps,
    count_devices,
    make_global_mesh,
    make_mesh,
    on_one_device,
    spread_batch,
    spread_eval_step,
    spread_evaluation,
    spread_rows,
    spread_shares,
    spread_state,
    spread_train_steps,
    spread_whole,
    spread_windows,
    whole_on,
)
from jaxgen.training.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from jaxgen.training.step import StepMetrics, TrainState, create_state, eval_step, train_step, train_steps
from jaxgen.training.windows import HOST_BATCHES, DeviceText, HostBatches

__all__ = [
    "HOST_BATCHES",
    "OPTIMIZERS",
    "SCHEDULES",
    "DeviceText",
    "HostBatches",
    "StepMetrics",
    "TrainState",
    "asked_train_steps",
    "count_devices",
    "create_state",
    "eval_step",
    "make_global_mesh",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "on_one_device",
    "spread_batch",
    "spread_eval_step",
    "spread_evaluation",
    "spread_rows",
    "spread_shares",
    "spread_state",
    "spread_train_steps",
    "spread_whole",
    "spread_windows",
    "train_step",
    "train_steps",
    "whole_on",
]
