"""Runs that are part of the package, as ``--run pretrained:NAME``: their format, and that nobody writes into them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import pytest

import jaxgen
from benchmarks.pretrained import pack
from jaxgen.cli.compare import main as compare
from jaxgen.cli.explain import main as explain
from jaxgen.cli.export import main as export
from jaxgen.cli.info import main as info
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs import directory

MAX_BYTES = 3e6


@pytest.fixture
def packed(run, tmp_path, monkeypatch):
    """The tiny run as one that is part of the package: ``pretrained:tiny``."""
    folder = Path(os.path.realpath(tmp_path)) / "pretrained"
    pack(run, folder / "tiny", "a machine")
    monkeypatch.setattr(directory, "PRETRAINED", folder)
    return folder / "tiny"


def content(folder):
    """All that changes if anything is written into a folder, even if it is removed again."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")} | {
        folder: folder.stat().st_mtime_ns
    }


@pytest.mark.parametrize("name", directory.pretrained_runs())
def test_a_run_of_the_package_has_the_current_format(name):
    saved = LoadedRun.open(f"pretrained:{name}")
    _, params = saved.params()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == saved.resolved["parameters"]
    assert jaxgen.load(f"pretrained:{name}").evaluate()["val_loss"] < 1.6
    assert {"config.json", "tokenizer.json"} <= {path.name for path in saved.directory.path.iterdir()}


def test_the_runs_of_the_package_are_small():
    assert "shakespeare" in directory.pretrained_runs()
    sizes = [path.stat().st_size for path in directory.PRETRAINED.rglob("*") if path.is_file()]
    assert sum(sizes) < MAX_BYTES


def test_an_unknown_name_is_answered_with_the_known_ones(sample):
    done = sample("--run", "pretrained:shakespear")
    assert done.code == 2
    assert "'shakespeare'" in done.err


def test_a_folder_without_runs_leads_to_the_run_of_the_package(sample):
    done = sample()
    assert done.code == 4
    assert "pretrained:shakespeare" in done.err


@pytest.mark.runs
def test_every_command_uses_it_by_its_name_and_writes_nothing_into_it(
    packed, run, sample, score, evaluate, replay, command, tmp_path
):
    before, name = content(packed), "pretrained:tiny"
    flags = ("--length", 20, "--seed", 3)
    texts = [sample("--run", place, *flags) for place in (name, run)]
    assert texts[0].out == texts[1].out
    drawn = sample("--run", name, *flags, "--json")
    assert json.loads(drawn.out)["run"] == name
    Path("drawn.jsonl").write_text(drawn.out)
    done = [
        replay("drawn.jsonl"),
        score("--run", name, "--text", "the cat"),
        evaluate(name),
        command(info, [name]),
        command(explain, ["the", "--run", name]),
        command(compare, [name, run]),
        command(export, ["--run", name, "--to", "safetensors", "--output", "model.safetensors"]),
    ]
    assert [each.code for each in done] == [0] * len(done), done
    evaluate(name, flags="--num-samples 1 --length 8 --temperature 1 --plot quality.png")
    assert Path("quality.png").exists()
    model = jaxgen.load(name)
    assert name in repr(model)
    assert model.generate(length=20, seed=3, temperature=0.8) + "\n" == texts[0].out
    assert len(model.history) > 1
    assert content(packed) == before


@pytest.mark.runs
@pytest.mark.parametrize("resume", ["", "--resume auto", "--resume must"])
def test_it_is_neither_continued_nor_replaced(packed, train, resume):
    before = content(packed)
    for place in ("pretrained:tiny", packed):
        done = train("--run", place, flags=f"--steps 40 {resume}")
        assert done.code == 2
        assert "--init-from pretrained:tiny" in done.err
    with pytest.raises(UsageError, match="part of jaxgen"):
        jaxgen.resume("pretrained:tiny")
    with pytest.raises(UsageError, match="part of jaxgen"):
        jaxgen.train(run="pretrained:tiny", resume=True, progress=False)
    assert content(packed) == before


@pytest.mark.runs
def test_it_is_the_start_of_another_run(packed, small, train):
    done = train(*small, "--init-from", "pretrained:tiny", "--run", "mine", flags="--steps 2")
    assert done.code == 0, done.err
    assert jaxgen.load("mine").evaluate()["val_loss"] < 3


@pytest.mark.runs
def test_a_copy_has_no_state_of_training_to_continue_with(packed, train):
    jaxgen.load("pretrained:tiny").save("copy")
    done = train("--run", "copy", flags="--resume auto --steps 40")
    assert done.code == 4
    assert "--init-from" in done.err
    with pytest.raises(CheckpointError, match="weights"):
        jaxgen.resume("copy")
