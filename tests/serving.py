"""A server on a port of this machine, and clients of it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import uvicorn
from PIL import Image

from jaxgen.inference.engine import Engine
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.directory import PRETRAINED, SWEEP
from jaxgen.server.app import Server, create_app
from jaxgen.server.completions import Limits
from jaxgen.server.listen import open_socket
from jaxgen.server.models import Loaded, Models, Served

#: More tokens than a test waits for.
ENDLESS = 10_000_000


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when the condition holds; fail if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Running:
    """A server that runs: its address, and clients."""

    def __init__(self, url: str, server: Server) -> None:
        self.url, self.server = url, server
        self.http = httpx.Client(base_url=url, timeout=300)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(self, **body: Any) -> list[dict[str, Any]]:
        """The choices of a completion."""
        response = self.post("/v1/completions", **body)
        assert response.status_code == 200, response.text
        return response.json()["choices"]


@contextlib.contextmanager
def run_server(
    models: list[Served],
    limits: Limits | None = None,
    rows: int = 32,
    waiting: int = 1_000,
    runs: Path = Path("no-such-folder"),
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server of these models; ``send_buffer`` is how many bytes the system keeps of what a client has not read."""
    engine = Engine(rows=rows, waiting=waiting)
    limits = limits or Limits(prompt=2_000, texts=16, tokens=2_000)
    shared = Server(Models(models, engine, 0, print), engine, limits, runs)
    app = create_app(shared, **options)
    with open_socket("127.0.0.1", 0) as listener:
        if send_buffer is not None:  # connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5)
        listening = uvicorn.Server(config)
        thread = threading.Thread(target=listening.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not listening.started:
            time.sleep(0.01)
        running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", shared)
        try:
            yield running
        finally:
            running.http.close()
            running.openai.close()
            engine.close(finish=False)
            listening.should_exit = True
            thread.join(20)


def served(sampler: Sampler, name: str = "tiny") -> Served:
    return Served.of(name, "language", lambda: Loaded(sampler), [])


def folder_of_runs(folder: Path) -> Path:
    """A folder with two copies of the pretrained run, one of them inside a sweep, and with what is no run."""
    for name in ("first", "sweep/second"):
        shutil.copytree(PRETRAINED / "shakespeare", folder / name)
    (folder / "sweep" / SWEEP).write_text("{}")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


def train_answering(folder: Path, tasks: tuple[str, ...] = ("classify", "caption")) -> list[Served]:
    """A classifier, a captioner and on request a translator, trained in ``folder`` for two steps."""
    from jaxgen.cli.train import main as train

    rows = [("fish wave", "sea"), ("tree road", "land"), ("wave ship", "sea"), ("road hill", "land")] * 3
    (folder / "rows.csv").write_text("text,kind\n" + "".join(f"{text},{kind}\n" for text, kind in rows))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    (folder / "photos").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / f"{number}.png")
    lines = "".join(f"{number}.png,{text}\n" for number, (text, _) in enumerate(rows[:4]))
    (folder / "photos" / "captions.csv").write_text("image,caption\n" + lines)
    small = "--cell elman --hidden 4 --batch-size 4 --steps 2 --eval-every 2 --devices 1"
    images = "--image-size 8 --patch 2 --widths 16 --blocks 0 --beam 0 --val-rows 1"
    known = {
        "classify": ("rows.csv", "--text-column text --label-column kind --val-rows 4"),
        "caption": ("photos", images),
        "translate": ("rows.csv", "--source-column text --target-column kind --val-rows 4 --beam 0"),
    }
    for task in tasks:
        data, flags = known[task]
        words = [task, "--data", str(folder / data), "--run", str(folder / task), *f"{small} {flags}".split()]
        assert train(words) == 0
    return [
        Served.of(task, task, lambda task=task: Loaded(None, Predictor.load(folder / task)), [folder / task])
        for task in tasks
    ]
