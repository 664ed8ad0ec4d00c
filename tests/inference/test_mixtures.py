"""Mixtures of runs: what they write and score, how their weights are fitted, and what is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from builders import language_config, write
from scipy.special import logsumexp

from jaxgen.errors import UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.mixture import fit_gate, fit_mixture, fit_weights, mix, mixture_loss
from jaxgen.inference.receipts import read_receipt, receipt
from jaxgen.inference.receipts import replay as replay_receipt
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.tokenizers import CharTokenizer
from jaxgen.trainer.run import start

TEXT = "".join(f"line {i} has {i % 7} things\n" for i in range(200))
SETTINGS = GenerationConfig(30, 1.0, 5)


def counted(path, order=3, **more):
    sizes = {"hidden": 256, "cell": "lstm", "model": "ngram", "order": order, "holdout": 0.2, **more}
    start(language_config("a.txt", path, **sizes)).save(0, 1.0)  # without a report, which compiles more
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two n-gram runs that held out the same text."""
    folder = tmp_path_factory.mktemp("mixed")
    write(folder / "a.txt", TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        counted("two", 2)
        counted("four", 4)
    return [str(folder / "two"), str(folder / "four")]


@pytest.fixture(scope="module")
def other(tiny):
    """A model of the same tokens as ``tiny``, with other weights."""
    normal = np.random.default_rng(8).normal
    params = jax.tree.map(lambda a: jax.numpy.asarray(normal(size=a.shape), a.dtype), tiny.params)
    return Sampler(tiny.task, tiny.tokenizer, params)


@pytest.mark.runs
def test_a_mixture_of_a_model_with_itself_writes_what_the_model_writes(tiny):
    both = mix([tiny, tiny], [0.2, 0.8])
    (alone,), (mixed,) = (list(each.samples("abc", SETTINGS)) for each in (tiny, both))
    assert mixed.text == alone.text
    np.testing.assert_allclose(mixed.logp, alone.logp, atol=1e-5)


@pytest.mark.runs
def test_the_score_of_a_token_is_mixed_from_those_of_the_members(tiny, other):
    text, weights = "abc head\ngab", [3, 1]
    one, two, both = (Scorer(each).per_token(text).logp for each in (tiny, other, mix([tiny, other], weights)))
    np.testing.assert_allclose(both, logsumexp(np.stack([one, two]), axis=0, b=[[0.75], [0.25]]), atol=1e-5)
    assert np.exp(Scorer(mix([tiny, other]), top=13).per_token("abc").top_logp).sum(axis=1) == pytest.approx(1)


def test_only_the_ratios_of_weights_matter(tiny, other):
    small, *more = (mix([tiny, other], weights) for weights in ([1, 3], [3, 9], [0.25, 0.75], [5e307, 1.5e308]))
    assert {each.digest for each in more} == {small.digest}
    again = mix([tiny, other], mix([tiny, other], [0.1, 0.23]).mixture["weights"])
    assert again.mixture == mix([tiny, other], [0.1, 0.23]).mixture


def test_sample_i_is_the_same_however_many_are_drawn(tiny, other):
    sampler = mix([tiny, other])
    texts = sampler.sample("abc", SETTINGS, num_samples=4)
    assert len(set(texts)) == 4
    assert sampler.sample("abc", SETTINGS, first=2) == texts[2:3]
    assert sampler.sample("c", SETTINGS, state=sampler.read("ab")) == texts[:1]


@pytest.mark.runs
def test_receipts_name_all_members_and_are_replayed(runs):
    for sampler in (mix(runs, [1, 2]), mix(runs, gate=[0, 0.5, 0.1, 1])):
        (drawn,) = sampler.samples("line", SETTINGS)
        made = json.loads(json.dumps(receipt(sampler, SETTINGS, drawn, prompt="line", unk="error")))
        assert [each["run"] for each in made["mix"]["members"]] == runs
        assert made["mix"]["members"][0]["checkpoint"] == Sampler.load(runs[0]).digest
        assert made["checkpoint"] == sampler.digest
        saved = read_receipt(made)
        assert saved.mix.open().digest == sampler.digest
        assert replay_receipt(saved.mix.open(), saved).identical
    assert mix(runs, [1, 2]).digest != mix(runs, [2, 1]).digest


def test_fitted_weights_are_those_of_a_grid_search():
    rng = np.random.default_rng(0)
    logp = np.log(rng.uniform(0.01, 1, (400, 2)) * [1.0, 0.8])
    weights = fit_weights(logp)
    grid = np.arange(1, 1000) / 1000
    losses = [mixture_loss(logp, np.log([w, 1 - w])) for w in grid]
    assert weights[0] == pytest.approx(grid[np.argmin(losses)], abs=1e-3)
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert fit_weights(np.log([[0.5, 0.1, 0.4]] * 3)) == [1.0, 1e-4, 1e-4]  # a weight is never 0


def test_a_fitted_gate_is_a_minimum_and_beats_fixed_weights():
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.2, 1, (600, 2))
    logp = np.log(np.where(rng.random((600, 2)) < sure, sure, (1 - sure) / 5))
    weights, confidence = fit_weights(logp), np.log(sure)
    gate = np.array(fit_gate(logp, confidence, np.log(weights)))

    def loss(gate):
        return mixture_loss(logp, gate[::2] + gate[1::2] * confidence)

    assert loss(gate) < mixture_loss(logp, np.log(weights)) - 0.001
    for i in range(4):
        for step in (-0.1, 0.1):
            assert loss(gate + step * np.eye(4)[i]) > loss(gate)


@pytest.mark.runs
@pytest.mark.parametrize("gated", [False, True])
def test_weights_are_fitted_on_the_held_out_text_and_give_the_loss_that_is_told(runs, gated):
    fit = fit_mixture(runs, gated=gated)
    assert fit == fit_mixture(runs, gated=gated)
    assert fit.loss < min(fit.losses) + 1e-4  # the smallest weight is not 0
    held = TEXT[: int(len(TEXT) * 0.9)][-fit.tokens :]
    scored = Scorer(mix(runs, fit.weights, gate=fit.gate)).score(held)
    assert scored.nats_per_token == pytest.approx(fit.loss, abs=1e-4)


def test_weights_are_not_fitted_where_a_run_may_have_read_the_text(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.txt", TEXT)
    for path, holdout in (("none", None), ("another", 0.1)):
        with pytest.raises(UsageError, match="held out"):
            fit_mixture([runs[0], counted(path, holdout=holdout)])


def test_a_model_without_a_run_has_no_text_to_fit_on(tiny):
    with pytest.raises(UsageError, match="no run"):
        fit_mixture([tiny, tiny])


def test_models_of_other_tokens_or_layouts_are_refused(tiny):
    tokenizer = CharTokenizer.train(["abc"])
    tokens = Sampler(tiny.task, tokenizer, tiny.params)
    documents = Sampler(tiny.task, tiny.tokenizer, tiny.params, documents=True)
    for other, word in ((tokens, "tokens"), (documents, "layouts")):
        with pytest.raises(UsageError, match=word):
            mix([tiny, other])


@pytest.mark.parametrize(
    "numbers",
    [
        *(
            {"weights": weights}
            for weights in ([1, 0], [1, -1], [1, float("nan")], [1], [-1, -1], [1e10, 1e-320], ["a", 1], 3)
        ),
        *({"gate": gate} for gate in ([1, 2], [0, 0, 0, float("inf")])),
        {"weights": [1, 1], "gate": [0, 0, 0, 0]},
    ],
)
def test_numbers_that_weigh_nothing_are_refused(tiny, numbers):
    with pytest.raises(UsageError):
        mix([tiny, tiny], **numbers)


@pytest.mark.parametrize("runs", ["runs/language-1", ["runs/language-1"], [], 3, [1, 2]])
def test_a_mixture_needs_two_runs(runs):
    with pytest.raises(UsageError):
        mix(runs)
