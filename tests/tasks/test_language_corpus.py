"""From texts to two splits of tokens: the vocabulary excludes validation, and nothing is lost between pieces."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from builders import write
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.sources import join_texts
from jaxgen.errors import DataError, UsageError
from jaxgen.tasks.language import corpus
from jaxgen.tasks.language.corpus import prepare, split_documents
from jaxgen.tokenizers import EOS, TOKENIZERS, UNK, CharTokenizer


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXGEN_DATA", raising=False)


def documents_of(corpus, split):
    ends = np.append(split.doc_starts[1:], split.ids.size)
    found = [split.ids[a:b] for a, b in zip(split.doc_starts, ends)]
    assert all(ids[-1] == EOS and EOS not in ids[:-1] for ids in found)
    return [corpus.tokenizer.decode(ids) for ids in found]


def test_the_tail_of_the_text_is_validation_and_the_rest_training():
    text = "".join(chr(97 + i % 26) for i in range(1115))
    corpus = prepare([write("a.txt", text)])
    assert corpus.tokenizer.decode(corpus.train.ids) == text[:1003]
    assert corpus.tokenizer.decode(corpus.val.ids) == text[1003:]
    assert (corpus.name, corpus.layout, corpus.documents) == ("a.txt", "stream", None)
    assert corpus.train.doc_starts is None


def test_the_vocabulary_comes_from_training_alone_and_unknowns_are_counted():
    corpus = prepare([write("a.txt", "ab" * 45 + "abzabzzabb")])
    assert corpus.tokenizer.vocab_size == 5
    assert corpus.val.unknown == 3
    assert np.count_nonzero(corpus.val.ids == UNK) == 3


def test_texts_are_joined_by_a_newline_only_where_none_is():
    assert "".join(join_texts(["a", "b\n", "", "c"])) == "a\nb\nc"
    assert "".join(join_texts([["", "a", "b"], [], ["", "c\n", ""], ["d"]])) == "ab\nc\nd"
    assert "".join(join_texts(["a\r\n"])) == "a\r\n"
    assert "".join(join_texts([])) == ""


def test_characters_and_bytes_are_those_of_the_text():
    corpus = prepare([write("a.txt", "é🎉 ab" * 20)], level="byte", val_fraction=0.5)
    assert (corpus.train.chars, corpus.train.bytes, corpus.train.ids.size) == (50, 90, 90)
    assert corpus.train.chars_per_token == 50 / 90
    assert corpus.train.bytes_per_token == 1


def test_validation_data_that_are_the_training_data_are_noted():
    with pytest.warns(UserWarning, match="validation data are training data"):
        prepare([write("a.txt", "abc" * 9)], val_data=["./a.txt"])
    with pytest.warns(UserWarning, match="validation data are training data"):
        prepare(["a.txt", write("b.txt", "cab" * 9)], val_data=["b.txt"], documents="file")


def test_a_validation_file_leaves_all_of_the_data_to_training():
    corpus = prepare([write("a.txt", "abc" * 9)], val_data=[write("b.txt", "cab")])
    assert corpus.tokenizer.decode(corpus.train.ids) == "abc" * 9
    assert corpus.tokenizer.decode(corpus.val.ids) == "cab"


def test_all_rows_with_labels_can_be_for_training():
    path = write("labelled.csv", "t,l\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(9)))
    corpus = prepare([path], text_column="t", label_column="l", val_fraction=0)
    assert corpus.train.ids.size
    assert corpus.val.ids.size == 0


def test_no_validation_can_be_asked_for():
    corpus = prepare([write("a.txt", "abc")], val_fraction=0)
    assert corpus.train.ids.size == 3
    assert corpus.val.ids.size == 0
    assert np.isnan(corpus.val.chars_per_token)


def test_a_given_tokenizer_is_used_as_it_is_and_decides_the_level():
    tokenizer = CharTokenizer.train(["ab"])
    corpus = prepare([write("a.txt", "abc" * 9)], level="word", tokenizer=tokenizer)
    assert corpus.tokenizer is tokenizer
    assert UNK in corpus.train.ids


@pytest.mark.parametrize("level", ["char", "byte", "word", "bpe"])
@pytest.mark.parametrize("layout", ["stream", "windows", "documents"])
def test_every_level_goes_with_every_layout(level, layout):
    options = {"bpe": {"vocab_size": 270}, "word": {"min_count": 1}}.get(level)
    corpus = prepare(
        [write("a.txt", "the cat sat\n" * 40)], level=level, layout=layout, documents=None, tokenizer_options=options
    )
    text = corpus.tokenizer.decode(corpus.train.ids)
    assert text.startswith("the cat sat")
    assert corpus.train.ids.ndim == 1


@pytest.mark.parametrize(("symbols", "dtype"), [(253, np.uint8), (254, np.uint16), (66_000, np.uint32)])
def test_ids_take_as_few_bytes_as_the_vocabulary_allows(symbols, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + symbols)))
    assert prepare([write("a.txt", text)], val_fraction=0).train.ids.dtype == dtype


def test_documents_are_split_whole_by_a_seeded_shuffle():
    lines = [f"line {i}" for i in range(50)]
    write("a.txt", "\n".join(lines) + "\n")
    corpus = prepare(["a.txt"], layout="documents", seed=1)
    train, val = documents_of(corpus, corpus.train), documents_of(corpus, corpus.val)
    assert len(val) == 5
    assert sorted(train + val) == sorted(lines)
    again, other = (prepare(["a.txt"], layout="documents", seed=seed) for seed in (1, 2))
    assert documents_of(again, again.val) == val
    assert documents_of(other, other.val) != val
    assert corpus.train.chars == sum(map(len, train))


def test_documents_can_be_lines_paragraphs_files_or_rows():
    text = "one\r\ntwo\n \r\n\nthree\u2028x\n\n\n"
    assert list(split_documents([text], "line")) == ["one", "two", "three\u2028x"]
    assert list(split_documents([text, "", " \n"], "blank-line")) == ["one\r\ntwo", "three\u2028x"]
    assert list(split_documents([text, "", " \n", "b"], "file")) == [text, "b"]
    assert list(split_documents(["b", "", "a\nc"], "row")) == ["b", "a\nc"]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.sampled_from(["", " ", "a", "b c", "\t", "d\r"]), max_size=12))
def test_paragraphs_lose_only_blank_lines(lines):
    found = list(split_documents(["\n".join(lines)], "blank-line"))
    kept = [line.removesuffix("\r") for line in lines if line.strip()]
    assert [line.removesuffix("\r") for paragraph in found for line in paragraph.split("\n")] == kept


def test_the_default_way_to_cut_follows_the_data():
    Path("d").mkdir()
    for i in range(3):
        write(f"d/{i}.txt", f"text {i}\nmore")
    write("r.csv", "t\nx\ny\n")
    assert prepare(["d"], layout="documents").documents == "file"
    assert prepare(["d/0.txt"], layout="documents").documents == "line"
    assert prepare(["r.csv"], layout="documents", text_column="t").documents == "row"
    assert prepare(["python-docs"], layout="documents").documents == "blank-line"


def test_rows_can_be_validated_on_a_table():
    write("r.csv", "t\nx1\nx2\n")
    Path("v.csv.gz").write_bytes(gzip.compress(b"t\nx3\n"))
    corpus = prepare(["r.csv"], layout="documents", text_column="t", val_data=["v.csv.gz"])
    assert documents_of(corpus, corpus.val) == ["x<unk>"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": "chars"}, "'char'"),
        ({"layout": "steam"}, "'stream'"),
        ({"val_fraction": 1.0}, "1.0"),
        ({"val_fraction": float("nan")}, "nan"),
        ({"val_fraction": -0.1}, "-0.1"),
        ({"documents": "line", "layout": "stream"}, "--layout stream"),
        ({"tokenizer_options": {"vocab_size": 9}}, "--vocab-size"),
        ({"level": "byte", "tokenizer_options": {"x": 9}}, "'x'"),
        ({"layout": "documents", "documents": "row"}, "--text-column"),
    ],
)
def test_values_out_of_range_are_usage_errors(options, says):
    with pytest.raises(UsageError) as error:
        prepare([write("a.txt", "some text")], **options)
    assert says in str(error.value)


def test_a_validation_split_without_two_tokens_is_a_data_error():
    with pytest.raises(DataError, match="1 token,"):
        prepare([write("a.txt", "abcdefghij")])


def test_documents_need_two_of_them():
    with pytest.raises(DataError, match="1 document"):
        prepare([write("a.txt", "only one line\n")], layout="documents")
    with pytest.raises(DataError, match="0 documents"):
        prepare([write("b.txt", "\n \n")], layout="documents")
    with pytest.raises(DataError, match="no document"):
        prepare([write("c.txt", "\n \n")], layout="documents", val_fraction=0)


@pytest.mark.parametrize("layout", ["stream", "documents"])
@pytest.mark.parametrize("level", ["char", "byte", "word"])
def test_texts_encoded_a_little_at_a_time_are_encoded_as_a_whole(level, layout, monkeypatch):
    texts = ["the cat sat, the dog's mat\n" * 3, "", "l’été\n\n two  cats"]
    tokenizer = TOKENIZERS[level].train(texts)
    whole = corpus.encode_split(tokenizer, texts, layout)
    monkeypatch.setattr(corpus, "PIECE", 5)
    pieces = corpus.encode_split(tokenizer, texts, layout)
    ends = [] if layout == "stream" else [EOS]
    expected = [np.concatenate([tokenizer.encode(text), ends]) for text in texts]
    for found in (whole, pieces):
        np.testing.assert_array_equal(found.ids, np.concatenate(expected))
        assert (found.doc_starts is None) == (layout == "stream")
        if layout == "documents":
            np.testing.assert_array_equal(found.doc_starts, np.cumsum([0, *map(len, expected)])[:-1])
        assert (found.chars, found.bytes) == (sum(map(len, texts)), sum(len(text.encode()) for text in texts))
