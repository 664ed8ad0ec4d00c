"""``jaxgen doctor``: what a bug report needs to say about this installation."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from jaxgen.cli.common import write_out
from jaxgen.cli.flags import Command, CommandConfig, parse
from jaxgen.errors import UsageError
from jaxgen.version import __version__

DESCRIPTION = """Print the versions, devices and settings that a bug report should name.

    jaxgen doctor"""
#: Variables of the environment that change what jaxgen does.
VARIABLES = ("JAX_", "JAXGEN_", "XLA_", "LIBTPU_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
#: How the names of packages begin that let JAX use accelerators.
PLUGINS = ("jax-cuda", "jax-rocm", "jax-metal", "libtpu")
#: Extras whose packages jaxgen itself does not use.
TOOLS = {"bench", "dev", "docs"}


def doctor(args: list[str]) -> None:
    """Parse ``args`` and print the facts."""
    parse(CommandConfig, args, prog="jaxgen doctor", description=DESCRIPTION)
    import jax

    from jaxgen.fsutil import user_cache
    from jaxgen.runtime import cores, need_backend, processor_name, total_memory

    try:
        need_backend()
        devices = ", ".join(f"{each} ({each.device_kind})" for each in jax.devices())
    except UsageError as error:
        devices = f"none: {error}"
    available = total_memory()
    memory = "unknown" if available is None else f"{available / 2**30:.1f} GiB"
    lines = [("system", platform.platform()), ("python", sys.version.replace("\n", " "))]
    lines += [("jaxgen", f"{__version__} in {Path(__file__).resolve().parents[1]}"), *packages().items()]
    lines += [("processor", f"{processor_name()}, {cores()} cores"), ("memory", memory), ("devices", devices)]
    lines += [("cache", str(user_cache())), ("terminal", f"{os.environ.get('TERM', 'none')}, {sys.stdout.encoding}")]
    lines += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    write_out("".join(f"{name:20s}{text}\n" for name, text in lines))


main = Command(doctor)


def packages() -> dict[str, str]:
    """Package -> version: those that jaxgen needs, then those that it can use and that are installed."""
    try:
        lines = requires("jaxgen") or []
    except PackageNotFoundError:  # run from a copy of the code
        lines = ["flax", "jax", "jaxlib", "numpy", "optax"]
    needed: set[str] = set()
    optional = {each.name for each in distributions() if (each.name or "").startswith(PLUGINS)}
    for line in lines:
        name, extra = re.split(r"[^\w.-]", line)[0], re.search(r"extra == .(\w+)", line)
        if extra is None:
            needed.add(name)
        elif extra[1] not in TOOLS:
            optional.add(name)
    missing = "not installed"
    found = {name: installed(name, missing) for name in [*sorted(needed), *sorted(optional - needed - {"jaxgen"})]}
    return {name: number for name, number in found.items() if name in needed or number != missing}


def installed(name: str, missing: str) -> str:
    """The version of a package, or ``missing``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return missing
