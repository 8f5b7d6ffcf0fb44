"""Time and memory of a program, and the cores that it may use, for the benchmarks."""

import os
import resource
import statistics
import time
from typing import Any

import jax

from vqjax.errors import InputError

MIB = 2**20


def program_memory(compiled: Any) -> float:
    """Peak memory of a compiled program on one device by XLA's own plan, MiB."""
    plan = compiled.memory_analysis()
    peak = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
    return peak / MIB


def seconds_per_call(
    compiled: Any, arguments: tuple[Any, ...], repeats: int, trains: bool
) -> float:
    """Median time of a call, from its start until its results are there.

    Args:
        compiled: the program.
        arguments: of the first call, which is not counted.
        repeats: timed calls, at least 1.
        trains: the first result takes the place of the first argument, which may be overwritten.
    """
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
        if trains:
            arguments = (results[0], *arguments[1:])
    return statistics.median(seconds[1:])


def peak_memory() -> float:
    """Largest resident set of the process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def take_cores(threads: int | None) -> int:
    """Keeps the process to some of its cores, and says to how many.

    Call it before JAX starts: XLA makes as many threads as there are cores for the process.

    Args:
        threads: the value of --threads; None for all.

    Raises:
        InputError: there are not so many.
    """
    cores = sorted(os.sched_getaffinity(0))
    taken = threads or len(cores)
    if taken > len(cores):
        raise InputError(f"--threads={taken}: there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[:taken])
    return taken
