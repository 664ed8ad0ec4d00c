"""``sample.py --interactive``: reads lines and commands, writes the text that the model adds.

Only the text goes to standard output. ``jaxgen.inference.chat`` keeps the text and its states.
"""

from __future__ import annotations

import cmd
import contextlib
import inspect
import os
import pydoc
import re
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import escape_controls, log, one_line, reason
from jaxgen.cli.flags import read_number
from jaxgen.cli.sampling_flags import (
    SampleConfig,
    generation_config,
    read_transforms,
    transform_flags,
    transform_notes,
    unescape,
    with_condition_flags,
)
from jaxgen.cli.speed import SamplingSpeed
from jaxgen.data.files import expand_path
from jaxgen.errors import JaxgenError, UsageError, choose, counted
from jaxgen.runs.config import validate
from jaxgen.trainer.signals import Interrupted, StopSignals

if TYPE_CHECKING:
    from jaxgen.inference.chat import ChatSession, Continuation
    from jaxgen.inference.text_stream import Chunk

PROMPT = "> "
#: The arguments of the commands that take any.
USAGES = {"pick": "[N [TOKENS] | off]", "save": "FILE", "load": "FILE"}
#: The argument that unsets a setting.
OFF = "off"
#: Defaults of ``/pick``: continuations, and tokens in each.
NUM_CONTINUATIONS, CONTINUATION_LENGTH = 5, 16
#: Characters shown of the end of the text, and columns of the usage in the help.
TAIL, USAGE = 60, 32
#: What stands for blanks, tabs and line breaks where a terminal shows a part of the text.
MARKS = str.maketrans({" ": "·", "\t": "→", "\n": "↵"})
#: Messages for answers that end neither at their length nor at a stop string.
ENDS = {
    "eos": "(The text ends here; what follows begins another.)",
    "stopped": "(Stopped; the text continues from here.)",
    "time": "(Out of time; the text continues from here.)",
}

HELP = r"""
A line is text to continue. It is read exactly as it stands, without a line break after it; \n, \t and \\ in it stand
for a line break, a tab and a backslash, and // at its beginning for a slash. Each line continues where the last answer
ended; an empty line continues without more text. Ctrl-C stops an answer and keeps what was shown, Ctrl-D leaves.

Answers are numbered from 0: answer k is sample k of the seed, so that the same lines give the same answers.
"""


#: The settings that are fields of ``SampleConfig``, with what the help calls their values. The transforms follow them.
SETTINGS = {
    "temperature": "T",
    "seed": "N",
    "length": "N",
    "stop": "TEXT ...",
    "max-seconds": "S",
    "unk": "error | skip",
    "label": "LABEL[:WEIGHT] ...",
    "features": "X ...",
}


class Chat(cmd.Cmd):
    """A chat at the keyboard or in a pipe. A line that begins with a slash is a command, any other one is text."""

    def __init__(
        self, session: ChatSession, config: SampleConfig, flags: Mapping[str, Any], write: Callable[[str], None]
    ) -> None:
        """``flags`` are the values of the transforms' flags; ``write`` writes text to standard output."""
        super().__init__()
        self.session, self.config, self.flags, self.write = session, config, flags, write
        self.terminal = sys.stdout.isatty()
        self.keyboard = sys.stdin is not None and sys.stdin.isatty()
        #: Puts text on one line.
        self.quote = visible if self.keyboard else one_line
        self.signals = StopSignals()
        #: Tokens a second of the last answer that was long enough to measure.
        self.rate: float | None = None
        #: The arguments of ``/pick``, the continuations on the screen, and the state that they continue.
        self.pick: tuple[int, int] | None = None
        self.offers: list[Continuation] = []
        self.offered: object = self
        self.transforms = transform_flags()
        known = session.sampler.conditioning
        unknown = {"label": not (known and known.labels), "features": not (known and known.features)}
        self.settings = [name for name in (*SETTINGS, *self.transforms) if not unknown.get(name)]
        for name in self.settings:
            setattr(self, f"do_{name.replace('-', '_')}", partial(self.change_setting, name))

    # Reading lines

    def run(self, lines: Iterable[str], first: str | None = None) -> None:
        """Process ``lines`` until they end or one is ``/quit``; ``first`` is text to begin with."""
        if first is not None:
            if self.terminal:
                self.write(f"{PROMPT}{first}\n")
            self._protect(lambda: self.answer(self.session.send(first)))
        for line in lines:
            if self._protect(partial(self.onecmd, self.session.sampler.reading.text(line))):
                return
            self._protect(self.offer_again)

    def _protect(self, action: Callable[[], bool | None]) -> bool | None:
        """Run ``action``; an error in a line does not end the chat.

        The first Ctrl-C is only recorded: an exception raised inside JAX could be lost, with a traceback on the screen.
        """
        stop = None
        try:
            with StopSignals() as self.signals:
                stop = action()
        except JaxgenError as error:
            log(f"error: {error}")
        except (OSError, ValueError) as error:  # the system or a Python function rejects the line
            sys.stdout.flush()  # raises again if the output itself is gone, and that ends the chat
            log(f"error: This line cannot be processed: {reason(error)}. Give another.")
        except KeyboardInterrupt:  # the second Ctrl-C
            log("\nStopped.")
        if self.signals.received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        return stop

    def parseline(self, line: str) -> tuple[str | None, str | None, str]:
        """The name of a command's method, its argument, and the line; no name for a line of text."""
        if not line.startswith("/") or line.startswith("//"):
            return None, None, line
        typed, argument = (*line.split(maxsplit=1), "")[:2]
        commands = self.commands()
        name = choose(typed, [f"/{each}" for each in commands], "command").removeprefix("/")
        if argument and not commands[name][0]:
            raise UsageError(f"/{name} takes no argument, but {argument!r} follows it: leave it out.")
        return name.replace("-", "_"), argument.strip(), line

    def emptyline(self) -> bool:
        """An empty line: continue without more text, or add the first continuation that is offered."""
        if self.pick:
            self.choose_continuation(1)
        else:
            self.answer(self.session.send(""))
        return False

    def default(self, line: str) -> None:
        """A line of text: continue it. While continuations are offered, add it, or the one that it numbers."""
        if self.pick and re.fullmatch("[0-9]+", line):
            self.choose_continuation(int(line))
            return
        text = unescape(line.removeprefix("/") if line.startswith("//") else line)
        if self.pick:
            self.session.add(text)
        else:
            self.answer(self.session.send(text))

    def answer(self, chunks: Generator[Chunk, None, None]) -> None:
        """Write an answer as it is generated, and a line break after it."""
        end: str | None = None
        speed = SamplingSpeed(parallel=1)
        with contextlib.closing(chunks), contextlib.closing(speed.measure(chunks)) as measured:
            try:
                for chunk in measured:
                    self.write(chunk.text)
                    end = chunk.end
                    if end is None and self.signals.received:
                        end = "stopped"
                        break
            except KeyboardInterrupt:
                end = "stopped"
        self.rate = speed.rate or self.rate
        self.write("\n")
        if end in ENDS:
            log(ENDS[end])

    def tail(self) -> str:
        """The end of the text so far, on one line."""
        text = self.session.text
        return ("…" if len(text) > TAIL else "") + self.quote(text[-TAIL:])

    def status(self) -> str:
        """The status line of a terminal."""
        parts = [f"{name} {self.setting_text(name)}" for name in ("temperature", "seed")]
        parts += [] if self.rate is None else [f"{self.rate:,.0f} tokens/s"]
        return "   ".join([*parts, "/pick off ends the offers" if self.pick else "/help"])

    # Continuations

    def offer(self, n: int = NUM_CONTINUATIONS, length: int = CONTINUATION_LENGTH) -> None:
        """Show the most probable continuations, and the end of the text that they continue."""
        self.offers, self.offered, state = [], self, self.session.state
        found = self.session.continuations(n, length)
        self.pick, self.offers, self.offered = (n, length), found, state
        log(f"    {self.tail() or '(a new text)'}")
        for number, each in enumerate(found, start=1):
            log(
                f"{number:3} {each.probability:6.1%}  {self.quote(each.text)}{'  (the text ends)' if each.ends else ''}"
            )

    def offer_again(self) -> None:
        """In the mode of ``/pick``, offer new continuations if the text has changed."""
        if self.pick and self.session.state is not self.offered:
            self.offer(*self.pick)

    def choose_continuation(self, number: int) -> None:
        """Add the continuation with this number."""
        if not 1 <= number <= len(self.offers):
            raise UsageError(f"No continuation {number} is offered: give the number of one, or /pick off to leave.")
        chosen = self.offers[number - 1]
        self.session.append(chosen.tokens)
        if not self.terminal or chosen.ends:  # otherwise the next offers show it
            self.write(chosen.text + "\n")
        if chosen.ends:
            log(ENDS["eos"])

    # Commands. The docstring is the help.

    def commands(self) -> dict[str, tuple[str, str]]:
        """Name -> usage and help of every command, those of the settings last."""
        found = {}
        for method in vars(type(self)):
            if method.startswith("do_"):
                found[method[3:]] = USAGES.get(method[3:], ""), inspect.getdoc(getattr(self, method)) or ""
        return found | {name: self.describe_setting(name) for name in self.settings}

    def describe_setting(self, name: str) -> tuple[str, str]:
        """The usage and help of a setting."""
        if flag := self.transforms.get(name):
            usage, text = flag.metavar + (" ..." if flag.takes_tokens else ""), flag.help
        else:
            usage, text = SETTINGS[name], SampleConfig.model_fields[name.replace("-", "_")].description or ""
        return usage + (f" | {OFF}" if self.unset_value(name) in (None, ()) else ""), text

    def completions(self, text: str) -> dict[str, str]:
        """The commands that begin with ``text``, each with its usage."""
        commands = self.commands().items()
        return {f"/{name} ": usage for name, (usage, _) in commands if text and f"/{name} ".startswith(text)}

    def completenames(self, text: str, *_: Any) -> list[str]:
        """The commands that begin with ``text``, for the tabulator key of readline."""
        return [*self.completions(text)]

    def do_help(self, _: str) -> None:
        """Show this."""
        width = min(shutil.get_terminal_size().columns, 120)
        shown = [textwrap.fill(paragraph, width) + "\n" for paragraph in HELP.strip().split("\n\n")]
        commands = self.commands()
        for heading, names in (
            ("Commands", [name for name in commands if name not in self.settings]),
            ("Settings; one without a value is shown", self.settings),
        ):
            shown.append(f"{heading}:\n")
            for name in names:
                usage, text = commands[name]
                lines = textwrap.wrap(" ".join(text.split()), max(width - USAGE, 30)) or [""]
                heads = [f"/{name} {usage}".strip(), *[""] * len(lines)]
                shown.append("\n".join(f"{head:{USAGE}}{line}" for head, line in zip(heads, lines)))
            shown.append("")
        text = "\n".join(shown)
        if self.keyboard and self.terminal and text.count("\n") >= shutil.get_terminal_size().lines - 2:
            pydoc.pager(escape_controls(text))
        else:
            log(text)

    def do_again(self, _: str) -> None:
        """Another answer in place of the last."""
        self.answer(self.session.regenerate())

    def do_undo(self, _: str) -> None:
        """Take back the last answer, pick, /again, /new or /load."""
        self.session.undo()
        log(f"The text ends again in: {self.tail()}" if self.session.text else "The text is at its beginning again.")

    def do_new(self, _: str) -> None:
        """Begin a new text."""
        self.session.reset()

    def do_pick(self, argument: str) -> None:
        """Offer the N most probable next tokens (default: 5), each with its continuation.

        A number chooses one, an empty line the first; other text is read, and new offers follow. On a terminal · is a
        blank, → a tab and ↵ a line break.
        """
        if argument == OFF:
            self.pick = None
            return
        numbers = [read_number("pick", [word]) for word in argument.split()]
        if len(numbers) > 2:
            raise UsageError(f"/pick takes at most two numbers, not {argument!r}: of continuations, and of tokens.")
        self.offer(*numbers)

    def do_settings(self, _: str) -> None:
        """Show the current settings."""
        for line in self.setting_lines():
            log(line)
        if self.pick:
            log("/pick {} {}".format(*self.pick))
        log(f"The next answer is number {self.session.number}.")

    def do_save(self, argument: str) -> None:
        """Write the state after this text to a file."""
        path, state = _path("save", argument), self.session.state
        if state is None:
            raise UsageError("A text that has not begun has no state to save: write a line first.")
        self.session.sampler.save_state(path, state)
        log(f"The state after {counted(state.tokens.size, 'token')} is in {path}.")

    def do_load(self, argument: str) -> None:
        """Continue from the state in a file."""
        self.session.reset(self.session.sampler.load_state(_path("load", argument)))
        log(f"The text ends in: {self.tail()}")

    def do_quit(self, _: str) -> bool:
        """Leave."""
        return True

    # Settings

    def unset_value(self, name: str) -> Any:
        """The value of a setting whose flag is not given."""
        flag = self.transforms.get(name)
        return flag.default if flag else SampleConfig.model_fields[name.replace("-", "_")].default

    def change_setting(self, name: str, argument: str) -> None:
        """Change a setting, or show it if ``argument`` is empty. Raises ``UsageError`` for a value out of range."""
        if not argument:
            log(f"/{name} {self.setting_text(name)}")
            return
        default, words = self.unset_value(name), split_arguments(argument)
        value: Any = " ".join(words)
        if argument == OFF and default in (None, ()):
            value = default
        elif name in self.transforms:
            value = self.transforms[name].read(words)
        elif isinstance(default, tuple):
            value = (value,) if name == "temperature" else words
        (self.set_transform if name in self.transforms else self.set_field)(name, value)

    def set_transform(self, name: str, value: Any) -> None:
        """Change the options of a transform."""
        flags = {**self.flags, name.replace("-", "_"): value}
        transforms = read_transforms(flags, self.session.sampler.tokenizer.encode)
        self.session.settings = replace(self.session.settings, transforms=transforms)
        self.flags = flags
        kind = self.transforms[name].transform
        for note in transform_notes(self.session.sampler, [each for each in transforms if type(each) is kind]):
            log(note)

    def set_field(self, name: str, value: Any) -> None:
        """Change a setting that is a field of ``SampleConfig``."""
        session = self.session
        config = validate(SampleConfig, {**self.config.model_dump(), name.replace("-", "_"): value})
        if name in ("label", "features"):
            session.sampler = with_condition_flags(session.sampler, config, note=False)
            if session.state is not None:
                log("(It holds from the beginning of a text: /new begins one.)")
        session.settings = generation_config(config, config.temperature[0], session.settings.transforms)
        session.unk, self.config = config.unk, config
        if name == "seed":
            session.number = 0

    def setting_lines(self) -> Iterator[str]:
        """The commands that would make the current settings."""
        texts = {name: self.setting_text(name) for name in self.settings}
        return (f"/{name} {text}" for name, text in texts.items() if text != OFF)

    def setting_text(self, name: str) -> str:
        """The value of a setting as a user would type it."""
        field = name.replace("-", "_")
        value = self.flags[field] if name in self.transforms else getattr(self.config, field)
        if value in (None, ()):
            return OFF
        words = value if isinstance(value, tuple) else (value,)
        texts = (f"{word:g}" if isinstance(word, float) else str(word) for word in words)
        return shlex.join(text.replace("\n", "\\n").replace("\t", "\\t") for text in texts)


def split_arguments(text: str) -> list[str]:
    """Words separated by spaces outside quotes."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        return list(reader)
    except ValueError:
        raise UsageError(
            f"{text!r} has a quote that is not closed: put a text with spaces or with the other quote between "
            "two of one kind."
        ) from None


def _path(command: str, argument: str) -> Path:
    """The file that ``argument`` names; here no shell has expanded the tilde."""
    if not argument:
        raise UsageError(f"/{command} needs the name of a file, for example /{command} here.safetensors.")
    return expand_path(argument)


def visible(text: str) -> str:
    """Text on one line, with marks for blanks, tabs and line breaks."""
    return escape_controls(text).translate(MARKS)


def input_lines(loop: Chat) -> Iterator[str]:
    """Lines of standard input without their ends: edited at a prompt on a terminal, otherwise exact UTF-8."""
    if sys.stdin is None:  # closed by the shell (`<&-`)
        return
    if not sys.stdin.isatty():
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:  # missing in a notebook or a test
            reconfigure(encoding="utf-8", errors="surrogateescape", newline=None)  # LF, CR LF and CR end a line
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    ask = open_prompt(loop)
    while True:
        try:
            yield ask()
        except EOFError:
            return
        except Interrupted:  # SIGTERM
            raise
        except KeyboardInterrupt:
            log("(/quit or Ctrl-D leaves.)")


def open_prompt(loop: Chat) -> Callable[[], str]:
    """What asks for a line: prompt_toolkit if it is installed and can use the terminal, otherwise readline."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and find_spec("prompt_toolkit"):
        from jaxgen.cli.chat_prompt import toolkit_prompt

        return toolkit_prompt(PROMPT, loop.status, loop.completions)
    use_readline(loop)
    return prompt_line


def prompt_line() -> str:
    """A line from the terminal; the prompt goes to standard error if standard output goes elsewhere."""
    if not sys.stdout.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    try:
        return input(PROMPT if sys.stdout.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        log("")  # the cursor is still behind the prompt
        raise


def use_readline(loop: cmd.Cmd) -> None:
    """Edit lines with readline, where there is one; the tabulator key completes the commands of ``loop``."""
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer_delims("")
    readline.set_completer(loop.complete)  # type: ignore[arg-type]  # typeshed has a list for the match
    libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def chat(
    session: ChatSession, config: SampleConfig, flags: Mapping[str, Any], prompt: str, write: Callable[[str], None]
) -> None:
    """Chat until standard input ends, beginning with ``prompt``; the other arguments are those of ``Chat``."""
    loop = Chat(session, config, flags, write)
    sampler = session.sampler
    log(
        f"{sampler.directory}: {sampler.tokenizer.kind} level, vocabulary of {sampler.tokenizer.vocab_size:,}. "
        "Type text to continue, or /help."
    )
    loop.run(input_lines(loop), prompt or None)
