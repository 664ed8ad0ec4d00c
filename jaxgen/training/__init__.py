"""Training: the state, one pure step, and the optimisers."""

from jaxgen.training.data_parallel import (
    data_parallel_size,
    make_global_mesh,
    make_mesh,
    replicate,
    replicated_sharding,
    shard_batch,
    shard_eval_step,
    shard_evaluation,
    shard_local_batches,
    shard_local_rows,
    shard_state,
    shard_train_steps,
    shard_train_steps_with_stop_flag,
    shard_windows,
    unreplicate,
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
    "create_state",
    "data_parallel_size",
    "eval_step",
    "make_global_mesh",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "replicate",
    "replicated_sharding",
    "shard_batch",
    "shard_eval_step",
    "shard_evaluation",
    "shard_local_batches",
    "shard_local_rows",
    "shard_state",
    "shard_train_steps",
    "shard_train_steps_with_stop_flag",
    "shard_windows",
    "train_step",
    "train_steps",
    "unreplicate",
]
