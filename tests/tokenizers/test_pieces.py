"""A text encoded in pieces has the ids of the whole text, wherever it is cut."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import UsageError
from jaxgen.tokenizers import TOKENIZERS, UNK, ByteTokenizer, CharTokenizer, WordTokenizer, base, text_bytes
from jaxgen.tokenizers import base as pieces
from jaxgen.tokenizers.base import between, encode_pieces, evenly

TEXT = "the cat sat on the mat. the dog's bed, l’été\r\n\n the cat's hat! 'tis don't  two\t\u2003\x1c漢字 🎉\n" * 4
TRAINED = {kind: cls.train([TEXT]) for kind, cls in TOKENIZERS.items() if kind != "bpe"}
TRAINED["bpe"] = TOKENIZERS["bpe"].train([TEXT], vocab_size=300)
TRAINED["whitespace"] = WordTokenizer.train([TEXT], split_on="whitespace")
ALL = pytest.mark.parametrize("kind", TRAINED)
# Where tokens end is decided by spaces, marks and apostrophes: these come up often.
letters = st.one_of(
    st.characters(),
    st.sampled_from("abdst  \r\n\t\x1c\x85\u2003'’.,é漢🎉\ud800\udc80\u0301\u200c\u200d🇩👩🏽\U000e0067"),
)
parts = st.lists(st.lists(letters, max_size=12).map("".join), max_size=8)


@ALL
@settings(max_examples=50, deadline=None)
@given(parts=parts)
def test_the_pieces_of_a_text_have_the_ids_of_the_whole(kind, parts):
    tokenizer, text = TRAINED[kind], "".join(parts)
    found = list(encode_pieces(tokenizer, parts, unk="keep"))
    ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in found)])
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert sum(part.chars for part in found) == len(text)
    assert sum(part.bytes for part in found) == len(text_bytes(text))
    assert sum(part.words for part in found) == len(text.split()) + text.count("\n")
    assert sum(part.unknown for part in found) == np.count_nonzero(ids == UNK)


@ALL
@settings(max_examples=50, deadline=None)
@given(text=st.lists(letters, max_size=20).map("".join), more=st.lists(letters, max_size=8).map("".join))
def test_a_safe_cut_is_safe_whatever_follows(kind, text, more):
    tokenizer = TRAINED[kind]
    at = tokenizer.safe_cut(text)
    halves = [tokenizer.encode(text[:at]), tokenizer.encode(text[at:] + more)]
    np.testing.assert_array_equal(np.concatenate(halves), tokenizer.encode(text + more))


@ALL
@settings(max_examples=50, deadline=None)
@given(text=st.lists(letters, max_size=12).map("".join), end=st.text(st.sampled_from(" \n\t\r\u2003"), min_size=1))
def test_a_prompt_before_a_word_has_the_ids_that_it_has_in_the_whole_text(kind, text, end):
    tokenizer = TRAINED[kind]
    ids, held = tokenizer.encode_open(text + end)
    assert held == (" " if kind in ("word", "whitespace", "bpe") and end.endswith(" ") else "")
    np.testing.assert_array_equal(
        np.concatenate([ids, tokenizer.encode(f"{held}bed")]), tokenizer.encode(f"{text}{end}bed")
    )


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_what_was_held_back_of_a_prompt_begins_the_text_and_is_not_counted(kind):
    tokenizer = TRAINED[kind]
    parts = list(encode_pieces(tokenizer, ["", "cat ", "sat"], held=" "))
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), tokenizer.encode(" cat sat"))
    assert (sum(part.chars for part in parts), sum(part.bytes for part in parts)) == (7, 7)
    assert list(encode_pieces(tokenizer, ["", ""], held=" ")) == []


def test_the_position_of_an_unknown_word_leaves_out_what_was_held_back():
    with pytest.raises(UsageError, match=r"from 1: 1\)"):
        list(encode_pieces(TRAINED["word"], ["zebra"], held=" "))
    with pytest.raises(UsageError, match=r"from 1: 5\)"):
        TRAINED["word"].encode_prompt("the zebra", held=" ")


@ALL
def test_ordinary_text_can_be_cut_near_its_end(kind):
    assert len(TEXT) - TRAINED[kind].safe_cut(TEXT) <= 12


def test_no_more_of_a_text_is_held_than_cannot_be_cut():
    encoded = encode_pieces(TRAINED["word"], iter(["the cat", " sat on", " the m", "at."]))
    assert [part.chars for part in encoded] == [3, 8, 7, 5]


def test_a_text_without_a_place_to_cut_is_cut_where_memory_asks_for_it(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_UNCUT", 10)
    found = list(encode_pieces(TRAINED["word"], ["x" * 6] * 4, unk="keep"))
    assert [(part.chars, part.forced) for part in found] == [(12, False), (12, True)]


@pytest.mark.parametrize("kind", ["bpe", "word"])
@pytest.mark.parametrize("text", [TEXT, "x" * 900, "漢" * 20 + " " * 50, ""])
def test_tokenizers_learn_and_read_chunks_as_they_do_the_whole(kind, text, monkeypatch):
    whole = TOKENIZERS[kind].train([text])
    monkeypatch.setattr(sys.modules[type(whole).__module__], "_CHUNK", 16)
    assert TRAINED[kind].decode(TRAINED[kind].encode(TEXT)) == TEXT
    chunked = TOKENIZERS[kind].train([text])
    assert "".join(base.safe_chunks(text, re.compile(" "), 16)) == text
    if "x" not in text:  # which has no place to cut
        assert chunked.to_json() == whole.to_json()


@ALL
@settings(max_examples=40, deadline=None)
@given(given_parts=st.lists(parts, max_size=3))
def test_a_vocabulary_learnt_from_pieces_is_that_of_the_whole_texts(kind, given_parts):
    options = {"bpe": {"vocab_size": 270}, "word": {"min_count": 1}, "whitespace": {"split_on": "whitespace"}}
    options, kind = options.get(kind, {}), "word" if kind == "whitespace" else kind
    whole = TOKENIZERS[kind].train(["".join(text) for text in given_parts], **options)
    assert TOKENIZERS[kind].train(map(iter, given_parts), **options).to_json() == whole.to_json()


@settings(max_examples=100, deadline=None)
@given(parts=parts, size=st.integers(1, 4), kind=st.sampled_from(["bpe", "word"]))
def test_chunks_do_not_depend_on_where_pieces_end(parts, size, kind):
    safe, text = sys.modules[type(TRAINED[kind]).__module__]._SAFE_CUT, "".join(parts)
    chunks = list(base.safe_chunks(parts, safe, size))
    assert chunks == list(base.safe_chunks(text, safe, size))
    assert "".join(chunks) == text
    assert base.last_cut(safe, text) == max((cut.start() for cut in safe.finditer(text)), default=0)


@settings(max_examples=60, deadline=None)
@given(parts=parts, size=st.integers(1, 9), start=st.integers(0, 9), stop=st.none() | st.integers(0, 20))
def test_a_text_is_cut_anew_and_a_part_of_it_taken(parts, size, start, stop):
    text = "".join(parts)
    assert list(evenly(parts, size)) == [text[at : at + size] for at in range(0, len(text), size)]
    assert "".join(between(parts, start, stop)) == text[start:stop]


def test_no_more_is_taken_than_the_part_that_is_wanted():
    pieces = iter(["ab", "cd", "ef"])
    assert "".join(between(pieces, 1, 4)) == "bcd"
    assert next(pieces) == "ef"


def test_a_chunk_ends_at_a_safe_place_or_at_sixteen_times_its_size():
    chunks = list(base.safe_chunks("ab cd ef" + "g" * 70, re.compile(" "), 4))
    assert chunks == ["ab cd", " ef" + "g" * 61, "g" * 9]


def test_the_place_of_an_unknown_is_counted_in_the_whole_text():
    tokenizer = WordTokenizer.train(["a b. a b."], min_count=1)
    with pytest.raises(UsageError, match="'xyz'"):
        list(encode_pieces(tokenizer, ["a b. " * 200, " a ", " xyz", " xyz "], where="A.txt"))


@pytest.mark.parametrize("unk", ["skip", "keep"])
def test_what_is_left_out_is_left_out_of_the_counts(unk):
    (part,) = encode_pieces(CharTokenizer.train(["ab"]), ["a€b"], unk=unk)
    assert (part.ids.size, part.chars, part.bytes, part.unknown) == {"skip": (2, 2, 2, 1), "keep": (3, 3, 5, 1)}[unk]


def test_a_tokenizer_that_knows_no_safe_place_gets_the_text_in_one():
    class Pairs(ByteTokenizer):
        def safe_cut(self, text):
            return super(ByteTokenizer, self).safe_cut(text)

    assert [part.chars for part in encode_pieces(Pairs(), ["ab", "cd", "e"])] == [5]
