"""Start-up: modules beside the main path are loaded only if a flag needs them."""

from __future__ import annotations

import json
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


#: Runs pieces of code, each in a fork of a process that has loaded what the commands share; prints their exit codes, of
#: which 3 is that of a piece that loaded JAX.
IN_FORKS = """
import json, os, sys
import jaxgen.cli.common, jaxgen.cli.flags
assert "jax" not in sys.modules
codes = []
for code in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        stopped = None
        try:
            exec(code)
        except SystemExit as stop:
            stopped = stop.code
        sys.stdout.flush()
        os._exit(stopped or (3 if "jax" in sys.modules else 0))
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


def in_forks(codes: list[str]) -> list[str]:
    """Run pieces of code; returns the lines that they wrote, and the list of their exit codes as the last one."""
    command = [sys.executable, "-c", IN_FORKS, json.dumps(codes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.runs
def test_no_command_loads_jax_before_it_is_configured():
    """Otherwise it could not keep compiled functions, and every start would compile again."""
    names = [MODULES.get(command, command) for command in COMMANDS]
    (codes,) = in_forks([f"import jaxgen.cli.{name}" for name in names])
    assert dict(zip(names, json.loads(codes), strict=True)) == dict.fromkeys(names, 0)


@pytest.mark.runs
def test_every_command_tells_its_version_without_loading_jax():
    starts = ["train.py", "sample.py", *(f"-m jaxgen {name}" for name in COMMANDS), "-m jaxgen"]
    pieces = []
    for start in starts:
        how, words = ("module", start.split()[1:]) if start.startswith("-m") else ("path", start.split())
        run = f"runpy.run_{how}(sys.argv[0], run_name='__main__')"
        pieces.append(f"import runpy, sys; sys.argv = {[*words, '--version']}; {run}")
    *versions, codes = in_forks(pieces)
    assert dict(zip(starts, json.loads(codes), strict=True)) == dict.fromkeys(starts, 0)
    assert versions == [f"jaxgen {__version__}"] * len(starts)


def test_the_package_is_marked_as_typed():
    assert (ROOT / "jaxgen/py.typed").is_file()
