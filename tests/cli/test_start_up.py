"""Start-up: modules beside the main path are loaded only if a flag needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jaxgen.cli.main import COMMANDS, MODULES
from jaxgen.version import __version__

ROOT = Path(__file__).parent.parent.parent
#: Runs a script as ``python script.py`` does and prints which of jaxgen's modules it has loaded at its end.
LIST_MODULES = """
import atexit, runpy, sys
def list_modules():
    print(*[name for name in sys.modules if name.startswith("jaxgen.")], sep="\\n", file=sys.stderr)
atexit.register(list_modules)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BESIDE = ("distributed", "baselines", "inference.receipts", "inference.chat", "inference.quality")


def loaded(environment: dict[str, str], script: str, *flags: object) -> set[str]:
    """Which of ``BESIDE`` the script loads in a process of its own."""
    command = [sys.executable, "-c", LIST_MODULES, str(ROOT / script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    modules = done.stderr.split()
    assert "jaxgen.cli.common" in modules
    return {name for name in BESIDE if any(f"{module}.".startswith(f"jaxgen.{name}.") for module in modules)}


@pytest.mark.slow
def test_the_scripts_load_what_lies_beside_the_main_path_only_for_a_flag(quick_environment, book, tmp_path):
    run, small = tmp_path / "run", ("--hidden", 8, "--steps", 2, "--batch-size", 4, "--seq-len", 8)
    assert loaded(quick_environment, "train.py", "--data", book, "--run", run, *small) == set()
    assert loaded(quick_environment, "sample.py", "--run", run, "--length", 5) == set()
    assert loaded(quick_environment, "sample.py", "--run", run, "--length", 5, "--json") == {"inference.receipts"}
    counted = ("--data", book, "--run", tmp_path / "counted", "--model", "ngram", "--seq-len", 8, "--batch-size", 4)
    assert loaded(quick_environment, "train.py", *counted) == {"baselines"}


@pytest.mark.runs
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_load_jax_before_it_is_configured(command):
    """Otherwise it could not keep compiled functions, and every start would compile again."""
    code = f"import sys, jaxgen.cli.{MODULES.get(command, command)}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.runs
@pytest.mark.parametrize("start", ["train.py", "sample.py", *(f"-m jaxgen {name}" for name in COMMANDS), "-m jaxgen"])
def test_every_command_tells_its_version_without_loading_jax(start):
    code = "import runpy, sys; sys.argv = sys.argv[1:]; module = sys.argv[0] == '-m'; sys.argv = sys.argv[module:]\n"
    code += "try: (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit as stop: sys.exit(stop.code or (3 if 'jax' in sys.modules else 0))"
    command = [sys.executable, "-c", code, *start.split(), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jaxgen {__version__}\n", "")


def test_the_package_is_marked_as_typed():
    assert (ROOT / "jaxgen/py.typed").is_file()
