"""Trackers with their real packages, without a network: ``pytest -m loggers``."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import REPORT, append_row, checkpoint, end, make_run, start_tracker

import jaxgen
from jaxgen.cli.train import main
from jaxgen.runs.logs import MetricsLog
from jaxgen.trainer.trackers import TRACKERS

#: The packages warn of one another, and leave sockets and files to the garbage collector.
pytestmark = [pytest.mark.loggers, pytest.mark.filterwarnings("ignore")]


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: in blocks of 32 KiB, parts with a checksum, a length and a type."""
    record, start = b"", 7  # behind the header of the file
    while start + 7 <= len(content):
        if (left := -start % 2**15) < 7 and left:  # too short for a part: filled up
            start += left
            continue
        length, kind = struct.unpack_from("<HB", content, start + 4)
        record += content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield record
            record = b""


class Wandb:
    """Reads what wandb wrote offline."""

    make = staticmethod(lambda: jaxgen.callbacks.Wandb())

    def __init__(self, run: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.points, self.config, self.summary, self.ids = [], {}, {}, []
        for file in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
            for _ in range(400):  # wandb's own process writes the file, and later
                found = [Record.FromString(record) for record in records(file.read_bytes())]
                if found and found[-1].HasField("exit"):
                    break
                time.sleep(0.05)
            for record in found:
                self.read(record)
        self.texts = "".join(path.read_text() for path in run.glob("wandb/*/files/media/table/*.json"))

    def read(self, record):
        def values(items):
            return {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}

        if record.HasField("run"):
            self.ids.append(record.run.run_id)
            self.config |= values(record.run.config.update)
        elif record.HasField("history"):
            row = values(record.history.item)
            if "val_loss" in row:
                self.points.append((record.history.step.num, row["step"], row["val_loss"]))
        elif record.HasField("summary"):
            self.summary |= values(record.summary.update)

    def check(self, steps):
        assert [step for _, step, _ in self.points] == steps
        numbers = [number for number, _, _ in self.points]
        assert numbers == sorted({*numbers}), "numbers that rise, or Weights & Biases drops a row"
        assert len(set(self.ids)) == 1
        assert self.config["cell"] == "elman"
        assert self.config["resolved"]["devices"] == 1
        assert self.summary["final/val_loss"] == REPORT["val_loss"]
        assert "a text of step" in self.texts


class MLflow:
    """Reads an MLflow database."""

    make = staticmethod(lambda: jaxgen.callbacks.MLflow())

    def __init__(self, run: Path) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()

    def check(self, steps):
        experiment = self.client.get_experiment_by_name("jaxgen")
        (run,) = self.client.search_runs([experiment.experiment_id])
        history = self.client.get_metric_history(run.info.run_id, "val_loss")
        assert sorted(point.step for point in history) == sorted(steps)
        assert run.info.status == "FINISHED"
        assert run.data.params["cell"] == "elman"
        assert run.data.params["resolved.devices"] == "1"
        assert run.data.metrics["final/labels/a/f1"] == 0.5
        assert [each.path for each in self.client.list_artifacts(run.info.run_id, "samples")] == [
            f"samples/{step:08d}.txt" for step in sorted({*steps[2:]})
        ]


class Trackio:
    """Reads trackio's database."""

    make = staticmethod(lambda: jaxgen.callbacks.Trackio())

    def __init__(self, run: Path) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self.storage, self.project = SQLiteStorage, run.parent.name

    def check(self, steps):
        (name,) = self.storage.get_runs(self.project)
        logs = self.storage.get_logs(self.project, name)
        assert [log["step"] for log in logs if "val_loss" in log] == steps
        assert [log["final/val_loss"] for log in logs if "final/val_loss" in log] == [REPORT["val_loss"]]
        assert "a text of step" in str(logs)
        assert self.storage.get_run_config(self.project, name)["cell"] == "elman"


READERS = {"mlflow": MLflow, "trackio": Trackio, "wandb": Wandb}


@pytest.fixture(autouse=True, scope="module")
def trackio_folder(tmp_path_factory):
    """Trackio reads this variable when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """The trackers write below the folder of the test, or into a project of its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ENABLE_TELEMETRY", "false")
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_and_rolled_back_run_is_one_run_of_the_tracker(name, tmp_path):
    pytest.importorskip(TRACKERS[name].PACKAGE)
    reader, run, told = READERS[name], make_run(tmp_path, 2), []
    tracker = start_tracker(reader.make(), run, 2, told)
    checkpoint(tracker, run, 3)
    tracker.wait()  # interrupted
    tracker = start_tracker(reader.make(), run, 3, told)
    checkpoint(tracker, run, 4)
    tracker.truncate_after(3)
    MetricsLog(run / "metrics.jsonl").truncate(3)
    checkpoint(tracker, run, 4)
    end(tracker, 4)
    assert all(event.text.startswith(f"{name}: ") for event in told), [event.text for event in told]
    reader(run).check([1, 2, 3, 4, 4])


def test_a_command_logs_to_all_trackers_and_prints_what_it_always_prints(tmp_path, book, capsys):
    for name in READERS:
        pytest.importorskip(TRACKERS[name].PACKAGE)
    sizes = "--cell elman --hidden 8 --batch-size 4 --seq-len 8 --steps 2 --eval-every 1 --sample-every 0"
    assert main(["--data", str(book), "--run", "run", *sizes.split(), "--log", *READERS]) == 0
    out = capsys.readouterr().out
    assert "failed" not in out
    assert "* " not in out, "trackio's own messages"
    assert [line.split(":")[0] for line in out.splitlines() if line.split(":")[0] in READERS] == list(READERS)
    for name in READERS:
        assert name in (tmp_path / "run" / "trackers.json").read_text()


def test_without_a_login_wandb_stays_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run, told = make_run(tmp_path, 1), []
    end(start_tracker(jaxgen.callbacks.Wandb(), run, 1, told), 1)
    assert ["wandb login" in event.text for event in told] == [True]
    assert [step for _, step, _ in Wandb(run).points] == [1]


def test_a_server_that_does_not_answer_does_not_stop_training(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, told = make_run(tmp_path, 1), []
    tracker = start_tracker(jaxgen.callbacks.MLflow(tracking_uri="http://127.0.0.1:9"), run, 1, told)
    append_row(run, 2)
    tracker.on_checkpoint(2)
    end(tracker, 2)
    assert ["mlflow failed" in event.text for event in told] == [True]
