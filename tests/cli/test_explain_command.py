"""``jaxgen explain``: the distribution of the next token, and cycles of greedy decoding."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from jaxgen.cli.explain import draw_bar, greedy_lines
from jaxgen.cli.explain import main as explain_main
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.next_token import Step, distribution_steps
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.text_stream import Sample


@pytest.fixture
def explain(command, run):
    """``jaxgen explain`` on the tiny run, of which greedy decoding is not followed unless asked."""
    return lambda *args, length=0: command(explain_main, [*args, "--run", run, "--length", length])


@pytest.fixture(scope="module")
def sampler(trained):
    return Sampler.load(trained[0])


@pytest.fixture(scope="module")
def cycling(tmp_path_factory, quick, command):
    """A run on a text that repeats two letters, so that greedy decoding enters a cycle."""
    from jaxgen.cli.train import main

    folder = tmp_path_factory.mktemp("cycling")
    (folder / "abc.txt").write_text("abc" * 200)
    flags = "--model ngram --order 2 --batch-size 4 --seq-len 8"
    with quick():
        done = command(main, ["--data", folder / "abc.txt", "--run", folder / "run"], flags)
    assert done.code == 0, done.err
    return folder / "run"


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()


def test_the_steps_are_the_model_and_the_transforms_in_their_order(explain, sampler):
    done = explain("The", "--temperature", 0.5, "--top-k", 3, "--top", 3, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    names = ["the model", "forbid <pad> <unk> <eos>", "temperature 0.5", "top-k 3"]
    assert [step["after"] for step in found["steps"]] == names
    logits = np.asarray(sampler.read("The").logits[0], np.float64)
    model, forbidden, warm, last = found["steps"]
    assert [model["tokens"], last["tokens"]] == [logits.size, 3]
    assert forbidden["tokens"] == warm["tokens"] == logits.size - 3
    order = np.argsort(-logits)
    assert [each["id"] for each in model["top"]] == order[:3].tolist()
    np.testing.assert_allclose([np.exp(each["logp"]) for each in model["top"]], softmax(logits)[order[:3]], atol=1e-5)
    kept = order[np.isin(order, sampler.forbidden, invert=True)][:3]
    assert [each["id"] for each in last["top"]] == kept.tolist()
    np.testing.assert_allclose([np.exp(each["logp"]) for each in last["top"]], softmax(logits[kept] / 0.5), atol=1e-5)
    p = softmax(logits)
    assert model["entropy_bits"] == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-3)
    assert found["greedy"] is None


@dataclass(frozen=True)
class Halve:
    """Halves the first logits, with what arrays of JAX have and those of NumPy lack."""

    number: int

    def init(self, context):
        return np.ones(context.shape, np.float32)

    @staticmethod
    def update(state, logits, last):
        state = state.at[:, last.token.at[:].set(0)].multiply(0.5)
        return state, logits * state


def test_a_transform_of_a_user_gets_the_arrays_of_the_decode_loop(sampler):
    settings = GenerationConfig(transforms=(Halve(1),))
    assert len(sampler.sample("The", settings)) == 1
    steps = distribution_steps(sampler, sampler.read("The"), settings)
    assert "Halve 1" in [step.name for step in steps]


def test_the_table_has_a_bar_before_and_after(explain):
    done = explain("The", "--top-k", 2, "--top", 4)
    assert done.code == 0, done.err
    head, *rows = done.out.split("\n\n")[0].splitlines()
    assert head.split() == ["token", "the", "model", "drawn"]
    assert len(rows) == 5  # four tokens and all others
    assert [row.split()[-1] == "-" for row in rows] == [False, False, True, True, True]
    assert all("█" in row for row in rows[:2])
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize(("flag", "name"), [("--temperature 0", "temperature 0"), ("--force cat", "temperature 0.8")])
def test_a_single_token_may_be_left(explain, flag, name):
    last = json.loads(explain("The", *flag.split(), "--json").out)["steps"][-1]
    assert (last["after"], last["tokens"], last["entropy_bits"], last["top"][0]["logp"]) == (name, 1, 0, 0)


def test_a_token_that_only_the_transforms_make_probable_is_shown(explain):
    found = explain("The", "--bias", "m=50", "--top", 1)
    assert "'m'" in found.out.split("\n\n")[0]


def test_what_is_explained_is_what_is_drawn(explain, sample, run):
    greedy = json.loads(explain("The", "--temperature", 0, "--json", length=20).out)["greedy"]
    assert "The" + greedy["text"] + "\n" == sample("--run", run, "--prompt", "The", "--greedy", "--length", 20).out


def test_a_state_is_continued(explain, sample, run):
    assert sample("--run", run, "--prompt", "The", "--length", 0, "--save-state", "the.safetensors").code == 0
    whole = explain("The cat", "--json").out
    assert whole == explain(" cat", "--state", "the.safetensors", "--json").out


def test_a_cycle_of_greedy_decoding_is_found(cycling, command):
    flags = ["--run", cycling, "--length", 60]
    done = command(explain_main, ["xab", *flags, "--unk", "skip"])
    assert done.code == 0, done.err
    assert '"cab"' in done.out
    found = json.loads(command(explain_main, ["b", *flags, "--json"]).out)["greedy"]
    assert found["cycle"] == {"period": 3, "start": 0, "text": "cab"}
    assert (found["tokens"], found["text"]) == (60, "cab" * 20)


@pytest.mark.parametrize(
    ("text", "end", "words"),
    [
        ("ab" + "cat" * 12, "length", ["After 2 tokens", "same 3 tokens", "last 33 of 38", '"cat"']),
        ("cat" * 10, "length", ["no cycle", "30 tokens", "32 tokens or more"]),
        ("cat" * 4, "eos", ["ends after 12 tokens"]),
    ],
)
def test_what_was_checked_is_told(sampler, text, end, words):
    tokens = sampler.tokenizer.encode(text)
    greedy = Sample(0, text, tokens, np.zeros(tokens.size, np.float32), end)
    lines = "\n".join(greedy_lines(sampler, greedy, 1000))
    assert all(word in lines for word in words)


def test_the_entropy_counts_the_tokens_that_are_left():
    step = Step("top-k 2", np.log(np.array([0.5, 0.5, 1.0]), dtype=np.float32) + np.array([0, 0, -np.inf], np.float32))
    assert (step.tokens, step.entropy) == (2, pytest.approx(1.0))
    assert step.best(5).tolist() == [0, 1]


def test_a_bar_grows_by_eighths(monkeypatch):
    assert [draw_bar(share, 2) for share in (0, 1 / 16, 0.5, 1)] == ["  ", "▏ ", "█ ", "██"]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["∑"], "'∑'"),
        (["to", "be"], "quotes"),
        (["The", "--top", "0"], "--top"),
        (["The", "--temperature", "-1"], "temperature"),
        (["The", "--top-k", "0"], "top-k"),
        (["The", "--state", "x", "--label", "a"], "--state"),
    ],
)
def test_wrong_arguments_are_told(explain, args, word):
    done = explain(*args)
    assert (done.code, done.out) == (2, "")
    assert word in done.err
