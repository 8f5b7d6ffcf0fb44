"""Memory of the host, where it is what XLA computes in."""

import ctypes
import importlib.util
import os
import sys

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory_of_host_computation() -> None:
    """Has this process keep the memory that it frees, if JAX will run on the CPU.

    Call it before JAX starts its threads, which have heaps of their own otherwise. On a CPU a
    step's temporaries are one allocation of hundreds of megabytes. The C library gives them back
    to the system after each step, and up to a third of the time of a small step then goes to
    faulting the same pages in again. Where the C library is not glibc, nothing happens.
    """
    if not (sys.platform.startswith("linux") and _on_cpu()):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # All from one heap that never shrinks: no mapping of its own for what is large.
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def _on_cpu() -> bool:
    """Told without starting JAX's backends: by what is set, or for want of anything else."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(plugin) for plugin in ("libtpu", "jax_plugins"))
