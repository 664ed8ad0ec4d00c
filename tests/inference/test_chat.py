"""A chat session: every answer continues the text shown, and every step can be undone exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.chat import ChatSession, _complete_characters, _shown_tokens, continuations
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.text_stream import Chunk
from jaxgen.sampling.transforms import Force
from jaxgen.sampling.transforms.constraints import Forbid
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, PAD, UNK, ByteTokenizer, CharTokenizer, Tokenizer

TOKENIZER = CharTokenizer.train(["abcdefgh \n"])
V = TOKENIZER.vocab_size
WARM = GenerationConfig(length=12, temperature=1.0, seed=11)
GREEDY = GenerationConfig(length=12, temperature=0.0)


@pytest.fixture(scope="module")
def params():
    """Random weights, large enough that what was read matters for what is drawn."""
    task = LanguageTask.build(vocab_size=V, cell="elman", cell_options={}, hidden=8, layers=2)
    normal = np.random.default_rng(0).normal
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return task, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def sampler(params):
    """Of running text."""
    return Sampler(params[0], TOKENIZER, params[1])


@pytest.fixture(scope="module")
def documents(params):
    """Of texts that end."""
    return Sampler(params[0], TOKENIZER, params[1], documents=True)


def text(pieces):
    return "".join(piece.text for piece in pieces)


def same(a, b):
    """Whether two states have the same bits."""
    return all(np.array_equal(x, y) for x, y in zip(*(jax.tree.leaves((s.carry, s.logits, s.tokens)) for s in (a, b))))


def test_the_first_answer_is_what_the_sampler_draws_alone(sampler):
    assert text(ChatSession(sampler, WARM).send("abc")) == sampler.sample("abc", WARM)[0]


def test_the_state_is_that_of_all_the_text_read_at_once(sampler):
    talk = ChatSession(sampler, WARM)
    spoken = "abc" + text(talk.send("abc")) + "de f" + text(talk.send("de f")) + text(talk.send())
    whole = sampler.read(spoken)
    assert talk.text == spoken
    assert talk.state.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_allclose(talk.state.logits, whole.logits, atol=1e-5)


def test_answers_to_nothing_are_one_greedy_text(sampler):
    talk = ChatSession(sampler, GREEDY)
    parts = [text(talk.send(line)) for line in ("abc", "", "")]
    assert "".join(parts) == sampler.sample("abc", replace(GREEDY, length=36))[0]


def test_answer_k_is_sample_k(sampler):
    talk = ChatSession(sampler, WARM)
    text(talk.send("abc"))
    state = talk.state
    assert text(talk.send("d")) == sampler.sample("d", WARM, first=1, state=state)[0]
    assert talk.number == 2


def test_undo_brings_back_the_state_and_then_the_same_answer(sampler):
    talk = ChatSession(sampler, WARM)
    text(talk.send("abc"))
    before = talk.state
    answer = text(talk.send("d"))
    talk.undo()
    assert same(talk.state, before)
    assert text(talk.send("d")) == answer
    talk.undo()
    talk.undo()
    assert (talk.state, talk.text, talk.number) == (None, "", 0)
    with pytest.raises(UsageError, match="nothing"):
        talk.undo()


def test_again_draws_the_next_sample_in_place_of_the_answer_and_undo_brings_that_back(sampler):
    talk = ChatSession(sampler, WARM)
    first = text(talk.send("abc"))
    state = talk.state
    second = text(talk.regenerate())
    assert [first, second] == sampler.sample("abc", WARM, num_samples=2)
    assert talk.text == "abc" + second
    talk.undo()
    assert same(talk.state, state)
    assert text(talk.regenerate()) == second


def test_again_needs_an_answer(sampler):
    talk = ChatSession(sampler, WARM)
    with pytest.raises(UsageError, match="no answer"):
        talk.regenerate()
    talk.add("abc")
    with pytest.raises(UsageError, match="no answer"):
        talk.regenerate()


def test_the_state_does_not_know_the_stop_string_that_was_not_shown(sampler):
    whole = sampler.sample("abc", WARM)[0]
    talk = ChatSession(sampler, replace(WARM, stop=(whole[5:8],)))
    answer = text(talk.send("abc"))
    assert whole.startswith(answer)
    assert len(answer) < len(whole)
    assert talk.text == "abc" + answer


def test_an_answer_that_is_closed_early_stands_as_far_as_it_was_handed_out(sampler):
    talk = ChatSession(sampler, replace(WARM, length=80))
    pieces = talk.send("abc")
    first = next(pieces).text
    pieces.close()
    assert talk.text == "abc" + first
    assert 0 < len(first) < 80
    talk.undo()
    assert talk.state is None


@pytest.mark.parametrize("wrong", ["unknown character", "nothing to draw"])
def test_an_answer_that_fails_changes_nothing(sampler, wrong):
    talk = ChatSession(sampler, WARM)
    text(talk.send("abc"))
    before = talk.state
    if wrong == "nothing to draw":
        talk.settings = replace(WARM, transforms=(Forbid(tuple(range(V))),))
    with pytest.raises(UsageError):
        text(talk.send("x" if wrong == "unknown character" else "d"))
    assert talk.state is before
    assert talk.number == 1


def test_behind_the_end_of_a_text_another_begins(documents):
    talk = ChatSession(documents, replace(WARM, transforms=(Force((EOS,)),)))
    (piece,) = talk.send("abc")
    assert (piece.end, piece.text, talk.state) == ("eos", "", None)
    talk.settings = WARM
    assert text(talk.send("d")) == documents.sample("d", WARM, first=1)[0]
    talk.undo()
    talk.undo()
    assert talk.text == ""


def test_a_conversation_can_begin_anew_or_from_a_state(sampler):
    talk = ChatSession(sampler, WARM)
    text(talk.send("abc"))
    state = talk.state
    talk.reset()
    assert text(talk.send("abc")) == sampler.sample("abc", WARM, first=1)[0]
    talk.reset(state)
    talk.number = 1
    assert text(talk.send("d")) == sampler.sample("d", WARM, first=1, state=state)[0]
    talk.undo()
    assert talk.state is state


def test_continuations_are_the_likeliest_tokens_with_the_greedy_text_behind_each(sampler):
    state = sampler.read("abc")
    logits = np.asarray(state.logits[0], np.float64)
    probability = np.exp(logits) / np.exp(logits).sum()
    probability[[PAD, UNK, EOS]] = 0
    found = continuations(sampler, state, n=100, length=12)
    assert [each.tokens[0] for each in found] == np.argsort(-probability)[: V - 3].tolist()
    np.testing.assert_allclose([each.probability for each in found], np.sort(probability)[::-1][: V - 3], rtol=1e-5)
    assert found[0].text == sampler.sample("abc", GREEDY)[0]
    for each in found[:3]:
        begun = TOKENIZER.decode(each.tokens[:1])
        assert each.text == begun + sampler.sample("abc" + begun, replace(GREEDY, length=11))[0]
        assert len(each.text) == each.logp.size == 12


def test_fewer_continuations_begin_as_more_do(sampler):
    state = sampler.read("abc")
    two, five = ([each.text for each in continuations(sampler, state, n, 4)] for n in (2, 5))
    assert two == five[:2]
    assert [len(each.text) for each in continuations(sampler, state, 2, 1)] == [1, 1]


def test_the_end_of_a_text_is_offered_where_there_is_one(documents):
    found = {each.tokens[0]: each for each in continuations(documents, documents.read("abc"), n=V, length=4)}
    assert len(found) == V - 2
    assert (found[EOS].tokens.tolist(), found[EOS].text, found[EOS].ends) == ([EOS], "", True)
    talk = ChatSession(documents, WARM)
    talk.add("abc")
    talk.append(found[EOS].tokens)
    assert talk.state is None


def test_a_continuation_that_is_taken_is_read_on(sampler):
    talk = ChatSession(sampler, WARM)
    talk.add("abc")
    chosen = talk.continuations(3, 5)[2]
    talk.append(chosen.tokens)
    assert talk.text == "abc" + chosen.text
    np.testing.assert_allclose(talk.state.logits, sampler.read("abc" + chosen.text).logits, atol=1e-5)
    talk.undo()
    assert talk.text == "abc"
    with pytest.raises(UsageError, match="from 0"):
        talk.append([V])


@pytest.mark.parametrize(("n", "length"), [(0, 4), (1001, 4), (True, 4), (2, 0), (2, 1001), (2.0, 4)])
def test_numbers_of_continuations_out_of_range_are_told(sampler, n, length):
    with pytest.raises(UsageError, match="1 to 1,000"):
        continuations(sampler, sampler.initial_state(), n, length)


@pytest.mark.parametrize(
    ("tokens", "count"), [(b"ab\xc3\xa9", 4), (b"ab\xc3", 2), (b"\xe2\x88", 2), (b"a\xe2\x88\x91", 4)]
)
def test_a_continuation_ends_with_a_whole_character_if_it_has_one(tokens, count):
    tokenizer = ByteTokenizer()
    assert _complete_characters(tokenizer, np.frombuffer(tokens, np.uint8).astype(np.int32) + 3) == count


class Decoding(NamedTuple):
    """What remains of a sampler where nothing is drawn."""

    tokenizer: Tokenizer

    def decode(self, tokens):
        return self.tokenizer.decode(tokens)


@pytest.mark.parametrize("shown", range(7))
def test_the_tokens_of_what_was_shown_decode_to_it(shown):
    tokenizer, whole = ByteTokenizer(), "aé∑\ufffdbc"
    tokens = tokenizer.encode(whole)
    chunks = [Chunk(0, whole[:shown], tokens[:3], tokens[:3]), Chunk(0, "", tokens[3:], tokens[3:])]
    kept, held = _shown_tokens(Decoding(tokenizer), chunks, "")
    assert (kept.tolist(), held) == (tokenizer.encode(whole[:shown]).tolist(), "")


def test_a_token_shown_in_part_is_read_in_part():
    class Pairs(CharTokenizer):
        """Has a token for two characters."""

        def __init__(self):
            super().__init__([ord("a"), ord("b")])
            self.pieces = [*self.pieces, b"ab"]

    tokenizer = Pairs()
    both = tokenizer.vocab_size - 1
    kept, _ = _shown_tokens(Decoding(tokenizer), [Chunk(0, "aba", np.array([both, both]), np.zeros(2))], "")
    assert kept.tolist() == [both, tokenizer.encode("a")[0]]
