"""Samples under a pattern match it, with the model's probabilities among the tokens that can complete it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regex

from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.sampling.transforms import Forbid, Regex, WordsFrom
from jaxgen.sampling.transforms.base import Last, chain
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, PAD, UNK, CharTokenizer, WordTokenizer

TEXT = "The cat sees the dog.\nthe dog sees.\nA dog sees 12 cats!  the dog bites 7\n" * 2
PATTERNS = ["[A-Z][a-z]+( [a-z]+)*[.!]", r"(the|dog|cat| )+", r"\d{1,3}|the", "(?i)[a-z]?"]


def build(tokenizer, documents):
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, cell="elman", cell_options={}, hidden=8, layers=1)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)
    return Sampler(task, tokenizer, params, documents=documents)


@pytest.fixture(scope="module")
def samplers():
    chars, words = CharTokenizer.train([TEXT]), WordTokenizer.train([TEXT], min_count=1)
    return {"chars, documents": build(chars, True), "words, running text": build(words, False)}


@pytest.mark.parametrize("name", ["chars, documents", "words, running text"])
def test_every_sample_matches_whatever_else_is_asked(samplers, name):
    for pattern in PATTERNS:
        for length in (40, 9):
            settings = GenerationConfig(length, 1.0, transforms=(Regex(pattern),))
            for text in samplers[name].sample("the dog", settings, num_samples=10):
                assert re.fullmatch(pattern, text), (pattern, length, text)


def test_the_space_at_the_end_of_a_prompt_is_before_the_match(samplers):
    settings = GenerationConfig(6, 1.0, transforms=(Regex("[a-z]+"),))
    texts = samplers["words, running text"].sample("the ", settings, num_samples=10)
    assert all(re.fullmatch("[a-z]+", text) for text in texts)
    assert len(set(texts)) > 1


def test_words_are_those_of_the_list(samplers):
    settings = GenerationConfig(30, 1.0, transforms=(WordsFrom(("the", "dog", "7")),))
    for text in samplers["chars, documents"].sample("", settings, num_samples=10):
        assert {*re.findall(r"\w+", text)} <= {"the", "dog", "7"}


def test_a_forbidden_token_is_not_needed_to_complete_a_match(samplers):
    sampler = samplers["chars, documents"]
    (x,) = sampler.tokenizer.encode("c").tolist()
    settings = GenerationConfig(9, 1.0, transforms=(Forbid((x,)), Regex("(th|s)(e|c|ec)")))
    assert {*sampler.sample("", settings, num_samples=20)} <= {"the", "se"}
    with pytest.raises(UsageError, match="No text"):
        sampler.sample("", GenerationConfig(9, 1.0, transforms=(Forbid((x,)), Regex("cat"))))


def test_probabilities_are_those_of_the_model_among_what_can_be_completed(samplers):
    sampler, pattern = samplers["chars, documents"], "(the|cat)s?"
    chosen = sampler.chain(GenerationConfig(9, 1.0, transforms=(Regex(pattern),)))
    states = chosen.init(sampler.context(chosen, 1, length=9))
    state, last, text = sampler.read(""), Last.none(1), ""
    for t, char in enumerate("cats"):
        states, logits = chosen.update(states, state.logits, last)
        pieces = [sampler.tokenizer.decode([i]) for i in range(sampler.tokenizer.vocab_size)]
        left = np.array([i not in (PAD, UNK, EOS) and bool(regex.fullmatch(pattern, text + piece, partial=True))
                         for i, piece in enumerate(pieces)])  # fmt: skip
        left[EOS] = re.fullmatch(pattern, text) is not None
        p = np.where(left, np.exp(np.asarray(state.logits[0], np.float64)), 0)
        np.testing.assert_allclose(jax.nn.softmax(logits[0]), p / p.sum(), rtol=1e-5)
        (token,) = sampler.tokenizer.encode(char)
        last, text = Last(jnp.int32(t + 1), jnp.full(1, token, jnp.int32)), text + char
        state = sampler.read_tokens([token], state)


def test_a_text_that_runs_on_ends_with_the_probability_of_leaving_the_pattern(samplers):
    sampler, transform = samplers["words, running text"], Regex("( [a-z]+)+")
    chosen = chain(Forbid((PAD, UNK)), transform)
    states = chosen.init(sampler.context(chosen, 1))
    state = sampler.read("the")
    (dog,) = sampler.tokenizer.encode(" dog")
    states, before = chosen.update(states, state.logits, Last.none(1))
    assert before[0, EOS] == -np.inf
    state = sampler.read_tokens([dog], state)
    _, after = chosen.update(states, state.logits, Last(jnp.int32(1), jnp.full(1, dog, jnp.int32)))
    # A single space is inside too: a word without a space can follow it.
    forms = re.compile("( [a-z]+)+|[a-z]+| ")
    inside = np.array([forms.fullmatch(piece.decode()) is not None for piece in sampler.tokenizer.pieces])
    inside[[PAD, UNK, EOS]] = False
    p = np.exp(np.asarray(state.logits[0], np.float64))
    p[[PAD, UNK, EOS]] = 0
    expected = np.where(inside, p, 0)
    expected[EOS] = p[~inside].sum()
    np.testing.assert_allclose(jax.nn.softmax(after[0]), expected / p.sum(), rtol=1e-5, atol=1e-9)


def test_a_length_in_which_nothing_matches_is_refused(samplers):
    with pytest.raises(UsageError, match="--length"):
        samplers["chars, documents"].sample("", GenerationConfig(4, 1.0, transforms=(Regex("[a-z]{5}"),)))
