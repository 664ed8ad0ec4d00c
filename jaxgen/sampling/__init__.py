"""Sampling: logit transforms, the decode loop and beam search. All of it works on a step function, not on a model."""

from jaxgen.sampling.beam import Hypotheses, beam_search, beam_states, check_beam, tile_beams
from jaxgen.sampling.decode import (
    DECODE_ROWS,
    MAX_SEED,
    PREFILL_CHUNK,
    PRNG,
    DecodeState,
    Drawn,
    check_seed,
    decode,
    log_probability,
    prefill_chunks,
    sample_keys,
)
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.base import Chain, Context, Last, chain
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.sampling.transforms.temperature import Linear, Schedule, Temperature

__all__ = [
    "DECODE_ROWS",
    "MAX_SEED",
    "PREFILL_CHUNK",
    "PRNG",
    "TRANSFORMS",
    "Chain",
    "Context",
    "DecodeState",
    "Drawn",
    "Forbid",
    "Hypotheses",
    "Last",
    "Linear",
    "Schedule",
    "Temperature",
    "beam_search",
    "beam_states",
    "chain",
    "check_beam",
    "check_seed",
    "decode",
    "log_probability",
    "prefill_chunks",
    "sample_keys",
    "tile_beams",
]
