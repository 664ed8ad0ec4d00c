"""Plugins: what is imported and registered, what is refused, and that a run never causes an import."""

from __future__ import annotations

import hashlib
import json
import py_compile
import sys
from importlib import import_module
from pathlib import Path

import jax
import pytest
from builders import write

import jaxgen
from jaxgen import plugins
from jaxgen.cli.flags import load_plugins
from jaxgen.cli.main import COMMANDS, MODULES
from jaxgen.errors import CheckpointError, JaxgenWarning, UsageError, choose
from jaxgen.inference.loading import LoadedRun
from jaxgen.plugins import LOADED, REGISTRIES, check_plugins, load_plugin, plugin_flags, used_plugins
from jaxgen.runs.config import with_digest
from jaxgen.tasks.language.config import LanguageConfig

CELL = "from jaxgen.cells.elman import Elman\n\nclass Mine(Elman):\n    pass\n"
ALL = '''
from __future__ import annotations  # dataclasses look their module up
from dataclasses import dataclass
from typing import ClassVar

from flax import linen as nn

from jaxgen import CELLS, Cell, ClassifyConfig, LSTM
from jaxgen.models.blocks import ResidualBlock
from jaxgen.tasks.classify.data import ClassifyData
from jaxgen.tokenizers import ByteTokenizer

class Mine(LSTM):
    pass

class Block(ResidualBlock):
    pass

class NoBlock(nn.Module):
    features: int

class Foreign(nn.RNNCellBase):
    def __call__(self, carry, x):
        return carry, x
    def initialize_carry(self, rng, input_shape):
        return rng
    @property
    def num_feature_axes(self):
        return 1

@dataclass(frozen=True)
class Keep:
    n: int
    def init(self, context):
        return self.n
    @staticmethod
    def update(state, logits, last):
        return state, logits

class Bytes(ByteTokenizer):
    kind = "mine:Bytes"

class EchoConfig(ClassifyConfig):
    """Answers with a label."""
    task: ClassVar[str] = "mine:Echo"

class Echo(ClassifyData):
    Config = EchoConfig

class Unfinished(Cell):  # no equations
    pass

class _Hidden(LSTM):
    pass

@dataclass(frozen=True)
class Options:
    n: int

def helper():
    return None

CELLS["flax-gru"] = nn.GRUCell
'''


@pytest.fixture(autouse=True)
def here(without_plugins, tmp_path, monkeypatch):
    """Every test runs in a folder of its own, and loading changes no search path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXGEN_PLUGINS", raising=False)
    path = list(sys.path)
    yield
    assert sys.path == path


def added() -> set[str]:
    return {name for _, registry in REGISTRIES for name in registry if ":" in name}


def test_the_classes_that_follow_a_protocol_get_names_in_its_registry():
    load_plugin(write("mine.py", ALL))
    assert added() == {"mine:Mine", "mine:Block", "mine:Foreign", "mine:Keep", "mine:Bytes", "mine:Echo"}
    assert {"mine:Mine", "mine:Foreign", "flax-gru"} <= set(jaxgen.CELLS)
    assert set(jaxgen.TASKS) == set(plugins.DATA) >= {"mine:Echo"}
    assert jaxgen.TRANSFORMS["mine:Keep"](3).n == 3
    for wrong in ("Unfinished", "_Hidden", "helper", "LSTM", "Options", "os", "Mine.__init__", "Mine()"):
        with pytest.raises(UsageError, match="mine:Mine"):
            choose(f"mine:{wrong}", jaxgen.CELLS, "cell")


def test_a_run_records_the_plugins_that_its_settings_use_and_no_others():
    load_plugin(write("mine.py", ALL))
    load_plugin(write("other.py", CELL))
    digest = hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()
    for cell in ("mine:Mine", "flax-gru"):
        assert used_plugins(LanguageConfig(cell=cell)) == [{"name": "mine.py", "sha256": digest}]
    for settings in ({"level": "mine:Bytes"}, {"block": "mine:Block"}, {"layers_pattern": "lstm, mine:Mine"}):
        assert [each["name"] for each in used_plugins(LanguageConfig(**settings))] == ["mine.py"]
    assert [each["name"] for each in used_plugins(plugins.DATA["mine:Echo"].Config())] == ["mine.py"]
    assert used_plugins(LanguageConfig()) == []


def test_exactly_the_bytes_of_the_digest_run_and_nothing_is_written():
    write("mine.py", CELL)
    bad = write("bad.py", "raise SystemExit('a compiled file was read')")
    cached = Path("__pycache__") / f"mine.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(bad, str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    load_plugin("mine.py")
    assert "mine:Mine" in jaxgen.CELLS
    assert [*Path("__pycache__").iterdir()] == [cached]


def test_a_file_replaces_no_module_of_python_and_imports_nothing_beside_it():
    load_plugin(write("json.py", CELL))
    assert sys.modules["json"] is json
    write("beside.py", "raise SystemExit('imported')")
    with pytest.raises(UsageError, match=r"mine\.py, line 1.*ModuleNotFoundError"):
        load_plugin(write("mine.py", "import beside"))


def test_a_file_that_has_changed_is_executed_again():
    load_plugin(write("mine.py", CELL))
    former = jaxgen.CELLS["mine:Mine"]
    load_plugin(write("mine.py", CELL.replace("Mine", "Other")))
    assert added() == {"mine:Other"}
    load_plugin(write("mine.py", CELL))
    assert jaxgen.CELLS["mine:Mine"] is not former


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\nx = = 2\n", ("line 2", "SyntaxError")),
        ("def f():\n    return 1 / 0\n\nf()\n", ("line 2", "ZeroDivisionError")),
        ("\nimport nothing_of_this_name\n", ("line 2", "ModuleNotFoundError", "nothing_of_this_name")),
        ("from jaxgen.cells import NoSuchCell\n", ("line 1", "ImportError", "NoSuchCell")),
        ("import jax.numpy as jnp\njnp.zeros(3) + jnp.zeros(4)\n", ("line 2", "TypeError")),
        ("raise SystemExit(main())\n", ("line 1", "NameError")),
        ("import sys\nsys.exit(0)\n", ("line 2", "SystemExit")),
        (b"# \xff\n", ("SyntaxError",)),
        (b"x = 1\0\n", ("SyntaxError",)),
        (
            "from jaxgen import CELLS, LSTM\nCELLS['mine'] = LSTM\nraise ValueError('two\\nlines')",
            ("line 3: ValueError: two.",),
        ),
        ("x = 1\n", ("defines nothing",)),
        ("from jaxgen import LSTM\n", ("defines nothing",)),
        ("from jaxgen.tokenizers import *\nclass T(ByteTokenizer): pass\n", ("kind", "'byte'", "'mine:T'")),
        ("from jaxgen.tasks.classify.data import *\nclass T(ClassifyData): pass\n", ("task", "'classify'", "'mine:T'")),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_the_place_and_changes_nothing(source, words):
    before = [dict(registry) for _, registry in REGISTRIES]
    with pytest.raises(UsageError) as refused:
        load_plugin(write("mine.py", source))
    assert "mine" in str(refused.value)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    assert before == [registry for _, registry in REGISTRIES]
    assert not LOADED


@pytest.mark.parametrize(
    "source", ["missing.py", ".", "folder.py", "my-cells.py", "a/b", "os", "acme", "acme.cells", "acme.", "", "a\0.py"]
)
def test_what_is_neither_a_python_file_nor_a_module_with_entries_is_refused(source):
    Path("folder.py").mkdir()
    with pytest.raises(UsageError):
        load_plugin(source)


def test_an_installed_module_is_imported_by_its_name(tmp_path, monkeypatch):
    write(tmp_path / "site/acme/cells.py", CELL)
    write(tmp_path / "site/acme/__init__.py", "from acme.cells import Mine\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        load_plugin("acme.cells")
        load_plugin("acme")
    assert added() == {"acme.cells:Mine", "acme:Mine"}
    digest = hashlib.sha256(CELL.encode()).hexdigest()
    used = used_plugins(LanguageConfig(cell="acme.cells:Mine"))
    assert used == [{"name": "acme.cells", "sha256": digest}]
    assert plugin_flags(used) == " --plugin acme.cells"


def test_what_a_plugin_prints_at_its_import_is_not_in_the_standard_output(capsys):
    load_plugin(write("mine.py", CELL + "print('hello')\n"))
    assert capsys.readouterr() == ("", "hello\n")


def test_the_flags_and_the_environment_name_plugins(monkeypatch):
    for name in ("a", "b", "c", "d"):
        write(f"{name}.py", CELL)
    monkeypatch.setenv("JAXGEN_PLUGINS", "a.py:b.py")
    args = ["task", "--plugin", "c.py", "--seed", "1", "--plugin=d.py", "--plugin_changed", "accept", "--", "--plugin"]
    assert load_plugins(args) == ["task", "--seed", "1", "--", "--plugin"]
    assert [*LOADED] == ["a.py", "b.py", "c.py", "d.py"]
    assert {plugin.changed for plugin in LOADED.values()} == {"accept"}
    monkeypatch.delenv("JAXGEN_PLUGINS")
    for wrong in ("--plugin", "--plugin --seed 1", "--plugin-changed accept", "--plugin a.py --plugin-changed maybe"):
        with pytest.raises(UsageError):
            load_plugins(wrong.split())
    write("other/a.py", CELL)
    with pytest.raises(UsageError, match="same name"):
        load_plugins(["--plugin", "a.py", "--plugin", "other/a.py"])


def saved(recorded: object, **settings: object) -> dict[str, object]:
    """A ``config.json`` with this record of plugins."""
    config = {"cell": "mine:Mine", **settings}
    return {"task": "language", "config": config, "resolved": {"plugins": recorded}}


def test_the_record_of_a_run_is_compared_with_what_is_loaded():
    load_plugin(write("mine.py", CELL))
    recorded = used_plugins(LanguageConfig(cell="mine:Mine"))
    check_plugins(saved(recorded), "r")
    with pytest.raises(UsageError, match=r"needs the plugin other\.py \(sha256 "):
        check_plugins(saved([*recorded, {"name": "other.py", "sha256": "0" * 64}]), "r")
    load_plugin(write("mine.py", CELL + "# another version\n"))
    with pytest.raises(CheckpointError, match="accept") as refused:
        check_plugins(saved(recorded), "r")
    assert refused.value.exit_code == 4
    load_plugin("mine.py", changed="accept")
    with pytest.warns(JaxgenWarning, match="changed"):
        check_plugins(saved(recorded), "r")


def test_a_plugin_that_replaces_the_cell_of_a_run_without_it_is_refused():
    load_plugin(write("mine.py", CELL + "from jaxgen import CELLS\nCELLS['lstm'] = Mine\n"))
    with pytest.raises(CheckpointError, match="without the plugin"):
        check_plugins(saved([], cell="lstm"), "r")
    check_plugins(saved([], cell="gru"), "r")


@pytest.mark.parametrize(
    "recorded",
    [
        [],
        [{"name": "sentinel.py", "sha256": "0" * 64}],
        [{"name": "sentinel", "sha256": "0" * 64}],
        [{"name": "./sentinel.py", "sha256": "0" * 64}],
        [{"name": "os", "sha256": "0" * 64}],
        [{"name": "sentinel.py", "sha256": "0" * 64, "path": "sentinel.py"}],
        [{"name": "sentinel.py", "sha256": "0"}],
        [{"name": "sentinel.py\n", "sha256": "0" * 64}],
        ["sentinel.py"],
        "sentinel.py",
        {"name": "sentinel.py"},
        [[]],
        None,
    ],
)
def test_no_run_folder_causes_an_import(hostile, recorded):
    write("sentinel.py", "open('imported', 'w').close()\n")
    load_plugin(write("mine.py", CELL))
    for cell in ("sentinel:Cell", "sentinel.py:Cell", "os:system", "os.path:join", "mine:Mine.clone", "mine:__class__"):
        with pytest.raises((UsageError, CheckpointError)):
            LoadedRun.open(hostile(cell, recorded))
    assert not Path("imported").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_compiles):
    """A whole run of no steps."""
    folder = tmp_path_factory.mktemp("run")
    text = write(folder / "book.txt", "some text to read, and some more\n" * 20)
    sizes = {"cell": "elman", "hidden": 4, "batch_size": 2, "seq_len": 4, "devices": 1}
    jaxgen.start(LanguageConfig(data=(str(text),), steps=0, run=folder / "r", **sizes))
    return folder / "r"


@pytest.fixture
def hostile(trained, tmp_path):
    """A copy of the run whose configuration has this cell and this record of plugins, and the digest of both."""

    def make(cell: str, recorded: object) -> Path:
        content = json.loads((trained / "config.json").read_bytes())
        content["config"]["cell"] = content["resolved"]["model"]["cell"] = cell
        content["resolved"]["plugins"] = recorded
        write(tmp_path / "bad/config.json", json.dumps(with_digest(content)))
        write(tmp_path / "bad/tokenizer.json", (trained / "tokenizer.json").read_bytes())
        return tmp_path / "bad"

    return make


def test_only_the_record_stands_between_a_run_and_its_cell(hostile):
    """The folders of the test before would be read otherwise."""
    load_plugin(write("mine.py", CELL))
    run = LoadedRun.open(hostile("mine:Mine", used_plugins(LanguageConfig(cell="mine:Mine"))))
    assert jax.eval_shape(run.task.init, jax.random.key(0))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_plugins_before_anything_else(name, capsys):
    command = import_module(f"jaxgen.cli.{MODULES.get(name, name)}").main
    assert command(["--plugin", "missing.py"]) == 2
    assert "missing.py" in capsys.readouterr().err
