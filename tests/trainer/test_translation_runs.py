"""Runs of translation: few compiled shapes, the best step by BLEU, exact resuming with scheduled sampling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from contracts.task_cases import CASES

from jaxgen import jitted
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import DecodingConfig, Predictor
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.translate.data import TranslateConfig, TranslateData
from jaxgen.testing.tasks import Subject, check_a_run_stopped_and_resumed_equals_one_that_was_not
from jaxgen.tokenizers import UNK
from jaxgen.trainer.run import start

#: Pairs of four widths on either side: 8, 12, 16 and 24.
PAIRS = [("ab" * n, "BA" * n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)] * 3


@pytest.fixture
def settings(tmp_path: Path):
    """Settings of a run in a folder, on pairs of letters."""

    def make(run: str, pairs: Any = PAIRS, **more: Any) -> TranslateConfig:
        data = tmp_path / f"{run}.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        sizes = {"cell": "elman", "hidden": 8, "embed": 4, "batch_size": 4, "beam": 0, "sample_every": 0, "devices": 1}
        files = {"data": (str(data),), "source_column": "1", "target_column": "2", "run": str(tmp_path / run)}
        return TranslateConfig(**{"steps": 6, **sizes, **files, **more})

    return make


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [8, 2])
def test_training_and_evaluation_compile_one_function_a_width_and_no_more(buckets, settings):
    trainer = start(settings("run", buckets=buckets, steps=30, eval_every=15, hidden=8 + buckets))
    widths = len(trainer.data.batches._buckets)
    assert widths == min(buckets, 4)
    evaluation = jitted.jit_eval_step(trainer.task)
    trainer.train()
    assert trainer._train_steps._cache_size() == widths
    assert evaluation._cache_size() <= widths
    assert jitted.jit_encode(trainer.task)._cache_size() <= 4, "a width of sources each"


def test_a_resumed_run_reads_its_own_predictions_as_one_that_was_not_stopped(tmp_path, quick):
    """Beside what the contract has: scheduled sampling, smoothed labels, both directions, patience by BLEU."""
    more = {"scheduled_sampling": 0.4, "scheduled_sampling_steps": 20, "label_smoothing": 0.1, "bidirectional": True}
    sizes = {"cell": "elman", "hidden": 8, "steps": 48, "patience": 50, "lr": 0.01}
    subject = Subject("translate", replace(CASES["translate"], settings=more | sizes), tmp_path / "subject", quick)
    check_a_run_stopped_and_resumed_equals_one_that_was_not(subject)


def test_the_best_is_that_of_the_highest_bleu_and_patience_counts_from_there(settings, tmp_path, monkeypatch):
    bleus = iter([10.0, 30.0, 20.0, 29.0, 99.0])
    figures = TranslateData.text_metrics

    def told(self: Any, texts: Any, references: Any, final: bool) -> dict[str, Any]:
        return figures(self, texts, references, final) | ({} if final else {"bleu": next(bleus)})

    monkeypatch.setattr(TranslateData, "text_metrics", told)
    finished = start(settings("run", steps=10, eval_every=2, patience=2)).train()
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").read()
    assert [row["val_bleu"] for row in rows] == [10.0, 30.0, 20.0, 29.0]
    assert (finished.step, finished.best_step) == (8, 4)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").best() == 4
    assert LoadedRun.open(tmp_path / "run").params()[0] == 4


def test_a_run_from_another_one_keeps_its_vocabulary_and_begins_with_its_weights(settings, tmp_path):
    start(settings("old")).train()
    others = [("xa", "XA"), ("ya", "YA"), ("za", "ZA")] * 4
    trainer = start(settings("new", others, init_from=str(tmp_path / "old"), max_length=50))
    saved = LoadedRun.open(tmp_path / "old")
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, saved.params()[1])
    assert trainer.data.codec.source.to_json() == saved.codec.source.to_json()
    assert (trainer.data.splits["train"].inputs[0] == UNK).tolist() == [True, False]
    trainer.train()
    assert next(Predictor.load(tmp_path / "new").predict(["xa"]))["cut"] == 0


def test_the_final_report_is_of_what_beams_find(settings, tmp_path):
    finished = start(settings("run", beam=2, val_rows=5)).train()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    predictor = Predictor.load(tmp_path / "run")
    data = TranslateData.load(TranslateConfig(**LoadedRun.open(tmp_path / "run").config.model_dump()), predictor.codec)
    texts = [answer["text"] for answer in predictor.predict(data.splits["val"].raw, DecodingConfig(beam=2))]
    references = [[text] for text in data.splits["val"].texts]
    again = {f"val_{name}": value for name, value in data.text_metrics(texts, references, final=True).items()}
    assert {name: report[name] for name in again} == again
    assert finished.report["val_bleu"] == report["val_bleu"]
