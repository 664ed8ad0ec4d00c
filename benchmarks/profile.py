"""Where the time of a training step goes, before and after the optimizations in docs/performance.md.

    python -m benchmarks.profile          about two minutes; prints a table in Markdown

"Before" is the plain scan on one device with glibc's own settings, "after" what the commands do. Core milliseconds from
JAX's profiler: each event's own time, without that of the events inside it, summed over all threads. Products that XLA
hands to its thread pool leave no events; they are in "the rest", which is the cores' whole time less all events.
"""

from __future__ import annotations

import collections
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import machine

SIZES = [("lstm", 128, 1, 50, 50), ("lstm", 256, 2, 64, 64), ("lstm", 512, 2, 64, 64), ("gru", 256, 2, 64, 64)]
STATES = {
    "before": {"JAXGEN_MALLOC": "0", "JAX_NUM_CPU_DEVICES": "1"},
    "after": {},
}
KINDS = ("products in the loops", "products outside", "elementwise in the loops", "elementwise outside", "exchange")
WARM, STEPS = 8, 4


def kind(name: str, count: float, length: int) -> str | None:
    """What an event belongs to, by its name and by how often a step has it; None for what only wraps others."""
    looped = count >= length / 2
    if name.startswith(("ynn_fusion", "dot", "SlinkyThreadPool", "custom-call")):
        return KINDS[0] if looped else KINDS[1]
    if name.startswith(("psum", "all-reduce", "Rendezvous", "Wait: pending")):
        return KINDS[4]
    if name.startswith(("ThreadpoolListener", "end:", "Thunk", "while", "[", "Common", "Pjit", "Handle", "Alloc")):
        return None
    return KINDS[2] if looped else KINDS[3]


def own_times(line: Any) -> dict[str, float]:
    """Nanoseconds of each event of a thread less those of the events inside it, by name."""
    times: dict[str, float] = collections.defaultdict(float)
    stack: list[tuple[float, str]] = []
    for begin, negative, name in sorted((e.start_ns, -e.duration_ns, e.name) for e in line.events):
        while stack and begin >= stack[-1][0]:
            stack.pop()
        if stack:
            times[stack[-1][1]] += negative
        times[name] -= negative
        stack.append((begin - negative, name))
    return times


def measure(cell: str, hidden: int, layers: int, rows: int, length: int, form: str) -> dict[str, float]:
    """Core milliseconds a step by kind, and the step's own milliseconds."""
    import jax

    from benchmarks.systems import Jaxgen, Sizes

    job = Jaxgen(form=form).train(Sizes(hidden, rows, length, layers, cell))
    job.run(WARM)
    steps, seconds = min((job.run(STEPS) for _ in range(7)), key=lambda done: done[1])
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            job.run(STEPS)
            traced = time.perf_counter() - began
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = jax.profiler.ProfileData.from_file(path).planes
        lines = [line for plane in planes if "CPU" in plane.name for line in plane.lines if "Eigen" in line.name]
        counts = collections.Counter(event.name for line in lines for event in line.events)
        devices = jax.local_device_count()
        found: dict[str, float] = collections.defaultdict(float)
        for line in lines:
            for name, time_ in own_times(line).items():
                of = kind(name, counts[name] / STEPS / devices, length)
                if of is not None:
                    found[of] += time_ * 1e-6 / STEPS
    whole = 1e3 * seconds / steps
    rest = 1e3 * traced / STEPS * machine.cores() - sum(found.values())
    return {"step": whole, **{of: found[of] for of in KINDS}, "the rest": rest}


def main() -> None:
    if len(sys.argv) > 1:  # one measurement in a process of its own
        cell, hidden, layers, rows, length, form = json.loads(sys.argv[1])
        print(json.dumps(measure(cell, hidden, layers, rows, length, form)))
        return
    print(machine.line(machine.facts()) + "\n")
    head = ["cell, H, L, B, T", "", "step, ms", *KINDS, "the rest"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for sizes in SIZES:
        for state, environment in STATES.items():
            form = "scan" if state == "before" else "auto"
            command = [sys.executable, "-m", "benchmarks.profile", json.dumps([*sizes, form])]
            done = subprocess.run(
                command, cwd=machine.ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
            )
            times = json.loads(done.stdout.splitlines()[-1])
            cells = [", ".join(map(str, sizes)), state, *(f"{value:.1f}" for value in times.values())]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
