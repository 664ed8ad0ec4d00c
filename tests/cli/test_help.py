"""The help of every command: wrapped at the width of the window, in groups, with defaults."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from jaxgen.cli.completion import flags_of
from jaxgen.cli.help import as_typed
from jaxgen.cli.main import COMMANDS, MODULES, usage
from jaxgen.cli.sampling_flags import SampleConfig
from jaxgen.cli.train import main as train_main
from jaxgen.runs.groups import groups_of
from jaxgen.tasks.registry import DATA

HELPS = [*COMMANDS, *(f"train {task}" for task in DATA)]


@pytest.fixture
def help_of(command, monkeypatch):
    """The help of a command in a window of this many columns."""
    from importlib import import_module

    def ask(words: str, flag: str = "--help-all", columns: int = 80, *more: object) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        name, *rest = words.split()
        done = command(import_module(f"jaxgen.cli.{MODULES.get(name, name)}").main, [*rest, *more, flag])
        assert (done.code, done.err) == (0, "")
        return done.out

    return ask


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("words", HELPS)
def test_help_fits_the_window_and_has_every_flag_with_its_whole_text(words, columns, help_of):
    shown = help_of(words, columns=columns)
    long = [line for line in shown.splitlines() if len(line) > columns]
    assert [line for line in long if not re.match(r"    (python|jaxgen) ", line)] == []  # commands are never broken
    text = " ".join(shown.split())
    for flag in flags_of(*words.split()):
        assert flag.text in text
        assert flag.positional or re.search(rf"(?m)^  {flag.written}\b", shown), flag.name


@pytest.mark.parametrize("task", DATA)
def test_the_settings_of_a_task_are_in_the_groups_of_all_tasks(task):
    groups = groups_of(DATA[task].Config)
    assert [*groups] == ["Data", "Model", "Training", "Output", "Several devices", "General"]
    assert sorted(name for names in groups.values() for name in names) == sorted(DATA[task].Config.model_fields)


@pytest.mark.parametrize("words", ["sample", *(f"train {task}" for task in DATA)])
def test_of_many_flags_help_shows_the_twelve_commonest(words, help_of):
    known = {flag.name for flag in flags_of(*words.split())}
    kind = SampleConfig if words == "sample" else DATA[words.split()[1]].Config
    assert len({*kind.common} & known) == 12
    shown = help_of(words, "--help")
    assert len(re.findall(r"(?m)^  --", shown)) == 12
    assert "--help-all" in shown
    assert len(re.findall(r"(?m)^  --", help_of(words))) == len(known)


def test_defaults_are_those_of_the_preset_and_of_the_file(help_of, here):
    assert "Units per layer. Default: 256." in help_of("train")
    assert "Units per layer. Default: 128." in help_of("train", "--help-all", 120, "--preset", "tiny")
    (here / "c.toml").write_text('hidden = 77\nval-data = "a\\u001b[2Jb"\n')
    shown = " ".join(help_of("train", "--help-all", 120, "--config", "c.toml").split())
    assert "Units per layer. Default: 77." in shown
    assert r"a\x1b[2Jb" in shown


@pytest.mark.parametrize(
    ("started", "train", "score"),
    [
        ("train.py", "python train.py", "jaxgen score"),
        ("a b/sample.py", "python 'a b/train.py'", "jaxgen score"),
        ("/bin/jaxgen", "jaxgen train", "jaxgen score"),
        ("/lib/jaxgen/__main__.py", "python -m jaxgen train", "python -m jaxgen score"),
    ],
)
def test_commands_are_shown_as_the_user_starts_them(started, train, score, monkeypatch, help_of):
    monkeypatch.setattr(sys, "argv", [started])
    assert help_of("train", "--help").startswith(f"usage: {train} [TASK] [FLAGS]\n")
    assert help_of("score", "--help").startswith(f"usage: {score} [FILE ...] [FLAGS]\n")
    assert f"\n    {train} --data book.txt " in help_of("train", "--help")
    assert as_typed("see `jaxgen score` of jaxgen score") == f"see `{score}` of jaxgen score"
    assert usage().startswith(f"usage: {score.removesuffix('score')}COMMAND [FLAGS]\n")


@pytest.mark.parametrize("typed", ["--hiden", "--hiden=3", "-hidden"])
def test_an_unknown_flag_is_refused_with_the_nearest(typed, command, here):
    done = command(train_main, [typed, "3"])
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "--hidden?" in done.err
    assert not list(Path(here).iterdir())
