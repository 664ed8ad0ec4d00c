"""Byte level: bytes that are not UTF-8 in prompts, texts and receipts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.inference.beam_search import beam
from jaxgen.inference.chat import ChatSession
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.receipts import exact_text, read_receipt, receipt, replay
from jaxgen.inference.sampler import Sampler
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import ByteTokenizer

DRAWN = GenerationConfig(length=40, temperature=1.0)
PROMPT = b"\xef\xbb\xbf\xffa\r\n".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def sampler():
    """A model of bytes with random weights, which draws many bytes that are not UTF-8."""
    task = LanguageTask.build(vocab_size=259, cell="elman", cell_options={}, hidden=8, layers=1)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    return Sampler(task, ByteTokenizer(), jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes))


def raw(text):
    return text.encode("utf-8", "surrogateescape")


def test_a_prompt_is_read_byte_by_byte(sampler):
    assert sampler.tokenizer.decode_bytes(sampler.read(PROMPT).tokens) == raw(PROMPT)


@pytest.mark.runs
def test_texts_have_replacement_characters_unless_they_are_to_be_exact(sampler):
    (drawn,) = sampler.samples(PROMPT, DRAWN)
    (exact,) = sampler.exact().samples(PROMPT, DRAWN)
    np.testing.assert_array_equal(drawn.tokens, exact.tokens)
    assert raw(exact.text) == sampler.tokenizer.decode_bytes(drawn.tokens)
    assert drawn.text == raw(exact.text).decode("utf-8", "replace")
    assert "\ufffd" in drawn.text
    (found,) = beam(sampler.exact(), PROMPT, width=2, length=4)
    assert raw(found.text) == sampler.tokenizer.decode_bytes(found.tokens)


def test_a_chat_continues_from_exactly_what_was_drawn(sampler):
    session = ChatSession(sampler.exact(), DRAWN)
    answer = "".join(chunk.text for chunk in session.send(PROMPT))
    assert [answer] == sampler.exact().sample(PROMPT, DRAWN)
    assert raw(session.text) == raw(PROMPT) + raw(answer)


@pytest.mark.parametrize("stop", [(), ("\udc9f", "\udcb0", "\udc80", "\udcff")])
def test_a_receipt_is_json_with_the_exact_bytes_and_can_be_replayed(sampler, stop):
    settings = GenerationConfig(length=40, temperature=1.0, stop=stop)
    (drawn,) = sampler.exact().samples(PROMPT, settings)
    value = json.loads(json.dumps(receipt(sampler, settings, drawn, prompt=PROMPT, unk="error")))
    assert bytes.fromhex(value["prompt_bytes"]) == raw(PROMPT)
    assert bytes.fromhex(value["text_bytes"]) == raw(drawn.text)
    assert replay(sampler, read_receipt(value)).identical
    assert not replay(sampler, read_receipt(value | {"text": value["text"] + "x"})).identical


def test_text_in_utf8_has_no_bytes_beside_it():
    assert exact_text("text", "é\ufffd\0") == {"text": "é\ufffd\0"}
    assert exact_text("text", "a\udcff") == {"text": "a\ufffd", "text_bytes": "61ff"}
