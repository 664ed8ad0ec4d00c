"""The files of the page: complete, of one scale of colours, and without another host."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jaxgen import colors, plots

STATIC = Path(colors.__file__).parent / "server" / "static"
FILES = sorted(STATIC.iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_another_host_or_inserts_html(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # the name of a format
    assert not re.search(
        r"//[\w-]+\.[\w-]|\bhttps?:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text
    )
    if file.suffix == ".html":  # the policy of the server refuses both
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", text)


def test_every_file_that_is_referred_to_exists():
    names = {file.name for file in FILES}
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        found = re.findall(r'(?:src|href)="static/([^"]+)"|from "\./([^"]+)"', text)
        assert {first or second for first, second in found} <= names, file
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    identifiers = set(re.findall(r'\bid="([^"]+)"', page))
    made = {"temperature", "max_tokens"}  # by a script
    for file in STATIC.glob("*.js"):
        assert set(re.findall(r'\$\("([\w-]+)"\)', file.read_text(encoding="utf-8"))) <= identifiers | made, file


def test_the_colours_are_those_of_the_project():
    text = (STATIC / "tokens.js").read_text(encoding="utf-8")
    scale = ast.literal_eval(re.search(r"SCALE = (\[.*\]);", text)[1])
    assert [tuple(color) for color in scale] == list(colors.SCALE)
    for name in ("NEGATIVE", "NEUTRAL", "POSITIVE", "UNKNOWN"):
        found = ast.literal_eval(re.search(rf"\b{name} = (\[[^\]]*\])", text)[1])
        assert tuple(found) == getattr(colors, name)
    cycle = re.search(r"CYCLE = (\[[^\]]*\])", (STATIC / "charts.js").read_text(encoding="utf-8"))
    assert tuple(ast.literal_eval(cycle[1])) == plots.THEMES["light"].cycle
    assert int(re.search(r"LOWEST = (-\d+)", text)[1]) == colors.LOWEST
