"""``--show-config``: the settings as a file that ``--config`` reads back."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from jaxgen.cli.train import config_from_flags
from jaxgen.tasks.registry import DATA

EXAMPLE = Path(__file__).parents[2] / "examples" / "settings.toml"
#: Flags of every kind of value.
FLAGS = {
    "language": ["--data", 'a "b"\\\x7f\u202e.txt', "c", "--cell-options", "forget_bias", "2", "--tie", "--lr", "1e-5"],
    "classify": ["--no-bidirectional", "--text-column", "a", "b", "--minutes", "0.5"],
    "translate": ["--preset", "sentences", "--epochs", "2", "--block-options", "glu", "true", "norm", "rms"],
    "caption": ["--widths", "16", "32", "--steps", "7", "--lowercase"],
}


def comment(text: str, name: str) -> str:
    """The comment behind a setting."""
    (found,) = re.findall(rf"(?m)^(?:# )?{name} = ?.*?# ([^#\n]*)$", text)
    return found


@pytest.mark.parametrize("task", DATA)
def test_what_is_shown_is_read_back_as_the_same_settings(task, train, here):
    done = train(task, *FLAGS[task], "--show-config")
    assert (done.code, done.err) == (0, "")
    (here / "shown.toml").write_text(done.out, encoding="utf-8")
    kind = DATA[task].Config
    read, _ = config_from_flags(kind, ["--config", "shown.toml"])
    assert read == config_from_flags(kind, FLAGS[task])[0]
    assert {path.name for path in here.iterdir()} == {"shown.toml"}


def test_each_setting_says_where_it_comes_from(train, here):
    (here / "c.toml").write_text("hidden = 8\nlr = 0.1\nepochs = 3\n")
    shown = train("--config", "c.toml", "--preset", "base", "--lr", "0.2", "--no-tie", "--show-config").out
    expected = {
        "hidden": "file c.toml",
        "lr": "flag",
        "tie": "flag",
        "preset": "flag",
        "dropout": "preset base",
        "clip": "default",
        "epochs": "file c.toml",
    }
    assert {name: comment(shown, name) for name in expected} == expected
    assert comment(train("--show-config").out, "steps").startswith("preset small: ")


@pytest.mark.runs
def test_a_resumed_run_shows_its_own_settings_and_trains_nothing(train, copied):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    done = train("--run", copied, "--resume", "must", "--steps", 40, "--show-config")
    assert done.code == 0, done.err
    assert (comment(done.out, "hidden"), comment(done.out, "steps")) == (f"run {copied}", "flag")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_name_that_no_file_can_hold_is_refused(train):
    assert train("--data", "a\udcff", "--show-config").code == 2


#: What an example of a setting goes with.
WITH = {"vocab_size": {"level": "word"}, "split_on": {"level": "word"}, "stride": {"layout": "windows"}}


def test_the_example_file_has_every_setting_of_a_language_model_with_an_allowed_value():
    text, kind = EXAMPLE.read_text(encoding="utf-8"), DATA["language"].Config
    assert {*re.findall(r"(?m)^(?:# )?([a-z_]+) = ", text)} == {*kind.model_fields}
    assert kind(**tomllib.loads(text)) == kind()
    for line in re.findall(r"(?m)^# ([a-z_]+ = .*)$", text):
        (setting,) = tomllib.loads(line).items()
        kind(**dict([setting]), **WITH.get(setting[0], {}))
    for name, field in kind.model_fields.items():
        assert " ".join(str(field.description).split()) in " ".join(text.replace("\n# ", " ").split()), name
