"""Completions: the OpenAI client reads them, and their texts are those of the sampler."""

from __future__ import annotations

import json

import jax
import numpy as np
import openai
import pytest
from builders import tiny_sampler
from serving import served

from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.receipts import read_receipt, replay
from jaxgen.inference.scorer import Scorer
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
from jaxgen.sampling.transforms.temperature import Linear
from jaxgen.tokenizers import ByteTokenizer


def test_the_openai_client_gets_the_texts_of_the_sampler(server, tiny):
    done = server.openai.completions.create(
        model="tiny", prompt=["ab", "hg"], max_tokens=40, temperature=0.7, top_p=0.9, n=2, seed=3, stop=["fa"],
        logit_bias={"4": -100, "5": 1.5}, presence_penalty=0.3, frequency_penalty=0.1,
        extra_body={"top_k": 6, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1, "sample_index": 2},
    )  # fmt: skip
    penalties = RepetitionPenalty(1.1), PresencePenalty(0.3), FrequencyPenalty(0.1)
    transforms = Forbid((4,)), Bias(((5, 1.5),)), *penalties, TopK(6), TopP(0.9), MinP(0.01), TypicalP(0.95)
    settings = GenerationConfig(40, 0.7, 3, transforms, stop=("fa",))
    expected = [list(tiny.samples(prompt, settings, num_samples=2, first=2)) for prompt in ("ab", "hg")]
    flat = [sample for samples in expected for sample in samples]
    assert [choice.text for choice in done.choices] == [sample.text for sample in flat]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in done.choices} <= {"stop", "length"}
    assert done.usage.prompt_tokens == 4
    assert done.usage.completion_tokens == sum(sample.tokens.size for sample in flat)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_a_stream_has_the_same_text_in_pieces(server, tiny):
    settings = {"model": "tiny", "prompt": "ab", "max_tokens": 100, "seed": 5, "n": 2}
    parts = list(
        server.openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}, logprobs=2)
    )
    texts = ["", ""]
    for part in parts:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == tiny.sample("ab", GenerationConfig(100, 1.0, 5), num_samples=2)
    assert len(parts) >= 3
    assert parts[-1].usage.completion_tokens == 200
    ends = [choice.finish_reason for part in parts for choice in part.choices]
    assert ends.count("length") == 2
    assert len({part.id for part in parts}) == 1


def test_receipts_can_be_replayed(server, tiny):
    whole = server.complete(prompt="ab", max_tokens=20, n=2)
    streamed = [
        choice
        for line in server.post("/v1/completions", prompt="ab", max_tokens=40, stream=True).text.splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
    ]
    receipts = [each["receipt"] for each in (*whole, *streamed) if "receipt" in each]
    assert len(receipts) == 3
    for receipt in receipts:
        assert receipt["settings"]["block"] == 1
        assert replay(tiny, read_receipt(receipt)).identical


def test_without_a_seed_texts_differ_and_with_one_they_do_not(server):
    free = {server.complete(prompt="a", max_tokens=40)[0]["text"] for _ in range(3)}
    fixed = {server.complete(prompt="a", max_tokens=40, seed=0)[0]["text"] for _ in range(3)}
    assert len(free) == 3
    assert len(fixed) == 1


def test_log_probabilities_are_those_of_the_model(server, tiny):
    (choice,) = server.complete(prompt="ab", max_tokens=70, seed=1, logprobs=3, temperature=0.5)
    found = choice["logprobs"]
    scored = Scorer(tiny, top=3).per_token(choice["text"], "ab")
    assert "".join(found["tokens"]) == choice["text"]
    np.testing.assert_allclose(found["token_logprobs"], scored.logp, atol=1e-4)
    for best, logp in zip(found["top_logprobs"], scored.top_logp):
        np.testing.assert_allclose(sorted(best.values(), reverse=True), logp, atol=1e-4)
    assert found["text_offset"] == list(range(70))


def test_a_prompt_is_echoed_with_its_log_probabilities(server, tiny):
    (choice,) = server.complete(prompt="abc", max_tokens=0, echo=True, logprobs=1)
    assert choice["text"] == "abc"
    assert choice["logprobs"]["token_logprobs"][0] is None
    following = [np.asarray(jax.nn.log_softmax(tiny.read(text).logits[0])) for text in ("a", "ab")]
    expected = [each[i] for each, i in zip(following, tiny.tokenizer.encode("bc"))]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"][1:], expected, atol=1e-5)
    (longer,) = server.complete(prompt="abc", max_tokens=5, seed=0, echo=True, logprobs=0)
    assert longer["text"] == "abc" + tiny.sample("abc", GenerationConfig(5, 1.0))[0]
    assert len(longer["logprobs"]["tokens"]) == 8
    assert longer["logprobs"]["top_logprobs"] is None
    assert longer["logprobs"]["text_offset"] == list(range(8))


def test_a_prompt_after_a_state_is_echoed_with_its_log_probabilities_there(server, tiny):
    state = server.post("/v1/states", prompt="hgf").json()["id"]
    (choice,) = server.complete(state=state, prompt="abc", max_tokens=2, seed=0, echo=True, logprobs=13)
    following = [jax.nn.log_softmax(tiny.read("hgf" + text).logits[0]) for text in ("", "a", "ab")]
    found = choice["logprobs"]
    expected = [float(each[i]) for each, i in zip(following, tiny.tokenizer.encode("abc"))]
    np.testing.assert_allclose(found["token_logprobs"][:3], expected, atol=1e-5)
    assert [best[token] for best, token in zip(found["top_logprobs"], found["tokens"])] == pytest.approx(
        found["token_logprobs"], abs=1e-4
    )


def test_the_best_of_several_texts_is_the_most_probable(server, tiny):
    (choice,) = server.complete(prompt="ab", max_tokens=10, seed=2, best_of=5)
    (best,) = tiny.best("ab", GenerationConfig(10, 1.0, 2), of=5)
    assert choice["text"] == best.text


def test_temperatures_can_be_schedules(server, tiny):
    (choice,) = server.complete(prompt="ab", max_tokens=30, seed=2, temperature={"start": 1.5, "end": 0.2, "steps": 9})
    assert choice["text"] == tiny.sample("ab", GenerationConfig(30, Linear(1.5, 0.2, 9), 2))[0]
    greedy, none = (server.complete(prompt="ab", max_tokens=30, temperature=0.0, seed=i)[0]["text"] for i in (1, 2))
    assert greedy == none == tiny.sample("ab", GenerationConfig(30, 0.0))[0]


def test_models_are_listed(server):
    assert [model.id for model in server.openai.models.list()] == ["tiny"]
    assert server.openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("other")
    assert server.http.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "other", "prompt": "a"}, 404, "other"),
        ({"prompt": "xyz"}, 400, "vocabulary"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 10**9}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens"),
        ({"prompt": "a", "n": 17}, 400, "texts"),
        ({"prompt": "a" * 3000}, 400, "characters"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a", "temperature": 1e300}, 400, "temperature"),
        ({"prompt": "a", "top_p": 2}, 400, "top-p"),
        ({"prompt": "a", "top_k": 0}, 400, "top_k"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "a", "seed": 2**32}, 400, "seed"),
        ({"prompt": "a", "stop": [""]}, 400, "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"99": 1}}, 400, "token"),
        ({"prompt": "a", "logit_bias": {str(i): -100 for i in range(13)}}, 400, "token"),
        ({"prompt": "a", "logprobs": 1000}, 400, "logprobs"),
        ({"prompt": "a", "state": "state-0"}, 404, "state"),
        ({"prompt": "a", "label": "x"}, 400, "label"),
        ({"prompt": "a", "unknown_field": 1}, 400, "unknown_field"),
        ({"prompt": "a", "best_of": 3, "stream": True}, 400, "best_of"),
        ({"prompt": "a", "timeout": 0}, 400, "timeout"),
        ({"prompt": "a", "n": 16, "max_tokens": 2000, "logprobs": 100}, 400, "probabilities"),
        ({"prompt": ["a" * 1000] * 2, "n": 8, "logprobs": 100, "echo": True}, 400, "probabilities"),
        ({"prompt": "a", "stop": ["b"] * 65}, 400, "64"),
        ({"prompt": "a", "temperature": {"start": 1, "end": 1}}, 400, "temperature"),
        ({"prompt": "a", "stream_options": {}}, 400, "stream"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(server, body, status, word):
    response = server.post("/v1/completions", **body)
    assert response.status_code == status, response.text
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000, b'{"prompt": "a", "logit_bias": {"3": NaN}}', b'{"prompt": "a\\u0000"}',
        b'{"prompt": "a", "max_tokens": true}', b'{"a": ' * 50_000,
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests_are_refused(server, body):
    response = server.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert message.endswith(".")
    assert " " in message
    assert "constrained" not in message


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_that_are_no_text_are_shown_and_kept(serve, stream):
    sampler = tiny_sampler(tokenizer=ByteTokenizer())
    (drawn,) = sampler.exact().samples("a", GenerationConfig(50, 1.0))
    raw = drawn.text.encode("utf-8", "surrogateescape")
    assert raw.decode("utf-8", "replace") != drawn.text
    with serve([served(sampler)]) as running:
        body = {"prompt": "a", "max_tokens": 50, "seed": 0, "logprobs": 3, "echo": True}
        response = running.post("/v1/completions", **body, stream=stream)
        assert response.status_code == 200
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [choice for part in lines or [response.text] for choice in json.loads(part)["choices"]]
        parts = [bytes.fromhex(c["text_bytes"]) if "text_bytes" in c else c["text"].encode() for c in choices]
        assert b"".join(parts) == b"a" + raw
        assert choices[-1]["receipt"]["text_bytes"] == raw.hex()
        assert running.post("/v1/score", text="a\u00e9", top=5).status_code == 200
        assert running.post("/v1/inspect", text="\u00e9", top=50, units=["0"]).status_code == 200
