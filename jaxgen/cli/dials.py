"""Settings that an interactive session turns on the fly: each is a command, and every flag of a transform is one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import say
from jaxgen.cli.conditions import read_weights
from jaxgen.cli.controls import (
    described_transforms,
    notes,
    read_number,
    read_temperature,
    read_transforms,
    read_words,
    transform_flags,
    unescaped,
)
from jaxgen.data.conditioning import Condition
from jaxgen.errors import UsageError, choose
from jaxgen.sampling import TRANSFORMS, Linear

if TYPE_CHECKING:
    from jaxgen.run.conversation import Conversation

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

    def __init__(self, talk: Conversation, flags: Mapping[str, Any]) -> None:
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
            say(self._line(name))
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
            say("(It says where a text begins: /new begins one.)")

    def _turn_transform(self, name: str, value: Any) -> None:
        values = self._values | {name: value}
        flags = {each.replace("-", "_"): value for each, value in values.items()}
        transforms = read_transforms(flags, self._talk.sampler.tokenizer.encode)
        self._talk.settings = replace(self._talk.settings, transforms=transforms)
        self._values = values
        for note in notes(self._talk.sampler, [each for each in transforms if type(each) is TRANSFORMS[name]]):
            say(note)

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
