"""What Python and notebooks show of results: one line without arrays and addresses, and HTML that is escaped."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.data.batches import Tokens
from jaxgen.inference.text_stream import Samples
from jaxgen.model import History, Report
from jaxgen.notebook import colored_tokens
from jaxgen.plots import AttentionMap, Best, ConfusionMatrix, Picture
from jaxgen.tokenizers import ByteTokenizer

UGLY = '<script>alert("a")</script>\x1b[2J\u202e'


@pytest.fixture(scope="module")
def results(tiny):
    settings = jaxgen.GenerationConfig(length=12, temperature=0.7, seed=1)
    scorer = jaxgen.Scorer(tiny, top=2)
    session = jaxgen.ChatSession(tiny, settings)
    state = tiny.read("abc")
    return {
        "sampler": tiny,
        "scorer": scorer,
        "score": scorer.score("abc"),
        "details": scorer.details("abc"),
        "tokens": scorer.per_token("abc"),
        "settings": settings,
        "long settings": jaxgen.GenerationConfig(temperature=tuple(np.linspace(0.1, 1, 500).tolist())),
        "function": jaxgen.GenerationConfig(length=3, temperature=lambda step: 0.5),
        "decoding": jaxgen.DecodingConfig(settings, beam=3),
        "chat": session,
        "state": state,
        "sample": next(tiny.samples("abc", settings)),
        "chunk": next(tiny.stream("abc", settings)),
        "continuation": jaxgen.continuations(tiny, state, 1, 2)[0],
        "tokenizer": tiny.tokenizer,
        "matrix": ConfusionMatrix(np.array([[3, 1], [0, 4]]), ["ham", UGLY]),
        "map": AttentionMap([UGLY, "b"], ["c"], np.array([[0.25, 0.75]])),
        "report": Report(step=3, val_loss=1.25, val_confusion=[[1]] * 99, val_labels={"a": 1}),
        "config": jaxgen.LanguageConfig(data=("a.txt",), hidden=8),
        "callback": jaxgen.Callback(),
    }


def test_every_object_has_a_line_without_arrays_and_addresses(results):
    for name, value in results.items():
        shown = repr(value)
        assert len(shown) < 300, name
        assert "\n" not in shown, name
        assert not re.search(r"0x[0-9a-f]{6}|array\(|Array\(|dtype", shown), (name, shown)


def test_a_line_says_what_matters(results):
    assert "12 tokens" in repr(results["sample"])
    assert repr(results["settings"]) == "GenerationConfig(length=12, temperature=0.7, seed=1)"
    assert repr(results["config"]) == "LanguageConfig(hidden=8, data=('a.txt',))"
    assert "perplexity" in repr(results["score"])
    assert "char level" in repr(results["sampler"])
    assert "87.5% of 8 texts" in repr(results["matrix"])


def test_training_objects_have_a_line(tiny):
    tokens = Tokens(np.zeros(100, np.int32), None, 100, 100)
    batches = jaxgen.make_batches("stream", tokens, batch_size=2, seq_len=5, seed=0)
    assert repr(batches) == "<jaxgen.StreamBatches: 2 x 5 tokens, 10 steps per epoch>"
    assert "array" not in repr(tokens)
    state = jaxgen.TrainState(np.int32(3), tiny._params, (), ())
    assert repr(state).startswith("<jaxgen.TrainState: step 3, ")
    step = jnp.int32(3)
    step.delete()
    assert repr(state._replace(step=step)).startswith("<jaxgen.TrainState: "), "after its arrays were donated"
    jax.jit(lambda state: repr(state) and state.step)(state._replace(carry=()))


def test_tokens_are_coloured_and_escaped(results):
    shown = results["sample"]._repr_html_()
    assert shown.count("<span title") == 12 + 4, "the tokens, and the scale"
    assert results["details"]._repr_html_().count("<span title") == 3 + 4
    assert Samples([results["sample"]] * 2)._repr_html_().count("sample 0") == 2
    ugly = colored_tokens([(UGLY, -0.5), ("\n", -20.0), ("a", float("nan"))])
    assert "<script>" not in ugly
    assert "\x1b" not in ugly
    assert "\u202e" not in ugly
    assert "↵\n" in ugly


def test_a_character_of_several_tokens_has_one_colour():
    tokenizer = ByteTokenizer()
    ids = [*tokenizer.encode("a漢"), 2]
    assert tokenizer.text_parts(ids, [-1.0] * 5) == [("a", -1.0), ("漢", -3.0), ("<eos>", -1.0)]
    assert tokenizer.text_parts(ids[:2], [-1.0] * 2) == [("a", -1.0), ("\ufffd", -1.0)]


def test_matrices_are_tables_with_escaped_labels(results):
    for name, cells in (("matrix", 4), ("map", 2)):
        shown = results[name]._repr_html_()
        assert shown.count("<td") == cells
        assert "<script>" not in shown
        assert "\u202e" not in shown
    assert "predicted label" in results["matrix"]._repr_html_()
    many = ConfusionMatrix(np.eye(200, dtype=int), [str(i) for i in range(200)])._repr_html_()
    assert "200" in many
    assert len(many) < 500_000


def test_a_report_shows_its_figures_and_its_matrix():
    report = Report(val_loss=0.5, val_labels={"<b>": {}, "c": {}}, val_confusion=[[1, 0], [1, 2]])
    shown = report._repr_html_()
    assert "val_loss" in shown
    assert "true label" in shown
    assert "<b>" not in shown
    assert report.confusion.counts.sum() == 4
    with pytest.raises(jaxgen.UsageError, match="labels"):
        Report(val_loss=0.5).confusion  # noqa: B018


def test_a_long_history_is_shortened():
    history = History([{"step": i, "val_loss": 1.0} for i in range(1_000)], "run", "token", Best(0))
    assert len(repr(history).splitlines()) < 60
    assert "999" in repr(history)
    assert history._repr_html_().count("<tr>") < 60


def test_values_can_be_drawn(results):
    for name in ("matrix", "map"):
        picture = results[name].plot()
        assert isinstance(picture, Picture)
        assert re.fullmatch(r"<jaxgen.Picture: \d+ x \d+ pixels>", repr(picture))
