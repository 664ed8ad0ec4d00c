"""``jaxgen doctor``: what a bug report needs to say about this installation."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from pydantic import BaseModel, ConfigDict

from jaxgen.cli.common import run_command, write_out
from jaxgen.cli.flags import load_plugins, parse
from jaxgen.errors import UsageError

DESCRIPTION = """Print the versions, devices and settings that a bug report should name.

    jaxgen doctor"""
#: Variables of the environment that change what jaxgen does.
VARIABLES = ("JAX_", "JAXGEN_", "XLA_", "LIBTPU_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class DoctorConfig(BaseModel):
    """Flags of ``jaxgen doctor``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def main(args: Sequence[str] | None = None) -> int:
    """Print the facts; returns the exit code."""
    return run_command(doctor, args)


def doctor(args: list[str]) -> None:
    """Parse ``args`` and print the facts."""
    parse(DoctorConfig, load_plugins(args), prog="jaxgen doctor", description=DESCRIPTION)
    import jax

    from jaxgen.fsutil import user_cache
    from jaxgen.runtime import cores, need_backend, processor_name

    try:
        need_backend()
        devices = ", ".join(map(str, jax.devices()))
    except UsageError as error:
        devices = f"none: {error}"
    lines = [("system", platform.platform()), ("python", sys.version.replace("\n", " "))]
    lines += [(name, installed(name)) for name in ("jaxgen", "jaxlib", *dependencies())]
    lines += [("processor", f"{processor_name()}, {cores()} cores")]
    lines += [("devices", devices), ("cache", str(user_cache()))]
    lines += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    write_out("".join(f"{name:20s}{text}\n" for name, text in lines))


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def dependencies() -> list[str]:
    """The names of the packages that jaxgen needs, in alphabetical order."""
    try:
        needed = requires("jaxgen") or []
    except PackageNotFoundError:  # run from a copy of the code
        return ["flax", "jax", "numpy", "optax"]
    names = {re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line}
    return sorted(names - {"jaxlib"})
