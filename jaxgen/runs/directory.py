"""The folder of a run: where its files are, and how a run is created, opened and found."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError, UsageError
from jaxgen.fsutil import RESUME, dump_json, load_json, not_regular, replace_file
from jaxgen.runs.checkpoints import CheckpointStore, is_folder
from jaxgen.runs.lock import LOCK, creation_errors, probe_file
from jaxgen.runs.manifest import MANIFEST

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"


class RunDirectory:
    """The folder of a run. It is self-contained: a copy of it elsewhere is the same run.

    Use ``create`` for a new run, ``open`` for an existing one and ``newest`` for the one written last. ``path`` is
    absolute, so the current folder may change later. ``str`` returns the path as it was given, for messages.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._given = Path(path)
        self.path = self._given.absolute()
        self.config_path = self.path / CONFIG  # the settings, and everything needed to build the model again
        self.tokenizer_path = self.path / TOKENIZER  # the vocabulary
        self.checkpoints_path = self.path / CHECKPOINTS  # the folder of the ``CheckpointStore``
        self.metrics_path = self.path / "metrics.jsonl"  # one JSON object a line
        self.samples_path = self.path / "samples.txt"  # samples drawn during training
        self.plot_path = self.path / "loss.png"  # the loss curves

    def __str__(self) -> str:
        same = self._given.is_absolute() or self._given.absolute() == self.path
        return str(self._given if same else self.path)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str] | None, task: str, root: str | os.PathLike[str] = "runs"
    ) -> RunDirectory:
        """Make the folder of a new run, at ``path`` or by default at ``<root>/<task>-<n>`` with the next free number.

        Raises:
            UsageError: if the folder is not empty or cannot be written.
        """
        with creation_errors(Path(root if path is None else path)):
            if path is None:
                run = cls(_make_numbered(Path(root), task))
            else:
                run = cls(path)
                run.path.mkdir(parents=True, exist_ok=True)
                _check_free(Path(path))
            with probe_file(run.path) as probe:
                probe.write_bytes(b"\0")
        return run

    @classmethod
    def check(cls, path: str | os.PathLike[str] | None, root: str | os.PathLike[str] = "runs") -> None:
        """Raise the ``UsageError`` that ``create`` would raise, without making anything. For use before long work."""
        place = Path(root if path is None else path).absolute()
        nearest = next(each for each in (place, *place.parents) if os.path.lexists(each))
        with creation_errors(Path(root if path is None else path)):
            if path is not None and nearest == place:
                _check_free(Path(path))
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The run at ``path``. Raises ``CheckpointError`` if there is none, or its ``config.json`` is missing."""
        run = cls(path)
        if not run.exists():
            run.check_config()
            problem = f"has no {CONFIG}" if run.path.is_dir() else "is not a folder"
            raise CheckpointError(
                f"{run} is not a run: it {problem if run.path.exists() else 'does not exist'}. `python train.py "
                f"--run {run}` trains one; without `--run` the newest one is used."
            )
        return run

    @classmethod
    def newest(cls, root: str | os.PathLike[str] = "runs", tasks: Collection[str] | None = None) -> RunDirectory:
        """The run under ``root`` whose configuration or newest checkpoint was written last (of one of ``tasks``).

        Raises:
            CheckpointError: if there is no such run.
        """
        root = Path(root)
        runs = [run for config in sorted(root.glob(f"*/{CONFIG}")) if (run := cls(config.parent)).exists()]
        able = [run for run in runs if tasks is None or run.task() in (None, *tasks)]
        if not able:
            which = f" of a task that this command can use ({', '.join(tasks)})" if runs and tasks else ""
            raise CheckpointError(
                f"There is no run{which} in {root}/. Train one with `python train.py`, or name one with `--run DIR`."
            )
        return max(able, key=cls._last_written)

    def relative_to_here(self) -> str:
        """The current folder as seen from the run, so that equal runs of different projects record the same."""
        here = Path.cwd()
        try:
            return Path(os.path.relpath(here, self.path.resolve())).as_posix()
        except ValueError:  # another drive of Windows
            return str(here)

    def task(self) -> str | None:
        """The task named in ``config.json``; ``None`` if that cannot be read."""
        try:
            task = self.read_json(CONFIG)["task"]
        except (CheckpointError, KeyError, TypeError):
            return None
        return task if isinstance(task, str) else None

    def exists(self) -> bool:
        """Whether this is a run, that is, has a ``config.json``."""
        return self.config_path.is_file()

    def check_config(self) -> None:
        """Raise ``CheckpointError`` if this is a run whose ``config.json`` is missing or is not a file.

        The files of a start that was killed before it wrote ``config.json`` are not a run.
        """
        trained = self._has_trained()  # first: a run that starts right now writes its configuration before it trains
        try:
            problem = not_regular(os.lstat(self.config_path))
        except OSError:
            problem = "is missing" if trained else None
        if problem:
            raise CheckpointError(
                f"{self} is a damaged run: its {CONFIG} {problem}. Copy the run again from where it came, or "
                "train another in a new folder with `python train.py --run DIR`."
            )

    def clear_unfinished(self) -> None:
        """Remove the first checkpoint of a start that was killed before it wrote ``config.json``; nothing else."""
        if not self.exists() and is_folder(self.checkpoints_path):
            CheckpointStore(self.checkpoints_path).remove_first()

    def _has_trained(self) -> bool:
        """Whether the folder holds more than a start makes before it writes ``config.json``."""
        if not is_folder(self.checkpoints_path):
            return False
        steps = CheckpointStore(self.checkpoints_path).steps()
        return bool(steps) and (steps != [0] or not all(map(_is_of_a_start, {*os.listdir(self.path)} - {CHECKPOINTS})))

    def write_json(self, name: str, value: object) -> None:
        """Write ``value`` atomically to the file ``name`` of the run. Its numbers must be finite."""
        replace_file(self._file(name), dump_json(value), RESUME)

    def read_json(self, name: str) -> Any:
        """The content of the JSON file ``name``. Raises ``CheckpointError`` as ``load_json`` does."""
        advice = f"Copy the run {self} again, or train another with `python train.py --run DIR`."
        return load_json(self._file(name), advice)

    def _file(self, name: str) -> Path:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not the name of a file in the run; give a name without a folder.")
        return self.path / name

    def _last_written(self) -> tuple[float, str]:
        times = [self.config_path.stat().st_mtime]
        if self.checkpoints_path.is_dir():
            times += [entry.stat().st_mtime for entry in os.scandir(self.checkpoints_path) if entry.name[0] != "."]
        return max(times), self.path.name


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, a damaged one without its ``config.json``, or the files of a killed start."""
    run = RunDirectory(folder)
    if run.exists():
        with suppress(CheckpointError, TypeError):
            if {"config", "resolved", "task"} <= {*run.read_json(CONFIG)}:
                return True
    try:
        if is_folder(run.checkpoints_path) and any(run.checkpoints_path.glob(f"[0-9]*/{MANIFEST}")):
            return True
        visible = {entry for entry in os.listdir(folder) if not entry.startswith(".")}
    except OSError:
        return False
    return TOKENIZER in visible and visible <= {CHECKPOINTS, TOKENIZER}


def _make_numbered(root: Path, task: str) -> Path:
    """Make the folder ``<root>/<task>-<n>`` with the next free number."""
    root.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(rf"{re.escape(task)}-([0-9]{{1,9}})")
    number = max((int(match[1]) for entry in os.listdir(root) if (match := pattern.fullmatch(entry))), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (root / f"{task}-{number}").mkdir()  # atomic: only one process succeeds
            return root / f"{task}-{number}"


def _check_free(path: Path) -> None:
    """Raise ``UsageError`` if the folder ``path`` holds more than the files of a killed start."""
    entries = os.listdir(path)
    if all(map(_is_of_a_start, entries)):
        return
    problem = "already holds a run" if CONFIG in entries else f"is not empty and is not a run (it has no {CONFIG})"
    raise UsageError(
        f"{path} {problem}. Continue a run with `--resume auto`; for a new one choose another folder with `--run`."
    )


def _is_of_a_start(entry: str) -> bool:
    """Whether a start makes a file of this name before it writes ``config.json``."""
    return entry in (TOKENIZER, LOCK) or re.fullmatch(r"\..*\.tmp", entry) is not None
