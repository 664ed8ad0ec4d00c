"""Scores equal a loop of single steps, for any pieces, rows and windows."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import jitted
from jaxgen.data.batches import Tokens, stream_eval, window_eval
from jaxgen.errors import UsageError
from jaxgen.inference import scorer as scorer_module
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import LANE_LENGTH, MAX_TOKENS, Score, Scorer, StateScorer
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, UNK, CharTokenizer, WordTokenizer

TOKENIZER = CharTokenizer.train(["abcdefgh \n"])
V = TOKENIZER.vocab_size
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


class CountingTask:
    """The language task, counting how often scoring is traced."""

    def __init__(self, task):
        self.task, self.traces = task, 0
        self.prepare, self.initial_carry, self.prefill, self.step = (
            task.prepare,
            task.initial_carry,
            task.prefill,
            task.step,
        )

    def score(self, *args, **options):
        self.traces += 1
        return self.task.score(*args, **options)


def random_text(length, seed=0, letters="abcdefgh \n"):
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


@pytest.fixture(scope="module")
def task():
    return CountingTask(LanguageTask.build(vocab_size=V, cell="lstm", cell_options={}, hidden=8, layers=2))


@pytest.fixture(scope="module")
def params(task):
    """Random weights, large enough that what was read matters for what comes."""
    normal = np.random.default_rng(0).normal
    shapes = jax.eval_shape(task.task.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(normal(size=a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def sampler(task, params):
    return Sampler(task, TOKENIZER, params)


@pytest.fixture(scope="module")
def documents(task, params):
    return Sampler(task, TOKENIZER, params, documents=True)


@pytest.fixture(scope="module")
def scorer(sampler):
    return Scorer(sampler, top=3)


@pytest.fixture(scope="module")
def reference(sampler):
    """Log-probabilities [n, V] of ids behind others, by one step of the model after the other, in float64."""

    def distributions(ids, behind=(EOS,), carry=None):
        state, rows = sampler.initial_state(), []
        for token in [*behind, *ids][:-1]:
            state, logits = sampler.step(state, int(token))
            rows.append(np.asarray(logits, np.float64))
        logits = np.array(rows[len(behind) - 1 :])
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    return distributions


def by_steps(reference, ids, behind):
    return reference(ids, behind)[np.arange(len(ids)), ids]


NEWLINE = tuple(TOKENIZER.encode("\n").tolist())


def test_every_token_is_scored_as_a_loop_of_steps_scores_it(scorer, reference):
    text = random_text(150)
    found = scorer.per_token(text)
    ids = TOKENIZER.encode(text)
    np.testing.assert_array_equal(found.tokens, ids)
    np.testing.assert_allclose(found.logp, by_steps(reference, ids, NEWLINE), **CLOSE)


def test_the_likeliest_tokens_are_those_of_the_distribution_the_best_first(scorer, reference):
    text = random_text(40)
    found, wanted = scorer.per_token(text), reference(TOKENIZER.encode(text), NEWLINE)
    np.testing.assert_array_equal(found.top, np.argsort(-wanted, axis=1)[:, :3])
    np.testing.assert_allclose(found.top_logp, -np.sort(-wanted, axis=1)[:, :3], **CLOSE)


def test_many_logits_are_made_block_by_block_with_the_same_result(sampler, params, monkeypatch):
    text = random_text(100)
    wanted = Scorer(sampler, top=2).per_token(text)
    monkeypatch.setattr("jaxgen.tasks.language.objective.MAX_LOGITS", 4 * V)
    task = LanguageTask.build(vocab_size=V, cell="lstm", cell_options={}, hidden=8, layers=2)
    blocks = CountingTask(task)  # equal tasks share compiled functions, and a counting one is equal to no other
    for got, want in zip(Scorer(Sampler(blocks, TOKENIZER, params), top=2).per_token(text), wanted):
        np.testing.assert_allclose(got, want, **CLOSE)
    assert blocks.traces == 1


def test_a_sample_is_scored_as_the_sampler_scored_it(sampler, scorer):
    (sample,) = sampler.samples("abc", GenerationConfig(length=50, temperature=1.0, seed=3))
    np.testing.assert_allclose(scorer.per_token(sample.text, prompt="abc").logp, sample.logp, **CLOSE)
    assert scorer.score(sample.text, prompt="abc").logp == pytest.approx(sample.logp.sum(), rel=1e-4)


def test_a_sampled_document_is_scored_with_its_end(documents):
    sample = next(
        s for s in documents.samples("a", GenerationConfig(length=90, temperature=1.0), num_samples=9) if s.end == "eos"
    )
    found = Scorer(documents).per_token(sample.text, prompt="a")
    np.testing.assert_array_equal(found.tokens, sample.tokens)
    np.testing.assert_allclose(found.logp, sample.logp, **CLOSE)


def test_the_end_of_a_document_can_be_left_out(documents):
    whole, open_ = (Scorer(documents, end=end).per_token("abc") for end in (None, False))
    assert whole.tokens[-1] == EOS
    np.testing.assert_array_equal(open_.tokens, TOKENIZER.encode("abc"))
    np.testing.assert_array_equal(open_.logp, whole.logp[:-1])


@pytest.mark.parametrize("options", [{}, {"state": "cold", "window": 7}, {"lanes": 3}])
def test_where_a_text_is_cut_into_pieces_changes_no_bit(sampler, options):
    text, scorer = random_text(600), Scorer(sampler, **options)
    wanted = scorer.per_token(text)
    for size in (3, 599):
        found = scorer.per_token([text[at : at + size] for at in range(0, len(text), size)])
        np.testing.assert_array_equal(found.logp, wanted.logp)


def test_the_stretches_in_which_a_text_is_carried_on_change_nothing(scorer, monkeypatch):
    text = random_text(400)
    wanted = scorer.per_token(text)
    monkeypatch.setattr(scorer_module, "SEGMENT", 50)
    monkeypatch.setattr(scorer_module, "FILL", 10)
    found = scorer.per_token(text)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.logp, wanted.logp, **CLOSE)


@pytest.mark.parametrize("window", [1, 7, 100])
def test_cold_windows_are_short_texts_behind_the_token_before_each(sampler, reference, window):
    text = random_text(230)
    ids, found = TOKENIZER.encode(text), Scorer(sampler, state="cold", window=window).per_token(text)
    before = [*NEWLINE, *ids]
    wanted = [by_steps(reference, ids[at : at + window], before[at : at + 1]) for at in range(0, len(ids), window)]
    np.testing.assert_allclose(found.logp, np.concatenate(wanted), **CLOSE)


def test_lanes_warm_their_state_by_the_tokens_before_them(sampler, reference, monkeypatch):
    monkeypatch.setattr("jaxgen.inference.scorer.LANE_LENGTH", 40)
    monkeypatch.setattr("jaxgen.inference.scorer.BURN_IN", 6)
    text = random_text(100)
    ids, found = TOKENIZER.encode(text), Scorer(sampler, lanes=2).per_token(text)
    wanted = [
        by_steps(reference, ids[:40], NEWLINE),
        by_steps(reference, ids[40:80], ids[33:40]),
        by_steps(reference, ids[80:], ids[73:80]),
    ]
    np.testing.assert_allclose(found.logp, np.concatenate(wanted), **CLOSE)


def evaluated(task, params, batches, rows):
    carry, nll, count = task.task.initial_carry(rows), 0.0, 0.0
    step = jitted.jit_eval_step(task.task)
    for batch in batches:
        carry, totals = step(params, carry, batch)
        nll, count = nll + float(totals.nll), count + float(totals.targets)
    return nll, count


def test_a_carried_score_is_that_of_an_evaluation_in_one_lane(task, params, scorer):
    text = random_text(300)
    tokens = Tokens(np.array([*NEWLINE, *TOKENIZER.encode(text)], np.int32), None, 0, 0)
    nll, count = evaluated(task, params, stream_eval(tokens, 1, 64), 1)
    score = scorer.score(text)
    assert score.tokens == count
    assert -score.logp == pytest.approx(nll, rel=1e-5)


def test_a_cold_window_scores_as_a_window_of_an_evaluation(task, params, sampler):
    text = random_text(8)
    tokens = Tokens(np.array([*NEWLINE, *TOKENIZER.encode(text)], np.int32), None, 0, 0)
    nll, count = evaluated(task, params, window_eval(tokens, 1, 8, 0, 1), 1)  # there is one place where it can lie
    score = Scorer(sampler, state="cold", window=8).score(text)
    assert score.tokens == count
    assert -score.logp == pytest.approx(nll, rel=1e-5)


def test_texts_side_by_side_score_as_each_alone(scorer, documents):
    texts = [random_text(n, seed=n) for n in (0, 1, 3, 80, 200, 7)] * 4
    for score in (scorer, Scorer(documents, top=1)):
        alone = {text: (score.score(text), score.per_token(text)) for text in texts[:6]}
        for text, (total, tokens) in zip(texts, score.score_each(texts), strict=True):
            assert total.logp == pytest.approx(alone[text][0].logp, rel=1e-5, abs=1e-6)
            assert (total.tokens, total.chars) == (alone[text][0].tokens, len(text))
            np.testing.assert_array_equal(tokens.tokens, alone[text][1].tokens)
            np.testing.assert_allclose(tokens.logp, alone[text][1].logp, **CLOSE)


def test_texts_side_by_side_can_stand_behind_a_prompt_or_be_cut_into_windows(sampler, scorer):
    texts = ["abc", "", "hgf" * 30]
    for total, text in zip(scorer.score_each(texts, "dead "), texts):
        assert total[0].logp == pytest.approx(scorer.score(text, "dead ").logp, rel=1e-5, abs=1e-6)
    cold = Scorer(sampler, state="cold", window=8)
    for total, text in zip(cold.score_each(texts), texts):
        assert total[0].logp == pytest.approx(cold.score(text).logp, rel=1e-5, abs=1e-6)


def test_another_length_of_text_traces_nothing_again(task, params):
    sampler = Sampler(task, TOKENIZER, params)
    for options in ({}, {"lanes": 5}, {"state": "cold"}):
        scorer = Scorer(sampler, **options)
        scorer.score("abc")
        before = task.traces
        for length in (0, 1, 64, 65, 700):
            scorer.score(random_text(length))
        if scorer.lanes == 1 and scorer.state == "carried":
            scorer.score("abc", prompt="abc" * 40)
        assert task.traces == before


def test_units_follow_from_each_other():
    score = Score(logp=-8 * math.log(2), tokens=4, chars=2, bytes=16, words=2)
    assert score.nats_per_token == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4.0)
    assert score.word_perplexity == pytest.approx(16.0)
    assert score.bits_per_char == pytest.approx(4.0)
    assert score.bits_per_byte == pytest.approx(0.5)
    assert Score(logp=-1e9, tokens=1).perplexity < math.inf


def test_characters_and_bytes_are_those_of_the_text(params, task):
    tokenizer = CharTokenizer.train(["aé€🎉bcd\n ."])
    score = Scorer(Sampler(task, tokenizer, params)).score("aé€🎉")
    assert (score.tokens, score.chars, score.bytes) == (4, 4, 10)


def test_an_empty_text_has_no_tokens_and_no_ratios(scorer, documents):
    score = scorer.score("")
    assert (score.logp, score.tokens) == (0.0, 0)
    assert {score.nats_per_token, score.perplexity, score.bits_per_char, score.bits_per_byte} == {None}
    assert "nan" not in repr(score)
    assert scorer.per_token("").top.shape == (0, 3)
    assert Scorer(documents).score("").tokens == 1


def test_one_token_is_scored_by_what_the_blank_prompt_leads_to(scorer, sampler):
    logits = np.asarray(sampler.read("").logits[0], np.float64)
    wanted = logits - np.log(np.exp(logits).sum())
    assert scorer.score("c").logp == pytest.approx(wanted[TOKENIZER.encode("c")[0]], rel=1e-5)


def test_unknown_characters_are_an_error_with_their_place_in_the_whole_text(scorer):
    with pytest.raises(UsageError, match="'Z'"):
        scorer.score(["abc", "ab", "aZ", "Y"])


def test_skipped_characters_are_as_if_they_were_not_there(sampler):
    score = Scorer(sampler, unk="skip").score("abÄc")
    plain = Scorer(sampler).score("abc")
    assert (score.logp, score.chars, score.bytes, score.unknown) == (plain.logp, 3, 3, 1)


def test_kept_characters_are_scored_as_the_unknown_token(sampler, reference):
    found, score = (getattr(Scorer(sampler, unk="keep"), name)("abÄc") for name in ("per_token", "score"))
    ids = TOKENIZER.encode("abÄc")
    assert ids[2] == UNK
    np.testing.assert_allclose(found.logp, by_steps(reference, ids, NEWLINE), **CLOSE)
    assert (score.chars, score.bytes, score.unknown) == (4, 5, 1)


def test_skipped_words_take_their_space_with_them(task, params):
    tokenizer = WordTokenizer([" ", "a", " a", "b", "."])
    score = Scorer(Sampler(task, tokenizer, params), unk="skip").score("a xyz. b")
    assert (score.tokens, score.chars, score.words, score.unknown) == (4, 4, 2, 1)


def test_candidates_come_in_the_order_of_their_log_probability(scorer):
    candidates = ["abc", "h", "gg", "dd f"]
    ranked = scorer.rank("bad ", candidates)
    alone = {text: scorer.score(text, "bad ").logp for text in candidates}
    assert [each.text for each in ranked] == sorted(candidates, key=lambda text: -alone[text])
    assert [each.rank for each in ranked] == [1, 2, 3, 4]
    assert not any(each.tied for each in ranked)
    for each in ranked:
        assert candidates[each.index] == each.text
        assert each.score.logp == pytest.approx(alone[each.text], rel=1e-5)


def test_equal_candidates_share_a_rank_in_the_order_given(scorer):
    ranked = scorer.rank("bad ", ["ab", "cdefgh", "ab"])
    assert [(each.rank, each.index, each.tied) for each in ranked] == [(1, 0, True), (1, 2, True), (3, 1, False)]


def test_the_end_of_a_candidate_is_scored_where_it_is_asked_for(documents):
    (open_,), (ended,) = (Scorer(documents, end=end).rank("b", ["ad"]) for end in (False, True))
    assert (open_.score.tokens, ended.score.tokens) == (2, 3)
    assert ended.score.logp < open_.score.logp


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "warm"}, "Unknown state 'warm'"),
        ({"window": 0}, "window is 0"),
        ({"lanes": 2000}, "2000"),
        ({"top": V + 1}, f"{V + 1}"),
        ({"unk": "no"}, "--unk"),
        ({"end": True}, "no end"),
        ({"state": "cold", "lanes": 2}, "one"),
    ],
)
def test_what_cannot_be_used_is_said(sampler, options, message):
    with pytest.raises(UsageError, match=message):
        Scorer(sampler, **options)


@pytest.mark.parametrize("top", [0, 3, V])
def test_what_is_laid_out_at_once_is_bounded(sampler, top):
    for options, steps in (({"lanes": 1024}, LANE_LENGTH), ({"state": "cold", "window": 1 << 16}, 1 << 16)):
        rows = Scorer(sampler, top=top, **options)._segments([], 0)[1]
        assert rows >= 1
        assert rows * steps * (1 + 2 * top) <= MAX_TOKENS or rows == 1
    assert Scorer(sampler, lanes=1024)._segments([], 0)[1] == MAX_TOKENS // LANE_LENGTH


def test_texts_side_by_side_are_fewer_where_many_likeliest_come_back(sampler, monkeypatch):
    asked, pack = [], scorer_module.pack

    def lay(segments, rows):
        asked.append(rows)
        return pack(segments, rows)

    monkeypatch.setattr(scorer_module, "pack", lay)
    monkeypatch.setattr(scorer_module, "MAX_TOKENS", 2 * scorer_module.FILL * (1 + 2 * 3))
    texts = [random_text(n, seed=n) for n in (30, 3, 9, 80)]
    for (total, _), text in zip(Scorer(sampler, top=3).score_each(texts), texts, strict=True):
        assert total.logp == pytest.approx(Scorer(sampler).score(text).logp, rel=1e-5)
    assert asked[0] == 2


def test_at_most_a_thousand_likeliest_tokens_are_given():
    large = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=50_000), documents=False)
    assert Scorer(large, top=1000).top == 1000
    with pytest.raises(UsageError, match="1001"):
        Scorer(large, top=1001)


def test_a_prompt_needs_a_state_that_is_carried(sampler):
    for options in ({"state": "cold"}, {"lanes": 2}):
        with pytest.raises(UsageError, match="prompt"):
            Scorer(sampler, **options).score("abc", prompt="ab")


@pytest.mark.parametrize("candidates", [[], ["a", ""]])
def test_nothing_cannot_be_ranked(scorer, candidates):
    with pytest.raises(UsageError, match="candidate"):
        scorer.rank("a", candidates)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), (64, 65, 130), (0, 40, 40)])
def test_a_text_after_a_state_has_the_scores_that_it_has_after_its_prompt(task, params, cuts):
    sampler, text = Sampler(task, TOKENIZER, params), random_text(200)
    alone = Scorer(sampler, top=3).per_token(text, "abc")
    scorer = StateScorer(sampler, sampler.read("abc"), top=3)
    parts = [scorer.feed(part) for part in np.split(TOKENIZER.encode(text), cuts)]
    for name in ("tokens", "top"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(alone, name))
    for name in ("logp", "top_logp"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(found, getattr(alone, name), **CLOSE)


def test_a_scorer_can_be_used_by_several_threads(task, params):
    texts, found = [random_text(100, seed) for seed in range(8)], {}
    alone = [Scorer(Sampler(task, TOKENIZER, params)).score(text).logp for text in texts]
    shared = Scorer(Sampler(task, TOKENIZER, params))

    def score(i):
        found[i] = [shared.score(texts[i]).logp for _ in range(5)]

    threads = [threading.Thread(target=score, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [alone[i]] * 5 for i in range(8)}
