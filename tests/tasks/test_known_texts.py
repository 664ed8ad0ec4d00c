"""Labels and numbers beside texts: reading, splitting, encoding as vectors, alignment with tokens."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import write

from jaxgen.data.batches import make_batches, stream_eval
from jaxgen.data.datasets import NAMED, NamedSet
from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.runs.config import validate
from jaxgen.tasks.language import conditioning as module
from jaxgen.tasks.language import corpus as reading
from jaxgen.tasks.language.conditioning import (
    Condition,
    ConditionedCodec,
    Conditioning,
    RowMetadata,
    conditions_of,
    join_codec,
    read_codec,
    read_conditioning_columns,
    split_codec,
)
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.corpus import prepare
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tokenizers import EOS, CharTokenizer
from jaxgen.trainer.input_pipeline import InputPipeline
from jaxgen.trainer.process_group import ProcessGroup

WORDS = ["ant", "bee", "cow", "dog", "elk"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(number: int = 40, seed: int = 0) -> list[tuple[str, str, float]]:
    """(text, label, number): the label is the first letter of the text, the number its length and a bit."""
    pick = random.Random(seed)
    texts = [" ".join(pick.choices(WORDS, k=pick.randint(1, 4))) for _ in range(number)]
    return [(text, text[0].upper(), len(text) + pick.random()) for text in texts]


def table(found=None, name: str = "rows.csv") -> str:
    lines = [f"{text},{label},{number!r}" for text, label, number in found or rows()]
    return write(name, "\n".join(["text,kind,size", *lines]) + "\n")


def read_splits(data, **settings):
    return reading.read_splits(validate(LanguageConfig, {"data": data, **settings}))


COLUMNS = {"text_column": "text", "label_column": "kind", "feature_columns": ("size",)}


def refused(error: type[Exception], path: str, **more) -> str:
    with pytest.raises(error) as caught:
        prepare([path], **{**COLUMNS, **more})
    return str(caught.value)


def test_validation_rows_that_are_the_training_rows_are_noted():
    with pytest.warns(UserWarning, match="validation data are training data"):
        read_splits(table(), val_data="rows.csv", **COLUMNS)


def test_every_row_keeps_its_own_label_and_number():
    found = read_conditioning_columns([table()], *COLUMNS.values())
    assert found.texts == [text for text, _, _ in rows()]
    assert found.known.labels == [label for _, label, _ in rows()]
    assert found.known.numbers[:, 0].tolist() == [number for _, _, number in rows()]
    assert found.known.locations[2] == "row 3 of rows.csv"


def test_tables_of_every_kind_are_read_alike():
    tabs = "\n".join("\t".join(map(str, row)) for row in [("text", "kind", "size"), *rows()])
    lines = "\n".join(json.dumps({"text": t, "kind": k, "size": s}) for t, k, s in rows())
    read = [
        read_conditioning_columns([p], *COLUMNS.values())
        for p in (table(), write("r.tsv", tabs), write("r.jsonl", lines))
    ]
    assert read[0].texts == read[1].texts == read[2].texts
    assert read[0].known.labels == read[1].known.labels == read[2].known.labels
    np.testing.assert_array_equal(read[0].known.numbers, read[2].known.numbers)


def test_rows_without_a_text_are_left_out_with_what_is_known_of_them():
    found = read_conditioning_columns([write("r.csv", "text,kind,size\nant,A,1\n  ,,x\nbee,B,2\n")], *COLUMNS.values())
    assert (found.texts, found.known.labels, found.known.numbers.tolist()) == (["ant", "bee"], ["A", "B"], [[1], [2]])


def test_labels_change_nothing_about_which_texts_are_held_out():
    plain = read_splits([table()], text_column="text", seed=5)
    known = read_splits([table()], **COLUMNS, seed=5)
    assert (known.train, known.val, known.sha256) == (list(plain.train), list(plain.val), plain.sha256)
    for texts, about in ((known.train, known.train_known), (known.val, known.val_known)):
        assert [text[0].upper() for text in texts] == about.labels


def test_the_first_text_of_a_label_is_never_held_out():
    found = [*rows(30), *((f"zoo {i}", f"Z{i}", 1.0 + i) for i in range(6))]
    splits = read_splits([table(found)], **COLUMNS, val_fraction=0.5)
    assert {*splits.train_known.labels} == {label for _, label, _ in found}
    assert sorted(splits.train + splits.val) == sorted(text for text, _, _ in found)


def test_a_named_set_brings_the_names_of_its_labels(monkeypatch):
    path = Path(write("news.csv", "1,Title one,text\n2,Title two,text\n1,Title three,text\n"))
    named = NamedSet((object(),), "", text_column="2", label_column="1", labels=(("1", "World"), ("2", "Sports")))
    monkeypatch.setitem(NAMED, "news", named)
    monkeypatch.setattr("jaxgen.data.files.fetch", lambda file: path)
    found = read_conditioning_columns(["news"], None, "1", ())
    assert found.texts == ["Title one", "Title two", "Title three"]
    assert found.known.labels == ["World", "Sports", "World"]
    assert read_conditioning_columns(["news"], None, "3", ()).known.labels == ["text"] * 3


@pytest.mark.skipif("JAXGEN_DATA" not in os.environ, reason="ag_news lies in JAXGEN_DATA")
def test_ag_news_is_read_by_name():
    found = read_conditioning_columns(["ag_news"], None, module.NAMED["ag_news"].label_column, ())
    assert {*found.known.labels} == {"World", "Sports", "Business", "Sci/Tech"}
    assert (len(found.texts), found.texts[0]) == (7600, "Fears for T N pension after talks")
    assert found.known.labels[0] == "Business"


def test_labels_that_hardly_differ_are_noted():
    write("t.csv", "text,kind\n" + "".join(f"{n},{label}\n" for n in range(3) for label in ("Sea", "sea")))
    with pytest.warns(UserWarning, match="'Sea' and 'sea'"):
        prepare(["t.csv"], text_column="text", label_column="kind", val_fraction=0)


def test_a_vector_is_the_shares_of_labels_and_the_standardised_numbers():
    splits = read_splits([table()], **COLUMNS)
    known = splits.train_known
    conditioning = Conditioning.fit(known, ("size",), "rows")
    labels = sorted({*known.labels})
    assert conditioning.labels == tuple(labels)
    assert conditioning.shares == tuple(known.labels.count(label) / len(known) for label in labels)
    made = conditioning.encode(splits.val_known)
    numbers = (splits.val_known.numbers[:, 0] - known.numbers.mean()) / known.numbers.std()
    by_hand = np.concatenate(
        [np.array([[label == each for each in labels] for label in splits.val_known.labels]), numbers[:, None]], axis=1
    )
    np.testing.assert_allclose(made.vectors[made.of], by_hand, rtol=1e-6)
    for row, condition in zip(by_hand, conditions_of(splits.val_known)):
        np.testing.assert_allclose(conditioning.vector(condition), row, rtol=1e-6)


def test_documents_that_are_alike_share_a_vector():
    known = RowMetadata(["b", "a", "b", "b"], np.array([[1.0], [2.0], [1.0], [3.0]]), ["", "", "", ""])
    conditioning = Conditioning.fit(known, ("n",), "rows")
    made = conditioning.encode(known)
    assert made.vectors.shape == (3, 3)
    assert made.of[0] == made.of[2]
    assert len({*made.of.tolist()}) == 3


@pytest.mark.parametrize(("label", "features"), [("kind", ()), (None, ("size",))])
def test_labels_and_numbers_can_stand_alone(label, features):
    corpus = prepare([table()], text_column="text", label_column=label, feature_columns=features)
    width = len({label for _, label, _ in rows()}) if label else 1
    assert corpus.train.conditions.vectors.shape[1] == corpus.conditioning.width == width
    assert corpus.train.conditions.of.shape == corpus.train.doc_starts.shape


def test_what_is_left_open_is_the_mean_of_the_training_texts():
    conditioning = Conditioning(("a", "b"), (0.25, 0.75), ("n",), (2.0,), (4.0,))
    assert conditioning.vector().tolist() == [0.25, 0.75, 0.0]
    assert conditioning.vector(conditioning.choose("b")).tolist() == [0.0, 1.0, 0.0]
    assert conditioning.vector(conditioning.choose(features=[8])).tolist() == [0.25, 0.75, 1.5]
    assert conditioning.vector(conditioning.choose({"a": 3, "b": 1}, [2])).tolist() == [0.75, 0.25, 0.0]


def test_a_chosen_condition_is_the_same_from_json():
    conditioning = Conditioning(("a", "b", "c"), (0.2, 0.3, 0.5), ("n",), (2.0,), (4.0,))
    for given in ((None, None), ("b", None), ({"a": 1, "b": 1, "c": 1}, [1 / 3]), ({"a": 0.1, "c": 0.7}, None)):
        condition = conditioning.choose(*given)
        again = conditioning.read(json.loads(json.dumps(condition.to_json())))
        assert again == condition
        assert hash(again) == hash(condition)
    assert [str(conditioning.choose(*each)) for each in (("b",), ({"a": 1, "b": 3}, [0.5]), ())] == [
        "b",
        "a:0.25 b:0.75, 0.5",
        "the mean",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("Bee",), "'bee'"),
        (({"ant": -1, "bee": 2},), "above 0"),
        (({"ant": 0.0},), "cannot be used"),
        (({"ant": float("nan")},), "cannot be used"),
        (({},), "no label"),
        (({"ant": 1e308, "bee": 1e308},), "cannot be used"),
        ((None, [1.0]), r"'x', 'y'"),
        ((None, [1.0, float("inf")]), "finite"),
    ],
)
def test_what_cannot_be_chosen_is_refused(given, said):
    conditioning = Conditioning(("ant", "bee"), (0.5, 0.5), ("x", "y"), (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(UsageError, match=said):
        conditioning.choose(*given)


def test_a_run_says_which_of_the_two_it_knows():
    with pytest.raises(UsageError, match="'x'"):
        Conditioning((), (), ("x",), (0.0,), (1.0,)).choose("ant")
    with pytest.raises(UsageError, match="none"):
        Conditioning(("ant", "bee"), (0.5, 0.5)).choose(features=[1.0])


# --- beside tokens


def documents_of(batches, count):
    """(text, vectors at its positions) of every document in ``count`` batches of lanes, read step by step."""
    lanes: dict[int, list[tuple[list[int], list[bytes]]]] = {}
    for batch, condition in (batches(step) for step in range(count)):
        fields = [np.asarray(field) for field in (*batch, condition)]
        for row, (tokens, _, reset, mask, vectors) in enumerate(zip(*fields)):
            lane = lanes.setdefault(row, [])
            for t in np.flatnonzero(mask):
                if reset[t]:
                    lane.append(([], []))
                lane[-1][0].append(int(tokens[t]))
                lane[-1][1].append(vectors[t].tobytes())
    return [document for lane in lanes.values() for document in lane]


@pytest.fixture
def corpus():
    return prepare([table()], **COLUMNS)


def told(corpus, found):
    """Every document's text with the one vector that all its positions have, in some fixed order."""
    assert all(tokens[0] == EOS and len({*vectors}) == 1 for tokens, vectors in found)
    return sorted((corpus.tokenizer.decode(tokens), vectors[0]) for tokens, vectors in found)


def wanted(corpus, texts, known):
    vectors = (corpus.conditioning.vector(condition).tobytes() for condition in conditions_of(known))
    return sorted(zip(texts, vectors))


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_position_of_a_document_has_its_vector_from_the_end_in_front_of_it(corpus, epoch):
    splits = read_splits([table()], **COLUMNS)
    batches = make_batches("documents", corpus.train, 4, 5, seed=2)
    start = epoch * batches.steps_per_epoch
    found = documents_of(lambda step: batches.batch(start + step), batches.steps_per_epoch)
    assert told(corpus, found) == wanted(corpus, splits.train, splits.train_known)


def test_evaluation_has_the_vectors_too_also_of_a_part(corpus):
    splits = read_splits([table()], **COLUMNS)
    every = wanted(corpus, splits.val, splits.val_known)
    for limit in (None, 30):
        batches = list(stream_eval(corpus.val, 3, 5, limit_tokens=limit))
        found = told(corpus, documents_of(batches.__getitem__, len(batches)))
        assert found == every if limit is None else {*found} < {*every}
        assert found


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.skipif("jax.local_device_count() < 2"))])
def test_the_device_reads_the_vectors_that_the_host_reads(corpus, devices):
    batches = make_batches("documents", corpus.train, 4, 5, seed=3)
    feed = InputPipeline(batches, 3, devices, 4, ProcessGroup())
    read = jax.jit(feed.read)
    for step in (0, 2, batches.steps_per_epoch):
        given = feed.next(step, 1)
        got = read(given, 0)
        jax.tree.map(np.testing.assert_array_equal, got, batches.batch(step))
        assert given.conditions.of.dtype == np.uint8
        assert given.conditions.of.shape == given.text.shape


# --- what is kept with a run


def test_a_codec_comes_back_from_json():
    tokenizer = CharTokenizer.train(["abc"])
    codec = join_codec(tokenizer, Conditioning(("a", "b"), (0.25, 0.75), ("n",), (2.0,), (4.0,)))
    again = read_codec(json.loads(json.dumps(codec.to_json())))
    assert isinstance(again, ConditionedCodec)
    assert again.conditioning == codec.conditioning
    assert again.to_json() == codec.to_json()


def test_a_run_without_labels_keeps_its_tokenizer_alone():
    tokenizer = CharTokenizer.train(["abc"])
    assert join_codec(tokenizer, None) is tokenizer
    assert read_codec(tokenizer.to_json()).to_json() == tokenizer.to_json()
    assert split_codec(tokenizer) == (tokenizer, None)


GOOD = Conditioning(("a", "b"), (0.25, 0.75), ("n",), (2.0,), (4.0,)).to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a", "a"]},
        {"labels": ["a", 2]},
        {"labels": ["a"]},
        {"shares": [1.0]},
        {"shares": [0.5, "x"]},
        {"means": []},
        {"deviations": [0.0]},
        {"deviations": [None]},
        {"features": 5},
        {"labels": [], "shares": [], "features": [], "means": [], "deviations": []},
    ],
)
def test_a_damaged_codec_is_refused(change):
    tokenizer = CharTokenizer.train(["abc"]).to_json()
    assert read_codec({"tokenizer": tokenizer, "conditioning": GOOD})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_codec({"tokenizer": tokenizer, "conditioning": {**GOOD, **change}})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_codec({"tokenizer": tokenizer, "conditioning": {"labels": []}})


# --- what is refused


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("text,kind,size\nant,A,1\nbee,,2\ncow,C,3\n", DataError, "Row 2"),
        ("text,kind,size\nant,A,1\nbee,B,two\n", DataError, "'two'"),
        ("text,kind,size\nant,A,1\nbee,B,nan\n", DataError, "finite"),
        ("text,kind,size\nant,A,1\nbee,B,\n", DataError, "'size'"),
        ("text,kind,size\nant,A,1\nbee,A,2\ncow,A,3\n", DataError, "'A'"),
        ("text,kind,size\n" + "ant,A,2\nbee,B,2\n" * 10, DataError, "'size'"),
        ("text,kind,size\n,A,2\n ,B,2\n", DataError, "no row"),
        ("text,sort,size\nant,A,2\n", DataError, "'kind'"),
        ("text,kind,size\nant,A,1\nbee,B,2\n", DataError, "is the only one of its label"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_the_place(text, error, said):
    assert said in refused(error, write("r.csv", text), val_fraction=0.1)


def test_a_label_in_the_validation_data_alone_is_refused():
    more = write("v.csv", "text,kind,size\nfox,F,3\n")
    said = refused(DataError, table(), val_data=[more])
    assert "'F'" in said


def test_a_column_with_too_many_labels_is_refused(monkeypatch):
    monkeypatch.setattr("jaxgen.tasks.labels.MAX_LABELS", 3)
    assert "5 different" in refused(DataError, table())


def test_columns_by_name_and_by_position_are_not_mixed():
    assert "given by name" in refused(UsageError, table(), label_column="2", feature_columns=())


@pytest.mark.parametrize("column", ["+-5", "9" * 5_000])
@pytest.mark.parametrize("flag", ["text_column", "label_column", "feature_columns"])
def test_what_only_resembles_a_position_is_the_name_of_a_column(flag, column):
    given = {flag: (column,) if flag == "feature_columns" else column}
    assert repr(column) in refused(DataError, table(), **given)


def test_text_without_columns_has_no_labels():
    unusual = write("unusual.csv", "x,kind,size\nword,a,1\n")
    assert "--text-column" in refused(UsageError, unusual, text_column=None)
    assert "python-docs" in refused(UsageError, "python-docs")
    assert ".csv" in refused(UsageError, write("a.txt", "text"))
    assert "--layout stream" in refused(UsageError, table(), layout="stream")
    assert "--documents line" in refused(UsageError, table(), documents="line")


SETTINGS = {"text_column": "text", "label_column": "kind", "batch_size": 2, "seq_len": 5}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layout": "windows"}, "--layout windows"),
        ({"documents": "line"}, "--documents line"),
        ({"feature_columns": "text"}, "'text'"),
        ({"model": "ngram"}, "--label-column"),
    ],
)
def test_settings_that_contradict_labels_are_refused(more, said):
    with pytest.raises(UsageError, match=said):
        validate(LanguageConfig, {"data": "x.csv", **SETTINGS, **more})


def test_a_resumed_run_keeps_what_it_learnt_of_labels():
    config = validate(LanguageConfig, {"data": table(), **SETTINGS, "feature_columns": ("size",)})
    codec = LanguageData.load(config).codec
    other = dataclasses.replace(codec.conditioning, means=(0.0,), deviations=(2.0,))
    data = LanguageData.load(config, ConditionedCodec(codec.tokenizer, other))
    assert data.codec.conditioning == other
    np.testing.assert_allclose(data.corpus.train.conditions.vectors[:, -1].max() * 2, max(r[2] for r in rows()), 0.3)
    assert data.model_options()["condition"] == LanguageData.vocab_sizes(codec)["condition"] == other.width


@pytest.mark.parametrize("more", [{"label_column": None}, {"feature_columns": ("size",)}])
def test_a_run_to_begin_from_must_know_as_much(more):
    codec = LanguageData.load(validate(LanguageConfig, {"data": table(), **SETTINGS})).codec
    config = validate(LanguageConfig, {"data": table(), **SETTINGS, **more})
    with pytest.raises(UsageError, match="features"):
        LanguageData.load(config, codec)


def test_the_blind_evaluation_reads_the_same_texts_from_the_mean():
    data = LanguageData.load(validate(LanguageConfig, {"data": table(), **SETTINGS}))
    assert set(data.eval_sets(final=False)) == {"val"}
    val, blind = (list(each.batches()) for each in data.eval_sets(final=True).values())
    for known, unknown in zip(val, blind, strict=True):
        jax.tree.map(np.testing.assert_array_equal, known.batch, unknown.batch)
        mean = data.codec.conditioning.vector()
        np.testing.assert_array_equal(unknown.condition, np.broadcast_to(mean, unknown.condition.shape))
        assert not np.array_equal(known.condition, unknown.condition)


def test_a_run_says_what_it_knows_and_how_to_ask_for_it():
    data = LanguageData.load(validate(LanguageConfig, {"data": table(), **SETTINGS, "feature_columns": ("size",)}))
    facts = data.summary()
    assert facts["labels"].startswith("5, from ")
    assert facts["features"].startswith("size ")
    assert " sample --run runs/a --label " in data.next_command("runs/a")
    assert str(Condition()) == "the mean"
