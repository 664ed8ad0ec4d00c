"""The checkpoints of a run: saved atomically, verified when restored; the latest few and the best are kept."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgen.errors import CheckpointError
from jaxgen.fsutil import read_temporary, run_dir_missing, sync_folder, temporary_name, unwritable, write_errors
from jaxgen.runs.manifest import (
    PARAMS,
    DamagedCheckpointError,
    ForeignCheckpointError,
    Leaf,
    Manifest,
    Tree,
    UnreadableCheckpointError,
    check_like,
    encode_checkpoint,
    host_arrays,
    named_leaves,
    read_arrays,
    read_files,
    read_manifest,
    to_device,
    unflatten,
)


def list_entries(directory: Path) -> list[Path]:
    """The entries of ``directory``, sorted; none if it does not exist.

    Raises ``CheckpointError`` if it is not a folder, is a link (to files of another run, perhaps), or cannot be read.
    """
    try:
        mode = os.lstat(directory).st_mode
        if not stat.S_ISDIR(mode):
            problem = "is a link" if stat.S_ISLNK(mode) else "is not a folder"
            raise CheckpointError(f"{directory} {problem}: put the run's own folder of checkpoints there.")
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableCheckpointError(str(directory), str(error.strerror)) from error


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder and not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def _write_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files to a new folder and sync them to disk."""
    for name, data in files:
        with open(folder / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


class _Metrics(NamedTuple):
    """The metrics of all checkpoints, from the manifests in the folder."""

    known: dict[int, float | None]  # step -> metric, from its own manifest or another one
    broken: dict[int, CheckpointError]  # step -> why its manifest cannot be read
    unknown: list[CheckpointError]  # those of ``broken`` whose metric no other manifest has

    @property
    def best(self) -> int | None:
        """The step with the lowest metric, the earliest of equals."""
        finite = {step: metric for step, metric in self.known.items() if metric is not None}
        return min(finite, key=lambda step: (finite[step], step), default=None)


#: The folder of a checkpoint, whole or set aside as damaged.
CHECKPOINT_NAME = re.compile(r"[0-9]{8,18}(?:\.[0-9]{1,9})?(?:\.damaged(?:-[0-9]+)?)?")
_NAME = re.compile(r"([0-9]{8,18})(?:\.([0-9]{1,9}))?")
_DAMAGED = re.compile(r"([0-9]{8,18})(?:\.[0-9]{1,9})?\.damaged(?:-[0-9]+)?")


class CheckpointStore:
    """The checkpoints in one folder: the latest ``keep_latest`` and the one with the lowest metric.

    A checkpoint is a folder named by its step, written under a temporary name and then renamed. Saving a step again
    writes ``<step>.1`` and then drops the former one, so there is always a complete checkpoint. Reading never writes:
    what a killed save leaves is ignored, and the next save removes it. Every folder with the name of a checkpoint
    counts as one: if its content is damaged, that is an error, not a missing checkpoint. When a run continues without
    a damaged checkpoint, ``truncate`` renames it to ``<step>.damaged``, and it is never changed again.
    """

    def __init__(self, directory: str | os.PathLike[str], keep_latest: int = 2, run_digest: str | None = None) -> None:
        if keep_latest < 1:
            raise ValueError(f"keep_latest is {keep_latest}; it must be at least 1.")
        self.directory = Path(directory).absolute()
        self.keep_latest = keep_latest
        self.run_digest = run_digest  # checkpoints of other runs are refused
        self._existed = False  # whether this store has seen a checkpoint in its folder
        self._damaged: set[str] = set()  # names of folders found damaged by ``restore_newest_good``
        self._lost: set[int] = set()  # steps that were best and are missing

    # --- queries

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. Only ``restore`` checks that it is undamaged."""
        return sorted(self._folders())

    def latest(self) -> int | None:
        """The last step that has a checkpoint."""
        return max(self._folders(), default=None)

    def names(self) -> list[str]:
        """The names of the checkpoint folders. They change when a checkpoint is saved, replaced or dropped."""
        return [folder.name for _, _, folder in self._all()]

    def best(self) -> int | None:
        """The step with the lowest finite metric, the earliest of equals; ``None`` if no checkpoint has one.

        Every manifest repeats the metrics of the other checkpoints, so a damaged best checkpoint is still found;
        restoring it raises. Raises ``CheckpointError`` if the metric of a damaged one is not known.
        """
        metrics = self._metrics()
        for error in metrics.broken.values():
            if isinstance(error, ForeignCheckpointError):
                raise error
        if metrics.unknown:
            raise metrics.unknown[0]
        return metrics.best

    def best_or_latest(self) -> int | None:
        """The step whose weights are the result of the run: the best, or the latest if none was evaluated."""
        best = self.best()
        return self.latest() if best is None else best

    def metric(self, step: int) -> float | None:
        """The metric that ``step`` was saved with; ``None`` if there was none or it was not finite."""
        return self._manifest(step).metric

    def folder(self, step: int | None = None) -> Path:
        """The folder of a checkpoint, by default of the latest. Raises ``CheckpointError`` if there is none."""
        return self._find(step)[0]

    def host(self, step: int | None = None) -> dict[str, Any]:
        """The JSON object saved with the arrays of ``step`` (default: the latest), without reading them."""
        return self._manifest(step).host

    def digest(self, step: int | None = None) -> str:
        """The digest of the arrays of ``step`` (default: the latest), as 16 hexadecimal digits."""
        return self._manifest(step).digest()

    # --- saving

    def save(self, step: int, state: Tree, host: Mapping[str, Any], metric: float | None = None) -> None:
        """Save a checkpoint, then drop those that are no longer kept.

        Args:
            step: the step of the checkpoint; one that was saved before is replaced.
            state: a pytree of arrays.
            host: a JSON object to keep with them.
            metric: lower is better; one that is not finite is never the best. By default a step that is saved again
                with equal arrays keeps the metric it had.

        Raises:
            ValueError: if the state or ``host`` cannot be saved (typed keys, objects, NaN in ``host``).
            CheckpointError: if it cannot be written.
        """
        if step < 0:
            raise ValueError(f"The step is {step}; it must not be negative.")
        arrays = host_arrays(state)
        leaves = {name: Leaf.of(array) for name, array in arrays.items()}
        metric = self._former_metric(step, leaves) if metric is None else float(metric)
        partial = self.directory / temporary_name(f"{step:08d}")
        needed = sum(array.nbytes for array in arrays.values())
        try:
            self._make_directory()
            self.clean()
            metrics = self._metrics_of_others(step)
            partial.mkdir()  # early: if the run's folder is replaced from here on, the rest fails
            _write_files(partial, encode_checkpoint(step, arrays, leaves, metric, metrics, host, self.run_digest))
            os.rename(partial, self._next_folder(step))
            sync_folder(self.directory)
        except (OSError, MemoryError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # before the free space is measured
            reason = run_dir_missing() if isinstance(error, FileNotFoundError) else error
            raise unwritable(self.directory, reason, needed=needed) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._existed = True
        self._drop_old(step)

    def truncate(self, step: int) -> None:
        """Drop the checkpoints after ``step``: a run that resumes there writes them again.

        Damaged ones are set aside instead, and so are the older ones that ``restore_newest_good`` found damaged.
        """
        self.clean()
        later = [(n, folder) for n, _, folder in self._all() if n > step and folder.name not in self._damaged]
        # Read all of them before any is dropped.
        damaged_later = {folder.name for number, folder in later if self._damage(folder, number)}
        if self._damaged or self._lost or damaged_later:
            with write_errors(self.directory):
                for name in sorted(self._damaged | damaged_later):
                    os.rename(self.directory / name, self._damaged_name(name))
                for lost in self._lost:
                    self._damaged_name(f"{lost:08d}").mkdir()  # so that ``best`` no longer counts it
                sync_folder(self.directory)
        for _, folder in later:
            if folder.name not in damaged_later:
                self._drop(folder)
        self._damaged, self._lost = set(), set()

    def clean(self) -> None:
        """Remove what a killed save or removal left. Only the process that trains may call it."""
        for entry in list_entries(self.directory):
            if read_temporary(entry.name) is not None and is_folder(entry):
                shutil.rmtree(entry, ignore_errors=True)

    # --- restoring

    def restore(self, step: int | None = None, like: Tree = None) -> tuple[Tree, dict[str, Any]]:
        """The state and the host JSON of ``step`` (default: the latest), on this process's default device.

        Args:
            step: the step of the checkpoint.
            like: a pytree of arrays or ``jax.ShapeDtypeStruct``, whose structure the state gets. Shapes and dtypes
                are compared before any array is read. Without it the state is nested dictionaries.

        Raises:
            DamagedCheckpointError: if the checkpoint is not as it was saved.
            CheckpointError: if there is no such step, or a leaf has another shape or dtype.
        """
        return self._restore(*self._find(step), like)

    def restore_params(self, step: int | None = None, like: Tree = None) -> tuple[Tree, dict[str, Any]]:
        """As ``restore``, for the subtree ``params`` of the state; ``like`` has the structure of that subtree."""
        return self._restore(*self._find(step), like, PARAMS)

    def restore_newest_good(self, like: Tree = None) -> tuple[int, Tree, dict[str, Any], list[str]]:
        """The newest undamaged checkpoint: step, state, host JSON, and a message for each damaged one.

        Checks the newer checkpoints and, of the older ones, the best and any that may be the best. A following
        ``truncate`` sets the damaged ones aside.

        Raises:
            CheckpointError: if none is good, or one has another shape than ``like`` or cannot be read now.
        """
        self._find(None)  # raises if there is none at all
        damaged: list[tuple[Path, DamagedCheckpointError]] = []
        for step, _, folder in reversed(self._all()):
            try:
                state, host = self._restore(folder, step, like)
            except DamagedCheckpointError as error:
                damaged.append((folder, error))
            else:
                problems = [self._note_damage(*each) for each in damaged]
                return step, state, host, problems + self._check_best()
        raise CheckpointError(
            f"No checkpoint in {self.directory} is good. {' '.join(error.problem for _, error in damaged)} "
            "Nothing was changed. Copy the run again, or train a new one with `python train.py --run DIR`."
        )

    def _check_best(self) -> list[str]:
        """The problems of the best checkpoint, and of those that may be the best."""
        problems: list[str] = []
        metrics, folders = self._metrics(), self._folders()
        for step in [*metrics.broken, *([] if metrics.best is None else [metrics.best])]:
            if step not in folders:
                self._lost.add(step)
                problems.append(f"The checkpoint of step {step}, the best one, is missing from {self.directory}.")
            elif folders[step].name not in self._damaged and (damage := self._damage(folders[step], step)):
                problems.append(self._note_damage(folders[step], damage))
        return problems

    def _damage(self, folder: Path, step: int) -> DamagedCheckpointError | None:
        """The damage of a checkpoint; ``None`` if it is good. Raises ``CheckpointError`` if it cannot be read now."""
        try:
            read_files(folder, step, self._read_manifest(folder, step))
        except DamagedCheckpointError as error:
            return error
        return None

    def _note_damage(self, folder: Path, error: DamagedCheckpointError) -> str:
        self._damaged.add(folder.name)
        return f"{error.problem} It is set aside as {self._damaged_name(folder.name)}."

    def _restore(self, folder: Path, step: int, like: Tree, prefix: str = "") -> tuple[Tree, dict[str, Any]]:
        manifest = self._read_manifest(folder, step)
        leaves = {name: leaf for name, leaf in manifest.leaves.items() if name.startswith(prefix)}
        if not leaves and prefix:
            raise CheckpointError(f"The checkpoint of step {step} has no {prefix[:-1]}. Give another run with --run.")
        wanted = None if like is None else {prefix + name: leaf for name, leaf in named_leaves(like)}
        if wanted is not None:
            there, needed = ([name for name in names if not name.startswith(PARAMS)] for names in (leaves, wanted))
            if needed and not there:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {self.directory} has weights alone, without the state of the "
                    "training: it cannot be continued. Start another run with its weights by --init-from."
                )
            check_like(step, leaves, wanted)
        arrays = {name: to_device(a) for name, a in read_arrays(folder, step, manifest, leaves).items()}
        if wanted is None:
            return unflatten({name.removeprefix(prefix): array for name, array in arrays.items()}), manifest.host
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted]), manifest.host

    # --- folders

    def _all(self) -> list[tuple[int, int, Path]]:
        """All checkpoints as (step, revision, folder), ascending."""
        entries = list_entries(self.directory)
        matches = [(match, entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
        return sorted((int(match[1]), int(match[2] or 0), entry) for match, entry in matches)

    def _folders(self) -> dict[int, Path]:
        """Step -> its folder; of a step that was saved again, the latest revision."""
        folders = {step: folder for step, _, folder in self._all()}
        self._existed |= bool(folders)
        return folders

    def _make_directory(self) -> None:
        """Make the folder. Raises ``FileNotFoundError`` if it was removed since, and the checkpoints with it."""
        if not self._existed:
            self.directory.mkdir(exist_ok=True)
        elif not self.directory.is_dir():
            raise run_dir_missing()

    def _metrics(self) -> _Metrics:
        """The metrics in all manifests, except those of checkpoints that were set aside and not saved again."""
        own: dict[int, float | None] = {}
        others: dict[int, float | None] = {}
        broken: dict[int, CheckpointError] = {}
        folders = self._folders()
        for step, folder in sorted(folders.items()):
            try:
                manifest = self._read_manifest(folder, step)
            except CheckpointError as error:
                broken[step] = error
            else:
                own[step] = manifest.metric
                others |= {int(other): metric for other, metric in manifest.metrics.items()}
        aside = {int(m[1]) for entry in list_entries(self.directory) if (m := _DAMAGED.fullmatch(entry.name))}
        counted = {step: metric for step, metric in others.items() if step in folders or step not in aside}
        return _Metrics(counted | own, broken, [error for step, error in broken.items() if step not in others])

    def _metrics_of_others(self, step: int) -> dict[int, float | None]:
        """The metrics of the other checkpoints, for the manifest of ``step``."""
        metrics = self._metrics()
        kept = {*self._folders(), metrics.best} - {step}
        return {other: metric for other, metric in metrics.known.items() if other in kept}

    def _former_metric(self, step: int, leaves: Mapping[str, Leaf]) -> float | None:
        if step not in (folders := self._folders()):
            return None
        try:
            manifest = self._read_manifest(folders[step], step)
        except DamagedCheckpointError:
            return None
        return manifest.metric if manifest.leaves == leaves else None

    def _next_folder(self, step: int) -> Path:
        revision = max((revision for number, revision, _ in self._all() if number == step), default=-1) + 1
        return self.directory / (f"{step:08d}.{revision}" if revision else f"{step:08d}")

    def _find(self, step: int | None) -> tuple[Path, int]:
        folders = self._folders()
        if not folders:
            raise CheckpointError(
                f"There is no checkpoint in {self.directory}. Training writes one at every evaluation and when it is "
                "stopped: `python train.py --run DIR`."
            )
        chosen = max(folders) if step is None else step
        if chosen not in folders:
            there = ", ".join(map(str, sorted(folders)))
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.directory}. Choose one of: {there}.")
        return folders[chosen], chosen

    def _manifest(self, step: int | None) -> Manifest:
        return self._read_manifest(*self._find(step))

    def _read_manifest(self, folder: Path, step: int) -> Manifest:
        return read_manifest(folder, step, self.run_digest)

    def _drop_old(self, saved: int) -> None:
        """Drop all but the latest, the best and those whose manifest cannot be read, because one may be the best."""
        metrics, folders = self._metrics(), self._folders()
        latest = sorted(folders.keys() - metrics.broken.keys())[-self.keep_latest :]
        keep = {folders[step] for step in {saved, metrics.best, *latest, *metrics.broken} if step in folders}
        for _, _, folder in self._all():
            if folder not in keep:
                self._drop(folder)

    def _drop(self, folder: Path) -> None:
        """Remove a folder. It is renamed first, so that an interrupted removal leaves no partial checkpoint."""
        doomed = self.directory / temporary_name(folder.name)
        with write_errors(self.directory):
            os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _damaged_name(self, name: str) -> Path:
        """The new path of the damaged checkpoint in the folder ``name``."""
        suffixes = ("", *(f"-{number}" for number in range(2, 1000)))
        paths = (self.directory / f"{name}.damaged{suffix}" for suffix in suffixes)
        return next(path for path in paths if not os.path.lexists(path))
