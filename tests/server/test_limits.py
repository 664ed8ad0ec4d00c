"""What the server refuses, how it ends what nobody waits for, and how it stops."""

from __future__ import annotations

import json
import socket
import threading

import httpx2 as httpx
import pytest
from serving import ENDLESS, served, wait_until

from jaxgen.cli.serve import main as serve_main
from jaxgen.server.completions import Limits


def lines(response: httpx.Response):
    return (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))


@pytest.fixture
def small(serve, tiny):
    """A server with room for one text and one that waits."""
    with serve([served(tiny)], Limits(tokens=ENDLESS), rows=1, waiting=1) as running:
        yield running


def test_a_full_queue_is_429_and_a_client_that_leaves_makes_room(small):
    body = {"prompt": "a", "max_tokens": ENDLESS, "stream": True}
    with small.http.stream("POST", "/v1/completions", json=body) as first:
        parts = lines(first)  # closing it would close the connection
        next(parts)
        queued = {}
        thread = threading.Thread(target=lambda: queued.update(r=small.post("/v1/completions", prompt="a", seed=1)))
        thread.start()
        wait_until(lambda: small.server.engine.load["waiting"] == 1)
        refused = small.post("/v1/completions", prompt="b")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "wait" in refused.json()["error"]["message"]
    thread.join(60)
    assert queued["r"].status_code == 200
    wait_until(lambda: small.server.engine.load["rows"] == 0)


def test_a_request_that_is_not_streamed_ends_when_its_client_leaves(small):
    with pytest.raises(httpx.ReadTimeout):
        small.http.post("/v1/completions", json={"prompt": "a", "max_tokens": ENDLESS}, timeout=1.0)
    wait_until(lambda: small.server.engine.load["rows"] == 0)


def test_a_stream_that_waits_ends_when_its_client_leaves(small):
    body = {"prompt": "a", "max_tokens": ENDLESS, "stream": True}
    with small.http.stream("POST", "/v1/completions", json=body) as first:
        parts = lines(first)
        next(parts)
        with pytest.raises(httpx.ReadTimeout):
            small.http.post("/v1/completions", json=body, timeout=1.0)
        wait_until(lambda: small.server.engine.load["waiting"] == 0)
        assert small.server.engine.load["rows"] == 1


def test_texts_end_at_the_deadline_of_the_request_or_the_server(serve, tiny):
    with serve([served(tiny)], Limits(tokens=ENDLESS, seconds=0.5)) as running:
        for more in ({}, {"timeout": 0.2}):
            (choice,) = running.complete(prompt="a", max_tokens=ENDLESS, **more)
            assert choice["finish_reason"] == "length"
            assert choice["receipt"]["end"] == "time"


def test_a_server_that_stops_ends_its_texts_and_answers_503(small):
    body = {"prompt": "a", "max_tokens": ENDLESS, "stream": True}
    with small.http.stream("POST", "/v1/completions", json=body) as stream:
        parts = lines(stream)
        next(parts)
        small.server.engine.close(finish=False)
        *_, last = parts
        assert last["choices"][0]["finish_reason"] == "length"
    late = small.post("/v1/completions", prompt="a")
    assert late.status_code == 503
    assert "retry-after" in late.headers


def test_an_error_in_the_model_is_a_sentence_and_the_server_goes_on(small, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr("jaxgen.inference.sampler.Sampler.read_in_chunks", fail)
        response = small.post("/v1/completions", prompt="a")
        assert response.status_code == 500
        assert "error" in response.json()
    assert small.post("/v1/completions", prompt="a").status_code == 200


def test_a_key_is_needed_where_one_is_set(serve, tiny):
    with serve([served(tiny)], api_key="secret") as running:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused = running.http.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert "key" in refused.json()["error"]["message"]
        assert running.http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert running.http.get("/health").status_code == 200
        assert running.http.get("/").status_code == 200  # the page, which asks for the key
        assert running.http.get("/static/app.js").status_code == 200
        assert running.http.get("/metrics").status_code == 401


def test_computations_that_wait_are_bounded_and_end_when_their_clients_leave(small, monkeypatch):
    begin, counted = threading.Event(), []

    def slow(body):
        begin.wait(60)
        counted.append(body.text)
        return {"object": "score"}

    monkeypatch.setattr(small.server, "score", slow)

    def ask(text):
        return small.http.post("/v1/score", json={"text": text}, timeout=60)

    threads = [threading.Thread(target=ask, args=("a",))]
    threads[0].start()
    wait_until(small.server._turn.locked)
    with pytest.raises(httpx.ReadTimeout):
        small.http.post("/v1/score", json={"text": "b"}, timeout=0.5)
    wait_until(lambda: small.server._waiting == 0)
    threads.append(threading.Thread(target=ask, args=("c",)))
    threads[1].start()
    wait_until(lambda: small.server._waiting == 1)
    refused = small.post("/v1/score", text="d")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert small.complete(prompt="a", max_tokens=3, logprobs=1)  # does not wait for them
    begin.set()
    for thread in threads:
        thread.join(60)
    assert counted == ["a", "c"]


def test_a_computation_that_waits_for_too_long_is_told_so(serve, tiny, monkeypatch):
    begin = threading.Event()
    with serve([served(tiny)], Limits(seconds=0.2)) as running:
        monkeypatch.setattr(running.server, "score", lambda body: {"waited": begin.wait(60)})
        thread = threading.Thread(target=running.post, args=("/v1/score",), kwargs={"text": "a"})
        thread.start()
        wait_until(running.server._turn.locked)
        assert running.post("/v1/score", text="b").status_code == 429
        begin.set()
        thread.join(60)


def test_a_response_that_nobody_reads_ends(serve, tiny, monkeypatch):
    monkeypatch.setattr("jaxgen.server.guard.SEND_SECONDS", 0.5)
    body = json.dumps({"prompt": "a" * 2000, "max_tokens": ENDLESS, "echo": True, "stream": True}).encode()
    # With the system's own buffers, of megabytes, the server would write for long before it waits.
    limits = Limits(tokens=ENDLESS)
    with serve([served(tiny)], limits, send_buffer=4096) as running, socket.socket() as client:
        host, port = running.url.removeprefix("http://").split(":")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: running.server.engine.load["rows"] == 1)
        wait_until(lambda: running.server.engine.load["rows"] == 0)


def test_an_error_within_a_stream_is_an_event_that_tells_nothing_of_the_server(small, monkeypatch):
    def fail(*_):
        raise RuntimeError("a secret")

    body = {"prompt": "a", "max_tokens": ENDLESS, "stream": True}
    with small.http.stream("POST", "/v1/completions", json=body) as stream:
        parts = lines(stream)
        next(parts)
        monkeypatch.setattr("jaxgen.server.completions.Completion.stream", fail)
        *_, last = parts
    assert last["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(last)
    wait_until(lambda: small.server.engine.load["rows"] == 0)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "", "file://", "http://a:99999999", "\xff"])
def test_origins_that_are_none_are_refused(server, origin):
    response = server.http.get("/v1/models", headers={b"origin": origin.encode("latin-1")})
    assert response.status_code == 403
    assert "error" in response.json()


def test_other_hosts_and_origins_are_refused(server):
    assert server.http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert server.http.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    own = server.url
    response = server.http.get("/v1/models", headers={"origin": own})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert server.http.options("/v1/models", headers={"origin": "null"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/v1/models", "/nothing"])
def test_every_response_forbids_scripts_of_other_hosts(server, path):
    headers = server.http.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_an_origin_can_be_allowed(serve, tiny):
    with serve([served(tiny)], origins=("https://example.org",)) as running:
        allowed = running.http.get("/v1/models", headers={"origin": "https://example.org"})
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        assert running.http.get("/v1/models", headers={"origin": "https://other.org"}).status_code == 403


def test_large_bodies_and_other_kinds_of_content_are_refused(serve, tiny):
    with serve([served(tiny)], max_bytes=1_000) as running:
        large = b'{"prompt": "' + b"a" * 2_000 + b'"}'
        kind = {"content-type": "application/json"}
        assert running.http.post("/v1/completions", content=large, headers=kind).status_code == 413
        pieces = running.http.post("/v1/completions", content=iter([large[:900], large[900:]]), headers=kind)
        assert pieces.status_code == 413
        # What a form of another page could send without asking.
        text = running.http.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
        assert text.status_code == 400


def test_a_body_that_does_not_arrive_is_refused(serve, tiny, monkeypatch):
    monkeypatch.setattr("jaxgen.server.guard.BODY_SECONDS", 0.3)
    with serve([served(tiny)]) as running:
        address = running.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as slow:
            slow.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            assert slow.recv(1_000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/static/../../pyproject.toml", "/v1/models/..%2f..", "/v1/states/%2e%2e"]
)
def test_no_path_of_a_request_reaches_a_file(server, path):
    response = server.http.get(path)
    assert response.status_code == 404
    assert "error" in response.json()
    assert server.http.delete("/health").status_code == 405


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--run", "missing", "--port", "0"], "missing"),
        (["--host", "no such host"], "--host"),
        (["--port", "70000"], "port"),
        (["--block", "0"], "block"),
        (["--mix", "a", "b", "--run", "c"], "--mix"),
        (["--adapt-rate", "0.1"], "--adapt-to"),
    ],
)
def test_flags_that_cannot_be_used_end_the_command(flags, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXGEN_API_KEY", raising=False)
    assert serve_main(flags) in (2, 4)
    assert word in capsys.readouterr().err


def test_a_port_in_use_is_a_sentence(server, capsys):
    port = server.url.rsplit(":", 1)[1]
    assert serve_main(["--port", port]) == 2
    assert "port" in capsys.readouterr().err
