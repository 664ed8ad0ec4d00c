"""Runs whose layers are blocks and patterns of cells: every task trains, resumes and answers with them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.predict import main as predict_main
from jaxgen.runs.checkpoints import CheckpointStore

BLOCKS = "--block griffin --block-options conv 3 mlp 2 --layers-pattern gru,lstm --dropout 0.2 --hidden 8"
TINY = f"{BLOCKS} --preset tiny --batch-size 4 --eval-every 3 --sample-every 0 --devices 1"


def state_of(run):
    """The last step of a run and the bytes of its state."""
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    return step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(store.restore(step)[0])]


@pytest.mark.runs
def test_a_language_model_with_blocks_is_sampled_continued_scored_and_resumed(
    train, sample, score, book, tmp_path, here
):
    run = tmp_path / "run"
    flags = ["--data", book, "--seq-len", "8"]
    done = train(*flags, "--steps", 6, "--run", run, flags=TINY)
    assert done.code == 0, done.err
    assert "gru,lstm 2x8 in griffin blocks" in done.out
    assert json.loads((run / "config.json").read_text())["resolved"]["model"]["layers"] == 2

    first = sample("--run", run, "--prompt", "The ", "--length", 20)
    assert first.code == 0, first.err
    sample("--run", run, "--prompt", "The ", "--length", 0, "--save-state", "s.npz")
    continued = sample("--run", run, "--state", "s.npz", "--prompt", "", "--length", 20)
    assert first.out.removeprefix("The ") == continued.out
    (here / "text.txt").write_text("The cat sat on the mat.\n")
    assert score("--run", run, "text.txt").code == 0

    longer, resumed = tmp_path / "longer", tmp_path / "resumed"
    constant = [*flags, "--schedule", "constant"]
    assert train(*constant, "--steps", 6, "--run", resumed, flags=TINY).code == 0
    assert train("--steps", 9, "--run", resumed, "--resume", "must").code == 0
    assert train(*constant, "--steps", 9, "--run", longer, flags=TINY).code == 0
    assert state_of(resumed) == state_of(longer)


@pytest.mark.runs
def test_a_block_of_a_run_is_fixed(train, book, tmp_path):
    run = tmp_path / "run"
    assert train("--data", book, "--seq-len", 8, "--steps", 3, "--run", run, flags=TINY).code == 0
    for changed in ("--block residual", "--block-options conv 2", "--layers-pattern lstm,gru"):
        done = train("--run", run, "--resume", "must", "--steps", 6, *changed.split())
        assert done.code == 2, done.err
        assert changed.split()[0] in done.err


@pytest.mark.slow
def test_classifiers_translators_and_captions_with_blocks(train, command, tmp_path, here):
    (here / "rows.csv").write_text("text,label\n" + "".join(f"{w} {i},{w}\n" for i in range(12) for w in ("yes", "no")))
    for name, words in (("a.txt", "one two three four five six"), ("b.txt", "un deux trois quatre cinq six")):
        (here / name).write_text("\n".join(words.split()) + "\n")
    draw = np.random.default_rng(0)
    (here / "photos").mkdir()
    names = [f"{letter}.png" for letter in "abcdefgh"]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(here / "photos" / name)
    (here / "photos/captions.csv").write_text("image,caption\n" + "".join(f"{n},image {n[0]}\n" for n in names))
    (here / "input.txt").write_text("yes 3\n")

    more = "--val-rows 2 --min-count 1 --patch 2 --widths 16 --blocks 0 --image-size 8 --attention general --beam 2"
    for task, flags, asked in (
        ("classify", "--data rows.csv --text-column text --label-column label --bidirectional", "input.txt"),
        ("translate", "--data a.txt b.txt --val-data a.txt b.txt --bidirectional --attention general", "a.txt"),
        ("caption", f"--data photos {more}", "photos/a.png"),
    ):
        run = tmp_path / task
        done = train(task, "--steps", 3, "--run", run, flags=f"{TINY} --layers 3 {flags}")
        assert done.code == 0, done.err
        answer = command(predict_main, ["--run", run, asked])
        assert answer.code == 0, answer.err
        assert answer.out.count("\n") == len((here / asked).read_text().splitlines()) if task != "caption" else 1


@pytest.mark.runs
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--block residul", "residual"),
        ("--layers-pattern gru,lstn", "lstm"),
        ("--cell gru --layers-pattern gru,lstm", "--layers-pattern"),
        ("--block griffin --block-options conv many", "conv"),
        ("--block griffin --block-options width 3", "'width'"),
        ("--block-options conv 3", "plain"),
        ("--layers-pattern gru,elman --cell-options forget_bias 2", "forget_bias"),
        ("--model ngram --block griffin", "--block does not apply"),
        ("--model ngram --layers-pattern gru,gru", "does not apply"),
    ],
)
def test_wrong_names_of_blocks_and_patterns_exit_with_2(train, book, tmp_path, flags, message):
    done = train("--data", book, "--batch-size", 4, "--seq-len", 8, "--run", tmp_path / "run", flags=flags)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.runs
def test_the_help_names_the_blocks(train):
    assert "{griffin,plain,residual}" in "".join(train("--help-all").out.split())
