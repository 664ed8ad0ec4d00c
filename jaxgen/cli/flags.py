"""Command-line flags made from pydantic settings, and rules for flags that exclude or need each other."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from jaxgen.cli.common import escape_controls
from jaxgen.errors import UsageError, choose

Config = TypeVar("Config", bound=BaseModel)


class RunConfig(BaseModel):
    """Flags of the commands that use a language model. The docstring of a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str | None = None
    """Folder of the run, or pretrained:shakespeare, which comes with jaxgen. Default: the newest in runs/."""
    label: tuple[str, ...] = ()
    """The label of the texts (for a run trained with --label-column), or several with weights, between which the model
    interpolates: Sports:0.3 World:0.7. Default: the mean of the training texts."""
    features: tuple[float, ...] = ()
    """The numbers of the texts, one for each of the --feature-columns that the run was trained with."""


class ExtraFlag(NamedTuple):
    """A flag that is in no settings class."""

    name: str
    kind: Any  # its type
    default: Any
    help: str
    metavar: str | None = None
    positional: bool = False  # an argument without a name
    negatable: bool = True  # of type bool: ``--no-NAME`` takes it back

    @property
    def field(self) -> str:
        """The name as an identifier: a class of a plugin has a colon in its name."""
        return self.name.replace(":", "_")


#: ``run_command`` answers the first and ``load_plugins`` reads the others; here they are for the help.
COMMON = (
    ExtraFlag("version", bool, False, "Show the version of jaxgen.", negatable=False),
    ExtraFlag(
        "plugin",
        str | None,
        None,
        "Python file or installed module with cells, blocks, tokenizers, logit transforms or tasks of your own, as in "
        "mycells:MyCell for the class MyCell of mycells.py; may be repeated. The environment variable JAXGEN_PLUGINS "
        "can name more, separated as in PATH.",
        "FILE_OR_MODULE",
    ),
    ExtraFlag(
        "plugin_changed",
        str | None,
        None,
        "What to do if a run was trained with another version of a plugin: refuse (the default) or accept it.",
        "{refuse,accept}",
    ),
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


def parse(
    kind: type[Config],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    extra: Sequence[ExtraFlag] = (),
    default: Config | None = None,
    names: Mapping[str, Iterable[str]] = {},
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

    Returns:
        The settings, and the values of ``extra`` by name.

    Raises:
        UsageError: A value is not allowed. The message names the flag.
        SystemExit: A flag does not exist, or is not a number where one is needed (code 2); also after --help (0).
    """
    import tyro

    from jaxgen.runs.config import validate

    fields = kind.model_fields
    flags: list[Any] = [_flag(name, field, default, list(names.get(name, ()))) for name, field in fields.items()]
    for flag in (*extra, *COMMON):
        marks = [tyro.conf.arg(name=flag.name if ":" in flag.name else None, help=flag.help, metavar=flag.metavar)]
        marks += [tyro.conf.Positional] if flag.positional else []
        marks += [] if flag.negatable else [tyro.conf.FlagCreatePairsOff]
        flags.append((flag.field, Annotated[(flag.kind, *marks)], dataclasses.field(default=flag.default)))
    plain: Any = dataclasses.make_dataclass(kind.__name__, flags)
    values = [str(getattr(default, name)) for name in fields] if default is not None else []
    kinds = {name: field.annotation for name, field in fields.items()}
    rest, texts = collect_values(args, kinds | {flag.name: flag.kind for flag in extra if not flag.positional})
    with _escaped_output("".join([*map(str, args), *values])):
        parsed = tyro.cli(plain, args=rest, prog=prog, description=description, config=(tyro.conf.DisallowNone,))
    found = {**vars(parsed), **texts}
    for name in fields:
        if found[name] == {}:
            if is_written(args, written := _dashed(f"--{name}")):
                raise UsageError(f"{written} was given without a value: give names with values, or leave it out.")
            found[name] = _default(name, fields[name], default)
    given = {name: found[name] for name in fields}
    if default is not None:  # what is not given follows the preset
        unchanged = fields.keys() - default.model_fields_set
        given = {
            name: value for name, value in given.items() if name not in unchanged or value != getattr(default, name)
        }
    config = validate(kind, given)
    for name, known in names.items():
        if (chosen := getattr(config, name, None)) is not None:
            choose(chosen, known, name)
    return config, {flag.name: texts.get(flag.name, found[flag.field]) for flag in extra}


@contextlib.contextmanager
def _escaped_output(shown: str) -> Iterator[None]:
    """Escape what the flag parser writes, if the arguments and values that it may show contain control characters."""
    if escape_controls(shown) == shown:  # the usual case: the parser sees the terminal, its colours and its width
        yield
        return
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for written, file in ((out.getvalue(), sys.stdout), (err.getvalue(), sys.stderr)):
            if written and file is not None:
                with contextlib.suppress(OSError, ValueError):
                    print(escape_controls(written), end="", file=file, flush=True)


def _flag(name: str, field: FieldInfo, default: BaseModel | None, names: list[str]) -> tuple[str, Any, Any]:
    """One setting as a plain flag. Its values are checked by pydantic afterwards, with our messages."""
    import tyro

    kind: Any = field.annotation
    choices = _choices(kind)
    if choices:
        kind = str | None if type(None) in get_args(kind) else str
    value = _default(name, field, default)
    value = {} if isinstance(value, dict) else value  # tyro would make a flag of each entry
    metavar = "{" + ",".join(choices or names) + "}" if choices or names else None
    annotated = Annotated[kind, tyro.conf.arg(help=" ".join((field.description or "").split()), metavar=metavar)]
    return name, annotated, dataclasses.field(default_factory=lambda: value)


def _default(name: str, field: FieldInfo, default: BaseModel | None) -> Any:
    """The value of a setting that is not given."""
    return field.get_default(call_default_factory=True) if default is None else getattr(default, name)


def _choices(annotation: Any) -> list[str]:
    """The strings of a ``Literal``, optional or not."""
    found = []
    for part in get_args(annotation):
        found += [part] if isinstance(part, str) else _choices(part)
    return found


def collect_values(args: Sequence[str], kinds: Mapping[str, Any]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Collect the values of flags that are given several times.

    Args:
        args: The command line.
        kinds: Name -> type of the flags.

    Returns:
        The command line without the flags whose values are lists of texts, and these lists by name. Other flags of
        several values (numbers, options by name) are in the command line once, with all of their values.

    Raises:
        UsageError: A flag of one value, or an option, is given several times with different values.
    """
    parts = {name: _type_parts(kind) for name, kind in kinds.items()}
    names = {_dashed(f"--{name}"): name for name in kinds}
    names |= {_dashed(f"--no-{name}"): name for name, kind in kinds.items() if kind is bool}
    rest: list[list[str]] = []
    lists: dict[str, list[str]] = {}
    once: dict[str, str] = {}
    words = list(args)
    while words and words[0] != "--":
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = names.get(_dashed(flag))
        if name is None or kinds[name] is bool:
            rest.append([word])
            if name is not None:
                _give_once(once, _dashed(f"--{name}"), _dashed(flag))
            continue
        several, values = not parts[name].isdisjoint({tuple, dict}), [value] if equals else []
        while words and not _is_flag(words[0]) and (several or not values):
            values.append(words.pop(0))
        if not several:
            rest.append([word, *values[bool(equals) :]])
            for value in values:
                _give_once(once, _dashed(flag), value)
        elif name in lists:
            lists[name] += values
        else:
            lists[name] = [flag, *values]
            rest += [] if {tuple, str} <= parts[name] else [lists[name]]
    for name, (flag, *values) in lists.items():
        options: dict[str, str] = {}
        for key, value in zip(values[::2], values[1::2]) if dict in parts[name] else ():
            _give_once(options, f"The option {key} of {flag}", value)
    texts = {name: tuple(values) for name, (_, *values) in lists.items() if {tuple, str} <= parts[name]}
    return [*itertools.chain(*rest), *words], texts


def _dashed(flag: str) -> str:
    """A flag in the one of its two spellings that has hyphens."""
    return flag.replace("_", "-")


def _type_parts(kind: Any) -> set[Any]:
    """The types that a type consists of: ``tuple`` and ``str`` of ``tuple[str, ...] | None``, for example."""
    return {get_origin(kind) or kind}.union(*map(_type_parts, get_args(kind)))


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
        UsageError: A flag of several values has none, or a rule is broken.
    """
    given = {*also, *(flag for flag in even_default if is_written(args, flag))}
    fields = type(config).model_fields
    for name, value in {**dict(config), **extra}.items():
        flag = "--" + name.replace("_", "-")
        if value == () and is_written(args, flag):
            raise UsageError(f"{flag} was given without a value: give one or more, or leave it out.")
        if value not in (fields[name].default if name in fields else False, None, ()):
            given |= {flag, f"{flag} {value}"}
    check_rules(rules, given)
