"""What requests may contain. Ranges that depend on the server's limits or on the model are checked later."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=1_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=1_000)]


class Body(BaseModel):
    """A request: unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    model: Name | None = None
    """The name of a model, as ``/v1/models`` lists it. May be left out if there is only one."""


class LinearSchedule(BaseModel):
    """A temperature that goes from ``start`` to ``end`` over so many tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    start: Finite
    end: Finite
    steps: Annotated[int, Field(ge=1, le=16_384)]


class Condition(Body):
    """The labels and features of a text, for runs that were trained with them."""

    label: str | dict[str, Finite] | None = None
    """A label, or several with their weights."""
    features: list[Finite] | None = None
    """A number for each feature."""


class StreamOptions(BaseModel):
    """Options of ``stream``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False
    """Send the usage before the end."""


class Drawing(Condition):
    """How tokens are drawn."""

    temperature: Finite | Annotated[list[Finite], Field(min_length=1, max_length=16_384)] | LinearSchedule | None = None
    """Default 1. 0: always the most probable token. A list: one for each token, the last for the rest."""
    top_p: Finite | None = None
    """Draw among the fewest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Draw among this many of the most probable tokens."""
    min_p: Finite | None = None
    """Leave out tokens less probable than this times the highest probability."""
    typical_p: Finite | None = None
    """Draw among the fewest tokens that reach this probability, those of average surprise first."""
    repetition_penalty: Finite | None = None
    """Divides the logit of every token that has occurred; the prompt counts."""
    presence_penalty: Finite | None = None
    """Subtracted from the logit of every token that the text has; the prompt does not count."""
    frequency_penalty: Finite | None = None
    """The same for each time that the text has the token."""
    logit_bias: dict[str, Finite] | None = None
    """Token id -> what is added to its logit; -100 or less: it is never drawn."""
    unk: Literal["error", "skip"] = "error"
    """What to do with characters of the prompt that are not in the vocabulary."""
    state: Name | None = None
    """The id of a state, after which the prompt is read."""
    clamp: Annotated[dict[Name, Finite], Field(max_length=64)] | None = None
    """Hold these units at values while the model reads and draws, for example {"0:c:17": 2.0}."""


class CompletionRequest(Drawing):
    """A request for texts that continue a prompt, as in OpenAI's interface."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=2_048)] | None = None
    """The text to continue, or several."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens to generate. Default: 16."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Texts for each prompt. Default: 1."""
    sample_index: Seed | None = None
    """The number of the first text. Default: 0. Text i of a seed is the same however many are drawn."""
    seed: Seed | None = None
    """Default: a random one, which the receipt tells. With 0, the texts are those of sample.py without --seed."""
    stop: Stop | Annotated[list[Stop], Field(max_length=64)] | None = None
    """A text ends before the first of these strings."""
    stream: bool | None = None
    """Send the text as it is generated, as server-sent events."""
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Return the log-probability of each token under the model itself, and of this many of the most probable."""
    echo: bool | None = None
    """Return the prompt too, before the text."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """End all texts after this many seconds."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    """Draw this many texts for each prompt, and return the ``n`` most probable ones, by the mean of their tokens."""
    suffix: None = None
    user: Annotated[str, Field(max_length=1_000)] | None = None
    """Ignored."""


class ScoreRequest(Body):
    """A request for the log-probability of texts."""

    text: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    """The text, or several."""
    prompt: Text = ""
    """Read before each text, and not scored."""
    top: Annotated[int, Field(ge=0, le=100)] = 0
    """Return this many of the most probable tokens at each place."""
    unk: Literal["error", "skip", "keep"] = "error"
    """What to do with characters that are not in the vocabulary."""


class PredictRequest(Body):
    """A request for answers: the labels or translations of texts, or the captions of images."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    """The text, or several."""
    image: Annotated[str, Field(max_length=32_000_000)] | None = None
    """An image (PNG, JPEG and others) in base64, alone or as a data URL."""
    beam: Annotated[int, Field(ge=0, le=64)] = 0
    """The width of beam search. 0: greedy."""
    max_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """The largest number of tokens of an answer."""
    attention: bool = False
    """Return the attention weights of each answer too, of up to 16 inputs; for models with attention."""


class InspectRequest(Drawing):
    """A request for what the model computes while it reads a text."""

    text: Text = ""
    """The text."""
    top: Annotated[int, Field(ge=1, le=100)] = 10
    """How many of the most probable tokens to return."""
    units: Annotated[list[Name], Field(max_length=64)] | None = None
    """Return the values of these units at each token, and its surprise in bits, for example ["0:c:17"]."""
    array: Name | None = None
    """Return the values of all units of this array at the first tokens, for example "0:c"."""
    find: Name | None = None
    """Return the units that follow this feature, or the matches of this regular expression, most closely."""


class StateRequest(Condition):
    """A request for the state after a text, or between two states."""

    prompt: Text = ""
    """Read this text."""
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=100_000)] | None = None
    """Read these token ids instead, for example those that were drawn."""
    state: Name | None = None
    """Begin after this state. Default: the beginning of a text."""
    to: Name | None = None
    """Interpolate between ``state`` and this one."""
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """0: ``state``. 1: ``to``."""
    unk: Literal["error", "skip"] = "error"
    """What to do with characters that are not in the vocabulary."""


#: A response.
Json = dict[str, Any]
