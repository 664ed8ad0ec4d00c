"""The host half of classification: reading, batches, class weights, reports."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgen.data.bucketing import PAD_ROW
from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.metrics import MAX_MISTAKES, classification_metrics, confusion_lines, confusion_text, mistakes
from jaxgen.runs.config import validate
from jaxgen.tasks.base import echo_command
from jaxgen.tasks.classify.data import LABELLED_SETS, ClassifyCodec, ClassifyConfig, ClassifyData
from jaxgen.tasks.classify.sequences import SEQUENCES, sequences
from jaxgen.tasks.classify.stdlib_packages import stdlib_packages
from jaxgen.tokenizers import PAD, UNK, CharTokenizer, WordTokenizer

LABELS = ("cold", "hot", "mild")
#: 10 cold, 4 hot and 2 mild texts; lengths of 1 to 20.
ROWS = [("x" * (1 + i), LABELS[0] if i < 10 else LABELS[1]) for i in range(14)] + [
    ("yz" * 9, "mild"),
    ("zy" * 10, "mild"),
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,l\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    return str(path)


def load(table, codec=None, **options):
    columns = {"text_column": ("t",), "label_column": "l", "val_data": (table,)}
    return ClassifyData.load(
        ClassifyConfig(**{"preset": "tiny", "data": (table,), **columns, "batch_size": 4, **options}), codec
    )


# Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"class_weights": "even"}, "--class-weights is 'even'"),
        ({"token_dropout": 1.0}, "--token-dropout is 1.0"),
        ({"buckets": 0}, "--buckets is 0"),
        ({"val_rows": 3, "val_fraction": 0.5}, "--val-rows"),
        ({"level": "word", "lowercase": "yes"}, "--lowercase is 'yes'"),
        ({"model": "ngram"}, "'ngram'"),
        ({"text_colum": "a"}, "'text_column'"),
        ({"patience": 0}, "--patience is 0"),
    ],
)
def test_settings_that_cannot_be_used_are_told(given, said):
    with pytest.raises(UsageError, match=said):
        validate(ClassifyConfig, given)


def test_one_column_may_be_given_without_a_list():
    assert validate(ClassifyConfig, {"text_column": "a", "data": "t.csv"}).text_column == ("a",)


@pytest.mark.parametrize("preset", ClassifyConfig.presets)
def test_a_preset_is_made_of_settings(preset):
    values = ClassifyConfig.presets[preset][1]
    config = validate(ClassifyConfig, {**values, "preset": preset})
    assert {name: getattr(config, name) for name in values} == values


# How texts are read


def test_words_are_read_in_lower_case_and_characters_as_they_are(table):
    assert load(table).codec.lower is False
    assert load(table, level="word").codec.lower is True
    assert load(table, level="word", lowercase=False).codec.lower is False


def test_predictions_read_whole_files_where_most_texts_had_several_lines(tmp_path):
    for share, whole in ((1, False), (9, True)):
        rows = "".join(f'"so{chr(10) if n < share else " "}be it {n}",{label}\n' for n in range(10) for label in "ab")
        path = tmp_path / f"{share}.csv"
        path.write_text(f"t,l\n{rows}")
        assert load(str(path)).resolved()["whole_files"] is whole
    for label in "ab":
        for n in range(3):
            file = tmp_path / "d" / label / f"{n}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("so be it")
    folders = load(str(tmp_path / "d"), text_column=None, label_column=None)
    assert folders.resolved()["whole_files"] is True


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("t.csv", "id,Text,label\n1,yes,a\n2,no,b\n3,yes,a\n4,no,b\n"),
        ("t.csv", "class;sentence\na;yes\nb;no\na;yes\nb;no\n"),
        ("t.tsv", "review\tstars\nyes\ta\nno\tb\nyes\ta\nno\tb\n"),
        (
            "t.jsonl",
            "".join(f'{{"label": "{label}", "text": "{text}"}}\n' for text, label in [("yes", "a"), ("no", "b")] * 2),
        ),
    ],
)
def test_columns_with_usual_names_are_found(tmp_path, name, written):
    path = tmp_path / name
    path.write_text(written)
    with pytest.warns(UserWarning, match="is the text"):
        data = load(str(path), text_column=None, label_column=None)
    assert data.raw.train.columns == (["yes", "no"] * 2, ["a", "b"] * 2)
    assert data.resolved()["whole_files"] is False


@pytest.mark.parametrize("header", ["yes,no", "subject,text,body,label", "text,text,label", "text"])
def test_the_first_row_is_shown_where_columns_are_not_found(tmp_path, header):
    path = tmp_path / "t.csv"
    path.write_text(header + "\nyes,a,b,c\n")
    with pytest.raises(UsageError, match=repr(header.split(",")[0])):
        load(str(path), text_column=None, label_column=None, val_data=None)


def codec(tokenizer=None, lower=False, max_length=5):
    return ClassifyCodec(tokenizer or CharTokenizer.train(["abcdef"]), LABELS, lower, max_length)


def test_a_text_is_cut_to_what_is_read_and_the_rest_is_counted():
    assert codec().tokenizer.decode(codec().encode("abcdefab")) == "abcde"
    assert (codec().count_cut("abcdefab"), codec().count_cut(" abcde\n")) == (3, 0)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("tokenizer", [CharTokenizer.train(["a b\t\n"]), WordTokenizer.train([" a b a b"])])
def test_a_text_of_white_space_has_no_tokens(tokenizer, text):
    one = codec(tokenizer)
    assert one.encode(text).size == 0
    assert one.widths(one.encode(text)) == (8,)


def test_a_word_is_the_same_token_wherever_it_stands():
    one = codec(WordTokenizer.train([" good bad good bad"]), lower=True)
    assert one.encode("Good bad").tolist() == one.encode("bad good").tolist()[::-1]


def test_what_the_vocabulary_lacks_is_unknown():
    assert UNK in codec().encode("xa")


def test_inputs_are_filled_up_to_as_many_rows_as_asked():
    one = codec()
    tokens, valid = one.pack([one.encode("ab"), one.encode("c")], (8,), 4)
    assert tokens.shape == (4, 8)
    assert valid.sum(axis=1).tolist() == [2, 1, 0, 0]
    assert (tokens[~valid] == PAD).all()


def test_an_answer_has_the_likeliest_label_first_and_says_what_was_not_read():
    answer = codec().answer("abcdefab", np.array([0.2, 0.1, 0.7]))
    assert answer == {
        "text": "abcdefab",
        "label": "mild",
        "probabilities": {"mild": 0.7, "cold": 0.2, "hot": 0.1},
        "cut": 3,
    }
    assert list(answer["probabilities"]) == ["mild", "cold", "hot"]
    assert codec().line(answer) == "mild\t0.7000"


def test_a_label_in_lines_stays_on_one_line():
    one = ClassifyCodec(CharTokenizer.train(["a"]), ("two\nlines", "b"), False, 5)
    assert one.line(one.answer("a", np.array([0.75, 0.25]))) == "two lines\t0.7500"


def test_a_codec_survives_being_written():
    for one in (codec(), codec(WordTokenizer.train([" a b a b"]), True, 7)):
        again = ClassifyData.read_codec(json.loads(json.dumps(one.to_json())))
        assert again.to_json() == one.to_json()
        assert again.encode("a b").tolist() == one.encode("a b").tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a", "a"]},
        {"labels": ["a", 3]},
        {"labels": "ab"},
        {"labels": None},
        {"lower": "yes"},
        {"max_length": 0},
        {"max_length": True},
        {"tokenizer": {"kind": "x"}},
    ],
)
def test_a_codec_that_was_altered_is_refused(change):
    with pytest.raises(CheckpointError):
        ClassifyData.read_codec({**codec().to_json(), **change})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        ClassifyData.read_codec([])


# Batches


def rows_of(data, batch):
    """The (text, label) of the rows of a batch."""
    ids, valid = batch.inputs
    texts = [data.codec.tokenizer.decode(row[there]) for row, there in zip(ids, valid)]
    return [
        (text, data.codec.labels[label]) for text, label, weight in zip(texts, batch.labels, batch.weights) if weight
    ]


def test_an_epoch_has_every_text_with_its_label_once(table):
    data = load(table)
    epoch = [data.batches.batch(step) for step in range(data.batches.steps_per_epoch)]
    assert sorted(row for batch in epoch for row in rows_of(data, batch)) == sorted(ROWS)
    assert {batch.inputs.tokens.shape[0] for batch in epoch} == {4}
    assert len({batch.inputs.tokens.shape for batch in epoch}) > 1


def test_rows_that_fill_up_a_batch_count_for_nothing(table):
    data = load(table)
    batch = data.pack(data.splits["train"], np.array([3, PAD_ROW]), (8,))
    assert batch.weights.tolist() == [1, 0]
    assert not batch.inputs.valid[1].any()
    assert batch.labels.dtype == np.int32


def test_buckets_bound_the_shapes_of_training_and_evaluation(table):
    for most in (1, 2):
        data = load(table, buckets=most)
        shapes = {data.batches.batch(step).inputs.tokens.shape for step in range(50)}
        assert len(shapes) == most
        assert len({b.inputs.tokens.shape for b in data.eval_sets(False)["val"].batches()}) == most


def test_an_evaluation_has_every_validation_row_once(table):
    data = load(table)
    batches = list(data.eval_sets(False)["val"].batches())
    assert sorted(row for batch in batches for row in rows_of(data, batch)) == sorted(ROWS)
    assert {len(batch.labels) for batch in batches} == {32}


def test_balanced_weights_make_all_labels_count_the_same(table):
    plain, balanced = (load(table, class_weights=each, buckets=1, batch_size=16) for each in ("none", "balanced"))
    assert {*plain.batches.batch(0).weights} == {1.0}
    batch = balanced.batches.batch(0)
    sums = Counter()
    for label, weight in zip(batch.labels, batch.weights):
        sums[label] += float(weight)
    np.testing.assert_allclose(list(sums.values()), len(ROWS) / 3, rtol=1e-6)
    for each in balanced.eval_sets(True)["val"].batches():
        assert {*each.weights} <= {0.0, 1.0}, "an evaluation counts texts"


def test_a_batch_follows_from_seed_and_step(table):
    one, same, other = (load(table, seed=seed).batches for seed in (1, 1, 2))
    for step in (0, 9):
        assert rows_of(load(table), one.batch(step)) == rows_of(load(table), same.batch(step))
    assert any(rows_of(load(table), one.batch(step)) != rows_of(load(table), other.batch(step)) for step in range(4))


def test_the_vocabulary_comes_from_the_training_texts(table, tmp_path):
    other = tmp_path / "v.csv"
    other.write_text("t,l\nqqq,hot\n")
    data = load(table, val_data=(str(other),))
    assert UNK in data.splits["val"].ids[0]
    assert "100.0%" in data.summary()["tokens"]


def test_a_built_in_set_is_read_by_name(monkeypatch):
    monkeypatch.setitem(LABELLED_SETS, "stdlib-packages", lambda seed: stdlib_packages(seed, train=3, val=2))
    data = ClassifyData.load(ClassifyConfig(level="word"))
    assert data.summary()["texts"].startswith("30 to train on, 20 ")
    assert len(data.codec.labels) == 10


# What a run goes on with


def test_a_given_codec_is_used_as_it_is(table, tmp_path):
    first = load(table)
    other = tmp_path / "o.csv"
    other.write_text("t,l\nqx,hot\nxx,cold\n")
    data = load(str(other), first.codec, max_length=1)
    assert data.codec.labels == first.codec.labels
    assert data.codec.tokenizer is first.codec.tokenizer
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert [ids.size for ids in data.splits["train"].ids] == [1, 1], "how far texts are read may change"


def test_a_label_that_a_given_codec_lacks_is_refused(table, tmp_path):
    other = tmp_path / "o.csv"
    other.write_text("t,l\nx,warm\ny,hot\n")
    with pytest.raises(DataError, match="'warm'"):
        load(str(other), load(table).codec)


def test_another_level_than_that_of_a_given_codec_is_refused(table):
    with pytest.raises(UsageError, match="--level"):
        load(table, load(table).codec, level="word")


# What is told


def test_the_facts_of_a_run_name_labels_lengths_and_what_was_left_out(table):
    with open(table, "a") as file:
        file.write(",hot\nmore,\n")
    facts = load(table, max_length=8).summary()
    cut = sum(len(text) > 8 for text, _ in ROWS)
    assert f"{cut} cut to 8 " in facts["texts"]
    assert "10 texts of 'cold'" in facts["labels"]
    assert facts["tokens"].startswith("char level, vocabulary 6, ")


CONFUSION = np.array([[5, 1, 0], [2, 3, 0], [0, 0, 0]])


def calibration(*bins):
    """[15, 3]; (rows, their probabilities, how many are right) of the first bins."""
    return np.array([*bins, *[(0, 0, 0)] * (15 - len(bins))], float)


def test_figures_of_a_confusion_matrix_by_hand():
    figures = classification_metrics(CONFUSION, calibration((6, 3.0, 2), (5, 4.0, 6)))
    f1 = [10 / 13, 6 / 9]
    assert figures["accuracy"] == 8 / 11
    np.testing.assert_allclose(figures["macro_f1"], np.mean(f1))
    np.testing.assert_allclose(figures["calibration_error"], (1 + 2) / 11)
    cold, hot, mild = figures["labels"]
    assert cold == {"precision": 5 / 7, "recall": 5 / 6, "f1": pytest.approx(f1[0]), "texts": 6}
    assert hot == {"precision": 3 / 4, "recall": 3 / 5, "f1": pytest.approx(f1[1]), "texts": 5}
    assert mild == {"precision": 0, "recall": 0, "f1": 0, "texts": 0}


def test_a_label_that_is_given_but_never_right_counts_in_macro_f1():
    assert classification_metrics(np.array([[2, 0, 2], [0, 2, 0], [0, 0, 0]]), calibration())[
        "macro_f1"
    ] == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize("number", [2, 5])
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(number):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(number)
    true, given = rng.integers(0, number, 40), rng.integers(0, number + 1, 40) % number
    confusion = metrics.confusion_matrix(true, given, labels=range(number))
    figures = classification_metrics(confusion, calibration())
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(true, given))
    assert figures["macro_f1"] == pytest.approx(metrics.f1_score(true, given, average="macro"))
    for name, theirs in zip(("precision", "recall", "f1"), metrics.precision_recall_fscore_support(true, given)):
        assert [label[name] for label in figures["labels"]] == pytest.approx(theirs)


def totals():
    return {"val": SimpleNamespace(nll=5.5, targets=11.0, confusion=CONFUSION, calibration=calibration((11, 9.0, 8)))}


def test_a_report_has_the_matrix_and_the_labels_at_the_end_alone(table):
    data = load(table)
    row, final = data.report(totals()), data.report(totals(), final=True)
    assert row == {
        "val_loss": 0.5,
        "val_accuracy": 8 / 11,
        "val_macro_f1": pytest.approx((10 / 13 + 2 / 3) / 2),
        "val_calibration_error": pytest.approx(1 / 11),
    }
    assert final["val_confusion"] == CONFUSION.tolist()
    assert list(final["val_labels"]) == list(LABELS)
    assert json.dumps(final)
    assert data.METRIC.cost(row) == pytest.approx(-8 / 11)
    assert data.METRIC.cost(row) < data.METRIC.cost(row | {"val_loss": 0.6}), "of equal ones the loss decides"
    assert data.headline(row) == "accuracy 72.7%, macro-F1 0.718"


def test_a_summary_has_a_line_for_each_label_and_the_matrix(table):
    data = load(table)
    lines = data.report_lines(data.report(totals(), final=True))
    assert lines[0] == ("validation", "accuracy 72.73%, macro-F1 0.7179")
    assert lines[1] == ("", "0.5000 nats/text, calibration error 0.0909")
    assert lines[2] == ("cold", "precision 0.714, recall 0.833, f1 0.769, 6 texts")
    assert lines[5:] == [
        ("true \\ predicted", "  1  2  3"),
        ("1 cold", "  5  1  0"),
        ("2 hot", "  2  3  0"),
        ("3 mild", "  0  0  0"),
    ]


def test_every_other_split_of_a_built_in_set_is_evaluated_at_the_end_and_has_a_line(monkeypatch):
    monkeypatch.setitem(LABELLED_SETS, "parity", lambda seed: sequences("parity", seed, train=20, val=4, test=3))
    data = ClassifyData.load(ClassifyConfig(data=("parity",), preset="sequences"))
    lengths = [f"length_{n}" for n in SEQUENCES["parity"].tested]
    assert (list(data.eval_sets(final=False)), list(data.eval_sets(final=True))) == (["val"], ["val", *lengths])
    sums = SimpleNamespace(nll=1.0, targets=4.0, confusion=np.array([[1, 1], [0, 2]]), calibration=calibration())
    lines = data.report_lines(data.report(dict.fromkeys(data.eval_sets(final=True), sums), final=True))
    assert lines[2 : 2 + len(lengths)] == [(name.replace("_", " "), "accuracy 75.00%") for name in lengths]


def test_of_many_labels_the_commonest_mistakes_are_told():
    confusion = np.random.default_rng(0).integers(0, 30, (14, 14))
    labels = [f"l{i}" for i in range(14)]
    lines = [line for _, line in confusion_lines(confusion, labels)]
    wrong = sorted(
        ((confusion[i, j], -i, -j) for i in range(14) for j in range(14) if i != j and confusion[i, j]), reverse=True
    )
    assert lines == [f"{n} of l{-i} taken for l{-j}" for n, i, j in wrong[:MAX_MISTAKES]]
    assert len(mistakes(confusion, labels)) == len(wrong)


def test_without_a_mistake_none_is_told():
    assert mistakes(np.diag([3, 4]), ["a", "b"]) == []


def test_the_matrix_is_written_as_a_picture_and_as_text(table, tmp_path):
    data = load(table)
    data.save_plots(None, data.report(totals(), final=True), tmp_path)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "confusion.txt").read_text() == (
        "true \\ predicted\tcold\thot\tmild\ncold\t5\t1\t0\nhot\t2\t3\t0\nmild\t0\t0\t0\n"
    )
    assert confusion_text(np.eye(1), ["a\tb\nc"]).splitlines()[1] == "a b c\t1"


def test_validation_texts_are_shown_with_what_they_are_taken_for(table):
    data = load(table)
    model = SimpleNamespace(predict=lambda texts: [{"label": "hot", "probabilities": {"hot": 0.6}} for _ in texts])
    (shown,) = data.examples(model, final=False)
    assert shown.text.splitlines()[:2] == ["x", "    -> hot (60%; it is cold)"]
    assert shown.text.count("->") == 3


def test_the_next_command_labels_a_text_of_the_data_and_quotes_the_folder(table):
    data = load(table)
    echo, _, shown = data.next_command("runs/my run").partition(" | ")
    assert echo == echo_command(data.raw.splits["val"].columns[0][0])
    assert shown.endswith(" predict --run 'runs/my run'")
