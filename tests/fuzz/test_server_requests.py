"""Random requests, made of the schema that the server publishes: none ends with a status of 500 or more."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from builders import tiny_sampler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import run_server, served

from jaxgen.server.completions import Limits
from jaxgen.server.guard import Guard, Refusal
from jaxgen.tokenizers import ByteTokenizer

#: Texts that the model can read, and others.
TEXTS = (
    st.text("abcdefgh \n", max_size=40) | st.text(max_size=20) | st.text(st.characters(categories=["Cs"]), max_size=2)
)
ODD = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 2**31, 2**32, 2**63, 10**400, -1, 0])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PATHS = ["/v1/completions", "/v1/score", "/v1/inspect", "/v1/states", "/v1/predict"]


def values(schema: dict[str, Any], parts: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a schema, which are junk now and then."""
    if "$ref" in schema:
        return values(parts[schema["$ref"].rsplit("/", 1)[1]], parts, depth)
    if "anyOf" in schema:
        return st.one_of([values(each, parts, depth) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    found: st.SearchStrategy[Any]
    match schema.get("type"):
        case "object":
            fields = {name: values(each, parts, depth + 1) for name, each in schema.get("properties", {}).items()}
            needed = {name: fields.pop(name) for name in schema.get("required", [])}
            found = st.fixed_dictionaries(needed, optional=fields)
            if not fields and isinstance(schema.get("additionalProperties"), dict):
                keys = st.integers(0, 14).map(str) | TEXTS
                found = st.dictionaries(keys, values(schema["additionalProperties"], parts, depth + 1), max_size=4)
        case "array":
            found = st.lists(values(schema["items"], parts, depth + 1), min_size=schema.get("minItems", 0), max_size=3)
        case "integer":
            least, most = schema.get("minimum", -2), schema.get("maximum", schema.get("exclusiveMaximum", 60))
            found = st.integers(least, min(most, least + 60)) | st.integers(least, most)
        case "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", -2.0))
            found = st.floats(least, 2.0) | st.floats(least, allow_nan=False)
        case "boolean":
            found = st.booleans()
        case "null":
            found = st.none()
        case _:
            found = TEXTS
    if depth == 0:
        return found
    return st.integers(0, 39).flatmap(lambda dice: JUNK if dice == 0 else found)


@pytest.fixture(scope="module", params=["char", "byte"])
def server(request):
    sampler = tiny_sampler(tokenizer=ByteTokenizer() if request.param == "byte" else None)
    with run_server([served(sampler)], Limits(prompt=500, texts=6, tokens=40, seconds=60)) as running:
        yield running


def encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=True).encode()


@pytest.mark.parametrize("number", [150, pytest.param(5_000, marks=pytest.mark.slow)])
def test_no_request_ends_with_an_error_of_the_server(server, number):
    schema = server.http.get("/openapi.json").json()
    parts = schema["components"]["schemas"]
    bodies = {}
    for path in PATHS:
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        bodies[path] = values(content, parts).map(encoded) | JUNK.map(encoded) | st.binary(max_size=60)
    requests = st.sampled_from(PATHS).flatmap(lambda path: st.tuples(st.just(path), bodies[path]))
    statuses = set()

    @settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
    @given(requests)
    def ask(request):
        path, body = request
        response = server.http.post(path, content=body, headers={"content-type": "application/json"})
        statuses.add(response.status_code)
        assert response.status_code < 500, (path, body, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    ask()
    assert {200, 400} <= statuses
    assert server.complete(prompt="ab", max_tokens=3)
    assert server.server.engine.load["waiting"] == server.server.engine.load["rows"] == 0


HEADERS = st.sampled_from([b"host", b"origin", b"authorization", b"content-length"])
VALUES = st.binary(max_size=20) | st.from_regex(rb"(https?://)?[\[\]:/@?#a1\xff.]{0,12}", fullmatch=True)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(HEADERS, VALUES), max_size=5), st.booleans(), st.sampled_from(["GET", "OPTIONS"]))
def test_no_header_is_an_error_of_the_server(headers, local, method):
    guard = Guard(None, print, api_key="k\u00e9y", local=local, origins=("http://a",), max_bytes=100)
    with suppress(Refusal):
        guard._check_headers({"headers": headers, "method": method, "path": "/v1/models"})
