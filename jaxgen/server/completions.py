"""Completions: settings from requests, and responses from chunks, as OpenAI's interface has them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxgen.errors import UsageError
from jaxgen.inference.alternatives import Alternatives
from jaxgen.inference.engine import Engine, Event, Request
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.receipts import StateFile, StateOrigin, exact_text, receipt
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Chunk, Sample, collect, select_best
from jaxgen.sampling.transforms import (
    Bias,
    Forbid,
    FrequencyPenalty,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    TopK,
    TopP,
    TypicalP,
)
from jaxgen.sampling.transforms.base import Transform
from jaxgen.sampling.transforms.temperature import Linear
from jaxgen.server.models import Models, States
from jaxgen.server.schemas import CompletionRequest, Condition, Drawing, Json, LinearSchedule
from jaxgen.tokenizers.base import token_text

#: Defaults of OpenAI's interface.
MAX_TOKENS, TEMPERATURE = 16, 1.0
#: From this bias down a token is never drawn.
NEVER = -100
#: Why a text ended -> the reason that OpenAI's interface has for it.
REASONS = {"length": "length", "time": "length", "eos": "stop", "stop": "stop"}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        prompt: Characters of all its prompts.
        texts: Texts in all.
        tokens: Tokens of a text.
        seconds: How long it may take.
        block: Rows that decode together, as ``sample.py --block``.
    """

    prompt: int = 100_000
    texts: int = 128
    tokens: int = 16_384
    seconds: float = 300.0
    block: int = 1


def transforms_of(body: Drawing) -> tuple[Transform, ...]:
    """The transforms that a request asks for, in the order of ``TRANSFORMS``. Raises ``UsageError``."""
    biases = {_token_id(word): value for word, value in (body.logit_bias or {}).items()}
    never = tuple(i for i, value in biases.items() if value <= NEVER)
    added = tuple((i, value) for i, value in biases.items() if value > NEVER and value != 0)
    asked: list[tuple[Any, Any, Any]] = [
        (Forbid, never, ()),
        (Bias, added, ()),
        (RepetitionPenalty, body.repetition_penalty, 1),
        (PresencePenalty, body.presence_penalty, 0),
        (FrequencyPenalty, body.frequency_penalty, 0),
        (TopK, body.top_k, None),
        (TopP, body.top_p, 1),
        (MinP, body.min_p, 0),
        (TypicalP, body.typical_p, 1),
    ]
    return tuple(kind(value) for kind, value, neutral in asked if value is not None and value != neutral)


def _token_id(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise UsageError(f'logit_bias has the key {word[:40]!r}: give ids of tokens, such as "17".')
    return int(word)


def temperature_of(body: Drawing) -> Any:
    """The temperature that a request asks for."""
    given = TEMPERATURE if body.temperature is None else body.temperature
    if isinstance(given, LinearSchedule):
        return Linear(given.start, given.end, given.steps)
    return tuple(given) if isinstance(given, list) else given


def conditioned(sampler: Sampler, body: Condition) -> Sampler:
    """``sampler`` for the labels and features of a request. Raises ``UsageError``."""
    if body.label is None and body.features is None:
        return sampler
    return sampler.conditioned(body.label, body.features)


def open_sampler(
    models: Models, states: States, body: Drawing
) -> tuple[str, Sampler, DecoderState | None, StateOrigin]:
    """The name, model, state before the prompt, and its origin, that a request asks for.

    Raises ``NotFoundError`` and ``UsageError``.
    """
    served, loaded, sampler = models.language(body.model)
    if body.clamp:
        if loaded.before is not None:
            raise UsageError("Units of weights that adapted to a text cannot be held: leave out clamp.")
        sampler = models.clamped(sampler, body.clamp)
    if body.state is None:
        return served.name, conditioned(sampler, body), loaded.before, loaded.origin
    if body.label is not None or body.features is not None:
        raise UsageError("A state continues a text whose condition is fixed: leave out label and features.")
    kept = states.find(body.state, served.name, sampler.weights_digest())
    origin = StateOrigin(state=StateFile(file=f"{body.state}.safetensors", sha256=kept.sha256))
    return served.name, sampler, kept.state, origin


@dataclass(eq=False)
class Text:
    """One text of a completion: what came of it so far."""

    prompt: str
    index: int
    number: int  # among all texts of the response
    request: Request
    alternatives: Alternatives | None = None
    chunks: list[Chunk] = field(default_factory=list)
    sent: int = 0  # chunks that were streamed
    offset: int = 0  # characters of the tokens so far


class Completion:
    """A request for completions: it is submitted when it is made.

    Args:
        body: The request.
        models, states, engine, limits: Those of the server.
        notify: Called with (the number of a prompt, an event), from the engine's threads.

    Raises:
        UsageError: It asks for something that cannot be done. Nothing goes on then.
        NotFoundError: Its model or state does not exist.
        BusyError: Too many requests wait.
    """

    def __init__(
        self, body: CompletionRequest, models: Models, states: States, engine: Engine, limits: Limits, notify: Any
    ) -> None:
        self.body, self.engine = body, engine
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt or ""]
        self.number, self.drawn = body.n or 1, body.best_of or body.n or 1
        self._check_limits(prompts, limits)
        self.model, sampler, before, self.origin = open_sampler(models, states, body)
        self.sampler = sampler.exact()
        self.settings = GenerationConfig(
            MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            temperature_of(body),
            secrets.randbelow(2**32) if body.seed is None else body.seed,
            transforms_of(body),
            stop=tuple([body.stop] if isinstance(body.stop, str) else body.stop or ()),
            max_seconds=body.timeout,
            block=limits.block,
        )
        self.requests: list[Request] = []
        self.texts: dict[tuple[int, int], Text] = {}
        self.prompt_tokens = self.completion_tokens = 0
        first = body.sample_index or 0
        whole = not body.stream
        try:
            for place, prompt in enumerate(prompts):
                request = engine.submit(
                    partial(notify, place),
                    self.sampler,
                    prompt,
                    self.settings,
                    num_samples=self.drawn,
                    first=first,
                    state=before,
                    unk=body.unk,
                    seconds=limits.seconds,
                    whole=whole,
                )
                self.requests.append(request)
                self.prompt_tokens += int(request.begun.ids.size)
                for i in range(self.drawn):
                    number = place * self.number + i
                    self.texts[place, first + i] = Text(prompt, first + i, number, request)
        except BaseException:
            self.cancel()
            raise
        self.left = len(prompts) * self.drawn

    def _check_limits(self, prompts: list[str], limits: Limits) -> None:
        body, asked = self.body, len(prompts) * self.drawn
        if asked > limits.texts:
            raise UsageError(f"{asked:,} texts are asked for, and a request may have {limits.texts:,}: ask for fewer.")
        if (body.max_tokens or 0) > limits.tokens:
            raise UsageError(f"max_tokens is {body.max_tokens:,}, and a text may have {limits.tokens:,}: give less.")
        if sum(map(len, prompts)) > limits.prompt:
            raise UsageError(f"The prompts have more than {limits.prompt:,} characters: give shorter ones.")
        if self.drawn < self.number:
            raise UsageError(f"best_of is {self.drawn}, less than n, {self.number}: give more, or leave it out.")
        if self.drawn > self.number and body.stream:
            raise UsageError("best_of compares whole texts, which cannot be streamed: leave out one of the two.")
        if body.stream_options is not None and not body.stream:
            raise UsageError("stream_options are about streaming: give stream as true too.")

    def cancel(self) -> None:
        """Stop: all rows are free at the next chunk."""
        for request in self.requests:
            self.engine.cancel(request)

    def read(self, place: int, event: Event) -> list[Text]:
        """Take an event of the prompt number ``place``; returns the texts that it continues. Raises its error."""
        if isinstance(event, Exception):
            raise event
        texts = [self.texts[place, chunk.index] for chunk in event]
        for text, chunk in zip(texts, event):
            text.chunks.append(chunk)
            self.completion_tokens += chunk.tokens.size
            self.left -= chunk.last
        return texts

    def stream(self, events: Iterable[tuple[int, Event]]) -> list[Json]:
        """The choices of a streamed response that these events give: one for each text. May compute."""
        texts = dict.fromkeys(text for place, event in events for text in self.read(place, event))
        choices = []
        for text in texts:
            begins, chunk = text.sent == 0, _whole(text.chunks[text.sent :])
            text.sent = len(text.chunks)
            shown: Mapping[str, str] = exact_text("text", chunk.text)
            logprobs = self._logprobs(text, chunk)
            if begins and self.body.echo:
                shown, logprobs = self._with_prompt(text, shown, logprobs)
            about: Json = {}
            if chunk.last:
                (sample,) = collect(iter([_whole(text.chunks)]), self.sampler.tokenizer)
                about = {"receipt": self._receipt(text, sample)}
            choices.append(self._choice(text.number, shown, logprobs, chunk.end, about))
        return choices

    def choices(self) -> list[Json]:
        """The choices of a response that is not streamed."""
        found = []
        for place in range(len(self.requests)):
            texts = [text for (at, _), text in self.texts.items() if at == place]
            samples = [next(collect(iter([_whole(text.chunks)]), self.sampler.tokenizer)) for text in texts]
            if self.drawn > self.number:
                samples = select_best(samples, self.number)
            for rank, sample in enumerate(samples):
                text = self.texts[place, sample.index]
                shown: Mapping[str, str] = exact_text("text", sample.text)
                logprobs = self._logprobs(text, sample)
                if self.body.echo:
                    shown, logprobs = self._with_prompt(text, shown, logprobs)
                about = {"receipt": self._receipt(text, sample)}
                found.append(self._choice(place * self.number + rank, shown, logprobs, sample.end, about))
        return found

    def _choice(
        self, number: int, shown: Mapping[str, str], logprobs: Json | None, end: str | None, about: Json
    ) -> Json:
        return {**shown, "index": number, "logprobs": logprobs, "finish_reason": REASONS.get(end or ""), **about}

    def _receipt(self, text: Text, sample: Sample) -> Json:
        return receipt(self.sampler, self.settings, sample, prompt=text.prompt, unk=self.body.unk, origin=self.origin)

    def _logprobs(self, text: Text, chunk: Chunk) -> Json | None:
        top = self.body.logprobs
        if top is None:
            return None
        tokenizer = self.sampler.tokenizer
        tokens = [token_text(tokenizer, i) for i in chunk.tokens.tolist()]
        offsets = []
        for token in tokens:
            offsets.append(text.offset)
            text.offset += len(token)
        best: list[Json] | None = None
        if top and chunk.tokens.size:
            if text.alternatives is None and text.request.start is not None:
                text.alternatives = Alternatives(self.sampler, text.request.start, top)
            assert text.alternatives is not None
            found = text.alternatives.feed(chunk.tokens)
            best = [{token_text(tokenizer, i): logp for i, logp in each} for each in found]
        logp = [float(each) for each in chunk.logp]
        return {"tokens": tokens, "token_logprobs": logp, "top_logprobs": best, "text_offset": offsets}

    def _with_prompt(
        self, text: Text, shown: Mapping[str, str], logprobs: Json | None
    ) -> tuple[Mapping[str, str], Json | None]:
        """The text and its log-probabilities after the prompt and those of its tokens."""
        prompt = self.sampler.reading.text(text.prompt)
        whole = exact_text("text", prompt + shown["text"])
        if logprobs is None or not prompt:
            return whole, logprobs
        top = self.body.logprobs or 0
        scorer = Scorer(self.sampler, end=False if self.sampler.documents else None, top=top, unk=self.body.unk)
        scored = scorer.per_token(prompt)
        tokenizer = self.sampler.tokenizer
        tokens = [token_text(tokenizer, i) for i in scored.tokens.tolist()]
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        # Nothing comes before the first token of a running text, so it has no probability.
        logp: list[float | None] = [float(each) for each in scored.logp]
        best: list[Any] = [
            {token_text(tokenizer, i): float(p) for i, p in zip(*row)} for row in zip(scored.top, scored.top_logp)
        ]
        if not self.sampler.documents and logp:
            logp[0], best[0] = None, None
        length = sum(map(len, tokens))
        added = [length + each for each in logprobs["text_offset"]]
        text.offset += length
        return whole, {
            "tokens": tokens + logprobs["tokens"],
            "token_logprobs": logp + logprobs["token_logprobs"],
            "top_logprobs": best + (logprobs["top_logprobs"] or []) if top else None,
            "text_offset": offsets + added,
        }

    def response(self, choices: list[Json], usage: Json | None = None) -> Json:
        """A response, or a part of a streamed one."""
        about = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**about, "choices": choices, **({} if usage is None else {"usage": usage})}

    @property
    def usage(self) -> Json:
        """Tokens that were read and drawn."""
        read, drawn = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


def _whole(chunks: list[Chunk]) -> Chunk:
    """The chunks of one sample as one."""
    text = "".join(chunk.text for chunk in chunks)
    tokens, logp = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("tokens", "logp"))
    return Chunk(chunks[0].index, text, tokens, logp, chunks[-1].end)
