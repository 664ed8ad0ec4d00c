"""Removes runs that are not wanted any more: only what jaxgen made in them, and only if nothing trains them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import read_temporary, write_errors
from jaxgen.runs.checkpoints import CHECKPOINT_NAME
from jaxgen.runs.config import read_config
from jaxgen.runs.directory import (
    CARD,
    CARD_TITLE,
    CHECKPOINTS,
    CONFIG,
    START,
    TOKENIZER,
    RunDirectory,
    is_unfinished_start,
)
from jaxgen.runs.lock import LOCK, RunLock
from jaxgen.runs.manifest import MANIFEST, MODEL, TRAINING_STATE

#: The files that jaxgen writes into the folder of a run. Others are never removed, nor is a run that holds some.
FILES = {
    *(CONFIG, TOKENIZER, LOCK, START),
    *("metrics.jsonl", "metrics.csv", "trackers.json", "samples.txt", "report.json", CARD),
    *("loss.png", "quality.png", "attention.png", "captions.png", "example.png", "confusion.png", "confusion.txt"),
}
_CHECKPOINT_FILES = "|".join(map(re.escape, (MANIFEST, MODEL, TRAINING_STATE)))
_FILES_BELOW = re.compile(
    rf"{CHECKPOINTS}/[^/]+/(?:{_CHECKPOINT_FILES})|tensorboard/events\.out\.tfevents\.[^/]+", re.DOTALL
)


def why_kept(path: Path) -> str | None:
    """Why a run, or what a killed start left, cannot be removed, as the end of a sentence; None if it can."""
    if path.is_symlink():
        return "is a link"
    if RunDirectory(path).is_pretrained:
        return "is part of jaxgen"
    try:
        if not is_unfinished_start(path):
            read_config(RunDirectory(path))
    except CheckpointError:
        return "is not a whole run of this version of jaxgen"
    if RunLock.is_held(path):
        return "is being trained"
    try:
        _entries(path)
    except UsageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def remove_run(path: Path) -> None:
    """Remove a run, or what a killed start left, and its folder.

    Raises:
        UsageError: ``why_kept`` has a reason, or another process holds the lock.
        CheckpointError: The system refuses.
    """
    if problem := why_kept(path):
        raise UsageError(f"{path} {problem}: it was not removed.")
    with write_errors(path, "repeat the command"):
        lock = RunLock.take_new(path)
        try:
            files, folders = _entries(path)
            last = [path / name for name in (CONFIG, START) if path / name in files]
            for file in files:
                if file not in (path / LOCK, *last):
                    file.unlink()
            for folder in reversed(folders):
                folder.rmdir()
            # The settings last: what an interrupted removal leaves is still a run, and can be removed.
            for file in last:
                file.unlink()
        finally:
            lock.release()
        path.rmdir()


def _entries(path: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in the folder of a run, an outer one first.

    Raises ``UsageError`` for any that is not of jaxgen; its message is the end of a sentence.
    """
    files: list[Path] = []
    folders: list[Path] = []
    for here, inside, names in os.walk(path, onerror=_fail):
        for name in sorted((*inside, *names)):
            entry = Path(here, name)
            mode = os.lstat(entry).st_mode
            relative = entry.relative_to(path).as_posix()
            if stat.S_ISREG(mode) and _is_ours(relative) and (relative != CARD or _is_card(entry)):
                files.append(entry)
            elif stat.S_ISDIR(mode) and _is_our_folder(relative):
                folders.append(entry)
            elif relative == "wandb":
                raise UsageError("holds 'wandb', the files of Weights & Biases: remove that folder first")
            else:
                raise UsageError(f"holds {relative!r}, which jaxgen did not make")
    return files, folders


def _is_card(path: Path) -> bool:
    """Whether a README is the one that jaxgen writes."""
    with path.open("rb") as file:
        return file.read(len(CARD_TITLE)) == CARD_TITLE.encode()


def _fail(error: OSError) -> None:
    raise error


def _is_ours(relative: str) -> bool:
    """Whether jaxgen makes a file of this name, seen from the folder of the run, or a temporary one."""
    if "/" in relative:
        return _FILES_BELOW.fullmatch(relative) is not None
    return relative in FILES or read_temporary(relative) is not None


def _is_our_folder(relative: str) -> bool:
    parent, slash, name = relative.rpartition("/")
    if not slash:
        return name in (CHECKPOINTS, "tensorboard")
    made = read_temporary(name)
    return parent == CHECKPOINTS and CHECKPOINT_NAME.fullmatch(name if made is None else made[0]) is not None
