"""Completions: settings from requests, and responses from chunks, as OpenAI's interface has them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxgen.errors import UsageError
from jaxgen.inference.engine import Engine, Event, Request
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.receipts import StateFile, StateOrigin, exact_text, receipt
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import StateScorer, TokenScores
from jaxgen.inference.state import DecoderState
from jaxgen.inference.text_stream import Chunk, Sample, collect, joined, select_best
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
#: The most probabilities of a response.
MAX_PROBABILITIES = 2**20
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


def check_probabilities(tokens: int, top: int) -> None:
    """Raise ``UsageError`` if the probabilities of so many tokens and of the ``top`` best at each are too many."""
    if tokens * (1 + top) > MAX_PROBABILITIES:
        raise UsageError(
            f"{tokens:,} tokens with {1 + top:,} probabilities each are asked for, and a response may have "
            f"{MAX_PROBABILITIES:,} of them: ask for fewer texts, tokens or alternatives."
        )


def check_unconditioned(body: Condition) -> None:
    """Raise ``UsageError`` for labels and features beside a state."""
    if body.label is not None or body.features is not None:
        raise UsageError("A state continues a text whose condition is fixed: leave out label and features.")


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
    check_unconditioned(body)
    kept = states.find(body.state, served.name, sampler.weights_digest())
    origin = StateOrigin(state=StateFile(file=f"{body.state}.safetensors", sha256=kept.sha256))
    return served.name, sampler, kept.state, origin


@dataclass(eq=False)
class Text:
    """One text of a completion: what came of it so far."""

    place: int  # the number of its prompt
    prompt: str
    index: int
    number: int  # among all texts of the response
    request: Request
    scorer: StateScorer | None = None
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
        self.model, sampler, self.before, self.origin = open_sampler(models, states, body)
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
        self._prompts: dict[int, Json] = {}  # the log-probabilities of the prompts, by their numbers
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
                    state=self.before,
                    unk=body.unk,
                    seconds=limits.seconds,
                    whole=whole,
                )
                self.requests.append(request)
                self.prompt_tokens += int(request.begun.ids.size)
                for i in range(self.drawn):
                    number = place * self.number + i
                    self.texts[place, first + i] = Text(place, prompt, first + i, number, request)
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
        if body.logprobs is not None:
            tokens = asked * (MAX_TOKENS if body.max_tokens is None else body.max_tokens)
            check_probabilities(tokens + bool(body.echo) * self.drawn * sum(map(len, prompts)), body.logprobs)
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
            begins, chunk = text.sent == 0, joined(text.chunks[text.sent :])
            text.sent = len(text.chunks)
            about: Json = {}
            if chunk.last:
                (sample,) = collect(iter(text.chunks), self.sampler.tokenizer)
                about = {"receipt": self._receipt(text, sample)}
            choices.append(self._choice(text, text.number, chunk, begins, about))
        return choices

    def choices(self) -> list[Json]:
        """The choices of a response that is not streamed."""
        found = []
        for place in range(len(self.requests)):
            texts = [text for (at, _), text in self.texts.items() if at == place]
            samples = [next(collect(iter(text.chunks), self.sampler.tokenizer)) for text in texts]
            if self.drawn > self.number:
                samples = select_best(samples, self.number)
            for rank, sample in enumerate(samples):
                text = self.texts[place, sample.index]
                about = {"receipt": self._receipt(text, sample)}
                found.append(self._choice(text, place * self.number + rank, sample, True, about))
        return found

    def _choice(self, text: Text, number: int, chunk: Chunk, begins: bool, about: Json) -> Json:
        """A choice with the text of ``chunk``, after the prompt if that is asked for and the text begins here."""
        shown, echoes = chunk.text, begins and self.body.echo
        logprobs: Json | None = None
        if echoes:
            shown = self.sampler.reading.text(text.prompt) + shown
        if self.body.logprobs is not None:
            parts = [self._prompt_logprobs(text)] if echoes and text.prompt else []
            text.offset += sum(len(token) for part in parts for token in part["tokens"])
            parts.append(self._logprobs(text, chunk))
            logprobs = {name: [each for part in parts for each in part[name]] for name in parts[0]}
            if not self.body.logprobs:
                logprobs["top_logprobs"] = None
        reason = REASONS.get(chunk.end or "")
        return {**exact_text("text", shown), "index": number, "logprobs": logprobs, "finish_reason": reason, **about}

    def _receipt(self, text: Text, sample: Sample) -> Json:
        return receipt(self.sampler, self.settings, sample, prompt=text.prompt, unk=self.body.unk, origin=self.origin)

    def _logprobs(self, text: Text, chunk: Chunk) -> Json:
        """The log-probabilities of the next tokens of a text."""
        top, none = self.body.logprobs or 0, np.zeros((chunk.tokens.size, 0), np.int32)
        scored = TokenScores(chunk.tokens, chunk.logp, none, none)
        if top and chunk.tokens.size:
            if text.scorer is None:
                assert text.request.start is not None
                text.scorer = StateScorer(self.sampler, text.request.start, top)
            scored = text.scorer.feed(chunk.tokens)._replace(logp=chunk.logp)
        found = self._shown(scored, text.offset)
        text.offset += sum(map(len, found["tokens"]))
        return found

    def _prompt_logprobs(self, text: Text) -> Json:
        """The log-probabilities of the tokens of a text's prompt, which are computed once for all its texts."""
        if text.place not in self._prompts:
            ids, sampler, start = text.request.begun.ids, self.sampler, self.before
            if start is None and sampler.documents:
                start, ids = sampler.read_tokens(ids[:1]), ids[1:]
            start = sampler.initial_state() if start is None else start
            found: Json = self._shown(StateScorer(sampler, start, self.body.logprobs or 0).feed(ids), 0)
            if not start.tokens.size and ids.size:  # nothing comes before it, so it has no probability
                found["token_logprobs"][0] = found["top_logprobs"][0] = None
            self._prompts[text.place] = found
        return self._prompts[text.place]

    def _shown(self, scored: TokenScores, offset: int) -> Json:
        """Log-probabilities as OpenAI's interface has them. A token that cannot be drawn is left out."""
        ids = {*scored.tokens.tolist(), *scored.top.flatten().tolist()}
        texts = {i: token_text(self.sampler.tokenizer, i) for i in ids}
        tokens = [texts[i] for i in scored.tokens.tolist()]
        ends = np.cumsum([offset, *map(len, tokens)]).tolist()
        best = [
            {texts[i]: logp for i, logp in zip(*each) if logp > -np.inf}
            for each in zip(scored.top.tolist(), scored.top_logp.tolist())
        ]
        logp = scored.logp.tolist()
        return {"tokens": tokens, "token_logprobs": logp, "top_logprobs": best, "text_offset": ends[:-1]}

    def response(self, choices: list[Json], usage: Json | None = None) -> Json:
        """A response, or a part of a streamed one."""
        about = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**about, "choices": choices, **({} if usage is None else {"usage": usage})}

    @property
    def usage(self) -> Json:
        """Tokens that were read and drawn."""
        read, drawn = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}
