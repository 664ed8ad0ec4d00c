"""Beam search through the whole sampler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.beam_search import beam
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.sampling.transforms import Force, MinLength, NoRepeatNgram, RepetitionPenalty
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, PAD, UNK, CharTokenizer

TOKENIZER = CharTokenizer.train(["abcd\n"])
V, LENGTH = TOKENIZER.vocab_size, 8
WIDE = {"width": 4, "length": LENGTH, "keep": 3}


class CountingTask:
    """The language task, counting how often its decoding functions are traced."""

    def __init__(self, task):
        self.task, self.traces = task, 0
        self.prepare, self.initial_carry = task.prepare, task.initial_carry

    def prefill(self, *args):
        self.traces += 1
        return self.task.prefill(*args)

    def step(self, *args):
        self.traces += 1
        return self.task.step(*args)


@pytest.fixture(scope="module")
def task():
    return CountingTask(LanguageTask.build(vocab_size=V, cell="lstm", cell_options={}, hidden=8, layers=1))


@pytest.fixture(scope="module")
def params(task):
    normal = np.random.default_rng(3).normal
    shapes = jax.eval_shape(task.task.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def running(task, params):
    return Sampler(task, TOKENIZER, params)


@pytest.fixture(scope="module")
def documents(task, params):
    return Sampler(task, TOKENIZER, params, documents=True)


def test_a_text_of_running_text_has_the_whole_length_and_no_special_token(running):
    found = beam(running, "ab", **WIDE)
    assert len(found) == 3
    for hypothesis in found:
        assert hypothesis.tokens.size == LENGTH == len(hypothesis.text)
        assert not {PAD, UNK, EOS} & set(hypothesis.tokens.tolist())
        assert hypothesis.end == "length"
        assert hypothesis.text == TOKENIZER.decode(hypothesis.tokens)


def test_one_beam_is_the_greedy_sample(running, documents):
    for sampler in (running, documents):
        (found,) = beam(sampler, "ab", width=1, length=LENGTH)
        (sample,) = sampler.samples("ab", GenerationConfig(length=LENGTH, temperature=0))
        assert (found.text, found.end) == (sample.text, sample.end)
        np.testing.assert_array_equal(found.tokens, sample.tokens)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_scores_are_those_of_the_model_without_what_is_never_drawn_and_fall(documents, alpha):
    found = beam(documents, "ab", length_penalty=alpha, **WIDE)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert any(h.end == ("length" if alpha else "eos") for h in found), "choose another seed"
    for hypothesis in found:
        state, total = documents.read("ab"), 0.0
        logits = state.logits[0]
        for token in hypothesis.tokens:
            total += jax.nn.log_softmax(logits.at[jnp.array([PAD, UNK])].set(-jnp.inf))[token]
            state, logits = documents.step(state, int(token))
        np.testing.assert_allclose(hypothesis.logp, total, rtol=1e-4)
        np.testing.assert_allclose(hypothesis.score, total / hypothesis.tokens.size**alpha, rtol=1e-4)
        assert (hypothesis.tokens[-1] == EOS) == (hypothesis.end == "eos")
        assert EOS not in hypothesis.tokens[:-1]


def test_a_state_is_continued_as_the_prompt_that_made_it(running):
    whole, continued = beam(running, "abc", **WIDE), beam(running, "c", state=running.read("ab"), **WIDE)
    assert [h.text for h in whole] == [h.text for h in continued]


def test_transforms_act_on_every_beam(documents):
    forced = tuple(TOKENIZER.encode("da").tolist())
    found = beam(documents, "ab", transforms=(MinLength(4), Force(forced)), **WIDE)
    assert all(h.text.startswith("da") and h.tokens.size >= 4 for h in found)


def test_fewer_texts_come_back_where_fewer_are_possible(documents):
    forced = (*TOKENIZER.encode("da").tolist(), EOS)
    (only,) = beam(documents, "ab", transforms=(MinLength(0), Force(forced)), **WIDE)
    assert (only.text, only.end, only.logp) == ("da", "eos", 0.0)


def test_no_other_prompt_or_length_penalty_is_compiled_for(task, running):
    beam(running, "ab", **WIDE)
    before = task.traces
    beam(running, "dcba" * 30, length_penalty=-2.0, **WIDE)
    assert task.traces == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 0}, "1 to 1,024"),
        ({"length": 10**9}, "1 to 100,000"),
        ({"keep": 5}, "1 to 4"),
        ({"length_penalty": float("nan")}, "-5 to 5"),
        ({"length_penalty": 5.1}, "5.1"),
        ({"transforms": (RepetitionPenalty(1.2),)}, "RepetitionPenalty"),
        ({"transforms": (NoRepeatNgram(3),)}, "NoRepeatNgram"),
        ({"transforms": (Force((V,)),)}, "Force"),
        ({"prompt": "xyz"}, "'x', 'y', 'z'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_compiled(params, options, sentence):
    fresh = CountingTask(LanguageTask.build(vocab_size=V, cell="lstm", cell_options={}, hidden=8, layers=1))
    with pytest.raises(UsageError, match=sentence):
        beam(Sampler(fresh, TOKENIZER, params), **WIDE | options)
    assert fresh.traces == 0
