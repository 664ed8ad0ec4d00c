"""What the screen does with odd output and odd places to put it."""

from __future__ import annotations

import io

import pytest

from jaxgen.cli import progress
from jaxgen.cli.progress import PipeConsole, Screen, clock, visible
from jaxgen.run.events import Note


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_training_goes_on_unseen_when_the_reader_of_its_output_has_gone(monkeypatch):
    discarded = []
    monkeypatch.setattr(progress, "discard_output", lambda: discarded.append(True))
    screen = Screen(PipeConsole(file=Broken()))
    screen.show(Note("first"))
    screen.show(Note("second"))
    assert discarded == [True]


def test_control_characters_are_escaped_and_line_breaks_kept():
    assert visible("a\x1b[2Jb\n\tc\x00") == "a\\x1b[2Jb\n\tc\\x00"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7384, "2:03:04")])
def test_seconds_read_as_a_clock(seconds, text):
    assert clock(seconds) == text
