"""Quality reports: every number follows from the sampled texts; real text is measured the same way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.quality import (
    CopiedSpan,
    ReferenceData,
    ReferenceText,
    SampleMetrics,
    copies_of,
    cut_references,
    evaluate_samples,
    longest_copy,
    mean_logp,
)
from jaxgen.inference.sampler import Sampler
from jaxgen.runs.config import validate
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.corpus import prepare
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, UNK, CharTokenizer

TOKENIZER = CharTokenizer.train(["abc \n"])
TRAIN = "a cab abc \nba cc abba abb cab\n" * 8  # one sample begins with the rest of "abb"
REFERENCE = ReferenceData([TRAIN], ["ab cab bac\n" * 60])
SETTINGS = GenerationConfig(length=100, seed=3, block=4)


@pytest.fixture(scope="module")
def sampler():
    task = LanguageTask.build(vocab_size=TOKENIZER.vocab_size, cell="elman", cell_options={}, hidden=8, layers=1)
    normal = np.random.default_rng(0).normal
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return Sampler(task, TOKENIZER, jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes))


@pytest.fixture(scope="module")
def result(sampler):
    return evaluate_samples(sampler, [0.0, 1.0], SETTINGS, prompt="ab", num_samples=4, reference=REFERENCE)


def test_a_row_is_of_the_texts_that_the_sampler_draws(sampler, result):
    samples = list(sampler.samples("ab", GenerationConfig(length=100, temperature=1.0, seed=3, block=4), num_samples=4))
    row = result.rows[1]
    assert (row.temperature, row.texts, row.tokens, row.characters) == (1.0, 4, 400, 400)
    assert row.logp == pytest.approx(np.mean([s.mean_logp for s in samples]), rel=1e-6)
    words = [("ab" + s.text).split() for s in samples]
    words = [w if s.text[-1].isspace() else w[:-1] for w, s in zip(words, samples)]
    words = [w[1:] if s.text[0].isspace() else w for w, s in zip(words, samples)]  # "ab" itself was the prompt
    everything = [word for part in words for word in part]
    assert row.distinct[0] == len(set(everything)) / len(everything)
    assert row.known_words == sum(word in TRAIN.split() for word in everything) / len(everything)
    assert samples[row.copy.sample].text[row.copy.start :].startswith(row.copy.text)
    assert TRAIN[row.copy.source_start :].startswith(row.copy.text)
    assert not any(s.text[i : i + row.copy.length + 1] in TRAIN for s in samples for i in range(100 - row.copy.length))


def test_the_greedy_text_is_counted_as_often_as_it_would_be_drawn(sampler, result):
    (text,) = sampler.sample("ab", GenerationConfig(length=100, temperature=0, block=4))
    row = result.rows[0]
    assert (row.texts, row.tokens, row.cycles) == (4, 400, 4)
    tail = text[row.cycle.start :]
    assert all(a == b for a, b in zip(tail, tail[row.cycle.period :]))
    assert tail.startswith(row.cycle_text)
    assert len(row.cycle_text) == row.cycle.period


def test_validation_text_comes_in_the_same_amount(result):
    assert (result.validation.temperature, result.validation.texts, result.validation.characters) == (None, 4, 400)
    assert result.unit == "word"


def test_the_nearest_temperature_is_that_whose_shares_are_nearest_to_those_of_real_text(result):
    real = result.validation
    same = replace(real, temperature=0.7)
    other = replace(real, temperature=0.3, distinct=(0.0, None, 0.0), cycles=4)
    report = replace(result, rows=[other, same])
    assert report.nearest is same
    assert report.to_json()["nearest_temperature"] == 0.7
    assert same.distance(real) == 0 < other.distance(real)
    assert replace(real, distinct=(None,) * 3).distance(real) == 0.5  # as of texts without a word
    assert replace(report, validation=None).to_json()["nearest_temperature"] is None


def by_steps(sampler, text, *more):
    """Log-probabilities of what is known of ``text`` and of the tokens ``more``, one step after the other."""
    state, nats = sampler.read(""), []
    logits = state.logits[0]
    for token in (*TOKENIZER.encode(text).tolist(), *more):
        if token != UNK:
            nats.append(float(jax.nn.log_softmax(logits)[token]))
        state, logits = sampler.step(state, token)
    return nats


def test_the_score_of_real_text_is_that_of_reading_it_token_by_token(sampler):
    texts = ["abc cab\nba" * 9, "b", "a∑b"]
    nats = [logp for text in texts for logp in by_steps(sampler, text)]
    assert UNK in TOKENIZER.encode(texts[-1])
    assert mean_logp(sampler, [ReferenceText(text, cut=False) for text in texts]) == pytest.approx(
        np.mean(nats), rel=1e-5
    )
    assert mean_logp(sampler, [ReferenceText("", cut=False)]) is None


def test_the_end_is_scored_of_whole_documents_and_not_of_those_broken_off(sampler):
    documents = Sampler(sampler.task, TOKENIZER, sampler.weights.params, documents=True)
    nats = by_steps(documents, "abc", EOS) + by_steps(documents, "cab b")
    found = mean_logp(documents, [ReferenceText("abc", cut=False), ReferenceText("cab b", cut=True)])
    assert found == pytest.approx(np.mean(nats), rel=1e-5)


def test_the_texts_that_end_in_a_cycle_are_counted(sampler):
    pieces = [ReferenceText(text, cut=True) for text in ("a b c", "c" + "ab" * 30, "b cab", "ca" * 30)]
    row = SampleMetrics(sampler, "character", None, None).of_references(pieces)
    assert (row.texts, row.cycles, row.cycle_text) == (4, 2, "ab")
    assert (row.cycle.start, row.cycle.period) == (1, 2)


@pytest.mark.runs
def test_without_the_training_text_its_columns_are_empty(sampler, result):
    alone = evaluate_samples(sampler, [1.0], SETTINGS, prompt="ab", num_samples=4)
    assert alone.validation is None
    assert (alone.rows[0].known_words, alone.rows[0].copy) == (None, None)
    assert (alone.rows[0].logp, alone.rows[0].distinct) == (result.rows[1].logp, result.rows[1].distinct)


def test_texts_without_a_token_have_nothing_to_measure(sampler):
    row = SampleMetrics(sampler, "word", REFERENCE, copies_of([""], REFERENCE.train)).of_references(
        [ReferenceText("", cut=False)] * 2
    )
    assert (row.texts, row.tokens, row.logp, row.distinct, row.copy) == (2, 0, None, (None, None, None), None)


def test_a_wrong_temperature_is_refused_before_the_first_text_is_drawn(sampler, monkeypatch):
    monkeypatch.setattr(Sampler, "_read", lambda *_: pytest.fail("read before the settings were checked"))
    with pytest.raises(UsageError, match="-1"):
        evaluate_samples(sampler, [1.0, -1.0], SETTINGS)
    with pytest.raises(UsageError, match="samples is 0"):
        evaluate_samples(sampler, [1.0], SETTINGS, num_samples=0)
    with pytest.raises(UsageError, match="length"):
        evaluate_samples(sampler, [1.0], GenerationConfig(length=0))


def test_pieces_of_running_text_begin_behind_white_space_and_never_overlap():
    text = "".join(f"w{i} " for i in range(300))
    pieces = cut_references([text], 7, 50)
    starts = [text.index(piece.text) for piece in pieces]
    assert len(pieces) == 7
    assert all(text[start - 1] == " " for start in starts)
    assert all(a + 50 <= b for a, b in pairwise(starts))
    assert {len(piece.text) for piece in pieces} == {50}
    assert all(piece.cut for piece in pieces)


def test_little_text_gives_fewer_pieces_and_at_least_one():
    assert cut_references([], 5, 100) == []
    assert cut_references(["ab"], 5, 100) == [ReferenceText("ab", cut=False)]
    assert [piece.text for piece in cut_references(["a b c d e f "], 5, 6)] == ["b c ", "e f "]


def test_pieces_of_documents_are_beginnings_of_documents_spread_over_all():
    texts = [f"{i} and more" for i in range(9)]
    assert cut_references(texts, 3, 5, documents=True) == [ReferenceText(f"{i} and", cut=True) for i in (0, 3, 6)]
    assert cut_references(texts[:2], 3, 50, documents=True) == [ReferenceText(text, cut=False) for text in texts[:2]]


@pytest.mark.runs
def test_documents_end_in_real_text_as_they_do_in_samples(sampler):
    task, weights = sampler.task, sampler.weights.params
    reference = ReferenceData(["cab"], ["ab cab", "ba", "c" * 150])
    row = evaluate_samples(
        Sampler(task, TOKENIZER, weights, documents=True), [1.0], SETTINGS, num_samples=3, reference=reference
    ).validation
    assert row.texts == 3
    assert row.tokens == row.characters + 2  # the last one is broken off, the others have an <eos>


def test_the_texts_of_a_run_are_read_as_its_model_would_write_them(tmp_path):
    (tmp_path / "data.txt").write_bytes(b"caf\xc3\xa9 \xff" * 10)
    config = validate(LanguageConfig, {"data": str(tmp_path / "data.txt"), "level": "byte", "val_fraction": 0.5})
    data = prepare(config.data, level="byte", val_fraction=0.5)
    identity = {"name": data.name, "sha256": data.sha256}
    resolved = {"data": identity, "data_folders": []}
    reference = ReferenceData.of_run(LoadedRun(None, config, resolved, config.reading, data.tokenizer, None))
    assert reference == ReferenceData(["café \ufffd" * 5], ["café \ufffd" * 5])
    assert reference.words == {"café"}
    assert data.tokenizer.decode(data.train.ids) == reference.train[0]


def test_the_longest_copy_is_found_among_equal_texts_too():
    texts, train = ["xx", "abcab", "abcab"], ["zz", "cab abca"]
    assert longest_copy(texts, copies_of(texts, train), train) == CopiedSpan("abca", 4, 1, 0, 1, 4)
    assert longest_copy(["xx"], copies_of(texts, train), train) is None
