"""``jaxgen serve`` as a process: its texts are those of the command line, and it stops as told."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.server.models import Loaded, Models, Served

ROOT = Path(__file__).parents[2]
FLAGS = "--cell gru --hidden 8 --batch-size 4 --seq-len 8 --steps 6 --eval-every 3 --sample-every 0 --devices 1"


@contextmanager
def serving(environment, *flags):
    """A server process on a free port, and a client of it."""
    command = [sys.executable, "-m", "jaxgen", "serve", "--port", "0", *map(str, flags)]
    env = environment | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"on (http://\S+)", line):
            break
    else:
        raise AssertionError("".join(said))
    rest = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    rest.start()
    with httpx.Client(base_url=found[1], timeout=300) as client:
        try:
            yield process, client, said
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)
            rest.join()
            process.stderr.close()


@pytest.fixture
def run(train, book, here):
    assert train("--data", book, "--run", "run", flags=FLAGS).code == 0
    return Path("run")


def mixed_request(pick):
    """A request, and the flags of ``sample.py`` that ask for the same."""
    body = {"prompt": pick.choice(["The ", "", "cat", "a mat\n", "birds sang " * 9]), "seed": pick.randrange(5)}
    body["max_tokens"] = pick.choice([1, 20, 33, 64, 90])
    body["temperature"] = pick.choice([0.0, 0.5, 0.8, 1.0, 1.4])
    body["sample_index"] = pick.choice([0, 0, 1, 6, 77])
    flags = {"prompt": "--prompt", "seed": "--seed", "max_tokens": "--length", "temperature": "--temperature"}
    more = {"top_k": 5, "top_p": 0.8, "min_p": 0.05, "typical_p": 0.9, "repetition_penalty": 1.3,
            "presence_penalty": 0.4, "frequency_penalty": 0.2}  # fmt: skip
    for name in pick.sample(sorted(more), pick.choice([0, 0, 1, 2, 4])):
        body[name] = more[name]
    if pick.random() < 0.3:
        body["stop"] = ["at"]
    flags |= {name: "--" + name.replace("_", "-") for name in (*more, "stop", "sample_index")}
    words = [word for name, value in body.items() for word in (flags[name], *(value if name == "stop" else [value]))]
    return body, words


@pytest.mark.runs
@pytest.mark.parametrize(("block", "number"), [(1, 120), (4, 80)])
def test_mixed_requests_at_random_moments_are_the_texts_of_the_command_line(
    run, sample, replay, quick_environment, block, number
):
    pick = random.Random(block)
    requests = [mixed_request(pick) for _ in range(number)]
    done = {}
    with serving(quick_environment, "--run", run, "--block", block) as (_, client, _):

        def ask(mine, rng):
            for i in mine:
                time.sleep(rng.expovariate(100))
                stream = rng.random() < 0.5
                response = client.post("/v1/completions", json={**requests[i][0], "stream": stream, "logprobs": 0})
                assert response.status_code == 200, response.text
                lines = response.text.splitlines()
                parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
                done[i] = [c for part in parts or [response.json()] for c in part["choices"]]

        threads = [
            threading.Thread(target=ask, args=(range(k, number, 8), random.Random(pick.random()))) for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(done) == number
    for i, (_, words) in enumerate(requests):
        alone = sample("--run", run, "--json", *(["--block", block] if block > 1 else []), *words)
        assert alone.code == 0, alone.err
        expected = json.loads(alone.out)
        receipt = done[i][-1]["receipt"]
        assert "".join(choice["text"] for choice in done[i]) == expected["text"]
        for name in ("tokens", "logp", "text", "end", "settings", "checkpoint", "condition", "index"):
            assert receipt.get(name) == expected.get(name), name
    Path("receipts.jsonl").write_text("".join(json.dumps(done[i][-1]["receipt"]) + "\n" for i in range(5)))
    assert replay("receipts.jsonl", "--run", run).code == 0


@pytest.mark.runs
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("shutdown", ["finish", "cancel"])
def test_a_signal_finishes_or_ends_what_runs(run, quick_environment, number, shutdown):
    length = 3_000 if shutdown == "finish" else 10_000_000
    flags = "--run", run, "--shutdown", shutdown, "--max-tokens", 10_000_000, "--timeout", 600
    body = {"prompt": "a", "max_tokens": length, "stream": True}
    with serving(quick_environment, *flags) as (process, client, said):
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            next(lines)
            process.send_signal(number)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last[6:])["choices"][0]["receipt"]["end"] == ("length" if shutdown == "finish" else "time")
        assert process.wait(60) == 128 + number
    assert "Traceback" not in "".join(said)


@pytest.mark.runs
def test_a_second_signal_ends_texts_and_the_server_at_once(run, quick_environment):
    flags = "--run", run, "--max-tokens", 10_000_000, "--timeout", 600, "--grace", 600
    body = {"prompt": "a", "max_tokens": 10_000_000}
    with serving(quick_environment, *flags) as (process, client, said):
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            next(lines)
            process.send_signal(signal.SIGINT)
            for _ in range(5):
                next(lines)  # it goes on
            process.send_signal(signal.SIGINT)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last[6:])["choices"][0]["receipt"]["end"] == "time"
        assert process.wait(60) == 128 + signal.SIGINT
    assert "Traceback" not in "".join(said)


@pytest.mark.runs
def test_mixtures_and_adapted_weights_are_served_with_their_receipts(run, train, book, sample, quick_environment):
    assert train("--data", book, "--run", "other", "--seed", 1, flags=FLAGS).code == 0
    Path("long.txt").write_text("the cat sat on a mat\n" * 10)
    words = ["--prompt", "The", "--length", "30", "--seed", "4", "--temperature", "1", "--json"]
    body = {"prompt": "The", "max_tokens": 30, "seed": 4}
    adapted = ("--run", os.path.abspath("run"), "--adapt-to", "long.txt", "--adapt-rate", "0.1")
    for flags in (("--mix", "run:1", "other:3"), adapted):
        with serving(quick_environment, *flags) as (_, client, _):
            (choice,) = client.post("/v1/completions", json=body).json()["choices"]
        expected = json.loads(sample(*flags, *words).out)
        # Processes that tests start compile with other flags, which receipts record.
        assert {**choice["receipt"], "environment": {}} == {**expected, "environment": {}}


@pytest.mark.runs
def test_a_run_is_loaded_anew_when_its_best_checkpoint_changes(run, train, here):
    from jaxgen.inference.engine import Engine
    from jaxgen.inference.generation_config import GenerationConfig
    from jaxgen.inference.sampler import Sampler

    served = Served.of("run", "language", lambda: Loaded(Sampler.load(run)), [run])
    said = []
    with Engine() as engine:
        models = Models([served], engine, 0, said.append)
        models.reload()
        assert not said
        first = served.current
        settings = GenerationConfig(length=20)
        list(engine.samples(first.sampler, "The ", settings))
        assert train("--run", run, "--resume", "must", "--steps", 30).code == 0
        models.reload()
        assert len(said) == 1
        assert served.current.checkpoint != first.checkpoint
        assert served.current.checkpoint == CheckpointStore(run / "checkpoints").digest(
            CheckpointStore(run / "checkpoints").best()
        )
        (fresh,) = engine.samples(served.current.sampler, "The ", settings)
        assert fresh.text == Sampler.load(run).sample("The ", settings)[0]


@pytest.mark.runs
def test_a_run_that_is_deleted_is_served_on_and_loaded_anew_when_it_is_back(run):
    from jaxgen.inference.engine import Engine
    from jaxgen.inference.sampler import Sampler

    served = Served.of("run", "language", lambda: Loaded(Sampler.load(run)), [run])
    first, said = served.current, list[str]()
    with Engine() as engine:
        models = Models([served], engine, 0, said.append)
        run.rename("away")
        for _ in range(3):
            models.reload()
        (run / "checkpoints").mkdir(parents=True)
        models.reload()
        assert served.current is first
        assert len(said) == 2  # each problem once
        shutil.rmtree(run)
        Path("away").rename(run)
        models.reload()
        assert len(said) == 2
        assert not served.problem


@pytest.mark.runs
def test_several_runs_are_served_by_name(run, train, book, quick_environment):
    assert train("--data", book, "--run", "folder/other", "--seed", 1, flags=FLAGS).code == 0
    with serving(quick_environment, "--run", run, "folder/other") as (_, client, _):
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["run", "other"]
        body = {"prompt": "The ", "seed": 0}
        assert client.post("/v1/completions", json=body).status_code == 400
        texts = [client.post("/v1/completions", json={**body, "model": m}).json()["choices"] for m in ("run", "other")]
        assert texts[0][0]["text"] != texts[1][0]["text"]
