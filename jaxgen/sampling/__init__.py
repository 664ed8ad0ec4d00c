"""Sampling: logit transforms, the decode loop and beam search. They see a step function, never a model."""

from jaxgen.sampling.beam import Hypotheses, beam_search, beam_states, check_beam, tile_beams
from jaxgen.sampling.generate import (
    MAX_SEED,
    PRNG,
    PROMPT_CHUNK,
    ROWS,
    DecodeState,
    Drawn,
    check_seed,
    decode,
    log_probability,
    prime_chunks,
    sample_keys,
)
from jaxgen.sampling.transforms import TRANSFORMS, Chain, Context, Forbid, Last, Linear, Schedule, Temperature, chain

__all__ = [
    "MAX_SEED",
    "PRNG",
    "PROMPT_CHUNK",
    "ROWS",
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
    "prime_chunks",
    "sample_keys",
    "tile_beams",
]
