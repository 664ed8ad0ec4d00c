"""Everything that is to be measured when an accelerator is at hand, in one run: correctness, then speed.

    python -m benchmarks.gpu --json result.json --minutes 8
    python -m benchmarks.gpu --platform cpu --quick           the same program, tiny, on any machine

Prints tables in Markdown and writes every number to the file after each part. A part that fails, or that finds no time
left, says so in its place, and the others follow. The last section is the rule for ``auto`` that follows from the first
table of speed. Within a comparison all take turns; medians are compared. PyTorch's layers (cuDNN on a GPU) stand beside
jaxgen's where PyTorch is installed and sees the device.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cpu import spread, table
from benchmarks.systems import CLIP, RATE, Jaxgen, Job, Sizes, loop, random_tokens

PLATFORMS = {"gpu": "cuda,cpu", "tpu": "tpu,cpu", "cpu": "cpu"}
LAYERS = [Sizes(512, 64, 128), Sizes(1024, 128, 256), Sizes(256, 64, 128)]
STEPS = [Sizes(512, 64, 128, 2), Sizes(1024, 128, 256, 3), Sizes(512, 64, 128, 2, "gru")]
TINY = Sizes(16, 4, 5)
STREAMS = (1, 4096)
LOSS = 1.6  # nats a character: what the presets for a CPU reach within minutes
#: A form replaces the scan in the rule if it is so much faster in geometric mean, and nowhere slower than the second.
FASTER, NOWHERE_BELOW = 1.05, 0.95

Row = dict[str, Any]


class Skipped(Exception):
    """Something is not measured; the message says why."""


@dataclass
class Plan:
    """How much is measured, and until when (on the clock ``time.perf_counter``)."""

    quick: bool
    deadline: float = math.inf
    rounds: int = 7
    turn: float = 0.05  # seconds that a turn lasts at least

    @property
    def cells(self) -> tuple[str, ...]:
        return ("lstm", "mingru") if self.quick else ("lstm", "gru", "mingru")

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32",) if self.quick else ("float32", "bfloat16")

    def check_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise Skipped("no time left")


def reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if isinstance(error, Skipped) else f"{type(error).__name__}: {error}"[:200]


def contest(builders: dict[str, Callable[[], Job]], plan: Plan) -> dict[str, Row]:
    """Build jobs and let them take turns: seconds of a unit, turn by turn, or why there are none."""
    rows: dict[str, Row] = {name: {"seconds": []} for name in builders}
    jobs: dict[str, tuple[Job, int]] = {}
    for name, build in builders.items():
        try:
            plan.check_time()
            job = build()
            job.run(1)  # compiles
            _, seconds = job.run(1)
            jobs[name] = job, min(max(1, math.ceil(plan.turn / max(seconds, 1e-6))), 100)
        except Exception as error:
            rows[name]["skipped"] = reason(error)
    for _ in range(plan.rounds):
        for name, (job, calls) in list(jobs.items()):
            try:
                plan.check_time()
                units, seconds = job.run(calls)
                rows[name]["seconds"].append(seconds / units)
            except Exception as error:
                rows[name]["skipped"] = reason(error)
                del jobs[name]
    return rows


def median(row: Row | None) -> float | None:
    return statistics.median(row["seconds"]) if row and row["seconds"] else None


def shown(row: Row | None, scale: float = 1e3, form: str = ".2f") -> str:
    """Median and range in milliseconds, or why there is none."""
    if row is None:
        return "–"
    return spread([scale * s for s in row["seconds"]], form) if row["seconds"] else f"not measured: {row['skipped']}"


def forms_here(cell: str) -> list[str]:
    from benchmarks import forms

    return forms.forms_here(cell)


# --- correctness


def correctness(plan: Plan) -> tuple[list[Row], str]:
    """The error of each form in value and gradients on the device, beside the plain scan on the CPU in float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    steps, rows, hidden = (5, 3, 8) if plan.quick else (64, 8, 128)

    def outputs(cell: str, form: str, precision: str, dtype: Any, device: Any) -> list[np.ndarray]:
        drawn = np.random.default_rng(0)
        module = layer(cell, hidden, form, precision, dtype)
        x = drawn.standard_normal((steps, rows, hidden)).astype(np.float32)
        valid = np.arange(steps)[:, None] < np.array([steps, steps // 2, *[steps] * (rows - 2)])[None]
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x.shape, dtype))

        def value(params: Any, x: Any) -> Any:
            out = module.apply(params, x, valid=valid)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out)), out

        with jax.default_device(device):
            params = jax.tree.map(
                lambda a: jnp.asarray(0.3 / math.sqrt(a.shape[0]) * drawn.standard_normal(a.shape), dtype), shapes
            )
            found = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(params, jnp.asarray(x, dtype))
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]

    found: list[Row] = []
    for cell in plan.cells:
        plan.check_time()
        with jax.enable_x64(True):
            exact = outputs(cell, "scan", "float32", jnp.float64, jax.devices("cpu")[0])
        for precision in plan.precisions:
            for form in forms_here(cell):
                row: Row = {"cell": cell, "form": form, "precision": precision}
                try:
                    got = outputs(cell, form, precision, jnp.float32, jax.devices()[0])
                    errors = (float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, exact))
                    row["error"] = max(errors)
                except Exception as error:
                    row["skipped"] = reason(error)
                found.append(row)
    lines = [
        [row["cell"], row["form"], row["precision"], f"{row['error']:.1e}" if "error" in row else row["skipped"]]
        for row in found
    ]
    return found, table(["cell", "form", "products in", "relative error of the worst array"], lines)


# --- one layer


def layer(cell: str, hidden: int, form: str, precision: str, dtype: Any) -> Any:
    """A module ``(x [T, B, D], **masks) -> (carry, ys)``."""
    from flax import linen as nn

    from jaxgen import CELLS, unroll

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any, **masks: Any) -> Any:
            recurrence = CELLS[cell](features=hidden, precision=precision, param_dtype=dtype)
            return unroll(recurrence, x, time_major=True, form=form, **masks)

    return Layer()


def jax_layer(cell: str, form: str, precision: str, s: Sizes) -> Job:
    """Value and gradients of a layer: its input product and the recurrence."""
    import jax
    import jax.numpy as jnp

    module = layer(cell, s.hidden, form, precision, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (s.length, s.batch, s.hidden))
    params = jax.jit(module.init)(jax.random.key(1), x)
    gradients = jax.jit(jax.grad(lambda params, x: jnp.sum(module.apply(params, x)[1]), argnums=(0, 1)))
    return Job(0, loop(lambda i: gradients(params, x), jax.block_until_ready))


def torch_device(dtype: str) -> Any:
    """PyTorch's device for this run, with ``dtype`` allowed on it. Raises ``Skipped``."""
    import jax

    try:
        import torch
    except ModuleNotFoundError:
        raise Skipped("PyTorch is not installed") from None
    platform = jax.default_backend()
    if platform == "tpu" or (platform == "gpu" and not torch.cuda.is_available()):
        raise Skipped(f"PyTorch sees no {platform.upper()}")
    if platform == "cpu" and dtype == "float16":
        raise Skipped("for GPUs")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda" if platform == "gpu" else "cpu")


def torch_wait(_: Any = None) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_layer(cell: str, dtype: str, s: Sizes) -> Job:
    """The same of ``nn.LSTM`` or ``nn.GRU``; float32 products are in TF32 on a GPU."""
    device = torch_device(dtype)
    import torch

    options = {"device": device, "dtype": getattr(torch, dtype)}
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](s.hidden, s.hidden, **options)
    x = torch.randn(s.length, s.batch, s.hidden, requires_grad=True, **options)

    def once(_: int) -> None:
        torch.autograd.grad(rnn(x)[0].sum(), [x, *rnn.parameters()])

    return Job(0, loop(once, torch_wait))


DTYPES = ("float16", "bfloat16", "float32")


def layers(plan: Plan) -> tuple[list[Row], str]:
    """Forms of LSTM, GRU and a linear cell, value and gradients."""
    rows: list[Row] = []
    for sizes in [TINY] if plan.quick else LAYERS:
        for cell in plan.cells:
            builders = {
                f"{form} {precision}": partial(jax_layer, cell, form, precision, sizes)
                for precision in (plan.precisions if cell != "mingru" else ("float32",))
                for form in forms_here(cell)
            }
            if cell != "mingru":
                builders |= {f"torch {dtype}": partial(torch_layer, cell, dtype, sizes) for dtype in DTYPES}
            rows.append({**asdict(sizes), "cell": cell, "times": contest(builders, plan)})
    return rows, compared(rows)


def compared(rows: list[Row]) -> str:
    """A line for each entrant of each comparison."""
    lines = []
    for row in rows:
        title = ", ".join(str(row[key]) for key in ("cell", "hidden", "layers", "batch", "length"))
        base = median(next((times for name, times in row["times"].items() if name.startswith("scan")), None))
        for name, times in row["times"].items():
            mine = median(times)
            gain = f"{base / mine:.2f}" if base and mine else "–"
            lines.append([title, name, shown(times), gain])
    return table(
        ["cell, H, L, B, T", "form and precision", "ms: median (range)", "times as fast as the first scan"], lines
    )


# --- the whole training step


def jax_step(form: str, precision: str, s: Sizes) -> Job:
    return Jaxgen(form=form, precision=precision).train(s)


def torch_step(dtype: str, s: Sizes) -> Job:
    """The model of ``benchmarks.systems`` on PyTorch's device, with products in ``dtype`` by autocast."""
    device = torch_device(dtype)
    import torch
    from torch.nn import functional

    embedding, output = torch.nn.Embedding(s.vocab, s.hidden), torch.nn.Linear(s.hidden, s.vocab)
    recurrent = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[s.cell](s.hidden, s.hidden, s.layers)
    model = torch.nn.ModuleList([embedding, recurrent, output]).to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    inputs, targets = (torch.from_numpy(a.swapaxes(1, 2).copy()).long().to(device) for a in random_tokens(s))

    def once(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            logits = output(recurrent(embedding(inputs[i % len(inputs)]))[0]).float()
        functional.cross_entropy(logits.flatten(0, 1), targets[i % len(inputs)].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return Job(sum(p.numel() for p in parameters), loop(once, torch_wait))


def steps(plan: Plan) -> tuple[list[Row], str]:
    """Embedding, layers, output, cross-entropy, clipping, Adam."""
    rows = []
    for sizes in [TINY] if plan.quick else STEPS:
        builders: dict[str, Callable[[], Job]] = {
            f"{form} {precision}": partial(jax_step, form, precision, sizes)
            for precision in plan.precisions
            for form in forms_here(sizes.cell)
        }
        builders |= {f"torch {dtype}": partial(torch_step, dtype, sizes) for dtype in DTYPES}
        rows.append({**asdict(sizes), "times": contest(builders, plan)})
    return rows, compared(rows)


# --- sampling, and a whole run


def sampling(plan: Plan) -> tuple[list[Row], str]:
    """Characters a second over all streams."""
    hidden, streams = (16, (1, 4)) if plan.quick else (512, STREAMS)
    builders = {f"{n:,}": partial(lambda n: Jaxgen().decode(Sizes(hidden, n)), n) for n in streams}
    times = contest(builders, plan)

    def speed(row: Row) -> str:
        return spread([1 / s for s in row["seconds"]], ",.0f") if row["seconds"] else f"not measured: {row['skipped']}"

    lines = [[name, speed(row)] for name, row in times.items()]
    head = [f"streams, H = {hidden}", "characters/s: median (range)"]
    return [{"hidden": hidden, "times": times}], table(head, lines)


def loss(plan: Plan) -> tuple[list[Row], str]:
    """Seconds of training until a validation loss on tinyshakespeare."""
    import jaxgen

    plan.check_time()
    settings: dict[str, Any] = {"data": "tinyshakespeare", "preset": "base", "steps": None, "eval_every": 100}
    settings["minutes"] = max(plan.deadline - time.perf_counter(), 1.0) / 60
    if plan.quick:
        settings = {
            "data": "python-docs",
            "cell": "elman",
            "hidden": 8,
            "batch_size": 4,
            "seq_len": 8,
            "steps": 2,
            "eval_every": 1,
        }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        jaxgen.start(jaxgen.LanguageConfig(run=str(run), sample_every=0, **settings)).train()
        lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "val_loss" in row]
    reached = next((row for row in rows if row["val_loss"] <= LOSS), None)
    best = min(rows, key=lambda row: row["val_loss"])
    when = "not reached" if reached is None else f"{reached['seconds']:.1f} s, step {reached['step']:,}"
    least = f"{best['val_loss']:.4f} at {best['seconds']:.0f} s, step {best['step']:,}"
    return rows, table([f"first evaluation at {LOSS} or less", "best"], [[when, least]])


# --- the rule


def rule(rows: Iterable[Row]) -> str:
    """What ``auto`` should take on this device: the times of single layers beside the scan with the same products."""
    import jax

    gains: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, times in row["times"].items():
            form, precision = name.split()
            base, mine = median(row["times"].get(f"scan {precision}")), median(times)
            if base and mine and form != "scan":
                gains.setdefault(row["cell"], {}).setdefault(form, []).append(base / mine)
    lines = []
    for cell, forms in gains.items():
        steady = {form: values for form, values in forms.items() if form != "torch" and min(values) >= NOWHERE_BELOW}
        means = {form: statistics.geometric_mean(values) for form, values in steady.items()}
        best = max(means, key=lambda form: means[form], default="scan")
        if means.get(best, 1) < FASTER:
            lines.append(f"- {cell}: `scan`, for no other form is {FASTER} times as fast.")
        else:
            worst = min(forms[best])
            lines.append(f"- {cell}: `{best}`, {means[best]:.2f} times as fast as the scan (worst {worst:.2f}).")
    head = f"On {jax.default_backend()}, `auto` should take (`Form.suits`):\n"
    return "\n".join([head, *(lines or ["- nothing was measured."])]) + "\n"


#: Each part with the share of the time that is left when it begins.
PARTS: dict[str, tuple[str, float, Callable[[Plan], tuple[list[Row], str]]]] = {
    "correctness": ("Correctness, beside float64 on the CPU", 0.15, correctness),
    "layers": ("One layer, value and gradients", 0.5, layers),
    "steps": ("Whole training step", 0.5, steps),
    "sampling": ("Sampling", 0.4, sampling),
    "loss": ("A whole run on tinyshakespeare", 1.0, loss),
}


def measure(plan: Plan, minutes: float, keep: Callable[[str, Any], None]) -> None:
    """Run, print and ``keep`` every part; none takes the others down."""
    end = time.perf_counter() + 60 * minutes
    found: list[Row] = []
    for name, (title, share, part) in PARTS.items():
        now = time.perf_counter()
        plan.deadline = now + share * (end - now)
        print(f"## {title}\n", flush=True)
        try:
            rows, text = part(plan)
            keep(name, rows)
            found = rows if name == "layers" else found
        except Exception as error:
            text = f"Not measured: {reason(error)}\n"
            keep(name, {"skipped": reason(error)})
        print(text, flush=True)
    text = rule(found)
    keep("rule", text)
    print(f"## The rule for `auto`\n\n{text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", choices=list(PLATFORMS), help="default: what JAX finds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether the program works")
    parser.add_argument("--minutes", type=float, default=8.0, help="no comparison begins after them (%(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to this file")
    args = parser.parse_args()

    import jax

    if args.platform:
        jax.config.update("jax_platforms", PLATFORMS[args.platform])
    from jaxgen.cli.common import prepare_process
    from jaxgen.runtime import need_backend

    prepare_process()
    need_backend()
    device = f"{jax.devices()[0].device_kind} ({jax.default_backend()})"
    result: dict[str, Any] = {"machine": machine.facts(), "device": device, "quick": args.quick}

    def keep(name: str, value: Any) -> None:
        result[name] = value
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")

    print(f"# Speed on {device}\n\n{machine.line(result['machine'])}\n", flush=True)
    measure(Plan(args.quick, rounds=2, turn=0) if args.quick else Plan(args.quick), args.minutes, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
