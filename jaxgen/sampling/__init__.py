"""Sampling: logit transforms and the decode loop. It sees a step function, never a model."""

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
    "Last",
    "Linear",
    "Schedule",
    "Temperature",
    "chain",
    "check_seed",
    "decode",
    "log_probability",
    "prime_chunks",
    "sample_keys",
]
