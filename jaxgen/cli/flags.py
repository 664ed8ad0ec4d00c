"""Command-line flags made from pydantic settings, and rules for flags that exclude or need each other."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import run_command
from jaxgen.cli.help import Flag, Help, as_typed, type_parts
from jaxgen.errors import UsageError, choose, flag_of, near_name
from jaxgen.runs.groups import Group, groups_of

Config = TypeVar("Config", bound=BaseModel)


class CommandConfig(BaseModel):
    """Base of the flags of commands. The docstring of a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(CommandConfig):
    """Flags of the commands that use a language model."""

    in_model: ClassVar[Group] = Group("Model")
    run: str | None = None
    """Folder of the run, or pretrained:shakespeare, which comes with jaxgen. Default: the newest in runs/."""
    label: tuple[str, ...] = ()
    """The label of the texts (for a run trained with --label-column), or several with weights, between which the model
    interpolates: Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """The numbers of the texts, one for each of the --feature-columns that the run was trained with."""


#: ``run_command`` and ``parse`` answer some of these, and ``load_plugins`` reads the others.
COMMON = (
    Flag(
        "plugin",
        str | None,
        None,
        "Python file or installed module with cells, blocks, tokenizers, logit transforms or tasks of your own, as in "
        "mycells:MyCell for the class MyCell of mycells.py; may be repeated. The environment variable JAXGEN_PLUGINS "
        "can name more, separated as in PATH.",
        "FILE_OR_MODULE",
        group="General",
    ),
    Flag(
        "plugin_changed",
        str | None,
        None,
        "What to do if a run was trained with another version of a plugin: refuse (the default) or accept it.",
        group="General",
        choices=("refuse", "accept"),
    ),
    Flag("version", bool, False, "Show the version of jaxgen.", negatable=False, group="General"),
    Flag("help", bool, False, "Show the flags, or the most used of many.", negatable=False, group="General"),
    Flag("help_all", bool, False, "Show all flags.", negatable=False, group="General"),
)


#: The arguments of the commands that show one run.
SHOW_RUN = (
    Flag("run", str | None, None, "Folder of the run. Default: the newest.", "[RUN]", positional=True),
    Flag("json", bool, False, "Write one JSON object.", negatable=False),
)


def load_plugins(args: Sequence[str]) -> list[str]:
    """Load what ``--plugin`` and ``JAXGEN_PLUGINS`` name; returns ``args`` without the flags of plugins.

    Raises:
        UsageError: A plugin cannot be loaded.
    """
    rest: list[str] = []
    words, changed = list(args), flag_value(args, "--plugin-changed")
    plugins = [name for name in os.environ.get("JAXGEN_PLUGINS", "").split(os.pathsep) if name]
    while words and words[0] != "--":
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if _dashed(flag) not in ("--plugin", "--plugin-changed"):
            rest.append(word)
            continue
        if not equals and (not words or _is_flag(words[0])):
            raise UsageError(f"{_dashed(flag)} was given without a value: give one, or leave it out.")
        value = value if equals else words.pop(0)
        plugins += [value] if flag == "--plugin" else []
    if plugins:
        from jaxgen.plugins import load_plugin

        for plugin in dict.fromkeys(plugins):
            load_plugin(plugin, "refuse" if changed is None else changed)
    elif changed is not None:
        raise UsageError("--plugin-changed is about plugins: give --plugin too, or leave it out.")
    return [*rest, *words]


@dataclass(frozen=True)
class Command:
    """A command: a function of its arguments that returns the exit code. Plugins are loaded before it works.

    Args:
        work: Parses the arguments and does what they ask for. It raises ``JaxgenError`` for what the user can correct.
        text_only: Standard output is data (see ``run_command``).
    """

    work: Callable[[list[str]], None]
    text_only: bool = False

    def __call__(self, args: Sequence[str] | None = None) -> int:
        return run_command(lambda args: self.work(load_plugins(args)), args, text_only=self.text_only)


def parse(
    kind: type[Config],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    extra: Sequence[Flag] = (),
    default: Config | None = None,
    names: Mapping[str, Iterable[str]] = {},
    common: Sequence[str] = (),
) -> tuple[Config, dict[str, Any]]:
    """Parse ``args`` into settings of the class ``kind``.

    Args:
        kind: The settings; each field is a flag, its docstring the help text.
        args: The command line.
        prog: The command, as the help shows it.
        description: What stands above the flags in the help.
        extra: More flags.
        default: Values that flags override. Default: those of ``kind``.
        names: Setting -> the registry whose entries it can name.
        common: The flags that ``--help`` shows. Default: those of ``kind.common``, if it has them, else all.

    Returns:
        The settings, and the values of ``extra`` by name.

    Raises:
        UsageError: A flag does not exist, or a value is not allowed. The message names the flag.
        Help: It was asked for.
    """
    from jaxgen.runs.config import validate

    flags = [*setting_flags(kind, default, names), *extra, *COMMON]
    if asks_help(args):
        order = {group: place for place, group in enumerate(groups_of(kind))}
        flags.sort(key=lambda flag: order.get(flag.group, len(order)))
        raise Help(prog, description, flags, common or getattr(kind, "common", ()), is_written(args, "--help-all"))
    written = read_flags(args, flags, prog)
    given = {} if default is None else {name: getattr(default, name) for name in default.model_fields_set}
    config = validate(kind, {**given, **{name: written[name] for name in kind.model_fields if name in written}})
    for name, known in names.items():
        chosen = getattr(config, name, None)
        for each in chosen if isinstance(chosen, tuple) else () if chosen is None else (chosen,):
            choose(each, known, name)
    return config, {flag.name: written.get(flag.name, flag.default) for flag in extra}


def asks_help(args: Sequence[str]) -> bool:
    """Whether the command line asks for help instead of work."""
    return not {"-h", "--help", "--help-all"}.isdisjoint(itertools.takewhile(lambda word: word != "--", args))


def setting_flags(
    kind: type[BaseModel], default: BaseModel | None = None, names: Mapping[str, Iterable[str]] = {}
) -> Iterator[Flag]:
    """The flags of a settings class, by groups; the arguments are those of ``parse``."""
    for group, members in groups_of(kind).items():
        for name in members:
            field = kind.model_fields[name]
            value = field.get_default(call_default_factory=True) if default is None else getattr(default, name)
            choices = _choices(field.annotation) or list(names.get(name, ()))
            yield Flag(name, field.annotation, value, field.description or "", group=group, choices=choices)


def _choices(annotation: Any) -> list[str]:
    """The strings of a ``Literal``, optional or not."""
    found = []
    for part in get_args(annotation):
        found += [part] if isinstance(part, str) else _choices(part)
    return found


def read_flags(args: Sequence[str], flags: Sequence[Flag], prog: str = "jaxgen") -> dict[str, Any]:
    """The values of those flags that are in the command line, by name.

    A flag that takes several values may be given several times.

    Raises:
        UsageError: A flag does not exist, has no value, is no number where one is needed, or has two values.
    """
    named = {_dashed(flag.written): flag for flag in flags if not flag.positional}
    negated = {flag.opposite: flag for flag in named.values() if flag.opposite is not None}
    values: dict[str, list[str]] = {}
    switches: dict[str, bool] = {}
    once: dict[str, str] = {}
    words, bare = list(args), []
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            bare.append(word)
            continue
        if word == "--":
            bare += words
            break
        written, equals, value = word.partition("=")
        spelled = _dashed(written)
        flag = named.get(spelled) or negated.get(spelled)
        if flag is None:
            raise UsageError(_unknown(written, named, prog))
        if flag.is_switch:
            if equals:
                raise UsageError(f"{spelled} was given with the value {value!r}, but takes none: leave the value out.")
            _give_once(once, flag.written, spelled)
            switches[flag.name] = spelled in named
            continue
        several, given = not {tuple, dict}.isdisjoint(type_parts(flag.kind)), [value] if equals else []
        while words and not _is_flag(words[0]) and (several or not given):
            given.append(words.pop(0))
        if not given:
            raise UsageError(f"{spelled} was given without a value: give one, or leave it out.")
        if several:
            values.setdefault(flag.name, []).extend(given)
        else:
            _give_once(once, spelled, given[0])
            values[flag.name] = given
    for flag in flags:
        if flag.positional and bare:
            values[flag.name], bare = (bare, []) if tuple in type_parts(flag.kind) else (bare[:1], bare[1:])
    if bare:
        raise UsageError(f"{bare[0]!r} is the value of no flag: leave it out, or see {_help(prog)}.")
    return switches | {flag.name: _convert(flag, values[flag.name]) for flag in flags if flag.name in values}


def _unknown(flag: str, known: Iterable[str], prog: str) -> str:
    """The message for a flag that does not exist."""
    nearest = near_name(_dashed(flag), known)
    hint = f" Did you mean {nearest}?" if nearest else ""
    return f"There is no flag {flag}.{hint} {_help(prog)} shows all of them."


def _help(prog: str) -> str:
    """The command that shows the flags of the command ``prog``."""
    return as_typed(f"`{prog.partition(' [')[0]} --help-all`")


def _convert(flag: Flag, words: list[str]) -> Any:
    """The value of a flag. Its range is checked by pydantic afterwards, with our messages."""
    parts = type_parts(flag.kind)
    if dict in parts:
        options: dict[str, str] = {}
        if len(words) % 2:
            raise UsageError(f"{flag.written} got {words[-1]!r} without a value: give pairs of a name and a value.")
        for name, value in zip(words[::2], words[1::2]):
            _give_once(options, f"The option {name} of {flag.written}", value)
        return {name: _option(value, parts) for name, value in zip(words[::2], words[1::2])}
    number = None if str in parts else next((kind for kind in (int, float) if kind in parts), None)
    found = [word if number is None else read_number(flag.written[2:], [word], number) for word in words]
    return tuple(found) if tuple in parts else found[0]


def _option(word: str, parts: set[Any]) -> bool | float | str:
    """The value of an option: true or false where it may be, else a number, else the word."""
    if bool in parts and word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return float(word)
    except ValueError:
        return word


def _dashed(flag: str) -> str:
    """A flag in the one of its two spellings that has hyphens."""
    return flag.replace("_", "-")


def _is_flag(word: str) -> bool:
    """Whether the flag parser takes ``word`` for a flag, and not for a value of the flag before it."""
    number = word.lower() in ("-inf", "-infinity", "-nan")
    return word == "--" or (re.match(r"-+[^\W\d_]", word) is not None and not number)


def _give_once(seen: dict[str, str], what: str, value: str) -> None:
    """Record the value of ``what``. Raises ``UsageError`` if it has another one."""
    if seen.setdefault(what, value) != value:
        raise UsageError(f"{what} is given twice, as {seen[what]!r} and as {value!r}: give it once.")


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The value of ``flag`` in ``args``, read without parsing the rest. Raises ``UsageError`` for several values."""
    seen: dict[str, str] = {}
    for arg, following in zip(args, [*args[1:], None]):
        name, equals, given = arg.partition("=")
        value = given if equals else following
        if _dashed(name) == flag and value is not None:
            _give_once(seen, flag, value)
    return seen.get(flag)


def fill_value(args: Sequence[str], flag: str, value: str) -> list[str]:
    """``args`` with ``value`` after each ``flag`` that stands without one."""
    filled: list[str] = []
    for word, following in zip(args, [*args[1:], None]):
        filled += [word, value] if word == flag and (following is None or _is_flag(following)) else [word]
    return filled


def is_written(args: Sequence[str], flag: str) -> bool:
    """Whether ``flag`` occurs in ``args``."""
    return any(_dashed(arg.partition("=")[0]) == flag for arg in args)


def read_number(name: str, words: Sequence[str], kind: type = int) -> Any:
    """``words`` as a single number of type ``kind`` (int or float). Raises ``UsageError``, which names ``name``."""
    try:
        (word,) = words
        return kind(word)
    except ValueError:
        number = "whole number" if kind is int else "number"
        raise UsageError(f"--{name} is {' '.join(words)!r}: give a {number}.") from None


class Excludes(NamedTuple):
    """``flag`` cannot be given together with any of ``others``."""

    flag: str
    others: tuple[str, ...]
    because: str  # continues the sentence that begins with ``flag``


class Needs(NamedTuple):
    """``flag`` has no effect without one of ``others``."""

    flag: str
    others: tuple[str, ...]
    because: str


#: The rules of one command. A flag can be named with its value (``--state cold``).
Rules = Sequence[Excludes | Needs]


def check_rules(rules: Rules, given: set[str]) -> None:
    """Raise ``UsageError`` for the first rule that the flags ``given`` break."""
    for rule in rules:
        if rule.flag not in given:
            continue
        if isinstance(rule, Needs) and not given.intersection(rule.others):
            raise UsageError(
                f"{rule.flag} {rule.because}: give {' or '.join(rule.others)} too, or leave {rule.flag} out."
            )
        if isinstance(rule, Excludes) and (clash := next((flag for flag in rule.others if flag in given), None)):
            raise UsageError(f"{rule.flag} {rule.because} and cannot be given with {clash}: leave one of them out.")


def check_flags(
    rules: Rules,
    config: BaseModel,
    args: Sequence[str],
    extra: Mapping[str, object] = {},
    even_default: Iterable[str] = (),
    also: Iterable[str] = (),
) -> None:
    """Check the flags of a command.

    Args:
        rules: What they have to obey. A flag is given if its value is not the default; ``extra`` flags have the
            defaults false, empty and ``None``.
        config: The parsed settings.
        args: The command line.
        extra: The values of further flags.
        even_default: Flags that are also given when the command line gives them their default value.
        also: Other names of the rules that count as given.

    Raises:
        UsageError: A rule is broken.
    """
    given = {*also, *(flag for flag in even_default if is_written(args, flag))}
    fields = type(config).model_fields
    for name, value in {**dict(config), **extra}.items():
        flag = flag_of(name)
        if value not in (fields[name].default if name in fields else False, None, ()):
            given |= {flag, f"{flag} {value}"}
    check_rules(rules, given)
