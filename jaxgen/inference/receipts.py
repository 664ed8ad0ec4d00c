"""Receipts: everything that fixed a sample, and drawing it once more to see whether it is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import jitted
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import file_sha256
from jaxgen.inference.beam_search import Hypothesis, Search, beam
from jaxgen.inference.generation_config import GenerationConfig, transform_from_json, transform_to_json
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.text_stream import Sample
from jaxgen.runtime import processor
from jaxgen.sampling.decode import DecodeState, perturbed, sample_keys
from jaxgen.sampling.transforms.base import Last, update_chain
from jaxgen.tasks.language.conditioning import Condition
from jaxgen.tokenizers.base import EOS
from jaxgen.version import __version__

#: Of the form of a receipt.
VERSION = 1
#: Nats by which the log-probability of a token may differ from device to device.
MOST_DRIFT = 1e-2


def receipt(
    sampler: Sampler,
    settings: GenerationConfig,
    sample: Sample,
    *,
    prompt: str,
    unk: str,
    state_file: str | None = None,
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
        **_origin(sampler, unk, state_file),
    }


def beam_receipt(
    sampler: Sampler, search: Search, rank: int, found: Hypothesis, *, prompt: str, unk: str, state_file: str | None
) -> dict[str, Any]:
    """A text of a beam search with all that fixed it; ``total_logp`` and ``score`` are those it was compared by."""
    return {
        "text": found.text,
        "prompt": prompt,
        "tokens": found.tokens.tolist(),
        "total_logp": found.logp,
        "score": found.score,
        "end": found.end,
        "rank": rank,
        "beam": {**search._asdict(), "transforms": [transform_to_json(each) for each in search.transforms]},
        **_origin(sampler, unk, state_file),
    }


def _origin(sampler: Sampler, unk: str, state_file: str | None) -> dict[str, Any]:
    """Where a text comes from and what computed it."""
    return {
        "unk": unk,
        "run": None if sampler.path is None else str(sampler.path),
        "checkpoint": sampler.digest,
        "state": None if state_file is None else {"file": state_file, "sha256": file_sha256(Path(state_file))},
        **({} if sampler.conditioning is None else {"condition": (sampler.condition or Condition()).to_json()}),
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
    """What came of making a text once more. ``at`` is the first token that differs, ``None`` if none does.

    There ``was`` was recorded and ``now`` is drawn (``None``: the text had ended), and ``gap`` is by how much ``now``
    won: of what the draw compares, in the unit of logits at the temperature in use. A millionth is another rounding,
    anything large another model, and infinite is a token that is cut off by now. ``drift`` is the largest difference
    of log-probabilities up to there. ``altered`` names what else in the receipt is not what its tokens say.
    """

    index: int
    tokens: int
    at: int | None = None
    was: int | None = None
    now: int | None = None
    gap: float | None = None
    drift: float = 0.0
    altered: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        return self.at is None and not self.altered


def replay(sampler: Sampler, saved: Any, where: str = "the receipt") -> Replay:
    """Make the text of a receipt again. Raises ``DataError`` for what is none, or holds what cannot be."""
    check_receipt(saved, where)
    if saved["tokens"] and max(saved["tokens"]) >= sampler.tokenizer.vocab_size:
        raise DataError(f"{where} has the token {max(saved['tokens'])}, which the vocabulary of this run has not.")
    state = None
    if saved["state"] is not None:
        path = Path(saved["state"]["file"])
        if not path.is_file() or file_sha256(path) != saved["state"]["sha256"]:
            raise DataError(f"{where} continues the state in {path}, which is missing or another one by now.")
        state = sampler.load_state(path)
    prompt = {"prompt": saved["prompt"], "state": state, "unk": saved["unk"]}
    try:
        sampler = _under(sampler, saved)
        return (_replay_beam if "beam" in saved else _replay_sample)(sampler, saved, prompt)
    except UsageError as error:
        raise DataError(f"{where} cannot be made again. {error}") from None


def _under(sampler: Sampler, saved: Mapping[str, Any]) -> Sampler:
    """``sampler`` under the condition that a receipt names, as a run with labels or features writes it."""
    if ("condition" in saved) != (sampler.conditioning is not None):
        raise UsageError(
            "It was drawn under a condition, and this run knows neither labels nor features."
            if "condition" in saved
            else "It names no condition, and the texts of this run begin from labels or features."
        )
    return sampler if sampler.conditioning is None else sampler.under(sampler.conditioning.read(saved["condition"]))


def _replay_sample(sampler: Sampler, saved: Mapping[str, Any], prompt: Mapping[str, Any]) -> Replay:
    settings, index = GenerationConfig.from_json(saved["settings"]), saved["index"]
    recorded = np.asarray(saved["tokens"], np.int64)
    # What the clock ended is compared up to there.
    length = recorded.size if saved["end"] == "time" else settings.length
    again = replace(settings, max_seconds=None, length=length)
    (drawn,) = sampler.samples(settings=again, first=index, **prompt)
    at, was, now = _difference(recorded, drawn.tokens)
    drift = float(np.abs(np.asarray(saved["logp"], np.float64)[:at] - drawn.logp[:at]).max(initial=0.0))
    if at is None:
        wrong = {
            "text": saved["text"] != drawn.text,
            "end": saved["end"] not in ("time", drawn.end),
            "logp": drift > MOST_DRIFT,
            "seed": saved["seed"] != settings.seed,
        }
        altered = tuple(name for name, differs in wrong.items() if differs)
        return Replay(index, recorded.size, drift=drift, altered=altered)
    gap = None if was is None or now is None else _gap(sampler, settings, index, prompt, at, was, now)
    return Replay(index, at, at, was, now, gap, drift)


def _replay_beam(sampler: Sampler, saved: Mapping[str, Any], prompt: Mapping[str, Any]) -> Replay:
    values = dict(saved["beam"])
    values["transforms"] = tuple(transform_from_json(each) for each in values["transforms"])
    try:
        search = Search(**values)
    except TypeError as error:
        raise UsageError(f"Its beam search has other settings than there are: {error}.") from None
    found = beam(sampler, **search._asdict(), **prompt)
    rank, recorded = saved["rank"], np.asarray(saved["tokens"], np.int64)
    if not 1 <= rank <= len(found):
        raise UsageError(f"It is number {rank} of a search that finds {len(found)}.")
    again = found[rank - 1]
    at, was, now = _difference(recorded, again.tokens)
    wrong = {"text": saved["text"] != again.text, "end": saved["end"] != again.end}
    drift = abs(saved["total_logp"] - again.logp) if at is None else 0.0
    wrong["total_logp"] = drift > MOST_DRIFT * max(recorded.size, 1)
    altered = tuple(name for name, differs in wrong.items() if differs and at is None)
    return Replay(rank, recorded.size if at is None else at, at, was, now, None, drift, altered)


def _difference(recorded: np.ndarray, drawn: np.ndarray) -> tuple[int | None, int | None, int | None]:
    """The first place where two texts differ, and what either has there; ``None`` where there is nothing."""
    both = min(recorded.size, drawn.size)
    differ = np.flatnonzero(recorded[:both] != drawn[:both])
    at = int(differ[0]) if differ.size else both
    if at == recorded.size == drawn.size:
        return None, None, None
    was, now = (int(tokens[at]) if at < tokens.size else None for tokens in (recorded, drawn))
    return at, was, now


def _gap(
    sampler: Sampler, settings: GenerationConfig, index: int, prompt: Mapping[str, Any], at: int, was: int, now: int
) -> float:
    """By how much token ``now`` beat ``was`` when token ``at`` was drawn."""
    chain, rows = settings.chain(sampler.forbidden), settings.block
    begun = sampler.read(**prompt)
    state = DecodeState.start(chain, *begun.repeated(rows), prompt=begun.tokens, eos=EOS)
    block = index // rows * rows
    keys = sample_keys(settings.seed, jnp.arange(block, block + rows))
    one = jitted.jit_decode(sampler.task, chain.kinds, 1, settings.greedy)
    for _ in range(at):
        state, _ = one(sampler.weights, state, keys)
    plain = state.logits.astype(jnp.float32)
    logits = update_chain(chain.kinds, state.transforms, plain, Last(state.t, state.token))[1]
    scores = np.asarray(logits if settings.greedy else perturbed(keys, state.t, logits))[index - block]
    return float(scores[now] - scores[was])


def check_receipt(saved: Any, where: str) -> None:
    """Raise ``DataError`` for what is no receipt."""
    if not isinstance(saved, Mapping) or saved.get("receipt") != VERSION:
        raise DataError(f"{where} is no receipt of this version of jaxgen. `sample.py --json` writes them.")

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) < 1e30

    def is_id(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**32

    form: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("text", "prompt", "end", "unk", "checkpoint"), lambda value: isinstance(value, str)),
        "run": lambda value: value is None or isinstance(value, str),
        "state": lambda value: (
            value is None
            or (isinstance(value, Mapping) and set(value) == {"file", "sha256"} and isinstance(value["file"], str))
        ),
        "tokens": lambda value: isinstance(value, list) and all(map(is_id, value)),
    }
    if "beam" in saved:
        form["beam"] = lambda value: (
            isinstance(value, Mapping) and isinstance(value.get("transforms"), list) and "width" in value
        )
        form |= {"rank": is_id, "total_logp": is_number}
    else:
        form["logp"] = lambda value: (
            isinstance(value, list)
            and all(map(is_number, value))
            and isinstance(saved.get("tokens"), list)
            and len(value) == len(saved["tokens"])
        )
        form |= {"settings": lambda value: isinstance(value, Mapping), "index": is_id, "seed": is_id}
    if wrong := [name for name, fits in form.items() if name not in saved or not fits(saved[name])]:
        raise DataError(
            f"{where} lacks {', '.join(wrong)}, or holds something else there. `sample.py --json` writes receipts."
        )
