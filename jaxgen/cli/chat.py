"""``sample.py --interactive``: lines and commands in, answers out as they are made.

The text alone goes to standard output, all else to standard error. What a line does to the text is
``jaxgen.inference.chat``'s business; here lines are parsed and results shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import escape_controls, log
from jaxgen.cli.output import Writer
from jaxgen.cli.sample import SampleConfig
from jaxgen.cli.sampling_flags import read_number, unescaped
from jaxgen.errors import JaxgenError, UsageError, choose
from jaxgen.trainer.signals import StopSignals

if TYPE_CHECKING:
    from jaxgen.inference.chat import ChatSession, Continuation
    from jaxgen.inference.text_stream import Chunk
import shlex
from collections.abc import Sequence
from dataclasses import replace

from jaxgen.cli.sampling_flags import (
    described_transforms,
    notes,
    read_temperature,
    read_transforms,
    read_weights,
    read_words,
    transform_flags,
)
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.sampling.transforms.temperature import Linear
from jaxgen.tasks.language.conditioning import Condition

if TYPE_CHECKING:
    from jaxgen.inference.chat import ChatSession


#: Usage and help of the settings that are no transforms.
PLAIN = {
    "temperature": ("T", "0: always the likeliest token; 0.7; 1.2,0.8 a token each; 1.5:0.5:200 a line over tokens."),
    "seed": ("N", "Another seed, whose answers are counted from 0."),
    "length": ("N", "Tokens of an answer."),
    "stop": ("TEXT ... | off", "End an answer in front of any of these texts."),
    "max-seconds": ("S | off", "End an answer after this time."),
    "unk": ("error | skip", "What to do with characters that the model has never seen."),
}
#: And of runs that know such things of their texts; they hold for texts that begin from then on.
KNOWN = {
    "label": ("LABEL[:WEIGHT] ... | off", "Texts that begin from now on are of this label, or between several."),
    "features": ("X ... | off", "Texts that begin from now on have these numbers, one for each feature."),
}
OFF = "off"
#: What ``off`` stands for, where it stands for something.
WITHOUT: dict[str, Any] = {"stop": (), "max-seconds": None}


class Dials:
    """The settings of a conversation as text. ``flags`` are the values of the transforms' flags, as parsed."""

    def __init__(self, talk: ChatSession, flags: Mapping[str, Any]) -> None:
        self._talk = talk
        self._neutral = {name.replace("_", "-"): default for name, _, default in transform_flags()}
        self._values = {name: flags[name.replace("-", "_")] for name in self._neutral}
        self._readers: dict[str, Callable[[Sequence[str]], Any]] = {
            "temperature": lambda words: read_temperature(" ".join(words)),
            "seed": partial(read_number, "seed"),
            "length": partial(read_number, "length"),
            "stop": tuple,
            "max-seconds": lambda words: read_number("max-seconds", words, float),
        }

    def described(self) -> dict[str, tuple[str, str]]:
        """Usage and help of every setting."""
        transforms = {}
        for name, (word, text) in described_transforms().items():
            several = " ..." if self._neutral[name] == () else ""
            transforms[name] = (f"{word}{several} | {OFF}", text)
        return PLAIN | {name: KNOWN[name] for name in self._known()} | transforms

    def _known(self) -> list[str]:
        """The names in ``KNOWN`` that the run knows anything of."""
        known = self._talk.sampler.conditioning
        there = {} if known is None else {"label": known.labels, "features": known.features}
        return [name for name in KNOWN if there.get(name)]

    def turn(self, name: str, argument: str) -> None:
        """Set ``name`` to what ``argument`` says, or show it if that is empty. Raises ``UsageError``."""
        if not argument:
            log(self._line(name))
        elif name == "unk":
            self._talk.unk = choose(argument, ("error", "skip"), "way to treat unknowns (--unk)")
        elif name in KNOWN:
            self._turn_condition(name, argument)
        elif name in self._values:
            self._turn_transform(name, self._neutral[name] if argument == OFF else read_words(name, words(argument)))
        else:
            off = argument == OFF and name in WITHOUT
            value = WITHOUT[name] if off else self._readers[name](words(argument))
            self._talk.settings = replace(self._talk.settings, **{name.replace("-", "_"): value})
            if name == "seed":
                self._talk.number = 0

    def lines(self) -> Iterator[str]:
        """All settings in force, as the commands that set them."""
        return (line for name in self.described() if not (line := self._line(name)).endswith(f" {OFF}"))

    def _turn_condition(self, name: str, argument: str) -> None:
        sampler = self._talk.sampler
        known, now = sampler.conditioning, sampler.condition or Condition()
        if known is None:
            raise UsageError(f"This run knows neither labels nor features, so that /{name} means nothing to it.")
        given = [] if argument == OFF else words(argument)
        if name == "label":
            now = replace(now, labels=known.choose(read_weights(given, known)).labels if given else None)
        else:
            numbers = [read_number(name, [word], float) for word in given]
            now = replace(now, features=known.choose(features=numbers).features if given else None)
        self._talk.sampler = sampler.under(now)
        if self._talk.state is not None:
            log("(It says where a text begins: /new begins one.)")

    def _turn_transform(self, name: str, value: Any) -> None:
        values = self._values | {name: value}
        flags = {each.replace("-", "_"): value for each, value in values.items()}
        transforms = read_transforms(flags, self._talk.sampler.tokenizer.encode)
        self._talk.settings = replace(self._talk.settings, transforms=transforms)
        self._values = values
        for note in notes(self._talk.sampler, [each for each in transforms if type(each) is TRANSFORMS[name]]):
            log(note)

    def _line(self, name: str) -> str:
        if name == "unk":
            return f"/unk {self._talk.unk}"
        if name in KNOWN:
            return f"/{name} {self._condition(name)}"
        value = self._values[name] if name in self._values else getattr(self._talk.settings, name.replace("-", "_"))
        return f"/{name} {_written(value)}"

    def _condition(self, name: str) -> str:
        now = self._talk.sampler.condition or Condition()
        if name == "features":
            return OFF if now.features is None else " ".join(f"{value:g}" for value in now.features)
        shares = now.labels or ()
        return _written(tuple(label if len(shares) == 1 else f"{label}:{share:g}" for label, share in shares))


def words(text: str) -> list[str]:
    r"""Words apart at spaces that no quotes enclose; ``\\n``, ``\\t`` and ``\\\\`` as in a line of text."""
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        return [unescaped(word) for word in reader]
    except ValueError:
        raise UsageError(
            f"{text!r} has a quote that is not closed: put a text with spaces or with the other quote between "
            "two of one kind."
        ) from None


def _written(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, Linear):
        return f"{value.start}:{value.end}:{value.steps}"
    if value is None or value == ():
        return OFF
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(each, str) for each in value):
        return " ".join(map(_quoted, value))
    return ",".join(map(str, value))


def _quoted(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(character, escape)
    quote = "'" if '"' in text else '"'
    return f"{quote}{text}{quote}"


PROMPT = "> "
#: What ``/pick`` offers unless told otherwise: continuations, and tokens in each.
OFFERS, OFFER_LENGTH = 5, 16
#: Characters shown of the text so far, and of the name of a command in the help.
TAIL, USAGE = 60, 30
#: What is said of an answer that ended otherwise than at its length or a stop string.
ENDS = {
    "eos": "(The text ends here; what follows begins another.)",
    "stopped": "(Stopped; the text goes on from here.)",
    "time": "(Out of time; the text goes on from here.)",
}

HELP = r"""
A line is text to continue. It is read just as it stands, without a line break behind it; \n, \t and \\ in it stand for
a line break, a tab and a backslash, and // at its beginning for a slash. Each line goes on where the last answer
ended; an empty line goes on without more text. Ctrl-C stops an answer and keeps what was shown, Ctrl-D leaves.

Answers are numbered from 0: answer k is sample k of the seed, so that the same lines give the same answers.
"""


def check(config: SampleConfig, json: bool) -> None:
    """Raise ``UsageError`` for flags that contradict ``--interactive``."""
    several = "draws one text after the other"
    against = {
        "--prompt-file -": (config.prompt_file == "-", "reads its lines from standard input"),
        "--json": (json, "writes plain text"),
        "--num-samples": (config.num_samples != 1, several),
        "--skip": (config.skip != 0, several),
        "--sample-index": (config.sample_index is not None, several),
        "--best-of": (config.best_of is not None, several),
        "--block": (config.block is not None, several),
        "several numbers behind --temperature": (len(config.temperature) > 1, "has one temperature at a time"),
    }
    for flag, (given, why) in against.items():
        if given:
            raise UsageError(f"--interactive {why} and cannot be given with {flag}: leave one of them out.")


@dataclass(frozen=True)
class Command:
    """What a line that begins with a slash does; ``run`` takes what stands behind the name."""

    run: Callable[[str], None]
    usage: str
    help: str


class Session:
    """A conversation at the keyboard, or in a pipe."""

    def __init__(self, talk: ChatSession, flags: Mapping[str, Any], *, raw: bool = False) -> None:
        self.talk = talk
        self.dials = Dials(talk, flags)
        self.terminal = sys.stdout.isatty()
        self.writer = Writer(escape=self.terminal and not raw)
        self.leaving = False
        self.signals = StopSignals()
        #: What ``/pick`` asked for, the continuations on the screen, and the state that they belong to.
        self.pick: tuple[int, int] | None = None
        self.offers: list[Continuation] = []
        self.offered: Any = self
        self.actions = {
            "help": Command(self._help, "", "Show this."),
            "again": Command(self._again, "", "Another answer in place of the last."),
            "undo": Command(self._undo, "", "Take back the last answer, pick, /again, /new or /load."),
            "new": Command(self._new, "", "Begin a new text."),
            "pick": Command(
                self._pick,
                "[N [TOKENS] | off]",
                f"Offer the N likeliest next tokens (default: {OFFERS}), each with the likeliest behind it. A number "
                "takes one, an empty line the first; other text is read, and offers for it follow.",
            ),
            "settings": Command(self._settings, "", "Show the settings in force."),
            "save": Command(self._save, "FILE", "Write the state after this text to a file."),
            "load": Command(self._load, "FILE", "Go on from the state in a file."),
            "quit": Command(self._quit, "", "Leave."),
        }
        dials = self.dials.described().items()
        self.settings = {name: Command(partial(self.dials.turn, name), *about) for name, about in dials}

    def run(self, lines: Iterable[str], first: str | None = None) -> None:
        """Obey ``lines`` until they end or one says so; ``first`` is text to begin with."""
        if first is not None:
            if self.terminal:
                self.writer.put(f"{PROMPT}{first}\n")
            self._guarded(lambda: self.answer(self.talk.say(first)))
        for line in lines:
            self._guarded(partial(self.obey, line))
            if self.leaving:
                return
            self._guarded(self.renew)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Whatever goes wrong in a line, the session goes on.

        The first Ctrl-C is only noted: in the middle of JAX the exception can be lost, with a traceback on the screen.
        """
        try:
            with StopSignals() as self.signals:
                action()
        except JaxgenError as error:
            log(f"error: {error}")
        except (OSError, ValueError) as error:  # what the system, or a function of Python's, has against a line
            sys.stdout.flush()  # raises again where it is the output that is gone, and that ends the session
            log(f"error: This line cannot be obeyed: {getattr(error, 'strerror', None) or error}. Give another.")
        except KeyboardInterrupt:  # the second
            log("\nStopped.")
        if self.signals.received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    def obey(self, line: str) -> None:
        """Do what one line says."""
        if line.startswith("/") and not line.startswith("//"):
            name, argument = (*line.split(maxsplit=1), "")[:2]
            known = {f"/{each}": command for each, command in (self.actions | self.settings).items()}
            command = known[choose(name, known, "command")]
            if argument and not command.usage:
                raise UsageError(f"{name} stands alone, but {argument!r} follows it: leave it out.")
            command.run(argument.strip())
        elif self.pick and (not line or re.fullmatch("[0-9]+", line)):
            self.take(int(line or 1))
        elif self.pick:
            self.talk.add(_literal(line))
        else:
            self.answer(self.talk.say(_literal(line)))

    def answer(self, pieces: Generator[Chunk, None, None]) -> None:
        """Write an answer as it is made, and a line break behind it."""
        end: str | None = None
        with contextlib.closing(pieces):
            try:
                for piece in pieces:
                    self.writer.put(piece.text)
                    end = piece.end
                    if end is None and self.signals.received:
                        end = "stopped"
                        break
            except KeyboardInterrupt:
                end = "stopped"
        self.writer.put("\n")
        if end in ENDS:
            log(ENDS[end])

    def renew(self) -> None:
        """Offer anew in the mode of ``/pick``, if the text has changed."""
        if self.pick and self.talk.state is not self.offered:
            self.offer(*self.pick)

    def offer(self, n: int = OFFERS, length: int = OFFER_LENGTH) -> None:
        """Show the likeliest ways to go on, and what they go on from."""
        self.offers, self.offered, state = [], self, self.talk.state
        found = self.talk.continuations(n, length)
        self.pick, self.offers, self.offered = (n, length), found, state
        log(f"    {self.tail() or '(a new text)'}")
        for number, each in enumerate(found, start=1):
            log(f"{number:3} {each.probability:6.1%}  {one_line(each.text)}{'  (the text ends)' if each.ends else ''}")

    def take(self, number: int) -> None:
        """Add continuation ``number``."""
        if not 1 <= number <= len(self.offers):
            raise UsageError(f"No continuation {number} is offered: give the number of one, or /pick off to leave.")
        chosen = self.offers[number - 1]
        self.talk.take(chosen.tokens)
        if not self.terminal or chosen.ends:  # else the next offers show it
            self.writer.put(chosen.text + "\n")
        if chosen.ends:
            log(ENDS["eos"])

    def tail(self) -> str:
        """The end of the text so far, on one line."""
        text = self.talk.text
        return ("…" if len(text) > TAIL else "") + one_line(text[-TAIL:])

    def _again(self, _: str) -> None:
        self.answer(self.talk.again())

    def _undo(self, _: str) -> None:
        self.talk.undo()
        log(f"The text ends again in: {self.tail()}" if self.talk.text else "The text is at its beginning again.")

    def _new(self, _: str) -> None:
        self.talk.begin()

    def _pick(self, argument: str) -> None:
        if argument == OFF:
            self.pick = None
            return
        numbers = [read_number("pick", [word]) for word in argument.split()]
        if len(numbers) > 2:
            raise UsageError(f"/pick takes two numbers at most, not {argument!r}: of continuations, and of tokens.")
        self.offer(*numbers)

    def _settings(self, _: str) -> None:
        for line in self.dials.lines():
            log(line)
        if self.pick:
            log("/pick {} {}".format(*self.pick))
        log(f"The next answer is number {self.talk.number}.")

    def _save(self, argument: str) -> None:
        path, state = _path("save", argument), self.talk.state
        if state is None:
            raise UsageError("A text that has not begun has no state to save: write a line first.")
        self.talk.sampler.save_state(path, state)
        log(f"The state after {state.tokens.size:,} tokens is in {path}.")

    def _load(self, argument: str) -> None:
        self.talk.begin(self.talk.sampler.load_state(_path("load", argument)))
        log(f"The text ends in: {self.tail()}")

    def _quit(self, _: str) -> None:
        self.leaving = True

    def _help(self, _: str) -> None:
        width = min(shutil.get_terminal_size().columns, 120)
        for paragraph in HELP.strip().split("\n\n"):
            log(textwrap.fill(paragraph, width) + "\n")
        for heading, commands in (
            ("Commands", self.actions),
            ("Settings; one without a value is shown", self.settings),
        ):
            log(f"{heading}:\n")
            for name, command in commands.items():
                usage = f"/{name} {command.usage}".strip()
                lines = textwrap.wrap(command.help, max(width - USAGE, 30))
                log("\n".join(f"{head:{USAGE}}{line}" for head, line in zip([usage, *[""] * len(lines)], lines)))
            log("")


def one_line(text: str) -> str:
    """Text as it can be shown in a line of a list."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def _literal(line: str) -> str:
    """The text that a line stands for."""
    return unescaped(line.removeprefix("/") if line.startswith("//") else line)


def _path(command: str, argument: str) -> Path:
    """A file's name; no shell has seen to the tilde."""
    if not argument:
        raise UsageError(f"/{command} was given without a file: give its name, for example /{command} here.npz.")
    if "\0" in argument:
        raise UsageError(f"/{command} was given a name with a NUL character: give the name of a file without one.")
    return Path(os.path.expanduser(argument))


def read_lines(names: Iterable[str]) -> Iterator[str]:
    """Lines from standard input without their ends: edited at a prompt on a terminal, else exact UTF-8."""
    if sys.stdin is None:  # closed by the shell (`<&-`)
        return
    if not sys.stdin.isatty():
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:  # a notebook's or a test's has none
            reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
        for line in sys.stdin:
            yield re.sub(r"\r?\n$", "", line)
        return
    complete([f"/{name} " for name in names])
    while True:
        try:
            yield ask()
        except EOFError:
            log("")
            return
        except KeyboardInterrupt:
            log("\n(/quit or Ctrl-D leaves.)")


def ask() -> str:
    """A line from the terminal; the prompt stays out of an output that goes elsewhere."""
    if not sys.stdout.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    return input(PROMPT if sys.stdout.isatty() else "")


def complete(names: list[str]) -> None:
    """Edit lines by readline where there is one, with the names of commands behind the tabulator."""
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer_delims("")
    readline.set_completer(lambda text, n: [*(name for name in names if text and name.startswith(text)), None][n])
    other = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if other else "tab: complete")


def interact(talk: ChatSession, config: SampleConfig, flags: Mapping[str, Any], first: str) -> None:
    """Talk until the lines end. ``flags`` are the values of the transforms' flags, ``first`` is text to begin with."""
    session = Session(talk, flags, raw=config.raw)
    tokenizer = talk.sampler.tokenizer
    log(
        f"{talk.sampler.path}: {tokenizer.kind} level, vocabulary of {tokenizer.vocab_size:,}. "
        "Type text to continue, or /help."
    )
    session.run(read_lines([*session.actions, *session.settings]), first or None)
