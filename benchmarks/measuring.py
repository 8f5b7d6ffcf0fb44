"""Time and memory of a compiled program, for the benchmarks."""

import statistics
import time
from typing import Any

import jax

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
