"""What a run must not be trained with: a second trainer, other data, other settings, an edited or hostile record."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from jaxgen import jitted
from jaxgen.errors import CheckpointError, DataError, UsageError
from jaxgen.inference.loading import LoadedRun
from jaxgen.runs.config import with_digest
from jaxgen.runs.lock import RunLock
from jaxgen.trainer.callbacks import Note
from jaxgen.trainer.run import resume, start

from .diverging import STEPS, book, settings, traces
from .environment import surroundings
from .fault import Fault
from .stores import tree

HOLDER = """
import sys
from jaxgen.runs.lock import RunLock

RunLock.take(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""


def begun(folder: Path) -> Path:
    """A run with the checkpoint of its first weights, all of it still to be trained by whoever comes first."""
    start(settings(folder, "run"))
    RunLock.take(folder / "run").release()
    return folder / "run"


def refused(run: Path, kind: type[Exception], *said: str, do: Callable[[], Any] | None = None) -> None:
    """Going on with ``run``, or what else there is to ``do``, is refused before anything compiles or changes."""
    names = ("jit_init_state", "jit_train_steps", "jit_eval_step", "jit_prepare", "jit_prefill", "jit_decode")
    never = mock.patch.multiple(jitted, **dict.fromkeys(names, mock.Mock(side_effect=AssertionError("compiled"))))
    before = tree(run)
    with never, pytest.raises(kind) as caught:
        (do or (lambda: resume(str(run))))()
    assert all(part in str(caught.value) for part in said), caught.value
    assert tree(run) == before


def two_trainers(folder: Path, draw: np.random.Generator) -> str:
    """A second process while the first trains; then the first is killed, and what it left is stale."""
    run = begun(folder)
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings()) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused(run, UsageError, f"by process {holder.pid} on the host")
        refused(run, UsageError, "already holds a run", do=lambda: start(settings(folder, "run")))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (run / ".lock").exists(), "there is nothing stale"
        assert resume(str(run)).train().step == STEPS
    return "the second was refused before compiling, naming process and host; a stale lock was ignored"


def not_a_run(folder: Path, draw: np.random.Generator) -> str:
    """A run that lost its ``config.json`` and some other files, beside files that look like those of a start."""
    run = begun(folder)
    (run / "config.json").unlink()
    for name in (".config.json.1-0a1b2c3d.tmp", "checkpoints/.tmp-0-1-ab", ".lock", "tokenizer.json", "notes.txt"):
        if draw.integers(2):
            (run / name).write_text("{}")
    refused(run, UsageError, "not empty", do=lambda: start(settings(folder, "run")))
    refused(run, CheckpointError, "config.json", do=lambda: resume(str(run)))
    return "exit 2 or 4; nothing was changed"


def other_data(folder: Path, draw: np.random.Generator) -> str:
    """A letter of the text becomes another."""
    run, text = begun(folder), book(folder)
    content = bytearray(text.read_bytes())
    then = LoadedRun.open(run).resolved["data"]["sha256"]
    place = int(draw.choice([at for at, byte in enumerate(content) if chr(byte) == "a"]))
    content[place] = ord("o")
    text.write_bytes(content)
    refused(run, DataError, then, "--data-changed accept")
    told: list[Any] = []
    assert resume(str(run), emit=told.append, data_changed="accept").train().step == STEPS
    assert sum("have changed" in event.text for event in told if isinstance(event, Note)) == 1
    return "exit 3 with both digests; with the flag it continued with a note"


def other_settings(folder: Path, draw: np.random.Generator) -> str:
    """Settings that make another run, and settings that may change."""
    run = begun(folder)
    others = {"hidden": 16, "lr": 0.5, "seed": 3, "batch_size": 8, "cell": "gru", "dropout": 0.0, "clip": 2.0}
    names = list(draw.choice(list(others), 3, replace=False))
    changed = settings(folder, "run", **{name: others[name] for name in names})
    flags = [f"--{name.replace('_', '-')} (" for name in names]
    refused(run, UsageError, *flags, do=lambda: resume(str(run), changed))
    may = settings(folder, "run", eval_every=3, patience=50, on_nan="rollback", steps=STEPS + 1)
    assert resume(str(run), may).train().step == STEPS + 1
    return "exit 2 listing each field; steps, evaluation interval, patience and `--on-nan` could change"


def other_versions(folder: Path, draw: np.random.Generator) -> str:
    """The run says that it was started with another jaxlib and Python, on another processor."""
    start(settings(folder, "whole")).train()
    run = begun(folder)
    alter(run, {"resolved.versions.jaxlib": "0.0.1", "resolved.versions.python": "3.0.0", "resolved.processor": "Z80"})
    told: list[Any] = []
    resume(str(run), emit=told.append).train()
    (note,) = (event.text for event in told if isinstance(event, Note))
    assert all(part in note for part in ("jaxlib 0.0.1", "python 3.0.0", "processor Z80", "may now differ"))
    assert traces(run) == traces(folder / "whole")
    return "restored with a note that bits may differ"


def altered_settings(folder: Path, draw: np.random.Generator) -> str:
    """A bit of ``config.json`` flips, and someone writes another number into it."""
    run = begun(folder)
    path = run / "config.json"
    raw = path.read_bytes()
    assert raw.count(b'"lr": 0.02') == 1
    path.write_bytes(raw.replace(b'"lr": 0.02', b'"lr": 0.03'))
    refused(run, CheckpointError, "config.json has been altered", "--resume", "--init-from")
    flipped = bytearray(raw)
    digit = int(draw.choice([at for at, byte in enumerate(raw) if chr(byte).isalnum()]))
    flipped[digit] ^= 1 << int(draw.integers(5))
    path.write_bytes(flipped)
    refused(run, CheckpointError, "config.json")
    path.write_bytes(raw)
    assert resume(str(run)).total_steps == STEPS
    return "exit 4 naming the file and what to do; restored to its content, it continued"


def alter(run: Path, changes: dict[str, Any]) -> None:
    """Set values in ``config.json``, and its digest anew; the keys are paths."""
    saved = json.loads((run / "config.json").read_text())
    for path, value in changes.items():
        inner = saved
        *parents, last = path.split(".")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    with suppress(ValueError):  # a number that is none has no digest
        saved = with_digest(saved)
    (run / "config.json").write_text(json.dumps(saved))


def everywhere(name: str, value: Any) -> dict[str, Any]:
    return {f"config.{name}": value, f"resolved.model.{name}": value}


#: What someone may write into the configuration of a run.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{f"{name} 1e9": everywhere(name, 10**9) for name in ("hidden", "layers", "embed")},
    **{f"{name} -1": everywhere(name, -1) for name in ("hidden", "layers", "embed")},
    **{f"{name} NaN": everywhere(name, float("nan")) for name in ("hidden", "layers", "dropout")},
    **{f"{name} infinite": {f"config.{name}": float("inf")} for name in ("lr", "clip", "seq_len", "steps")},
    **{f"{name} 1e9": {f"config.{name}": 10**9} for name in ("batch_size", "seq_len")},
    "a vocabulary of 1e9": {"resolved.model.vocab_size": 10**9},
    **{f"{name} 1e400": {f"resolved.{name}": 10**400} for name in ("steps", "model.hidden", "parameters", "devices")},
    **{f"{name} 2**31": {f"resolved.{name}": 2**31} for name in ("steps", "horizon")},
    "no parameters": {"resolved.parameters": 0},
    "an option that is none": everywhere("cell_options", {"__class__": 1}),
    "a cell that is a path": everywhere("cell", "../../cell"),
    "no settings": {"config": [[[]]]},
}
#: What someone may write into the tokenizer of a run.
TOKENIZERS: dict[str, bytes] = {
    "ids duplicated": b'{"kind": "char", "code_points": [32, 97, 97]}',
    "ids negative": b'{"kind": "char", "code_points": [-1, 97]}',
    "ids beyond all": b'{"kind": "char", "code_points": [32, 1114112]}',
    "ids NaN": b'{"kind": "char", "code_points": [32, NaN]}',
    "ids without end": b'{"kind": "char", "code_points": [' + b"1," * 2**22 + b"1]}",
    "a file of a million levels": b"[" * 10**6,
    "a key twice": b'{"kind": "char", "kind": "byte"}',
    "another kind": b'{"kind": "byte"}',
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "other characters": b'{"kind": "char", "code_points": %s}',
}


def hostile_descriptions(folder: Path, draw: np.random.Generator) -> str:
    """Sizes that no memory holds, numbers that are none, files that would fill the memory."""
    whole, run = begun(folder), folder / "copy"

    def attacked(attack: Callable[[], None]) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        attack()
        tracemalloc.start()
        try:
            for do in (None, lambda: LoadedRun.open(run).params()):
                refused(run, CheckpointError, do=do)
            assert tracemalloc.get_traced_memory()[1] < 2**28, "what it claims to hold was allocated"
        finally:
            tracemalloc.stop()

    for changes in CONFIGURATIONS.values():
        attacked(lambda changes=changes: alter(run, changes))  # type: ignore[misc]
    points = json.loads((whole / "tokenizer.json").read_bytes())["code_points"]
    points[int(draw.integers(1, len(points)))] += 1  # of another letter, in order still or not
    for content in TOKENIZERS.values():
        filled = content.replace(b"%s", json.dumps(points).encode())
        attacked(lambda filled=filled: (run / "tokenizer.json").write_bytes(filled))  # type: ignore[misc]
    return "refused with exit 4 before anything was allocated or compiled"


FAULTS = (
    Fault(
        "two trainers on one run folder, then a stale lock",
        "the second is refused before compiling, naming process and host; a stale lock is recognised",
        two_trainers,
        times=2,
        slow=True,
    ),
    Fault(
        "a start in a folder with a checkpoint, a lock or temporary files, but no config.json",
        "refused; every file stays as it is",
        not_a_run,
        times=5,
    ),
    Fault(
        "data changed since the checkpoint",
        "exit 3 with both digests; a flag overrides",
        other_data,
        times=3,
        slow=True,
    ),
    Fault(
        "resumed with other settings",
        "exit 2 listing the fields that differ; settings that may change are accepted",
        other_settings,
        times=3,
        slow=True,
    ),
    Fault(
        "a bit or a number altered in config.json",
        "refused with an error message, never resumed as another run",
        altered_settings,
    ),
    Fault(
        "another jaxlib, Python or processor", "restores, or the error says why not", other_versions, times=1, slow=True
    ),
    Fault(
        "hostile folder: sizes, numbers and ids of its description",
        "refused with an error message before anything is allocated or executed",
        hostile_descriptions,
        times=3,
    ),
)
