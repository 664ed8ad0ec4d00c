"""``sample.py --color``: each token in the colour of its probability."""

from __future__ import annotations

import io
import math
import re
import sys

import numpy as np
import pytest
from rich.color import Color, ColorSystem
from rich.style import Style

from jaxgen.cli.sample import SampleWriter
from jaxgen.cli.token_colors import SCALE, TokenColors, color_system
from jaxgen.inference.text_stream import Chunk
from jaxgen.tokenizers import ByteTokenizer, WordTokenizer

#: The codes of colours.
CODES = re.compile(r"\x1b\[[0-9;]*m")
ALL = ["always", "auto"]


def luminance(color: Color) -> float:
    """The relative luminance of WCAG 2."""
    parts = [value / 255 for value in color.get_truecolor()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def looks(text: str) -> list[tuple[str, str]]:
    """(codes, text) of each coloured part."""
    return re.findall(r"\x1b\[([0-9;]+)m([^\x1b]*)\x1b\[0m", text)


def code(number: int) -> str:
    return CODES.findall(Style.parse(SCALE[number][2]).render("x", color_system=ColorSystem.EIGHT_BIT))[0][2:-1]


def chunk(tokens, text: str, probabilities, index: int = 0, end: str | None = None) -> Chunk:
    return Chunk(index, text, np.asarray(tokens, np.int32), np.log(np.asarray(probabilities, np.float32)), end)


def colors(tokenizer, held: str = "") -> TokenColors:
    return TokenColors(tokenizer.stream_decoder, held, ColorSystem.EIGHT_BIT)


def parts(spans) -> list[tuple[str, str]]:
    return [(part, looks(paint("x"))[0][0]) for part, paint in spans]


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer.train(["the cat sat on the mat"], min_count=1)


def test_without_its_codes_a_coloured_text_is_the_plain_one(sample, run):
    args = ("--run", run, "--prompt", "The", "--length", 70, "--num-samples", 3, "--stop", "at")
    done = sample(*args, "--color", "always")
    assert done.code == 0, done.err
    assert CODES.sub("", done.out) == sample(*args).out
    assert looks(done.out)
    assert [text for _, text in looks(done.err)] == [name for _, name, _ in SCALE]
    best = ("--num-samples", 1, "--best-of", 3)
    assert CODES.sub("", sample(*args[:-4], *best, "--color", "always").out) == sample(*args[:-4], *best).out


def test_the_colours_are_those_of_the_log_probabilities(sample, run):
    import json

    args = ("--run", run, "--length", 60)
    record = json.loads(sample(*args, "--json").out)
    shown = [each for each, text in looks(sample(*args, "--color=always").out) for _ in text]
    told = [text for _, text in looks(sample(*args, "--color=always").out)]
    letters = [(c, p) for c, p in zip(record["text"], record["logp"]) if c != "\n"]
    assert "".join(told) == "".join(c for c, _ in letters)
    for codes, (c, logp) in zip(shown, letters):
        number = next(i for i, (least, _, _) in enumerate(SCALE) if math.exp(logp) >= least)
        assert codes.replace(";7", "").replace("7;", "") == code(number), (c, logp)


def test_in_a_pipe_only_always_colours(sample, run, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    plain = sample("--run", run, "--length", 20)
    for flags in (["--color"], ["--color", "auto"]):
        done = sample("--run", run, "--length", 20, *flags)
        assert (done.code, done.out) == (0, plain.out)
        assert "--color always" in done.err
    assert sample("--run", run, "--length", 20, "--color", "never").err.count("note") == 0


@pytest.mark.parametrize(("choice", "given"), [("auto", None), ("always", ColorSystem.EIGHT_BIT)])
def test_no_color_is_respected_unless_colours_are_asked_for_always(choice, given, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert color_system(choice, Terminal()) is not None
    monkeypatch.setenv("NO_COLOR", "1")
    assert color_system(choice, Terminal()) is given


@pytest.mark.parametrize("flags", [["--json"], ["--skip", 3], ["--beam", 2], ["--interactive"]])
def test_what_has_no_colours_is_told(sample, flags):
    done = sample("--color", *flags)
    assert (done.code, done.out) == (2, "")
    assert "--color" in done.err


def test_a_likely_and_an_unlikely_word_differ(words):
    the, cat = words.encode("the cat")
    spans = [*colors(words).spans(chunk([the, cat], "the cat", [0.9, 0.004], end="length"))]
    assert parts(spans) == [("the", code(0)), (" cat", code(4))]


def test_the_space_that_the_prompt_ended_with_is_not_shown_again(words):
    cat, sat = words.encode(" cat sat")
    spans = [*colors(words, " ").spans(chunk([cat, sat], "cat sat", [0.9, 0.1]))]
    assert parts(spans) == [("cat", code(0)), (" sat", code(2))]


def test_text_that_is_held_back_keeps_the_colour_of_its_token(words):
    the, cat = words.encode("the cat")
    found = colors(words)
    first = parts(found.spans(chunk([the], "t", [0.9])))
    assert first + parts(found.spans(chunk([cat], "he cat", [0.1], end="length"))) == [
        ("t", code(0)),
        ("he", code(0)),
        (" cat", code(2)),
    ]


def test_a_character_of_several_tokens_has_the_product_of_their_probabilities():
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("é!")
    found = colors(tokenizer)
    assert parts(found.spans(chunk(tokens[:1], "", [0.5]))) == []
    assert parts(found.spans(chunk(tokens[1:], "é!", [0.2, 0.9]))) == [("é", code(2)), ("!", code(0))]


def test_only_an_unlikely_blank_has_a_background():
    tokenizer = ByteTokenizer()
    space = tokenizer.encode("  ")
    likely, unlikely = parts(colors(tokenizer).spans(chunk(space, "  ", [0.9, 0.02])))
    assert "7" not in likely[1].split(";")
    assert "7" in unlikely[1].split(";")


def test_control_characters_are_escaped_and_lines_end_uncoloured(monkeypatch):
    tokenizer = ByteTokenizer()
    text = "a\x1b[31m\nb"
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    tokens = tokenizer.encode(text)
    SampleWriter(escape=True, colors=colors(tokenizer)).write_all(
        iter([chunk(tokens, text, [0.9] * tokens.size, end="length")]), "", 0, "", False
    )
    shown = out.buffer.getvalue().decode()
    assert [part for _, part in looks(shown)] == ["a\\x1b[31m", "b"]
    assert CODES.sub("", shown) == "a\\x1b[31m\nb\n"


def test_bytes_that_are_no_text_are_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    tokenizer = ByteTokenizer()
    found = TokenColors(lambda: tokenizer.stream_decoder("surrogateescape"), "", ColorSystem.EIGHT_BIT)
    whole = chunk(tokenizer.encode("a\udcff"), "a\udcff", [0.9, 0.9], end="length")
    SampleWriter(escape=True, colors=found).write_text("", drawn=whole)
    assert CODES.sub("", out.buffer.getvalue().decode()) == "a\ufffd\n"


@pytest.mark.parametrize("style", [style for _, _, style in SCALE])
def test_every_colour_can_be_read_on_white_and_on_black(style):
    light = luminance(Style.parse(style).color)
    assert 1.05 / (light + 0.05) >= 3.5
    assert (light + 0.05) / 0.05 >= 3.5
