"""Checkpoints: complete or absent, the latest few and the best kept, every bit verified on the way back."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxgen.errors import CheckpointError
from jaxgen.store import format as fmt
from jaxgen.store import orbax_io
from jaxgen.store.files import sync_folder, unwritable
from jaxgen.store.format import DamagedCheckpointError, damaged

_NAME = re.compile(r"([0-9]{8,18})(?:\.([0-9]{1,9}))?")
_UNFINISHED = ".tmp-"


class CheckpointStore:
    """The checkpoints in one folder: the latest ``keep_latest`` and the one with the lowest metric.

    A checkpoint is a folder named by its step; saving a step again makes ``<step>.1`` and then drops the former, so
    there is no moment without one. Reading never writes: what a killed save left is ignored, and removed by the
    next save.
    """

    def __init__(self, directory: str | os.PathLike[str], keep_latest: int = 2) -> None:
        if keep_latest < 1:
            raise ValueError(f"keep_latest is {keep_latest}; it must be at least 1.")
        self.directory = Path(directory).absolute()
        self.keep_latest = keep_latest
        self._cleaned = False

    # --- what is there

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending. Whether each is undamaged, only ``restore`` finds out."""
        return sorted(self._folders())

    def latest(self) -> int | None:
        """The last step that has a checkpoint."""
        return max(self._folders(), default=None)

    def best(self) -> int | None:
        """The step with the lowest finite metric, the earliest of equals; ``None`` when no checkpoint has one."""
        metrics: dict[int, float] = {}
        for step in self.steps():
            try:
                metric = self.metric(step)
            except CheckpointError:
                continue  # restoring it says what is wrong
            if metric is not None:
                metrics[step] = metric
        return min(metrics, key=lambda step: metrics[step], default=None)

    def metric(self, step: int) -> float | None:
        """The metric that ``step`` was saved with; ``None`` when it had none or it was not finite."""
        value = self._record(step)[1]["metric"]
        return value if isinstance(value, float) and math.isfinite(value) else None

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
            self.directory.mkdir(exist_ok=True)
            self.clean()
            partial.mkdir()
            orbax_io.write_arrays(partial / fmt.ARRAYS, arrays)
            fmt.write_record(partial, step, None if metric is None else float(metric), dict(host), leaves)
            _sync_tree(partial)
            os.rename(partial, self._next_folder(step))
            sync_folder(self.directory)
        except (OSError, orbax_io.OrbaxError) as error:
            raise unwritable(self.directory, error.__cause__ or error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._retain(step)

    def truncate(self, step: int) -> None:
        """Drop the checkpoints beyond ``step``: a run that resumes there will write them again."""
        self.clean()
        for later in [s for s in self.steps() if s > step]:
            self._drop(self._folders()[later])

    def clean(self) -> None:
        """Remove what a killed save or a killed removal left (once per store). Only the process that trains may."""
        if not self._cleaned and self.directory.is_dir():
            whole = self._folders().values()
            for entry in list(self.directory.iterdir()):
                ours = _NAME.fullmatch(entry.name) or entry.name.startswith(_UNFINISHED)
                if ours and entry not in whole and entry.is_dir():
                    self._drop(entry)
        self._cleaned = True

    # --- restoring

    def restore(self, step: int | None = None, like: Any = None) -> tuple[Any, dict[str, Any]]:
        """The state and the host JSON of ``step`` (``None``: the latest), on this process's default device.

        ``like`` is a pytree of arrays or ``jax.ShapeDtypeStruct``: it is checked before any array is read, and gives
        back its classes; without it the state is nested dictionaries. Raises ``DamagedCheckpointError`` naming what
        was altered, and ``CheckpointError`` for no such step or a leaf of another shape.
        """
        return self._restore(step, like, "")

    def restore_params(self, step: int | None = None, like: Any = None) -> tuple[Any, dict[str, Any]]:
        """As ``restore``, but only the subtree ``params`` of the state; ``like`` is that subtree's."""
        return self._restore(step, like, "params/")

    def restore_newest_good(self, like: Any = None) -> tuple[int, Any, dict[str, Any], list[str]]:
        """The newest checkpoint that is undamaged: (step, state, host, what was wrong with each newer one).

        Raises ``CheckpointError`` when none is good, and at once when one has another shape than ``like``.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                state, host = self.restore(step, like)
            except DamagedCheckpointError as error:
                problems.append(str(error))
            else:
                return step, state, host, problems
        if problems:
            raise CheckpointError(
                f"No checkpoint in {self.directory} is good. {' '.join(problems)} Copy the run again, or train anew "
                "with `python train.py --run DIR`."
            )
        raise self._nothing()

    def _restore(self, step: int | None, like: Any, prefix: str) -> tuple[Any, dict[str, Any]]:
        folder, record = self._record(step)
        step = record["step"]
        leaves = {name: leaf for name, leaf in record["leaves"].items() if name.startswith(prefix)}
        if not leaves and prefix:
            raise CheckpointError(f"The checkpoint of step {step} holds no {prefix[:-1]}; it was not saved by jaxgen.")
        wanted = None if like is None else [prefix + name for name, _ in fmt.leaf_names(like)]
        if wanted is not None:
            fmt.check_like(step, leaves, dict(zip(wanted, jax.tree_util.tree_leaves(like))))
        fmt.check_files(folder, step, record)
        arrays = orbax_io.read_arrays(folder, step, leaves)
        for name, leaf in leaves.items():
            if fmt.describe(arrays[name]) != leaf:
                raise damaged(folder, step, f"the array {name} does not match its checksum")
        placed = {name: fmt.to_device(arrays[name]) for name in leaves}
        if wanted is not None:
            state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), [placed[name] for name in wanted])
            return state, record["host"]
        return fmt.unescape(fmt.nest({name[len(prefix) :]: array for name, array in placed.items()})), record["host"]

    # --- folders

    def _folders(self) -> dict[int, Path]:
        """Step -> its folder: of a step saved again, the one written last."""
        found: dict[int, tuple[int, Path]] = {}
        for entry in self.directory.iterdir() if self.directory.is_dir() else []:
            match = _NAME.fullmatch(entry.name)
            if match and (entry / fmt.RECORD).is_file():
                step, revision = int(match[1]), int(match[2] or 0)
                found[step] = max(found.get(step, (-1, entry)), (revision, entry))
        return {step: entry for step, (_, entry) in found.items()}

    def _next_folder(self, step: int) -> Path:
        matches = [match for entry in os.listdir(self.directory) if (match := _NAME.fullmatch(entry))]
        revision = max((int(match[2] or 0) for match in matches if int(match[1]) == step), default=-1) + 1
        return self.directory / (f"{step:08d}.{revision}" if revision else f"{step:08d}")

    def _record(self, step: int | None) -> tuple[Path, dict[str, Any]]:
        folders = self._folders()
        if not folders:
            raise self._nothing()
        chosen = max(folders) if step is None else step
        if chosen not in folders:
            there = ", ".join(map(str, sorted(folders)))
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.directory}. Choose one of: {there}.")
        return folders[chosen], fmt.read_record(folders[chosen], chosen)

    def _nothing(self) -> CheckpointError:
        return CheckpointError(
            f"There is no checkpoint in {self.directory}. Training writes one at every evaluation and when it is "
            "stopped: `python train.py --run DIR`."
        )

    def _former_metric(self, step: int, leaves: dict[str, Any]) -> float | None:
        try:
            return self.metric(step) if self._record(step)[1]["leaves"] == leaves else None
        except CheckpointError:
            return None

    def _retain(self, saved: int) -> None:
        folders = self._folders()
        keep = {saved, self.best(), *sorted(folders)[-self.keep_latest :]}
        keep_folders = {folder for step, folder in folders.items() if step in keep}
        for entry in list(self.directory.iterdir()):
            if _NAME.fullmatch(entry.name) and entry not in keep_folders:
                self._drop(entry)

    def _drop(self, folder: Path) -> None:
        """Rename first: a removal that is killed half-way must not leave half a checkpoint."""
        doomed = self.directory / f"{_UNFINISHED}{folder.name.removeprefix(_UNFINISHED)}-{secrets.token_hex(4)}"
        try:
            os.rename(folder, doomed)
        except OSError as error:
            raise unwritable(self.directory, error) from error
        shutil.rmtree(doomed, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "r+b") as file:  # Windows syncs files open for writing only
                os.fsync(file.fileno())
