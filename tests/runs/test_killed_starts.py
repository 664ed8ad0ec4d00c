"""A start that is killed at any moment leaves a folder that the next one takes over; one that fails leaves none."""

import json
import os
import subprocess
import sys

import pytest

#: Starts a run once for every event that Python reports of it (a file opened, a name made or removed), each time
#: in a process of its own that is killed at that event; then starts it again, and says what is left.
SCRIPT = """
import json, os, pathlib, signal, sys
import numpy as np
from jaxgen.errors import UsageError
from jaxgen.runs.checkpoints import CheckpointStore
from jaxgen.runs.directory import RunDirectory

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.truncate", "os.listdir"}
left, fail = 0, sys.argv[1] == "fail"

def count(event, arguments):
    global left
    if event in EVENTS and left:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)

def start(path, moment):
    global left
    left = moment
    with RunDirectory.new(path, "language") as make:
        run = make()
        run.write_json("tokenizer.json", {})
        CheckpointStore(run.checkpoints_path).save(0, {"params": {"a": np.zeros(3)}}, {})
        if fail:
            raise KeyError
        run.write_json("config.json", {"moment": 0})

def attempt(path, moment):
    child = os.fork()
    if not child:
        try:
            start(path, moment)
        except KeyError:
            os._exit(1)
        except UsageError as error:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

found, moment = [], 0
while not found or found[-1][0] == -signal.SIGKILL:
    moment += 1
    path = pathlib.Path(f"{moment}") / "run"
    killed = attempt(path, moment)
    whole = (path / "config.json").exists()
    fail, failing = False, fail
    again = attempt(path, 0)
    fail = failing
    if path.exists():
        entries = sorted(str(each.relative_to(path)) for each in path.rglob("*"))
    found.append((killed, whole, again, entries))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "fail"])
def test_a_start_that_is_killed_at_any_moment_is_taken_over(tmp_path, how):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert len(killed) > 30
    assert last[0] == (1 if how == "fail" else 0), "nothing was left to be killed at"
    checkpoint = ["checkpoints", "checkpoints/00000000"]
    checkpoint += [f"checkpoints/00000000/{name}" for name in ("manifest.json", "model.safetensors")]
    for number, (_, whole, again, entries) in enumerate(killed):
        assert again == (2 if whole else 0), number
        left = [entry for entry in entries if entry not in (".lock", ".start.json")] if whole else entries
        assert [entry for entry in left if entry != ".lock"] == [*checkpoint, "config.json", "tokenizer.json"], number
