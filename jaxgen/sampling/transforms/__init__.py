"""Logit transforms, which change the model's logits before a token is drawn, and their registry."""

from typing import Any

from jaxgen.sampling.transforms.constraints import Bias, Forbid, Force, MinLength
from jaxgen.sampling.transforms.patterns import Regex, WordsFrom
from jaxgen.sampling.transforms.penalties import FrequencyPenalty, NoRepeatNgram, PresencePenalty, RepetitionPenalty
from jaxgen.sampling.transforms.temperature import Temperature
from jaxgen.sampling.transforms.truncation import EpsilonCutoff, EtaCutoff, MinP, TopK, TopP, TypicalP

#: Transforms by name, in the order in which they are applied. Forbidden tokens come first, so that no later transform
#: counts their probability. Then come transforms that depend on the text so far or on the step, then the temperature,
#: then truncation. Each truncation uses the probabilities at that temperature among the remaining tokens (as in Hugging
#: Face ``transformers``).
TRANSFORMS: dict[str, type[Any]] = {
    "forbid": Forbid,
    "regex": Regex,
    "words-from": WordsFrom,
    "bias": Bias,
    "repetition-penalty": RepetitionPenalty,
    "presence-penalty": PresencePenalty,
    "frequency-penalty": FrequencyPenalty,
    "no-repeat-ngram": NoRepeatNgram,
    "min-length": MinLength,
    "force": Force,
    "temperature": Temperature,
    "top-k": TopK,
    "top-p": TopP,
    "min-p": MinP,
    "typical-p": TypicalP,
    "epsilon-cutoff": EpsilonCutoff,
    "eta-cutoff": EtaCutoff,
}
