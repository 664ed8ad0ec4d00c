"""Settings of the process that make JAX fast on a CPU; the commands apply them, importing jaxgen never does."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> bool:
    """Ask glibc to keep large freed blocks instead of returning them to the system; True if it agreed.

    XLA allocates a training step's temporaries anew at each step. By default glibc maps and unmaps them every time
    and the kernel zeroes each page again, which can cost as much as the arithmetic. Memory stays with the process
    until it ends. Only glibc has the setting; ``JAXGEN_MALLOC=0`` turns it off.
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
    return mapped and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
