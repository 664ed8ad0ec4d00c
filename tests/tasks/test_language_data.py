"""The host half of language modelling: checks before training, resuming, reports."""

import math

import pytest
from builders import write

from jaxgen.errors import DataError, UsageError
from jaxgen.runs.config import validate
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.language.data import LanguageData
from jaxgen.tokenizers import CharTokenizer

TEXT = "the cat sat on the mat\n" * 60  # 1,380 characters, 138 of them held out


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXGEN_DATA", raising=False)


def settings(**options):
    return validate(LanguageConfig, {"data": (write("a.txt", TEXT),), "batch_size": 2, "seq_len": 16, **options})


def load(tokenizer=None, **options):
    return LanguageData.load(settings(**options), tokenizer)


def refused(error, *args, **options):
    with pytest.raises(error) as caught:
        load(*args, **options)
    return str(caught.value)


def test_windows_need_a_validation_split_of_one_window():
    assert set(load(layout="windows", seq_len=137).eval_sets(final=False)) == {"val"}
    said = refused(DataError, layout="windows", seq_len=138)
    assert "138" in said
    assert "139" in said
    assert "--val-fraction" in said
    said = refused(DataError, layout="windows", val_data=(write("v.txt", "the cat"),))
    assert "7 tokens" in said
    assert "--val-data" in said


def test_other_layouts_validate_on_less_than_a_window():
    for layout in ("stream", "documents"):
        data = load(layout=layout, val_data=(write("v.txt", "the cat"),))
        (batches,) = (evaluation.batches() for evaluation in data.eval_sets(final=False).values())
        assert sum(batch.mask.sum() for batch in batches) == (6 if layout == "stream" else 8)


def test_validation_documents_without_text_are_refused():
    said = refused(DataError, layout="documents", val_data=(write("v.txt", "\n \n"),))
    assert "validation" in said


def test_the_identity_is_the_plain_digest_without_validation_data():
    data = load()
    assert data.corpus.val_sha256 is None
    assert data.fingerprint() == {"name": "a.txt", "sha256": data.corpus.sha256}


def test_the_identity_changes_with_either_source():
    def identity(train, val):
        found = load(data=(write("d.txt", train),), val_data=(write("v.txt", val),)).fingerprint()
        assert found["name"] == "d.txt"
        assert len(found["sha256"]) == 64
        return found["sha256"]

    found = {
        identity(TEXT, "the cat"),
        identity(TEXT, "the mat"),
        identity(TEXT + "t", "the cat"),
        load().fingerprint()["sha256"],
    }
    assert len(found) == 4


def test_unknown_tokens_are_counted_and_told_for_both_splits():
    tokenizer = CharTokenizer.train(["the cat sat o m\n"])  # lacks the n of "on"
    data = load(tokenizer)
    assert (data.corpus.train.unknown, data.corpus.val.unknown) == (54, 6)
    tokens = data.summary()["tokens"]
    assert "4.35%" in tokens
    assert data.report({"val": (10.0, 10)})["val_unknown"] == 6


def test_no_unknown_tokens_are_told_when_there_are_none():
    data = load()
    assert "unknown" not in data.summary()["tokens"]
    assert data.report({"val": (10.0, 10)})["val_unknown"] == 0


def test_a_borrowed_vocabulary_that_lacks_much_of_the_text_is_refused():
    tokenizer = CharTokenizer.train(["the c\n"])
    said = refused(DataError, tokenizer, init_from="runs/old")
    assert "30%" in said
    assert "20%" in said
    assert "--init-from" in said
    load(CharTokenizer.train(["the cat s\n"]), init_from="runs/old")  # 13%


def test_a_run_that_goes_on_keeps_its_own_vocabulary_whatever_it_lacks():
    rare = {"level": "word", "vocab_size": 5, "min_count": 1}
    first = load(**rare)
    assert first.corpus.train.unknown > 0.2 * first.corpus.train.ids.size
    assert load(first.tokenizer, **rare).corpus.train.unknown == first.corpus.train.unknown


def test_every_evaluation_is_reported_in_bits_per_character():
    data = load(level="byte", data=(write("b.txt", "é🎉 ab" * 300),))
    row = data.report({"val": (8.0, 4), "windows_64": (3.0, 1), "stateful": (5.0, 2), "windows_256": (0.0, 0)})
    assert row.keys() == {
        "val_loss",
        "val_perplexity",
        "val_word_perplexity",
        "val_bpc",
        "val_bpb",
        "val_unknown",
        "windows_64_loss",
        "windows_64_bpc",
        "stateful_loss",
        "stateful_bpc",
    }
    per_char = data.corpus.val.ids.size / data.corpus.val.chars
    for name, loss in {"val": 2.0, "windows_64": 3.0, "stateful": 2.5}.items():
        assert row[f"{name}_loss"] == loss
        assert row[f"{name}_bpc"] == pytest.approx(loss / math.log(2) * per_char)


def test_a_tenth_is_held_out_unless_told_otherwise():
    assert load().corpus.val.chars == 138
    assert load(val_fraction=0.5).corpus.val.chars == 690


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val_fraction": 0.2, "val_data": "v.txt"}, "--val-fraction and --val-data"),
        ({"layout": "window"}, "'windows'"),
        ({"layout": "steam", "stride": 4}, "'stream'"),
    ],
)
def test_settings_that_do_not_fit_are_usage_errors(options, says):
    assert says in refused(UsageError, **options)


class Documents:
    """Stands for the sampler: writes the same document each time."""

    def __init__(self, document="a cat"):
        self.document = document

    def generate_documents(self, number, temperature, length, label=None):
        return [self.document] * number


@pytest.mark.parametrize(
    ("length", "document", "shown"),
    [
        (20, "a cat", "\n".join(["a cat"] * 10)),
        (20, "a\ncat", "\n---\n".join(["a\ncat"] * 10)),
        (200, "a cat", "a cat"),
    ],
)
def test_an_example_of_short_documents_is_ten_of_them(length, document, shown):
    data = load(documents="line", data=(write("lines.txt", ("x" * length + "\n") * 50),))
    (example,) = data.examples(Documents(document), final=False)
    assert example.text == shown
    assert [each.text for each in data.examples(Documents(document), final=True)] == [shown] * 3


def test_ten_short_documents_are_shared_among_the_labels():
    table = write("t.csv", "kind,text\n" + "a,some text\nb,another\nc,a third\n" * 30)
    data = load(data=(table,), text_column="text", label_column="kind")
    assert [each.text.count("a cat") for each in data.examples(Documents(), final=False)] == [4, 4, 4]
