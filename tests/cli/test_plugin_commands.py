"""``--plugin`` in every command: a cell, a tokenizer, a transform and a task of one's own, from a file."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from builders import write

import jaxgen
from jaxgen.cli.predict import main as predict_main
from jaxgen.errors import UsageError
from jaxgen.inference.loading import LoadedRun

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from jaxgen import Cell, ClassifyConfig
from jaxgen.cells import Affine, Weights
from jaxgen.models.blocks import ResidualBlock
from jaxgen.tasks.classify.data import ClassifyData
from jaxgen.tokenizers import CharTokenizer


class Slow(Cell):
    """An Elman cell that keeps a part of its state."""

    keep: float = 0.5

    def setup(self):
        self.input = Affine(self.features)
        self.kernel = self.param("kernel", nn.initializers.orthogonal(), (self.features, self.features))

    def project(self, x):
        return self.input(x)

    def weights(self):
        return Weights(self.kernel)

    @nn.nowrap
    def pointwise(self, carry, z, u):
        h = self.keep * carry + (1 - self.keep) * jnp.tanh(z + u)
        return h, h


@dataclass(frozen=True)
class Only:
    """Keep the first N tokens of the vocabulary. What follows is not shown."""

    n: int

    def init(self, context):
        return jnp.int32(self.n)

    @staticmethod
    def update(state, logits, last):
        return state, jnp.where(jnp.arange(logits.shape[-1])[None] < state, logits, -jnp.inf)


class Block(ResidualBlock):
    """A residual block without a convolution."""

    conv: int = 0


class Letters(CharTokenizer):
    """The characters, saved under a name of its own."""

    kind = "mine:Letters"

    class Saved(CharTokenizer.Saved):
        kind: Literal["mine:Letters"]


class EchoConfig(ClassifyConfig):
    """Answers with a label."""

    task: ClassVar[str] = "mine:Echo"


class Echo(ClassifyData):
    Config = EchoConfig
'''
SMALL = {"hidden": 4, "batch_size": 4, "seq_len": 8, "steps": 0}
EVENTS = ["--hidden", 8, "--batch-size", 4, "--eval-every", 5, "--sample-every", 0]


@pytest.fixture(autouse=True)
def plugin(here: Path, without_plugins, monkeypatch) -> Path:
    monkeypatch.delenv("JAXGEN_PLUGINS", raising=False)
    write(here / "mine.py", PLUGIN)
    return here / "mine.py"


@pytest.fixture
def fresh(without_plugins):
    """A command as in a new process."""

    def run(command, *args, **options):
        without_plugins()
        return command(*args, **options)

    return run


@pytest.fixture
def own(book: Path) -> list[object]:
    flags = ["--data", book, "--plugin", "mine.py", "--cell", "mine:Slow", "--cell-options", "keep", 0.25]
    return [*flags, "--level", "mine:Letters", "--seq-len", 8, *EVENTS]


def test_a_cell_and_a_tokenizer_of_ones_own_work_in_every_command(
    fresh, train, sample, score, evaluate, replay, own, plugin, monkeypatch
):
    done = fresh(train, *own, "--block", "mine:Block", "--steps", 10, "--run", "r")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].endswith(" --plugin mine.py")
    with_it = ["--run", "r", "--plugin", "mine.py"]
    drawn = fresh(sample, *with_it, "--length", 20, "--mine:Only", 9, "--json")
    assert drawn.code == 0, drawn.err
    receipt = json.loads(drawn.out)
    assert max(receipt["tokens"]) < 9
    assert receipt["settings"]["transforms"] == [{"name": "mine:Only", "options": {"n": 9}}]
    assert receipt["plugins"] == json.loads(Path("r", "config.json").read_bytes())["resolved"]["plugins"]
    write("samples.jsonl", drawn.out)
    commands = [
        (sample, "--length", 20),
        (score, "--text", "the cat"),
        (evaluate, "--num-samples", 1, "--length", 10, "--no-plot"),
        (replay, "samples.jsonl"),
    ]
    for command, *args in commands:
        options = {"flags": ""} if command is evaluate else {}
        assert fresh(command, *args, *with_it, **options).code == 0
        refused = fresh(command, *args, "--run", "r", **options)
        assert refused.code == 2
        assert "mine.py" in refused.err
        assert "--plugin" in refused.err
        assert refused.out == ""
    monkeypatch.setenv("JAXGEN_PLUGINS", "mine.py")
    assert fresh(sample, "--run", "r", "--length", 5).code == 0
    assert "mine:Slow" in fresh(train, "--help").out
    assert "--mine:Only" in fresh(sample, "--help-all").out


@pytest.mark.filterwarnings("always::jaxgen.errors.JaxgenWarning")
def test_a_sample_with_a_transform_of_ones_own_names_its_plugin(fresh, sample, replay, run, plugin):
    write(
        "samples.jsonl",
        fresh(sample, "--run", run, "--plugin", "mine.py", "--length", 5, "--mine:Only", 9, "--json").out,
    )
    refused = fresh(replay, "samples.jsonl")
    assert (refused.code, "mine.py" in refused.err, "--plugin" in refused.err) == (2, True, True), refused.err
    assert fresh(replay, "samples.jsonl", "--plugin", "mine.py").code == 0
    write(plugin, PLUGIN + "\n# another version\n")
    assert fresh(replay, "samples.jsonl", "--plugin", "mine.py").code == 4
    assert fresh(replay, "samples.jsonl", "--plugin", "mine.py", "--plugin-changed", "accept").code == 0


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("return h, (h @ h)", "line 33"),
        ("return undefined, h", "line 33"),
        ("return h[:, :1], h", "mine.py"),
        ("return h, None", "mine.py"),
    ],
)
def test_a_cell_that_fails_while_it_runs_is_named_in_a_sentence(line, word, fresh, train, own, plugin, monkeypatch):
    write(plugin, PLUGIN.replace("return h, h", line))
    failed = fresh(train, *own, "--steps", 1, "--run", "r")
    assert (failed.code, failed.out) == (2, ""), failed.err
    assert word in failed.err
    assert "Traceback" not in failed.err
    assert "JAXGEN_TRACEBACK" in failed.err
    monkeypatch.setenv("JAXGEN_TRACEBACK", "1")
    with pytest.raises((NameError, TypeError, ValueError, AttributeError)):
        fresh(train, *own, "--steps", 1, "--run", "again")


def test_the_chat_knows_a_transform_of_ones_own(fresh, sample, run, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/mine:Only 9\n/settings\nThe \n")))
    done = fresh(sample, "--run", run, "--plugin", "mine.py", "--interactive", "--length", 5)
    assert done.code == 0, done.err
    assert "/mine:Only 9" in done.err


@pytest.mark.filterwarnings("always::jaxgen.errors.JaxgenWarning")
def test_a_plugin_that_changed_is_refused_unless_it_is_accepted(fresh, train, sample, own, plugin):
    assert fresh(train, *own, "--steps", 2, "--run", "r").code == 0
    then = LoadedRun.open("r").resolved["plugins"]
    write(plugin, PLUGIN + "\n# another version\n")
    with_it = ["--run", "r", "--plugin", "mine.py"]
    for command, *args in [(sample,), (train, "--resume", "auto", "--steps", 4)]:
        refused = fresh(command, *with_it, *args)
        assert (refused.code, refused.out) == (4, "")
        assert "--plugin-changed accept" in refused.err
    for command, *args in [(sample, "--length", 5), (train, "--resume", "auto", "--steps", 4)]:
        accepted = fresh(command, *with_it, *args, "--plugin-changed", "accept")
        assert accepted.code == 0
        assert "WARNING" in accepted.err
    assert fresh(sample, *with_it, "--length", 5).code == 0  # the run goes on with the new version
    assert LoadedRun.open("r").resolved["plugins"] != then


def test_a_run_that_was_stopped_goes_on_bit_for_bit_and_gives_its_weights_to_another(fresh, train, own, monkeypatch):
    def weights(run: str) -> list[np.ndarray]:
        jaxgen.load_plugin("mine.py")
        params = LoadedRun.open(run).params()[1]
        return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]

    constant = ["--schedule", "constant", "--warmup", 0]
    assert fresh(train, *own, *constant, "--steps", 10, "--run", "whole").code == 0
    assert fresh(train, *own, *constant, "--steps", 5, "--run", "parts").code == 0
    refused = fresh(train, "--run", "parts", "--resume", "must", "--steps", 10)
    assert refused.code == 2
    assert "mine.py" in refused.err
    resumed = fresh(train, "--run", "parts", "--resume", "must", "--steps", 10, "--plugin", "mine.py")
    assert resumed.code == 0, resumed.err
    for ours, theirs in zip(weights("whole"), weights("parts"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    started = fresh(train, *own, "--steps", 1, "--lr", 1e-12, "--run", "next", "--init-from", "whole")
    assert started.code == 0, started.err
    for ours, theirs in zip(weights("whole"), weights("next"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    refused = fresh(train, *own[:2], *EVENTS, "--seq-len", 8, "--run", "other", "--init-from", "whole")
    assert refused.code == 2
    assert "mine.py" in refused.err


def test_python_loads_the_plugin_by_a_function(fresh, train, own, without_plugins):
    assert fresh(train, *own, "--steps", 2, "--run", "r").code == 0
    without_plugins()
    with pytest.raises(UsageError, match=r"mine\.py"):
        jaxgen.Sampler.load("r")
    jaxgen.load_plugin("mine.py")
    settings = jaxgen.GenerationConfig(length=5, transforms=(jaxgen.TRANSFORMS["mine:Only"](9),))
    assert len(jaxgen.Sampler.load("r").sample("the ", settings)[0]) == 5
    config = jaxgen.LanguageConfig(data=(str(own[1]),), cell="mine:Slow", run="mine", **SMALL)
    jaxgen.start(config)
    assert [each["name"] for each in LoadedRun.open("mine").resolved["plugins"]] == ["mine.py"]


def test_a_task_of_ones_own_is_trained_resumed_and_asked(fresh, train, command, here):
    write(here / "rows.csv", "text,label\n" + "".join(f"{'ab'[i % 2] * 3},{'ab'[i % 2]}\n" for i in range(40)))
    columns = ["--data", "rows.csv", "--text-column", "text", "--label-column", "label"]
    done = fresh(train, "--plugin", "mine.py", "mine:Echo", *columns, *EVENTS, "--steps", 20, "--lr", 0.05)
    assert done.code == 0, done.err
    run = "runs/mine-Echo-1"
    assert json.loads(Path(run, "config.json").read_bytes())["task"] == "mine:Echo"
    write("inputs.txt", "aaa\nbbb\n")
    answered = fresh(command, predict_main, ["--plugin", "mine.py", "inputs.txt"])
    assert answered.code == 0, answered.err
    assert [line.split("\t")[0] for line in answered.out.splitlines()] == ["a", "b"]
    refused = fresh(command, predict_main, ["--run", run, "inputs.txt"])
    assert refused.code == 2
    assert "mine.py" in refused.err
    refused = fresh(train, "--run", run, "--resume", "must")
    assert refused.code == 2
    assert "mine.py" in refused.err
    assert fresh(train, "--run", run, "--resume", "must", "--plugin", "mine.py", "--steps", 22).code == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--cell mine:Slow", 2, "Unknown cell"),
        ("--plugin mine.py --cell mine:Echo", 2, "Unknown cell"),
        ("--plugin mine.py --cell mine:Missing", 2, "mine:Slow"),
        ("--plugin mine.py --cell mine:Slow.pointwise", 2, "Unknown cell"),
        ("--plugin mine.py --level mine:Slow", 2, "Unknown level"),
        ("--plugin mine.py --cell mine:Slow --cell-options nothing 1", 2, "no option"),
        ("--plugin missing.py", 2, "missing.py"),
        ("--plugin broken.py", 2, "line 3"),
        ("--plugin", 2, "without a value"),
        ("mine:Echo", 2, "Unknown task"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(fresh, train, book, here, flags, code, words):
    write(here / "broken.py", "import os\n\nprint(undefined)\n")
    words_of = flags.split()
    first = [words_of.pop(0)] if not words_of[0].startswith("-") else []
    done = fresh(train, *first, "--data", book, "--run", "r", *EVENTS, "--steps", 1, *words_of)
    assert (done.code, done.out) == (code, ""), done.err
    assert words in done.err
    assert "Traceback" not in done.err
    assert not Path("r").exists()
