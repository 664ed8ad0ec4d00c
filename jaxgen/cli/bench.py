"""``jaxgen bench``: how fast a run trains and samples on this machine, and what bounds it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from jaxgen.cli.common import log, name_newest, write_out
from jaxgen.cli.flags import SHOW_RUN, Command, CommandConfig, parse

if TYPE_CHECKING:
    from jaxgen.trainer.speed import Speed

DESCRIPTION = """Time the training steps of a run and, of a language model, sampling; nothing of the run changes.

    jaxgen bench
    jaxgen bench runs/language-1 --json

Beside the training step stands the time that its matrix products alone would take at the speed of large products, which
is measured too. Several devices and other programs that run meanwhile change the figures."""


class BenchConfig(CommandConfig):
    """Flags of ``jaxgen bench``."""

    seconds: Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)] = 3.0
    """How long each measurement takes, compilation aside."""


def bench(args: list[str]) -> None:
    """Parse ``args``, then measure and print the figures."""
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.runtime import need_backend
    from jaxgen.trainer.speed import measure_speed

    config, extra = parse(BenchConfig, args, prog="jaxgen bench", description=DESCRIPTION, extra=SHOW_RUN)
    need_backend()
    saved = LoadedRun.open(extra["run"])
    name_newest(extra["run"], saved.directory)
    log("Timing ...")
    speed = measure_speed(saved, config.seconds)
    if extra["json"]:
        write_out(json.dumps({"run": str(saved.directory), **speed.to_json()}) + "\n")
        return
    write_out("".join(f"{name:24s}{text}\n" for name, text in lines(speed)))


main = Command(bench)


def lines(speed: Speed) -> list[tuple[str, str]]:
    """The figures, each with a heading."""
    devices = f"on {speed.devices} devices" if speed.devices > 1 else "on one device"
    at_best = speed.products / speed.ceiling
    found = [
        ("large products", f"{speed.ceiling / 1e9:,.0f} GFLOP/s, float32, {devices}"),
        ("training", f"{speed.tokens_per_second:,.0f} tokens/s, {speed.step_seconds * 1e3:,.2f} ms a step"),
        ("its products", f"{speed.products / 1e9:,.2f} GFLOP, at best {at_best * 1e3:,.2f} ms"),
        ("share of large products", f"{speed.share:.0%}"),
        ("bound by", _bound(speed.share)),
    ]
    if speed.sampled_alone is not None and speed.weight_bytes is not None:
        rate = speed.weight_bytes * speed.sampled_alone
        found += [
            ("sampling one text", f"{speed.sampled_alone:,.0f} tokens/s, {1e6 / speed.sampled_alone:,.0f} us each"),
            ("weights that are read", f"{speed.weight_bytes / 1e6:,.1f} MB a token, {rate / 1e9:,.0f} GB/s"),
            ("sampling many texts", f"{speed.sampled_together or 0:,.0f} tokens/s"),
        ]
    return found


def _bound(share: float) -> str:
    if share >= 0.6:
        return "the matrix products: a smaller model, or --precision bfloat16, is faster"
    return "small products, elementwise operations and the optimizer: a larger --batch-size uses the cores better"
