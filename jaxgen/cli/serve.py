"""``jaxgen serve``: models behind HTTP, with the interface of OpenAI's completions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from jaxgen.cli.adaptation_flags import STEP_FLAGS, AdaptationConfig
from jaxgen.cli.common import log
from jaxgen.cli.flags import Command, Excludes, Needs, Rules, check_flags, parse
from jaxgen.cli.mixture_flags import MIXTURE_RULES, MixtureFlags, fill_mixture_flags, open_mixture
from jaxgen.errors import UsageError
from jaxgen.runs.groups import Group
from jaxgen.trainer.signals import raise_on_signal

if TYPE_CHECKING:
    from jaxgen.inference.sampler import Sampler
    from jaxgen.server.models import Loaded, Served

DESCRIPTION = """Serve models over HTTP, with the interface of OpenAI's completions. Texts have the bits of sample.py.

    jaxgen serve                                   the newest language model, on http://127.0.0.1:8000
    jaxgen serve --run runs/language-1 runs/translate-1
    jaxgen serve --run pretrained:shakespeare --port 9000
    jaxgen serve --mix runs/a:0.7 runs/b:0.3
    jaxgen serve --host 0.0.0.0 --api-key SECRET   reachable from other machines
    curl http://127.0.0.1:8000/v1/models"""

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: The environment variable with the key.
KEY_VARIABLE = "JAXGEN_API_KEY"
#: Names of the host that only this machine reaches.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeConfig(AdaptationConfig, MixtureFlags):
    """Flags of ``jaxgen serve``."""

    common: ClassVar[tuple[str, ...]] = ("run", "mix", "host", "port", "api_key", "block")

    in_model: ClassVar[Group] = Group("Model")
    run: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Folders of the runs. Default: the newest language model. Requests name one by its folder's name."""
    adapt_to: str | None = None
    """Read this text file before each prompt, and adapt the weights to it, as sample.py --adapt-to."""
    runs: Annotated[str, Field(min_length=1)] = "runs"
    """A folder: the page shows the curves of the runs in it."""
    reload: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Look for a new best checkpoint every so many seconds; 0: never."""

    in_network: ClassVar[Group] = Group("Network")
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on. Others than this machine's own need --api-key, or --open."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """The port; 0: a free one."""
    api_key: Annotated[str, Field(min_length=1)] | None = None
    """What clients must send as their key. Also from the environment: JAXGEN_API_KEY."""
    open: bool = False
    """Let other machines use the server without a key."""
    allow_origin: tuple[str, ...] = ()
    """Web pages of these origins may use the server, for example https://example.org. Default: only its own page."""

    in_decoding: ClassVar[Group] = Group("Decoding")
    block: Annotated[int, Field(ge=1, le=256)] = 1
    """Rows that decode together, as sample.py --block: more serve many clients faster, with the bits of that block."""
    rows: Count = 256
    """Texts that are decoded at the same time; others wait."""

    in_limits: ClassVar[Group] = Group("Limits")
    queue: Count = 256
    """Requests that may wait. More are refused with status 429."""
    timeout: Seconds = 300.0
    """Seconds after which a text ends."""
    max_tokens: Count = 16_384
    """Tokens that a text may have."""
    max_prompt: Count = 100_000
    """Characters that the prompts of a request may have."""
    max_texts: Count = 128
    """Texts that a request may ask for."""
    max_body: Count = 4_194_304
    """Bytes that a request may have. Images need room."""
    shutdown: Literal["finish", "cancel"] = "finish"
    """What becomes of texts on Ctrl-C or SIGTERM. A second signal ends at once."""
    grace: Seconds = 30.0
    """Seconds in which they have to finish."""


RULES: Rules = (
    *MIXTURE_RULES,
    *(Needs(flag, ("--adapt-to",), "is about adaptation") for flag in STEP_FLAGS),
    Excludes("--open", ("--api-key",), "lets everybody use the server"),
)


def serve(args: list[str]) -> None:
    """Parse ``args`` and serve until a signal comes."""
    args = fill_mixture_flags(args)
    config, _ = parse(ServeConfig, args, prog="jaxgen serve", description=DESCRIPTION)
    check_flags(RULES, config, args, even_default=STEP_FLAGS)
    _ = config.adaptation  # raises ``UsageError`` for a value out of range
    key = config.api_key or os.environ.get(KEY_VARIABLE) or None
    local = config.host in LOOPBACK
    if not local and key is None and not config.open:
        raise UsageError(
            f"--host {config.host} lets other machines use the server: give --api-key, or --open for no key."
        )
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f'A server needs more packages ({error.name}): `pip install "jaxgen[serve]"`.') from None
    with raise_on_signal("serving"):
        run_server(config, key, local)


main = Command(serve)


def run_server(config: ServeConfig, key: str | None, local: bool) -> None:
    """Load the models, and serve until a signal comes."""
    from jaxgen.inference.engine import Engine
    from jaxgen.runtime import need_backend
    from jaxgen.server.app import Server, create_app
    from jaxgen.server.completions import Limits
    from jaxgen.server.listen import listen, open_socket
    from jaxgen.server.models import Models

    need_backend()
    limits = Limits(config.max_prompt, config.max_texts, config.max_tokens, config.timeout, config.block)
    with open_socket(config.host, config.port) as socket:  # before anything is loaded
        served = open_models(config)
        engine = Engine(rows=config.rows, waiting=config.queue)
        models = Models(served, engine, config.reload, log)
        warm_up(models, engine, config.block)
        app = create_app(
            Server(models, engine, limits, config.runs),
            api_key=key,
            local=local,
            origins=config.allow_origin,
            max_bytes=config.max_body,
        )
        address, port = socket.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        log(f"Serving {', '.join(models.by_name)} on http://{shown}:{port}")
        try:
            listen(app, socket, engine, finish=config.shutdown == "finish", grace=config.grace)
        finally:
            models.close()


def open_models(config: ServeConfig) -> list[Served]:
    """The models that the flags name. Raises ``UsageError``, ``CheckpointError`` and ``DataError``."""
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.server.models import Served

    if config.mix:
        from jaxgen.inference.mixture import read_members

        paths = [LoadedRun.open(run).directory.path for run in read_members(config.mix, "--mix")[0]]
        return [Served.of("mix", "language", _adapted(config, lambda: open_mixture(config)), paths)]
    served = []
    for run in config.run or (None,):
        saved = LoadedRun.open(run, None if run else "sample")
        path = saved.directory.path
        name = Path(run).name.removeprefix("pretrained:") if run else path.name
        task = saved.config.task
        load = _adapted(config, _sampler_of(path)) if _writes(task) else _predictor_of(path)
        served.append(Served.of(name or path.resolve().name, task, load, [path]))
    return served


def _writes(task: str) -> bool:
    from jaxgen.tasks.registry import DATA

    return "sample" in DATA[task].COMMANDS


def _sampler_of(path: Path) -> Callable[[], Sampler]:
    from jaxgen.inference.sampler import Sampler

    return lambda: Sampler.load(path)


def _predictor_of(path: Path) -> Callable[[], Loaded]:
    from jaxgen.inference.predictor import Predictor
    from jaxgen.server.models import Loaded

    return lambda: Loaded(None, Predictor.load(path))


def _adapted(config: ServeConfig, load: Callable[[], Sampler]) -> Callable[[], Loaded]:
    """Load a sampler, with weights that adapt to the text of ``--adapt-to``."""
    from jaxgen.inference.receipts import AdaptedTo, StateOrigin
    from jaxgen.server.models import Loaded

    def loaded() -> Loaded:
        sampler = load()
        _ = sampler.weights  # prepared once, for all copies
        if config.adapt_to is None:
            return Loaded(sampler)
        adapted = AdaptedTo.of(config.adapt_to, config.adaptation, "error")
        return Loaded(sampler, None, adapted.adapt(sampler, None), StateOrigin(adapted_to=adapted))

    return loaded


def warm_up(models: Any, engine: Any, block: int) -> None:
    """Compile what most requests need, before the first one comes."""
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.sampling.transforms import TopK

    for served in models.by_name.values():
        loaded = served.current
        if loaded.sampler is not None:
            plain = GenerationConfig(length=1, block=block)
            list(engine.stream(loaded.sampler, "", plain, state=loaded.before))
            # With several rows, and with transforms, in the background.
            for settings in (plain, replace(plain, transforms=(TopK(2**31 - 1),))):
                options: dict[str, Any] = {"num_samples": block + 1, "state": loaded.before}
                engine.submit(lambda _: None, loaded.sampler, "", settings, **options)
