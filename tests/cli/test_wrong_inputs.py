"""Wrong input ends with a message and an exit code before any compilation, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from edited import edit

from jaxgen import jitted
from jaxgen.runs import directory
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.trainer.trackers import TRACKERS


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """Every function that a command compiles, replaced by one that may not be called."""

    def refuse(*args, **kwargs):
        raise AssertionError("A function of the model was compiled before the input was checked.")

    for name in ("jit_init_state", "jit_train_steps", "jit_eval_step", "jit_prepare", "jit_prefill", "jit_decode"):
        monkeypatch.setattr(jitted, name, lambda *_: refuse)


@pytest.fixture
def material(here):
    """Files that have something wrong with them."""
    files = {
        "empty.txt": b"",
        "short.txt": b"too short to train on",
        "latin.txt": "un café".encode("latin-1") * 50,
        "bad.toml": b"hidden = = 3",
        "unknown.toml": b"hiden = 3",
        "type.toml": b'hidden = "big"',
        "preset.toml": b"preset = 5",
        "run.toml": b"run = 5",
        "endless.toml": b"minutes = 1e308",
        "twice.toml": b"batch-size = 4\nbatch_size = 8",
        "latin.toml": b"\xe9",
        "prompt.txt": b"caf\xe9",
        "a-file": b"",
        "full/note.txt": b"mine",
    }
    for name, content in files.items():
        path = here / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return here


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def check(done, code: int, parts: tuple[str, ...], before: dict, folder: Path) -> None:
    text = re.sub(r"[\s-]+", " ", done.err)
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "pydantic" not in done.err
    for part in parts:
        assert re.sub(r"[\s-]+", " ", part) in text, f"{part!r} is not in: {done.err}"
    assert done.err.startswith("error: ")
    assert done.err.endswith(".\n")
    assert done.err.count("\n") == 1
    assert tree(folder) == before, "something was left behind"


#: Flags beside ``--data BOOK`` -> what the message must contain.
USAGE = {
    "--dropout 1.5": ("--dropout is 1.5", "less than 1"),
    "--dropout -0.1": ("--dropout is -0.1", "0"),
    "--dropout nan": ("--dropout",),
    "--lr nan": ("--lr", "finite number"),
    "--optimizer sgd --lr 2": ("--lr 2", "--weight-decay"),
    "--lr inf": ("--lr", "finite number"),
    "--lr 0": ("--lr is 0.0", "greater than 0"),
    "--lr fast": ("--lr", "'fast'"),
    "--hidden -1": ("--hidden is -1", "greater than 0"),
    "--hidden 0": ("--hidden is 0", "greater than 0"),
    "--steps 0": ("--steps 0", "--show-config"),
    "--hidden 8.5": ("--hidden", "'8.5'"),
    "--layers 0": ("--layers is 0", "greater than 0"),
    "--batch-size 0": ("--batch-size is 0", "greater than 0"),
    "--seq-len -3": ("--seq-len is -3", "greater than 0"),
    "--steps -3": ("--steps is -3", "0"),
    "--epochs 0": ("--epochs is 0.0", "greater than 0"),
    "--steps 2000000001": ("--steps is 2000000001", "2000000000"),
    "--epochs 1e308": ("--epochs is 1e+308", "1000000"),
    "--minutes 1e308": ("--minutes is 1e+308", "1000000"),
    "--config endless.toml": ("endless.toml", "--minutes is 1e+308", "1000000"),
    "--minutes nan": ("--minutes", "finite"),
    "--patience 0": ("--patience is 0", "greater than 0"),
    "--log csv wandbb": ("log 'wandbb'", "'wandb'", "csv"),
    "--clip -1": ("--clip is -1.0", "0"),
    "--warmup -1": ("--warmup is -1", "0"),
    "--final-lr 0.1 --schedule constant": ("--final-lr 0.1", "leave it out"),
    "--final-lr 2": ("--final-lr is 2.0", "1"),
    "--seed -1": ("--seed is -1", "0"),
    "--seed 4294967296": ("--seed is 4294967296", "4294967295"),
    "--val-fraction 1": ("--val-fraction is 1.0", "less than 1"),
    "--embed -1": ("--embed is -1", "0"),
    "--hidden 0 --lr nan": ("--hidden is 0", "--lr"),
    "--cell lstn": ("cell 'lstn'", "'lstm'", "gru"),
    "--preset smal": ("preset 'smal'", "'small'", "large"),
    "--optimizer adamm": ("optimizer 'adamm'", "'adam", "sgd"),
    "--schedule cosin": ("schedule 'cosin'", "'cosine'", "constant"),
    "--level chars": ("level 'chars'", "'char'", "bpe, byte, char, word"),
    "--layout window": ("layout 'window'", "'windows'", "documents, stream, windows"),
    "--documents lines": ("--documents is 'lines'", "'blank-line'", "'line'"),
    "--hiden 5": ("--hiden", "--hidden"),
    "--cell": ("--cell", "without a value"),
    "--config": ("--config", "without a value"),
    "--resume": ("--resume", "without a value"),
    "--resume auto": ("--resume auto", "--run DIR"),
    "--resume atuo --run r": ("'atuo'", "'auto'", "must, never"),
    "--steps 3 --epochs 2": ("--steps and --epochs", "give one of them"),
    "--tie --embed 0": ("--tie", "--embed 0"),
    "--stride 4": ("--stride 4", "--layout windows"),
    "--level bpe --vocab-size 999999999": ("--vocab-size is 999999999", "1048576"),
    "--level word --vocab-size 1048577": ("--vocab-size is 1048577", "1048576"),
    "--vocab-size 9": ("--vocab-size 9", "--level char"),
    "--documents line --layout stream": ("--documents line", "--layout stream"),
    "--optimizer schedule-free --schedule cosine": ("--schedule constant",),
    "--optimizer-options weight_decay 1": ("--weight-decay",),
    "--optimizer-options b3 1": ("'b3'", "b1, b2, eps"),
    "--cell-options forgetbias 1": ("'forgetbias'", "forget_bias"),
    "--cell-options forget_bias high": ("forget_bias", "'layernorm-lstm'", "number"),
    "--cell-options forget_bias": ("--cell-options", "pairs"),
    "--config nowhere.toml": ("nowhere.toml", "cannot be read"),
    "--config bad.toml": ("bad.toml", "as TOML", "line 1"),
    "--config unknown.toml": ("unknown.toml", "'hiden'", "'hidden'"),
    "--config type.toml": ("type.toml", "--hidden is 'big'", "integer"),
    "--config preset.toml": ("preset 5", "tiny"),
    "--config run.toml --resume auto": ("run.toml", "--run is 5"),
    "--config twice.toml": ("twice.toml", "'batch-size' and 'batch_size'", "leave one out"),
    "--config latin.toml": ("latin.toml", "UTF-8", "byte 0"),
    "--text-column title": ("--text-column", ".csv"),
    "--documents row": ("row", ".csv"),
    "--run full": ("full", "not empty"),
    "--run a-file": ("a-file", "File exists", "--run DIR"),
    "--run a-file/below": ("a-file/below", "Not a directory", "--run DIR"),
}


@pytest.mark.parametrize("flags", USAGE)
def test_wrong_flags_of_training_exit_with_2(flags, train, book, material):
    before = tree(material)
    done = train("--data", book, "--seq-len", 8, flags=flags)
    check(done, 2, USAGE[flags], before, material)


DATA = {
    "--data nowhere.txt": ("'nowhere.txt'", "python-docs"),
    "--data tinyshakespear": ("'tinyshakespear'", "'tinyshakespeare'"),
    "--data empty.txt": ("empty.txt", "is empty"),
    "--data latin.txt": ("latin.txt", "not UTF-8", "0xe9", "--level byte"),
    "--data short.txt --seq-len 8": ("18 tokens", "at least 256", "batch size × sequence length"),
    "--data short.txt --seq-len 80 --layout windows": ("18 tokens", "at least 81", "sequence length + 1"),
    "--data *.nothing": ("'*.nothing'", "pattern"),
}


@pytest.mark.parametrize("flags", DATA)
def test_data_that_cannot_be_used_exit_with_3(flags, train, material):
    before = tree(material)
    check(train("--preset", "tiny", flags=flags), 3, DATA[flags], before, material)


def test_an_unknown_task_is_refused_with_the_nearest(train, here):
    check(train("langage"), 2, ("task 'langage'", "'language'"), {}, here)


@pytest.mark.parametrize("name", [name for name, kind in TRACKERS.items() if kind.PACKAGE])
def test_a_tracker_without_its_package_names_the_extra(name, train, book, here, monkeypatch):
    monkeypatch.setitem(sys.modules, TRACKERS[name].PACKAGE, None)
    check(
        train("--data", book, "--log", "csv", name), 2, (TRACKERS[name].PACKAGE, f"jaxgen[{name}]", "--log"), {}, here
    )


def test_bpe_without_its_package_names_the_extra(train, book, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    done = train("--data", book, "--level", "bpe")
    check(done, 2, ("tokenizers", "jaxgen[bpe]"), {}, here)


def test_a_folder_that_cannot_be_written_is_refused(train, book, here, monkeypatch):
    """Tests may run as root, whom no permission stops, so the refusal is the system call's."""

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(directory, "write_atomically", refuse)
    done = train("--data", book, "--seq-len", 8, "--run", "locked")
    assert done.code == 2
    assert "Permission denied" in done.err
    assert not [path for path in here.rglob("*") if path.is_file()]


SAMPLING = {
    "--temperature nan": ("temperature", "from 1e-6"),
    "--temperature inf": ("temperature", "from 1e-6"),
    "--temperature -0.5": ("temperature of -0.5", "from 1e-6"),
    "--temperature 1e-40": ("temperature of 1e-40", "1e-6"),
    "--temperature 0.5 nan": ("temperature", "from 1e-6"),
    "--temperature hot": ("--temperature", "'hot'"),
    "--temperature": ("--temperature", "without a value"),
    "--block 0": ("block size is 0", "from 1 to"),
    "--length -1": ("length is -1", "from 0"),
    "--length many": ("--length", "'many'"),
    "--num-samples 0": ("samples is 0", "from 1"),
    "--num-samples -2": ("samples is -2", "from 1"),
    "--seed -1": ("seed is -1", "4,294,967,295"),
    "--seed 4294967296": ("seed is 4294967296", "4,294,967,295"),
    "--temperature 1.5:0.5": ("'1.5:0.5'", "1.5:0.5:200"),
    "--temperature 1.5:0:9": ("step 9", "schedule"),
    "--temperature 1,nan": ("step 1", "from 1e-6"),
    "--temperature 1:2:0": ("steps", "is 0", "from 1"),
    "--greedy --temperature 0.5": ("--greedy", "--temperature", "one of them"),
    "--length 10000001": ("length is 10000001", "to 10,000,000"),
    "--sample-index -1": ("sample is -1", "from 0"),
    "--sample-index 3 --num-samples 4": ("--sample-index", "--num-samples"),
    "--sample-index 3 --best-of 4": ("--sample-index", "--best-of"),
    "--best-of 2 --num-samples 3": ("best of 2", "at least"),
    "--max-seconds 0": ("0.0 seconds", "above 0"),
    "--min-length -1": ("length is -1",),
    "--no-repeat-ngram 0": ("no-repeat-ngram is 0", "from 1"),
    "--repetition-penalty 0": ("penalty of 0.0", "0.01 to 100"),
    "--presence-penalty nan": ("nan", "-100 to 100"),
    "--min-p 2": ("min-p of 2.0", "from 0 to 1"),
    "--typical-p 0": ("typical-p of 0.0", "above 0"),
    "--epsilon-cutoff -1": ("cut-off of -1.0", "from 0 to 1"),
    "--forbid Ω": ("--forbid 'Ω'", "vocabulary"),
    "--bias a": ("--bias 'a'", "e=-1.5"),
    "--bias a=much": ("--bias 'a=much'", "e=-1.5"),
    "--forbid a --force ab": ("forbid",),
    "--forbid": ("--forbid",),
    "--bias": ("--bias",),
    "--stop": ("--stop",),
    "--length-penalty 2": ("--length-penalty", "give --beam too"),
    "--beam 3 --seed 4": ("--beam", "--seed"),
    "--beam 3 --stop a": ("--beam", "--stop"),
    "--beam 3 --interactive": ("--beam", "--interactive"),
    "--beam 3 --num-samples 4": ("3 beams",),
    "--beam 3 --repetition-penalty 2": ("RepetitionPenalty",),
    "--skip 3 --json": ("--json", "--skip"),
    "--skip 3 --beam 2": ("--beam", "--skip"),
    "--length_penalty 2": ("--length-penalty", "give --beam too"),
    "--skip -1": ("-1", "from 0"),
    "--prompt a\udcff": ("UTF-8",),
    "--top-k 0": ("top-k is 0", "at least 1"),
    "--top-p 0": ("top-p of 0.0", "1"),
    "--top-p 1.5": ("top-p of 1.5", "1"),
    "--top-p nan": ("top-p of nan",),
    "--unk drop": ("--unk is 'drop'", "'error' or 'skip'"),
    "--prompt a --prompt-file prompt.txt": ("--prompt", "--prompt-file", "one of them"),
    "--promt a": ("--promt", "--prompt"),
}


@pytest.mark.parametrize("flags", SAMPLING)
def test_wrong_flags_of_sampling_exit_with_2(flags, sample, run, material):
    before = tree(material)
    check(sample("--run", run, *flags.split()), 2, SAMPLING[flags], before, material)


def test_characters_outside_the_vocabulary_are_named_with_their_positions(sample, run, here):
    done = sample("--run", run, "--prompt", "The é and ∑")
    check(done, 2, ("characters", "'é', '∑'", "5, 11", "--unk skip"), {}, here)


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("nowhere.txt", ("nowhere.txt", "No such file")),
        ("prompt.txt", ("prompt.txt", "not UTF-8", "offset 3")),
        ("full", ("full", "Is a directory")),
    ],
)
def test_prompt_files_that_cannot_be_read_exit_with_3(file, parts, sample, run, material):
    before = tree(material)
    check(sample("--run", run, "--prompt-file", file), 3, parts, before, material)


def test_without_any_run_sampling_says_how_to_make_one(sample, here):
    check(sample(), 4, ("runs/", "python train.py", "--run DIR"), {}, here)


@pytest.mark.parametrize("folder", ["nowhere", "full", "a-file"])
@pytest.mark.parametrize("command", ["sample", "train"])
def test_what_is_no_run_exits_with_4(command, folder, request, material):
    before = tree(material)
    flags = ["--run", folder] + (["--resume", "must"] if command == "train" else [])
    check(request.getfixturevalue(command)(*flags), 4, (str(folder),), before, material)


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def flip_a_bit(run: Path) -> None:
    best = CheckpointStore(run / "checkpoints").best()
    files = (run / "checkpoints" / f"{best:08d}").glob("*.safetensors")
    victim = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)


def lose_a_manifest(run: Path) -> None:
    best = CheckpointStore(run / "checkpoints").best()
    (run / "checkpoints" / f"{best:08d}" / "manifest.json").unlink()


def widen(run: Path) -> None:
    edit(run, "resolved", "model", "hidden", value=16)
    edit(run, "config", "hidden", value=16)


def spell_otherwise(run: Path) -> None:
    """The last character of the vocabulary becomes the next one: still a tokenizer, but of other texts."""
    path = run / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["code_points"][-1] += 1
    path.write_text(json.dumps(tokenizer))


def learn_faster(run: Path) -> None:
    """As someone would with an editor."""
    path = run / "config.json"
    assert path.read_text().count('"lr": 0.02') == 1
    path.write_text(path.read_text().replace('"lr": 0.02', '"lr": 0.03'))


def without_digest(run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    del saved["sha256"]
    (run / "config.json").write_text(json.dumps(saved))


BROKEN = {
    "no checkpoint": (remove_checkpoints, ("checkpoint",)),
    "a flipped bit": (flip_a_bit, ("is damaged", ".safetensors")),
    "another shape": (widen, ("(36, 16)",)),
    "another setting": (learn_faster, ("config.json", "flags", "--resume", "--init-from")),
    "no digest of the settings": (without_digest, ("config.json", "no digest")),
    "settings at odds": (lambda run: edit(run, "config", "hidden", value=16), ("altered", "hidden")),
    "a setting of another kind": (lambda run: edit(run, "config", "lr", value="x"), ("--lr is 'x'",)),
    "a cell that is none": (lambda run: edit(run, "resolved", "model", "cell", value="x"), ("Unknown cell 'x'",)),
    "a setting missing": (lambda run: edit(run, "resolved", value={}), ("does not describe a run",)),
    "a model that is none": (lambda run: edit(run, "resolved", "model", value="x"), ("does not describe a run",)),
    "no manifest of the best": (lose_a_manifest, ("manifest.json",)),
    "no JSON": (lambda run: (run / "config.json").write_text("{"), ("config.json", "JSON")),
    "a list": (lambda run: (run / "config.json").write_text("[]"), ("does not describe a run",)),
    "no tokenizer": (lambda run: (run / "tokenizer.json").unlink(), ("tokenizer.json", "does not exist")),
    "another character": (spell_otherwise, ("tokenizer.json",)),
    "another tokenizer": (
        lambda run: (run / "tokenizer.json").write_text('{"kind": "byte"}'),
        ("vocab size is 36", "259"),
    ),
}


STILL_RESUMED = ("no checkpoint", "a flipped bit", "no manifest of the best")


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_run_exits_with_4_and_is_left_as_it_is(damage, sample, copied):
    break_it, parts = BROKEN[damage]
    break_it(copied)
    check(sample("--run", copied), 4, parts, tree(copied), copied)


def test_what_is_advised_for_a_damaged_checkpoint_makes_the_run_usable(sample, train, copied, monkeypatch):
    monkeypatch.undo()  # this compiles
    flip_a_bit(copied)
    advised = re.search("`python train.py (.*?)`", sample("--run", copied).err)
    assert train(*shlex.split(advised[1])).code == 0
    assert sample("--run", copied, "--length", 3).code == 0


@pytest.mark.parametrize("damage", [d for d in BROKEN if d not in STILL_RESUMED])
def test_a_damaged_run_is_not_resumed(damage, train, copied):
    break_it, parts = BROKEN[damage]
    break_it(copied)
    check(train("--run", copied, "--resume", "auto"), 4, parts, tree(copied), copied)


def lost(config: Path) -> None:
    """The file is gone already."""


def linked_to_itself(config: Path) -> None:
    config.symlink_to(config.name)


def linked_to_nothing(config: Path) -> None:
    config.symlink_to("nothing")


LOST = {
    lost: "missing",
    Path.mkdir: "regular file",
    os.mkfifo: "regular file",
    linked_to_itself: "link",
    linked_to_nothing: "link",
}


@pytest.mark.parametrize(
    "command", ["sample", "train --resume auto", "train --resume must", "train language --resume auto"]
)
@pytest.mark.parametrize("instead", LOST)
def test_a_run_without_its_settings_is_told_to_be_damaged_and_no_flag_that_was_given(instead, command, request, copied):
    (copied / "config.json").unlink()
    instead(copied / "config.json")
    name, *flags = command.split()
    parts = (str(copied), "damaged", "config.json", LOST[instead])
    done = request.getfixturevalue(name)(*flags, "--run", copied)
    check(done, 4, parts, tree(copied), copied)
    assert "--resume" not in done.err


def test_an_existing_run_is_not_touched_without_resume(train, small, copied):
    parts = ("holds a run", "--resume auto", "--run")
    check(train(*small, "--run", copied), 2, parts, tree(copied), copied)


def test_a_run_is_not_resumed_with_other_settings(train, copied):
    parts = ("--hidden", "--lr")
    done = train("--run", copied, flags="--resume auto --hidden 16 --lr 0.5")
    check(done, 2, parts, tree(copied), copied)


def test_a_run_is_not_resumed_with_other_data(train, copied, tmp_path, book):
    moved = tmp_path / "moved.txt"
    moved.write_text(book.read_text().replace("cat", "cow"))
    edit(copied, "config", "data", value=[str(moved)])
    check(train("--run", copied, "--resume", "auto"), 3, ("have changed", "sha256"), tree(copied), copied)


@pytest.mark.parametrize(
    ("flags", "code", "parts"),
    [
        ("--init-from nowhere", 4, ("nowhere",)),
        ("--init-from COPY --hidden 16", 2, ("--init-from", "(36, 16)")),
        ("--init-from COPY --level word", 2, ("--level", "level char")),
    ],
)
def test_weights_that_do_not_fit_are_refused(flags, code, parts, train, small, copied, here):
    done = train(*small, flags=flags.replace("COPY", str(copied)))
    check(done, code, parts, {}, here)
