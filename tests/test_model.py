"""``jaxgen.train`` and ``jaxgen.load``: a run as one object."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import read_texts

import jaxgen
from jaxgen.data.in_memory import data_settings
from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.receipts import receipt
from jaxgen.runs.manifest import tree_sha256

TINY = {"hidden": 4, "layers": 1, "batch_size": 2, "steps": 4, "devices": 1, "progress": False}
TEXT = "the cat sat on the mat.\n" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def content(settings, name="data"):
    (name,) = settings[name]
    return Path(name).read_text(encoding="utf-8")


def weights(run):
    return tree_sha256(LoadedRun.open(run).params()[1])


@pytest.mark.runs
def test_a_text_becomes_a_model_that_writes_scores_and_is_saved(tmp_path, capsys):
    model = jaxgen.train(TEXT, run="runs/mine", seq_len=8, **TINY)
    assert capsys.readouterr().out == ""
    text = model.generate("the ", length=12, temperature=0.7, seed=1)
    assert len(text) == 12
    assert model.generate("the ", length=12, temperature=0.7, seed=1, num_samples=2)[0] == text
    drawing = jaxgen.GenerationConfig(length=12, temperature=0.7, seed=1)
    assert jaxgen.Sampler.load("runs/mine").sample("the ", drawing) == [text] == [model.generate("the ", drawing)]
    assert "t" not in model.generate("the ", length=30, forbid="t", top_k=5)
    assert set(model.generate("the ", length=30, bias={"a": 1000.0})) == {"a"}
    with pytest.raises(UsageError, match="seed"):
        model.generate("the ", drawing, seed=2)
    with pytest.raises(UsageError, match="lenth"):
        model.generate("the ", lenth=2)
    assert model.score("the cat").logp < 0
    assert "val_loss" in model.evaluate()
    cold = model.evaluate(state="cold", window=8)
    assert cold["scored_loss"] == pytest.approx(cold["windows_64_loss"], rel=0.2)
    assert model.evaluate(temperature=0.02)["scored_bpc"] > cold["scored_bpc"]
    with pytest.raises(UsageError, match="temprature"):
        model.score("the cat", temprature=1.1)
    assert repr(model).startswith("<jaxgen.Model 'runs/mine': language, layernorm-lstm")
    sample = model.generate("the ", length=12, temperature=0.7, seed=1, details=True)
    assert (sample.text, sample.tokens.size) == (text, 12)
    assert [each.text for each in model.generate("the ", length=3, num_samples=2, details=True)]
    assert model.score("the cat", details=True).score == model.score("the cat")
    with pytest.raises(UsageError, match="confusion"):
        model.evaluate().confusion  # noqa: B018
    with pytest.raises(UsageError, match="predict"):
        model.predict("the")

    card = (model.path / "README.md").read_text(encoding="utf-8")
    config = json.loads((model.path / "config.json").read_text())
    digest = config["resolved"]["data"]["sha256"]
    assert all(part in card for part in (digest, "loss.png", "jaxgen sample --run .", "the "))

    history = model.history
    assert history["step"][-1] == 4
    assert len(repr(history).splitlines()) == len(history) + 1
    assert history._repr_html_().count("<tr>") == len(history) + 1
    assert history.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="val_loss"):
        history["vall_loss"]

    name = f"{len(TEXT):,} characters in memory"
    assert name in card
    assert history.title == f"mine: {name}"
    copy = model.save(tmp_path / "copy")
    assert len(list((copy / "checkpoints").iterdir())) == 1
    assert jaxgen.load(copy).history.rows == history.rows
    with pytest.raises(UsageError, match="empty"):
        model.save(tmp_path / "copy")
    for inside in (model.path, model.path / "checkpoints" / "00009999"):
        with pytest.raises(UsageError, match="inside"):
            model.save(inside)
    for folder in (model.path, tmp_path / "cache"):
        shutil.rmtree(folder)
    assert jaxgen.load(copy).generate("the ", length=12, temperature=0.7, seed=1) == text, "it is complete in itself"


@pytest.mark.runs
def test_the_run_is_that_of_its_settings(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    jaxgen.train("text.txt", run="a", seq_len=8, **TINY)
    settings = {name: value for name, value in TINY.items() if name != "progress"}
    jaxgen.start(jaxgen.LanguageConfig(data=("text.txt",), run="b", seq_len=8, **settings)).train()
    first, second = (json.loads((tmp_path / run / "config.json").read_text()) for run in "ab")
    assert first["config"] | {"run": ""} == second["config"] | {"run": ""}
    assert first["resolved"]["run_digest"] == second["resolved"]["run_digest"]
    assert weights("a") == weights("b")


@pytest.mark.runs
def test_a_stopped_run_is_resumed_bit_for_bit():
    class Stop(jaxgen.Callback):
        def on_step(self, event):
            if event.step == 2:
                raise KeyboardInterrupt

    options = {"seq_len": 8, "eval_every": 1, **TINY}
    jaxgen.train(TEXT, run="whole", **options)
    with pytest.raises(KeyboardInterrupt):
        jaxgen.train(TEXT, run="stopped", resume=True, callbacks=[Stop()], **options)
    with pytest.raises(CheckpointError, match="resume"):
        jaxgen.load("stopped").evaluate()
    with pytest.raises(UsageError, match="language"):
        jaxgen.train(run="stopped", resume=True, task="classify", progress=False)
    jaxgen.train(run="stopped", resume=True, steps=4, progress=False)
    assert weights("stopped") == weights("whole")
    assert jaxgen.load("stopped").history["val_loss"] == jaxgen.load("whole").history["val_loss"]


@pytest.mark.runs
def test_a_table_becomes_a_classifier_that_answers():
    table = {"text": ["good film", "bad film"] * 20, "label": ["yes", "no"] * 20}
    model = jaxgen.train(
        table, task="classify", text_column="text", label_column="label", preset="tiny", run="classifier", **TINY
    )
    card = (model.path / "README.md").read_text(encoding="utf-8")
    assert card.count("| accuracy") + card.count("| validation") >= 1
    assert model.predict("good")["label"] in ("yes", "no")
    assert [answer["label"] for answer in model.predict(["good"] * 2)] == [model.predict("good")["label"]] * 2
    assert model.evaluate().confusion.counts.shape == (2, 2)
    with pytest.raises(UsageError, match="classify"):
        model.generate("good")
    with pytest.raises(UsageError, match="attention"):
        model.attention("good")


@pytest.mark.runs
def test_separate_texts_end(capsys):
    model = jaxgen.train([f"word {i}" for i in range(30)], run="documents", **{**TINY, "progress": True})
    assert "jaxgen.load" in capsys.readouterr().out
    assert LoadedRun.open(model.path).has_documents


@pytest.mark.parametrize("data", ["book.txt", "tinyshakespeare", "a/folder", Path("book.txt")])
def test_a_name_is_a_file_or_a_data_set(data):
    assert data_settings(data) == {"data": (str(data),)}


def test_several_paths_are_files():
    assert data_settings([Path("a.txt"), Path("b.txt")]) == {"data": ("a.txt", "b.txt")}


def test_urls_are_data_one_or_several():
    url = "https://example.org/book.txt"
    assert data_settings(url) == {"data": (url,)}
    assert data_settings([url, Path("a.txt")]) == {"data": (url, "a.txt")}
    with pytest.raises(UsageError, match="names data"):
        data_settings([url, "a text"])
    assert "text_column" in data_settings(text=[url])


@pytest.mark.parametrize(
    ("data", "name"),
    [("a\nb", "3 characters in memory"), (["a"], "1 text in memory"), ({"line": ["a", "b"]}, "2 rows in memory")],
    ids=["text", "texts", "table"],
)
def test_data_in_memory_are_named_by_what_they_are(data, name):
    settings = data_settings(data)
    assert read_texts(settings["data"], text_column=settings.get("text_column")).name == name
    (file,) = map(Path, settings["data"])
    file.unlink()
    with pytest.raises(DataError, match=f"{name} .*again"):
        read_texts(settings["data"])


def test_rows_as_dictionaries_are_a_table():
    named = {"text_column": "text", "label_column": "label"}
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2, "more": {}}]
    columns = {"text": ["a", "b"], "label": [1, 2]}
    assert data_settings(iter(rows), settings=named) == data_settings(columns, settings=named)


def test_validation_data_are_read_as_the_data():
    texts = data_settings(["a"], settings={"val_data": ["b", "c"]})
    assert [json.loads(line)["text"] for line in content(texts, "val_data").splitlines()] == ["b", "c"]
    assert data_settings("a.txt", settings={"val_data": Path("b.txt")})["val_data"] == ("b.txt",)
    named = {"text_column": "text", "label_column": "label"}
    table = {"text": ["a"], "label": [1]}
    both = data_settings(table, task="classify", settings={**named, "val_data": table, "test_data": table})
    assert both["val_data"] == both["test_data"] == both["data"]
    with pytest.raises(UsageError, match="form"):
        data_settings("a.txt", settings={"val_data": ["b"]})
    with pytest.raises(UsageError, match="type"):
        data_settings("a.txt", settings={"val_data": 3})


def test_a_string_with_a_line_break_is_a_text_and_so_is_any_that_is_given_as_text():
    assert content(data_settings("to be\nor not")) == "to be\nor not"
    assert content(data_settings(text="book.txt")) == "book.txt"
    assert data_settings("to be\nor not") == data_settings("to be\nor not"), "the same file for the same text"


@pytest.mark.parametrize(
    "make", [list, tuple, iter, lambda texts: np.array(texts)], ids=["list", "tuple", "iterator", "array"]
)
def test_an_iterable_of_strings_is_separate_texts(make):
    settings = data_settings(make(["one\ntwo", "thrée"]))
    assert [json.loads(line)["text"] for line in content(settings).splitlines()] == ["one\ntwo", "thrée"]
    assert settings["text_column"] == "text"


def test_columns_of_tables_become_rows():
    class Frame:  # as those of pandas and polars
        columns = ["text", "label", "other"]

        def __getitem__(self, name):
            return {"text": ["a", np.nan], "label": np.array([1, 2]), "other": [{}, {}]}[name]

    named = {"text_column": "text", "label_column": "label"}
    rows = [json.loads(line) for line in content(data_settings(Frame(), settings=named)).splitlines()]
    assert rows == [{"text": "a", "label": 1}, {"text": None, "label": 2}]
    columns = {"text": ["a", None], "label": [1, 2]}
    assert data_settings(Frame(), settings=named) == data_settings(columns, settings=named)
    with pytest.raises(UsageError, match="text_column"):
        data_settings(columns)
    with pytest.raises(UsageError, match="txt"):
        data_settings(columns, settings={"text_column": "txt"})
    assert data_settings({"line": ["a"]})["text_column"] == "line", "the only column has the texts"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (3, UsageError),
        (b"bytes", UsageError),
        (["a", None], DataError),
        ([], DataError),
        ({"text": []}, DataError),
        ({}, DataError),
        ([{}], DataError),
        ("long" * 100, UsageError),
        ({"text": "hello"}, DataError),
        ({"text": None}, DataError),
        ({0: ["a"]}, DataError),
        ({"train": {"text": ["a"]}, "test": {"text": ["b"]}}, UsageError),
        ({"text": [{1}]}, DataError),
        ({"text": [np.zeros(3)]}, DataError),
        ("once upon a time", UsageError),
        ("is/was it? once upon a time", UsageError),
        ({"b", "a"}, UsageError),
        ([{"text": "a"}, "b"], DataError),
        ([{0: "a"}], DataError),
        (bytearray(b"bytes"), UsageError),
        (io.StringIO("a"), UsageError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_of_another_kind_are_refused(data, error):
    with pytest.raises(error):
        data_settings(data)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="different"):
        data_settings({"text": ["a"], "label": [1, 2]}, task="classify")


@pytest.mark.parametrize("text", [3, b"bytes", Path("a.txt"), {"text": ["a"]}, ["a", 1]], ids=str)
def test_a_text_of_another_kind_is_refused(text):
    with pytest.raises((UsageError, DataError)):
        data_settings(text=text)


def test_separate_texts_are_for_language_models():
    with pytest.raises(UsageError, match="table"):
        data_settings(["a"], task="translate")


def test_strings_that_name_files_are_refused_as_texts(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for names in (["a.txt"], ["a.txt", "b.txt"], ["python-docs"]):
        with pytest.raises(UsageError, match="Path"):
            data_settings(names)
    assert "text_column" in data_settings(text=["a.txt"])


@pytest.mark.parametrize(
    "options",
    [
        {"task": "classfy"},
        {"hiden": 3},
        {"data": "a\nb", "text": "c"},
        {"resume": True},
        {"resume": "never", "run": "runs/a"},
        {"run": 3},
        {"data": "no-such-file"},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_written(options, tmp_path):
    with pytest.raises((UsageError, DataError)):
        jaxgen.train(**{"progress": False, **options})
    assert not (tmp_path / "runs").exists()


@pytest.mark.runs
def test_a_conditional_model_writes_texts_of_a_label_and_draws_their_receipts_again():
    table = {"text": ["aaaa", "bbbb"] * 20, "label": ["x", "y"] * 20, "size": [1, 2] * 20}
    columns = {"text_column": "text", "label_column": "label", "feature_columns": ("size",)}
    model = jaxgen.train(table, **columns, preset="tiny", run="conditional", seq_len=8, **TINY)
    settings = GenerationConfig(length=8, seed=1)
    of_y = model.sampler.conditioned("y", [2.0])
    assert model.generate("", settings, label="y", features=[2.0]) == of_y.sample("", settings)[0]
    with pytest.raises(UsageError, match="'z'"):
        model.generate(label="z")
    with pytest.raises(UsageError, match="state"):
        model.generate(label="y", state=model.sampler.read("a"))

    (sample,) = of_y.samples("", settings)
    written = json.loads(json.dumps(model.generate("", settings, label="y", features=[2.0], receipts=True)))
    assert written == json.loads(json.dumps(receipt(of_y, settings, sample, prompt="", unk="error")))
    with pytest.raises(UsageError, match="receipts"):
        model.generate(receipts=True, details=True)
    assert model.replay(written).identical
    assert not model.replay(
        {**written, "tokens": [*written["tokens"][::-1], 4], "logp": [*written["logp"], 0.0]}
    ).identical
    with pytest.raises(DataError, match="receipt"):
        model.replay({"text": "a"})
