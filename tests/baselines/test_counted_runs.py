"""Runs of an n-gram model: the same folder, evaluations and sampler as for a recurrent one."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

import numpy as np
import pytest
from edited import write

from jaxgen.baselines import ngram as counting
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.state import interpolate
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.tokenizers import EOS, PAD, UNK
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Started
from jaxgen.trainer.run import resume, start
from jaxgen.trainer.trainer import Interrupted

from .textbook import BEGIN, Textbook


def settings(book, run, **more: Any) -> Any:
    sizes = {"model": "ngram", "order": 3, "batch_size": 4, "seq_len": 8}
    return DATA["language"].Config(**{"data": (str(book),), "run": str(run), **sizes, **more})


@pytest.fixture(scope="module")
def trained(book, tmp_path_factory):
    run = tmp_path_factory.mktemp("counted") / "run"
    return run, start(settings(book, run)).train()


def test_the_validation_loss_of_a_run_is_that_of_the_formulas(book, trained):
    run, finished = trained
    corpus = DATA["language"].load(settings(book, run)).corpus
    textbook = Textbook(corpus.train.ids.tolist(), corpus.tokenizer.vocab_size, 3, EOS)
    wanted = textbook.loss(corpus.val.ids.tolist())
    assert finished.report["val_loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_checkpoint_of_another_run_is_refused_and_an_edited_log_is_a_warning(book, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    start(settings(book, tmp_path / "other", seed=1)).train()
    row = json.loads((run / "metrics.jsonl").read_text())
    (run / "metrics.jsonl").write_text(json.dumps({**row, "val_loss": 0.5}) + "\n")
    notes = []
    resume(str(run), emit=lambda event: notes.append(getattr(event, "text", "")))
    assert any("WARNING" in note and "line 1" in note for note in notes)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", run / "checkpoints")
    for ask in (Sampler.load, lambda run: resume(str(run))):
        with pytest.raises(CheckpointError, match="another run"):
            ask(run)


def test_the_validation_loss_of_documents_is_that_of_the_formulas(book, tmp_path):
    config = settings(book, tmp_path / "run", documents="line")
    corpus = DATA["language"].load(config).corpus
    textbook = Textbook(corpus.train.ids.tolist(), corpus.tokenizer.vocab_size, 3, EOS)
    logp, context = [], (BEGIN,)
    for token in corpus.val.ids.tolist():
        logp.append(np.log(textbook.probability(token, context)))
        context = (BEGIN,) if token == EOS else (*context, token)
    assert start(config).train().report["val_loss"] == pytest.approx(-np.mean(logp), rel=1e-5)
    texts = list(
        Sampler.load(tmp_path / "run").samples("", GenerationConfig(length=200, temperature=1.0), num_samples=4)
    )
    assert {text.end for text in texts} == {"eos"}


def test_a_run_leaves_one_row_one_checkpoint_and_the_report(trained):
    run, finished = trained
    (row,) = MetricsLog(run / "metrics.jsonl").read()
    assert {name: row[name] for name in finished.report} == finished.report
    assert (row["step"], row["train_loss"], row["learning_rate"]) == (0, None, None)
    store = LoadedRun.open(run).checkpoints
    assert (store.steps(), store.metric(0)) == ([0], finished.report["val_loss"])
    report = json.loads((run / "report.json").read_text())
    assert report == {"step": 0, "best_step": 0, **finished.report}


def test_the_speed_is_that_of_counting(book, tmp_path):
    trainer = start(settings(book, tmp_path / "run"))
    assert trainer.progress.seconds > 0
    trainer.progress.seconds = 0.5
    trainer.train()
    (row,) = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert (row["tokens_per_second"], row["seconds"]) == (2 * trainer.data.corpus.train.ids.size, 0.5)


def test_whoever_stops_the_counting_leaves_no_folder(book, tmp_path, monkeypatch):
    def stopped(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(counting, "count_ngrams", stopped)
    with pytest.raises(KeyboardInterrupt):
        start(settings(book, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_with_a_sentence(number, book, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(counting, "count_ngrams", lambda data: signal.raise_signal(number))
        with pytest.raises(Interrupted, match="no run") as stopped:
            start(settings(book, run))
    assert stopped.value.exit_code == 128 + number
    assert not run.exists()
    trainer = start(settings(book, run))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_metrics", lambda *_, **__: signal.raise_signal(number))
        with pytest.raises(Interrupted, match="--resume") as stopped:
            trainer.train()
    assert stopped.value.exit_code == 128 + number
    assert resume(str(run)).train().step == 0


def test_nothing_is_counted_for_a_folder_that_is_taken(book, trained, monkeypatch):
    monkeypatch.setattr(counting, "count_ngrams", lambda data: pytest.fail("counted for nothing"))
    with pytest.raises(UsageError, match="holds a run"):
        start(settings(book, trained[0]))


def test_samples_repeat_and_hold_neither_padding_nor_unknowns(trained):
    hot = GenerationConfig(length=300, temperature=1e6)  # every token about as likely as any other
    first, again = (list(Sampler.load(trained[0]).samples("The ", hot, num_samples=2)) for _ in range(2))
    assert [s.text for s in first] == [s.text for s in again]
    assert first[0].text != first[1].text
    drawn = np.concatenate([s.tokens for s in first])
    assert drawn.size == 600
    assert not set(drawn) & {PAD, UNK, EOS}


def test_a_state_can_be_continued_from_a_file(trained, tmp_path):
    sampler = Sampler.load(trained[0])
    sampler.save_state(tmp_path / "state.npz", sampler.read("The ca"))
    state = sampler.load_state(tmp_path / "state.npz")
    assert sampler.sample("t", GenerationConfig(length=20), state=state) == sampler.sample(
        "The cat", GenerationConfig(length=20)
    )


def test_nothing_lies_between_two_states(trained):
    sampler = Sampler.load(trained[0])
    with pytest.raises(UsageError, match="cannot be mixed"):
        interpolate(sampler.read("The "), sampler.read("A "), 0.5)


def test_a_finished_run_says_so_and_reports_again(trained):
    run, finished = trained
    events: list[Any] = []
    assert resume(str(run), emit=events.append).train().report == finished.report
    assert [type(event) for event in events] == [Note, Started, Finished]
    assert "counted once" in events[0].text
    assert len(MetricsLog(run / "metrics.jsonl").read()) == 1


def test_a_run_that_was_stopped_before_its_checkpoint_is_counted_again(trained, tmp_path):
    run, finished = shutil.copytree(trained[0], tmp_path / "run"), trained[1]
    shutil.rmtree(run / "checkpoints")
    (run / "report.json").unlink()
    events: list[Any] = []
    assert resume(str(run), emit=events.append).train().report == finished.report
    assert not [event for event in events if isinstance(event, (Note, Evaluated))]
    assert len(MetricsLog(run / "metrics.jsonl").read()) == 1
    one, two = (LoadedRun.open(each).checkpoints.digest(0) for each in (run, trained[0]))
    assert one == two


def test_a_run_whose_sizes_were_altered_is_refused(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    for name, value, message in (("order", 4, "order"), ("nodes", 7, "shape"), ("nodes", 0, "nodes")):
        changed = {**saved, "resolved": {**saved["resolved"], "model": {**saved["resolved"]["model"], name: value}}}
        write(run, changed)
        with pytest.raises(CheckpointError, match=message):
            Sampler.load(run)
