"""What a run keeps on disk: its folder, its checkpoints, its metrics and samples, its picture."""

from jaxgen.store.checkpoints import CheckpointStore
from jaxgen.store.format import DamagedCheckpointError, UnreadableCheckpointError
from jaxgen.store.metrics import MetricsLog, append_sample, truncate_samples
from jaxgen.store.plot import Best, draw_losses
from jaxgen.store.run_directory import RunDirectory

__all__ = [
    "Best",
    "CheckpointStore",
    "DamagedCheckpointError",
    "MetricsLog",
    "RunDirectory",
    "UnreadableCheckpointError",
    "append_sample",
    "draw_losses",
    "truncate_samples",
]
