"""The public API in one screen: what ``import jaxgen`` offers, each name loaded on its first use."""

from jaxgen.cells import CELLS, GRU, LSTM, Cell, Elman, ElmanReLU, unroll
from jaxgen.cells.torch_weights import from_torch, stack_from_torch, to_torch
from jaxgen.data import LanguageConfig, make_batches, prepare
from jaxgen.errors import CheckpointError, DataError, DivergedError, JaxgenError, UsageError
from jaxgen.models import LanguageModel, Stack
from jaxgen.run import (
    Conversation,
    Sampler,
    Scorer,
    Settings,
    State,
    Trainer,
    beam,
    continuations,
    interpolate,
    resume,
    start,
)
from jaxgen.run.host import keep_memory, offer_cores
from jaxgen.sampling import TRANSFORMS, Linear, chain, decode
from jaxgen.tasks import TASKS, LanguageTask
from jaxgen.text import TOKENIZERS
from jaxgen.training import TrainState, create_state, make_optimizer, make_schedule, train_step, train_steps
from jaxgen.version import __version__

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "TASKS",
    "TOKENIZERS",
    "TRANSFORMS",
    "Cell",
    "CheckpointError",
    "Conversation",
    "DataError",
    "DivergedError",
    "Elman",
    "ElmanReLU",
    "JaxgenError",
    "LanguageConfig",
    "LanguageModel",
    "LanguageTask",
    "Linear",
    "Sampler",
    "Scorer",
    "Settings",
    "Stack",
    "State",
    "TrainState",
    "Trainer",
    "UsageError",
    "__version__",
    "beam",
    "chain",
    "continuations",
    "create_state",
    "decode",
    "from_torch",
    "interpolate",
    "keep_memory",
    "make_batches",
    "make_optimizer",
    "make_schedule",
    "offer_cores",
    "prepare",
    "resume",
    "stack_from_torch",
    "start",
    "to_torch",
    "train_step",
    "train_steps",
    "unroll",
]
