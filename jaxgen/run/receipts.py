"""Receipts: everything that fixed a sample, and drawing it once more to see whether it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import DataError, UsageError
from jaxgen.run import compiled
from jaxgen.run.host import processor
from jaxgen.run.sampler import Sample, Sampler
from jaxgen.run.settings import Settings
from jaxgen.sampling import DecodeState, Last, sample_keys
from jaxgen.sampling.generate import perturbed
from jaxgen.sampling.transforms import update_chain
from jaxgen.store.files import file_sha256
from jaxgen.text import EOS
from jaxgen.version import __version__

#: Of the form of a receipt.
VERSION = 1


def receipt(
    sampler: Sampler, settings: Settings, sample: Sample, *, prompt: str, unk: str, state_file: str | None = None
) -> dict[str, Any]:
    """``sample`` with all that fixed it, as JSON values. ``logp`` are the model's log-probabilities in nats."""
    return {
        "text": sample.text,
        "prompt": prompt,
        "tokens": sample.tokens.tolist(),
        "logp": [round(float(value), 6) for value in sample.logp],
        "end": sample.end,
        "seed": settings.seed,
        "index": sample.index,
        "settings": settings.to_json(),
        "unk": unk,
        "run": None if sampler.path is None else str(sampler.path),
        "checkpoint": sampler.digest,
        "state": None if state_file is None else {"file": state_file, "sha256": file_sha256(Path(state_file))},
        "versions": {"jaxgen": __version__, "jax": jax.__version__, "jaxlib": jax.lib.__version__},
        "device": device(),
        "receipt": VERSION,
    }


def device() -> str:
    """What computes: samples repeat bit for bit on one kind of it."""
    first = jax.devices()[0]
    return f"cpu {processor()}" if first.platform == "cpu" else f"{first.platform} {first.device_kind}"


@dataclass(frozen=True)
class Replay:
    """What came of drawing a sample once more. ``at`` is the first token that differs, ``None`` if none does.

    There ``was`` was recorded and ``now`` is drawn (``None``: the text had ended), and ``gap`` is by how much ``now``
    won: of what the draw compares, in the unit of logits at the temperature in use. A millionth is another rounding,
    anything large another model. ``drift`` is the largest difference of log-probabilities up to there.
    """

    index: int
    tokens: int
    at: int | None = None
    was: int | None = None
    now: int | None = None
    gap: float | None = None
    drift: float = 0.0


def replay(sampler: Sampler, saved: Any, where: str = "the receipt") -> Replay:
    """Draw the sample of a receipt again. Raises ``DataError`` for what is none."""
    settings, sample, recorded = check_receipt(saved, where)
    state = None
    if saved["state"] is not None:
        path = Path(saved["state"]["file"])
        if not path.is_file() or file_sha256(path) != saved["state"]["sha256"]:
            raise DataError(f"{where} continues the state in {path}, which is missing or another one by now.")
        state = sampler.load_state(path)
    prompt = {"prompt": saved["prompt"], "state": state, "unk": saved["unk"]}
    # What the clock ended is compared up to there.
    length = recorded.size if saved["end"] == "time" else settings.length
    again = replace(settings, max_seconds=None, length=length)
    (drawn,) = sampler.samples(settings=again, first=sample, **prompt)
    both = min(recorded.size, drawn.tokens.size)
    differ = np.flatnonzero(recorded[:both] != drawn.tokens[:both])
    at = int(differ[0]) if differ.size else both
    logp = np.asarray(saved["logp"], np.float64)[:at]
    drift = float(np.abs(logp - drawn.logp[:at]).max(initial=0.0))
    if at == recorded.size == drawn.tokens.size:
        return Replay(sample, at, drift=drift)
    was = int(recorded[at]) if at < recorded.size else None
    now = int(drawn.tokens[at]) if at < drawn.tokens.size else None
    gap = None if was is None or now is None else _gap(sampler, settings, sample, prompt, at, was, now)
    return Replay(sample, at, at, was, now, gap, drift)


def _gap(
    sampler: Sampler, settings: Settings, index: int, prompt: Mapping[str, Any], at: int, was: int, now: int
) -> float:
    """By how much token ``now`` beat ``was`` when token ``at`` was drawn."""
    chain, rows = settings.chain(sampler.forbidden), settings.block
    begun = sampler.read(**prompt)
    state = DecodeState.start(chain, *begun.repeated(rows), prompt=begun.tokens, eos=EOS)
    block = index // rows * rows
    keys = sample_keys(settings.seed, jnp.arange(block, block + rows))
    one = compiled.decoding(sampler.task, chain.kinds, 1, settings.greedy)
    for _ in range(at):
        state, _ = one(sampler.weights, state, keys)
    plain = state.logits.astype(jnp.float32)
    logits = update_chain(chain.kinds, state.transforms, plain, Last(state.t, state.token))[1]
    scores = np.asarray(logits if settings.greedy else perturbed(keys, state.t, logits))[index - block]
    return float(scores[now] - scores[was])


def check_receipt(saved: Any, where: str) -> tuple[Settings, int, np.ndarray]:
    """The settings, number and tokens of a receipt. Raises ``DataError`` for what is none."""
    kinds: dict[str, Any] = dict.fromkeys(("prompt", "end", "unk", "checkpoint"), str)
    kinds |= {"tokens": list, "logp": list, "index": int, "seed": int, "settings": dict, "run": (str, type(None))}
    if not isinstance(saved, Mapping) or saved.get("receipt") != VERSION:
        raise DataError(f"{where} is no receipt of this version of jaxgen. `sample.py --json` writes them.")
    if wrong := [name for name, kind in kinds.items() if not isinstance(saved.get(name), kind)]:
        raise DataError(
            f"{where} lacks {', '.join(wrong)}, or holds something else there. `sample.py --json` writes them."
        )
    state = saved.get("state")
    if state is not None and not (isinstance(state, Mapping) and {"file", "sha256"} <= set(state)):
        raise DataError(f"{where} names a state without its file and digest. `sample.py --json` writes them.")
    numbers = [*saved["tokens"], *saved["logp"]]
    if len(saved["tokens"]) != len(saved["logp"]) or not all(type(n) in (int, float) for n in numbers):
        raise DataError(f"{where} has {len(saved['tokens'])} tokens and {len(saved['logp'])} log-probabilities.")
    try:
        return Settings.from_json(saved["settings"]), saved["index"], np.asarray(saved["tokens"], np.int64)
    except UsageError as error:
        raise DataError(f"{where} has settings that cannot be used. {error}") from None
