"""Write ``transformers.npz``: the output of Hugging Face's logits processors for random logits.

Run it where transformers and torch are installed: ``python tests/golden/make_transformers_golden.py``. The tests read
the file and need neither; where both are installed they also compare with ``processed`` on logits of their own. Arrays
are the inputs and, under ``<name in TRANSFORMS> <options as JSON>``, the scores [T, R, V] at each step of a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

TARGET = Path(__file__).with_name("transformers.npz")
STEPS, ROWS, VOCAB, PROMPT, EOS = 6, 2, 40, 9, 1
CASES: dict[str, list[dict[str, Any]]] = {
    "forbid": [{"ids": [0, 7, 39]}],
    "bias": [{"biases": [[3, 1.5], [20, -4.0]]}],
    "repetition-penalty": [{"penalty": 1.3}, {"penalty": 0.6}],
    "no-repeat-ngram": [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}],
    "min-length": [{"n": 3}],
    "force": [{"ids": [11]}],
    "temperature": [{"value": 0.3}, {"value": 1.7}],
    "top-k": [{"k": 1}, {"k": 5}, {"k": 100}],
    "top-p": [{"p": 0.2}, {"p": 0.9}, {"p": 0.99}],
    "min-p": [{"p": 0.05}, {"p": 0.4}],
    "typical-p": [{"p": 0.2}, {"p": 0.6}, {"p": 0.95}],
    "epsilon-cutoff": [{"epsilon": 0.02}, {"epsilon": 0.9}],
    "eta-cutoff": [{"epsilon": 0.02}, {"epsilon": 0.3}],
}
PROCESSORS = {
    "forbid": lambda ids: hf.SuppressTokensLogitsProcessor(ids),
    "bias": lambda biases: hf.SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases}),
    "repetition-penalty": lambda penalty: hf.RepetitionPenaltyLogitsProcessor(penalty),
    "no-repeat-ngram": lambda n: hf.NoRepeatNGramLogitsProcessor(n),
    "min-length": lambda n: hf.MinNewTokensLengthLogitsProcessor(PROMPT, n, EOS),
    "force": lambda ids: hf.ForcedBOSTokenLogitsProcessor(ids[0]),
    "temperature": lambda value: hf.TemperatureLogitsWarper(value),
    "top-k": lambda k: hf.TopKLogitsWarper(k),
    "top-p": lambda p: hf.TopPLogitsWarper(p),
    "min-p": lambda p: hf.MinPLogitsWarper(p),
    "typical-p": lambda p: hf.TypicalLogitsWarper(p),
    "epsilon-cutoff": lambda epsilon: hf.EpsilonLogitsWarper(epsilon),
    "eta-cutoff": lambda epsilon: hf.EtaLogitsWarper(epsilon),
}


def inputs(seed: int) -> dict[str, np.ndarray]:
    """A prompt [P], a text [T, R] of few different tokens, and logits [T, R, V] of which some are -inf."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (STEPS, ROWS, VOCAB)).astype(np.float32)
    logits[:, 1, rng.choice(np.arange(12, VOCAB), 8, replace=False)] = -np.inf
    text = rng.integers(3, 6, (STEPS, ROWS), np.int32)
    return {"prompt": rng.integers(3, 6, PROMPT, np.int32), "text": text, "logits": logits}


def processed(name: str, options: dict[str, Any], given: dict[str, np.ndarray]) -> np.ndarray:
    """The scores [T, R, V]: at step t the prompt and t tokens of the text have been read."""
    processor = PROCESSORS[name](**options)
    read = np.concatenate([np.tile(given["prompt"], (ROWS, 1)), given["text"].T], axis=1)
    made = []
    for t in range(STEPS):
        # The processor for first tokens knows no prompt: it acts when one token has been read.
        ids = read[:, PROMPT - 1 : PROMPT + t] if name == "force" else read[:, : PROMPT + t]
        made.append(processor(torch.tensor(ids, dtype=torch.long), torch.tensor(given["logits"][t])).numpy())
    return np.stack(made)


def main() -> None:
    arrays = inputs(seed=0)
    for name, cases in CASES.items():
        arrays |= {f"{name} {json.dumps(options)}": processed(name, options, arrays) for options in cases}
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes, transformers {hf.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
