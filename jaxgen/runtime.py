"""Process settings that make JAX fast on a CPU. The commands apply them; importing jaxgen does not."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from jaxgen.errors import UsageError
from jaxgen.fsutil import parse_json, read_bounded, user_cache, write_atomically

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
#: The first bytes of a cache entry compressed by Zstandard; JAX uses zlib where that is not installed.
ZSTANDARD = b"\x28\xb5\x2f\xfd"
#: The largest size of the compilation cache in bytes; beyond it the oldest entries are removed.
MAX_CACHE_BYTES = 1 << 29
#: Bytes of a cache entry that are read and unpacked at once.
PIECE = 1 << 20
#: Seconds of work without compilation from which on its speed is shown: a shorter time says nothing.
MIN_SECONDS = 0.5


def keep_memory() -> bool:
    """Make glibc keep large freed blocks instead of returning them to the system; returns whether it agreed.

    XLA allocates the temporaries of a training step again at each step. By default glibc maps and unmaps them every
    time and the kernel zeroes each page again, which can cost as much as the arithmetic. With this, memory stays with
    the process until it ends. All threads share one arena, because the thresholds do not apply to further arenas, which
    the threads of CPU devices would use. Call it before the first array. Only glibc has these settings;
    ``JAXGEN_MALLOC=0`` turns them off.

    Example:
        >>> kept = jaxgen.keep_memory()  # before the first array
    """
    if os.environ.get("JAXGEN_MALLOC", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older versions refuse thresholds above 32 MiB.
    mapped = any(mallopt(M_MMAP_THRESHOLD, size) == 1 for size in (1 << 30, 32 << 20))
    return mapped and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1 and mallopt(M_ARENA_MAX, 1) == 1


def keep_compilations() -> Path | None:
    """Keep compiled functions in the user's cache folder, so that a command starts quickly the second time.

    Returns the folder, or None if it cannot be written, if JAX already has one (``JAX_COMPILATION_CACHE_DIR``), or if
    its cache is off (``JAX_ENABLE_COMPILATION_CACHE=0``). Call it before the first compilation. Each kind of processor
    has its own folder, because code compiled for one need not run on another.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    try:
        folder = user_cache() / "compiled" / f"{jax.lib.__version__}-{processor()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: the user has no home folder
        return None
    clean_cache(folder)
    atexit.register(clean_cache, folder)  # so that entries of this process are known before they can change
    if not folder.is_absolute() or not os.access(folder, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a command compiles many small functions
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A damaged entry or a full disk only costs a compilation.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    return folder


#: Settings of JAX that can change bits, with their defaults.
NUMERICS: dict[str, object] = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_threefry_partitionable": True,
    "jax_disable_most_optimizations": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_disable_jit": False,
}
#: Those that the commands set to their defaults: what a run depends on is in its own settings.
PINNED = tuple(NUMERICS)[:4]
#: Settings of JAX that forbid transfers, which the commands rely on.
TRANSFER_GUARDS = tuple(
    f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_device", "_device_to_host")
)
#: Environment variables with flags of the compilers, and flags that change no bits or are recorded as devices.
FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
HARMLESS_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump")


def pin_numerics() -> None:
    """Set ``PINNED`` to their defaults, whatever the environment says, and allow transfers between host and devices.

    Call it before the first array.
    """
    import jax

    for name in PINNED:
        jax.config.update(name, NUMERICS[name])
    for name in TRANSFER_GUARDS:
        jax.config.update(name, "allow")
    jax.config.update("jax_random_seed_offset", 0)


def check_jax_settings() -> None:
    """Raise ``UsageError`` for settings of JAX in a user's program with which jaxgen cannot run."""
    import jax

    if not jax.sharding.get_abstract_mesh().empty:
        raise UsageError("A mesh is set (jax.set_mesh), but jaxgen places its arrays itself: call it elsewhere.")
    values = jax.config.values  # reading it makes a dictionary of all settings
    if values["jax_numpy_dtype_promotion"] != "standard":
        raise UsageError(
            "Types are promoted strictly (JAX_NUMPY_DTYPE_PROMOTION), which optax does not support: call jaxgen within "
            'jax.numpy_dtype_promotion("standard").'
        )
    if any(str(values[name]).startswith("disallow") for name in TRANSFER_GUARDS):
        raise UsageError(
            "Transfers between host and devices are not allowed (JAX_TRANSFER_GUARD), but training and sampling need "
            'them: call jaxgen within jax.transfer_guard("allow").'
        )


def numerics() -> dict[str, object]:
    """What is set in this process that can change bits, apart from versions and devices; defaults are left out."""
    import jax

    everywhere = jax.config.values  # reading it makes a dictionary of all settings
    values = {n: getattr(jax.config, n, everywhere[n]) for n in NUMERICS if n in everywhere}
    found = {name: value for name, value in values.items() if value != NUMERICS[name]}
    for variable in FLAG_VARIABLES:
        if kept := sorted(flag for flag in _flags(variable) if not flag.startswith(HARMLESS_FLAGS)):
            found[variable] = " ".join(kept)
    return found


def _flags(variable: str) -> list[str]:
    """The flags in an environment variable, or in the file that it names instead, which XLA reads too."""
    text = os.environ.get(variable, "")
    if not text.startswith("-"):
        with contextlib.suppress(OSError, ValueError):
            text = Path(text).read_text() if Path(text).is_file() else text
    return text.split()


def check_xla_flags() -> Callable[[], None]:
    """Read ``XLA_FLAGS`` in a process of its own, because XLA ends a process for flags that it does not know.

    Returns a function that waits for the result, and raises ``UsageError`` if the flags cannot be used.
    """
    flags = os.environ.get("XLA_FLAGS")
    if flags is None:
        return lambda: None
    code = "from jaxlib.xla_client import CompileOptions; CompileOptions()"
    command, env = [sys.executable, "-P", "-c", code], os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )

    def wait() -> None:
        errors = process.communicate()[1].decode(errors="replace")
        found = re.search(r"(?m)^[EF].*\.cc:[0-9]+\] (.*?)\.?$", errors)
        if process.returncode and found:
            raise UsageError(f"XLA_FLAGS={flags} cannot be used: {found[1]}. Correct the variable, or unset it.")

    return wait


def offer_cores() -> None:
    """Make each core of the CPU a JAX device, so that a batch can be sharded over them (``--devices``).

    Does nothing if the number is set elsewhere (``JAX_NUM_CPU_DEVICES``) or JAX is already in use. Raises
    ``UsageError`` if that number cannot be used.

    Example:
        >>> jaxgen.offer_cores()  # before anything uses JAX
    """
    import jax

    given = jax.config.values["jax_num_cpu_devices"]
    if given != -1 and given < 1:
        raise UsageError(f"JAX_NUM_CPU_DEVICES={given} cannot be used: set it to a whole number from 1, or unset it.")
    set_elsewhere = "xla_force_host_platform_device_count" in " ".join(_flags("XLA_FLAGS"))
    if given == -1 and not set_elsewhere:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cores())


def need_backend() -> None:
    """Raise ``UsageError`` unless JAX can use the platform in ``JAX_PLATFORMS``."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # AssertionError: its plugin is not installed
        why = f": {str(error).splitlines()[0].split(' (')[0].rstrip('.')}" if str(error) else ""
        raise UsageError(
            f"JAX cannot use JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}{why}. Unset it to use any device, "
            "or install the JAX for that device."
        ) from None


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """The bytes of memory of this machine; None if the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def need_devices(number: int, who: str) -> None:
    """Raise ``UsageError`` unless this process has ``number`` devices. ``who`` begins the message."""
    import jax

    there = jax.local_device_count()
    if number > there:
        more = "Take a machine with more"
        if jax.default_backend() == "cpu":
            more += f", or set JAX_NUM_CPU_DEVICES={number} (slower with fewer than {number} cores)"
        raise UsageError(f"{who} devices, but {there} can be used here ({jax.default_backend()}). {more}.")


def processor() -> str:
    """A digest of the instruction set of this machine's processor."""
    known = _cpuinfo("flags", "Features") or f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def processor_name() -> str:
    """The name of this machine's processor with ``processor()``, since instructions may differ under one name."""
    name = _cpuinfo("model name").partition(":")[2].strip() or platform.processor() or platform.machine()
    return f"{name} ({processor()})"


def multiplies_bfloat16() -> bool:
    """Whether JAX's default device multiplies bfloat16 natively. A CPU that does not converts it, which is slow."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpuinfo("flags", "Features").split())
    capability = getattr(device, "compute_capability", None)  # of a GPU; those of AMD have other names for it
    return not (isinstance(capability, str) and capability[:1].isdigit()) or float(capability) >= 8


@cache
def _cpuinfo(*names: str) -> str:
    """The first line on the processor that begins with one of ``names``; empty where the system has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "")


def clean_cache(folder: Path) -> None:
    """Remove incomplete and changed cache entries, and the oldest ones while there are more than ``MAX_CACHE_BYTES``.

    JAX writes entries in place. A kill or a full disk leaves a partial entry, which JAX would reject at every start and
    never replace. A whole entry never changes, but under another name it would run as another function. The file
    ``.entries`` has the time and size of each entry that was checked, by name.
    """
    index, kept = folder / ".entries", {}
    before: object = None
    with contextlib.suppress(OSError, ValueError):
        before = parse_json(read_bounded(index))
    known = before if isinstance(before, dict) else {}
    for path in folder.glob("*-cache"):  # JAX keeps other files beside them
        with contextlib.suppress(OSError):  # the folder may be read-only, and another process may be cleaning too
            status = path.lstat()
            found = [status.st_mtime_ns, status.st_size]
            if stat.S_ISREG(status.st_mode) and (known[path.name] == found if path.name in known else _whole(path)):
                kept[path.name] = found
            else:
                path.unlink()
    total = sum(size for _, size in kept.values())
    for name, (_, size) in sorted(kept.items(), key=lambda item: item[1]):
        if total > MAX_CACHE_BYTES:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
            total -= size
            del kept[name]
    if kept != before:
        with contextlib.suppress(OSError):
            write_atomically(index, json.dumps(kept).encode())


def _whole(path: Path) -> bool:
    """Whether a cache entry is complete and, unpacked, no larger than the whole cache may be.

    Entries of Zstandard cannot be checked and count as complete.
    """
    reader, size = zlib.decompressobj(), 0
    with open(path, "rb") as file:
        while block := reader.unconsumed_tail or file.read(PIECE):
            try:
                size += len(reader.decompress(block, PIECE))
            except zlib.error:
                return size == 0 and block.startswith(ZSTANDARD)
            if reader.eof or size > MAX_CACHE_BYTES:
                break
    return reader.eof and size <= MAX_CACHE_BYTES
