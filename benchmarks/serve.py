"""Load on ``jaxgen serve``: tokens/s, time to the first token, latencies, against the sampler alone.

    python -m benchmarks.serve                     two minutes; prints a table in Markdown
    python -m benchmarks.serve --blocks 32 --clients 64 --requests 256
    python -m benchmarks.serve --memory 10000      the memory of the server over so many requests

The model is an LSTM of one layer with 256 units and random weights, over 65 characters. Every request has a prompt and
a seed of its own. It asks for one text of 128 tokens, streamed, or for 32 texts of 512 tokens, as a whole. The clients
are another process on this machine, so that they take some of its cores too. "in turn" is what the sampler does with
the same requests one after the other, and "alone" with as many texts of one prompt, both without HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks import machine

PROMPT = "The king and the queen of number "
#: Texts of a request -> tokens of each.
LENGTHS = {1: 128, 32: 512}
#: Texts of a request -> numbers of clients.
CLIENTS = {1: [1, 16, 64, 256], 32: [1, 4]}
ROOT = Path(__file__).resolve().parent.parent


def make_sampler():
    """The model: an LSTM of one layer with random weights."""
    import string

    import jax
    import jax.numpy as jnp

    from jaxgen import LanguageTask, Sampler
    from jaxgen.tokenizers import CharTokenizer

    tokenizer = CharTokenizer.train([string.ascii_letters + string.digits + " \n."])
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, cell="lstm", cell_options={}, hidden=256, layers=1)
    shapes, normal = jax.eval_shape(task.init, jax.random.key(0)), np.random.default_rng(0).normal
    return Sampler(task, tokenizer, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape) * 0.1, a.dtype), shapes))


# The clients: a process of their own, without a library that would take the cores of the server.


async def ask(host: str, port: int, number: int, texts: int, stream: bool) -> tuple[float, float, int]:
    """Seconds to the first text and to the end of one request, and its tokens."""
    body = {"prompt": f"{PROMPT}{number}", "seed": number % 1000, "max_tokens": LENGTHS[texts], "stream": stream}
    body["n"] = texts
    data = json.dumps({**body, "stream_options": {"include_usage": True}} if stream else body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began, first, text = time.perf_counter(), 0.0, b""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    while part := await reader.read(65_536):
        text += part
        if not first and (b"data: " in text if stream else b"\r\n\r\n" in text):
            first = time.perf_counter() - began
    writer.close()
    found = json.loads(b"{" + text.rsplit(b'"usage": {' if stream else b'"usage":{', 1)[1].split(b"}")[0] + b"}")
    return first, time.perf_counter() - began, found["completion_tokens"]


async def ask_all(host: str, port: int, clients: int, requests: int, texts: int, stream: bool) -> dict[str, float]:
    """All requests, each client one after the other."""
    numbers, found = iter(range(requests)), []

    async def client() -> None:
        for number in numbers:
            found.append(await ask(host, port, number, texts, stream))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    first, whole, tokens = (np.array(column) for column in zip(*found))
    figures = {"tokens_s": tokens.sum() / seconds, "first_p50": np.median(first), "first_p99": np.quantile(first, 0.99)}
    figures |= {"p50": np.median(whole), "p99": np.quantile(whole, 0.99)}
    return {name: float(value) for name, value in figures.items()}


def run_clients(port: int, clients: int, requests: int, texts: int = 1, stream: bool = True) -> dict[str, float]:
    """The figures of a process of clients."""
    words = ["--client", port, "--clients", clients, "--requests", requests, "--texts", texts]
    words += [] if stream else ["--whole"]
    command = [sys.executable, "-m", "benchmarks.serve", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


# The server: in this process.


def start(sampler, block: int):
    """A server on a free port; returns the port and a function that stops it."""
    import uvicorn

    from jaxgen.inference.engine import Engine
    from jaxgen.server.app import Server, create_app
    from jaxgen.server.completions import Limits
    from jaxgen.server.listen import open_socket
    from jaxgen.server.models import Loaded, Models, Served

    engine = Engine(rows=256, waiting=1_000)
    models = Models([Served.of("lstm", "language", lambda: Loaded(sampler), [])], engine, 0, print)
    app = create_app(Server(models, engine, Limits(block=block)))
    socket = open_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none", backlog=2_048))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def stop() -> None:
        engine.close(finish=False)
        server.should_exit = True
        thread.join()
        socket.close()

    return socket.getsockname()[1], stop


def alone(sampler, block: int, texts: int, length: int) -> float:
    """Tokens per second of the sampler for so many texts of one request."""
    from jaxgen import GenerationConfig

    settings = GenerationConfig(length, 1.0, block=block)
    list(sampler.samples(PROMPT, settings, num_samples=texts))
    began = time.perf_counter()
    made = sum(sample.tokens.size for sample in sampler.samples(PROMPT, settings, num_samples=texts))
    return made / (time.perf_counter() - began)


def in_turn(sampler, block: int, requests: int, texts: int, length: int) -> float:
    """Tokens per second of the sampler for requests one after the other."""
    from jaxgen import GenerationConfig

    for number in range(requests + 1):
        if number == 1:  # the first one compiled
            began = time.perf_counter()
        sampler.sample(
            f"{PROMPT}{number}", GenerationConfig(length, 1.0, number % 1000, block=block), num_samples=texts
        )
    return requests * texts * length / (time.perf_counter() - began)


def resident() -> float:
    """The memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(blocks: list[int], clients: list[int] | None, requests: int) -> None:
    """Print the table."""
    sampler = make_sampler()
    print("| block | texts | clients | tokens/s | in turn | alone | first token p50 / p99 | whole p50 / p99 |")
    print("|---|---|---|---|---|---|---|---|")
    for block in blocks:
        port, stop = start(sampler, block)
        run_clients(port, max(block + 1, 17), 2 * (block + 17))  # compiles
        for texts, length in LENGTHS.items():
            turn = in_turn(sampler, block, 16 if texts == 1 else 4, texts, length)
            for number in clients or CLIENTS[texts]:
                own = alone(sampler, block, number * texts, length)
                asked = max(requests if number > 1 else requests // 8, 2 * number) // texts
                found = run_clients(port, number, max(asked, 4 * number if texts > 1 else 0), texts, texts == 1)
                pairs = [(found[f"{name}p50"], found[f"{name}p99"]) for name in ("first_", "")]
                shown = [f"{a * 1e3:,.0f} / {b * 1e3:,.0f} ms" for a, b in pairs]
                rates = f"{found['tokens_s']:,.0f} | {turn:,.0f} | {own:,.0f}"
                first = shown[0] if texts == 1 else "-"
                print(f"| {block} | {texts} x {length} | {number} | {rates} | {first} | {shown[1]} |", flush=True)
        stop()
    print("\n" + machine.line(machine.facts()))


def measure_memory(requests: int) -> None:
    """Print the memory after every tenth of the requests."""
    port, stop = start(make_sampler(), 1)
    run_clients(port, 32, 200, stream=False)
    print(f"after 200 requests: {resident():,.0f} MB")
    for part in range(10):
        run_clients(port, 32, requests // 10, stream=part % 2 == 0)
        print(f"after {200 + (part + 1) * (requests // 10):,} requests: {resident():,.0f} MB", flush=True)
    stop()


def main() -> None:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--clients", type=int, nargs="+", help="default: some numbers for each kind of request")
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--memory", type=int, help="measure memory over so many requests")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client is not None:
        found = asyncio.run(
            ask_all("127.0.0.1", given.client, given.clients[0], given.requests, given.texts, not given.whole)
        )
        print(json.dumps(found))
        return
    from jaxgen import keep_memory, offer_cores

    keep_memory()
    offer_cores()
    if given.memory:
        measure_memory(given.memory)
    else:
        measure(given.blocks, given.clients, given.requests)


if __name__ == "__main__":
    main()
