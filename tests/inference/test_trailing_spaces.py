"""A space at the end of a prompt begins the next token where tokens include the space before a word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.beam_search import beam
from jaxgen.inference.chat import ChatSession
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import interpolate
from jaxgen.sampling.transforms import Forbid, Force
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import WordTokenizer

SHORT = GenerationConfig(length=6, temperature=1.0)


@pytest.fixture(scope="module")
def sampler():
    """A model of words with random weights."""
    tokenizer = WordTokenizer.train(["the cat sees the dog.\nthe dog sees a cat!  a dog bites\ta cat.\n" * 2])
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, cell="gru", cell_options={}, hidden=8, layers=1)
    normal, shapes = np.random.default_rng(3).normal, jax.eval_shape(task.init, jax.random.key(0))
    return Sampler(task, tokenizer, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes))


@pytest.mark.parametrize("seed", range(4))
def test_no_space_is_written_twice_and_the_tokens_are_those_of_the_whole_text(sampler, seed):
    settings = GenerationConfig(length=6, temperature=1.0, seed=seed, stop=(" ",))
    (drawn,) = sampler.samples("the cat ", GenerationConfig(length=6, temperature=1.0, seed=seed))
    assert sampler.tokenizer.decode(drawn.tokens) == " " + drawn.text
    assert sampler.tokenizer.pieces[drawn.tokens[0]].startswith(b" ")
    assert sampler.sample("the cat ", settings) == [drawn.text.partition(" ")[0]]


def test_the_first_token_is_drawn_among_those_that_begin_with_the_space(sampler):
    before, after = sampler.read("the cat"), sampler.read("the cat ")
    begin = np.array([piece.startswith(b" ") for piece in sampler.tokenizer.pieces])
    np.testing.assert_array_equal(after.tokens, before.tokens)
    np.testing.assert_array_equal(np.asarray(after.logits[0])[begin], np.asarray(before.logits[0])[begin])
    assert (np.asarray(after.logits[0])[~begin] == -np.inf).all()


def test_candidates_after_a_space_are_scored_as_tokens_of_the_whole_text(sampler):
    scorer = Scorer(sampler)
    plain = scorer.rank("the cat", [" sees", " dog", "!"])
    spaced = {each.text: each.score.logp for each in scorer.rank("the cat ", ["sees", "dog"])}
    assert spaced == {each.text[1:]: each.score.logp for each in plain if each.text != "!"}
    score = scorer.score("sees the dog.", "the cat ")
    assert (score.logp, score.chars) == (scorer.score(" sees the dog.", "the cat").logp, 13)
    assert scorer.score("", "the cat ").tokens == 0


def test_a_state_holds_the_space_until_more_is_read(sampler, tmp_path):
    sampler.digest = "a"
    sampler.save_state(tmp_path / "state", sampler.read("the cat "))
    state = sampler.load_state(tmp_path / "state")
    assert state.held == " "
    assert sampler.sample(settings=SHORT, state=state) == sampler.sample("the cat ", SHORT)
    for more in ("sees the", " sees"):
        np.testing.assert_array_equal(sampler.read(more, state).tokens, sampler.read(f"the cat {more}").tokens)
    assert interpolate(state, sampler.read("the "), 0).logits is state.logits
    with pytest.raises(UsageError, match="space"):
        interpolate(state, sampler.read("the cat"), 0.5)


def test_beam_search_and_the_chat_write_no_space_twice(sampler):
    (found,) = beam(sampler, "the cat ", width=2, length=4)
    assert sampler.tokenizer.decode(found.tokens) == " " + found.text
    session = ChatSession(sampler, SHORT)
    answer = "".join(chunk.text for chunk in session.send("the cat "))
    assert [answer] == sampler.sample("the cat ", SHORT)
    assert session.text == f"the cat {answer}"
    session.add("the ")
    assert session.text == f"the cat {answer}the "
    assert not any(each.text.startswith(" ") for each in session.continuations(3) if each.tokens.size == 1)


@pytest.mark.parametrize("transform", ["forbidden", "forced"])
def test_a_space_that_can_begin_no_token_is_refused(sampler, transform):
    pieces = sampler.tokenizer.pieces
    spaced = tuple(i for i, piece in enumerate(pieces) if piece.startswith(b" "))
    chosen = Forbid(spaced) if transform == "forbidden" else Force((pieces.index(b"\n"),))
    settings = GenerationConfig(length=2, transforms=(chosen,))
    with pytest.raises(UsageError, match="space"):
        sampler.stream("the cat ", settings)
    assert len(sampler.sample("the cat", settings)) == 1
