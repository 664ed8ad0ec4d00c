"""The routes of the server. What they do is in ``completions``, ``models`` and the engine."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from jaxgen.errors import DataError, JaxgenError, UsageError, choose
from jaxgen.fsutil import plain_json
from jaxgen.inference.engine import BusyError, Engine, Event
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.inspection import Inspection, inspect_text
from jaxgen.inference.next_token import distribution_steps
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import interpolate, state_bytes
from jaxgen.server.completions import (
    MAX_TOKENS,
    Completion,
    Limits,
    check_probabilities,
    check_unconditioned,
    conditioned,
    open_sampler,
    temperature_of,
    transforms_of,
)
from jaxgen.server.guard import Guard, error_body
from jaxgen.server.models import KeptState, Loaded, Models, NotFoundError, States
from jaxgen.server.runs import Runs
from jaxgen.server.schemas import (
    CompletionRequest,
    InspectRequest,
    Json,
    PredictRequest,
    ScoreRequest,
    StateRequest,
)
from jaxgen.tokenizers.base import token_json
from jaxgen.version import __version__

Result = TypeVar("Result")
_LOG = logging.getLogger("jaxgen.server")
#: The files of the page.
STATIC = Path(__file__).parent / "static"
#: Seconds after which a client should try again while the server shuts down.
RETRY_SECONDS = 5
#: Texts of more tokens become a response in a thread.
MAX_TOKENS_HERE = 5_000
#: The message of a response with status 500.
FAILED = "The server failed: its log says how."
#: The message of a response to a body that the JSON parser refuses without saying where.
UNREADABLE = "The body is no JSON in UTF-8, is nested too deeply, or has a number of thousands of digits."
#: The most inputs for which attention weights are returned.
MAX_ATTENDED = 16
#: The most tokens for which all units of an array are returned.
MAX_SHOWN = 500


class Metrics:
    """Figures for Prometheus."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        add: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("jaxgen_requests", "Requests by path and status.", ["path", "status"], **add)
        self.seconds = Histogram("jaxgen_request_seconds", "Seconds of a request.", ["path"], **add)
        self.first = Histogram("jaxgen_first_token_seconds", "Seconds to the first tokens of a stream.", **add)
        Gauge("jaxgen_waiting", "Requests that wait.", **add).set_function(lambda: engine.load["waiting"])
        Gauge("jaxgen_rows", "Texts that are decoded now.", **add).set_function(lambda: engine.load["rows"])
        Gauge("jaxgen_tokens_total", "Tokens that were generated.", **add).set_function(lambda: engine.tokens)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def page(self) -> Response:
        """All figures in the text format."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class Server:
    """What the routes share.

    Args:
        models: The served models.
        engine: Decodes.
        limits: What a request may ask for.
        runs: The folder of the runs whose curves the page shows, beside those that are served.
    """

    def __init__(self, models: Models, engine: Engine, limits: Limits | None = None, runs: str | Path = "runs") -> None:
        self.models, self.engine, self.limits = models, engine, limits or Limits()
        several = {path.name: path for each in models.by_name.values() if len(each.runs) > 1 for path in each.runs}
        single = {name: each.runs[0] for name, each in models.by_name.items() if len(each.runs) == 1}
        self.runs = Runs(runs, {**several, **single})
        self.states, self.metrics = States(), Metrics(engine)
        #: Everything but decoding computes one request at a time; the probabilities of texts do not wait for others.
        self._turn, self._probabilities = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self._waiting = 0

    async def answer(self, request: Request, function: Callable[[Any], Json], body: Any) -> JSONResponse:
        """The result of ``function``, which computes in a thread, one at a time.

        Raises ``BusyError`` if too many requests wait, or this one waits for too long.
        """
        if self._waiting >= self.engine.max_waiting:
            raise BusyError(f"{self._waiting:,} requests wait already: try again later.", 10.0)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            return JSONResponse(await _unless(gone, self._in_turn(function, body)))
        finally:
            gone.cancel()

    async def _in_turn(self, function: Callable[[Any], Json], body: Any) -> Json:
        self._waiting += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self._turn.acquire()
        except TimeoutError:
            seconds = self.limits.seconds
            raise BusyError(f"The request has waited for {seconds:g} seconds: try again later.", 10.0) from None
        finally:
            self._waiting -= 1
        try:
            found: Json = plain_json(await anyio.to_thread.run_sync(function, body))
            return found
        finally:
            self._turn.release()

    # Completions

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Texts that continue a prompt."""
        began, loop = time.monotonic(), asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def notify(place: int, event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (place, event))

        make = partial(Completion, body, self.models, self.states, self.engine, self.limits, notify)
        completion = await anyio.to_thread.run_sync(make)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            if body.stream:
                parts = self._parts(completion, events, began)
                first = await _unless(gone, anext(parts))  # an error before the first text is a response of its own
                return _Stream(completion, first, parts)
            while completion.left:
                completion.read(*await _unless(gone, events.get()))
            choices = await self._maybe_compute(completion, completion.choices)
            completion.cancel()
            return JSONResponse(completion.response(choices, completion.usage))
        except BaseException:
            completion.cancel()
            raise
        finally:
            gone.cancel()

    async def _parts(
        self, completion: Completion, events: asyncio.Queue[tuple[int, Event]], began: float
    ) -> AsyncIterator[bytes]:
        """The server-sent events of a streamed completion."""
        first = True
        try:
            while completion.left:
                found = [await events.get()]
                while not events.empty():  # what came while the last part was sent goes into one
                    found.append(events.get_nowait())
                for choice in await self._maybe_compute(completion, partial(completion.stream, found)):
                    yield _sent(completion.response([choice]))
                if first:
                    self.metrics.first.observe(time.monotonic() - began)
                    first = False
                await asyncio.sleep(0)  # others have a turn even if this client reads at any speed
            options = completion.body.stream_options
            if options is not None and options.include_usage:
                yield _sent(completion.response([], completion.usage))
            yield b"data: [DONE]\n\n"
        except Exception:
            if first:
                raise
            _LOG.exception("A stream failed")
            yield _sent(error_body(FAILED, 500))

    async def _maybe_compute(self, completion: Completion, function: Callable[[], Any]) -> Any:
        """Call ``function``: here, unless it computes probabilities or has long texts, which others would wait for."""
        is_long = not completion.body.stream and completion.completion_tokens > MAX_TOKENS_HERE
        if completion.body.logprobs is None and not is_long:
            return function()
        async with self._probabilities:
            return await anyio.to_thread.run_sync(function)

    # Other routes

    def score(self, body: ScoreRequest) -> Json:
        """The log-probabilities of texts."""
        texts = [body.text] if isinstance(body.text, str) else body.text
        self._check_length(body.prompt, *texts)
        check_probabilities(sum(map(len, texts)), body.top)
        served, loaded, sampler = self.models.language(body.model)
        _check_unadapted(loaded)
        scorer = Scorer(sampler, top=min(body.top, sampler.tokenizer.vocab_size), unk=body.unk)
        found, tokenizer = [], sampler.tokenizer
        for text in texts:
            scored = scorer.details(text, body.prompt)
            tokens = [
                {**token_json(tokenizer, i, logp), "top": [token_json(tokenizer, *each) for each in zip(*top)]}
                for i, logp, top in zip(
                    scored.tokens.tokens.tolist(),
                    scored.tokens.logp.tolist(),
                    zip(scored.tokens.top.tolist(), scored.tokens.top_logp.tolist()),
                )
            ]
            found.append({**scored.score.to_json(), "per_token": tokens})
        return {"object": "score", "model": served.name, "checkpoint": sampler.digest, "data": found}

    def predict(self, body: PredictRequest) -> Json:
        """Answers to inputs."""
        served, predictor = self.models.predictor(body.model)
        if (body.input is None) == (body.image is None):
            raise UsageError("Give `input`, a text or a list of texts, or `image`, in base64.")
        if (body.image is not None) != predictor.codec.FILES:
            needed = "an image" if predictor.codec.FILES else "texts"
            raise UsageError(f"The model {served.name!r} answers {needed}: give that.")
        inputs: list[Any]
        if body.image is not None:
            inputs = [_pixels(predictor, body.image)]
        else:
            inputs = [body.input] if isinstance(body.input, str) else list(body.input or ())
            self._check_length(*inputs)
        decoding = DecodingConfig()
        if predictor.task.ANSWER == "texts":
            length = min(body.max_tokens or predictor.codec.longest, self.limits.tokens)
            decoding = DecodingConfig(GenerationConfig(length, temperature=0.0), body.beam)
        answers: list[Json] = list(predictor.predict(inputs, decoding))  # type: ignore[arg-type]
        if body.attention:
            if len(inputs) > MAX_ATTENDED:
                raise UsageError(f"Attention is returned for up to {MAX_ATTENDED} inputs: give fewer.")
            for number, (source, answer) in enumerate(zip(inputs, answers)):
                answer["attention"] = _attention(predictor, source, decoding, number)
        return {"object": "prediction", "model": served.name, "checkpoint": predictor.digest, "data": answers}

    def inspect(self, body: InspectRequest) -> Json:
        """The next-token distribution after a text, and what the model computes while it reads it."""
        self._check_length(body.text)
        check_probabilities(len(body.text), len(body.units or ()))
        name, sampler, before, _ = open_sampler(self.models, self.states, body)
        settings = GenerationConfig(MAX_TOKENS, temperature_of(body), 0, transforms_of(body))
        state = sampler.read(body.text, before, unk=body.unk)
        steps = [step.to_json(sampler.tokenizer, body.top) for step in distribution_steps(sampler, state, settings)]
        found: Json = {"object": "inspection", "model": name, "checkpoint": sampler.digest, "next": steps}
        if body.units is not None or body.array is not None or body.find is not None:
            _check_unadapted(self.models.language(body.model)[1])
            if before is not None:
                raise UsageError("Units are shown from the beginning of a text: leave out state.")
            found |= _inside(inspect_text(sampler, body.text, probabilities=False, unk=body.unk), body)
        return found

    def add_state(self, body: StateRequest) -> Json:
        """Keep the state after a text, or between two states."""
        served, loaded, sampler = self.models.language(body.model)
        self._check_length(body.prompt)
        checkpoint = sampler.weights_digest()
        before = loaded.before
        if body.state is not None:
            before = self.states.find(body.state, served.name, checkpoint).state
            check_unconditioned(body)
        sampler = conditioned(sampler, body)
        if body.to is not None:
            if before is None or body.state is None or body.prompt or body.tokens is not None:
                raise UsageError("To interpolate, give `state`, `to` and `weight`, and no text.")
            state = interpolate(before, self.states.find(body.to, served.name, checkpoint).state, body.weight)
        elif body.tokens is not None:
            if body.prompt:
                raise UsageError("Give `prompt` or `tokens`: a state reads one of the two.")
            state = sampler.read_tokens(np.asarray(body.tokens, np.int32), before)
        else:
            state = sampler.read(body.prompt, before, unk=body.unk)
        data = state_bytes(state, checkpoint)
        digest = hashlib.sha256(data).hexdigest()
        name = self.states.add(KeptState(served.name, checkpoint, state, data, digest))
        return {"object": "state", "id": name, "model": served.name, "tokens": int(state.tokens.size), "sha256": digest}

    def list_models(self) -> Json:
        """The served models."""
        return {"object": "list", "data": [self.model(name) for name in self.models.by_name]}

    def model(self, name: str) -> Json:
        """One model."""
        served = self.models.find(name)
        about = {"id": served.name, "object": "model", "created": served.created, "owned_by": "jaxgen"}
        predictor = served.current.predictor
        attends = {} if predictor is None else {"attention": predictor.has_attention}
        return {**about, "task": served.task, "checkpoint": served.current.checkpoint, **attends}

    def _check_length(self, *texts: str) -> None:
        if sum(map(len, texts)) > self.limits.prompt:
            raise UsageError(f"The texts have more than {self.limits.prompt:,} characters: give shorter ones.")


NO_CACHE = {"cache-control": "no-store", "x-accel-buffering": "no"}
#: Errors of the project -> the status of the response.
STATUS: dict[type[Exception], int] = {UsageError: 400, DataError: 400, NotFoundError: 404}


def create_app(
    server: Server,
    *,
    api_key: str | None = None,
    local: bool = True,
    origins: Sequence[str] = (),
    max_bytes: int = 2**20,
) -> Any:
    """The ASGI application.

    Args:
        server: The models and the engine.
        api_key: What requests must send as ``Authorization: Bearer``. Default: nothing.
        local: Whether it listens on this machine alone.
        origins: Origins of web pages elsewhere that may use it.
        max_bytes: The largest body of a request.
    """
    app = FastAPI(title="jaxgen", version=__version__, docs_url=None, redoc_url=None)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text}
        for status, text in ((400, "It cannot be used"), (401, "Wrong key"), (404, "Unknown"), (429, "Busy"))
    }

    def route(method: str, path: str, **options: Any) -> Callable[[Any], Any]:
        return app.api_route(path, methods=[method], responses=errors, **options)

    @route("POST", "/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Texts that continue a prompt."""
        return await server.completions(body, request)

    @route("POST", "/v1/score")
    async def score(body: ScoreRequest, request: Request) -> JSONResponse:
        """The log-probabilities of texts and their tokens, in nats."""
        return await server.answer(request, server.score, body)

    @route("POST", "/v1/predict")
    async def predict(body: PredictRequest, request: Request) -> JSONResponse:
        """The answers of a classifier, a translator or a captioner."""
        return await server.answer(request, server.predict, body)

    @route("POST", "/v1/inspect")
    async def inspect(body: InspectRequest, request: Request) -> JSONResponse:
        """The distribution of the next token after a text, and outputs of the last layer."""
        return await server.answer(request, server.inspect, body)

    @route("POST", "/v1/states")
    async def add_state(body: StateRequest, request: Request) -> JSONResponse:
        """Keep the state after a text, or between two states, to continue from it."""
        return await server.answer(request, server.add_state, body)

    @route("GET", "/v1/states/{name}")
    async def state_file(name: str) -> Response:
        """The state as a file, for ``sample.py --state`` and to replay receipts."""
        return Response(server.states.find(name).data, media_type="application/octet-stream")

    @route("DELETE", "/v1/states/{name}")
    async def drop_state(name: str) -> JSONResponse:
        """Forget a state."""
        server.states.drop(name)
        return JSONResponse({"id": name, "object": "state", "deleted": True})

    @route("GET", "/v1/models")
    async def list_models() -> JSONResponse:
        """The served models."""
        return JSONResponse(server.list_models())

    @route("GET", "/v1/models/{name}")
    async def model(name: str) -> JSONResponse:
        """One model."""
        return JSONResponse(server.model(name))

    @route("GET", "/v1/runs")
    async def list_runs() -> JSONResponse:
        """The runs of the folder that the server shows, and those that are served."""
        return JSONResponse(plain_json(await anyio.to_thread.run_sync(server.runs.list)))

    @route("GET", "/v1/runs/{name:path}")
    async def run_curves(name: str) -> JSONResponse:
        """The losses of a run, and the metric that decides, at the steps of its evaluations."""
        return JSONResponse(plain_json(await anyio.to_thread.run_sync(server.runs.curves, name)))

    @route("GET", "/health")
    async def health() -> JSONResponse:
        """Whether the server takes requests."""
        return JSONResponse({"status": "ok", **server.engine.load})

    @route("GET", "/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return server.metrics.page()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    _add_error_handlers(app)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    observe = server.metrics.observe
    return Guard(app, observe, api_key=api_key, local=local, origins=tuple(origins), max_bytes=max_bytes)


def _add_error_handlers(app: FastAPI) -> None:
    """Errors as responses. The message never repeats a number that JSON cannot hold."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _failure(400, _readable(_sentence(error.errors())))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        status, seconds = (503, RETRY_SECONDS) if error.closed else (429, max(round(error.seconds), 1))
        return _failure(status, str(error), {"retry-after": str(seconds)})

    @app.exception_handler(JaxgenError)
    async def known(_: Request, error: JaxgenError) -> JSONResponse:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
        return _failure(status, _readable(str(error)))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _failure(500, FAILED)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        unread = error.status_code == 400  # FastAPI has no other error of this status
        return _failure(error.status_code, UNREADABLE if unread else str(error.detail))

    app.add_exception_handler(404, lambda *_: _failure(404, "There is nothing at this path: see /openapi.json."))
    app.add_exception_handler(405, lambda *_: _failure(405, "This path has other methods: see /openapi.json."))


def _failure(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(message, status), status, headers)


def _sentence(errors: Sequence[Any]) -> str:
    """The error of a request, as a sentence.

    A field of several types has an error for each. Those of a type that the value does not even have say nothing, as
    long as there is another.
    """
    each = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    where = [part for part in each["loc"] if part != "body"]
    if each["type"] == "json_invalid":
        reason = each.get("ctx", {}).get("error", "it ends too early")
        return f"The body is no JSON in UTF-8: at character {where[0] + 1}, {reason[:1].lower()}{reason[1:]}."
    if not where:
        return "The body is no JSON object: send one, with content-type application/json."
    name = str(where[0])[:200]
    if each["type"] == "extra_forbidden":
        return f"There is no field {name!r}: /openapi.json lists those that there are."
    if each["type"] == "missing":
        return f"The field {name!r} is missing: give it."
    problems = [each["msg"]]
    if each["type"].endswith("_type"):
        problems = list(dict.fromkeys(every["msg"] for every in errors if every["loc"][:2] == each["loc"][:2]))
    return f"{name} cannot be used: {', or '.join(problem[:1].lower() + problem[1:] for problem in problems)[:500]}."


def _readable(message: str) -> str:
    """A message as JSON can hold it."""
    return message.encode("utf-8", "replace").decode()


async def _disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[None], waited: Awaitable[Result]) -> Result:
    """The result of ``waited``. Raises ``ClientDisconnect`` if the client leaves first."""
    task = asyncio.ensure_future(waited)
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
    if task.cancelled() or not task.done():
        raise ClientDisconnect
    return task.result()


class _Stream(StreamingResponse):
    """The parts of a completion, which ends with the response. (Its iterator ends only when it is collected.)"""

    def __init__(self, completion: Completion, first: bytes, rest: AsyncIterator[bytes]) -> None:
        super().__init__(_chained(first, rest), media_type="text/event-stream", headers=NO_CACHE)
        self._completion = completion

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completion.cancel()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _sent(value: Json) -> bytes:
    """A server-sent event."""
    return f"data: {_JSON.encode(value)}\n\n".encode()


def _check_unadapted(loaded: Loaded) -> None:
    """Raise ``UsageError`` for weights that have adapted to a text."""
    if loaded.before is not None:
        raise UsageError(
            "Scores and units are those of a run, and these weights have adapted to a text: serve it without "
            "--adapt-to."
        )


def _inside(seen: Inspection, body: InspectRequest) -> Json:
    """What a request asks for of a text that was read."""
    arrays = seen.arrays
    found: Json = {"tokens": seen.texts, "bits": seen.surprise.tolist()}
    found["arrays"] = {name: array.shape[1] for name, array in arrays.items()}
    found["gates"] = [f"{layer}:{name}" for layer, gates in enumerate(seen.gates) for name in gates]
    found["distance"] = [[round(value, 4) for value in layer] for layer in seen.distance.T.tolist()]
    if body.units is not None:
        found["units"] = {unit: seen.unit(unit).values.tolist() for unit in body.units}
    if body.array is not None:
        shown = arrays[choose(body.array, arrays, "array")][:MAX_SHOWN]
        found["array"] = [[round(value, 3) for value in row] for row in shown.tolist()]
    if body.find is not None:
        units = seen.find(body.find)
        best = [{"unit": str(each.unit), "chosen": each.chosen, "score": each.score} for each in units.units]
        found["found"] = {"units": best, "score": units.score, "chance": units.chance, "verdict": units.verdict}
        found["found"]["is_telling"] = bool(units.is_telling)
    return found


def _attention(predictor: Predictor, source: Any, decoding: DecodingConfig, number: int) -> Json:
    """The attention weights of an answer: a row for each token, a column for each source position.

    Of a ``grid`` the positions are the squares of the image, row by row.
    """
    found = predictor.attention(source, decoding, number)
    weights = [[round(float(value), 4) for value in row] for row in found.weights]
    return {"written": found.written, "source": found.source, "weights": weights, "grid": found.is_grid}


def _pixels(predictor: Any, image: str) -> np.ndarray:
    """The pixels of an image in base64. Raises ``UsageError``."""
    from jaxgen.tasks.caption.images import read_image

    if not predictor.codec.of_images:
        raise UsageError("This model answers features, and not images: ask it from Python.")
    try:
        data = base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("`image` is not base64: send the bytes of a PNG or JPEG in base64.") from None
    with tempfile.NamedTemporaryFile(prefix="jaxgen-image-") as file:
        file.write(data)
        file.flush()
        try:
            return read_image(file.name, predictor.codec.shape[:2])
        except DataError as error:
            raise UsageError(str(error).replace(file.name, "of the request")) from None
