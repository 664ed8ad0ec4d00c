"""Unusual configuration files and names: a message, never a traceback."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import language_config
from edited import edit
from edited import write as write_saved

from jaxgen.cli.train import config_from_flags, main
from jaxgen.errors import CheckpointError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import MAX_CONFIG_BYTES, read_toml, run_digest, validate
from jaxgen.tasks.registry import DATA
from jaxgen.trainer.run import start

FILES = {
    "thousands of brackets": (b"a = " + b"[" * 5_000, "deep"),
    "thousands of tables": (b"a = " + b"{a = " * 5_000, "deep"),
    "thousands of digits": (b"hidden = " + b"9" * 5_000, "digits"),
    "NUL": (b"a = 1\0", "as TOML"),
    "a megabyte and more": (b"#" * (MAX_CONFIG_BYTES + 1), "larger than 1 MB"),
    "no UTF-8": (b"a = '\xff'", "UTF-8"),
}


def test_the_digest_of_a_run_depends_on_what_its_first_start_fixes():
    config = DATA["language"].Config(data="a.txt")
    resolved = {"model": {"hidden": 8}, "tokenizer": "t", "data": {"name": "a.txt", "sha256": "d"}, "steps": 5}

    def digest(weights: str | None = None, then: Any = resolved, **settings: Any) -> str:
        return run_digest(config.model_copy(update=settings), then, weights)

    free = {"data": ("b.txt",), "run": "r", "steps": 9, "eval_every": 3, "devices": 2, "init_from": "x"}
    assert digest(**free) == digest()
    assert digest(then={**resolved, "data": {"name": "b.txt", "sha256": "d"}, "steps": 6}) == digest()
    others = [digest(weights="w"), digest(seed=1), digest(lr=0.5), digest(dropout=0.5), digest(seq_len=3)]
    for name, value in {"model": {"hidden": 9}, "tokenizer": "u", "data": {"sha256": "e"}}.items():
        others.append(digest(then={**resolved, name: value}))
    assert len({digest(), *others}) == 1 + len(others)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_refused(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_toml(str(tmp_path / "c.toml"))


@pytest.mark.parametrize("path", ["/dev/zero", ".", "a\0b", "x" * 300])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(UsageError, match="configuration"):
        read_toml(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in folders here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="regular file"):
        read_toml(str(tmp_path / "pipe"))


@pytest.mark.parametrize("resume", [[], ["--resume", "auto"], ["--resume", "must"]])
@pytest.mark.parametrize("run", ["x" * 300, "a\0b", f"a/{'ü' * 200}"])
def test_a_run_cannot_have_every_name(run, resume, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--run", run, *resume]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --run h")
    assert said.count("\n") == 1
    (tmp_path / "c.toml").write_text(f"run = {json.dumps(run)}\n")
    assert main(["--config", "c.toml", *resume]) == 2
    assert "--run h" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["c.toml"]


@pytest.mark.parametrize("run", ["x" * 5_000, "a\0b", f"a/{'ü' * 200}"])
@pytest.mark.parametrize("command", ["evaluate", "explain", "predict", "sample", "score"])
def test_no_command_opens_a_run_of_such_a_name(command, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"predict": ["a.txt"], "score": ["--text", "a"]}.get(command, [])
    assert importlib.import_module(f"jaxgen.cli.{command}").main(["--run", run, *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --run h")
    assert len(said) < 200


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_run_to_begin_from_cannot_have_every_name_either(name):
    with pytest.raises(UsageError, match="--init-from"):
        validate(DATA["language"].Config, {"init_from": name})
    with pytest.raises(UsageError, match="--run"):
        LoadedRun.open(name)


def test_a_wrong_value_is_shown_in_part_when_it_is_long(tmp_path, capsys):
    (tmp_path / "c.toml").write_text(f"hidden = '{'x' * 5_000}'\n")
    assert main(["--config", str(tmp_path / "c.toml")]) == 2
    assert len(capsys.readouterr().err) < 500


@pytest.fixture(scope="module")
def made(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    start(language_config(book, run, model="ngram", order=2, hidden=256, cell="lstm"))  # of a network, it would compile
    return run


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["task"], []),
        (["task"], {"a": 1}),
        (["resolved"], []),
        (["resolved", "steps"], "many"),
        (["resolved", "steps"], -1),
        (["resolved", "horizon"], None),
        (["resolved", "devices"], True),
        (["resolved", "devices"], 0),
        (["resolved", "parameters"], 0),
        (["resolved", "tokenizer"], None),
        (["resolved", "tokenizer"], "0" * 64),
        (["resolved", "reading"], None),
        (["resolved", "reading", "newlines"], "crlf"),
        (["resolved", "reading", "words"], ""),
        (["resolved", "data"], "book"),
        (["resolved", "data"], []),
        (["resolved", "data", "sha256"], 5),
        (["config"], 5),
        (["config", "run"], "a\0b"),
    ],
    ids=str,
)
def test_an_altered_configuration_of_a_run_exits_with_4(keys, value, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    edit(run, *keys, value=value)
    with pytest.raises(CheckpointError):
        LoadedRun.open(run)
    assert main(["--run", str(run), "--resume", "must"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_run_that_does_not_say_how_it_reads_text_is_of_an_earlier_version(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    saved = json.loads((run / "config.json").read_text())
    del saved["resolved"]["reading"]
    write_saved(run, saved)
    with pytest.raises(CheckpointError, match="earlier version"):
        LoadedRun.open(run)


def test_a_configuration_file_may_begin_with_a_byte_order_mark_and_end_lines_with_cr(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfhidden = 8\rsteps = 4\r\nlayers = 1\n")
    assert read_toml(str(tmp_path / "c.toml")) == {"hidden": 8, "steps": 4, "layers": 1}


PRESETS = [(data.Config, name) for data in DATA.values() for name in data.Config.presets]


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_the_library_and_the_command_apply_a_preset_in_the_same_way(kind, name):
    values = {key: value for key, value in kind.presets[name][1].items() if key != "steps"}
    config = kind(preset=name, seed=5)
    assert {key: getattr(config, key) for key in values} == values
    assert config.steps is None, "the steps of a preset are a default, which epochs and minutes replace"
    assert config.model_fields_set == {"preset", "seed"}
    command, _ = config_from_flags(kind, ["--preset", name, "--seed", "5"])
    assert (command, command.model_fields_set) == (config, config.model_fields_set)


@pytest.mark.parametrize("kind", [data.Config for data in DATA.values()])
def test_what_is_given_overrides_the_preset_also_in_copies_and_when_it_is_read_again(kind):
    config = kind(preset="tiny", hidden=7)
    assert config.hidden == 7
    assert kind(preset="tiny").changes(config) == ["hidden"]
    read = validate(kind, json.loads(json.dumps(config.model_dump(mode="json"))))
    assert read == config
    assert read.changes(config) == []
    assert config.model_copy(update={"preset": "small"}) == kind(preset="small", hidden=7)
    assert kind.model_validate({"preset": "tiny", "hidden": 7}) == config


def test_settings_may_be_paths_lists_and_numpy_numbers(tmp_path):
    kind = DATA["language"].Config
    config = kind(data=[tmp_path / "a"], run=tmp_path / "r", hidden=np.int64(8), lr=np.float32(0.5), tie=np.True_)
    assert config == kind(data=(str(tmp_path / "a"),), run=str(tmp_path / "r"), hidden=8, lr=0.5, tie=True)
    assert kind(data=tmp_path / "a").data == (str(tmp_path / "a"),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": "8"},
        {"hiden": 8},
        {"preset": "lagre"},
        {"preset": [1]},
        {"lr": -1.0},
        {"cell_options": {"forget_bias": float("nan")}},
    ],
)
def test_settings_that_cannot_be_used_are_a_usage_error(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", ".")):
        DATA["language"].Config(**wrong)
