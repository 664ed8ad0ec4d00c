"""The host half of translation: batches, skipped examples, evaluation and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.predictor import DecodedText
from jaxgen.plots import AttentionMap
from jaxgen.runs.config import validate
from jaxgen.tasks.seq2seq import data as writing
from jaxgen.tasks.translate.data import TranslateCodec, TranslateConfig, TranslateData, sacrebleu_scores
from jaxgen.tokenizers import EOS, PAD, UNK, CharTokenizer, WordTokenizer

PAIRS = [("ab", "BA"), ("cde", "EDC"), ("a b", "B A"), ("edcba" * 3, "ABCDE" * 3), ("e", "E"), ("dd", "DD")]
VAL = [("abe", "EBA"), ("bad", "DAB"), ("c", "C")]
Pairs = Sequence[tuple[str, str]]


@pytest.fixture
def make(tmp_path: Path):
    """Data of these pairs."""

    def made(train: Pairs = PAIRS, val: Pairs = VAL, test: Pairs = (), codec: Any = None, **settings: Any) -> Any:
        names = {"data": train, "val_data": val, "test_data": test}
        for name, pairs in names.items():
            if pairs:
                path = tmp_path / f"{name}.jsonl"
                path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
                settings[name] = (str(path),)
        sizes = {"source_column": "1", "target_column": "2", "batch_size": 4}
        return TranslateData.load(TranslateConfig(**{**sizes, **settings}), codec)

    return made


class Model:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts, self.asked = texts, []

    def predict(self, inputs: Sequence[str], **options: Any) -> list[dict[str, str]]:
        self.asked.append((list(inputs), options))
        return [{"text": self.texts[each]} for each in inputs]


def texts_of(tokenizer: Any, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """What stands in each row where the mask says so, special ids as they are called."""
    names = {PAD: "<pad>", EOS: "<eos>", UNK: "<unk>"}
    rows = zip(ids, mask)
    return ["".join(names.get(i, tokenizer.decode([i])) for i in row[there].tolist()) for row, there in rows]


# Batches


def test_a_batch_reads_eos_then_the_text_and_writes_the_text_then_eos(make):
    data = make()
    seen = {}
    for step in range(data.batches.steps_per_epoch):
        batch = data.batches.batch(step)
        sources = texts_of(data.codec.source, batch.inputs.tokens, batch.inputs.valid)
        read = texts_of(data.codec.target, batch.tokens, batch.mask)
        written = texts_of(data.codec.target, batch.targets, batch.mask)
        for source, before, text in zip(sources, read, written):
            if text:
                seen[source] = (before, text)
            else:
                assert (source, before) == ("", "")
        assert (batch.tokens[~batch.mask] == PAD).all()
        assert (batch.targets[~batch.mask] == PAD).all()
        assert (batch.inputs.tokens[~batch.inputs.valid] == PAD).all()
    assert seen == {source: (f"<eos>{target}", f"{target}<eos>") for source, target in PAIRS}


def test_a_batch_is_filled_up_with_rows_without_a_target(make):
    data = make(batch_size=8)
    batch = data.batches.batch(0)
    assert batch.mask.shape[0] == batch.inputs.tokens.shape[0] == 8
    there = batch.mask.any(axis=1)
    assert 0 < there.sum() < 8
    assert not batch.inputs.valid[~there].any()


def test_shapes_are_few_and_both_sides_have_their_own_width(make):
    data = make([*PAIRS, ("a" * 20, "b"), ("a", "b" * 40)], batch_size=2)
    shapes = {
        (batch.inputs.tokens.shape[1], batch.tokens.shape[1])
        for batch in map(data.batches.batch, range(data.batches.steps_per_epoch))
    }
    assert shapes == {(8, 8), (16, 16), (24, 8), (8, 48)}
    assert len(make(PAIRS, buckets=1).batches._buckets) == 1


def test_the_probability_of_reading_its_own_predictions_rises_to_what_was_asked(make):
    data = make(scheduled_sampling=0.5, scheduled_sampling_steps=100)
    assert [data.scheduled_sampling_prob(step) for step in (0, 50, 100, 1000)] == [0.0, 0.25, 0.5, 0.5]
    np.testing.assert_array_equal(data.batches.batch(50).scheduled_sampling_prob, np.full(4, 0.25, np.float32))
    assert data.model_options()["use_scheduled_sampling"]
    forced = make()
    assert not forced.batches.batch(50).scheduled_sampling_prob.any()
    assert not forced.model_options()["use_scheduled_sampling"]


# What is read


def test_pairs_of_which_a_side_is_too_long_are_left_out_of_training_and_counted(make):
    train = [*PAIRS, ("a" * 9, "b"), ("a", "b" * 8), ("a" * 8, "b" * 7)]
    data = make(train, max_length=8)
    assert ("a" * 8) in data.splits["train"].raw
    assert len(data.splits["train"].raw) == len(PAIRS) - 1 + 1
    assert "3 texts longer" in data.summary()["pairs"]
    assert max(ids.size for ids in data.splits["train"].targets) == 7
    with pytest.raises(DataError, match="--max-length"):
        make(max_length=1)


def test_long_validation_pairs_are_judged_by_their_whole_text_and_scored_as_far_as_they_are_read(make):
    data = make(val=[("a" * 30, "ab" * 500), ("e", "E")], max_length=8)
    val = data.splits["val"]
    assert val.references(0) == ["ab" * 500]
    evaluation = data.eval_sets(final=False)["val"]
    (batch,) = evaluation.batches()
    assert batch.tokens.shape == (evaluation.rows, 8)
    assert batch.inputs.tokens.shape == (evaluation.rows, 8)
    long = int(batch.mask.sum(axis=1).argmax())
    assert batch.mask[long].sum() == 8
    assert EOS not in batch.targets[long], "the text goes on behind what counts"
    assert batch.tokens[long, 0] == EOS


def test_every_evaluation_has_every_row_once(make):
    data = make(test=[("ab", "X"), ("cd", "Y")])
    assert list(data.eval_sets(final=False)) == ["val"]
    final = data.eval_sets(final=True)
    assert list(final) == ["val", "test"]
    for name, evaluation in final.items():
        read = [
            text
            for batch in evaluation.batches()
            for text in texts_of(data.codec.source, batch.inputs.tokens, batch.inputs.valid)
        ]
        assert sorted(filter(None, read)) == sorted(data.splits[name].raw)


def test_white_space_around_a_text_is_not_learnt(make):
    data = make([("  ab ", " BA\t"), *PAIRS])
    assert data.splits["train"].texts[0] == "BA"
    assert data.codec.source.decode(data.splits["train"].inputs[0]) == "ab"
    assert "\t" not in data.codec.target.to_json()


def test_the_vocabulary_comes_from_the_training_pairs_of_each_side(make):
    data = make(val=[("axb", "BXA")])
    assert (data.splits["val"].inputs[0] == UNK).sum() == 1
    assert set(data.codec.source.decode(range(3, data.codec.source.vocab_size))) == set("abcde ")
    assert set(data.codec.target.decode(range(3, data.codec.target.vocab_size))) == set("ABCDE ")
    assert "33.3%" in data.summary()["tokens"]


def test_words_are_read_in_lower_case_and_written_as_they_are(make):
    train = [("The dog barks", "Der Hund bellt"), ("the DOG sits", "Der Hund sitzt")]
    data = make(train, val=[("THE dog", "der Hund")], level="word", min_count=1)
    assert data.codec.lower
    assert not any((ids == UNK).any() for ids in data.splits["val"].inputs)
    assert (data.splits["val"].targets[0] == UNK).sum() == 1
    as_it_is = make(train, level="word", min_count=1, lowercase=False)
    assert (as_it_is.codec.encode("THE dog") == UNK).any()


def test_the_first_word_of_a_text_is_the_token_it_is_in_the_middle(make):
    data = make([("a b", "x y"), ("b a", "y x")], val=[("a", "x")], level="word", min_count=1)
    (a, b), (x, y) = data.splits["train"].inputs[0], data.splits["train"].targets[0]
    np.testing.assert_array_equal(data.splits["train"].inputs[1], [b, a])
    np.testing.assert_array_equal(data.splits["train"].targets[1], [y, x])
    answer = data.codec.answer("b", DecodedText(np.array([y, x]), -1.5, True))
    assert answer["text"] == "y x"


@pytest.mark.parametrize("level", ["char", "byte", "word", "bpe"])
def test_a_target_comes_back_from_its_ids_at_every_level(level, make):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    more = {"min_count": 1} if level == "word" else {"vocab_size": 300} if level == "bpe" else {}
    train = [("ein Hund, müde", "a dog, it's tired…"), ("zwei", "two"), ("und so weiter", "and so on")]
    data = make(train, val=train, level=level, **more)
    for ids, text in zip(data.splits["val"].targets, data.splits["val"].texts):
        assert data.codec.answer("x", DecodedText(ids, 0.0, True))["text"] == text


def test_facts_say_what_was_read(make):
    data = make([*PAIRS, ("", "x")], test=[("a", "b")])
    facts = data.summary()
    assert facts["pairs"].startswith("6 to train on, 3 ")
    assert "1 of test" in facts["pairs"]
    assert "9 and 9" in facts["tokens"]
    assert data.fingerprint()["sha256"][:12] in facts["data"]


# Beginning from another run


def test_a_given_codec_is_used_with_the_new_limit_on_lengths(make):
    old = make().codec
    data = make([("xy", "YX"), ("zz", "ZZ")], codec=old, max_length=50)
    assert (data.codec.source, data.codec.target) == (old.source, old.target)
    assert data.codec.max_length == 50
    assert (data.splits["train"].inputs[0] == UNK).all()
    assert data.model_options()["vocab_size"] == old.target.vocab_size


def test_a_codec_of_another_level_or_case_is_refused(make):
    with pytest.raises(UsageError, match="--level"):
        make(codec=make().codec, level="word")
    with pytest.raises(UsageError, match="--lowercase"):
        make(codec=make(lowercase=True).codec)


# Judging


def test_figures_are_bleu_of_characters_and_exact_matches(make):
    data = make(val=PAIRS)
    row = data.text_metrics(["ABCDE", "ABC"], [["ABCDE"], ["ABD"]], final=False)
    assert row["exact"] == 0.5
    matched, total = [7, 5, 3, 2], [8, 6, 4, 2]  # n-grams of 1 to 4 letters; of the second text A, B and AB are right
    expected = 100 * np.exp(np.mean(np.log(np.divide(matched, total))))
    np.testing.assert_allclose(row["bleu"], expected)
    assert set(row) == {"bleu", "exact"}


def test_where_the_longest_text_of_a_split_has_three_letters_bleu_is_of_three_in_all_splits(make):
    data = make()
    assert data.text_metrics(["ABX", "D"], [["ABC"], ["D"]], final=False)["bleu"] == 0, "no three letters are right"
    assert data.text_metrics(["ABC", "X"], [["ABC"], ["D"]], final=False)["bleu"] == pytest.approx(100 * np.cbrt(3 / 4))
    assert data.text_metrics(["ABCDE"], [["ABCXE"]], final=False)["bleu"] == pytest.approx(
        100 * np.cbrt(4 / 5 * 2 / 4 / 3)
    )
    single = make(test=[("ab", "X")])
    assert single.text_metrics(["A", "X"], [["A"], ["D"]], final=False)["bleu"] == pytest.approx(50)


def test_the_final_figures_are_those_of_sacrebleu_with_its_signature(make):
    data = make()
    texts, references = ["the cat sat on the mat", "a dog"], [["the cat sat on a mat"], ["a dog barks"]]
    row = data.text_metrics(texts, references, final=True)
    by_itself = sacrebleu.corpus_bleu(texts, [[group[0] for group in references]])
    np.testing.assert_allclose(row["sacrebleu"], by_itself.score)
    np.testing.assert_allclose(row["chrf"], sacrebleu.corpus_chrf(texts, [[r[0] for r in references]]).score)
    assert "tok:13a" in row["signature"]
    assert f"version:{sacrebleu.__version__}" in row["signature"]


def test_single_words_have_no_bleu_of_words():
    row = sacrebleu_scores(["2026-11-21"] * 2, [["2026-11-21"]] * 2)
    assert "sacrebleu" not in row
    assert row["chrf"] == pytest.approx(100)
    assert "BLEU" not in row["signature"]


def test_texts_of_fewer_references_are_judged_by_those_they_have():
    texts = ["the cat sat on the mat", "a dog barks at the moon"]
    many = ["the cat sat on a mat", "on the mat sat the cat"]
    row = sacrebleu_scores(texts, [many, ["a dog barks at it"]])
    alone = sacrebleu_scores(texts, [many, ["a dog barks at it", "a dog barks at it"]])
    assert row == alone


def test_texts_that_look_tokenized_print_no_warning(capsys, caplog):
    sacrebleu_scores(["a cat ."] * 200, [["a cat ."]] * 200)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def test_without_sacrebleu_there_are_our_own_figures(make, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    row = make().text_metrics(["ABCDE"], [["ABCDE"]], final=True)
    assert row == {"bleu": pytest.approx(100), "exact": 1.0}


def test_during_training_some_of_validation_is_written_greedily_and_at_the_end_all_splits_by_beams(make, monkeypatch):
    monkeypatch.setattr(writing, "MAX_DECODED", 2)
    val = [*VAL, ("dab", "BAD")]
    data = make(val=val, test=[("ab", "X")], beam=3)
    model = Model(dict(val) | {"ab": "wrong"})
    during = data.generation_metrics(model, final=False)
    assert model.asked == [(["abe", "c"], {"beam": 0})], "from all over the split"
    assert during == {"val_bleu": pytest.approx(100), "val_exact": 1.0}
    final = data.generation_metrics(model, final=True)
    assert model.asked[1:] == [([source for source, _ in val], {"beam": 3}), (["ab"], {"beam": 3})]
    assert (final["val_exact"], final["test_exact"]) == (1.0, 0.0)
    assert {"val_chrf", "val_signature", "test_chrf"} <= set(final)
    assert "val_sacrebleu" not in final, "answers of one word have no BLEU of words"


class Totals:
    nll, targets, correct = np.float64(6.0), np.float64(4.0), np.float64(3.0)


def test_a_report_is_in_nats_a_target(make):
    assert make().report({"val": Totals}) == {"val_loss": 1.5, "val_token_accuracy": 0.75}


def test_three_pairs_are_shown_with_what_is_right(make):
    data = make(val=[*VAL, ("dd", "DD")])
    (shown,) = data.examples(Model({"abe": "EBA", "bad": "DUB", "c": ""}), final=False)
    assert shown.title == "some validation pairs"
    assert shown.text.splitlines() == [
        *("abe", "    -> EBA", "       (exactly right)"),
        *("bad", "    -> DUB", "       (it is: DAB)"),
        *("c", "    -> ", "       (it is: C)"),
    ]


def test_the_summary_names_every_split_and_the_signature(make):
    data = make(test=[("a", "b")])
    figures = {"loss": 0.25, "token_accuracy": 0.5, "bleu": 40.0, "exact": 0.125, "sacrebleu": 30.0, "chrf": 50.0}
    report = {f"{split}_{name}": value for split in ("val", "test") for name, value in figures.items()}
    rows = data.report_lines(report | {"val_signature": "BLEU nrefs:1"})
    assert [label for label, _ in rows] == ["validation", "", "test", "", "sacrebleu"]
    assert rows[0][1] == "12.50% exactly right, tokens 50.00%, 0.2500 nats/token, BLEU of characters 40.00"
    assert rows[1][1] == "sacrebleu: BLEU 30.00, chrF 50.00"
    assert data.headline(report) == "BLEU 40.0, 12.5% exactly right"


def test_the_next_command_translates_a_validation_sentence(make):
    data = make(val=[("it's", "x")])
    assert re.fullmatch(r"""echo 'it'"'"'s' \| .*jaxgen predict --run 'a run'""", data.next_command("a run"))


def test_where_it_looks_is_drawn_for_runs_with_attention_alone(make, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("jaxgen.plots.draw_attention", lambda looks, path: drawn.append((looks, path)))

    class Looking(Model):
        def attention(self, source: str) -> AttentionMap:
            return AttentionMap([source], ["x"], np.ones((1, 1)))

    make(attention="none").save_plots(Looking({}), {}, tmp_path)
    assert not drawn
    make().save_plots(Looking({}), {}, tmp_path)
    ((maps, path),) = drawn
    assert path == tmp_path / "attention.png"
    assert [each.source for each in maps] == [["abe"], ["bad"]]
    assert all(each.texts[-1][0] == "reference" for each in maps)


# The codec


@pytest.fixture
def codec() -> TranslateCodec:
    source, target = (CharTokenizer(sorted(map(ord, letters))) for letters in ("abc \n", "ABC \n"))
    return TranslateCodec(source, target, lower=True, max_length=5)


def test_a_codec_comes_back_from_its_json(codec):
    again = TranslateData.read_codec(json.loads(json.dumps(codec.to_json())))
    assert again.to_json() == codec.to_json()
    np.testing.assert_array_equal(again.encode(" ABca "), codec.source.encode("abca"))


@pytest.mark.parametrize("field", ["lower", "max_length", "source", "target"])
@pytest.mark.parametrize("value", [None, "x", 0, {"kind": "char"}])
def test_a_codec_that_was_altered_is_refused(field, value, codec):
    with pytest.raises(CheckpointError):
        TranslateData.read_codec(codec.to_json() | {field: value})
    with pytest.raises(CheckpointError):
        TranslateData.read_codec([])


def test_an_answer_is_a_line_whatever_the_model_writes(codec):
    ids = codec.target.encode("A\nB\n\nC")
    answer = codec.answer("a", DecodedText(ids, -1.25, True))
    assert answer == {"source": "a", "text": "A\nB\n\nC", "logp": -1.25, "tokens": 6, "ended": True, "cut": 0}
    assert codec.line(answer) == "A B  C"


def test_what_is_cut_of_a_source_is_told(codec):
    assert codec.encode("abcabcab").size == 5
    assert codec.answer("abcabcab", DecodedText(codec.target.encode("A"), 0.0, True))["cut"] == 3


@pytest.mark.parametrize("source", ["", "  ", "\t"])
def test_an_empty_source_has_an_empty_translation(source, codec):
    answer = codec.answer(source, DecodedText(codec.target.encode("ABC"), -3.0, True))
    assert codec.line(answer) == ""
    assert (answer["source"], answer["tokens"], answer["logp"]) == (source, 0, 0.0)


def test_labels_show_white_space_and_shorten_what_is_long(codec):
    nothing = DecodedText(np.array([], int), 0.0, True)
    assert codec.attention_map("a b?", nothing, np.ones((1, 4))).source == ["a", "␣", "b", "<unk>"]
    assert codec.written(codec.target.encode("A\nB")) == ["A", "↵", "B", "<eos>"]
    long = WordTokenizer([" ", " Donaudampfschifffahrtsgesellschaft", " sixteen_letters_"])
    words = TranslateCodec(long, long, lower=False, max_length=5)
    looks = words.attention_map("sixteen_letters_ Donaudampfschifffahrtsgesellschaft", nothing, np.ones((1, 2)))
    assert looks.source == ["sixteen_letters_", "Donauda…llschaft"]
    assert words.written(np.array([], int)) == ["<eos>"]


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tie": True, "embed": 0, "hidden": 16}, "--tie"),
        ({"source_column": "a"}, "--target-column"),
        ({"beam": 65}, "--beam is 65"),
        ({"scheduled_sampling": 1.0}, "--scheduled-sampling is 1"),
        ({"scheduled_sampling_steps": 50}, "--scheduled-sampling"),
        ({"val_rows": 3, "val_fraction": 0.1}, "--val-rows"),
        ({"level": "word", "vocab_size": 0}, "--vocab-size is 0"),
        ({"level": "bpe", "vocab_size": 2**20 + 1}, "--vocab-size"),
        ({"min_count": 2, "level": "byte"}, "--min-count"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        validate(TranslateConfig, settings)
