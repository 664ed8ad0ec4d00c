"""Checkpoints: complete or absent, the latest few and the best kept, every bit verified on the way back."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import run_dir_missing, sync_folder, unwritable
from jaxgen.runs import manifest as fmt
from jaxgen.runs import orbax_io
from jaxgen.runs.manifest import DamagedCheckpointError, UnreadableCheckpointError, check_files, damaged, read_record


def entries(directory: Path) -> list[Path]:
    """What lies in ``directory``, none when it does not exist. Refused: a link, which leads to the files of others."""
    try:
        mode = os.lstat(directory).st_mode
        if not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "not a folder"
            raise CheckpointError(
                f"{directory} is {what}: a run keeps its checkpoints in a folder of its own. Put that folder there."
            )
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableCheckpointError(
            f"{directory} cannot be read now: {error.strerror}. Nothing was changed. Repeat the command once it can be."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether it is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def is_whole(folder: Path, step: int) -> bool:
    """Whether a checkpoint is as it was saved. Raises ``CheckpointError`` if none can tell now."""
    try:
        check_files(folder, step, read_record(folder, step))
    except DamagedCheckpointError:
        return False
    return True


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """What the system refuses while entered is the ``CheckpointError`` of a ``directory`` that cannot be written."""
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from error


def size_on_disk(folder: Path) -> int:
    """The bytes that the files of ``folder`` take, in whole blocks where the system tells them."""
    with suppress(OSError):
        found = [path.stat() for path in folder.rglob("*")]
        return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in found)
    return 0


def sync_tree(folder: Path) -> None:
    """Ask the system to put all that lies in ``folder`` on the disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "r+b") as file:  # Windows syncs files open for writing only
                os.fsync(file.fileno())


@contextmanager
def guard_directory(folder: Path, partial: Path) -> Iterator[None]:
    """``FileNotFoundError`` unless ``folder``, into whose ``partial`` the block writes, is there until its end.

    Where it is removed or moved meanwhile, Orbax makes anew whatever is missing above its files, and a run would go on
    where nothing else of it is. What was made so is removed.
    """
    there = [(each, _held(each)) for each in (folder, folder.parent)]  # held, so that no other gets their numbers
    try:
        try:
            yield
        except Exception as error:
            if not _is_still(*there[0]):
                raise run_dir_missing() from error
            raise
        if not _is_still(*there[0]):
            raise run_dir_missing()
    finally:
        if not _is_still(*there[0]):
            shutil.rmtree(partial, ignore_errors=True)
        for each, descriptor in there:
            with suppress(OSError):  # one that holds something by now was not made by Orbax alone
                if not _is_still(each, descriptor):
                    each.rmdir()
            if descriptor is not None:
                os.close(descriptor)


def _held(folder: Path) -> int | None:
    """A descriptor of a folder; ``None`` on Windows, which gives none and removes no folder that is written to."""
    return None if os.name == "nt" else os.open(folder, getattr(os, "O_PATH", os.O_RDONLY))


def _is_still(folder: Path, descriptor: int | None) -> bool:
    try:
        return descriptor is None or os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except OSError:
        return False


_NAME = re.compile(r"([0-9]{8,18})(?:\.([0-9]{1,9}))?")
_ASIDE = re.compile(r"([0-9]{8,18})(?:\.[0-9]{1,9})?\.damaged(?:-[0-9]+)?")
_UNFINISHED = ".tmp-"


class CheckpointStore:
    """The checkpoints in one folder: the latest ``keep_latest`` and the one with the lowest metric.

    A checkpoint is a folder named by its step; saving a step again makes ``<step>.1`` and then drops the former, so
    there is no moment without one. Reading never writes: what a killed save left is ignored, and removed by the
    next save. A folder of that name is a checkpoint whatever it holds: one that is damaged is told of, and what sets it
    aside (as ``<step>.damaged``, which nothing here touches again) is ``truncate``, when a run goes on without it.
    """

    def __init__(self, directory: str | os.PathLike[str], keep_latest: int = 2) -> None:
        if keep_latest < 1:
            raise ValueError(f"keep_latest is {keep_latest}; it must be at least 1.")
        self.directory = Path(directory).absolute()
        self.keep_latest = keep_latest
        self._cleaned = self._known = False
        self._damaged: set[str] = set()  # names of folders that restoring found damaged
        self._lost: set[int] = set()  # steps that were best and are gone

    # --- what is there

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. Whether each is undamaged, only ``restore`` finds out."""
        return sorted(self._folders())

    def latest(self) -> int | None:
        """The last step that has a checkpoint."""
        return max(self._folders(), default=None)

    def names(self) -> list[str]:
        """The folders of the checkpoints: others once one was saved, replaced or dropped."""
        return [folder.name for _, _, folder in self._every()]

    def best(self) -> int | None:
        """The step with the lowest finite metric, the earliest of equals; ``None`` when no checkpoint has one.

        Every record knows the metrics of those beside it, so a damaged best one is still the best, and restoring it
        says what is wrong. Raises ``CheckpointError`` when the metric of a damaged one is told nowhere.
        """
        metrics, _, untold = self._metrics()
        if untold:
            raise untold[0]
        return _lowest(metrics)

    def metric(self, step: int) -> float | None:
        """The metric that ``step`` was saved with; ``None`` when it had none or it was not finite."""
        return self._record(step)[1]["metric"]

    def host(self, step: int | None = None) -> dict[str, Any]:
        """The JSON saved beside the arrays, without reading them (step ``None``: the latest)."""
        return self._record(step)[1]["host"]

    def digest(self, step: int | None = None) -> str:
        """Sixteen hexadecimal digits standing for every bit of the arrays (step ``None``: the latest)."""
        return fmt.digest(self._record(step)[1])

    # --- saving

    def save(self, step: int, state: Any, host: Mapping[str, Any], metric: float | None = None) -> None:
        """Save a pytree of arrays and a JSON object as the checkpoint of ``step``, then drop those no longer kept.

        ``metric``: lower is better; one that is not finite is never best. A step saved before is replaced, and
        keeps its metric when the arrays are equal and none is given. Raises ``ValueError`` when the state holds
        what a checkpoint cannot (typed keys, objects; NaN in ``host``), ``CheckpointError`` when the disk refuses.
        """
        if step < 0:
            raise ValueError(f"The step is {step}; it must not be negative.")
        arrays = fmt.to_arrays(state)
        leaves = {name: fmt.describe(array) for name, array in arrays.items()}
        if metric is None:
            metric = self._former_metric(step, leaves)
        partial = self.directory / f"{_UNFINISHED}{step}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._make_folder()
            self.clean()
            beside = self._metrics_beside(step)
            with guard_directory(self.directory, partial):
                partial.mkdir()
                orbax_io.write_arrays(partial / fmt.ARRAYS, arrays)
                fmt.write_record(partial, step, None if metric is None else float(metric), dict(host), leaves, beside)
                sync_tree(partial)
            os.rename(partial, self._next_folder(step))
            sync_folder(self.directory)
        except (OSError, orbax_io.OrbaxError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # before it is told how much is free
            self._cleaned = False  # what Orbax still writes may make it anew
            reason = error if isinstance(error, OSError) else error.__cause__ or error
            raise unwritable(self.directory, reason, needed=self._needed(arrays)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._known = True
        self._retain(step)

    def truncate(self, step: int) -> None:
        """Drop the checkpoints beyond ``step``: a run that resumes there will write them again.

        Those that are damaged are set aside instead, and so are older ones that ``restore_newest_good`` found damaged.
        """
        self.clean()
        later = [(n, folder) for n, _, folder in self._every() if n > step and folder.name not in self._damaged]
        # All are read before any is dropped.
        damaged_later = {folder.name for number, folder in later if not is_whole(folder, number)}
        for name in sorted(self._damaged | damaged_later):
            self._set_aside(self.directory / name)
        for _, folder in later:
            if folder.name not in damaged_later:
                self._drop(folder)
        for lost in self._lost:
            with writing(self.directory):
                self._aside(f"{lost:08d}").mkdir()  # says so to those who ask which one is best
        self._damaged, self._lost = set(), set()

    def clean(self) -> None:
        """Remove what a killed save or a killed removal left (once per store). Only the process that trains may."""
        if not self._cleaned:
            for entry in entries(self.directory):
                if entry.name.startswith(_UNFINISHED) and is_folder(entry):
                    self._drop(entry)
        self._cleaned = True

    # --- restoring

    def restore(self, step: int | None = None, like: Any = None) -> tuple[Any, dict[str, Any]]:
        """The state and the host JSON of ``step`` (``None``: the latest), on this process's default device.

        ``like`` is a pytree of arrays or ``jax.ShapeDtypeStruct``: it is checked before any array is read, and gives
        back its classes; without it the state is nested dictionaries. Raises ``DamagedCheckpointError`` naming what
        was altered, and ``CheckpointError`` for no such step or a leaf of another shape.
        """
        return self._restore(*self._find(step), like, "")

    def restore_params(self, step: int | None = None, like: Any = None) -> tuple[Any, dict[str, Any]]:
        """As ``restore``, but only the subtree ``params`` of the state; ``like`` is that subtree's."""
        return self._restore(*self._find(step), like, "params/")

    def restore_newest_good(self, like: Any = None) -> tuple[int, Any, dict[str, Any], list[str]]:
        """The newest checkpoint that is undamaged: (step, state, host, what was wrong with each that is not).

        ``truncate`` then sets those aside. They are the newer ones, and of the older ones the best and any that cannot
        say whether it is. Raises ``CheckpointError`` when none is good, and at once when one has another shape than
        ``like`` or cannot be read now.
        """
        found: list[tuple[Path, DamagedCheckpointError]] = []
        for step, _, folder in reversed(self._every()):
            try:
                state, host = self._restore(folder, step, like, "")
            except DamagedCheckpointError as error:
                found.append((folder, error))
            else:
                problems: list[str] = []
                for each in found:
                    self._note(*each, problems)
                self._look_at_best(problems)
                return step, state, host, problems
        if found:  # they stay where they are
            raise CheckpointError(
                f"No checkpoint in {self.directory} is good. {' '.join(error.said for _, error in found)} Nothing was "
                "changed. Copy the run again, or train anew with `python train.py --run DIR`."
            )
        raise self._nothing()

    def _look_at_best(self, problems: list[str]) -> None:
        """Add what is wrong with the best checkpoint, and with those that may be it."""
        _, broken, _ = self._metrics()
        for step, error in broken.items():
            if not isinstance(error, DamagedCheckpointError):
                raise error
            if (folder := self._folders()[step]).name not in self._damaged:
                self._note(folder, error, problems)
        best, folders = _lowest(self._metrics()[0]), self._folders()
        if best is not None and best not in folders:
            self._lost.add(best)
            problems.append(f"The checkpoint of step {best}, the best one, is missing from {self.directory}.")
        elif best is not None and folders[best].name not in self._damaged:
            try:
                fmt.check_files(folders[best], best, fmt.read_record(folders[best], best))
            except DamagedCheckpointError as error:
                self._note(folders[best], error, problems)

    def _note(self, folder: Path, error: DamagedCheckpointError, problems: list[str]) -> None:
        self._damaged.add(folder.name)
        problems.append(f"{error.said} It is set aside as {self._aside(folder.name)}.")

    def _restore(self, folder: Path, step: int, like: Any, prefix: str) -> tuple[Any, dict[str, Any]]:
        record = fmt.read_record(folder, step)
        leaves = {name: leaf for name, leaf in record["leaves"].items() if name.startswith(prefix)}
        if not leaves and prefix:
            raise CheckpointError(f"The checkpoint of step {step} holds no {prefix[:-1]}; it was not saved by jaxgen.")
        wanted = None if like is None else [prefix + name for name, _ in fmt.leaf_names(like)]
        if wanted is not None:
            fmt.check_like(step, leaves, dict(zip(wanted, jax.tree_util.tree_leaves(like))))
        fmt.check_memory(step, leaves)
        fmt.check_files(folder, step, record)
        arrays = orbax_io.read_arrays(folder, step, leaves, record["leaves"])
        for name, leaf in leaves.items():
            if fmt.describe(arrays[name]) != leaf:
                raise damaged(folder, step, f"the array {name} does not match its checksum")
        placed = {name: fmt.to_device(arrays[name]) for name in leaves}
        if wanted is not None:
            state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [placed[name] for name in wanted])
            return state, record["host"]
        return fmt.unescape(fmt.nest({name[len(prefix) :]: array for name, array in placed.items()})), record["host"]

    # --- folders

    def _every(self) -> list[tuple[int, int, Path]]:
        """All checkpoints as (step, revision, folder), ascending."""
        matches = [(match, entry) for entry in entries(self.directory) if (match := _NAME.fullmatch(entry.name))]
        return sorted((int(match[1]), int(match[2] or 0), entry) for match, entry in matches)

    def _folders(self) -> dict[int, Path]:
        """Step -> its folder: of a step saved again, the one written last."""
        folders = {step: folder for step, _, folder in self._every()}
        self._known |= bool(folders)
        return folders

    def _make_folder(self) -> None:
        """Make the folder unless it was there before: then someone removed it, and the best one with it."""
        if not self._known:
            self.directory.mkdir(exist_ok=True)
        elif not self.directory.is_dir():
            raise run_dir_missing()

    def _needed(self, arrays: Mapping[str, np.ndarray]) -> int:
        """How many bytes of the disk a checkpoint takes, by its arrays and by the one before it."""
        former = list(self._folders().values())[-1:]
        return max(sum(array.nbytes for array in arrays.values()), *map(size_on_disk, former), 0)

    def _metrics(self) -> tuple[dict[int, float | None], dict[int, CheckpointError], list[CheckpointError]]:
        """Step -> metric, by its record or by those beside it; step -> what is wrong with its record; and of those
        the errors of the steps whose metric none tells."""
        own: dict[int, float | None] = {}
        told: dict[int, float | None] = {}
        broken: dict[int, CheckpointError] = {}
        folders = self._folders()
        for step, folder in sorted(folders.items()):
            try:
                record = fmt.read_record(folder, step)
            except CheckpointError as error:
                broken[step] = error
            else:
                own[step] = record["metric"]
                told |= fmt.metrics_beside(record)
        aside = {int(match[1]) for entry in entries(self.directory) if (match := _ASIDE.fullmatch(entry.name))}
        metrics = {step: metric for step, metric in told.items() if step in folders or step not in aside} | own
        return metrics, broken, [error for step, error in broken.items() if step not in told]

    def _metrics_beside(self, step: int) -> dict[int, float | None]:
        """What the record of ``step`` is to remember of the others."""
        metrics, _, _ = self._metrics()
        kept = {*self._folders(), _lowest(metrics)}
        return {beside: metric for beside, metric in metrics.items() if beside in kept and beside != step}

    def _next_folder(self, step: int) -> Path:
        matches = [match for entry in os.listdir(self.directory) if (match := _NAME.fullmatch(entry))]
        revision = max((int(match[2] or 0) for match in matches if int(match[1]) == step), default=-1) + 1
        return self.directory / (f"{step:08d}.{revision}" if revision else f"{step:08d}")

    def _find(self, step: int | None) -> tuple[Path, int]:
        folders = self._folders()
        if not folders:
            raise self._nothing()
        chosen = max(folders) if step is None else step
        if chosen not in folders:
            there = ", ".join(map(str, sorted(folders)))
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.directory}. Choose one of: {there}.")
        return folders[chosen], chosen

    def _record(self, step: int | None) -> tuple[Path, dict[str, Any]]:
        folder, chosen = self._find(step)
        return folder, fmt.read_record(folder, chosen)

    def _nothing(self) -> CheckpointError:
        return CheckpointError(
            f"There is no checkpoint in {self.directory}. Training writes one at every evaluation and when it is "
            "stopped: `python train.py --run DIR`."
        )

    def _former_metric(self, step: int, leaves: dict[str, Any]) -> float | None:
        folder = self._folders().get(step)
        try:
            record = None if folder is None else fmt.read_record(folder, step)
        except DamagedCheckpointError:
            return None
        return record["metric"] if record is not None and record["leaves"] == leaves else None

    def _retain(self, saved: int) -> None:
        """Drop all but the latest, the best and those whose record cannot be read: nothing is known of these."""
        metrics, broken, _ = self._metrics()
        folders = self._folders()
        latest = sorted(folders.keys() - broken.keys())[-self.keep_latest :]
        keep = {folders[step] for step in {saved, _lowest(metrics), *latest, *broken} if step in folders}
        for _, _, folder in self._every():
            if folder not in keep:
                self._drop(folder)

    def _drop(self, folder: Path) -> None:
        """Rename first: a removal that is killed half-way must not leave half a checkpoint."""
        doomed = self.directory / f"{_UNFINISHED}{folder.name.removeprefix(_UNFINISHED)}-{secrets.token_hex(4)}"
        with writing(self.directory):
            os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        with writing(self.directory):
            os.rename(folder, self._aside(folder.name))
            sync_folder(self.directory)

    def _aside(self, name: str) -> Path:
        """Where the damaged checkpoint in the folder ``name`` goes."""
        numbers = ("", *(f"-{number}" for number in range(2, 1000)))
        places = (self.directory / f"{name}.damaged{number}" for number in numbers)
        return next(place for place in places if not os.path.lexists(place))


def _lowest(metrics: Mapping[int, float | None]) -> int | None:
    finite = {step: metric for step, metric in metrics.items() if metric is not None}
    return min(finite, key=lambda step: (finite[step], step), default=None)
