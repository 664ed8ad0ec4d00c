"""``jaxgen info``: what is known of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxgen.cli.common import write_out
from jaxgen.cli.flags import SHOW_RUN, Command, CommandConfig, parse

if TYPE_CHECKING:
    from jaxgen.inference.loading import LoadedRun

DESCRIPTION = """Show a run: its data, settings, best figure, versions, and the arrays of its model.

    jaxgen info
    jaxgen info runs/classify-1 --json"""


def info(args: list[str]) -> None:
    """Parse ``args`` and print what is known of the run that they name."""
    from jaxgen.inference.loading import LoadedRun
    from jaxgen.inference.run_facts import describe
    from jaxgen.runtime import need_backend

    _, extra = parse(CommandConfig, args, prog="jaxgen info", description=DESCRIPTION, extra=SHOW_RUN)
    need_backend()
    saved = LoadedRun.open(extra["run"])
    facts = {**describe(saved.directory), "settings": settings(saved), "arrays": list(arrays(saved))}
    facts |= {name: saved.resolved.get(name) for name in ("device", "devices", "processor", "versions")}
    if extra["json"]:
        write_out(json.dumps(facts, default=str) + "\n")
        return
    lines = [(name, facts[name]) for name in ("run", "task", "data", "model", "date")]
    best = "none yet" if facts["best"] is None else f"{facts['metric']} {facts['best']:.4f}"
    lines += [("best", best), ("step", f"{facts['step']:,} of {facts['steps']:,}")]
    lines += [("digest of the data", saved.resolved["data"]["sha256"])]
    lines += [("device", f"{facts['device']} x {facts['devices']}")]
    lines += [("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))]
    lines += [("files", f"{facts['bytes'] / 1e6:,.1f} MB")]
    write_out("".join(f"{name:20s}{text}\n" for name, text in lines))
    write_out("\nsettings that are not those of the preset\n")
    write_out("".join(f"    {name:22s}{value}\n" for name, value in facts["settings"].items()) or "    none\n")
    write_out("\narrays\n")
    write_out("".join(f"    {name:44s}{shape!s:18s}{size:>14,}\n" for name, shape, size in facts["arrays"]))
    write_out(f"    {'all':62s}{facts['parameters']:>14,}\n")


main = Command(info)


def settings(saved: LoadedRun) -> dict[str, Any]:
    """The settings in which a run differs from its preset."""
    preset = type(saved.config)(preset=saved.config.preset).model_dump(mode="json")
    mine = saved.config.model_dump(mode="json", exclude={"run"})
    return {name: value for name, value in mine.items() if value != preset[name]}


def arrays(saved: LoadedRun) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """The name, shape and size of every array of the model."""
    import jax

    from jaxgen.training.task import param_shapes

    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(saved.task)):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, math.prod(leaf.shape)
