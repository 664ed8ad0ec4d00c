"""The same flag given several times: lists collect, single values may not differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator

from jaxgen.cli.flags import Flag, parse, read_flags
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.errors import UsageError

KINDS = {
    "stop": tuple[str, ...],
    "val_data": Annotated[tuple[str, ...], BeforeValidator(str)] | None,
    "features": tuple[float, ...],
    "cell_options": dict[str, bool | float | str],
    "seed": int,
    "prompt": str | None,
    "json": bool,
}
FLAGS = [
    *(Flag(name, kind, None, "") for name, kind in KINDS.items()),
    Flag("files", tuple[str, ...], (), "", positional=True),
]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--stop k --stop Z", {"stop": ("k", "Z")}),
        ("--stop a b --seed 1 --stop c", {"stop": ("a", "b", "c"), "seed": 1}),
        ("--stop=--a b --stop=--b", {"stop": ("--a", "b", "--b")}),
        ("--val_data a --val-data b", {"val_data": ("a", "b")}),
        ("--features 1 -2 --json --features=-inf", {"features": (1.0, -2.0, -math.inf), "json": True}),
        ("--cell-options a 1 --seed 2 --cell_options b x a 1", {"cell_options": {"a": 1.0, "b": "x"}, "seed": 2}),
        ("--cell-options a true b False c 0", {"cell_options": {"a": True, "b": False, "c": 0.0}}),
        ("--seed 1 --seed=1 --json --json", {"seed": 1, "json": True}),
        ("--no-json", {"json": False}),
        ("file --stop a -- --stop b", {"files": ("file", "--stop", "b"), "stop": ("a",)}),
        ("--seed 1 a - -1", {"seed": 1, "files": ("a", "-", "-1")}),
    ],
)
def test_lists_collect_and_values_have_their_types(line, values):
    assert read_flags(line.split(), FLAGS) == values


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--seed 1 --seed 2", "--seed .*twice"),
        ("--prompt a --json --prompt=b", "--prompt .*twice"),
        ("--json --no-json", "--json .*twice"),
        ("--cell-options a 1 b 1 --cell_options a 2", "option a of --cell-options .*twice"),
        ("--cell-options a 1 a 2", "option a of --cell-options .*twice"),
        ("--cell-options a", "pairs"),
        ("--stop --json", "--stop .*without a value"),
        ("--seed --prompt", "--seed .*without a value"),
        ("--json=yes", "--json .*takes none"),
        ("--seed 1.5", "--seed is '1.5': give a whole number"),
        ("--features 1 x", "--features is 'x': give a number"),
        ("--promt a", "no flag --promt.*--prompt"),
        ("-s 1", "no flag -s"),
        ("--no-seed", "no flag --no-seed"),
    ],
)
def test_what_cannot_be_read_is_refused(line, what):
    with pytest.raises(UsageError, match=what):
        read_flags(line.split(), FLAGS)


def test_a_word_too_many_is_refused():
    with pytest.raises(UsageError, match="'b'"):
        read_flags(["a", "b"], [Flag("file", str, "-", "", positional=True)])
    with pytest.raises(UsageError, match="'a'"):
        read_flags(["--seed", "1", "a"], FLAGS[:-1])


def test_every_occurrence_reaches_the_settings():
    extra = [Flag("forbid", tuple[str, ...], (), "")]
    line = [
        "--stop",
        "k",
        "--temperature",
        "1",
        "--forbid",
        "a",
        "--stop",
        "Z",
        "--temperature=0.5",
        "--forbid",
        "b",
        "c",
    ]
    config, more = parse(SampleConfig, line, prog="sample.py", description="", extra=extra)
    assert (config.stop, config.temperature, more["forbid"]) == (("k", "Z"), ("1", "0.5"), ("a", "b", "c"))


@pytest.mark.runs
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train", "--text-column a --text_column b"),
        ("train", "classify --label-column a --label-column b"),
        ("train", "--run a --run b"),
        ("train", "--coordinator a:1 --coordinator b:1"),
        ("train", "--num-processes 2 --num-processes=3"),
        ("sample", "--prompt a --prompt b"),
        ("score", "--text a --unk skip --unk keep"),
        ("evaluate", "--seed 1 --seed 2"),
        ("predict", "--beam 1 --beam 2"),
        ("replay", "--run a --run b"),
    ],
)
def test_every_command_refuses_two_values(command: Callable[..., Any], name: str, line: str):
    done = command(import_module(f"jaxgen.cli.{name}").main, line.split())
    assert (done.code, "twice" in done.err) == (2, True)


class Options(BaseModel):
    """Settings with options by name."""

    cell_options: dict[str, float | str] = {}


@pytest.mark.parametrize("default", [{}, {"bias": 2.0}])
def test_options_by_name_take_the_place_of_those_of_a_default(default):
    def given(line):
        config, _ = parse(Options, line.split(), prog="p", description="", default=Options(cell_options=default))
        return config.cell_options

    assert given("") == default
    assert given("--cell-options bias 2.0") == {"bias": 2.0}
    assert given("--cell_options activation relu --cell-options bias 1") == {"activation": "relu", "bias": 1.0}
    with pytest.raises(UsageError, match="--cell-options"):
        given("--cell-options")
