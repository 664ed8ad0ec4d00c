"""Byte-pair encoding: chunks change nothing, the library's JSON is checked, a missing library is reported."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.tokenizers import BpeTokenizer, bpe, load_tokenizer

TEXT = "low lower lowest, new newer newest! 123 'tis don't\r\n\tindented  twice\n\n\nend \u00a0é漢字 🎉\n" * 6
TOKENIZER = BpeTokenizer.train([TEXT], vocab_size=300)


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab \n\r\t'1.\x1c\x85\u2003")), max_size=80)
)
def test_encoding_in_chunks_equals_encoding_at_once(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgen.tokenizers.bpe._CHUNK", 3)
        chunked = TOKENIZER.encode(text)
    np.testing.assert_array_equal(chunked, TOKENIZER.encode(text))
    assert TOKENIZER.decode(chunked) == text


def test_training_in_chunks_equals_training_at_once(monkeypatch):
    monkeypatch.setattr("jaxgen.tokenizers.bpe._CHUNK", 16)
    assert BpeTokenizer.train([TEXT], vocab_size=300).to_json() == TOKENIZER.to_json()


def test_frequent_runs_become_one_token_within_the_size_asked_for():
    assert TOKENIZER.vocab_size == 300
    assert len(TOKENIZER.encode(" newest")) == 1
    assert sorted(TOKENIZER.pieces[3:259]) == [bytes([byte]) for byte in range(256)]


def test_what_looks_like_a_special_token_is_plain_text():
    ids = TOKENIZER.encode("<unk><eos><|endoftext|>")
    assert ids.min() >= 3
    assert TOKENIZER.decode(ids) == "<unk><eos><|endoftext|>"


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"jaxgen\[bpe\]"):
        BpeTokenizer.train([TEXT])
    with pytest.raises(UsageError, match=r"jaxgen\[bpe\]"):
        load_tokenizer(TOKENIZER.to_json())


#: A regular expression that takes years on a word of 40 letters.
BOMB = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "word", ["हिन्दी", "cafe\u0301", "தமிழ்", "ที่นี่", "שָׁלוֹם", "می\u200cخواهم", "क्\u200dष", "1\ufe0f\u20e3"]
)
def test_a_word_with_marks_and_joiners_can_become_one_token(word):
    tokenizer = BpeTokenizer.train([f"{word} {word} x"], vocab_size=400)
    assert tokenizer.encode(word).size == 1
    assert tokenizer.decode(tokenizer.encode(f"{word}  {word}")) == f"{word}  {word}"


def broken(change):
    inner = json.loads(TOKENIZER.to_json()["tokenizers"])
    change(inner)
    return {"kind": "bpe", "tokenizers": json.dumps(inner)}


@pytest.mark.parametrize(
    "change",
    [
        lambda inner: inner.update(normalizer={"type": "Lowercase"}),
        lambda inner: inner.update(added_tokens=[{"id": 0, "content": "a"}]),
        lambda inner: inner.update(pre_tokenizer=None),
        lambda inner: inner["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda inner: inner["pre_tokenizer"]["pretokenizers"][0].update(pattern=BOMB["pattern"]),
        lambda inner: inner["pre_tokenizer"]["pretokenizers"].reverse(),
        lambda inner: inner.update(model=[]),
        lambda inner: inner["model"].update(type="WordPiece"),
        lambda inner: inner["model"].update(dropout=0.5),
        lambda inner: inner["model"].update(vocab=None),
        lambda inner: inner["model"]["vocab"].pop("a"),
        lambda inner: inner["model"]["vocab"].update(zzz=9999),
        lambda inner: inner["model"]["vocab"].update(a=-1),
        lambda inner: inner["model"]["vocab"].update(a=inner["model"]["vocab"]["b"]),
        lambda inner: inner["model"]["vocab"].update(a=10**30),
        lambda inner: inner.update(pre_tokenizer=BOMB),
        lambda inner: inner.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [inner["pre_tokenizer"], BOMB]}),
        lambda inner: inner.update(normalizer={"type": "Replace", "pattern": BOMB["pattern"], "content": ""}),
        lambda inner: inner.update(decoder={"type": "Replace", "pattern": BOMB["pattern"], "content": ""}),
        lambda inner: inner.update(post_processor={"type": "TemplateProcessing"}),
        lambda inner: inner["model"]["vocab"].update(a="1"),
        lambda inner: inner["model"]["vocab"].update({"漢": len(inner["model"]["vocab"])}),
        lambda inner: inner["model"].update(merges=3),
        lambda inner: inner["model"]["merges"].append(["a"]),
        lambda inner: inner["model"]["merges"].append(["a", 3]),
        lambda inner: inner["model"]["merges"].append("漢 字"),
        lambda inner: inner.update(version="99"),
    ],
)
def test_a_changed_library_file_is_a_checkpoint_error(change):
    with pytest.raises(CheckpointError, match="malformed"):
        load_tokenizer(broken(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, 3, None])
def test_a_library_file_that_is_no_object_is_a_checkpoint_error(text):
    with pytest.raises(CheckpointError, match="malformed"):
        load_tokenizer({"kind": "bpe", "tokenizers": text})


def test_endless_words_are_learnt_from_in_parts():
    endless = "ab" * 300
    chunks = list(bpe._chunks([f"the cat {endless} sat", iter(["1" * 200, "1" * 200, " " * 9, "." * 99])]))
    assert chunks == [
        *("the cat " + endless[:256], endless[256:512], endless[512:] + " sat"),
        *("1" * 256, "1" * 144 + " " * 9 + "." * 99),
    ]


def test_different_words_are_learnt_from_as_far_as_memory_allows(monkeypatch):
    for name, value in {"_TAKEN_BY_WORD": 1, "_TAKEN_BY_BYTE": 0, "_MEMORY": 2, "_MEMORY_OF_TEXT": 0}.items():
        monkeypatch.setattr(bpe, name, value)
    assert list(bpe._chunks([" a b c d a b", "a b"])) == [" a b", " a b", " b"]


def test_what_comes_often_in_a_late_part_of_a_large_text_is_learnt_too(monkeypatch):
    monkeypatch.setattr(bpe, "_MEMORY", 1 << 12)
    never_again = "".join(f" {n:x}" for n in range(10_000, 40_000))
    late = " 그리고 und et" * 3000
    tokenizer = BpeTokenizer.train([never_again + late], vocab_size=300)
    assert tokenizer.encode(late).size < len(late) / 2
    assert tokenizer.decode(tokenizer.encode(never_again)) == never_again


def test_an_endless_word_comes_back_from_what_was_learnt_of_its_parts():
    text = "abcabd" * 400
    tokenizer = BpeTokenizer.train([text], vocab_size=265)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).size < len(text) / 2
