"""The screen with unusual terminals, streams and values."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from jaxgen.cli import progress
from jaxgen.cli.common import (
    end_output,
    escape_controls,
    log,
    open_output,
    read_byte_lines,
    run_command,
    write_out,
)
from jaxgen.cli.progress import Screen, format_duration, progress_line
from jaxgen.cli.sample import SampleWriter, check_prompt
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.errors import DataError, UsageError
from jaxgen.trainer.callbacks import Evaluated, Finished, Note, Progress, Reading, Sampled, Started
from jaxgen.trainer.trainer import Interrupted


class Broken(io.StringIO):
    """A stream that cannot be written, as the system would say it."""

    def __init__(self, number: int, terminal: bool = False) -> None:
        super().__init__()
        self.number, self.terminal = number, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        self.write("")


GONE = [errno.ENOSPC, errno.EIO, errno.EBADF]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("number", [*GONE, errno.EPIPE])
def test_training_goes_on_unseen_when_its_output_cannot_be_written(number, terminal, monkeypatch, capsys):
    discarded = []
    monkeypatch.setattr(progress, "discard", discarded.append)
    monkeypatch.setattr(sys, "stdout", Broken(number, terminal))
    screen = Screen()
    screen.show(Started("r", {}, 0, 10))
    screen.show(Note("first"))
    screen.show(Note("second"))
    screen.close()
    monkeypatch.undo()
    assert len(discarded) == 1
    told = capsys.readouterr().err
    assert (os.strerror(number) in told, told.count("\n")) == ((False, 0) if number == errno.EPIPE else (True, 1))


@pytest.mark.parametrize("number", [*GONE, errno.EPIPE])
def test_an_exit_code_outlives_standard_errors_that_cannot_be_written(number, monkeypatch):
    def stopped(args):
        raise Interrupted(signal.SIGTERM, "after step 3; saved", "r")

    monkeypatch.setattr(sys, "stderr", Broken(number))
    assert run_command(stopped, []) == 143


@pytest.mark.parametrize(("number", "code"), [*((number, 1) for number in GONE), (errno.EPIPE, 0)])
def test_what_is_written_last_and_cannot_be_is_an_error_unless_nobody_reads_it(number, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert end_output(0) == code
    assert end_output(3) == 3
    monkeypatch.undo()
    assert capsys.readouterr().err.startswith("error: Standard output cannot be written" if code else "")


#: What a terminal would obey: clear the screen, change the title, a C1 command, a bell, writing from right to left.
HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\u2066f"
HARMLESS = r"a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\u2066f"


def everything_of(text: str) -> list[object]:
    row = {"step": 1, "train_loss": 1.0, "val_loss": 1.0}
    return [
        Started(text, {text: text}, 0, 1),
        Evaluated(row, row["step"], 0, text),
        Sampled(1, text, text),
        Note(text),
        Finished(text, 1, 1, {}, [(text, text)], text, [(text, text)]),
    ]


@pytest.mark.parametrize("event", everything_of(HOSTILE), ids=lambda event: type(event).__name__)
def test_no_event_brings_what_a_terminal_would_obey(event):
    out = io.StringIO()
    Screen(Console(file=out, width=200)).show(event)
    assert HARMLESS in out.getvalue()
    assert out.getvalue() == escape_controls(out.getvalue())


@pytest.mark.parametrize("event", everything_of("[/b] [red]x[/red]"), ids=lambda event: type(event).__name__)
def test_brackets_in_an_event_are_no_markup(event):
    out = io.StringIO()
    Screen(Console(file=out, width=200)).show(event)
    assert "[/b] [red]x[/red]" in out.getvalue()


def test_a_message_brings_nothing_that_a_terminal_would_obey(capsys):
    log(HOSTILE)
    assert capsys.readouterr().err == HARMLESS + "\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_written_is_escaped_on_a_terminal_alone(terminal, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    write_out(HOSTILE)
    assert out.getvalue() == (HARMLESS if terminal else HOSTILE)


def test_control_characters_are_escaped_and_line_breaks_kept():
    assert escape_controls("a\x1b[2Jb\n\tc\x00\x9b") == "a\\x1b[2Jb\n\tc\\x00\\x9b"


@pytest.mark.parametrize("c", ["\ud800", "\uffff", "\u2028", "\u2029", "\u202a", "\u202e", "\u2066", "\u2069"])
def test_what_is_no_character_or_turns_the_text_around_is_escaped(c):
    assert escape_controls(f"a{c}b") == f"a\\u{ord(c):04x}b"


@pytest.mark.parametrize("text", ["10\u00a0km", "東京\u3000都", "👩\u200d💻", "soft\u00adhyphen", "\ue000", "é"])
def test_ordinary_text_is_shown_as_it_is(text):
    assert escape_controls(text) == text


def test_a_carriage_return_is_dropped_before_a_line_break_and_escaped_elsewhere():
    assert escape_controls("a\r\nb\rc\r") == "a\nb\\rc\\r"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text_only", [False, True])
def test_a_terminal_that_lacks_a_character_shows_it_escaped(text_only, monkeypatch):
    terminal = Terminal(io.BytesIO(), "cp1252", newline="")
    monkeypatch.setattr(sys, "stdout", terminal)
    open_output(text_only)
    print("é ∑", flush=True)
    assert terminal.buffer.getvalue() == b"\xe9 \\u2211\n"


@pytest.mark.parametrize(("kind", "written"), [(io.TextIOWrapper, b"\xffa\xc3\n"), (Terminal, "�a�\n".encode())])
def test_bytes_that_are_not_utf8_reach_a_pipe_and_are_replaced_on_a_terminal(kind, written, monkeypatch):
    out = kind(io.BytesIO(), "utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    open_output(True)
    SampleWriter(escape=out.isatty()).write("\udcffa\udcc3\n")
    assert out.buffer.getvalue() == written
    SampleWriter(escape=out.isatty()).write_json({"stop": ["\udcff"]})
    assert out.buffer.getvalue() == written + b'{"stop": ["\\udcff"]}\n'


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        (SampleConfig(prompt="a\udcff"), UsageError, "character 2"),
        (SampleConfig(prompt_file="p.txt"), DataError, "p.txt is not UTF-8: byte 0xff at offset 1"),
        (SampleConfig(prompt_file="-"), DataError, "Standard input is not UTF-8"),
    ],
)
def test_only_the_byte_level_reads_a_prompt_that_is_not_utf8(config, error, told):
    check_prompt("a\udcff", config, "byte")
    check_prompt("é", config, "char")
    with pytest.raises(error, match=told):
        check_prompt("a\udcff", config, "char")


def test_standard_output_that_cannot_be_reconfigured_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    open_output(True)
    print("∑")
    assert sys.stdout.getvalue() == "∑\n"


def test_a_sample_names_its_temperature():
    out = io.StringIO()
    Screen(Console(width=60, file=out)).show(Sampled(step=1200, title="temperature 0.5", text="The cat"))
    assert "step 1,200, temperature 0.5" in out.getvalue()


SMALL = Progress(1200, 1.234, 1.78, 12_345.6, "tokens", 83)
LARGE = Progress(123_456, 1.234, 1.78, 1_234_567, "tokens", 5025)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_labels_of_any_length_leave_room_for_their_figures(width):
    labels = ["comp.sys.ibm.pc.hardware and everything that goes with it", "説明" * 20, "[b]short[/b]"]
    shown = io.StringIO()
    rows = [(label, f"{n}1.25% right") for n, label in enumerate(labels)]
    Screen(Console(file=shown, width=width)).show(Finished("r", 1, 1, {}, rows))
    lines = shown.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    for n, label in enumerate(labels):
        (line,) = (line for line in lines if f"{n}1.25% right" in line)
        begin, _, end = line.split("  ")[0].partition("…")
        assert label.startswith(begin)
        assert label.endswith(end)
        assert cell_len(begin) >= 6


def live(width: int, event: Progress, total: int) -> str:
    """The live line as a terminal of this width shows it."""
    out = io.StringIO()
    screen = Screen(Console(width=width, height=25, force_terminal=True, file=out, color_system=None))
    screen.show(Started("r", {}, 0, total))
    screen.show(event)
    screen.close()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", out.getvalue().replace("\r", "\n")).strip().splitlines()[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_reading_large_data_has_a_bar_on_a_terminal_that_goes_when_the_run_begins(terminal):
    out = io.StringIO()
    screen = Screen(Console(width=80, height=25, force_terminal=terminal, file=out, color_system=None))
    for what in ("reading", "encoding"):
        for done in (10, 50, 100):
            screen.show(Reading(what, done, 100))
    shown = out.getvalue()
    screen.show(Started("r", {}, 0, 10))
    assert screen._reading_bar is None
    screen.close()
    assert ("reading" in shown or "reading" in out.getvalue()) == terminal


def test_a_wide_window_has_a_bar_and_a_narrow_one_has_not():
    full = "step 1,200/4,000  loss 1.234  1.780 bits/char  12,346 tokens/s  1:23 left"
    assert re.fullmatch(re.escape(full) + " [━╸╺]{4,}", live(100, SMALL, 4000).rstrip())
    assert live(80, SMALL, 4000).rstrip() == full


@pytest.mark.parametrize("width", [60, 80, 90, 120])
@pytest.mark.parametrize(("event", "total"), [(SMALL, 4000), (LARGE, 1_000_000)])
def test_from_60_columns_on_the_live_line_shows_everything(width, event, total):
    line = live(width, event, total)
    for part in (f"{event.step:,}/{total:,}", "loss 1.234", "1.780 bits", "/s", format_duration(event.seconds_left)):
        assert part in line
    assert len(line.rstrip()) <= width


@pytest.mark.parametrize(("event", "total"), [(SMALL, 4000), (LARGE, 1_000_000)])
def test_at_40_columns_the_live_line_keeps_step_loss_and_time_left(event, total):
    line = live(40, event, total)
    for part in (f"{event.step:,}/{total:,}", "loss 1.234", format_duration(event.seconds_left)):
        assert part in line


def test_a_line_without_bits_leaves_no_gap():
    assert progress_line(Progress(1, 2, None, 3, "tokens", 4), 5) == "step 1/5  loss 2.000  3 tokens/s  0:04 left"


def test_advice_is_shown_at_the_end():
    out = io.StringIO()
    Screen(Console(file=out, width=80)).show(Finished("r", 4, 2, {}, advice=["The model overfits since step 2."]))
    assert "overfits since step 2" in out.getvalue()


def test_a_line_has_no_speed_and_no_time_left_until_they_are_known():
    assert progress_line(Progress(1, 2, None, None, "tokens", None), 5) == "step 1/5  loss 2.000"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7384, "2:03:04")])
def test_seconds_read_as_a_clock(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\r\n", [b""]),
        (b"\xef\xbb\xbfa\rb\r", [b"a", b"b"]),
    ],
)
def test_a_file_with_only_a_byte_order_mark_has_no_line(data, lines, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    assert list(read_byte_lines(str(tmp_path / "a.txt"), 100)) == lines
