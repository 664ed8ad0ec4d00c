"""Sampling: logit transforms and the decode loop. It sees a step function, never a model."""

from jaxgen.sampling.generate import MAX_SEED, PRNG, PROMPT_CHUNK, ROWS, DecodeState, check_seed, decode, sample_keys
from jaxgen.sampling.transforms import TRANSFORMS, Forbid, Temperature, TopK, TopP, Transform

__all__ = [
    "MAX_SEED",
    "PRNG",
    "PROMPT_CHUNK",
    "ROWS",
    "TRANSFORMS",
    "DecodeState",
    "Forbid",
    "Temperature",
    "TopK",
    "TopP",
    "Transform",
    "check_seed",
    "decode",
    "sample_keys",
]
