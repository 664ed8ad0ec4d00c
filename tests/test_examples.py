"""The scripts in ``examples/`` work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WORDS = ["lark", "owl", "heron", "wren", "ibis", "crow", "kite", "swift"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("autoencoder", EXAMPLES / "autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where its dataclasses look themselves up
        spec.loader.exec_module(module)
        yield module


def test_eight_words_become_vectors_and_words_again(example, quick):
    with quick():
        model, words = example.Autoencoder(hidden=24), example.pack(WORDS, 6)
        params = example.train(model, words, steps=150, batch=16, lr=0.02)
        assert example.unpack(model.apply(params, words)) == WORDS
        vectors = model.apply(params, words, method=example.Autoencoder.encode)
        # From the vectors alone, in any order and to any length.
        turned = model.apply(params, vectors[::-1], 9, method=example.Autoencoder.decode)
        assert example.unpack(turned) == WORDS[::-1]


def test_what_fills_up_a_word_is_not_read(example):
    model = example.Autoencoder(hidden=8)
    params = model.init(jax.random.key(0), example.pack(["owl"], 3))
    short, long = (model.apply(params, example.pack(["owl"], n), method=example.Autoencoder.encode) for n in (3, 8))
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_words_are_told_up_to_their_end(example):
    assert example.pack(["ab"], 4).tolist() == [[1, 2, 0, 0]]
    logits = jnp.eye(len(example.SYMBOLS))[jnp.array([[1, 2, 0, 2]])]
    assert example.unpack(logits) == ["ab"]


def test_the_words_are_the_commonest_of_pythons_documentation(example):
    words = example.common_words(50)
    assert {"the", "and", "function"} <= {*words}
    assert all(3 <= len(word) <= 9 and word.isalpha() for word in words)
