"""Random arguments: a command ends with one of its exit codes and a message, never with a traceback."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgen.cli.evaluate import EvaluateConfig
from jaxgen.cli.explain import ExplainConfig
from jaxgen.cli.export import ExportConfig
from jaxgen.cli.import_weights import ImportConfig
from jaxgen.cli.interpolate import InterpolateConfig
from jaxgen.cli.neurons import NeuronsConfig
from jaxgen.cli.predict import PredictConfig
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.cli.score import ScoreConfig
from jaxgen.errors import CheckpointError
from jaxgen.inference.loading import LoadedRun
from jaxgen.inference.predictor import Predictor
from jaxgen.inference.sampler import Sampler
from jaxgen.interchange import import_run
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.tasks.language.config import LanguageConfig
from jaxgen.tasks.registry import DATA
from jaxgen.trainer import run

#: The flags of each command beyond those of its configuration, and words that stand by themselves.
COMMANDS = {
    "evaluate": (EvaluateConfig, ["json", "no-plot"], ["run"]),
    "explain": (ExplainConfig, ["json", *TRANSFORMS], ["play"]),
    "interpolate": (InterpolateConfig, ["json", "from", "to"], []),
    "neurons": (NeuronsConfig, ["json"], []),
    "export": (ExportConfig, [], []),
    "import_weights": (ImportConfig, [], ["x.safetensors"]),
    "predict": (PredictConfig, ["json"], ["-", "a.txt"]),
    "sample": (SampleConfig, ["json", *TRANSFORMS], []),
    "score": (ScoreConfig, ["json"], ["-", "a.txt"]),
    "train": (LanguageConfig, ["resume", "config"], [*DATA, "langage"]),
}
#: 1 is that of a refusal by the system, which a path at random may meet.
CODES = {0, 1, 2, 3, 4, 5}
ODD = ["", "-", "--", "-1", "0", "1", "2", "1e999", "nan", "-inf", "0x10", "1_000", "9" * 400, "True", "None", "auto"]
ODD += [
    "must",
    "1,2",
    "1:0.5:9",
    "a=1",
    "a:b",
    "é∑",
    "\udcff",
    "\x1b[2J",
    "a\nb",
    "[b]",
    "{",
    "~",
    "..",
    "/",
    "a" * 300,
]


class Stub(CheckpointError):
    """Stands for all that comes after the arguments."""


def arguments(command: str) -> st.SearchStrategy[list[str]]:
    """Flags with values that may fit, odd ones and words, in any order."""
    kind, more, words = COMMANDS[command]
    flags = st.sampled_from([*(name.replace("_", "-") for name in kind.model_fields), *more])
    # No command line can hold a zero; lone surrogates of this range are what Python makes of bytes that are no UTF-8.
    free = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
    numbers = st.one_of(st.integers(), st.floats()).map(str)
    value = st.one_of(st.sampled_from(ODD), numbers, free)
    named = st.tuples(flags.map("--{}".format), st.lists(value, max_size=2)).map(lambda pair: [pair[0], *pair[1]])
    joined = st.tuples(flags, value).map(lambda pair: ["--{}={}".format(*pair)])
    parts = st.lists(st.one_of(named, joined, value.map(lambda each: [each])), max_size=4)
    first = st.sampled_from([[], *([word] for word in words)])
    return st.tuples(first, parts).map(lambda both: [*both[0], *(word for part in both[1] for word in part)])


@contextlib.contextmanager
def stubbed():
    """Commands that end where a run would be read or begun, and a standard input with nothing in it."""

    def end(*args: object, **options: object) -> None:
        raise Stub("The arguments were accepted.")

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (run, "start"),
            (import_run, "start"),
            (run, "resume"),
            (Sampler, "load"),
            (Predictor, "load"),
        ):
            stack.enter_context(mock.patch.object(owner, name, end))
        stack.enter_context(mock.patch.object(LoadedRun, "open", end))
        stack.enter_context(mock.patch("jaxgen.cli.common.prepare_process"))
        stack.enter_context(mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())))
        yield


def check(command: str, args: list[str]) -> None:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with stubbed(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(f"jaxgen.cli.{command}").main(list(args))
        except SystemExit as stop:
            code = stop.code
    assert code in CODES, code
    told = err.getvalue()
    assert code == 0 or told
    assert "Traceback" not in told
    assert "pydantic" not in told
    assert "\x1b[2J" not in told


def found(command: str, number: int, folder) -> None:
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(arguments(command))
    def tried(args: list[str]) -> None:
        check(command, args)

    with contextlib.chdir(folder):
        tried()
    assert not list(folder.iterdir()), "something was written"


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_at_random_end_with_an_exit_code_and_a_sentence(command, tmp_path):
    found(command, 40, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_many_arguments_at_random_end_with_an_exit_code_and_a_sentence(command, tmp_path):
    found(command, 300, tmp_path)
