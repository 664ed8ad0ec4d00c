"""The public API: the names that ``import jaxgen`` offers."""

from jaxgen.cells import CELLS
from jaxgen.cells.base import Cell
from jaxgen.cells.elman import Elman, ElmanReLU
from jaxgen.cells.gru import GRU
from jaxgen.cells.lstm import LSTM
from jaxgen.cells.torch import from_torch, stack_from_torch, to_torch
from jaxgen.cells.unroll import unroll
from jaxgen.data.batches import make_batches
from jaxgen.errors import CheckpointError, DataError, DivergedError, JaxgenError, UsageError
from jaxgen.inference.beam_search import beam
from jaxgen.inference.chat import ChatSession, continuations
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import DecoderState, interpolate
from jaxgen.models.language_model import LanguageModel
from jaxgen.models.layers import Stack
from jaxgen.runtime import keep_memory, offer_cores
from jaxgen.sampling.decode import decode
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import chain
from jaxgen.sampling.transforms.temperature import Linear
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.corpus import prepare
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tasks.registry import TASKS
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.trainer.callbacks import Callback
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import Trainer
from jaxgen.training.optimizer import make_optimizer, make_schedule
from jaxgen.training.step import TrainState, create_state, train_step, train_steps
from jaxgen.version import __version__

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "TASKS",
    "TOKENIZERS",
    "TRANSFORMS",
    "Callback",
    "Cell",
    "ChatSession",
    "CheckpointError",
    "DataError",
    "DecoderState",
    "DivergedError",
    "Elman",
    "ElmanReLU",
    "GenerationConfig",
    "JaxgenError",
    "LanguageConfig",
    "LanguageModel",
    "LanguageTask",
    "Linear",
    "Sampler",
    "Scorer",
    "Stack",
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
