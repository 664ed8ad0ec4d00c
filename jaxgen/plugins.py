"""Plugins: files and modules of the user that define cells, blocks, tokenizers, logit transforms or tasks.

The name ``mycells:MyCell`` stands for the class ``MyCell`` of the plugin ``mycells`` in every setting that chooses from
a registry. A plugin may also fill the registries itself, as in ``jaxgen.CELLS["mine"] = MyCell``.

Only ``load_plugin`` imports code, and only what its caller names. The plugins that a run records in ``config.json`` are
compared with those that are loaded; they never choose what is imported.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from flax import linen as nn
from pydantic import Field

from jaxgen.cells import CELLS, Cell, LinearCell
from jaxgen.data.batches import BATCHES
from jaxgen.errors import CheckpointError, JaxgenWarning, UsageError, check_kind, choose
from jaxgen.fsutil import StrictModel, file_sha256, load_strict, malformed
from jaxgen.models.attention import ATTENTIONS
from jaxgen.models.blocks import BLOCKS
from jaxgen.models.classifier import POOLINGS
from jaxgen.runs.config import TrainConfig
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.tasks.base import TaskData
from jaxgen.tasks.registry import DATA, TASKS
from jaxgen.tokenizers import TOKENIZERS, Tokenizer
from jaxgen.training.averaging import AVERAGES
from jaxgen.training.optimizer import OPTIMIZERS
from jaxgen.training.schedules import SCHEDULES

#: The registries that a plugin may fill, each with the setting that chooses from it.
REGISTRIES: tuple[tuple[str, MutableMapping[str, Any]], ...] = (
    ("attention", ATTENTIONS),
    ("average", AVERAGES),
    ("block", BLOCKS),
    ("cell", CELLS),
    ("layout", BATCHES),
    ("level", TOKENIZERS),
    ("optimizer", OPTIMIZERS),
    ("pooling", POOLINGS),
    ("schedule", SCHEDULES),
    ("task", DATA),
    ("task", TASKS),
    ("transform", TRANSFORMS),
)
#: A file is imported as a module of this name with its stem, so that it never replaces a module of Python.
FILE_MODULE = "jaxgen_plugin_"


class Record(StrictModel):
    """What a run records of a plugin: a file's name or a module's, and the digest of its source."""

    name: Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    version: str | None = None


@dataclass(frozen=True)
class Plugin:
    """A plugin that is loaded."""

    source: str  # as it was given
    record: Record
    changed: str  # "refuse" or "accept" another digest than that of a run
    entries: frozenset[tuple[str, str]]  # settings and the names that the plugin adds to their registries


#: The loaded plugins by the name of their file or module.
LOADED: dict[str, Plugin] = {}


def load_plugin(source: str | os.PathLike[str], changed: str = "refuse") -> None:
    """Import a plugin, so that settings can name its classes; a file that is loaded again is executed again.

    Every class that the plugin defines and that follows the protocol of a cell, a block, a tokenizer, a logit
    transform or a task gets a name such as ``mycells:MyCell``.

    Args:
        source: A file ``mycells.py``, or the name of an installed module.
        changed: What to do if a run was trained with another version of the plugin: "refuse" or "accept".

    Raises:
        UsageError: The plugin cannot be loaded, or defines nothing that jaxgen can use.

    Example:
        >>> jaxgen.load_plugin("mycells.py")  # which defines the class MyCell
        >>> "mycells:MyCell" in jaxgen.CELLS
        True
    """
    choose(changed, ("accept", "refuse"), "value for --plugin-changed")
    source = os.fspath(check_kind("load_plugin", source, str | os.PathLike, "a file or the name of a module"))
    is_file = source.endswith(".py")
    prefix = Path(source).stem if is_file else source
    if not all(part.isidentifier() for part in ([prefix] if is_file else prefix.split("."))):
        raise UsageError(
            f"The plugin {source!r} cannot be loaded: give a file whose name is an identifier and ends in .py, such as "
            "mycells.py, or the name of an installed module."
        )
    name = Path(source).name if is_file else source
    if name in LOADED and is_file and Path(LOADED[name].source).resolve() != Path(source).resolve():
        raise UsageError(f"The plugins {LOADED[name].source} and {source} have the same name: rename one of them.")
    with _undone_on_error():
        for _, registry in REGISTRIES:
            for entry in [entry for entry in registry if entry.startswith(f"{prefix}:")]:
                del registry[entry]
        before = [dict(registry) for _, registry in REGISTRIES]
        module, record = _import_file(source) if is_file else _import_module(source)
        _register(module, prefix)
        entries = {
            (setting, entry)
            for (setting, registry), then in zip(REGISTRIES, before)
            for entry, value in registry.items()
            if then.get(entry) is not value or (":" not in entry and _is_from(value, module))
        }
        if not entries:
            raise UsageError(
                f"The plugin {source} defines nothing that jaxgen can use: no subclass of Cell, Tokenizer or TaskData "
                "with all methods, no block, no dataclass with `init` and `update`, and no entry of a registry."
            )
    LOADED[name] = Plugin(source, record, changed, frozenset(entries))


def used_plugins(config: TrainConfig) -> list[dict[str, Any]]:
    """What ``config.json`` records of plugins: those that are loaded and have an entry that the settings name."""
    return [plugin.record.model_dump(exclude_none=True) for plugin in _used(config.task, config.model_dump())]


def plugins_of_transforms(transforms: Iterable[object]) -> list[dict[str, Any]]:
    """As ``used_plugins``, of logit transforms."""
    given = {("transform", name) for name, kind in TRANSFORMS.items() if kind in map(type, transforms)}
    return [plugin.record.model_dump(exclude_none=True) for plugin in LOADED.values() if plugin.entries & given]


def check_plugins(saved: Mapping[str, Any], run: object) -> None:
    """Check that the plugins which a run records, and no others, define what it uses. Nothing is imported.

    Args:
        saved: The content of ``config.json``.
        run: The run, for messages.

    Raises:
        UsageError: A recorded plugin is not loaded.
        CheckpointError: A plugin has another digest or replaces what the run used, and was loaded without
            ``changed="accept"``; or the record is malformed.
    """
    recorded = saved["resolved"].get("plugins", [])
    if not isinstance(recorded, list):
        raise malformed("list of plugins", f"it is a {type(recorded).__name__}")
    records = [load_strict(Record, value, "list of plugins") for value in recorded]
    check_records(records, f"the run {run}")
    for plugin in _used(saved["task"], saved["config"]):
        if plugin.record.name not in [then.name for then in records]:
            _refuse(
                plugin,
                f"The run {run} was trained without the plugin {plugin.source}, which replaces a part of its model or "
                "of its task. Leave out the plugin",
            )


def check_records(records: Iterable[Record], user: str) -> None:
    """Check that recorded plugins are loaded, in the version of then. Raises as ``check_plugins``.

    ``user`` is what needs them, such as ``"the run runs/language-1"``.
    """
    for then in records:
        plugin = LOADED.get(then.name)
        if plugin is None:
            what = "the path of this file" if then.name.endswith(".py") else "the name of this module"
            raise UsageError(
                f"{user[0].upper()}{user[1:]} needs the plugin {then.name} (sha256 {_short(then)}), and never chooses "
                f"what is imported: if you trust it, give {what} with --plugin FILE."
            )
        if plugin.record.sha256 != then.sha256:
            _refuse(
                plugin,
                f"The plugin {plugin.source} of {user} has changed: its sha256 was {_short(then)} and is "
                f"{_short(plugin.record)}. Bring back the version of then",
            )


def _used(task: object, settings: Mapping[str, Any]) -> list[Plugin]:
    """The loaded plugins with an entry that the settings name."""
    given = {("task", task), *((setting, settings.get(setting)) for setting, _ in REGISTRIES)}
    if isinstance(pattern := settings.get("layers_pattern"), str):
        given |= {("cell", name.strip()) for name in pattern.split(",")}
    return [plugin for plugin in LOADED.values() if plugin.entries & given]


def _refuse(plugin: Plugin, problem: str) -> None:
    """Raise ``CheckpointError`` with the problem and its remedy, or warn if changes of the plugin are accepted."""
    if plugin.changed == "refuse":
        raise CheckpointError(f"{problem}, or give --plugin-changed accept.")
    warnings.warn(JaxgenWarning(f"WARNING: {problem.rpartition('. ')[0]}. That was accepted."), stacklevel=3)


def plugin_flags(saved: list[dict[str, Any]]) -> str:
    """The flags, each after a space, that load the plugins recorded for a run, for a shell."""
    return "".join(f" --plugin {shlex.quote(LOADED[each['name']].source)}" for each in saved)


def _short(record: Record) -> str:
    version = "" if record.version is None else f", version {record.version}"
    return f"{record.sha256[:12]}…{version}"


@contextmanager
def _undone_on_error() -> Iterator[None]:
    """The registries are as before if the block raises."""
    before = [dict(registry) for _, registry in REGISTRIES]
    try:
        yield
    except BaseException:
        for (_, registry), then in zip(REGISTRIES, before):
            registry.clear()
            registry.update(then)
        raise


# --- importing


class _Source(importlib.abc.ExecutionLoader):
    """Runs exactly the bytes whose digest is recorded: no compiled file is read or written."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path, self.data = path, data

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.data)


def _import_file(source: str) -> tuple[ModuleType, Record]:
    """Import a file by its path; the search path of modules has no part in it."""
    path = Path(source).absolute()
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise OSError(None, "it is not a regular file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The plugin {source} cannot be read: {reason}. Check the path.") from None
    spec = importlib.util.spec_from_file_location(FILE_MODULE + path.stem, path, loader=_Source(str(path), data))
    assert spec is not None
    module, former = importlib.util.module_from_spec(spec), sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    try:
        _run(lambda: _Source(str(path), data).exec_module(module), source, str(path))
    except BaseException:
        del sys.modules[spec.name]
        sys.modules |= {} if former is None else {spec.name: former}
        raise
    return module, Record(name=path.name, sha256=hashlib.sha256(data).hexdigest())


def _import_module(name: str) -> tuple[ModuleType, Record]:
    """Import an installed module; its digest is that of its own source file."""
    module: ModuleType = _run(lambda: importlib.import_module(name), name)
    if not getattr(module, "__file__", None):
        raise UsageError(f"The plugin {name} has no source file of its own: name a module that has one.")
    version = None
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(name.partition(".")[0])
    return module, Record(name=name, sha256=file_sha256(Path(str(module.__file__))), version=version)


def _run(execute: Callable[[], Any], source: str, file: str | None = None) -> Any:
    """Import a module. What it prints goes to standard error; an exception becomes a ``UsageError`` with the place."""
    try:
        with redirect_stdout(sys.stderr):
            return execute()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, or one of its own
        if isinstance(error, ModuleNotFoundError) and file is None and f"{source}.".startswith(f"{error.name}."):
            raise UsageError(
                f"There is no installed module {source}: give its name, or the path of a file that ends in .py."
            ) from None
        place = _place(error, file)
        raise UsageError(f"The plugin {source} cannot be loaded: {place}: {_first_line(error)}. Correct it.") from error


def _place(error: BaseException, file: str | None) -> str:
    """The file and line that raised ``error``: the last line in ``file``, or the last of all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.exists(frame.filename)]
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f"{inside[-1].filename}, line {inside[-1].lineno}"


def _first_line(error: BaseException) -> str:
    return ": ".join([type(error).__name__, *(line.rstrip(".") for line in str(error).splitlines()[:1])])


def failure(error: Exception) -> str:
    """What failed in a command with plugins, as a sentence with the last line of a plugin that ran."""
    files = [str(getattr(module, "__file__", "")) for module in map(_module, LOADED.values())]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if frames:
        source = [*LOADED.values()][files.index(frames[-1].filename)].source
        place = f"{frames[-1].filename}, line {frames[-1].lineno}"
        return f"The plugin {source} failed: {place}: {_first_line(error)}. Correct it."
    sources = ", ".join(plugin.source for plugin in LOADED.values())
    return f"The command failed with the plugin {sources}: {_first_line(error)}. Check what its classes return."


def _module(plugin: Plugin) -> ModuleType | None:
    name = plugin.record.name
    return sys.modules.get(FILE_MODULE + name.removesuffix(".py") if name.endswith(".py") else name)


# --- protocols


def _is_from(value: Any, module: ModuleType) -> bool:
    """Whether ``module``, or a part of it if it is a package, defines a class or a function."""
    return f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}.")


def _register(module: ModuleType, prefix: str) -> None:
    """Enter the classes that a plugin defines into the registries whose protocols they follow."""
    for attribute, value in list(vars(module).items()):
        if isinstance(value, type) and _is_from(value, module) and not attribute.startswith("_"):
            for follows, registry in PROTOCOLS:
                if follows(value):
                    registry[f"{prefix}:{attribute}"] = value
    for name in [name for name in (*TOKENIZERS, *DATA) if name.startswith(f"{prefix}:")]:
        # Saved vocabularies and runs are read by this name.
        field, own = ("kind", TOKENIZERS[name].kind) if name in TOKENIZERS else ("task", DATA[name].Config.task)
        if own != name:
            what = "class" if field == "kind" else "settings"
            raise UsageError(f"{name} has the {field} {own!r}: write {field} = {name!r} in its {what}.")
        if name in DATA:
            TASKS[name] = DATA[name].Objective


def _is_cell(value: type) -> bool:
    def has(*names: str) -> bool:
        return any(getattr(value, name) is not getattr(base, name) for name in names)

    base: type = Cell if issubclass(value, Cell) else nn.RNNCellBase
    if issubclass(value, LinearCell):
        return has("project", "setup") and value.coefficients is not LinearCell.coefficients
    if base is Cell:
        return has("project", "setup") and has("weights") and has("pointwise", "step", "forward_with_residuals")
    return issubclass(value, base) and has("__call__") and has("initialize_carry")


def _is_block(value: type) -> bool:
    if not issubclass(value, nn.Module) or issubclass(value, nn.RNNCellBase):
        return False
    methods = ("initialize_carry", "cell_state", "start", "clamp_state")
    given = {field.name for field in fields(value)}
    return {"cell", "features", "layer", "layers"} <= given and all(hasattr(value, name) for name in methods)


def _is_transform(value: type) -> bool:
    has_both = all(callable(getattr(value, name, None)) for name in ("init", "update"))
    return is_dataclass(value) and bool(fields(value)) and has_both and not issubclass(value, nn.Module)


def _is_concrete(value: type, base: type) -> bool:
    return issubclass(value, base) and not inspect.isabstract(value)


#: What makes a class of a plugin an entry of a registry.
PROTOCOLS: tuple[tuple[Callable[[type], bool], MutableMapping[str, Any]], ...] = (
    (_is_cell, CELLS),
    (_is_block, BLOCKS),
    (lambda value: _is_concrete(value, Tokenizer), TOKENIZERS),
    (lambda value: _is_concrete(value, TaskData) and hasattr(value, "Objective"), DATA),
    (_is_transform, TRANSFORMS),
)
