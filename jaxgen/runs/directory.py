"""The folder of a run: where its files are, and how a run is created, opened and found."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError, JaxgenWarning, UsageError, choose
from jaxgen.fsutil import (
    RESUME,
    dump_json,
    json_sha256,
    load_json,
    not_regular,
    read_bounded,
    read_temporary,
    replace_file,
    write_atomically,
    write_errors,
)
from jaxgen.runs.checkpoints import CheckpointStore, is_folder
from jaxgen.runs.lock import LOCK, RunLock, creation_errors, is_running
from jaxgen.runs.manifest import MANIFEST

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"
#: The model card of a finished run, and how it begins.
CARD, CARD_TITLE = "README.md", "# A jaxgen run of the task"
#: The files that mark a folder of runs: with several seeds, and of a sweep.
SEEDS, SWEEP = "seeds.json", "sweep.json"
#: The marker of a start that is not complete: without it, nothing that lies in a folder is ever removed.
START = ".start.json"
#: What a start makes in the folder of a run.
ENTRIES = [LOCK, CHECKPOINTS, CONFIG, TOKENIZER]
#: The content of the marker.
MARKER = dump_json({"entries": ENTRIES, "sha256": json_sha256(ENTRIES)})
#: The runs that are part of the package; each is named `pretrained:` and its folder.
PRETRAINED = Path(os.path.realpath(__file__)).parent.parent / "pretrained"
_PREFIX = "pretrained:"


class RunDirectory:
    """The folder of a run. It is self-contained: a copy of it elsewhere is the same run.

    Use ``new`` for a new run, ``open`` for an existing one and ``newest`` for the one written last. ``path`` is
    absolute, so the current folder may change later. ``str`` returns the path as it was given, for messages. The name
    ``pretrained:NAME`` stands for a run that is part of the package: it is read only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = os.fspath(path)
        self._given = PRETRAINED / given.removeprefix(_PREFIX) if given.startswith(_PREFIX) else Path(given)
        self.path = self._given.absolute()
        self.config_path = self.path / CONFIG  # the settings, and everything needed to build the model again
        self.tokenizer_path = self.path / TOKENIZER  # the vocabulary
        self.checkpoints_path = self.path / CHECKPOINTS  # the folder of the ``CheckpointStore``
        self.metrics_path = self.path / "metrics.jsonl"  # one JSON object a line
        self.samples_path = self.path / "samples.txt"  # samples drawn during training
        self.plot_path = self.path / "loss.png"  # the loss curves

    def __str__(self) -> str:
        if self.is_pretrained:
            return f"{_PREFIX}{self.path.name}"
        with suppress(FileNotFoundError):  # the current folder was deleted
            if self._given.absolute() == self.path:
                return str(self._given)
        return str(self.path)

    @property
    def is_pretrained(self) -> bool:
        """Whether this run is part of the package. Nothing may be written into its folder."""
        return Path(os.path.realpath(self.path)).parent == PRETRAINED

    def check_trainable(self) -> None:
        """Raise ``UsageError`` for a run that is part of the package."""
        if self.is_pretrained:
            raise UsageError(
                f"{self} names a run that is part of jaxgen, which is neither continued nor replaced. Give another "
                f"--run; with --init-from {self} it starts with these weights."
            )

    @classmethod
    @contextmanager
    def new(
        cls, path: str | os.PathLike[str] | None, task: str, root: str | os.PathLike[str] = "runs"
    ) -> Iterator[Callable[[], RunDirectory]]:
        """A context in which a run is started; it becomes a run at the end. An exception leaves no run.

        Yields a function that makes the folder: ``path``, which is taken at once, or by default ``<root>/<task>-<n>``
        with the next free number. This process holds its lock from then on.

        A marker (``START``) lies in the folder until the end, so that the next start can take over what a killed one
        left. No other folder with entries is taken, and nothing in it is changed.

        Raises:
            UsageError: if the folder is not empty, cannot be written, or another process holds its lock.
        """
        if path is not None:
            cls(path).check_trainable()
        start = _Start(path, task, Path(root))
        try:
            if path is not None:
                start.make()
            else:
                _check_writable(Path(root))  # before long work
            yield start.make
        except BaseException:
            start.undo()
            raise
        start.complete()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The run at ``path``. Raises ``CheckpointError`` if there is none, or its ``config.json`` is missing.

        A name ``pretrained:NAME`` that is not known raises ``UsageError``.
        """
        run = cls(path)
        if os.fspath(path).startswith(_PREFIX):
            choose(os.fspath(path).removeprefix(_PREFIX), pretrained_runs(), "pretrained run")
        try:
            if stat.S_ISREG(os.stat(run.config_path).st_mode):
                return run
            problem = f"has no {CONFIG}"
        except FileNotFoundError:
            problem = f"has no {CONFIG}" if os.path.exists(run.path) else "does not exist"
        except NotADirectoryError:
            problem = "is not a folder"
        except OSError as error:
            run.check_config()
            raise CheckpointError(f"{run} cannot be read: {error.strerror}. Make it readable, or repair it.") from error
        run.check_config()
        raise CheckpointError(
            f"{run} is not a run: it {problem}. `python train.py --run {run}` trains one; without --run the newest "
            "one is used."
        )

    @classmethod
    def newest(
        cls,
        root: str | os.PathLike[str] = "runs",
        usable: Callable[[str], bool] | None = None,
        tasks: Iterable[str] = (),
    ) -> RunDirectory:
        """The run under ``root`` whose configuration or newest checkpoint was written last, of a ``usable`` task.

        A run that has not trained a step yet counts only if there is no other. Folders that cannot be read are left
        out, with a ``JaxgenWarning``.

        Args:
            root: The folder of the runs.
            usable: Whether the caller can use a task. Default: any.
            tasks: The names of all tasks, for the message.

        Raises:
            CheckpointError: if there is no such run, or ``root`` cannot be listed.
        """
        root = Path(root)
        found: list[tuple[bool, float, str, RunDirectory]] = []
        others, unreadable = False, []
        try:
            names = list_members(root)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise CheckpointError(f"{root}/ cannot be listed: {error.strerror}. Name a run with --run DIR.") from error
        for name in names:
            run = cls(root / name)
            try:
                if not stat.S_ISREG(os.stat(run.config_path).st_mode):
                    continue
                with open(run.config_path, "rb"):  # whether it can be read
                    pass
                if usable is None or (task := run.task()) is None or usable(task):
                    found.append((*run._last_written(), name, run))
                else:
                    others = True
            except (FileNotFoundError, NotADirectoryError):  # not a run, or just removed
                continue
            except OSError as error:
                unreadable.append(f"{run} ({error.strerror})")
        if unreadable:
            left_out = f"Left out, because it cannot be read: {', '.join(sorted(unreadable))}."
            warnings.warn(JaxgenWarning(left_out), stacklevel=2)
        if not found:
            able = "" if usable is None else ", ".join(filter(usable, tasks))
            which = f" of a task that this command can use ({able})" if others else ""
            ours = " One comes with jaxgen: --run pretrained:shakespeare." * (usable is None or usable("language"))
            raise CheckpointError(
                f"There is no run{which} in {root}/. Train one with `python train.py`, or name one with --run DIR."
                f"{ours}"
            )
        return max(found, key=lambda each: each[:3])[3]

    def relative_to_here(self) -> str:
        """The current folder as seen from the run, so that equal runs of different projects record the same.

        It is the run itself where the current folder was deleted.
        """
        try:
            return Path(os.path.relpath(Path.cwd(), self.path.resolve())).as_posix()
        except ValueError:  # another drive of Windows
            return str(Path.cwd())
        except FileNotFoundError:
            return "."

    def task(self) -> str | None:
        """The task named in ``config.json``; ``None`` if that cannot be read."""
        try:
            task = self.read_json(CONFIG)["task"]
        except (CheckpointError, KeyError, TypeError):
            return None
        return task if isinstance(task, str) else None

    def exists(self) -> bool:
        """Whether this is a run, that is, has a ``config.json``."""
        return os.path.isfile(self.config_path)

    def check_config(self) -> None:
        """Raise ``CheckpointError`` if this is a run whose ``config.json`` is missing or is not a file.

        The files of a start that was killed before it wrote ``config.json`` are not a run.
        """
        # First: a run that starts right now writes its configuration before it removes its marker.
        trained = is_folder(self.checkpoints_path) and bool(CheckpointStore(self.checkpoints_path).steps())
        with suppress(OSError):
            trained = trained and _find_obstacle(self.path) is not None
        try:
            problem = not_regular(os.lstat(self.config_path))
        except OSError:
            problem = "is missing" if trained else None
        if problem:
            raise CheckpointError(
                f"{self} is a damaged run: its {CONFIG} {problem}. Copy the run again from where it came, or "
                "train another in a new folder with `python train.py --run DIR`."
            )

    def clean(self) -> None:
        """Remove what killed processes left in a run whose lock this process holds: temporary files, and a marker."""
        with write_errors(self.path):
            if not self.exists():
                return
            if _has_marker(self.path):
                (self.path / START).unlink(missing_ok=True)
            for entry in os.scandir(self.path):
                made = read_temporary(entry.name)
                if made is not None and entry.is_file(follow_symlinks=False) and not is_running(made[1]):
                    os.unlink(entry.path)

    def own_folder(self, name: str) -> Path:
        """The folder ``name`` in the run, which may not exist. Raises ``CheckpointError`` if it is a link."""
        folder = self.path / name
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, and a run holds its own files only. Remove it.")
        return folder

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

    def _last_written(self) -> tuple[bool, float]:
        """Whether it has trained, and when its configuration or newest checkpoint was written."""
        times = [self.config_path.stat().st_mtime]
        has_trained = (self.path / "report.json").exists()  # n-grams end at step 0
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in list(os.scandir(self.checkpoints_path)):
                has_trained |= entry.name.isdecimal() and int(entry.name[:20]) > 0
                with suppress(FileNotFoundError):  # a trainer has just removed it
                    times += [entry.stat().st_mtime] if entry.name[0] != "." else []
        return has_trained, max(times)


def list_members(folder: str | os.PathLike[str]) -> list[str]:
    """The entries of a folder of runs; in place of folders of runs with several seeds or of sweeps their entries.

    Raises ``OSError`` for a folder that cannot be listed.
    """
    found: list[str] = []
    for name in sorted(os.listdir(folder)):
        inner = Path(folder, name)
        if any(os.path.isfile(inner / marker) for marker in (SEEDS, SWEEP)):
            with suppress(OSError):
                found += [os.path.join(name, member) for member in list_members(inner)]
        else:
            found.append(name)
    return found


def pretrained_runs() -> list[str]:
    """The names of the runs that are part of the package, without their prefix."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))


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
    except OSError:
        return False
    return _has_marker(run.path)


def make_numbered(root: Path, task: str) -> Path:
    """Make the folder ``<root>/<task>-<n>`` with the next free number."""
    root.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(rf"{re.escape(task)}-([0-9]{{1,9}})")
    number = max((int(match[1]) for entry in os.listdir(root) if (match := pattern.fullmatch(entry))), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (root / f"{task}-{number}").mkdir()  # atomic: only one process succeeds
            return root / f"{task}-{number}"


def _check_writable(folder: Path) -> None:
    """Raise ``UsageError`` if no folder can be made in ``folder``, which may not exist."""
    place = folder.absolute()
    nearest = next(each for each in (place, *place.parents) if os.path.lexists(each))
    with creation_errors(folder):
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class _Start:
    """The folder of a run that is being started."""

    def __init__(self, path: str | os.PathLike[str] | None, task: str, root: Path) -> None:
        self._path, self._task, self._root = None if path is None else Path(path), task, root
        self._run: RunDirectory | None = None
        self._lock: RunLock | None = None
        self._made: list[Path] = []  # folders, the innermost first
        self._marked = False

    def make(self) -> RunDirectory:
        """Make the folder, mark it and take its lock. What a killed start left there is removed."""
        if self._run is None:
            with creation_errors(self._root if self._path is None else self._path):
                place = (self._root if self._path is None else self._path).absolute()
                self._made = [each for each in (place, *place.parents) if not os.path.lexists(each)]
                place.mkdir(parents=True, exist_ok=True)
                if self._path is None:
                    self._path = make_numbered(self._root, self._task)
                    self._made.insert(0, self._path.absolute())
                self._run = run = RunDirectory(self._path)
                self._mark(run)  # before the lock, so that nothing is ever there without it
                self._lock = RunLock.take_new(self._path)
                self._mark(run)  # another start may have failed since
                _remove_started(run.path)
        return self._run

    def _mark(self, run: RunDirectory) -> None:
        if obstacle := _find_obstacle(run.path):
            go_on = f"Continue it with `python train.py --run {shlex.quote(str(run))} --resume auto`, or choose"
            how = go_on if run.exists() else "Choose"
            raise UsageError(f"{run} {obstacle}. {how} another folder with --run DIR.")
        if not _has_marker(run.path):
            write_atomically(run.path / START, MARKER)
            self._marked = True

    def complete(self) -> None:
        """The run is whole: remove the marker."""
        if self._run is not None:
            with write_errors(self._run.path):
                (self._run.path / START).unlink(missing_ok=True)

    def undo(self) -> None:
        """Leave the folder as it was, without what a killed start had left there. A whole run stays."""
        if self._run is not None:
            folder = self._run.path
            with suppress(OSError):
                ours = self._lock is not None and self._lock.is_ours()
                if ours and not os.path.lexists(folder / CONFIG):
                    _remove_started(folder)
                if self._lock is not None:
                    self._lock.release()
                if ours or (self._marked and not os.path.lexists(folder / LOCK)):
                    (folder / START).unlink(missing_ok=True)
        for each in self._made:
            with suppress(OSError):  # one that is not empty stays
                each.rmdir()


def is_unfinished_start(path: Path) -> bool:
    """Whether a folder holds what a killed start left, and nothing else."""
    try:
        return _has_marker(path) and _find_obstacle(path) is None
    except OSError:
        return False


def _has_marker(path: Path) -> bool:
    try:
        return read_bounded(path / START) == MARKER
    except (OSError, ValueError):
        return False


def _find_obstacle(path: Path) -> str | None:
    """Why no run can be started in the folder ``path``; ``None`` if it is empty or holds only an unfinished start."""
    entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    if any(entry.name == CONFIG for entry in entries):
        return "already holds a run"
    marked = _has_marker(path)
    for entry in entries:
        made = read_temporary(entry.name)
        if not ((made is not None and made[0] == START) or (marked and _is_of_a_start(entry))):
            return f"is not empty and is not a run (it holds {entry.name!a}, but no {CONFIG})"
    return None


def _is_of_a_start(entry: os.DirEntry[str]) -> bool:
    """Whether a start makes this entry of its folder, or a temporary file of this name, before ``config.json``."""
    if entry.name == CHECKPOINTS:
        return entry.is_dir(follow_symlinks=False) and all(
            each.is_dir(follow_symlinks=False) and (each.name == f"{0:08d}" or read_temporary(each.name) is not None)
            for each in list(os.scandir(entry))
        )
    made = read_temporary(entry.name)
    name = entry.name if made is None else made[0]
    return name in (START, *ENTRIES) and entry.is_file(follow_symlinks=False)


def _remove_started(path: Path) -> None:
    """Remove what an unfinished start left in ``path``, but for its marker and its lock."""
    if _find_obstacle(path) is None:
        for entry in list(os.scandir(path)):
            if entry.name == CHECKPOINTS:
                shutil.rmtree(entry)
            elif entry.name not in (START, LOCK):
                os.unlink(entry)
