"""The runs whose curves the page shows."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.inference.run_facts import curves, describe
from jaxgen.runs.directory import RunDirectory, list_members
from jaxgen.runs.lock import RunLock
from jaxgen.server.models import NotFoundError
from jaxgen.tasks.registry import DATA

#: The most runs that are listed: those written last.
MAX_RUNS = 200
#: The entries of ``describe`` that the response has for each run.
FACTS = ("task", "data", "model", "parameters", "metric", "best", "step", "steps", "date")
Json = dict[str, Any]


class Runs:
    """The runs in a folder, and those that are served from elsewhere.

    A request names a run as the list does. The name is looked up there, and never becomes a path.

    Args:
        folder: The folder of the runs; it need not exist.
        served: Folders of further runs by their names.
    """

    def __init__(self, folder: str | os.PathLike[str], served: Mapping[str, Path] | None = None) -> None:
        self.folder, self._served = Path(folder), dict(served or {})
        self._lock = threading.Lock()
        #: Name -> the version of its files, and what they say; ``None`` for a damaged run.
        self._known: dict[str, tuple[str, Json | None]] = {}

    def list(self) -> Json:
        """The runs, the one written last first. ``left_out`` counts damaged runs and those beyond ``MAX_RUNS``."""
        with self._lock:
            versions = {name: (version(each), each) for name, each in self._find().items()}
            names = sorted(versions, key=lambda name: versions[name][0], reverse=True)[:MAX_RUNS]
            found = [self._facts(name, *versions[name]) for name in names]
            self._known = {name: self._known[name] for name in names}
        whole = [each for each in found if each is not None]
        return {"object": "list", "folder": str(self.folder), "data": whole, "left_out": len(versions) - len(whole)}

    def curves(self, name: str) -> Json:
        """The losses, and the metric that decides, at the steps of one run. Raises ``NotFoundError``."""
        directory = self._find().get(name)
        if directory is None:
            raise NotFoundError(f"There is no run {name[:200]!r}: /v1/runs lists them.")
        now = version(directory)  # before the files are read
        try:
            found = curves(directory, describe(directory)["metric"])
        except CheckpointError as error:
            raise NotFoundError(str(error)) from None
        return {"object": "run", "id": name, "version": now, "curves": found}

    def _find(self) -> dict[str, RunDirectory]:
        """The runs by name."""
        try:
            names = list_members(self.folder)
        except OSError:
            names = []
        found = {Path(name).as_posix(): RunDirectory(self.folder / name) for name in names}
        found = {name: each for name, each in found.items() if each.exists()}
        there = {os.path.realpath(each.path) for each in found.values()}
        for name, path in self._served.items():
            if os.path.realpath(path) not in there:
                found[f"{name} (served)" if name in found else name] = RunDirectory(path)
        return found

    def _facts(self, name: str, now: str, directory: RunDirectory) -> Json | None:
        if self._known.get(name, ("",))[0] != now:
            try:
                facts: Json | None = describe(directory)
            except CheckpointError:
                facts = None
            self._known[name] = now, facts
        facts = self._known[name][1]
        if facts is None:
            return None
        data = DATA[facts["task"]]
        about = {"label": data.METRIC.label, "higher_is_better": data.METRIC.higher_is_better, "target": data.TARGET}
        told = {each: facts[each] for each in FACTS}
        return {"id": name, "version": now, **told, **about, "training": RunLock.is_held(directory.path)}


def version(directory: RunDirectory) -> str:
    """What changes when the settings or the evaluations of a run do; later ones are greater."""
    found = []
    for path in (directory.metrics_path, directory.config_path):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((status.st_mtime_ns, status.st_size))
    return "-".join(f"{time:020d}.{size}" for time, size in sorted(found, reverse=True))
