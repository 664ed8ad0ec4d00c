"""The sets of sequences: every label is what a slow, separate program computes from the text alone."""

import re

import numpy as np
import pytest

from jaxgen.data.tables import digest
from jaxgen.errors import UsageError
from jaxgen.tasks.classify.sequences import SEQUENCES, sequences

SMALL = {"train": 400, "val": 60, "test": 30}


def parity(text):
    odd = False
    for digit in text:
        odd ^= digit == "1"
    return "odd" if odd else "even"


def modular_sum(text):
    return str(sum(value * text.count(str(value)) for value in range(5)) % 5)


def recall(text):
    pairs, key = text.split("?")
    table = dict(re.findall(r"([a-zA-Z])(\d)", pairs))
    assert 2 * len(table) == len(pairs)  # every key occurs once
    return table[key]


def copy(text):
    shown, written = text.split(">")
    symbols = shown.replace(".", "")
    assert len(symbols) == 8
    assert symbols.startswith(written)
    return symbols[len(written)]


ANSWERS = {
    "copying": copy,
    "modular-sum": modular_sum,
    "parity": parity,
    "recall": recall,
    "selective-copying": copy,
}


def length(name, text):
    """The length of a text, counted in it."""
    if name == "recall":
        return (len(text) - 2) // 2
    return text.count(".") if name.endswith("copying") else len(text)


@pytest.fixture(scope="module", params=sorted(SEQUENCES))
def made(request):
    return request.param, sequences(request.param, 3, **SMALL)


def test_every_label_is_the_answer(made):
    name, splits = made
    for texts, labels in splits.values():
        assert [ANSWERS[name](text) for text in texts] == labels


def test_training_has_every_length_up_to_the_longest_and_tests_have_one(made):
    name, splits = made
    longest = SEQUENCES[name].trained
    assert {length(name, text) for text in splits["train"].texts} == {*range(1, longest + 1)}
    assert {length(name, text) for text in splits["val"].texts} <= {*range(1, longest + 1)}
    tested = {n: splits[f"length_{n}"].texts for n in SEQUENCES[name].tested}
    assert max(tested) > longest
    for n, texts in tested.items():
        assert {length(name, text) for text in texts} == {n}
    assert set(splits) == {"train", "val", *(f"length_{n}" for n in tested)}


def test_long_texts_of_two_splits_differ(made):
    name, splits = made
    longest = SEQUENCES[name].trained
    seen = [{text for text in texts if length(name, text) >= longest // 2} for texts, _ in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_labels_are_equally_frequent(made):
    name, splits = made
    labels = splits["train"].labels + [label for split, part in splits.items() if split != "train" for label in part[1]]
    classes, counts = np.unique(labels, return_counts=True)
    share = 1 / classes.size
    assert classes.size == {"copying": 8, "selective-copying": 8, "recall": 10, "parity": 2, "modular-sum": 5}[name]
    assert np.abs(counts / len(labels) - share).max() < 5 * np.sqrt(share * (1 - share) / len(labels))


def test_the_symbols_of_selective_copying_lie_among_the_dots():
    plain, spread = (sequences(name, **SMALL)["length_16"].texts for name in ("copying", "selective-copying"))
    assert all(re.fullmatch(r"[a-h]{8}\.{16}>[a-h]*", text) for text in plain)
    assert all(re.fullmatch(r"[a-h.]{24}>[a-h]*", text) for text in spread)
    assert len({re.sub("[a-h]", "x", text.split(">")[0]) for text in spread}) == len(spread)


def test_every_symbol_of_a_copy_is_asked_for():
    texts = sequences("copying", **SMALL)["train"].texts
    assert {len(text.split(">")[1]) for text in texts} == {*range(8)}


def test_a_seed_decides_all(made):
    name, splits = made
    assert digest(sequences(name, 3, **SMALL)) == digest(splits)
    assert digest(sequences(name, 4, **SMALL)) != digest(splits)
    assert sequences(name, 3, train=1, val=60, test=30)["val"] == splits["val"]


def test_the_bits_are_the_same_everywhere():
    drawn = sequences("selective-copying", 0, train=1, val=1, test=1)["length_8"]
    assert drawn == (["..g.gbf..b..fgc.>ggbf"], ["b"])


@pytest.mark.parametrize("wrong", [{"name": "party"}, {"seed": -1}, {"train": 0}, {"test": 0.5}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(UsageError):
        sequences(**{"name": "parity", **wrong})
