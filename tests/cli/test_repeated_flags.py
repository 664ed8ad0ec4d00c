"""The same flag given several times: lists collect, single values may not differ."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator

from jaxgen.cli.flags import ExtraFlag, collect_values, parse
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.errors import UsageError

KINDS = {
    "stop": tuple[str, ...],
    "val_data": Annotated[tuple[str, ...], BeforeValidator(str)] | None,
    "features": tuple[float, ...],
    "cell_options": dict[str, float | str],
    "seed": int,
    "prompt": str | None,
    "json": bool,
}


@pytest.mark.parametrize(
    ("line", "rest", "texts"),
    [
        ("--stop k --stop Z", "", {"stop": ("k", "Z")}),
        ("--stop a b --seed 1 --stop c", "--seed 1", {"stop": ("a", "b", "c")}),
        ("--stop=--a b --stop=--b", "", {"stop": ("--a", "b", "--b")}),
        ("--stop --json", "--json", {"stop": ()}),
        ("--val_data a --val-data b", "", {"val_data": ("a", "b")}),
        ("--features 1 -2 --json --features=-inf", "--features 1 -2 -inf --json", {}),
        ("--cell-options a 1 --seed 2 --cell_options b 2 a 1", "--cell-options a 1 b 2 a 1 --seed 2", {}),
        ("--seed 1 --seed=1 --json --json", "--seed 1 --seed=1 --json --json", {}),
        ("file --stop a -- --stop b", "file -- --stop b", {"stop": ("a",)}),
        ("--seed --prompt", "--seed --prompt", {}),
        ("--unknown a --unknown b", "--unknown a --unknown b", {}),
    ],
)
def test_lists_collect_and_the_rest_stays(line, rest, texts):
    assert collect_values(line.split(), KINDS) == (rest.split(), texts)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--seed 1 --seed 2", "--seed "),
        ("--prompt a --json --prompt=b", "--prompt "),
        ("--json --no-json", "--json "),
        ("--cell-options a 1 b 1 --cell_options a 2", "option a of --cell-options"),
        ("--cell-options a 1 a 2", "option a of --cell-options"),
    ],
)
def test_a_value_given_twice_that_differs_is_refused(line, what):
    with pytest.raises(UsageError, match=f"{what}.*twice"):
        collect_values(line.split(), KINDS)


def test_every_occurrence_reaches_the_settings():
    extra = [ExtraFlag("forbid", tuple[str, ...], (), "")]
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
    """A flag parser could make a flag of each option of the default."""

    def given(line):
        config, _ = parse(Options, line.split(), prog="p", description="", default=Options(cell_options=default))
        return config.cell_options

    assert given("") == default
    assert given("--cell-options bias 2.0") == {"bias": 2.0}
    assert given("--cell_options activation relu --cell-options bias 1") == {"activation": "relu", "bias": 1.0}
    with pytest.raises(UsageError, match="--cell-options"):
        given("--cell-options")
