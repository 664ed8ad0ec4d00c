"""Receipts: everything that determined a sample, so that it can be drawn again and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError

from jaxgen import jitted
from jaxgen.data.files import read_pieces
from jaxgen.errors import DataError, UsageError
from jaxgen.fsutil import StrictModel, file_sha256
from jaxgen.inference.adaptation import Adaptation
from jaxgen.inference.beam_search import BeamConfig, Hypothesis, beam
from jaxgen.inference.generation_config import GenerationConfig, transform_from_json, transform_to_json
from jaxgen.inference.inspection import clamped
from jaxgen.inference.mixture import Mixture
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Sample
from jaxgen.plugins import Record, check_records, plugins_of_transforms
from jaxgen.runtime import numerics, processor
from jaxgen.sampling.decode import DecodeState, perturbed, sample_keys
from jaxgen.sampling.transforms.base import Last, update_chain
from jaxgen.tasks.language.conditioning import Condition
from jaxgen.tokenizers.base import EOS, text_bytes
from jaxgen.version import __version__

#: The version of the format.
VERSION = 1
#: Nats by which the log-probability of a token may differ between devices.
LOGP_TOLERANCE = 1e-2

UInt32 = Annotated[int, Field(ge=0, lt=2**32)]
Number = Annotated[float, Field(gt=-1e30, lt=1e30)]


class StateFile(StrictModel):
    """The file of the state that a text continues."""

    file: str
    sha256: str

    @classmethod
    def of(cls, file: str) -> StateFile:
        """The record of a file as it is now."""
        return cls(file=file, sha256=file_sha256(Path(file)))


class AdaptedTo(StrictModel):
    """The file of a text to which the weights adapted, and how (``Adaptation``)."""

    file: str
    sha256: str
    rate: float
    decay: float
    segment: int
    unk: str

    @classmethod
    def of(cls, file: str, adaptation: Adaptation, unk: str) -> AdaptedTo:
        """The record of a file as it is now. Raises ``DataError`` if it is no regular file."""
        if not Path(file).is_file():
            raise DataError(f"--adapt-to names {file}, which is not a regular file: give the file of a text.")
        return cls(file=file, sha256=file_sha256(Path(file)), **asdict(adaptation), unk=unk)

    def adapt(self, sampler: Sampler, state: DecoderState | None) -> DecoderState:
        """The state after the text, read after ``state``. Raises ``DataError`` if the file cannot be read."""
        text = "".join(read_pieces(self.file, any_bytes=sampler.tokenizer.kind == "byte"))
        return sampler.adapt(text, state, Adaptation(self.rate, self.decay, self.segment), unk=self.unk)


class StateOrigin(StrictModel):
    """Where the state before a prompt comes from: a file, then a text to which the weights adapted."""

    state: StateFile | None = None
    adapted_to: AdaptedTo | None = None


class Receipt(StrictModel, extra="ignore"):
    """The common fields of the receipts of samples and of beam search, as far as a replay needs them."""

    receipt: Literal[1]
    text: str
    prompt: str
    tokens: list[UInt32]
    end: str
    unk: str
    run: str | None
    checkpoint: str
    state: StateFile | None
    adapted_to: AdaptedTo | None = None
    #: The runs of a mixture, and their weights.
    mix: Mixture | None = None
    #: Units that were held, and their values.
    clamp: dict[str, Number] = {}
    #: The bytes of a prompt that is not UTF-8, in hexadecimal.
    prompt_bytes: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] | None = None
    versions: dict[str, object] = {}
    device: str | None = None
    environment: dict[str, object] | None = None
    plugins: list[Record] = []
    #: Absent for a run without labels and features.
    condition: object = None

    @property
    def has_condition(self) -> bool:
        """Whether the run has labels or features."""
        return "condition" in self.model_fields_set


class SampleReceipt(Receipt):
    """The receipt of a sample."""

    index: UInt32
    seed: UInt32
    settings: dict[str, Any]
    logp: list[Number]


class BeamSettings(StrictModel):
    """The settings of a beam search, as ``BeamConfig`` has them."""

    width: int
    length: int
    length_penalty: float
    keep: int
    transforms: list[object]


class BeamReceipt(Receipt):
    """The receipt of a text of beam search."""

    rank: UInt32
    beam: BeamSettings
    total_logp: Number


def read_receipt(value: object, where: str = "the receipt") -> SampleReceipt | BeamReceipt:
    """Check the JSON value of a receipt. Raises ``DataError`` that names ``where`` and the wrong fields."""
    if not isinstance(value, Mapping) or value.get("receipt") != VERSION:
        raise DataError(f"{where} is not a receipt of this version of jaxgen. `sample.py --json` writes them.")
    wrong: list[str]
    try:
        if "beam" in value:
            return BeamReceipt.model_validate(value)
        receipt = SampleReceipt.model_validate(value)
        if len(receipt.logp) == len(receipt.tokens):
            return receipt
        wrong = ["logp"]
    except ValidationError as error:
        wrong = list(dict.fromkeys(str(each["loc"][0]) for each in error.errors()))
    raise DataError(
        f"{where} lacks {', '.join(wrong)}, or has a value there that is not allowed. `sample.py --json` writes "
        "receipts."
    )


def receipt(
    sampler: Sampler,
    settings: GenerationConfig,
    sample: Sample,
    *,
    prompt: str,
    unk: str,
    origin: StateOrigin | None = None,
) -> dict[str, object]:
    """``sample`` with everything that determined it, as JSON values; ``logp`` is in nats, before any transform.

    Without an ``origin`` the text begins with the prompt.
    """
    return {
        **exact_text("text", sample.text),
        **exact_text("prompt", prompt),
        "tokens": sample.tokens.tolist(),
        "logp": [round(float(value), 6) for value in sample.logp],
        "end": sample.end,
        "seed": settings.seed,
        "index": sample.index,
        "settings": settings.to_json(),
        **_origin(sampler, unk, origin, settings.transforms),
    }


def beam_receipt(
    sampler: Sampler,
    search: BeamConfig,
    rank: int,
    found: Hypothesis,
    *,
    prompt: str,
    unk: str,
    origin: StateOrigin | None = None,
) -> dict[str, object]:
    """A text of beam search with everything that determined it; the search compared ``total_logp`` and ``score``."""
    return {
        **exact_text("text", found.text),
        **exact_text("prompt", prompt),
        "tokens": found.tokens.tolist(),
        "total_logp": found.logp,
        "score": found.score,
        "end": found.end,
        "rank": rank,
        "beam": {**search._asdict(), "transforms": [transform_to_json(each) for each in search.transforms]},
        **_origin(sampler, unk, origin, search.transforms),
    }


def exact_text(name: str, text: str) -> dict[str, str]:
    """A text as JSON values: bytes that are not UTF-8 are U+FFFD, and then ``NAME_bytes`` has all in hexadecimal."""
    raw = text_bytes(text)
    shown = raw.decode("utf-8", "replace")
    return {name: shown} if shown == text else {name: shown, f"{name}_bytes": raw.hex()}


def _origin(sampler: Sampler, unk: str, origin: StateOrigin | None, transforms: Sequence[object]) -> dict[str, object]:
    """The run and the software and hardware that generated a text."""
    own = plugins_of_transforms(transforms)
    plugins = [*sampler.plugins, *(each for each in own if each not in sampler.plugins)]
    return {
        "unk": unk,
        **sampler.origin(),
        "state": None,
        **({} if origin is None else origin.model_dump(exclude_none=True)),
        **({} if sampler.conditioning is None else {"condition": (sampler.condition or Condition()).to_json()}),
        **({"plugins": plugins} if plugins else {}),
        **_environment(),
        "receipt": VERSION,
    }


def _environment() -> dict[str, Any]:
    """The software and hardware of this process, and what is set that can change bits."""
    versions = {"jaxgen": __version__, "jax": jax.__version__, "jaxlib": jax.lib.__version__}
    return {"versions": versions, "device": device_name(), "environment": numerics()}


def environment_change(saved: Receipt) -> str:
    """How the environment differs from that in which a text was drawn, in words; empty if it does not."""
    now = _environment()
    pairs = {name: (saved.versions.get(name, version), version) for name, version in now["versions"].items()}
    pairs["device"] = saved.device or now["device"], now["device"]
    then, here = now["environment"] if saved.environment is None else saved.environment, now["environment"]
    pairs |= {name: (then.get(name, "its default"), here.get(name, "its default")) for name in {**then, **here}}
    return ", ".join(f"{name} {was} then, {now} now" for name, (was, now) in pairs.items() if was != now)


def device_name() -> str:
    """The kind of device; samples repeat bit for bit on the same kind."""
    first = jax.devices()[0]
    return f"cpu {processor()}" if first.platform == "cpu" else f"{first.platform} {first.device_kind}"


@dataclass(frozen=True)
class Replay:
    """The comparison of a recorded text with the same text generated again.

    Attributes:
        index: The index of the sample, or the rank in a beam search.
        tokens: How many tokens are the same.
        first_divergence: The position of the first token that differs; ``None`` if none does.
        recorded: The token recorded there; ``None`` if the recorded text had ended.
        regenerated: The token generated there; ``None`` if the text had ended.
        margin: By how much ``regenerated`` won over ``recorded`` when the token was chosen, in logits at the
            temperature in use. A millionth is a rounding difference, anything large means another model, infinity that
            the recorded token is now cut off. ``None`` where it is not known.
        max_logp_diff: The largest difference of log-probabilities up to there.
        tampered_fields: Other fields of the receipt that do not agree with its tokens.
    """

    index: int
    tokens: int
    first_divergence: int | None = None
    recorded: int | None = None
    regenerated: int | None = None
    margin: float | None = None
    max_logp_diff: float = 0.0
    tampered_fields: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return self.first_divergence is None and not self.tampered_fields


def replay(sampler: Sampler, saved: SampleReceipt | BeamReceipt, where: str = "the receipt") -> Replay:
    """Generate the text of a receipt again and compare.

    Raises:
        DataError: The text cannot be generated with this run. The message names ``where``.
        UsageError: A recorded plugin is not loaded.
        CheckpointError: A plugin has changed.
    """
    check_records(saved.plugins, where[0].lower() + where[1:])
    if saved.tokens and max(saved.tokens) >= sampler.tokenizer.vocab_size:
        raise DataError(f"{where} has the token {max(saved.tokens)}, which is not in the vocabulary of this run.")
    for needed in (saved.state, saved.adapted_to):
        if needed is not None and not _is_unchanged(needed):
            raise DataError(f"{where} continues what {needed.file} holds, which is missing or has changed.")
    state = None if saved.state is None else sampler.load_state(saved.state.file)
    text = saved.prompt
    if saved.prompt_bytes is not None:
        text = bytes.fromhex(saved.prompt_bytes).decode("utf-8", "surrogateescape")
    prompt = {"prompt": text, "state": state, "unk": saved.unk}
    sampler = sampler.exact()  # a stop string may have bytes that are not UTF-8
    try:
        held: dict[Any, float] = dict(saved.clamp)
        sampler = _with_recorded_condition(clamped(sampler, held) if held else sampler, saved)
        if saved.adapted_to is not None:
            prompt["state"] = saved.adapted_to.adapt(sampler, state)
        if isinstance(saved, BeamReceipt):
            return _replay_beam(sampler, saved, prompt)
        return _replay_sample(sampler, saved, prompt)
    except UsageError as error:
        raise DataError(f"{where} cannot be generated again. {error}") from None


def _is_unchanged(file: StateFile | AdaptedTo) -> bool:
    path = Path(file.file)
    return path.is_file() and file_sha256(path) == file.sha256


def _with_recorded_condition(sampler: Sampler, saved: Receipt) -> Sampler:
    """``sampler`` under the condition that a receipt names."""
    if saved.has_condition != (sampler.conditioning is not None):
        named, known = ("a", "no") if saved.has_condition else ("no", "some")
        raise UsageError(f"It names {named} condition, and this run has {known} labels or features.")
    if sampler.conditioning is None:
        return sampler
    return sampler.with_condition(sampler.conditioning.read(saved.condition))


def _replay_sample(sampler: Sampler, saved: SampleReceipt, prompt: dict[str, Any]) -> Replay:
    settings = GenerationConfig.from_json(saved.settings)
    # A text that ran out of time is compared as far as it goes.
    length = len(saved.tokens) if saved.end == "time" else settings.length
    again = replace(settings, max_seconds=None, length=length)
    (drawn,) = sampler.samples(settings=again, first=saved.index, **prompt)
    result = _compare(saved.index, saved.tokens, drawn.tokens)
    same = slice(result.tokens)
    diff = float(np.abs(np.asarray(saved.logp, np.float64)[same] - drawn.logp[same]).max(initial=0.0))
    result = replace(result, max_logp_diff=diff)
    if result.first_divergence is not None:
        return replace(result, margin=_margin(sampler, settings, prompt, result))
    tampered = {
        "text": saved.text != exact_text("text", drawn.text)["text"],
        "end": saved.end not in ("time", drawn.end),
        "logp": diff > LOGP_TOLERANCE,
        "seed": saved.seed != settings.seed,
    }
    return replace(result, tampered_fields=_names(tampered))


def _replay_beam(sampler: Sampler, saved: BeamReceipt, prompt: dict[str, Any]) -> Replay:
    transforms = tuple(map(transform_from_json, saved.beam.transforms))
    found = beam(sampler, **{**dict(saved.beam), "transforms": transforms}, **prompt)
    if not 1 <= saved.rank <= len(found):
        raise UsageError(f"It is number {saved.rank} of a search that finds {len(found)}.")
    again = found[saved.rank - 1]
    result = _compare(saved.rank, saved.tokens, again.tokens)
    if result.first_divergence is not None:
        return result
    diff = abs(saved.total_logp - again.logp)
    tampered = {
        "text": saved.text != exact_text("text", again.text)["text"],
        "end": saved.end != again.end,
        "total_logp": diff > LOGP_TOLERANCE * max(len(saved.tokens), 1),
    }
    return replace(result, max_logp_diff=diff, tampered_fields=_names(tampered))


def _names(flags: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(name for name, flag in flags.items() if flag)


def _compare(index: int, tokens: Sequence[int], drawn: np.ndarray) -> Replay:
    """Where recorded tokens first differ from those drawn now."""
    recorded = np.asarray(tokens, np.int64)
    both = min(recorded.size, drawn.size)
    differ = np.flatnonzero(recorded[:both] != drawn[:both])
    at = int(differ[0]) if differ.size else both
    if at == recorded.size == drawn.size:
        return Replay(index, at)
    was, now = (int(each[at]) if at < each.size else None for each in (recorded, drawn))
    return Replay(index, at, at, was, now)


def _margin(sampler: Sampler, settings: GenerationConfig, prompt: dict[str, Any], result: Replay) -> float | None:
    """By how much the regenerated token won over the recorded one; ``None`` if one of the texts had ended."""
    if result.recorded is None or result.regenerated is None:
        return None
    chain, rows = settings.chain(sampler.forbidden), settings.block
    begun = sampler.read(**prompt)
    state = DecodeState.start(chain, *begun.repeated(rows), prompt=begun.tokens, eos=EOS)
    block = result.index // rows * rows
    keys = sample_keys(settings.seed, jnp.arange(block, block + rows))
    step = jitted.jit_decode(sampler.task, chain.kinds, 1, settings.greedy)
    for _ in range(result.tokens):
        state, _ = step(sampler.weights_at(begun), state, keys)
    plain = state.logits.astype(jnp.float32)
    logits = update_chain(chain.kinds, state.transforms, plain, Last(state.t, state.token))[1]
    scores = np.asarray(logits if settings.greedy else perturbed(keys, state.t, logits))[result.index - block]
    return float(scores[result.regenerated] - scores[result.recorded])
