"""Runs conditioned on labels and numbers: sampling, scoring, saving and replaying."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import labelled
import numpy as np
import pytest

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference import quality
from jaxgen.inference.beam_search import BeamConfig, beam
from jaxgen.inference.chat import ChatSession
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.receipts import StateOrigin, beam_receipt, read_receipt, receipt
from jaxgen.inference.receipts import replay as replay_receipt
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.scorer import Scorer
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.language.conditioning import Condition
from jaxgen.tokenizers import EOS
from jaxgen.trainer.run import resume, start

GREEDY = GenerationConfig(6, temperature=0.0)


def replay(sampler, value, where="the receipt"):
    """The replay of a receipt as it is read from a file."""
    return replay_receipt(sampler, read_receipt(value, where), where)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return labelled.train(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def sampler(run) -> Sampler:
    return Sampler.load(run)


def logp(sampler: Sampler, text: str) -> float:
    """Of a text with its end, token by token."""
    state, total = sampler.read(), 0.0
    for token in [*sampler.tokenizer.encode(text), EOS]:
        total += float(jax.nn.log_softmax(state.logits[0])[token])
        state, _ = sampler.step(state, int(token))
    return total


def test_a_text_is_what_its_label_and_its_number_say(sampler):
    for (label, n), text in labelled.TEXTS.items():
        assert sampler.conditioned(label, [n]).sample("", GREEDY) == [text]


def test_knowing_them_is_worth_what_a_text_cannot_be_guessed_by(run):
    report = json.loads((run / "report.json").read_text())
    assert report["val_loss"] < 0.1
    assert report["blind_loss"] > report["val_loss"] + 0.5


def test_the_state_begins_from_the_mean_unless_something_is_said(sampler):
    known = sampler.conditioning
    shares = dict(zip(known.labels, known.shares))
    mean = sampler.conditioned(shares, known.means)
    jax.tree.map(np.testing.assert_array_equal, sampler.initial_state().carry, mean.initial_state().carry)
    p = sampler.weights.params
    flat = known.vector() @ np.asarray(p["condition_kernel"]) + np.asarray(p["condition_bias"])
    np.testing.assert_allclose(sampler.initial_state().carry[0][0], np.tanh(flat), rtol=1e-5, atol=1e-7)


def test_between_two_labels_the_vector_is_between_theirs(sampler):
    first, second, between = (
        sampler.conditioned(each, [2]).conditioning.vector(sampler.conditioned(each, [2]).condition)
        for each in ("first", "second", {"first": 1, "second": 3})
    )
    np.testing.assert_allclose(between, 0.25 * first + 0.75 * second)
    share = [
        float(jax.nn.softmax(sampler.conditioned({"first": 1 - w, "second": w}, [2]).read().logits[0])[3])
        for w in (0.0, 0.5, 1.0)
    ]
    assert share[0] > 0.9
    assert share[0] > share[1] > share[2]
    assert share[2] < 0.1


def test_another_condition_leaves_the_sampler_as_it_was(sampler):
    before = sampler.sample("", GREEDY)
    other = sampler.conditioned("first", [3])
    assert (sampler.condition, other.condition) == (None, Condition((("first", 1.0),), (3.0,)))
    assert sampler.sample("", GREEDY) == before
    assert other.with_params(other.weights.params).sample("", GREEDY) == ["aaa"]


def test_a_prompt_is_read_behind_the_label_and_a_state_carries_it_on(sampler, tmp_path):
    mine = sampler.conditioned("second", [3])
    assert mine.sample("b", GREEDY) == ["bb"]
    mine.save_state(tmp_path / "s.npz", mine.read("b"))
    assert sampler.sample("", GREEDY, state=sampler.load_state(tmp_path / "s.npz")) == ["bb"]


def test_samples_do_not_depend_on_how_many_are_drawn_under_a_label(sampler):
    mine, settings = sampler.conditioned({"first": 1, "second": 1}), GenerationConfig(5, 1.5, seed=4)
    assert mine.sample("", settings, num_samples=6)[4:] == mine.sample("", settings, num_samples=2, first=4)


def test_beams_begin_from_the_label_too(sampler):
    for n in (1, 3):
        assert [each.text for each in beam(sampler.conditioned("first", [n]), width=3, length=6)] == ["a" * n]


def test_a_score_is_under_the_label_and_the_sum_of_its_tokens(sampler):
    mine, other = sampler.conditioned("first", [2]), sampler.conditioned("second", [2])
    scores = [Scorer(each).score("aa").logp for each in (mine, other, sampler)]
    np.testing.assert_allclose(scores, [logp(each, "aa") for each in (mine, other, sampler)], rtol=1e-4)
    assert scores[0] > scores[2] > scores[1]
    each = [score.logp for score, _ in Scorer(mine).score_each(["aa", "a", "aa"])]
    assert each[0] == pytest.approx(each[2], rel=1e-5) == pytest.approx(scores[0], rel=1e-4)


def test_a_receipt_names_the_condition_and_is_replayed_under_it(sampler):
    mine, settings = sampler.conditioned({"first": 1, "second": 2}, [2.5]), GenerationConfig(6, 1.3, seed=2)
    (sample,) = mine.samples("", settings)
    value = json.loads(json.dumps(receipt(mine, settings, sample, prompt="", unk="error")))
    assert value["condition"] == {"labels": {"first": 1 / 3, "second": 2 / 3}, "features": [2.5]}
    assert replay(sampler, value).identical
    changed = {"labels": {"first": 1.0}, "features": [1.0]}
    result = replay(sampler, value | {"condition": changed})
    assert result.first_divergence is not None or result.max_logp_diff > 1e-3
    search = BeamConfig(2, 6)
    found = beam(mine, **search._asdict())[0]
    fixed = {"prompt": "", "unk": "error", "origin": StateOrigin()}
    assert replay(sampler, json.loads(json.dumps(beam_receipt(mine, search, 1, found, **fixed)))).identical


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"labels": {"third": 1.0}, "features": None}, "Unknown label 'third'"),
        ({"labels": "first", "features": None}, "labels with their shares"),
        ({"labels": {"first": "much"}, "features": None}, "labels with their shares"),
        ({"labels": None, "features": [1, 2]}, "2 numbers were given"),
        ({"labels": None, "features": [10**400]}, "labels with their shares"),
        ({"labels": None}, "labels with their shares"),
        (5, "labels with their shares"),
        (None, "labels with their shares"),
    ],
)
def test_a_receipt_under_what_cannot_be_is_refused(sampler, condition, said):
    (sample,) = sampler.samples("", GREEDY)
    value = receipt(sampler, GREEDY, sample, prompt="", unk="error")
    with pytest.raises(DataError, match=f"line 3.*{said}"):
        replay(sampler, value | {"condition": condition}, "line 3")


def test_a_receipt_without_a_condition_is_none_of_this_run_and_the_other_way_round(sampler):
    (sample,) = sampler.samples("", GREEDY)
    value = receipt(sampler, GREEDY, sample, prompt="", unk="error")
    plain = Sampler(sampler.task, sampler.tokenizer, sampler.weights.params, documents=True)
    with pytest.raises(DataError, match="labels"):
        replay(plain, value)
    del value["condition"]
    with pytest.raises(DataError, match="condition"):
        replay(sampler, value)


def test_a_conversation_begins_its_next_text_under_another_label(sampler):
    talk = ChatSession(sampler.conditioned("first", [3]), GREEDY)
    assert "".join(piece.text for piece in talk.send()) == "aaa"
    talk.sampler = sampler.conditioned("second", [2])
    assert "".join(piece.text for piece in talk.send()) == "bb"
    talk.undo()
    assert talk.text == ""


def test_a_run_without_labels_refuses_them(sampler):
    plain = Sampler(sampler.task, sampler.tokenizer, sampler.weights.params, documents=True)
    with pytest.raises(UsageError, match="labels"):
        plain.conditioned("first")
    with pytest.raises(UsageError, match="'first'"):
        sampler.conditioned("fist")


# --- evaluation


@pytest.fixture(scope="module")
def reference(run):
    return quality.ReferenceData.of_run(LoadedRun.open(run))


def test_texts_are_drawn_under_the_conditions_of_validation_texts(sampler, reference):
    result = quality.evaluate_samples(
        sampler, [0.0, 1.0], GenerationConfig(6, block=2), num_samples=5, reference=reference
    )
    at = quality.spread(5, len(reference.val))
    asked = [reference.conditions[i] for i in at]
    assert sorted(map(str, (c for c, n in result.drawn for _ in range(n)))) == sorted(map(str, asked))
    greedy, _ = result.rows
    assert (greedy.texts, greedy.tokens) == (5, sum(len(reference.val[i]) + 1 for i in at))
    assert greedy.logp == pytest.approx(result.validation.logp, rel=1e-4)
    under = [
        logp(sampler.with_condition(condition), reference.val[i]) / (len(reference.val[i]) + 1)
        for i, condition in zip(at, asked)
    ]
    assert max(under) > result.validation.logp > min(under)
    told = result.to_json()["conditions"]
    assert sum(each["texts"] for each in told) == 5


def test_under_one_condition_real_texts_under_it_stand_beside(sampler, reference):
    known = reference.conditions[0]
    same = [text for text, each in zip(reference.val, reference.conditions) if each == known]
    result = quality.evaluate_samples(
        sampler.with_condition(known), [0.0], GenerationConfig(6), num_samples=50, reference=reference
    )
    assert result.validation.texts == len(same)
    assert result.validation.characters == sum(map(len, same))
    between = sampler.conditioned({"first": 1, "second": 1}, [2])
    assert (
        quality.evaluate_samples(between, [0.0], GenerationConfig(6), num_samples=2, reference=reference).validation
        is None
    )


def test_without_validation_texts_a_condition_must_be_given(sampler, reference):
    with pytest.raises(UsageError, match="--label"):
        quality.evaluate_samples(sampler, [0.0], GenerationConfig(6), num_samples=2)
    with pytest.raises(UsageError, match="--label"):
        quality.evaluate_samples(
            sampler, [0.0], GenerationConfig(6), num_samples=2, reference=replace(reference, conditions=None)
        )
    mine = sampler.conditioned("first", [2])
    assert quality.evaluate_samples(mine, [0.0], GenerationConfig(6), num_samples=2).rows[0].characters == 4


def test_the_reference_has_the_condition_of_every_validation_text(reference):
    for text, condition in zip(reference.val, reference.conditions, strict=True):
        assert labelled.TEXTS[condition.labels[0][0], int(condition.features[0])] == text


# --- the run itself


def test_a_run_keeps_what_it_knows_beside_its_tokenizer(run, sampler):
    saved = json.loads((run / "tokenizer.json").read_text())
    assert set(saved) == {"conditioning", "tokenizer"}
    assert json.loads((run / "config.json").read_text())["resolved"]["model"]["condition"] == 3
    assert sampler.conditioning.labels == ("first", "second")


def test_a_run_whose_labels_are_gone_is_refused(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    saved = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(saved["tokenizer"]))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Sampler.load(copy)


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_stopped(tmp_path):
    table = labelled.write_table(tmp_path, copies=5)
    more = {"steps": 6, "eval_every": 3, "cell": "elman", "dropout": 0.2}
    start(labelled.settings(table, tmp_path / "run", **more)).train()
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / f"{6:08d}")
    resume(str(copy)).train()
    ends = [CheckpointStore(path / "checkpoints").restore(6)[0] for path in (tmp_path / "run", copy)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    rows = [MetricsLog(path / "metrics.jsonl").read() for path in (tmp_path / "run", copy)]
    losses = [[(row["step"], row["train_loss"], row["val_loss"]) for row in each] for each in rows]
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == [3, 6]


@pytest.mark.slow
@pytest.mark.skipif("jax.local_device_count() < 2")
def test_two_devices_train_as_one(tmp_path):
    table, ends = labelled.write_table(tmp_path, copies=5), []
    for devices in (1, 2):
        config = labelled.settings(table, tmp_path / str(devices), steps=4, batch_size=16, devices=devices)
        trainer = start(config)
        trainer.train()
        ends.append(jax.tree.map(np.asarray, trainer.state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)
    assert jnp.isfinite(ends[0]["condition_kernel"]).all()
