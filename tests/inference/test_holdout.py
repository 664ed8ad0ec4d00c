"""The text that ``--holdout`` keeps from training: which text it is, and that no run has read it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from builders import language_config, write

from jaxgen.errors import DataError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.scorer import Scorer
from jaxgen.tasks.language.corpus import prepare
from jaxgen.trainer.run import resume, start

LINES = [f"line {i} has {i % 7} things\n" for i in range(200)]
TEXT = "".join(LINES)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.txt", TEXT)


def counted(run, **more):
    """Train an n-gram run."""
    config = language_config("a.txt", run, **{"hidden": 256, "cell": "lstm", "model": "ngram", "order": 3, **more})
    return start(config).train().report


def documents(corpus, tokens):
    ends = np.append(tokens.doc_starts[1:], tokens.ids.size)
    return [corpus.tokenizer.decode(tokens.ids[a:b]) for a, b in zip(tokens.doc_starts, ends)]


def test_the_end_of_the_training_text_is_held_out():
    corpus, whole = prepare(["a.txt"], holdout=0.2), prepare(["a.txt"])
    decode = corpus.tokenizer.decode
    assert decode(corpus.train.ids) + decode(corpus.holdout.ids) == whole.tokenizer.decode(whole.train.ids)
    assert decode(corpus.val.ids) == whole.tokenizer.decode(whole.val.ids)
    assert corpus.holdout.chars == pytest.approx(whole.train.chars * 0.2, abs=1)
    assert corpus.holdout_sha256 == hashlib.sha256(decode(corpus.holdout.ids).encode()).hexdigest()
    assert (whole.holdout, whole.holdout_sha256) == (None, None)


def test_validation_data_leave_the_end_of_the_data_to_the_holdout():
    corpus = prepare(["a.txt"], holdout=0.1, val_data=[write("v.txt", "line 3\n")])
    assert TEXT.endswith(corpus.tokenizer.decode(corpus.holdout.ids))


def test_documents_are_held_out_whole_and_the_same_ones_for_every_seed_with_the_same_validation_data():
    def split(seed, **more):
        corpus = prepare(["a.txt"], documents="line", holdout=0.1, seed=seed, **more)
        return corpus, [documents(corpus, part) for part in (corpus.train, corpus.val, corpus.holdout)]

    corpus, (train, val, held) = split(0)
    assert sorted(train + val + held) == sorted(line.strip() for line in LINES)
    assert (len(val), len(held)) == (20, 18)
    data = {"val_data": [write("v.txt", "line 3\n")]}
    assert split(0, **data)[0].holdout_sha256 == split(1, **data)[0].holdout_sha256 != corpus.holdout_sha256


def test_one_text_of_each_label_stays_in_training():
    rows = "".join(f"text {n},{'rare' if n < 1 else 'ab'[n % 2]}\n" for n in range(40))
    columns = {"text_column": "t", "label_column": "l"}
    for seed in range(4):
        corpus = prepare([write("l.csv", f"t,l\n{rows}")], holdout=0.4, val_fraction=0.4, seed=seed, **columns)
        assert corpus.conditioning.labels == ("a", "b", "rare")
        sizes = [part.doc_starts.size for part in (corpus.train, corpus.val, corpus.holdout)]
        assert sum(sizes) == 40


def test_a_holdout_without_two_tokens_is_refused():
    with pytest.raises(DataError, match="--holdout"):
        prepare(["a.txt"], holdout=1e-9)
    with pytest.raises(UsageError, match="--holdout"):
        prepare(["a.txt"], holdout=1.0)


@pytest.mark.runs
def test_a_run_records_its_holdout_reads_it_again_and_reports_its_loss():
    report = counted("run", holdout=0.2)
    saved = LoadedRun.open("run")
    (text,) = saved.holdout()
    recorded = json.loads(Path("run/config.json").read_text())["resolved"]["holdout"]
    assert recorded == {"sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)}
    assert TEXT[: int(len(TEXT) * 0.9)].endswith(text)
    scored = Scorer.load("run").score(text[1:], prompt=text[0])
    assert report["holdout_loss"] == pytest.approx(scored.nats_per_token, abs=0.02)  # lanes begin with other contexts
    assert report["holdout_bpc"] == pytest.approx(report["holdout_loss"] / np.log(2))
    write("a.txt", TEXT.replace("things", "beings"))
    with pytest.raises(DataError, match="changed"):
        saved.holdout()


@pytest.mark.runs
def test_a_run_without_a_holdout_has_none_to_read():
    assert "holdout_loss" not in counted("run")
    with pytest.raises(UsageError, match="--holdout"):
        LoadedRun.open("run").holdout()


@pytest.mark.runs
def test_a_resumed_run_whose_data_changed_has_no_holdout_any_more():
    counted("run", holdout=0.2)
    write("a.txt", TEXT[::-1])
    assert "holdout" not in resume("run", data_changed="accept").resolved


@pytest.mark.runs
def test_weights_that_were_trained_on_the_held_out_text_are_refused():
    counted("all")
    with pytest.raises(UsageError, match="--init-from"):
        start(language_config("a.txt", "run", init_from="all", holdout=0.2))


def test_weights_that_were_trained_on_it_before_other_data_are_refused_too():
    counted("all")
    write("a.txt", TEXT[::-1])
    resume("all", data_changed="accept").train()
    write("a.txt", TEXT)
    with pytest.raises(UsageError, match="--init-from"):
        start(language_config("a.txt", "run", init_from="all", holdout=0.2))
