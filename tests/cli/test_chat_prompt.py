"""The chat on a terminal: the prompt with prompt_toolkit, the status line, visible blanks, help in a pager."""

from __future__ import annotations

import io
import os
import pydoc
import stat
import sys
from collections.abc import Callable

import numpy as np
import pytest

from jaxgen.cli.chat import Chat, input_lines, visible
from jaxgen.cli.sampling_flags import SampleConfig, transform_flags
from jaxgen.inference.chat import ChatSession
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.text_stream import Chunk


class Terminal(io.TextIOWrapper):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def sampler(trained):
    return Sampler.load(trained[0])


@pytest.fixture
def loop(sampler, monkeypatch) -> Chat:
    """A chat with a keyboard and a screen."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(), "utf-8"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    flags = {name.replace("-", "_"): flag.default for name, flag in transform_flags().items()}
    return Chat(ChatSession(sampler), SampleConfig(length=4), flags, lambda text: print(text, end=""))


@pytest.fixture
def history(monkeypatch, tmp_path):
    """The file of the lines of earlier chats."""
    prompt = pytest.importorskip("jaxgen.cli.chat_prompt", exc_type=ImportError)
    monkeypatch.setattr(prompt, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "chat-history"


@pytest.fixture
def typed(loop, history, monkeypatch) -> Callable[[str], list[str]]:
    """The lines of a chat in which these keys are pressed."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    def lines(keys: str) -> list[str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            return [*input_lines(loop)]

    return lines


ENTER, CTRL_C, CTRL_D, LEFT = "\r", "\x03", "\x04", "\x1b[D"


def test_lines_are_edited_until_control_d(typed, capsys):
    lines = typed(f" Te {LEFT * 2}h{ENTER}{ENTER}/undo{ENTER}{CTRL_D}never{ENTER}")
    assert lines == [" The ", "", "/undo"]
    assert capsys.readouterr().err == ""


def test_control_c_drops_the_line_and_asks_anew(typed, capsys):
    assert typed(f"The{CTRL_C}on{ENTER}{CTRL_D}") == ["on"]
    assert capsys.readouterr().err.count("/quit") == 1


def test_lines_are_kept_for_the_next_chat_and_from_others(typed, history):
    typed(f"The{ENTER}{ENTER}a mat{ENTER}{CTRL_D}")
    typed(f"on{ENTER}{CTRL_D}")
    from jaxgen.cli.chat_prompt import _History

    assert _History(str(history)).load_history_strings() == ["on", "a mat", "The"]
    if os.name == "posix":
        assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_disturbs_nothing(typed, history):
    history.mkdir(parents=True)
    assert typed(f"The{ENTER}on{ENTER}{CTRL_D}") == ["The", "on"]


def test_commands_are_completed_with_their_usage(loop, history):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from jaxgen.cli.chat_prompt import CommandCompleter

    def offered(text: str) -> list[tuple[str, str]]:
        found = CommandCompleter(loop.completions).get_completions(Document(text), CompleteEvent())
        return [(each.text, each.display_meta_text) for each in found]

    assert offered("/top") == [("/top-k ", "N | off"), ("/top-p ", "X | off")]
    assert len(offered("/")) == len(loop.commands())
    assert offered("") == offered("The") == offered("/undo ") == []


def test_the_status_line_has_the_temperature_the_seed_and_the_speed(loop, capsys):
    assert "tokens/s" not in loop.status()
    loop.onecmd("/temperature 0.3")
    loop.onecmd("/seed 7")
    piece = np.zeros(32, np.int32)
    loop.answer(Chunk(0, "text", piece, piece.astype(np.float32), end) for end in (None, None, "length"))
    status = loop.status()
    assert "temperature 0.3" in status
    assert "seed 7" in status
    assert "tokens/s" in status


def test_blanks_and_line_breaks_are_visible_in_what_a_terminal_offers(loop, capsys):
    loop.onecmd("/pick 3 6")
    loop.onecmd("The ")
    loop.offer_again()
    shown = capsys.readouterr().err
    assert "    The·\n" in shown
    assert visible("a b\n\tc\x1b") == "a·b↵→c\\x1b"


@pytest.mark.parametrize(("rows", "paged"), [(200, True), (10, True), (200, False)])
def test_help_goes_to_a_pager_only_if_it_does_not_fit(loop, rows, paged, monkeypatch, capsys):
    texts = []
    monkeypatch.setattr(pydoc, "pager", texts.append)
    monkeypatch.setenv("LINES", str(rows))
    loop.keyboard = paged
    loop.onecmd("/help")
    assert len(texts) == (rows == 10)
    assert "/temperature" in "".join([*texts, capsys.readouterr().err])
