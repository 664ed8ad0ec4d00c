"""``sample.py --interactive``, driven through standard input and on terminals."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import overridden

import jaxgen
from jaxgen.cli import chat as interactive
from jaxgen.cli.chat import Chat, input_lines, split_arguments, use_readline
from jaxgen.cli.common import one_line
from jaxgen.cli.sample import SampleWriter
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.inference.chat import ChatSession
from jaxgen.inference.generation_config import GenerationConfig
from jaxgen.inference.sampler import Sampler
from jaxgen.inference.text_stream import Chunk
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.temperature import Linear
from jaxgen.trainer.signals import Interrupted

ROOT = Path(jaxgen.__file__).parent.parent
SHORT = ("--length", 10)
#: Of the transforms' flags, none of which is given.
NEUTRAL = {name.replace("-", "_"): None for name in TRANSFORMS} | {"forbid": (), "bias": (), "force": ()}


class Terminal(io.TextIOWrapper):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(sample, run, monkeypatch):
    """A session in which these lines are typed into a pipe."""

    def session(*lines: str, flags: tuple = SHORT, end: str = "\n"):
        given = "\n".join(lines) + end
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        return sample("--run", run, "--interactive", *flags)

    return session


@pytest.fixture(scope="module")
def sampler(trained):
    return Sampler.load(trained[0])


def chat(sampler, **settings) -> Chat:
    """A chat with these settings, and no flag of a transform."""
    writer = SampleWriter(escape=False)
    return Chat(ChatSession(sampler, GenerationConfig(**settings)), SampleConfig(**settings), NEUTRAL, writer.write)


@pytest.fixture
def loop(sampler):
    return chat(sampler)


def offers(err: str) -> list[tuple[str, str]]:
    """(number, text) of every continuation shown."""
    return re.findall(r"(?m)^ +(\d+) +[\d.]+%  (.*)$", err)


def test_the_first_answer_is_what_sample_writes_behind_the_prompt(talk, sample, run):
    done = talk("The cat")
    assert done.code == 0
    assert "The cat" + done.out == sample("--run", run, "--prompt", "The cat", *SHORT).out
    assert re.fullmatch(r".*run: char level, vocabulary of \d+\. Type text to continue, or /help\.\n", done.err)


def test_lines_without_text_continue_one_greedy_text(talk, sample, run):
    out = talk("The ", "", "", flags=(*SHORT, "--greedy")).out
    assert [out[at] for at in (10, 21, 32)] == ["\n"] * 3
    whole = sample("--run", run, "--prompt", "The ", "--greedy", "--length", 30).out
    assert "The " + out[:10] + out[11:21] + out[22:] == whole


def test_the_same_lines_give_the_same_session(talk):
    lines = ("The", "/again", " cat", "/pick 2", "2", "/pick off", "/new", "", "/seed 5", "dogs")
    assert talk(*lines)[:2] == talk(*lines)[:2]


def test_a_line_stands_for_itself_and_its_escapes(talk, sample, run):
    out = sample("--run", run, "--prompt", " The\ncat ", *SHORT).out
    assert " The\ncat " + talk(r" The\ncat ").out == out


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_session_ends_with_its_input(talk, end):
    done = talk("The", "cat", end=end)
    assert (done.code, done.out) == (0, talk("The", "cat").out)


def test_quit_leaves_at_once(talk):
    assert talk("The", "/quit", "cat")[:2] == talk("The")[:2]


def test_a_prompt_is_the_first_line(talk):
    assert talk(" on", flags=(*SHORT, "--prompt", "The")).out == talk("The", " on").out


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("/temperature 0.3", ("--temperature", 0.3)),
        ("/seed 3", ("--seed", 3)),
        ("/length 7", ("--length", 7)),
        ('/stop "a " e', ("--stop", "a ", "e")),
        ("/top-k 3", ("--top-k", 3)),
    ],
)
def test_a_command_does_what_its_flag_does(talk, sample, run, command, flags):
    expected = sample(*overridden(["--run", run, "--prompt", "The", *SHORT, *flags])).out
    assert "The" + talk(command, "The").out == expected


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "temperature"])
def test_every_transform_is_a_command_that_off_takes_back(loop, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usage, description = loop.commands()[name]
    assert description.endswith((".", ")"))
    Path("words.txt").write_text("the\ncat\n")
    values = {
        "TEXT": '"a b" e',
        "TEXT=NUMBER": "a=-1.5",
        "N": "2",
        "X": "0.5",
        "PATTERN": "[a-z]+",
        "FILE": "words.txt",
    }
    value = values[usage.split()[0]]
    loop.onecmd(f"/{name} {value}")
    assert [type(each) for each in loop.session.settings.transforms] == [TRANSFORMS[name]]
    loop.onecmd(f"/{name} off")
    assert loop.session.settings == GenerationConfig()


def test_settings_are_shown_as_the_commands_that_set_them(loop):
    talk = loop.session
    given = ["/temperature 1.2,0.5", "/seed 3", "/length 40", r"""/stop 'a b' '\n' '"' v1.0""", "/max-seconds 2.5"]
    given += ["/unk skip", "/bias a=1", "/top-k 5"]
    for line in given:
        loop.onecmd(line)
    assert list(loop.setting_lines()) == given
    assert talk.settings.stop == ("a b", "\n", '"', "v1.0")
    assert (talk.settings.temperature, talk.settings.max_seconds, talk.unk) == ((1.2, 0.5), 2.5, "skip")
    loop.onecmd("/stop off")
    loop.onecmd("/max-seconds off")
    loop.onecmd("/temperature 1.5:0.5:20")
    assert (talk.settings.stop, talk.settings.max_seconds) == ((), None)
    assert (talk.settings.temperature, next(loop.setting_lines())) == (Linear(1.5, 0.5, 20), "/temperature 1.5:0.5:20")


def test_settings_and_single_ones_are_shown(talk):
    done = talk("/top-k 5", "The", "/settings", "/length", "/top-p")
    settings = ["/temperature 0.8", "/seed 0", "/length 10", "/unk error", "/top-k 5"]
    _, *shown = done.err.splitlines()
    assert shown[:5] == settings
    assert "1" in shown[5]  # the number of the next answer
    assert shown[6:] == ["/length 10", "/top-p off"]


def test_another_seed_counts_from_its_first_answer(talk):
    first = talk("The", flags=(*SHORT, "--seed", 5)).out
    assert talk("The", "/new", "/seed 5", "The").out == talk("The").out + first


@pytest.mark.parametrize(
    ("line", "word"), [("'a b' c", ["a b", "c"]), (r'"A: "=2 \n', ["A: =2", r"\n"]), ("#a", ["#a"])]
)
def test_words_are_apart_at_spaces_outside_quotes(line, word):
    assert split_arguments(line) == word


def test_undo_takes_back_the_last_exchange_bit_for_bit(talk):
    once = talk("The", " cat").out
    again = once.removeprefix(talk("The").out)
    done = talk("The", " cat", "/undo", " cat")
    assert done.out == once + again
    assert "in: The" in done.err


def test_again_gives_the_next_sample_and_undo_the_former_answer_back(talk, sample, run, sampler):
    second = sample("--run", run, "--prompt", "The", *SHORT, "--sample-index", 1).out.removeprefix("The")
    first = talk("The").out
    done = talk("The", "/again", "/undo", "/save state")
    assert done.out == first + second
    assert sampler.tokenizer.decode(sampler.load_state("state").tokens) == "The" + first[:-1]


def test_new_begins_another_text(talk, sample, run):
    second = sample("--run", run, "--prompt", "dogs", *SHORT, "--sample-index", 1).out.removeprefix("dogs")
    assert talk("The", "/new", "dogs").out == talk("The").out + second


def test_a_state_is_saved_and_loaded(talk, sampler, here):
    done = talk("The", "/save a state.npz", "/temperature 0", "on")
    assert "13 tokens" in done.err
    assert sampler.load_state(here / "a state.npz").tokens.size == 13
    loaded = talk("/load a state.npz", "/temperature 0", "on")
    assert done.out.endswith(loaded.out)
    assert len(loaded.out) == 11


@pytest.mark.parametrize("name", [".", "/", "a\0b", "~nosuchuser/x", "x" * 300])
def test_a_state_that_cannot_be_saved_is_told_and_the_session_goes_on(talk, name, here):
    done = talk("The", f"/save {name}", "on")
    assert (done.code, done.out) == (0, talk("The", "on").out)
    assert done.err.count("error: ") == 1
    assert re.search("folder|NUL|null|too long|user", done.err)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("there is no such thing"), OSError(5, "Input/output error")])
def test_whatever_goes_wrong_in_a_line_the_session_goes_on(sampler, capsys, error):
    loop = chat(sampler, length=4)

    def fail(_):
        raise error

    loop.do_new = fail
    loop.run(["/new", "The"])
    shown = capsys.readouterr()
    assert re.fullmatch(f"error: .*{error.args[-1]}.*\n", shown.err)
    assert len(shown.out) == 5


def test_an_output_that_cannot_be_written_ends_the_session(sampler, monkeypatch):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    loop, lines = chat(sampler, length=4), iter(["The", "on"])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        with pytest.raises(OSError, match="No space left"):
            loop.run(lines)
    assert list(lines) == ["on"]


def test_an_unknown_command_names_the_nearest(talk):
    done = talk("/temprature 0.3", "The")
    assert "'/temperature'" in done.err
    assert (done.code, done.out) == (0, talk("The").out)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/top-k 0", "top-k is 0"),
        ("/top-k many", "'many'"),
        ("/top-p 0.5 0.6", "'0.5 0.6'"),
        ("/temperature -1", "-1.0"),
        ("/temperature off", "'off'"),
        ("/seed -1", "-1"),
        ("/length x", "'x'"),
        ("/max-seconds nan", "nan"),
        ("/stop 'a", "quote"),
        ("/unk never", "'never'"),
        ("/undo 3", "'3'"),
        ("/undo", "nothing"),
        ("/again", "no answer"),
        ("/save", "/save"),
        ("/save there", "state"),
        ("/load nowhere", "nowhere"),
        ("/load ~nosuchuser/x", "~nosuchuser/x"),
        ("/load a\0b", "NUL"),
        ("/load ~a\0b", "NUL"),
        ("/pick 0", "continuations"),
        ("/pick 1 2 3", "/pick"),
        ("/pick x", "'x'"),
        ("The ∑", "'∑'"),
        ("//", "'/'"),
    ],
)
def test_a_wrong_line_is_told_in_a_sentence_and_changes_nothing(sampler, capsys, line, sentence):
    loop = chat(sampler, length=4)
    talk = loop.session
    loop.run([line])
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert (shown.out, talk.settings, talk.state, talk.number, loop.pick) == (
        "",
        GenerationConfig(length=4),
        None,
        0,
        None,
    )


def test_unknown_characters_can_be_skipped_from_here_on(talk):
    done = talk("∑The", "/unk skip", "∑The")
    assert (done.err.count("error: "), done.out) == (1, talk("The").out)


def test_a_top_k_beyond_the_vocabulary_is_told_once(talk):
    done = talk("/top-k 1000", "/length 3", "The")
    assert done.err.count("--top-k 1000") == 1


def test_help_names_every_command(talk):
    done = talk("/help")
    named = re.findall(r"(?m)^/([a-z-]+)", done.err)
    assert {"temperature", "seed", "undo", "again", "pick", "quit", *TRANSFORMS} <= set(named)
    assert (done.code, done.out) == (0, "")
    assert max(map(len, done.err.splitlines()[2:])) <= 80


def test_a_continuation_is_taken_by_its_number(talk, sampler):
    done = talk("/pick 3 6", "The", "2", "/save state")
    chosen = dict(offers(done.err)[3:6])["2"]
    assert done.out == chosen.replace("\\n", "\n") + "\n"
    assert len(offers(done.err)) == 9  # of nothing, of the line, and behind what was taken
    assert re.findall(r"(?m)^ {4}(\S.*)$", done.err) == ["(a new text)", "The", "The" + chosen]
    assert sampler.tokenizer.decode(sampler.load_state("state").tokens) == "The" + done.out[:-1]


def test_an_empty_line_takes_the_first_continuation_and_undo_gives_it_back(talk):
    done = talk("/pick 2 6", "The", "", "/undo", "1")
    assert len(done.out) == 14
    assert done.out[:7] == done.out[7:]


def test_picking_ends_with_off(talk):
    done = talk("/pick 2 6", "The", "/pick off", "")
    assert len(done.out) == 11
    assert len(offers(done.err)) == 4


def test_a_number_that_is_not_offered_takes_nothing(talk):
    done = talk("/pick 2 6", "The", "3")
    assert (done.out, len(offers(done.err))) == ("", 4)
    assert "/pick off" in done.err


class Interrupting:
    """``Sampler.stream`` in which Ctrl-C comes behind the first piece of the first answer."""

    def __init__(self, interrupt):
        self.stream, self.interrupt = Sampler.stream, interrupt

    def __call__(self, sampler, *args, **options):
        for piece in self.stream(sampler, *args, **options):
            yield piece
            if self.interrupt is not None:
                interrupt, self.interrupt = self.interrupt, None
                interrupt()


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [ctrl_c, interrupted])
def test_an_interrupt_stops_the_answer_and_the_text_goes_on_from_what_was_shown(talk, interrupt, sampler, monkeypatch):
    stream = Interrupting(interrupt)
    monkeypatch.setattr(Sampler, "stream", lambda *args, **options: stream(*args, **options))
    done = talk("The", "/save state", "/length 4", " on", flags=("--length", 400))
    assert (done.code, "(Stopped; the text continues from here.)" in done.err) == (0, True)
    shown = sampler.tokenizer.decode(sampler.load_state("state").tokens).removeprefix("The")
    assert 0 < len(shown) <= 64
    assert done.out.startswith(shown + "\n")
    assert len(done.out) == len(shown) + 1 + 5


@pytest.mark.parametrize(("escape", "shown"), [(True, b"a\\x1b[31m\n\n"), (False, b"a\x1b[31m\n\n")])
def test_control_characters_of_an_answer_are_escaped_for_a_terminal(loop, escape, shown, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    loop.write = SampleWriter(escape).write
    loop.answer(Chunk(0, text, np.zeros(1, np.int32), np.zeros(1)) for text in ("a\x1b[3", "1m\n"))
    assert out.buffer.getvalue() == shown


def test_what_is_offered_cannot_disturb_the_terminal():
    assert one_line("a\x1b[2J\n\tb") == "a\\x1b[2J\\n\\tb"


@pytest.mark.parametrize("redirected", [False, True])
def test_a_terminal_is_asked_line_by_line(loop, redirected, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")  # not for prompt_toolkit
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b" The \n\n/undo\n"), "utf-8"))
    if not redirected:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(input_lines(loop)) == [" The ", "", "/undo"]
    shown = capsys.readouterr()
    assert (shown.out, shown.err.rstrip("\n")) == (("", "> " * 4) if redirected else ("> " * 4, ""))


def test_an_interrupt_at_the_prompt_asks_anew(loop, monkeypatch, capsys):
    answers = iter([KeyboardInterrupt, "The", EOFError])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(), "utf-8"))
    monkeypatch.setattr(interactive, "prompt_line", ask)
    assert list(input_lines(loop)) == ["The"]
    assert "/quit" in capsys.readouterr().err
    answers = iter([Interrupted(signal.SIGTERM, "the chat")])
    with pytest.raises(Interrupted):
        list(input_lines(loop))


def test_the_tabulator_completes_commands(loop):
    readline = pytest.importorskip("readline")
    use_readline(loop)
    complete = readline.get_completer()
    assert [complete("/to", n) for n in range(3)] == ["/top-k ", "/top-p ", None]
    assert complete("", 0) is None


@pytest.mark.parametrize(
    "flags",
    [
        ("--prompt-file", "-"),
        ("--json",),
        ("--num-samples", 2),
        ("--sample-index", 1),
        ("--best-of", 3),
        ("--block", 4),
        ("--temperature", 0.5, 1),
    ],
)
def test_flags_that_contradict_a_session_are_told(sample, flags):
    done = sample("--interactive", *flags)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(rf"error: --interactive .*{flags[0]}.*\n", done.err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_session_on_a_real_terminal(run, here, compiled):
    keyboard, terminal = os.openpty()
    command = [sys.executable, str(ROOT / "sample.py"), "--interactive", "--run", str(run), "--length", "5"]
    environment = os.environ | {"TERM": "dumb", "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)

    def until(end: str) -> str:
        seen = b""
        while not seen.decode(errors="replace").endswith(end):
            assert select.select([keyboard], [], [], 60)[0], seen
            seen += os.read(keyboard, 1000)
        return seen.decode()

    def asked(line: str) -> str:
        os.write(keyboard, line.encode())
        return until("> ")

    try:
        assert "/help" in until("> ")
        answer = asked("The\n")
        assert re.fullmatch(r"The\r\n(.|\r\n){5}\r\n> ", answer)
        assert "The text is at its beginning again." in asked("/und\t\n")
        assert asked("The\n") == answer
        asked("/length 1000000\n")
        os.write(keyboard, b"\n")
        assert len(os.read(keyboard, 2)) == 2  # the echo of the empty line
        assert select.select([keyboard], [], [], 60)[0]
        process.send_signal(signal.SIGINT)
        assert until("> ").endswith("\r\n(Stopped; the text continues from here.)\r\n> ")
        os.write(keyboard, b"/quit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
