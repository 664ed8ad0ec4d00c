"""The measurement of accelerators runs anywhere, tells what it could not measure, and gives a rule for ``auto``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu, machine


@pytest.mark.runs
def test_every_part_runs_on_a_cpu(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--platform", "cpu", "--quick", "--json", str(file)]
    faster = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=machine.ROOT, env=os.environ | faster, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert {name: type(result[name]) for name in gpu.PARTS} == dict.fromkeys(gpu.PARTS, list), result
    assert max(row["error"] for row in result["correctness"]) < 1e-5
    assert "mingru" in result["rule"]


def test_a_part_that_fails_leaves_the_others_alone(monkeypatch, capsys):
    def broken(plan):
        raise RuntimeError("the device is gone")

    def fine(plan):
        return [], "| a table |\n"

    monkeypatch.setattr(gpu, "PARTS", {"first": ("First", 0.5, broken), "second": ("Second", 0.5, fine)})
    kept = {}
    gpu.measure(gpu.Plan(quick=True), 1.0, kept.__setitem__)
    assert "the device is gone" in kept["first"]["skipped"]
    assert kept["second"] == []
    assert "| a table |" in capsys.readouterr().out


def test_an_entrant_that_fails_and_one_without_time_are_told():
    def broken():
        raise RuntimeError("out of memory")

    def fine():
        return gpu.Job(0, gpu.loop(lambda i: None))

    plan = gpu.Plan(quick=True, rounds=3, turn=0.0)
    rows = gpu.contest({"a": broken, "b": fine}, plan)
    assert "out of memory" in rows["a"]["skipped"]
    assert len(rows["b"]["seconds"]) == 3
    plan.deadline = 0.0
    assert "time" in gpu.contest({"b": fine}, plan)["b"]["skipped"]


def times(**milliseconds):
    return {name.replace("_", " "): {"seconds": [each / 1e3]} for name, each in milliseconds.items()}


def test_the_rule_takes_the_form_that_is_faster_everywhere():
    rows = [
        {"cell": "lstm", "times": times(scan_float32=4, fused_float32=2, torch_float32=1)},
        {"cell": "gru", "times": times(scan_float32=4, fused_float32=2)},
        {"cell": "gru", "times": times(scan_float32=4, fused_float32=5)},
    ]
    text = gpu.rule(rows)
    assert "lstm: `fused`, 2.00" in text
    assert "gru: `scan`" in text
