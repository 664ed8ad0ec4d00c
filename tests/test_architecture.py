"""The architecture, checked in the source: one-way imports, a pure half without I/O, no unpickling."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import jaxgen
from jaxgen import api
from jaxgen.cells import CELLS
from jaxgen.sampling.transforms import TRANSFORMS
from jaxgen.tasks.language.config import BUILT_FROM, ONLY
from jaxgen.tasks.registry import BASELINES, DATA, TASKS, Registry, model_names
from jaxgen.tokenizers import TOKENIZERS
from jaxgen.training.averaging import AVERAGES
from jaxgen.training.optimizer import OPTIMIZERS
from jaxgen.training.schedules import SCHEDULES

PACKAGE = Path(__file__).parent.parent / "jaxgen"
#: The pure half: functions of arrays. Of the tasks, the modules of this name.
PURE = {"errors", "types", "cells", "models", "training", "sampling"}
PURE_MODULES = {"objective"}
#: All that the pure half may import from outside; what is missing here does I/O or is a dependency to think about.
OUTSIDE = {"jax", "flax", "optax", "numpy", "__future__", "collections", "contextlib", "dataclasses", "difflib"}
OUTSIDE |= {"functools", "itertools", "jaxtyping", "math", "numbers", "operator", "re", "shlex", "types", "typing"}
#: Calls by which a pure function would reach a file, the terminal or arbitrary code.
EFFECTS = {"open", "print", "breakpoint", "globals", "__import__", "import_module", "io_callback", "pure_callback"}
EFFECTS |= {"save", "savez", "savetxt", "load", "loadtxt", "tofile", "fromfile"}
UNSAFE = {"eval", "exec", "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
#: Functions that unpickle, or run what they read; the first only without ``allow_pickle=False``.
LOADERS = {"np.load", "numpy.load", "jnp.load", "jax.numpy.load"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle"}
#: The place of ``allow_pickle`` among the arguments of NumPy's functions.
PICKLE_PLACE = {"load": 2, "save": 2, "read_array": 1, "write_array": 3}
#: The last names of all these functions, and of what takes a name by its text.
CALLED = {name.rpartition(".")[2] for name in LOADERS | UNSAFE_CALLS} | {*PICKLE_PLACE, "getattr"}
#: Names with an underscore that are public all the same.
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}
IO_MODULES = [
    "os",
    "pathlib",
    "io",
    "json",
    "logging",
    "sys",
    "subprocess",
    "socket",
    "requests",
    "pooch",
    "rich",
]

Problems = Iterator[str]


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """Every module of jaxgen, by its dotted name (``jaxgen.cells.__init__`` for a package)."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("jaxgen", *path.relative_to(PACKAGE).with_suffix("").parts))
        found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """All nodes of a module: walking through it takes longer than what the checks ask of them."""
    return [*ast.walk(tree)]


def part(name: str) -> str:
    """``jaxgen.cells.lstm`` -> ``cells``; ``jaxgen`` itself is the part ``__init__``."""
    return [*name.split("."), "__init__"][1]


def called(node: ast.AST) -> str:
    """The last name of what a call calls: ``print`` in ``print()`` and in ``jax.debug.print()``."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", ""))


def imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import anywhere in a module, in functions and under TYPE_CHECKING too."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif called(node) in ("import_module", "__import__") and node.args:
            literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"
            yield node.lineno, str(literal)


def pure(name: str) -> bool:
    """Whether the module ``name`` belongs to the pure half."""
    return part(name) in PURE or (part(name) == "tasks" and name.rpartition(".")[2] in PURE_MODULES)


def outside_imports(name: str, tree: ast.Module) -> Problems:
    for line, target in imports(name, tree) if pure(name) else ():
        if target.split(".")[0] not in OUTSIDE | {"jaxgen"}:
            yield f"{name}:{line} imports {target}"


def effects(name: str, tree: ast.Module) -> Problems:
    for node in nodes(tree) if pure(name) else ():
        if called(node) in EFFECTS:
            yield f"{name}:{node.lineno} calls {called(node)}"


def unsafe(name: str, tree: ast.Module) -> Problems:
    for line, target in imports(name, tree):
        if UNSAFE & set(target.split(".")):
            yield f"{name}:{line} imports {target}"
    for node in nodes(tree):
        if isinstance(node, ast.Name) and node.id in {"eval", "exec", "__builtins__"}:
            yield f"{name}:{node.lineno} uses {node.id}"
        named = isinstance(node, ast.Attribute) and node.attr in UNSAFE
        if named and (node.attr not in {"eval", "exec"} or "builtins" in ast.unparse(node.value)):
            yield f"{name}:{node.lineno} uses {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            yield from (f"{name}:{node.lineno} {problem}" for problem in _unsafe_call(node))


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
    if keywords.get("allow_pickle", False) is not False:
        yield "allows pickle"
    if called(node) not in CALLED:
        return
    function = ast.unparse(node.func)
    if function in UNSAFE_CALLS:
        yield f"calls {function}"
    place = PICKLE_PLACE.get(called(node)) if function.split(".")[0] in ("np", "numpy", "jnp", "format") else None
    if place is not None and len(node.args) > place and ast.unparse(node.args[place]) != "False":
        yield "allows pickle"
    if function in LOADERS and "allow_pickle" not in keywords and len(node.args) <= PICKLE_PLACE["load"]:
        yield f"calls {function} without allow_pickle=False"
    if called(node) == "getattr" and node.args and "builtins" in ast.unparse(node.args[0]):
        yield "takes a name out of builtins"
    if called(node) == "getattr" and len(node.args) > 1 and getattr(node.args[1], "value", None) in UNSAFE:
        yield f"takes {ast.unparse(node.args[1])} by its name"


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def foreign_privates(name: str, tree: ast.Module) -> Problems:
    """Private names of other modules: what is imported, and what is asked of an object without being made here."""
    for line, target in imports(name, tree):
        if target.split(".")[0] == "jaxgen" and private(target.split(".")[-1]):
            yield f"{name}:{line} imports {target}"
    own = {node.name for node in nodes(tree) if isinstance(node, ast.FunctionDef)}
    found = [node for node in nodes(tree) if isinstance(node, ast.Attribute) and private(node.attr)]
    own |= {node.attr for node in found if isinstance(node.ctx, ast.Store)}
    for node in found:
        if node.attr not in own and ast.unparse(node.value) not in ("self", "cls", "super()"):
            yield f"{name}:{node.lineno} uses {ast.unparse(node)}"


def all_problems(check) -> list[str]:
    return [problem for name, tree in modules() for problem in check(name, tree)]


def test_the_pure_half_imports_jax_and_nothing_that_does_io():
    assert all_problems(outside_imports) == []


def test_the_pure_half_opens_prints_and_saves_nothing():
    assert all_problems(effects) == []


def test_nothing_is_unpickled_or_evaluated():
    assert all_problems(unsafe) == []


def test_no_module_uses_private_names_of_another():
    assert all_problems(foreign_privates) == []


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        *(
            (outside_imports, "jaxgen.tasks.language.objective", f"def f():\n    import {module}")
            for module in IO_MODULES
        ),
        (outside_imports, "jaxgen.training.bad", "from safetensors.numpy import load_file"),
        (outside_imports, "jaxgen.types", "from matplotlib import pyplot"),
        (outside_imports, "jaxgen.cells.bad", "import torch"),
        (effects, "jaxgen.sampling.bad", "def f(p):\n    with open(p) as file: return file.read()"),
        (effects, "jaxgen.sampling.bad", "print('hello')"),
        (effects, "jaxgen.models.bad", "import jax\njax.debug.print('{}', 1)"),
        (effects, "jaxgen.models.bad", "import numpy as np\nnp.save('a.npy', x)"),
        (unsafe, "jaxgen.runs.bad", "import pickle"),
        (unsafe, "jaxgen.runs.bad", "from pickle import loads"),
        (unsafe, "jaxgen.runs.bad", "eval('1')"),
        (unsafe, "jaxgen.runs.bad", "exec('a = 1')"),
        (unsafe, "jaxgen.runs.bad", "import yaml\nyaml.load(text)"),
        (unsafe, "jaxgen.runs.bad", "np.load(path, allow_pickle=True)"),
        (unsafe, "jaxgen.runs.bad", "np.load(path, allow_pickle=flag)"),
        (unsafe, "jaxgen.runs.bad", "np.load(path, None, True)"),
        (unsafe, "jaxgen.runs.bad", "np.load(path)"),
        (unsafe, "jaxgen.runs.bad", "np.lib.format.read_array(file, True)"),
        (unsafe, "jaxgen.runs.bad", "import builtins\nbuiltins.eval('1')"),
        (unsafe, "jaxgen.runs.bad", "getattr(builtins, name)('1')"),
        (unsafe, "jaxgen.runs.bad", "getattr(__import__('builtins'), name)('1')"),
        (unsafe, "jaxgen.runs.bad", "getattr(module, 'eval')('1')"),
        (unsafe, "jaxgen.runs.bad", "__builtins__['eval']('1')"),
        (unsafe, "jaxgen.runs.bad", "run = eval"),
        (unsafe, "jaxgen.runs.bad", "import marshal"),
        (unsafe, "jaxgen.runs.bad", "from shelve import open"),
        (unsafe, "jaxgen.runs.bad", "import joblib"),
        (unsafe, "jaxgen.runs.bad", "import numpy\nnumpy.lib.format.pickle.load(file)"),
        (unsafe, "jaxgen.runs.bad", "import torch\ntorch.load(path)"),
        (foreign_privates, "jaxgen.data.bad", "from jaxgen.data.tables import _rows"),
        (foreign_privates, "jaxgen.data.bad", "from .columns import _rows"),
        (foreign_privates, "jaxgen.models.bad", "class A:\n    def f(self): return self.model._embed(1)"),
    ],
)
def test_a_check_finds_what_it_forbids(check, name, source):
    assert len(list(check(name, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        (outside_imports, "jaxgen.models.good", "from flax import linen as nn\nimport jax.numpy as jnp"),
        (outside_imports, "jaxgen.data.good", "import os, io, json"),
        (effects, "jaxgen.cli.good", "print('hello')"),
        (unsafe, "jaxgen.runs.good", "np.load(path, allow_pickle=False)\nre.compile('a')\nself.eval(batch)"),
        (
            foreign_privates,
            "jaxgen.trainer.good",
            "class A:\n    def _f(self): return self._g\ndef h(a): return a._f()",
        ),
        (
            foreign_privates,
            "jaxgen.trainer.good",
            "def f(a): return a._replace(b=1)\nfrom jaxgen.version import __version__",
        ),
    ],
)
def test_a_check_lets_pass_what_it_allows(check, name, source):
    assert list(check(name, ast.parse(source))) == []


def test_every_module_begins_with_a_docstring():
    assert [name for name, tree in modules() if not ast.get_docstring(tree)] == []


@pytest.mark.parametrize("registry", [AVERAGES, CELLS, DATA, OPTIMIZERS, SCHEDULES, TASKS, TOKENIZERS, TRANSFORMS])
def test_a_registry_is_a_dictionary_of_names_as_one_types_them(registry):
    assert type(registry) in (dict, Registry)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in registry)


@pytest.mark.parametrize("registry", [AVERAGES, CELLS, DATA, OPTIMIZERS, SCHEDULES, TASKS])
def test_a_registry_is_in_alphabetical_order(registry):
    """But for the transforms, whose order is that in which they act (``tests/contracts/test_transforms.py``)."""
    assert list(registry) == sorted(registry)


def test_a_task_that_can_be_trained_has_its_data():
    assert set(TASKS) == set(DATA)
    assert set(BASELINES) <= set(TASKS)


def test_a_model_that_can_be_trained_has_its_settings():
    assert set(model_names("language")) == set(ONLY) == set(BUILT_FROM)
    for settings in (*ONLY.values(), *BUILT_FROM.values()):
        assert set(settings) <= set(DATA["language"].Config.model_fields)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The import contracts of pyproject.toml, checked for the package ``jaxgen`` in ``folder``."""
    pytest.importorskip("importlinter")
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    config = str(PACKAGE.parent / "pyproject.toml")
    return subprocess.run(
        [sys.executable, "-c", command, "--config", config, "--no-cache"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
    )


@pytest.mark.runs
def test_imports_go_one_way_and_in_no_circle():
    result = lint_imports(PACKAGE.parent)
    assert result.returncode == 0, result.stdout


@pytest.mark.runs
def test_the_import_contracts_see_imports_in_functions_under_type_checking_and_in_circles(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jaxgen", ignore=shutil.ignore_patterns("__pycache__"))
    for module, line in {
        "data/batches.py": "def late():\n    import jaxgen.tasks.base\n",
        "sampling/beam.py": "import typing\nif typing.TYPE_CHECKING:\n    import jaxgen.tokenizers.base\n",
        "runs/config.py": "import jaxgen.runs.config\n",
    }.items():
        with open(tmp_path / "jaxgen" / module, "a") as file:
            file.write(f"\n{line}")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout
    assert result.stdout.count("BROKEN") == 3


AFTER_IMPORT = """
import sys
import jaxgen
if "jax" in sys.modules:
    print("imports JAX before it is used")
jaxgen.LSTM
for name in ("torch", "tokenizers", "tensorboardX", "matplotlib", "orbax"):
    if name in sys.modules:
        print("imports", name)
import jax
jax.config.update("jax_num_cpu_devices", 2)  # raises once a backend has started
print(jax.device_count(), "devices")
"""


@pytest.mark.runs
def test_importing_jaxgen_starts_no_backend_and_loads_none_of_the_heavy_libraries():
    result = subprocess.run(
        [sys.executable, "-c", AFTER_IMPORT],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PACKAGE.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert (result.stdout, result.stderr) == ("2 devices\n", "")


@pytest.mark.runs
def test_the_pure_half_loads_nothing_of_the_host_half():
    """In a fresh process: neither the host half of jaxgen nor the libraries that it is made of."""
    modules = {"jaxgen.training", "jaxgen.sampling", "jaxgen.tasks.language.objective"}
    source = f"import sys, {', '.join(sorted(modules))}\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent, check=True
    )
    loaded = result.stdout.split()
    host = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - PURE - {"__init__", "tasks", "version"}
    assert modules <= {*loaded}
    assert [name for name in loaded if name.startswith("jaxgen.") and name.split(".")[1] in host] == []
    assert [name for name in loaded if name.startswith("jaxgen.tasks.") and name.endswith(".data")] == []
    assert {"PIL", "matplotlib", "pooch", "pydantic", "safetensors", "tokenizers"}.isdisjoint(loaded)


def test_the_public_names_are_those_of_the_api():
    assert {"LSTM", "Sampler", "start"} <= set(jaxgen.__all__) <= set(dir(jaxgen))
    assert all(getattr(jaxgen, name) is getattr(api, name) for name in [*jaxgen.__all__, "__version__"])
    assert jaxgen.cells.CELLS is CELLS
    assert set(dir(jaxgen)) == {*jaxgen.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'import_modules'"):
        jaxgen.import_modules  # noqa: B018


@pytest.mark.parametrize(
    ("name", "right"),
    [("sample", "load"), ("fit", "train"), ("predict", "load"), ("LanguageConfg", "LanguageConfig")],
)
def test_a_name_that_the_api_does_not_have_names_the_right_call(name, right):
    with pytest.raises(AttributeError, match=f"use jaxgen.{right}"):
        getattr(jaxgen, name)
    assert not hasattr(jaxgen, name)
