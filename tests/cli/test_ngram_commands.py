"""An n-gram model on the command line: training, sampling, and settings that do not apply to it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

FLAGS = "--model ngram --batch-size 4 --seq-len 8"


@pytest.fixture
def commands(sample, score, replay, evaluate):
    """The commands that read a run, by name."""
    return {"sample": sample, "score": score, "replay": replay, "evaluate": lambda *args: evaluate(*args, flags="")}


def test_an_n_gram_model_is_trained_and_sampled_by_the_same_commands(train, sample, book, tmp_path):
    done = train("--data", book, "--run", tmp_path / "run", flags=f"{FLAGS} --order 3")
    assert done.code == 0, done.err
    for part in ("n-grams of up to 3 tokens", "bits per character", "temperature 0.3", "jaxgen sample --run"):
        assert part in done.out
    assert "best step" not in done.out
    again = train("--run", tmp_path / "run", flags="--resume auto")
    assert (again.code, "counted once" in again.out) == (0, True)
    texts = [sample("--run", tmp_path / "run", "--prompt", "The ", "--length", 30).out for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len("The ") + 30 + 1


def test_every_command_reads_an_n_gram_run(commands, train, book, monkeypatch):
    assert train("--data", book, "--run", "run", flags=f"{FLAGS} --order 3").code == 0
    sample, run = commands["sample"], ("--run", "run")

    def done(command, *args):
        found = commands[command](*run, *args)
        assert found.code == 0, found.err
        return found.out

    (line,) = map(json.loads, done("score", "--json", "--text", "The cat").splitlines())
    by_token = done("score", "--json", "--per-token", "--top", 2, "--text", "The cat")
    assert sum(token["logp"] for token in json.loads(by_token)["per_token"]) == pytest.approx(line["logp"], abs=1e-4)
    table = done("evaluate", "--no-plot", "--num-samples", 2, "--length", 20, "--temperature", 0, 1)
    assert [row.split()[0] for row in table.splitlines()[1:4]] == ["0", "1", "validation"]
    Path("samples.jsonl").write_text(done("sample", "--length", 20, "--num-samples", 2, "--json"))
    assert done("replay", "samples.jsonl").count("identical") == 2
    assert done("sample", "--beam", 2, "--length", 9, "--prompt", "The ").startswith("The ")
    done("sample", "--prompt", "The ", "--length", 0, "--save-state", "the.npz")
    whole, rest = ("--prompt", "The cat"), ("--prompt", "cat", "--state", "the.npz")
    assert done("sample", *whole, "--length", 20) == "The " + done("sample", *rest, "--length", 20)
    monkeypatch.setattr(sys, "stdin", io.StringIO("The \n/quit\n"))
    spoken = sample(*run, "--interactive", "--length", 20)
    assert (spoken.code, len(spoken.out.strip()) >= 15) == (0, True), spoken.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"{FLAGS} --hidden 512", "--hidden does not apply"),
        (f"{FLAGS} --lr 0.1", "--lr does not apply"),
        (f"{FLAGS} --tie", "--tie"),
        (f"{FLAGS} --preset tiny", "--preset does not apply"),
        (f"{FLAGS} --preset base", "--preset does not apply"),
        (f"{FLAGS} --preset base --dropout 0.5", "--dropout does not apply"),
        (f"{FLAGS} --steps 10", "--steps does not apply"),
        ("--order 3", "--order does not apply"),
        ("--model ngrams", "'ngram'"),
        (f"{FLAGS} --order 0", "--order is 0"),
        (f"{FLAGS} --order 33", "--order is 33"),
    ],
)
def test_settings_of_another_model_are_refused(train, book, tmp_path, flags, message):
    done = train("--data", book, "--run", tmp_path / "run", flags=flags)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()
