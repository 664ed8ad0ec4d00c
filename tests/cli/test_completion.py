"""Completion scripts: what a shell offers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from jaxgen.cli.completion import SHELLS, flags_by_command
from jaxgen.cli.completion import main as completion_main
from jaxgen.cli.main import COMMANDS
from jaxgen.tasks.registry import DATA

#: Types words and prints what bash offers for the last one.
TYPE = """
source ./script
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_jaxgen
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def commands():
    return flags_by_command()


@pytest.fixture
def offered(commands, here):
    """What bash offers for the last word of a command line."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (here / "script").write_text(SHELLS["bash"](commands))
    for name in ("a", "b"):
        (here / "runs" / name).mkdir(parents=True)
    (here / "runs" / "a" / "config.json").touch()

    def offer(*words: str) -> list[str]:
        done = subprocess.run(["bash", "-c", TYPE, "bash", "jaxgen", *words], capture_output=True, text=True, cwd=here)
        assert done.stderr == ""
        return done.stdout.split()

    return offer


def test_bash_completes_commands_tasks_flags_choices_and_runs(offered):
    assert {*offered("")} == {*COMMANDS, "--help", "--version"}
    assert offered("sc") == ["score"]
    assert {*offered("train", "")} == {*DATA}
    assert offered("train", "--hid") == ["--hidden"]
    assert offered("train", "--tie", "--no-ti") == ["--no-tie"]
    assert offered("train", "classify", "--class-w") == ["--class-weights"]
    assert offered("train", "--class-w") == []
    assert "lstm" in offered("train", "--cell", "")
    assert offered("train", "caption", "--hidden", "3", "--attention", "add") == ["additive"]
    assert offered("sample", "--seed", "1", "--run", "") == ["runs/a", "pretrained:shakespeare"]
    assert offered("evaluate", "r") == ["runs/a"]
    assert offered("completion", "z") == ["zsh"]
    assert offered("score", "--text", "") == []


def test_the_name_of_a_run_is_no_command_for_bash(offered, here):
    (here / "runs" / "c $(touch made)").mkdir()
    (here / "runs" / "c $(touch made)" / "config.json").touch()
    assert "runs/c" in " ".join(offered("evaluate", "runs/c")).replace("\\", "")
    assert not (here / "made").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_their_scripts(shell, commands, here):
    (here / "script").write_text(SHELLS[shell](commands))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", "script"], capture_output=True, text=True, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_flag_of_every_command_is_in_every_script(commands):
    for shell, write in SHELLS.items():
        script = write(commands)
        for flag in (flag for members in commands.values() for flag in members if not flag.positional):
            assert flag.written[2:] in script, (shell, flag.name)


def test_an_unknown_shell_is_refused(command):
    done = command(completion_main, ["bsh"])
    assert (done.code, done.out) == (2, "")
    assert "'bash'" in done.err


def test_the_shells_are_named_where_none_is_given(command):
    done = command(completion_main, [])
    assert (done.code, done.out) == (2, "")
    assert "bash, fish, zsh" in done.err
