"""Memory of the host, where it is what XLA computes in."""

import ctypes
import sys

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, for the next allocation of its size.

    On a CPU a step's temporaries are one allocation of hundreds of megabytes. The C library gives
    them back to the system after each step, and a fifth of the time of a small step then goes to
    faulting the same pages in again. Where the C library is not glibc, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # All from one heap that never shrinks: no mapping of its own for what is large.
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)
