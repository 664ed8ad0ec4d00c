"""``train.py``: from its flags to the run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen.cli.train import config_from_flags
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.registry import DATA
from jaxgen.tokenizers import load_tokenizer
from jaxgen.trainer import minutes

Config = DATA["language"].Config


def config(run: Path | str) -> dict:
    return json.loads((Path(run) / "config.json").read_text())


def test_a_run_leaves_files_that_can_be_read(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "metrics.jsonl", "samples.txt", "report.json", "loss.png", "checkpoints",
        "README.md",
    }  # fmt: skip
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert {"train_loss", "val_loss", "val_bpc", "val_bpb", "tokens_per_second", "seconds"} <= rows[0].keys()
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert CheckpointStore(run / "checkpoints").latest() == 30
    with Image.open(run / "loss.png") as drawn:
        assert drawn.size == (1000, 600)
    assert load_tokenizer(json.loads((run / "tokenizer.json").read_text())).kind == "char"
    assert config(run)["resolved"]["steps"] == config(run)["resolved"]["horizon"] == 30
    assert config(run)["resolved"]["model"]["form"] in ("scan", "fused"), "what auto came to is not written down"
    report = json.loads((run / "report.json").read_text())
    assert report["val_bpc"] == pytest.approx(report["val_loss"] / np.log(2))
    assert "=== step 10 ===" in (run / "samples.txt").read_text()


def test_the_output_ends_with_the_result_three_samples_the_run_and_the_next_command(trained):
    run, done = trained
    assert done.err == ""
    for part in ("temperature 0.3", "temperature 0.8", "temperature 1", "bits per character", "30 of 30"):
        assert part in done.out
    assert done.out.index("bits per character") < done.out.index("best step")
    assert re.fullmatch(rf"Next: .*jaxgen sample --run {run} --prompt \S+", done.out.splitlines()[-1])


def test_a_training_that_runs_out_of_memory_names_the_flags_to_lower(train, small, monkeypatch):
    def exhausted(*args, **more):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9000000000 bytes.")

    monkeypatch.setattr("jaxgen.trainer.run.start", exhausted)
    done = train(*small, "--steps", 2)
    assert done.code == 1
    assert all(flag in done.err for flag in ("--accumulate", "--batch-size", "--hidden", "--seq-len", "9.0 GB"))


def test_a_batch_is_split_into_equal_micro_batches_or_refused(train, small, run, here):
    done = train(*small, "--steps", 2, "--accumulate", 2, "--devices", 1)
    assert done.code == 0, done.err
    assert config(here / "runs/language-1")["config"]["accumulate"] == 2
    assert train(*small, "--steps", 2, "--accumulate", 3).code == 2


def test_runs_without_a_name_are_numbered(train, small, here):
    for n in (1, 2):
        done = train(*small, "--steps", 2, "--eval-every", 0)
        assert done.code == 0
        assert f"runs/language-{n}" in done.out
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["language-1", "language-2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--level byte --cell lstm --cell-options forget_bias 2.0 --layout windows --stride 4 --schedule constant",
        "--level word --min-count 1 --cell gru --tie --optimizer rmsprop --schedule exponential",
        "--cell elman-relu --embed 0 --optimizer sgd --dropout 0.1 --epochs 0.2",
        "--layers 2 --dropout 0.2 --optimizer-options b2 0.95 --weight-decay 0.1 --embed 4 --clip 0 --val-fraction 0.2",
    ],
)
def test_options_train_and_the_run_samples(flags, train, sample, small, here):
    length = [] if "--epochs" in flags else ["--steps", 2]
    done = train("language", *small, *length, flags=f"--eval-every 0 --run r {flags}")
    assert done.code == 0, done.err
    drawn = sample("--run", "r", "--length", 6, "--prompt", "The ")
    assert drawn.code == 0, drawn.err
    assert drawn.out.startswith("The ")
    assert drawn.out.endswith("\n")


@pytest.mark.slow
def test_bpe_trains_and_samples(train, sample, small):
    pytest.importorskip("tokenizers")
    assert train(*small, "--level", "bpe", "--vocab-size", 270, "--steps", 2, "--eval-every", 0, "--run", "r").code == 0
    assert sample("--run", "r", "--length", 6).code == 0


def test_documents_end_by_themselves_and_hold_no_line_break(train, sample, small):
    done = train(*small, flags="--documents line --steps 2 --eval-every 0 --run r")
    assert done.code == 0, done.err
    assert config("r")["resolved"]["has_documents"] is True
    drawn = sample("--run", "r", "--length", 400, "--num-samples", 3)
    assert drawn.out.count("\n") == 3 + 2, "three texts and two separators"
    made = int(drawn.err.splitlines()[-1].split()[0].replace(",", ""))
    assert made < 3 * 400, "no text ended before its length"


@pytest.mark.slow
def test_a_column_of_a_table_trains(train, small, here):
    rows = "".join(f'{n},"The cat sat on mat {n % 7}"\n' for n in range(40))
    (here / "t.csv").write_text("id,title\n" + rows)
    flags = ["--data", "t.csv", "--text-column", "title", "--steps", 2, "--eval-every", 0]
    done = train(*small[2:], *flags, "--run", "r")
    assert done.code == 0, done.err
    assert config("r")["resolved"]["has_documents"] is True


def test_a_file_of_settings_wins_over_the_preset_and_flags_win_over_both(here):
    (here / "c.toml").write_text('hidden = 4\nbatch-size = 3\nlr = 0.5\npreset = "medium"\nlayers = 1\nsteps = 9\n')
    flags = "--config c.toml --seq-len 8 --batch-size 4 --epochs 0.1 --cell elman --run r"
    read, resuming = config_from_flags(Config, flags.split())
    assert not resuming
    assert (read.hidden, read.layers, read.lr) == (4, 1, 0.5)  # the file
    assert (read.batch_size, read.seq_len) == (4, 8)  # flags over the file and the preset
    assert (read.preset, read.dropout) == ("medium", 0.3)  # the preset
    assert (read.steps, read.epochs) == (None, 0.1)  # a length given as a flag replaces any other


def test_a_file_of_settings_may_name_the_run_to_resume(train, small, here):
    (here / "c.toml").write_text('run = "v"\n')
    flags = "--config c.toml --steps 2 --eval-every 0 --resume auto"
    first, second = (train(*small, flags=flags) for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "step 2" in second.out
    assert [path.name for path in here.iterdir() if path.is_dir()] == ["v"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_standard_output_that_lacks_a_character_shows_it_escaped(encoding, train, small, here):
    (here / "∑.txt").write_bytes(Path(small[1]).read_bytes())
    done = train("--data", "∑.txt", *small[2:], flags="--steps 2 --eval-every 0 --run é", encoding=encoding)
    assert done.code == 0, done.err
    assert "\\u2211.txt" in done.out
    assert ("é" in done.out) == (encoding == "cp1252")


def test_a_flag_can_switch_off_what_a_file_switches_on(train, small, here):
    (here / "c.toml").write_text(f'tie = true\ndata = "{small[1]}"\n')
    flags = "--config c.toml --no-tie --steps 2 --eval-every 0 --run r"
    done = train(*small[2:], flags=flags)
    assert done.code == 0, done.err
    assert config("r")["config"]["tie"] is False


@pytest.mark.parametrize("name", Config.presets)
def test_every_preset_is_accepted_with_its_own_values(name, train, small, monkeypatch):
    seen = []
    monkeypatch.setattr("jaxgen.trainer.run.start", lambda config, emit, **_: seen.append(config) or _Idle())
    assert train("--data", small[1], "--preset", name).code == 0
    values = Config.presets[name][1]
    assert {key: getattr(seen[0], key) for key in values if key != "steps"} == {
        key: value for key, value in values.items() if key != "steps"
    }


class _Idle:
    def train(self) -> None:
        pass


def test_minutes_are_measured_once_and_become_a_number_of_steps(train, small, monkeypatch):
    refused = train(*small, flags="--minutes 0.0001 --run r")
    assert refused.code == 2
    assert "--minutes 0.0001 is too short" in refused.err
    assert not Path("r").exists()
    monkeypatch.setattr(minutes, "fitting_steps", lambda *_: 2)
    done = train(*small, flags="--minutes 60 --run r")
    assert done.code == 0, done.err
    assert "the number is now fixed" in done.out
    steps = config("r")["resolved"]["steps"]
    assert steps == 2
    assert CheckpointStore(Path("r") / "checkpoints").latest() == steps
    again = train("--run", "r", "--resume", "auto", "--minutes", 5)
    assert again.code == 2
    assert "--steps" in again.err


def test_trackers_are_named_by_a_flag_and_left_out_again(train, small):
    pytest.importorskip("tensorboardX")
    flags = "--steps 2 --eval-every 1 --sample-every 0 --log csv tensorboard --run r"
    assert train(*small, flags=flags).code == 0
    assert [p.stat().st_size > 100 for p in Path("r/tensorboard").iterdir()] == [True]
    assert Path("r/metrics.csv").read_text().splitlines()[0].startswith("step,train_loss,val_loss")
    Path("r/metrics.csv").unlink()
    assert train(flags="--run r --resume must --log none").code == 0
    assert config("r")["config"]["log"] == []
    assert not Path("r/metrics.csv").exists()


@pytest.mark.slow
def test_the_same_command_with_resume_auto_starts_and_then_continues(train, small):
    flags = "--tie --steps 2 --eval-every 0 --run r --resume auto"
    first, second = (train(*small, flags=flags) for _ in range(2))
    assert (first.code, second.code) == (0, 0), second.err
    assert "step 2" in second.out
    longer = train(flags="--run r --resume must --steps 4")
    assert longer.code == 0
    assert "step 2" in longer.out
    assert CheckpointStore(Path("r") / "checkpoints").latest() == 4


def test_a_narrow_window_and_no_terminal_are_fine(train, small, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    done = train(*small, flags="--steps 2 --eval-every 0")
    assert done.code == 0
    assert "\x1b" not in done.out
    boxed = [line for line in done.out.splitlines() if line.startswith("│")]
    assert boxed
    assert {len(line) for line in boxed} == {40}


@pytest.mark.parametrize("command", ["train", "sample"])
def test_help_names_every_flag(command, request):
    from jaxgen.cli.sampling_flags import SampleConfig

    done = request.getfixturevalue(command)("--help-all")
    wanted = Config if command == "train" else SampleConfig
    flags = {f"--{name.replace('_', '-')}" for name in wanted.model_fields}
    flags |= {"--resume", "--config"} if command == "train" else set()
    assert done.code == 0
    assert {flag for flag in flags if flag not in done.out} == set()
    if command == "train":
        assert all(
            name in done.out
            for name in (*Config.presets, "{stream,windows,documents}", "{auto,never,must}", "FILE.toml")
        )
