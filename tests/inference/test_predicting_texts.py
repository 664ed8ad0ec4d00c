"""Generated texts for inputs: in order, independent, greedy, sampled and by beam search."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxgen import jitted
from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.predictor import BLOCK_ROWS, DecodingConfig, Predictor
from jaxgen.tasks.classify.data import ClassifyCodec
from jaxgen.tasks.classify.objective import ClassifyTask
from jaxgen.tasks.translate.data import TranslateCodec
from jaxgen.tasks.translate.objective import TranslateTask
from jaxgen.tokenizers import EOS, PAD, UNK, CharTokenizer

LETTERS = "abcdefg"
LONGEST = 11
#: Sources of two widths, more than a block of each, in no order.
SOURCES = ["".join(np.random.default_rng(i).choice([*LETTERS], 1 + i * 5 % 12)) for i in range(3 * BLOCK_ROWS)]
#: A block of one width, for what takes long to compile.
SHORT = [source for source in SOURCES if len(source) <= 8][:BLOCK_ROWS]
BEAMS = 4
DRAWN = GenerationConfig(length=LONGEST, temperature=1.0, seed=7)


class Told(TranslateCodec):
    """Answers are all that the model put out, to the bit."""

    def answer(self, text: str, output: Any) -> tuple[Any, ...]:
        return text, tuple(output.tokens.tolist()), output.logp, output.ended


def random_params(task: Any, seed: int = 0) -> Any:
    """Large enough that sources matter; the end of a text is likelier than other tokens, <unk> and padding most."""
    normal, shapes = np.random.default_rng(seed).normal, jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda a: normal(0, 0.7, a.shape).astype(np.float32), shapes)
    params["decoder"]["language"]["output"]["bias"][[EOS, UNK, PAD]] += (1.5, 3, 3)
    return params


def made(attention: str = "general", codec: type[TranslateCodec] = Told, seed: int = 0) -> Predictor:
    tokenizer = CharTokenizer([ord(letter) for letter in LETTERS])
    size = tokenizer.vocab_size
    sizes = {"source_vocab": size, "vocab_size": size, "cell": "gru", "cell_options": {}, "hidden": 12}
    task = TranslateTask.build(**sizes, attention=attention)
    return Predictor(task, codec(tokenizer, tokenizer, False, LONGEST), random_params(task, seed))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return made()


@pytest.fixture(scope="module")
def greedy(predictor: Predictor) -> list[Any]:
    return list(predictor.predict(SOURCES))


def test_answers_come_in_the_order_of_the_inputs(greedy):
    assert [source for source, *_ in greedy] == SOURCES
    assert len({tokens for _, tokens, *_ in greedy}) > 10, "or nothing could be told apart"
    assert len({len(tokens) for _, tokens, *_ in greedy}) > 3


def test_an_answer_is_the_same_by_itself_to_the_bit(predictor, greedy):
    for i in (0, 1, 40, 95):
        assert list(predictor.predict(SOURCES[i : i + 1])) == greedy[i : i + 1]


def test_how_many_inputs_are_waited_for_changes_nothing(predictor, greedy):
    assert list(predictor.predict(SOURCES[:9], read_ahead=4)) == greedy[:9]
    drawn = DecodingConfig(DRAWN)
    assert list(predictor.predict(SOURCES[:9], drawn, read_ahead=4)) == list(predictor.predict(SOURCES[:9], drawn))


def test_an_answer_is_given_before_more_inputs_than_asked_are_read(predictor):
    read = []

    def inputs():
        for source in SOURCES[:4]:
            read.append(source)
            yield source

    answers = predictor.predict(inputs(), read_ahead=1)
    next(answers)
    assert read == SOURCES[:1]
    assert len(list(answers)) == 3


def test_no_input_has_no_answer(predictor):
    assert list(predictor.predict([])) == []


# What is written


def log_probabilities(predictor: Predictor, source: str, tokens: tuple[int, ...]) -> np.ndarray:
    """log p of every token at each step of a text that is read as a whole: [T + 1, V]."""
    example = predictor.codec.encode(source)
    packed = predictor.codec.pack([example], predictor.codec.widths(example), 1)
    read = np.full((1, LONGEST + 1), PAD, np.int32)
    read[0, : len(tokens) + 1] = [EOS, *tokens]
    logits = np.asarray(whole(predictor.task, predictor._params, packed, read), np.float64)[0, : len(tokens) + 1]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


whole = jax.jit(
    lambda task, params, inputs, tokens: task.model.apply({"params": params}, inputs, tokens), static_argnums=0
)


def test_a_greedy_text_takes_the_likeliest_token_at_each_step_and_knows_its_probability(predictor, greedy):
    for source, tokens, logp, ended in greedy[:12]:
        each = log_probabilities(predictor, source, tokens)
        written = [*tokens, EOS] if ended else [*tokens]
        allowed = each.copy()
        allowed[:, [PAD, UNK]] = -np.inf
        assert allowed.argmax(-1).tolist()[: len(written)] == written
        np.testing.assert_allclose(logp, each[np.arange(len(written)), written].sum(), rtol=1e-5)
        assert ended or len(tokens) == LONGEST


def test_neither_padding_nor_unknown_is_ever_written(predictor, greedy):
    drawn = list(predictor.predict(SOURCES, DecodingConfig(DRAWN)))
    beams = list(predictor.predict(SHORT, DecodingConfig(beam=BEAMS)))
    for _, tokens, *_ in (*greedy, *drawn, *beams):
        assert not {PAD, UNK, EOS} & {*tokens}


def test_one_beam_writes_what_greedy_decoding_does(predictor, greedy):
    found, known = list(predictor.predict(SHORT, DecodingConfig(beam=1))), {source: rest for source, *rest in greedy}
    for source, tokens, _, ended in found:
        assert [tokens, ended] == [known[source][0], known[source][2]]


def test_the_text_of_beams_has_its_probability_among_texts_without_what_is_never_written(predictor):
    """With the source of another row in its memory it would have another."""
    found = list(predictor.predict(SHORT, DecodingConfig(beam=BEAMS, length_penalty=0.0)))
    for source, tokens, logp, ended in found[:12]:
        each = log_probabilities(predictor, source, tokens)
        never = np.exp(each[:, [PAD, UNK]]).sum(-1)
        written = [*tokens, EOS] if ended else [*tokens]
        allowed = (each - np.log1p(-never)[:, None])[np.arange(len(written)), written]
        np.testing.assert_allclose(logp, allowed.sum(), rtol=1e-4)
    alone = [logp for _, _, logp, _ in predictor.predict(SHORT, DecodingConfig(beam=1))]
    assert np.mean([logp for _, _, logp, _ in found]) > np.mean(alone), "four beams find likelier texts than one"


def test_a_larger_length_penalty_gives_longer_texts_and_compiles_nothing(predictor):
    short, long = (DecodingConfig(beam=BEAMS, length_penalty=alpha) for alpha in (-5.0, 5.0))
    lengths = [sum(len(tokens) for _, tokens, *_ in predictor.predict(SHORT, each)) for each in (short, long)]
    assert lengths[0] < lengths[1]


def test_a_text_of_beams_does_not_depend_on_its_neighbours(predictor):
    beams = DecodingConfig(beam=BEAMS, length_penalty=0.0)
    found = list(predictor.predict(SHORT, beams))
    assert list(predictor.predict(SHORT[3:4], beams)) == found[3:4]
    assert list(predictor.predict(SHORT[::-1], beams)) == found[::-1]


def test_what_is_drawn_follows_from_the_seed_and_the_number_of_the_input(predictor, greedy):
    drawn = list(predictor.predict(SOURCES, DecodingConfig(DRAWN)))
    assert list(predictor.predict(SOURCES, DecodingConfig(DRAWN))) == drawn
    others = [*SOURCES[1:], SOURCES[0]]
    others[40] = SOURCES[40]
    assert list(predictor.predict(others, DecodingConfig(DRAWN)))[40] == drawn[40]
    same = {tokens for _, tokens, *_ in predictor.predict(SOURCES[:1] * 20, DecodingConfig(DRAWN))}
    assert len(same) > 10, "inputs that are alike draw for themselves"
    other_seed = DecodingConfig(GenerationConfig(length=LONGEST, temperature=1.0, seed=8))
    assert list(predictor.predict(SOURCES, other_seed)) != drawn
    assert drawn != greedy


def test_a_low_temperature_draws_what_is_likeliest(predictor, greedy):
    cold = DecodingConfig(GenerationConfig(length=LONGEST, temperature=1e-4))
    assert [each[1] for each in predictor.predict(SOURCES[:BLOCK_ROWS], cold)] == [
        each[1] for each in greedy[:BLOCK_ROWS]
    ]


@pytest.mark.parametrize("beam", [0, BEAMS])
def test_no_text_is_longer_than_asked(beam, predictor):
    found = list(predictor.predict(SHORT, DecodingConfig(GenerationConfig(length=3, temperature=0.0), beam)))
    assert max(len(tokens) for _, tokens, *_ in found) == 3
    assert all(ended == (len(tokens) < 3) for _, tokens, _, ended in found)


def test_by_default_texts_are_as_long_as_the_model_may_have_learnt(predictor, greedy):
    asked = DecodingConfig(GenerationConfig(length=LONGEST, temperature=0.0))
    assert list(predictor.predict(SOURCES, asked)) == greedy
    assert max(len(tokens) for _, tokens, *_ in greedy) == LONGEST


def test_an_answer_of_no_tokens_is_refused(predictor):
    with pytest.raises(UsageError, match="length"):
        list(predictor.predict(SOURCES[:1], DecodingConfig(GenerationConfig(length=0, temperature=0.0))))


def test_an_empty_source_is_answered_without_disturbing_others(predictor, greedy):
    found = list(predictor.predict(["", *SOURCES[:2], "  "]))
    assert found[1:3] == greedy[:2]
    assert next(made(codec=TranslateCodec).predict([""]))["text"] == ""


def test_other_weights_compile_nothing(greedy):
    predictor = made()
    list(predictor.predict(SOURCES[:1]))
    functions = [jitted.jit_encode(predictor.task), jitted.jit_prepare(predictor.task)]
    before = [function._cache_size() for function in functions]
    other = random_params(predictor.task, seed=1)
    assert list(predictor.with_params(other).predict(SOURCES[:1])) != greedy[:1]
    assert [function._cache_size() for function in functions] == before


def test_a_width_is_compiled_once(predictor, greedy):
    """Sources of 1 to 11 letters have two widths."""
    assert jitted.jit_encode(predictor.task)._cache_size() == 2


# Where it looks


def test_where_it_looks_is_told_for_every_token_that_is_written(predictor, greedy):
    for source, tokens, _, ended in greedy[1:4]:
        look = predictor.attention(source)
        assert look.source == [*source][:LONGEST]
        assert look.written == predictor.codec.written(np.array(tokens))[: len(tokens) + ended]
        assert look.weights.shape == (len(look.written), len(look.source))
        np.testing.assert_allclose(look.weights.sum(axis=1), 1, rtol=1e-5)
        assert look.weights.std(axis=0).max() > 1e-3, "it looks elsewhere with every token"


@pytest.mark.parametrize(
    "writing", [DecodingConfig(DRAWN), DecodingConfig(beam=BEAMS, length_penalty=0.0)], ids=["drawn", "beams"]
)
def test_where_it_looks_is_that_of_the_text_that_was_written(writing, predictor):
    for number, (source, tokens, _, ended) in enumerate(predictor.predict(SHORT[:3], writing)):
        look = predictor.attention(source, writing, number)
        assert look.written == predictor.codec.written(np.array(tokens))[: len(tokens) + ended]


def test_a_model_that_looks_nowhere_says_so():
    with pytest.raises(UsageError, match="attention"):
        made("none").attention("abc")
    tokenizer = CharTokenizer([97, 98])
    task = ClassifyTask.build(vocab_size=tokenizer.vocab_size, classes=2, cell="gru", cell_options={}, hidden=4)
    with pytest.raises(UsageError, match="attention"):
        Predictor(task, ClassifyCodec(tokenizer, ("x", "y"), False, 5), {}).attention("ab")
