"""Scores of a model that adapts to what it reads equal a plain loop in float64, and never look ahead."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.baselines.ngram import fit
from jaxgen.errors import DivergedError, UsageError
from jaxgen.inference.adaptation import Adaptation, NeuralCache
from jaxgen.inference.beam_search import beam
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.mixture import mix
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.inference.state import interpolate
from jaxgen.tasks.language.objective import LanguageTask
from jaxgen.tokenizers import EOS, ByteTokenizer, CharTokenizer, WordTokenizer

LETTERS = "abcd \n"
TOKENIZER = CharTokenizer.train([LETTERS])
V = TOKENIZER.vocab_size
#: The tests share these settings: another segment, size of the cache or ``top`` is compiled anew.
FAST = Adaptation(rate=0.05, decay=0.02, segment=5)
#: Reads as the model is, by the function that ``FAST`` compiles.
UNCHANGED = Adaptation(rate=0.0, decay=0.0, segment=5)
CACHE = NeuralCache(size=4, weight=0.3, sharpness=0.7)


def random_text(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


def sampler_of(tokenizer=TOKENIZER, documents=False, **options):
    """Random weights, large enough that what was read matters."""
    built = {"cell": "elman", "cell_options": {}, "hidden": 3, "layers": 1, **options}
    task = LanguageTask.build(vocab_size=tokenizer.vocab_size, **built)
    normal, shapes = np.random.default_rng(1).normal, jax.eval_shape(task.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * normal(size=a.shape), a.dtype), shapes)
    return Sampler(task, tokenizer, params, documents=documents)


@pytest.fixture(scope="module")
def sampler():
    return sampler_of()


def elman(params, h, tokens):
    """The states and log-probabilities of an Elman network, in NumPy."""
    states, logp = [], []
    for token in tokens:
        x = params["embedding"][token] @ params["stack/cells_0/input/kernel"] + params["stack/cells_0/input/bias"]
        h = np.tanh(x + h @ params["stack/cells_0/recurrent_kernel"])
        logits = h @ params["output/kernel"] + params["output/bias"]
        states.append(h)
        logp.append(logits - np.log(np.exp(logits).sum()))
    return np.array(states), np.array(logp)


def plain_loop(sampler, ids, adapt):
    """Log-probabilities [n, V] and states [n, H] before each of ``ids``; gradients are finite differences, float64."""
    leaves = jax.tree_util.tree_leaves_with_path(sampler.params)
    trained = {"/".join(key.key for key in path): np.float64(leaf) for path, leaf in leaves}
    params = {name: leaf.copy() for name, leaf in trained.items()}
    means = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    tokens, h, found, hidden = [int(TOKENIZER.encode("\n")[0]), *ids[:-1]], np.zeros(3), [], []
    for step, at in enumerate(range(0, len(ids), adapt.segment), start=1):
        read, after = tokens[at : at + adapt.segment], ids[at : at + adapt.segment]
        states, logp = elman(params, h, read)
        found.append(logp)
        hidden.append(states)

        def loss(h=h, read=read, after=after):
            return -elman(params, h, read)[1][np.arange(len(after)), after].sum() / adapt.segment

        gradient = {name: np.zeros_like(leaf) for name, leaf in params.items()}
        for name, leaf in params.items():
            for place in np.ndindex(leaf.shape):
                before = leaf[place]
                leaf[place] = before + 1e-5
                high = loss()
                leaf[place] = before - 1e-5
                gradient[name][place] = (high - loss()) / 2e-5
                leaf[place] = before
        for name, g in gradient.items():
            means[name] = 0.999 * means[name] + 0.001 * g * g
            scale = np.sqrt(means[name] / (1 - 0.999**step)) + 1e-3
            params[name] = params[name] - adapt.rate * g / scale + adapt.decay * (trained[name] - params[name])
        h = states[-1]
    return np.concatenate(found), np.concatenate(hidden)


def test_scores_equal_a_plain_loop_in_float64(sampler):
    ids = TOKENIZER.encode(random_text(23)).tolist()  # the last segment is not full
    found = Scorer(sampler, adapt=FAST).per_token(random_text(23))
    wanted, _ = plain_loop(sampler, ids, FAST)
    np.testing.assert_allclose(found.logp, wanted[np.arange(23), ids], atol=2e-4)
    unadapted, _ = plain_loop(sampler, ids, UNCHANGED)
    assert np.abs(wanted - unadapted)[5:].max() > 0.05  # the loop above would see an adaptation that does nothing


def test_the_cache_equals_its_equation_in_float64(sampler):
    ids = TOKENIZER.encode(random_text(23)).tolist()
    found = Scorer(sampler, adapt=FAST, cache=CACHE, top=V).per_token(random_text(23))
    logp, states = plain_loop(sampler, ids, FAST)
    for t in range(23):
        wanted, seen = np.exp(logp[t]), range(max(0, t - 4), t)
        if seen:
            share = np.exp([0.7 * states[t] @ states[i] for i in seen])
            wanted = 0.7 * wanted + 0.3 * np.bincount([ids[i] for i in seen], share / share.sum(), minlength=V)
        every = np.zeros(V)
        every[found.top[t]] = found.top_logp[t]
        np.testing.assert_allclose(every, np.log(wanted), atol=5e-4)
        assert (np.diff(found.top_logp[t]) <= 0).all()
        assert found.logp[t] == pytest.approx(np.log(wanted[ids[t]]), abs=5e-4)


@pytest.mark.parametrize("adapt", [FAST, pytest.param(None, marks=pytest.mark.runs)])
def test_a_temperature_divides_the_logits_and_not_what_the_weights_learn(sampler, adapt):
    ids = TOKENIZER.encode(random_text(23)).tolist()
    found = Scorer(sampler, adapt=adapt, temperature=1.7).per_token(random_text(23))
    logp, _ = plain_loop(sampler, ids, adapt or UNCHANGED)
    wanted = logp / 1.7 - np.log(np.exp(logp / 1.7).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.logp, wanted[np.arange(23), ids], atol=1e-5 if adapt is None else 2e-4)


WORDS = WordTokenizer.train(["ab ab cd cd ba ba\n"], min_count=1)
KINDS = {
    "word level, tied": {"tokenizer": WORDS, "tie": True, "hidden": 4, "cell": "gru"},
    "byte level, documents": {"tokenizer": ByteTokenizer(), "documents": True, "cell": "lstm", "layers": 2},
    "residual blocks": {"cell": "mingru", "block": "residual", "hidden": 4, "block_options": {}},
    "attention": {"cell": "attention", "hidden": 4, "block": "residual", "block_options": {}},
}


#: The one with attention has residual blocks too.
LATER = {"residual blocks"}


@pytest.mark.parametrize(
    "kind",
    [None, *(pytest.param(kind, marks=pytest.mark.slow if kind in LATER else pytest.mark.runs) for kind in KINDS)],
)
def test_the_rate_0_is_plain_scoring(sampler, kind):
    sampler, text = sampler if kind is None else sampler_of(**KINDS[kind]), "ab cd ba ab\n" * 12
    plain = Scorer(sampler).per_token(text, prompt="ab")
    found = Scorer(sampler, adapt=UNCHANGED).per_token(text, prompt="ab")
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.logp, plain.logp, atol=2e-6)
    better = Scorer(sampler, adapt=FAST).score(text)
    assert better.logp > Scorer(sampler).score(text).logp  # a text that repeats is learnt


def test_no_score_depends_on_later_text(sampler):
    scorer = Scorer(sampler, adapt=FAST, cache=CACHE, top=V)
    one, other = (scorer.per_token(random_text(24) + random_text(30, seed)).logp[:24] for seed in (1, 2))
    np.testing.assert_array_equal(one, other)


def test_where_a_text_is_cut_into_pieces_changes_no_bit(sampler):
    text, scorer = random_text(300), Scorer(sampler, adapt=FAST)
    whole = scorer.per_token(text).logp
    np.testing.assert_array_equal(scorer.per_token([text[:7], text[7:133], text[133:]]).logp, whole)


def test_a_prompt_is_adapted_to_and_not_scored(sampler):
    text, scorer = random_text(200), Scorer(sampler, adapt=FAST)
    whole = scorer.per_token(text)
    after = scorer.per_token(text[90:], prompt=text[:90])
    np.testing.assert_array_equal(after.tokens, whole.tokens[90:])
    # Without a prompt a line break is read first, which shifts the segments by one token.
    shifted = scorer.per_token(text[1:], prompt=text[:1])
    np.testing.assert_array_equal(after.logp, shifted.logp[89:])
    assert Scorer(sampler).score(text[90:], prompt=text[:90]).logp != scorer.score(text[90:], prompt=text[:90]).logp


def test_each_text_starts_from_the_trained_weights(sampler):
    scorer = Scorer(sampler, adapt=FAST)
    first = scorer.score(random_text(100))
    scorer.score(random_text(100, seed=5))
    assert scorer.score(random_text(100)) == first
    assert [score for score, _ in scorer.score_each([random_text(100)] * 2)] == [first, first]


@pytest.mark.runs
def test_weights_that_diverge_are_an_error():
    explosive = sampler_of(cell_options={"activation": "relu"}, hidden=4)
    with pytest.raises(DivergedError, match="rate"):
        Scorer(explosive, adapt=Adaptation(rate=1.0, decay=0.0)).score(random_text(2_000))


@pytest.mark.parametrize("options", [{"state": "cold"}, {"lanes": 2}])
def test_it_needs_a_text_that_is_read_in_order(sampler, options):
    with pytest.raises(UsageError, match="lanes"):
        Scorer(sampler, adapt=FAST, **options)


@pytest.mark.parametrize(
    "wrong", [{"rate": -1.0}, {"rate": float("nan")}, {"decay": 2.0}, {"segment": 0}, {"rate": "fast"}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        Adaptation(**wrong)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"weight": 1.0}, {"sharpness": -1.0}])
def test_options_of_the_cache_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        NeuralCache(**wrong)


def test_a_model_that_is_counted_cannot_adapt(ngrams):
    with pytest.raises(UsageError, match="recurrent"):
        Scorer(ngrams, adapt=FAST).score("ab")


@pytest.fixture(scope="module")
def ngrams():
    task, params = fit(TOKENIZER.encode(random_text(60)), V, 3, EOS)
    return Sampler(task, TOKENIZER, params)


@pytest.fixture(scope="module")
def mixed(sampler, ngrams):
    return mix([sampler, ngrams], [0.7, 0.3])


def mixture_of(network, ngrams, text):
    """What the mixture gives ``text`` from the log-probabilities that the network gives it."""
    return np.logaddexp(network + np.log(0.7), Scorer(ngrams).per_token(text).logp + np.log(0.3))


@pytest.mark.runs
def test_the_networks_of_a_mixture_adapt_as_they_would_alone(sampler, ngrams, mixed):
    text, options = random_text(60), {"adapt": FAST, "cache": CACHE, "temperature": 1.2, "top": V}
    network = Scorer(sampler, **options).per_token(text).logp
    found = Scorer(mixed, **options).per_token(text)
    np.testing.assert_allclose(found.logp, mixture_of(network, ngrams, text), atol=1e-5)
    np.testing.assert_allclose(np.exp(found.top_logp).sum(axis=1), 1, atol=1e-5)


@pytest.mark.runs
def test_a_mixture_with_a_rate_of_0_is_the_plain_mixture(sampler, ngrams, mixed):
    text = random_text(60)
    found = Scorer(mixed, adapt=UNCHANGED).per_token(text).logp
    np.testing.assert_allclose(found, mixture_of(Scorer(sampler).per_token(text).logp, ngrams, text), atol=2e-6)


# --- states with adapted weights


SETTINGS = GenerationConfig(length=20, seed=4)


@pytest.mark.runs
def test_a_state_that_adapted_reads_and_draws_with_its_own_weights(sampler):
    text = random_text(41)  # 40 pairs of tokens: 8 segments
    state = sampler.adapt(text, adaptation=FAST)
    reader = Scorer(sampler, adapt=FAST)
    after = [reader.per_token(text[1:] + letter, prompt=text[:1]).logp[-1] for letter in LETTERS]
    logp = jax.nn.log_softmax(state.logits[0])
    np.testing.assert_allclose(logp[TOKENIZER.encode(LETTERS)], after, atol=1e-6)
    adapted = Sampler(sampler.task, TOKENIZER, state.adapted.state.params[0])
    again = adapted.read_tokens(
        state.tokens[-1:], replace(sampler.initial_state(), carry=state.adapted.state.carry[0][0])
    )
    assert sampler.sample("ab", SETTINGS, state=state) == adapted.sample("ab", SETTINGS, state=again)
    assert sampler.sample("ab", SETTINGS, state=state) != sampler.sample("ab", SETTINGS, state=sampler.read(text))
    assert beam(sampler, "a", length=9, state=state)[0].text == beam(adapted, "a", length=9, state=again)[0].text


def test_to_adapt_in_parts_and_to_save_between_them_changes_no_bit(sampler, tmp_path):
    text = random_text(50)
    whole = sampler.adapt(text, adaptation=FAST)
    part = sampler.adapt(text[:18], adaptation=FAST)
    sampler.save_state(tmp_path / "s", part)
    part = sampler.adapt(text[18:], sampler.load_state(tmp_path / "s"), FAST)
    for one, other in ((whole, part), (whole, sampler.adapt(text, adaptation=FAST))):
        jax.tree.map(np.testing.assert_array_equal, one.adapted.state, other.adapted.state)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logits, other.logits)


@pytest.mark.runs
def test_the_state_of_a_mixture_is_saved_and_continued(mixed, sampler, tmp_path):
    text = random_text(50)
    whole = mixed.adapt(text, adaptation=FAST)
    mixed.save_state(tmp_path / "s", mixed.adapt(text[:18], adaptation=FAST))
    part = mixed.adapt(text[18:], mixed.load_state(tmp_path / "s"), FAST)
    np.testing.assert_array_equal(part.logits, whole.logits)
    alone = sampler.adapt(text, adaptation=FAST)
    for mine, own in zip(jax.tree.leaves(whole.adapted.state.params[0]), jax.tree.leaves(alone.adapted.state.params)):
        np.testing.assert_allclose(mine, own, atol=1e-5)


def test_adaptation_continues_a_state_that_was_only_read(sampler):
    state = sampler.adapt(random_text(30), sampler.read("abba"), FAST)
    assert (state.adapted.read, state.tokens.size) == (4 + 25, 34)


def test_a_text_shorter_than_a_segment_cannot_be_adapted_to(sampler):
    with pytest.raises(UsageError, match="segment"):
        sampler.adapt(random_text(5), adaptation=FAST)


def test_states_with_adapted_weights_are_not_interpolated(sampler):
    state = sampler.adapt(random_text(30), adaptation=FAST)
    with pytest.raises(UsageError, match="adapted"):
        interpolate(state, sampler.read("ab"), 0.5)
