"""Experiment trackers: callbacks that send what a run records to files and services (``--log``)."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shlex
import socket
import struct
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from jaxgen.errors import UsageError, choose
from jaxgen.fsutil import RESUME, StrictModel, append_file, load_strict, replace_file, write_errors
from jaxgen.runs.config import read_config
from jaxgen.runs.directory import RunDirectory
from jaxgen.runs.logs import MetricsLog
from jaxgen.tasks.base import Inference
from jaxgen.tokenizers.base import without_surrogates
from jaxgen.trainer.callbacks import Callback, Finished, Sampled, Started, fenced

#: What the trackers of a run keep in its folder, and the project or experiment unless one is named.
FILE, PROJECT = "trackers.json", "jaxgen"
#: MLflow's longest parameter, in characters, and the most of them in one request.
MAX_PARAM, MAX_PARAMS = 6000, 100


class Position(StrictModel):
    """How far a tracker is: what ``FILE`` keeps of it."""

    step: Annotated[int, Field(ge=-1)] = -1  # the last step whose row was sent
    rows: Annotated[int, Field(ge=0)] = 0  # how many rows were sent, repeated ones too
    run: dict[str, str] = {}  # how the tracker finds its run again


class Tracker(Callback):
    """Base class of trackers. A subclass says how to send; this class says what and when.

    Whenever a checkpoint is saved, the rows of ``metrics.jsonl`` up to its step that were not sent yet are sent. How
    far a tracker is stays in the run's folder: a resumed run continues the same run of the tracker, and a tracker that
    is given later, or failed for a while, gets all rows. After a rollback the steps behind it are sent again.

    Whatever a tracker raises, training continues: it is reported once, and the tracker is tried again at the end.

    Example:
        >>> class Printed(jaxgen.callbacks.Tracker):
        ...     NAME = "printed"
        ...     def log_row(self, step, row):
        ...         self.note(f"step {step}: {sorted(row)[:1]}")
        >>> Printed().position.step
        -1
    """

    NAME: ClassVar[str]  # in ``--log``; also the name of its extra
    PACKAGE: ClassVar[str] = ""  # what it imports
    where: str = ""  # where the run can be seen, which ``open`` may set

    def __init__(self) -> None:
        self._position = Position()
        # A folder of this name, such as wandb makes, looks like a package without an origin.
        if self.PACKAGE and getattr(find_spec(self.PACKAGE), "origin", None) is None:
            raise UsageError(
                f'The tracker {self.NAME} needs the package {self.PACKAGE}: pip install "jaxgen[{self.NAME}]", or '
                f"leave {self.NAME} out of --log; for a resumed run, --log none leaves out all."
            )
        self._run: RunDirectory | None = None
        self._samples: list[Sampled] = []

    def open(self, run: RunDirectory, settings: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
        """Connect to the tracker.

        Args:
            run: The run.
            settings: What ``config.json`` has.
            known: What this method returned before, for a run that is continued; empty for a new one.

        Returns:
            How the tracker finds its run again.
        """
        return {}

    def log_row(self, step: int, row: Mapping[str, float]) -> None:
        """Send the figures of an evaluation."""

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Send texts of the model, each with its title."""

    def log_report(self, step: int, report: Mapping[str, float]) -> None:
        """Send the figures of the final report. Default: as a row, under names with ``final/`` before them."""
        self.log_row(step, report)

    def go_back(self, step: int) -> None:
        """Training went back to ``step``; later rows are sent again. Default: the tracker shows both."""

    def close(self, complete: bool) -> None:
        """Disconnect; ``complete`` if the run has ended and was not interrupted."""

    # --- what is sent when

    def on_start(self, event: Started) -> None:
        self._run, self._is_open, self._failed, self._complete = RunDirectory(event.run), False, False, False
        self._position = Position()
        self._attempt(self._connect, event.first_step)
        if self._is_open and self.where:
            self.note(f"{self.NAME}: {self.where}")
        self._attempt(self.send, event.first_step)

    def on_sample(self, event: Sampled) -> None:
        self._samples.append(event)

    def on_checkpoint(self, step: int) -> None:
        if self._run is not None:  # a new run saves step 0 before it starts
            self._attempt(self.send, step)

    def on_end(self, event: Finished, inference: Inference) -> None:
        self._attempt(self._end, event, again=True)

    def truncate_after(self, step: int) -> None:
        self._samples = [each for each in self._samples if each.step <= step]
        if self._run is not None:
            self._attempt(self._return_to, step, again=True)

    def wait(self) -> None:
        if self._run is not None and self._is_open:
            self._attempt(self.close, self._complete, again=True)
        self._run, self._samples = None, []

    def send(self, last: int) -> None:
        """Send the rows up to step ``last`` that were not sent yet, and the samples."""
        for step, row in self.rows(last):
            if step > self._position.step:
                self.log_row(step, {name: value for name, value in figures(row).items() if name != "step"})
                self._keep(step, self._position.rows + 1)
        for step in sorted({each.step for each in self._samples}):
            self.log_samples(step, [(e.title, without_surrogates(e.text)) for e in self._samples if e.step == step])
        self._samples = []

    def rows(self, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of ``metrics.jsonl`` up to step ``last``, each with its step."""
        for row in MetricsLog(self.run.metrics_path).read():
            if isinstance(step := row.get("step"), int) and step <= last:
                yield step, row

    @property
    def run(self) -> RunDirectory:
        """The run, while it is trained."""
        if self._run is None:
            raise UsageError(f"{type(self).__name__} belongs to no run yet: pass it to jaxgen.train(callbacks=[...]).")
        return self._run

    @property
    def position(self) -> Position:
        """How far this tracker is."""
        return self._position

    def _connect(self, step: int) -> None:
        saved = self._read().get(self.NAME)
        self._position = Position() if saved is None else load_strict(Position, saved, FILE)
        content = read_config(self.run)
        settings = {"task": content["task"], **content["config"], "resolved": content["resolved"]}
        # After the loss of a checkpoint, the steps behind ``step`` are sent again.
        self._position = self._position.model_copy(update={"step": min(self._position.step, step)})
        known = dict(self.open(self.run, settings, self._position.run))
        self._is_open = True
        if known:
            self._position = self._position.model_copy(update={"run": known})
            self._keep(self._position.step, self._position.rows)

    def _return_to(self, step: int) -> None:
        if self._position.step > step:
            self._keep(step, self._position.rows)
            self.go_back(step)

    def _end(self, event: Finished) -> None:
        if not self._is_open:
            self._connect(event.step)
        self.send(event.step)
        samples = [(title, without_surrogates(text)) for title, text in event.samples]
        if samples:
            self.log_samples(event.step, samples)
        self.log_report(event.step, figures({"final": event.report}))
        self._complete = True

    def _read(self) -> dict[str, Any]:
        if not (self.run.path / FILE).exists():
            return {}
        content = self.run.read_json(FILE)
        return content if isinstance(content, dict) else {}

    def _keep(self, step: int, rows: int) -> None:
        """Write to ``FILE`` how far this tracker is."""
        self._position = self._position.model_copy(update={"step": step, "rows": rows})
        self.run.write_json(FILE, {**self._read(), self.NAME: self._position.model_dump()})

    def _attempt(self, work: Callable[..., None], *args: Any, again: bool = False) -> None:
        """Do ``work``, unless this tracker failed before; ``again``: even then."""
        if self._failed and not again:
            return
        try:
            with redirect_stdout(io.StringIO()):  # a run's standard output is jaxgen's
                work(*args)
        except Exception as error:  # a service can raise anything
            if not self._failed:
                first = next(iter(str(error).splitlines()), "").rstrip(".")
                self.note(
                    f"WARNING: The tracker {self.NAME} failed: {type(error).__name__} {first}. Training continues "
                    "without it; what is missing is sent at the end, or when the run is resumed."
                )
            self._failed = True


def figures(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a row; those in an object are named ``object/name``."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= figures(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as texts; those in an object are named ``object.name``."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


class CSV(Tracker):
    """Writes the rows of metrics to ``metrics.csv`` in the run's folder, a column for each figure.

    Example:
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
        >>> trainer = jaxgen.start(config, callbacks=[jaxgen.callbacks.CSV()])
        >>> _ = trainer.train()
        >>> (trainer.run.path / "metrics.csv").read_text().splitlines()[0]
        'step,train_loss,val_loss,...'
    """

    NAME = "csv"

    def send(self, last: int) -> None:
        rows = [row for _, row in self.rows(last)]
        if not rows:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in row.items()})
        replace_file(self.run.path / "metrics.csv", text.getvalue().encode("utf-8", "backslashreplace"), RESUME)

    def log_report(self, step: int, report: Mapping[str, float]) -> None:
        """``report.json`` has it."""


class EventFile:
    """A file of scalars in the run's folder ``tensorboard/``; TensorBoard drops older points after ``step``.

    Writes are synchronous: tensorboardX's own writer has a thread that ends silently on a full disk, after which
    the next write waits forever. Raises ``CheckpointError`` when the file cannot be written.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = run.own_folder("tensorboard")
        # TensorBoard reads files in the order of their names; a rollback may open two within a second.
        now = time.time_ns()
        self._path = folder / f"events.out.tfevents.{now // 10**9:010}.{socket.gethostname()}.{now}"
        # When a session starts, TensorBoard forgets the points from its step on.
        start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._append([Event(file_version="brain.Event:2"), start])

    def add_row(self, row: Mapping[str, Any], step: int) -> None:
        """Write a point for every number in a row of metrics."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self._append([Event(step=step, summary=scalar(name, value)) for name, value in numbers.items()])

    def add_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Write texts, which TensorBoard reads as Markdown."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import text

        self._append([Event(step=step, summary=text(name, each)) for name, each in texts.items()])

    def _append(self, events: list[Any]) -> None:
        """Write records and sync them to disk: length and event, each followed by its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        records = b""
        for event in events:
            event.wall_time = time.time()
            content = event.SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                records += part + struct.pack("<I", masked_crc32c(part))
        with write_errors(self._path):
            self._path.parent.mkdir(exist_ok=True)
        append_file(self._path, records)


class TensorBoard(Tracker):
    """Writes TensorBoard events into the run's folder ``tensorboard/``.

    Example:
        >>> config = jaxgen.LanguageConfig(data="book.txt", cell="elman", hidden=8, steps=2, batch_size=4, seq_len=8)
        >>> trainer = jaxgen.start(config, callbacks=[jaxgen.callbacks.TensorBoard()])
        >>> _ = trainer.train()
        >>> [file.name for file in (trainer.run.path / "tensorboard").iterdir()]
        ['events.out.tfevents...']
    """

    NAME, PACKAGE = "tensorboard", "tensorboardX"

    def open(self, run: RunDirectory, settings: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
        self.go_back(self.position.step)
        return {}

    def go_back(self, step: int) -> None:
        self._events = EventFile(self.run, step)  # TensorBoard drops older points after ``step``

    def log_row(self, step: int, row: Mapping[str, float]) -> None:
        self._events.add_row(row, step)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        self._events.add_texts({f"samples/{title}": fenced(text) for title, text in samples}, step)


class Wandb(Tracker):
    """Sends a run to Weights & Biases: settings, rows of metrics, samples as tables, and the report.

    The variables of wandb count (``WANDB_MODE=offline``, ``WANDB_ENTITY``, ``WANDB_API_KEY``).

    Args:
        project: Default: ``WANDB_PROJECT``, else ``jaxgen``.
        name: The name of the run. Default: that of its folder.
        options: Further arguments of ``wandb.init``: ``entity``, ``tags``, ``group``, ``notes``, ``mode``, ...

    Example:
        >>> callback = jaxgen.callbacks.Wandb("poems", tags=["lstm"])  # doctest: +SKIP
        >>> jaxgen.train("poems.txt", callbacks=[callback])  # doctest: +SKIP
    """

    NAME = PACKAGE = "wandb"

    def __init__(self, project: str | None = None, name: str | None = None, **options: Any) -> None:
        super().__init__()
        self._options = {"project": project, "name": name, **options}

    def open(self, run: RunDirectory, settings: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
        import wandb

        defaults = {
            "project": known.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
            "name": run.path.name,
            "id": known.get("id") or uuid.uuid4().hex[:8],
            "config": dict(settings),
            "dir": str(run.own_folder("wandb").parent),
            "resume": "allow",
            "reinit": "create_new",  # a run of the user's may be active
            "settings": wandb.Settings(console="off", silent=True),
        }
        options = {**defaults, **{name: value for name, value in self._options.items() if value is not None}}
        online = (options.get("mode") or os.environ.get("WANDB_MODE") or "online") == "online"
        if online and not self._log_in():
            options["mode"] = "offline"
        self._wandb = wandb.init(**options)
        self._wandb.define_metric("step", hidden=True)
        self._wandb.define_metric("*", step_metric="step")
        if self._wandb.offline:
            why = " (no `wandb login`, or no network)" if online else ""
            folder = shlex.quote(str(Path(self._wandb.dir).parent))
            self.where = f"offline{why}; `wandb sync {folder}` sends the run"
        else:
            self.where = self._wandb.url or ""  # WANDB_MODE=disabled has none
        return {"id": self._wandb.id, "project": self._wandb.project}

    def _log_in(self) -> bool:
        """Whether there is a login and a network. ``init`` would wait for an answer, or long for the network."""
        import wandb

        try:
            with redirect_stderr(io.StringIO()):  # it says which key it found
                return bool(wandb.login(prompt=False))
        except wandb.errors.CommError:
            return False

    def log_row(self, step: int, row: Mapping[str, float]) -> None:
        # Numbered by how much was sent: Weights & Biases drops rows whose number is not a new one.
        self._wandb.log({**row, "step": step}, step=self.position.rows)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        import wandb

        table = wandb.Table(columns=["step", "title", "text"], data=[[step, *each] for each in samples])
        self._wandb.log({"samples": table, "step": step}, step=self.position.rows)
        self._keep(self.position.step, self.position.rows + 1)

    def log_report(self, step: int, report: Mapping[str, float]) -> None:
        self._wandb.summary.update(dict(report))

    def close(self, complete: bool) -> None:
        self._wandb.finish(exit_code=0 if complete else 1)


class MLflow(Tracker):
    """Sends a run to MLflow: settings as parameters, rows of metrics, samples as text artifacts, and the report.

    The variables of MLflow count (``MLFLOW_TRACKING_URI``).

    Args:
        experiment: Default: ``MLFLOW_EXPERIMENT_NAME``, else ``jaxgen``.
        name: The name of the run. Default: that of its folder.
        tracking_uri: The server, folder or database. Default: that of MLflow.
        tags: Tags of the run.

    Example:
        >>> callback = jaxgen.callbacks.MLflow("poems", tracking_uri="sqlite:///mlflow.db")  # doctest: +SKIP
        >>> jaxgen.train("poems.txt", callbacks=[callback])  # doctest: +SKIP
    """

    NAME = PACKAGE = "mlflow"

    def __init__(
        self,
        experiment: str | None = None,
        name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._experiment, self._name, self._uri, self._tags = experiment, name, tracking_uri, dict(tags or {})

    def open(self, run: RunDirectory, settings: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it reports each table that it makes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # by default it waits 4 minutes for a server
        self._client = client = MlflowClient(tracking_uri=self._uri)
        experiment = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        name = self._name or run.path.name
        self.where = f"the run {name!r} of the experiment {experiment!r}; `mlflow ui` shows it"
        if known:
            self._id = known["id"]
            client.update_run(self._id, status="RUNNING")
            return known
        found = client.get_experiment_by_name(experiment)
        id = client.create_experiment(experiment) if found is None else found.experiment_id
        self._id = client.create_run(id, run_name=name, tags=self._tags).info.run_id
        params = [Param(name, text[:MAX_PARAM]) for name, text in flat(settings).items()]
        for first in range(0, len(params), MAX_PARAMS):
            client.log_batch(self._id, params=params[first : first + MAX_PARAMS])
        return {"id": self._id}

    def log_row(self, step: int, row: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in row.items()])

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        text = "\n".join(f"--- {title}\n{text}" for title, text in samples)
        self._client.log_text(self._id, f"{text}\n", f"samples/{step:08d}.txt")

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")


class Trackio(Tracker):
    """Sends a run to trackio, by default to its database on this machine: settings, rows of metrics, samples, report.

    Args:
        project: Default: ``TRACKIO_PROJECT``, else ``jaxgen``.
        name: The name of the run. Default: that of its folder.
        options: Further arguments of ``trackio.init``: ``space_id``, ``group``, ...

    Example:
        >>> callback = jaxgen.callbacks.Trackio("poems")  # doctest: +SKIP
        >>> jaxgen.train("poems.txt", callbacks=[callback])  # doctest: +SKIP
    """

    NAME = PACKAGE = "trackio"

    def __init__(self, project: str | None = None, name: str | None = None, **options: Any) -> None:
        super().__init__()
        self._options = {"project": project, "name": name, **options}

    def open(self, run: RunDirectory, settings: Mapping[str, Any], known: Mapping[str, str]) -> Mapping[str, str]:
        import matplotlib.figure  # noqa: F401  trackio does, and would not wait for a thread of ours that does too
        import trackio

        defaults = {
            "project": known.get("project") or os.environ.get("TRACKIO_PROJECT") or PROJECT,
            "name": known.get("name") or f"{run.path.name}-{uuid.uuid4().hex[:6]}",  # trackio finds a run by its name
            "config": dict(settings),
            "resume": "allow",
            "embed": False,
        }
        options = {**defaults, **{name: value for name, value in self._options.items() if value is not None}}
        self._trackio = trackio.init(**options)
        project, name = options["project"], options["name"]
        show = f"`trackio show --project {shlex.quote(project)}`"
        self.where = f"the run {name!r} of the project {project!r}; {show} shows it"
        return {"project": project, "name": name}

    def log_row(self, step: int, row: Mapping[str, float]) -> None:
        self._log(dict(row), step)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        import trackio

        self._log({f"samples/{title}": trackio.Markdown(fenced(text)) for title, text in samples}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        with warnings.catch_warnings(record=True) as caught:  # trackio warns of what it loses
            warnings.simplefilter("always")
            self._trackio.log(values, step=step)
        if caught:
            raise RuntimeError(caught[0].message)

    def close(self, complete: bool) -> None:
        import trackio

        trackio.finish()


#: Trackers by the name that ``--log`` gives.
TRACKERS: dict[str, type[Tracker]] = {each.NAME: each for each in (CSV, MLflow, TensorBoard, Trackio, Wandb)}


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """The trackers of ``--log``. Raises ``UsageError`` for an unknown one, and for one whose package is missing."""
    return [TRACKERS[choose(name, TRACKERS, "tracker")]() for name in dict.fromkeys(names)]
