"""Properties of every tokenizer, and of each kind."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.tokenizers import (
    EOS,
    PAD,
    TOKENIZERS,
    UNK,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    load_tokenizer,
    text_bytes,
    word,
)
from jaxgen.tokenizers.word import split_words

ODD = "crlf\r\nlone\rtab\tnul\0 e\u0301 n\u0303 👩‍👩‍👧 🇩🇪 \u2028 \x85 \ufeff don't l’été  two  spaces\n\n"
TEXT = "the cat sat on the mat. the dog's bed, the cat's hat!\n" * 4 + ODD * 2
GENERAL = settings(max_examples=60, deadline=None)
# Characters that JSON or UTF-8 treat specially come up often.
texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab \r\n\t\0'’.,é\u0301🎉")), max_size=60)
# st.text leaves lone surrogates out, so these strings are put together from a list.
wild = st.lists(
    st.one_of(st.characters(), st.sampled_from(["\ud800", "\udbff", "\udc00", "\udc80", "\udcff", "\udfff", " "])),
    max_size=30,
).map("".join)

TRAINED = {kind: cls.train([TEXT]) for kind, cls in TOKENIZERS.items() if kind != "bpe"}
TRAINED["bpe"] = TOKENIZERS["bpe"].train([TEXT], vocab_size=300)
ALL = pytest.mark.parametrize("kind", TOKENIZERS)


@ALL
def test_the_special_ids_come_first_and_decode_to_nothing_but_unk(kind):
    tokenizer = TRAINED[kind]
    assert (PAD, UNK, EOS) == (0, 1, 2)
    unknown = " <unk>" if kind == "word" else "<unk>"  # a word has its space
    assert list(tokenizer.pieces[:3]) == [b"", unknown.encode(), b""]
    assert tokenizer.vocab_size == len(tokenizer.pieces)
    assert tokenizer.decode([PAD, UNK, EOS]) == unknown


@ALL
def test_ids_are_int32_in_range_and_empty_text_has_none(kind):
    ids = TRAINED[kind].encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.min() >= UNK
    assert ids.max() < TRAINED[kind].vocab_size
    assert TRAINED[kind].encode("").shape == (0,)
    assert TRAINED[kind].encode("").dtype == np.int32
    assert TRAINED[kind].decode([]) == ""


@ALL
@GENERAL
@given(data=st.data())
def test_text_that_the_vocabulary_covers_comes_back_exactly(kind, data):
    text = data.draw(texts)
    options = {"min_count": 1} if kind == "word" else {}
    tokenizer = TRAINED["bpe"] if kind == "bpe" else TOKENIZERS[kind].train([text], **options)
    ids = tokenizer.encode(text)
    assert UNK not in ids
    assert tokenizer.decode(ids) == text


@ALL
@GENERAL
@given(data=st.data())
def test_streamed_pieces_add_up_to_the_whole_text(kind, data):
    tokenizer = TRAINED[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    decoder, streamed, at = tokenizer.stream_decoder(), "", 0
    while at < len(ids):
        size = data.draw(st.integers(1, 4))
        streamed += decoder.feed(ids[at : at + size])
        at += size
    assert streamed + decoder.flush() == tokenizer.decode(ids)


@ALL
@GENERAL
@given(text=wild)
def test_any_string_at_all_is_encoded_and_survives_its_own_decoding(kind, text):
    ids = TRAINED[kind].encode(text)
    TRAINED[kind].decode(ids).encode("utf-8")


@ALL
def test_json_makes_the_same_tokenizer_again(kind):
    written = json.loads(json.dumps(TRAINED[kind].to_json()))
    again = load_tokenizer(written)
    assert written["kind"] == kind
    assert list(again.pieces) == list(TRAINED[kind].pieces)
    np.testing.assert_array_equal(again.encode(ODD), TRAINED[kind].encode(ODD))


@ALL
def test_training_twice_gives_the_same_vocabulary(kind):
    assert TOKENIZERS[kind].train([TEXT]).to_json() == TOKENIZERS[kind].train([TEXT]).to_json()


@ALL
@pytest.mark.parametrize("ids", [[-1], [10**6], [0.5], ["a"], [True]])
def test_ids_outside_the_vocabulary_are_refused(kind, ids):
    with pytest.raises(UsageError, match="whole number"):
        TRAINED[kind].decode(ids)


@ALL
def test_every_option_of_train_is_listed_and_checked(kind):
    for name in TOKENIZERS[kind].OPTIONS:
        for bad in (0, -3, 1.5, True, "2"):
            with pytest.raises(UsageError, match=name.replace("_", ".")):
                TOKENIZERS[kind].train([TEXT], **{name: bad})


@ALL
@GENERAL
@given(
    obj=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=5,
    )
)
def test_malformed_json_is_a_checkpoint_error(kind, obj):
    field = next((name for name in TRAINED[kind].to_json() if name != "kind"), "extra")
    for broken in (obj, {"kind": kind, field: obj}, {"kind": kind, field: [obj]}, {"kind": kind, field: [obj, obj]}):
        if broken == {"kind": "char", "code_points": []}:
            continue
        try:
            load_tokenizer(broken)
        except CheckpointError:
            continue
        assert load_tokenizer(broken).to_json() == broken


@pytest.mark.parametrize("obj", [None, [], "char", {}, {"kind": "chars"}, {"kind": 3}, {"kind": ["char"]}])
def test_an_unknown_kind_is_a_checkpoint_error_that_lists_the_kinds(obj):
    with pytest.raises(CheckpointError, match="bpe, byte, char, word"):
        load_tokenizer(obj)


def test_a_misspelt_kind_suggests_the_nearest():
    with pytest.raises(CheckpointError, match="'char'"):
        load_tokenizer({"kind": "chr"})


@pytest.mark.parametrize("points", [[97, 97], [98, 97, 98], [-1], [0x110000], [True], [1.0], ["a"], "abc", None])
def test_malformed_code_points_are_refused(points):
    with pytest.raises(CheckpointError, match="malformed"):
        load_tokenizer({"kind": "char", "code_points": points})


@pytest.mark.parametrize("words", [["a"], [" ", "a", "a"], [" ", ""], [" ", "a b"], [" ", "\ud800"], [" ", 3], {}])
def test_malformed_words_are_refused(words):
    with pytest.raises(CheckpointError, match="malformed"):
        load_tokenizer({"kind": "word", "split_on": "punctuation", "words": words})


def test_a_field_too_many_is_refused():
    with pytest.raises(CheckpointError, match="malformed"):
        load_tokenizer({"kind": "byte", "more": 1})


def test_char_tokens_are_in_code_point_order_and_rare_ones_can_be_left_out():
    tokenizer = CharTokenizer.train(["bab", "😀a"])
    assert [piece.decode() for piece in tokenizer.pieces[3:]] == ["a", "b", "😀"]
    assert CharTokenizer.train(["bab", "ca"], min_count=2).decode([3, 4]) == "ab"
    assert CharTokenizer.train(["bab", "ca"], min_count=2).vocab_size == 5


def test_char_reads_what_it_lacks_as_unk_below_between_and_above_its_characters():
    ids = CharTokenizer.train(["bd"]).encode("abcd😀\U0010ffff")
    assert ids.tolist() == [UNK, 3, UNK, 4, UNK, UNK]


def test_char_counts_over_many_texts_and_chunks_alike(monkeypatch):
    whole = CharTokenizer.train(["abcabd" * 5]).to_json()
    monkeypatch.setattr("jaxgen.tokenizers.char._CHUNK", 4)
    assert CharTokenizer.train(["abcabd"] * 5).to_json() == whole


def test_char_gives_a_lone_surrogate_its_own_id_and_shows_it_as_the_replacement_character():
    text = "\ud800\udc00a"
    assert len(text) == 3
    tokenizer = load_tokenizer(json.loads(json.dumps(CharTokenizer.train([text]).to_json())))
    assert len(set(tokenizer.encode(text).tolist())) == 3
    assert tokenizer.decode(tokenizer.encode(text)) == "\ufffd\ufffda"


@GENERAL
@given(raw=st.binary(max_size=60))
def test_byte_keeps_any_bytes_read_with_surrogateescape(raw):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(raw.decode("utf-8", "surrogateescape"))
    assert ids.tolist() == [value + 3 for value in raw]
    assert tokenizer.decode_bytes(ids) == raw
    decoder = tokenizer.stream_decoder("surrogateescape")
    text = "".join(decoder.feed([i]) for i in ids) + decoder.flush()
    assert text.encode("utf-8", "surrogateescape") == raw


def test_byte_streams_a_character_split_over_tokens_whole():
    tokenizer = ByteTokenizer()
    decoder = tokenizer.stream_decoder()
    assert [decoder.feed([i]) for i in tokenizer.encode("é🎉")] == ["", "é", "", "", "", "🎉"]
    assert decoder.feed(tokenizer.encode("🎉")[:2]) == ""
    assert decoder.flush() == "\ufffd"


@GENERAL
@given(text=texts)
def test_words_add_up_to_the_text_and_only_a_leading_space_is_glued(text):
    words = split_words(text)
    assert "".join(words) == text
    assert all(len(word) == 1 or not re.search(r"\s", word[1:]) for word in words)


def test_words_keep_inner_apostrophes_punctuation_and_spaces_apart():
    assert split_words("Don't  stop, l’été 'tis\r\n") == [
        *("Don't", " ", " stop", ",", " l’été", " '", "tis", "\r", "\n"),
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        ["हिन्दी", " भाषा", "।"],
        ["cafe\u0301", " No\u0308e\u0308l"],
        ["தமிழ்", " மொழி"],
        ["ภาษาไทย", " ที่นี่"],
        ["שָׁלוֹם", " עוֹלָם"],
        ["مُحَمَّد", " می\u200cخواهم"],
        ["ක්\u200dෂ", " क्\u200dष"],
        ["👨\u200d👩\u200d👧\u200d👦", "👩\u200d👩", " 👍🏽", "👍", " ❤\ufe0f\u200d🔥"],
        ["🇩🇪", "🇫🇷", " 1\ufe0f\u20e3", " 🏴\U000e0067\U000e0062\U000e007f", "!"],
        ["a", "!\u0301", "b", " ?\u200d", " c"],
        ["it’s", " l'e\u0301te\u0301", "'"],
        ["a_1", "\x1c", "\u2028", "\x85", "漢字"],
    ],
)
def test_marks_and_joiners_stay_with_their_word_or_symbol(pieces):
    text = "".join(pieces)
    assert split_words(text) == pieces
    tokenizer = WordTokenizer.train([text], min_count=1)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@GENERAL
@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_text_has_the_same_words_beside_other_text(text):
    assert split_words(text) == split_words(f"{text} é")[: len(split_words(text))]
    assert split_words(text) == word._PIECE.findall(text)


def test_ascii_separators_are_white_space():
    assert split_words("a \x1c b") == split_words("a \x1c b é")[:-1] == ["a", " ", "\x1c", " b"]


def test_words_are_ranked_by_count_and_cut_at_the_limits():
    text = "b b b a a c"
    assert WordTokenizer.train([text]).to_json()["words"] == [" ", " a", " b"]
    assert WordTokenizer.train([text], min_count=1).to_json()["words"] == [" ", " a", " b", " c", "b"]
    assert WordTokenizer.train([text], min_count=1, vocab_size=5).vocab_size == 5


@pytest.mark.parametrize("kind", ["bpe", "word"])
@pytest.mark.parametrize("size", [2**20 + 1, 999_999_999, 10**30])
def test_a_vocabulary_that_no_memory_holds_is_refused_before_anything_is_read(kind, size):
    if kind == "bpe":
        pytest.importorskip("tokenizers")

    def unread():
        raise AssertionError("The text was read.")
        yield

    with pytest.raises(UsageError, match=f"{size}"):
        TOKENIZERS[kind].train(unread(), vocab_size=size)


def test_what_is_frequent_is_found_among_more_words_than_are_counted_at_a_time(monkeypatch):
    monkeypatch.setattr("jaxgen.tokenizers.word._COUNTED", 64)
    monkeypatch.setattr("jaxgen.tokenizers.word._CHUNK", 256)
    sizes, frequent = [], word._frequent
    monkeypatch.setattr(word, "_frequent", lambda counts, most: sizes.append(len(counts)) or frequent(counts, most))
    never_again = " ".join(f"{number:x}" for number in range(10_000, 20_000))
    text = f"{never_again} und et et {'et und ' * 300}{never_again[::-1]}"
    assert WordTokenizer.train([text], vocab_size=6).to_json()["words"] == [" ", " et", " und"]
    assert 64 < max(sizes) < 64 + 256


def test_a_word_unknown_with_its_space_falls_back_to_the_space_and_the_bare_word():
    tokenizer = WordTokenizer([" ", "cat", " dog"])
    assert tokenizer.encode(" cat dog").tolist() == [3, 4, 5]
    assert tokenizer.encode("dog").tolist() == [UNK]


def test_the_space_before_an_unknown_word_is_part_of_the_unknown_token():
    tokenizer = WordTokenizer([" ", "cat", " dog"])
    assert tokenizer.encode(" cat dog fox  owl").tolist() == [3, 4, 5, UNK, 3, UNK]
    assert tokenizer.unknown("cat fox(") == [(3, " fox"), (7, "(")]
    assert tokenizer.decode(tokenizer.encode(" cat dog fox")) == " cat dog <unk>"


def test_words_between_white_space_are_those_of_the_corpus():
    text = " the <unk> n't N\n\n the $ N-year\tdog \n"
    tokenizer = WordTokenizer.train([text], split_on="whitespace")
    assert tokenizer.to_json()["words"] == ["\n", " the", " $", " N", " N-year", " dog", " n't"]
    ids = tokenizer.encode(text)
    assert ids.size == len(text.split()) + text.count("\n")
    assert tokenizer.decode(ids) == " the <unk> n't N\n\n the $ N-year dog\n"
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    np.testing.assert_array_equal(load_tokenizer(tokenizer.to_json()).encode(text), ids)
    assert WordTokenizer.train([text], split_on="whitespace", vocab_size=5).to_json()["words"] == ["\n", " the"]


def test_the_unknown_word_of_a_corpus_is_known_and_other_words_are_not():
    tokenizer = WordTokenizer.train(["the dog <unk> the dog\n"], split_on="whitespace")
    assert tokenizer.unknown("the <unk> fox\n") == [(9, " fox")]
    assert UNK in tokenizer.encode_prompt("the <unk> dog")[0]
    with pytest.raises(UsageError, match="'fox'"):
        tokenizer.encode_prompt("the <unk> fox")
    assert tokenizer.decode(tokenizer.encode_prompt("the <unk> fox", "skip")[0]) == " the <unk>"


@pytest.mark.parametrize("words", [["dog"], [" the dog"], [" "], [" <unk>"], [" a", " a"]])
def test_what_does_not_stand_between_white_space_is_refused(words):
    with pytest.raises(CheckpointError):
        load_tokenizer({"kind": "word", "split_on": "whitespace", "words": words})


@pytest.mark.parametrize("kind", ["char", "word", "whitespace"])
def test_an_extended_vocabulary_keeps_its_ids_and_knows_the_other_text(kind):
    options = {"word": {"min_count": 1}, "whitespace": {"split_on": "whitespace"}}.get(kind, {})
    old = TOKENIZERS["char" if kind == "char" else "word"].train(["the cat\n"], **options)
    tokenizer, new = old.extended(["the bat, ähm\n"], **options)
    assert new
    assert tokenizer.pieces == [*old.pieces, *(piece.encode() for piece in new)]
    assert UNK not in tokenizer.encode("the bat, ähm\n")
    np.testing.assert_array_equal(tokenizer.encode("the cat"), old.encode("the cat"))
    assert load_tokenizer(tokenizer.to_json()).to_json() == tokenizer.to_json()
    assert tokenizer.extended(["the bat, ähm\n"], **options)[1] == []


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_levels_that_know_every_text_are_not_extended(kind):
    with pytest.raises(UsageError, match="--extend-vocabulary"):
        TRAINED[kind].extended(["abc"])


def test_a_prompt_with_unknown_characters_names_them_and_their_positions():
    with pytest.raises(UsageError) as error:
        CharTokenizer.train(["abc"]).encode_prompt("aéb\0c12345")
    assert "'é', '\\x00', '1', '2', '3' and 2 more" in str(error.value)
    assert "2, 4, 6, 7, 8" in str(error.value)
    assert "--unk skip" in str(error.value)


def test_a_prompt_with_one_unknown_word_names_it_where_it_starts():
    tokenizer = WordTokenizer([" ", "cat", " dog"])
    with pytest.raises(UsageError, match="'fox'"):
        tokenizer.encode_prompt("cat fox")
    assert tokenizer.decode(tokenizer.encode_prompt("cat fox dog", "skip")[0]) == "cat dog"


def test_unknowns_of_a_prompt_can_be_skipped_or_kept():
    tokenizer = CharTokenizer.train(["abc"])
    assert tokenizer.decode(tokenizer.encode_prompt("aéb", "skip")[0]) == "ab"
    assert tokenizer.decode(tokenizer.encode_prompt("aéb", "keep")[0]) == "a<unk>b"
    assert tokenizer.encode_prompt("éé", "skip")[0].size == 0
    with pytest.raises(UsageError, match="'skip'"):
        tokenizer.encode_prompt("a", "skp")


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_byte_and_bpe_know_every_prompt(kind):
    tokenizer = TRAINED[kind]
    assert tokenizer.decode(tokenizer.encode_prompt("Ж漢\0 <unk> 🎉")[0]) == "Ж漢\0 <unk> 🎉"
    assert tokenizer.unknown("Ж漢") == []


def test_bytes_of_a_string_keep_escaped_bytes_and_replace_other_lone_surrogates():
    assert text_bytes("a\udc80\udcffé") == b"a\x80\xff\xc3\xa9"
    assert text_bytes("\ud800\udc80\udfff") == b"\xef\xbf\xbd\x80\xef\xbf\xbd"
