"""The pages of the site that repeat code: every flag, every public name, and all parts that have a name.

``conf.py`` writes them to ``docs/generated`` at each build, so they cannot be out of date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from flax import linen as nn

from jaxgen import api, testing
from jaxgen.cells import Cell
from jaxgen.cli.flags import COMMON
from jaxgen.cli.main import COMMANDS, MODULES
from jaxgen.cli.train import DEFAULT_TASK
from jaxgen.data.datasets import BUILTIN, NAMED
from jaxgen.models.blocks import BLOCKS
from jaxgen.tasks.registry import DATA
from jaxgen.training.averaging import AVERAGES
from jaxgen.training.optimizer import OPTIMIZERS, SharedOptions
from jaxgen.training.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parent.parent

#: The sections of the reference of names, by the part of the package that defines them.
SECTIONS = {
    "model": "Train and use a model",
    "inference": "Sample, answer and score",
    "plots": "Pictures and matrices",
    "trainer": "Runs, step by step",
    "callbacks": "Callbacks",
    "tasks": "Settings and tasks",
    "cells": "Cells",
    "models": "Models",
    "training": "Training as pure functions",
    "sampling": "Decoding as pure functions",
    "data": "Batches",
    "tokenizers": "Tokenizers",
    "plugins": "Plugins",
    "runtime": "The process",
    "errors": "Errors",
}
#: The section of registries, which are dictionaries and know no module.
REGISTRIES = {
    "BLOCKS": "models",
    "CELLS": "cells",
    "AVERAGES": "training",
    "OPTIMIZERS": "training",
    "SCHEDULES": "training",
    "TASKS": "tasks",
    "TOKENIZERS": "tokenizers",
    "TRANSFORMS": "sampling",
}
TESTING = "jaxgen.testing"
#: Fields of blocks that models fill in.
GIVEN = ("cell", "dropout", "form", "layer", "layers", "locked")


def write_pages(folder: Path) -> None:
    """Write all generated pages; one that has not changed is left alone, so that Sphinx need not read it again."""
    folder.mkdir(exist_ok=True)
    pages = {"flags.md": flags_page(), "api.md": api_page(), "parts.md": parts_page(), **project_pages()}
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def project_pages() -> dict[str, str]:
    """Copies of pages beside ``docs``, with their links."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
    moved = {"](docs/": "](../", **{f"]({name}": f"]({name.lower()}" for name in texts}}
    for there, here in moved.items():
        texts = {name: text.replace(there, here) for name, text in texts.items()}
    return {name.lower(): text for name, text in texts.items()}


def list_notebooks(folder: Path) -> str:
    """The end of the page of tutorials: the table of the folder's README, and the notebooks for the navigation."""
    names = sorted(file.stem for file in folder.glob("*.ipynb"))
    if not names:
        return ""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    table = re.sub(r"\]\((?!http)", "](notebooks/", "\n".join(rows))
    entries = "\n".join(f"notebooks/{name}" for name in names)
    return f"\n{table}\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


# --- flags


class _Asked(BaseException):
    """Ends a command where it would parse its flags; no handler of errors catches it."""


def parsed_by(command: str, *args: str) -> dict[str, Any]:
    """The arguments with which ``jaxgen COMMAND ARGS`` calls the flag parser, and the class of its settings."""
    module: Any = import_module(f"jaxgen.cli.{MODULES.get(command, command)}")
    found: dict[str, Any] = {}

    def parse(kind: type, args: object, **asked: Any) -> None:
        found.update(kind=kind, **asked)
        raise _Asked

    with mock.patch.object(module, "parse", parse):
        try:
            (module.parse_args if command == "train" else module.main.work)([*args])
        except _Asked:
            return found
    raise AssertionError(f"jaxgen {command} did not parse its flags")


def flags_page() -> str:
    """Every flag of every command, with its values, default and meaning."""
    parts = [
        "# Flags",
        "Every command and its flags, from the definitions that the parser itself uses. In Python a flag is a setting "
        "with underscores: `--batch-size 16` is `batch_size=16`. `--help-all` shows the same in a terminal. "
        "[training.md](../training.md) and [sampling.md](../sampling.md) explain the most useful ones.",
    ]
    train = {task: parsed_by("train", task) for task in sorted(DATA, key=lambda task: task != DEFAULT_TASK)}
    shared = set.intersection(*({*asked["kind"].model_fields} for asked in train.values()))
    for task, asked in train.items():
        presets = [(f"`--preset {name}`", text) for name, (text, _) in asked["kind"].presets.items()]
        own = [name for name in asked["kind"].model_fields if name not in shared]
        parts += [f"## train.py {task}", _first_line(asked["kind"]), _table(("preset", ""), presets)]
        parts += [_flag_table(asked, own)]
    asked = train[DEFAULT_TASK]
    parts += ["## train.py: flags of every task", f"Defaults are those of `{DEFAULT_TASK}` without a preset."]
    parts += [_flag_table(asked, [name for name in asked["kind"].model_fields if name in shared], extra=True)]
    for command, about in COMMANDS.items():
        if command != "train":
            asked = parsed_by(command)
            about = re.sub(r"\s{2,}.*", "", about)
            parts += [f"## {asked['prog']}", f"{about[0].upper()}{about[1:]}."]
            settings = [] if command == "sweep" else [*asked["kind"].model_fields]  # a sweep has those of train.py
            parts += [_flag_table(asked, settings, extra=True)]
    common = [(f"`{_flag(each.name)}`", "", _text(each.help)) for each in COMMON]
    parts += [
        "## Flags of every command",
        _table(("flag", "default", ""), [("`--help`", "", "Show the help."), *common]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _flag_table(asked: Mapping[str, Any], names: Iterable[str], *, extra: bool = False) -> str:
    kind, known = asked["kind"], asked.get("names", {})
    rows = []
    for name in names:
        field = kind.model_fields[name]
        default = field.get_default(call_default_factory=True)
        values = [*known.get(name, ()), *_literals(field.annotation)]
        text = _text(field.description or "")
        text += f" One of {', '.join(f'`{value}`' for value in values)}." if values else ""
        rows.append((f"`{_flag(name)}`", _default(default), text))
    for flag in asked.get("extra", ()) if extra else ():
        name = flag.name.upper() if flag.positional else _flag(flag.name)
        rows.append((f"`{name}`", _default(flag.default), _text(flag.help)))
    return _table(("flag", "default", ""), rows)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(value: Any) -> str:
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{shown}`".replace("\n", "\\n")


def _literals(annotation: Any) -> list[str]:
    """The strings of a ``Literal``, optional or not."""
    return [
        value
        for part in getattr(annotation, "__args__", ())
        for value in ([part] if isinstance(part, str) else _literals(part))
    ]


# --- names


def api_page() -> str:
    """Every name of ``jaxgen.api``, in the section of the part that defines it."""
    parts = [
        "# Python API",
        "The names that `import jaxgen` offers, complete, and those of `jaxgen.testing`. Everything else in "
        "subpackages may change without notice. [python.md](../python.md) is the introduction.",
    ]
    found: dict[str, list[str]] = {}
    for name in sorted(name for name in vars(api) if not name.startswith("_")):
        value = getattr(api, name)
        module = REGISTRIES.get(name) or getattr(value, "__module__", f"jaxgen.{name}").split(".")[1]
        found.setdefault(module, []).append(name)
    for module in (*(each for each in SECTIONS if each in found), *sorted({*found} - {*SECTIONS})):
        parts.append(f"## {SECTIONS.get(module, module)}")
        parts += [_entry(name) for name in sorted(found[module], key=lambda name: name in REGISTRIES)]
    parts.append("## Checks of your own parts")
    names = [name for name, value in vars(testing).items() if getattr(value, "__module__", "").startswith(TESTING)]
    parts += [_directive(_auto(getattr(testing, name)), f"{TESTING}.{name}") for name in names]
    return "\n\n".join(parts) + "\n"


def _entry(name: str) -> str:
    value = getattr(api, name)
    if name in REGISTRIES:
        listed = f"### {name}\n\nA dictionary: " + ", ".join(f"`{key}`" for key in value) + ". [All parts](parts.md)."
        others = [kind for kind in value.values() if kind is not None and not hasattr(api, kind.__name__)]
        return "\n\n".join([listed, *(_directive(_auto(each), _path(each)) for each in others)])
    if inspect.ismodule(value):
        names = [each for each in vars(value) if not each.startswith("_") and not hasattr(api, each)]
        classes = [_directive("autoclass", f"jaxgen.{name}.{each}") for each in names]
        return "\n\n".join([_directive("automodule", f"jaxgen.{name}"), *classes])
    if inspect.isclass(value):
        # A Linen module and a class of settings inherit hundreds of names; only what is written in the class is shown.
        settings = hasattr(value, "model_fields")
        entry = _directive("autoclass", f"jaxgen.{name}", "" if settings else "\n   :members:")
        return entry + ("\n\nIts fields are the [flags](flags.md)." if settings else "")
    return _directive("autofunction", f"jaxgen.{name}")


def _auto(part: Any) -> str:
    return "autoclass" if inspect.isclass(part) else "autofunction"


def _path(kind: Any) -> str:
    """Where to import a class or function from: the package, if it offers it itself."""
    package = kind.__module__.rpartition(".")[0]
    offered = getattr(import_module(package), kind.__name__, None) is kind
    return f"{package if offered else kind.__module__}.{kind.__name__}"


def _directive(kind: str, name: str, options: str = "") -> str:
    return f"```{{eval-rst}}\n.. {kind}:: {name}{options}\n```"


# --- parts


def parts_page() -> str:
    """What the registries have: everything that a flag can name."""
    parts = [
        "# Parts by name",
        "What flags and `jaxgen.CELLS`, `BLOCKS`, `TOKENIZERS`, `TRANSFORMS` can name, with the options of each. "
        "[extending.md](../extending.md) adds to them.",
        "## Cells: `--cell`",
        _registry(api.CELLS),
        "## Blocks: `--block`",
        _registry(BLOCKS),
        "## Tokenizers: `--level`",
        _registry(api.TOKENIZERS),
        "## Logit transforms: flags of sample.py, in the order in which they are applied",
        _registry(api.TRANSFORMS),
        "## Optimizers: `--optimizer`",
        _registry(OPTIMIZERS),
        "Every optimizer has the options " + ", ".join(_options(SharedOptions)) + " too.",
        "## Schedules: `--schedule`",
        _registry(SCHEDULES),
        "## Averages of the weights: `--average`",
        _registry(AVERAGES),
        "## Built-in data: `--data`",
        "Made on the spot, without a download: " + ", ".join(f"`{name}`" for name in BUILTIN) + ".",
        "Downloaded once, with a checked digest: " + ", ".join(f"`{name}`" for name in NAMED) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _registry(entries: Mapping[str, Any]) -> str:
    rows = [(f"`{name}`", _first_line(value), ", ".join(_options(value))) for name, value in entries.items()]
    return _table(("name", "", "options"), rows)


def _options(kind: Any) -> Iterator[str]:
    """The options of a part: those of a tokenizer's training, the fields that only this part has, or the keyword-only
    arguments of a function."""
    if hasattr(kind, "OPTIONS"):
        yield from (f"`{name}`" for name in kind.OPTIONS)
    elif inspect.isclass(kind) and is_dataclass(kind):
        other = set()
        if issubclass(kind, nn.Module):
            other = {field.name for field in dataclass_fields(Cell)} | set(GIVEN)
        yield from (f"`{field.name}`" for field in dataclass_fields(kind) if field.name not in other)
    elif inspect.isfunction(kind):
        yield from (f"`{name}`" for name in kind.__kwdefaults__ or {})


# --- Markdown


def _first_line(value: Any) -> str:
    """The first sentence of the docstring of ``value``, as Markdown; of a cell whose docstring begins with equations,
    that of its module."""
    text = inspect.getdoc(value) or ""
    if "::" in text.partition("\n\n")[0] or not text:
        text = inspect.getdoc(inspect.getmodule(value)) or text if value is not None else "nothing around the cell"
    return _text(text.partition("\n\n")[0]).replace("::", ".")


def _text(text: str) -> str:
    """A docstring's sentence as Markdown: literals and flags as code; no signs that make HTML, math or a cell."""
    words = re.split(r"(``.*?``|`[^`]*`|(?<![\w-])--[a-z][a-z-]*)", " ".join(text.split()))
    shown = (
        f"`{word.strip('`')}`" if word.startswith(("`", "--")) else re.sub(r"([<*_\[\]])", r"\\\1", word)
        for word in words
    )
    return "".join(shown).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rows = [*rows]
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
