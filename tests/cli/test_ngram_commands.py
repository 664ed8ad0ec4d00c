"""An n-gram model by the commands: train and sample it, and settings that mean nothing to it."""

from __future__ import annotations

import pytest

FLAGS = "--model ngram --batch-size 4 --seq-len 8"


def test_an_n_gram_model_is_trained_and_sampled_by_the_same_commands(train, sample, book, tmp_path):
    done = train("--data", book, "--run", tmp_path / "run", flags=f"{FLAGS} --order 3")
    assert done.code == 0, done.err
    for part in ("n-grams of up to 3 tokens", "bits per character", "temperature 0.3", "Next: python sample.py"):
        assert part in done.out
    assert "best step" not in done.out
    again = train("--run", tmp_path / "run", flags="--resume auto")
    assert (again.code, "n-grams are counted once" in again.out) == (0, True)
    texts = [sample("--run", tmp_path / "run", "--prompt", "The ", "--length", 30).out for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len("The ") + 30 + 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"{FLAGS} --hidden 512", "--hidden 512 has no meaning with --model ngram: leave it out, or give --model rnn"),
        (f"{FLAGS} --lr 0.1", "--lr 0.1 has no meaning with --model ngram"),
        (f"{FLAGS} --tie", "--tie True has no meaning with --model ngram"),
        (f"{FLAGS} --preset tiny", "has no meaning with --model ngram"),
        (f"{FLAGS} --steps 10", "--steps 10 has no meaning with --model ngram"),
        ("--order 3", "--order 3 has no meaning with --model rnn: leave it out, or give --model ngram"),
        ("--model ngrams", "Unknown model 'ngrams'. Did you mean 'ngram'?"),
        (f"{FLAGS} --order 0", "--order is 0"),
        (f"{FLAGS} --order 33", "--order is 33"),
    ],
)
def test_settings_of_another_model_are_refused(train, book, tmp_path, flags, message):
    done = train("--data", book, "--run", tmp_path / "run", flags=flags)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()
