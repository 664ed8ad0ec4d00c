"""``jaxgen neurons`` and ``jaxgen interpolate``; coloured texts and surprising tokens of ``jaxgen score``."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from jaxgen.cli.interpolate import main as interpolate_main
from jaxgen.cli.neurons import main as neurons_main

CODES = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture
def neurons(command, run, book):
    return lambda *args: command(neurons_main, ["--run", run, *args])


def test_every_feature_is_looked_for_with_its_score_and_chance(neurons, book):
    done = neurons("--text", book, "--tokens", 600)
    assert done.code == 0, done.err
    assert "layer 0: h (8)" in done.out
    assert done.out.count("chance gives") == done.out.count("held-out correlation") >= 1
    found = json.loads(neurons("--text", book, "--tokens", 600, "--json").out)
    assert found["layers"] == [{"states": {"h": 8}, "gates": []}]
    assert {"feature", "unit", "score", "chance", "tells", "units"} == {*found["found"][0]}
    assert found["tokens"] == 600


def test_the_values_of_a_unit_are_a_table_or_colours(neurons, book):
    flags = ["--text", book, "--unit", "0:h:3", "--show", 50]
    table = neurons(*flags)
    assert (table.code, len(table.out.splitlines())) == (0, 51)
    colored = neurons(*flags, "--color", "always")
    text = "".join(json.loads(neurons(*flags, "--json").out)["values"]["texts"])
    assert CODES.sub("", colored.out) == text + "\n"
    assert CODES.search(colored.out)
    assert "\x1b" not in neurons(*flags, "--color").out


def test_pictures_and_pages_are_written(neurons, book, here):
    for flags in (["--unit", 3], ["--find", "the"], []):
        for name, start in (("x.png", b"\x89PNG"), ("x.html", b"<!doctype html>")):
            done = neurons("--text", book, "--tokens", 300, *flags, "--out", name)
            assert done.code == 0, done.err
            assert (here / name).read_bytes().startswith(start)


def test_a_unit_is_held_in_the_second_text(neurons, sample, run):
    flags = ["--prompt", "the ", "--length", 40, "--seed", 3]
    done = neurons("--clamp", "0:h:2=1.0", "0:h:3=-1", *flags)
    first, second = done.out.split("---\n")
    assert done.code == 0, done.err
    assert first == sample("--run", run, *flags).out
    assert first != second
    found = json.loads(neurons("--clamp", "0:h:2=1.0", "0:h:3=-1", *flags, "--json").out)
    assert ("the " + found["text"] + "\n", "the " + found["clamped"] + "\n") == (first, second)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ([], 2),
        (["--unit", "3"], 2),
        (["--clamp", "3"], 2),
        (["--clamp", "99=1"], 2),
        (["--clamp", "0:c:1=1"], 2),
        (["--clamp", "1=nan"], 2),
        (["--prompt", "the"], 2),
        (["--text", "{book}", "--clamp", "1=1"], 2),
        (["--text", "{book}", "--unit", "99"], 2),
        (["--text", "{book}", "--find", "("], 2),
        (["--text", "{book}", "--out", "x.gif"], 2),
        (["--text", "{book}", "--find", "xyzzy"], 3),
        (["--text", "nowhere.txt"], 3),
    ],
)
def test_what_cannot_be_looked_at_is_told(neurons, book, flags, code):
    done = neurons(*(flag.format(book=book) for flag in flags))
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("error: ")


def test_an_ngram_has_no_units(command, train, small, book, here):
    assert train(*small, "--run", "counted", "--data", book, "--model", "ngram").code in (0, 2)
    if (here / "counted").exists():
        done = command(neurons_main, ["--run", "counted", "--text", book])
        assert done.code == 2


def test_texts_between_two_prompts_begin_and_end_with_those_after_them(command, run, sample, here):
    flags = ["--run", run, "--length", 20, "--seed", 1]
    done = command(interpolate_main, [*flags, "--from", "the ", "--to", "a ", "--steps", 3, "--out", "way.png"])
    assert done.code == 0, done.err
    texts = done.out.split("---\n")
    assert ["the " + texts[0], "a " + texts[2]] == [sample(*flags, "--prompt", each).out for each in ("the ", "a ")]
    assert (here / "way.png").read_bytes().startswith(b"\x89PNG")
    lines = command(interpolate_main, [*flags, "--from", "the ", "--to", "a ", "--steps", 3, "--json"]).out.splitlines()
    assert [json.loads(line)["weight"] for line in lines] == [0, 0.5, 1]
    assert command(interpolate_main, ["--run", run, "--from", "the "]).code == 2
    assert command(interpolate_main, [*flags, "--from", "a", "--to", "b", "--steps", 1]).code == 2


def test_a_scored_text_has_colours_and_surprising_tokens_and_another_run_beside(score, run, book, tmp_path):
    text = book.read_text()[:300]
    (tmp_path / "part.txt").write_text(text)
    part = tmp_path / "part.txt"
    colored = score("--run", run, part, "--color", "always")
    assert colored.code == 0, colored.err
    assert CODES.sub("", colored.out).startswith(text)
    shutil.copytree(run, tmp_path / "other")
    found = json.loads(score("--run", run, part, "--surprising", 3, "--beside", tmp_path / "other", "--json").out)
    tokens = json.loads(score("--run", run, part, "--per-token", "--json").out)["per_token"]
    worst = sorted(range(len(tokens)), key=lambda i: tokens[i]["logp"])[:3]
    assert [each["position"] - 1 for each in found["surprising"]] == worst
    assert found["beside"]["logp"] == pytest.approx(found["logp"])
    assert all(each["bits"] == pytest.approx(each["beside_bits"]) for each in found["surprising"])
    table = score("--run", run, part, "--surprising", 3, "--beside", tmp_path / "other")
    assert table.code == 0, table.err
    assert len(table.out.splitlines()) == 3 + 4
    assert score("--run", run, "-", "--beside", run).code == 2
