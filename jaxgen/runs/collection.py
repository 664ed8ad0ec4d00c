"""Folders of runs that belong together: the same settings with several seeds, or the trials of a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxgen.errors import UsageError
from jaxgen.fsutil import RESUME, StrictModel, dump_json, load_json, replace_file
from jaxgen.runs.directory import SEEDS, SWEEP, RunDirectory, make_numbered
from jaxgen.runs.lock import creation_errors


class Seeds(StrictModel):
    """The content of ``seeds.json``: runs that differ in their seeds alone."""

    task: str
    config: dict[str, Any]  # the settings that were given
    seeds: list[int]
    vmapped: bool  # whether one compiled call trains all of them
    devices: int  # over which the seeds are spread then
    horizon: int | None = None  # the step at which the schedule ends, if it is not the last one

    def folder_of(self, folder: Path, seed: int) -> Path:
        """The folder of the run with a seed."""
        return folder / f"seed-{seed}"


def make_collection(path: str | os.PathLike[str] | None, name: str) -> Path:
    """Make an empty folder: ``path``, or ``runs/NAME-N`` with the next free number.

    Raises ``UsageError`` for a folder that has entries or cannot be made.
    """
    folder = Path("runs") if path is None else Path(path)
    RunDirectory(folder).check_trainable()
    with creation_errors(folder):
        if path is None:
            return make_numbered(folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        if found := sorted(os.listdir(folder)):
            raise UsageError(
                f"{folder} is not empty (it holds {found[0]!a}): choose another folder with --run, or continue what is "
                "there with --resume auto."
            )
    return folder


def is_seeds(path: str | os.PathLike[str] | None) -> bool:
    """Whether a folder has runs of several seeds."""
    return path is not None and "\0" not in os.fspath(path) and (Path(path) / SEEDS).is_file()


def is_sweep(path: str | os.PathLike[str] | None) -> bool:
    """Whether a folder has the trials of a sweep."""
    return path is not None and "\0" not in os.fspath(path) and (Path(path) / SWEEP).is_file()


def read_record(file: Path) -> Any:
    """The content of ``seeds.json`` or ``sweep.json``. Raises ``CheckpointError``."""
    return load_json(file, "Bring the file back, or start again in another folder.")


def write_record(file: Path, record: StrictModel) -> None:
    """Write ``seeds.json`` or ``sweep.json`` atomically."""
    replace_file(file, dump_json(record.model_dump(mode="json")), RESUME)
