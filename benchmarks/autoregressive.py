"""Code by code with a cache: against recomputing the prefix, and the reading of the weights.

    python benchmarks/autoregressive.py

With one image a step is bound by memory: it cannot be faster than the parameters are read, which
the product of a matrix of as many bytes and a vector times. Without a cache each code takes a pass
over all codes, of which one is timed. The three take turns; a time is the median of the repeats,
after a first turn that is not counted. Random weights, float32, nothing is filtered.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Float, Int
from measuring import program_memory, take_cores

from vqjax.priors.autoregressive import AutoregressivePrior
from vqjax.priors.base import init_prior
from vqjax.programs import command_line
from vqjax.samplers.autoregressive import AutoregressiveSampling, sample
from vqjax.tokens import Tokens

LAYERS = flags.DEFINE_integer("layers", 24, "Of the transformer", lower_bound=1)
DIM = flags.DEFINE_integer("dim", 768, "Its width; 48 are a head", lower_bound=48)
SIDE = flags.DEFINE_integer("side", 16, "Of the latent map", lower_bound=2)
CODES = flags.DEFINE_integer("codes", 1024, "Size of the codebook", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images at a time", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", None, "Processor cores to use [all]", lower_bound=1)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A program, and the seconds that tracing and compiling it took."""
    began = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - began


def seconds(program: Any, *arguments: Any) -> float:
    """Time of a call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    cores = take_cores(THREADS.value)
    # A compile is timed, not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    grid, cells, batch = (SIDE.value, SIDE.value), SIDE.value**2, BATCH_SIZE.value
    prior = AutoregressivePrior(
        num_codes=CODES.value,
        grid=grid,
        num_ids=0,
        dim=DIM.value,
        num_layers=LAYERS.value,
        num_heads=DIM.value // 48,
    )
    condition = jnp.zeros((batch, 0), jnp.int32)
    codes = jnp.zeros((batch, cells), jnp.int32)
    key = jax.random.key(0)
    variables = jax.jit(lambda key: init_prior(prior, cells, 0, key))(key)
    number = sum(leaf.size for leaf in jax.tree.leaves(variables))

    def draw(variables: Any, key: Array) -> Tokens:
        return sample(prior, variables, key, condition, None, AutoregressiveSampling(), grid)

    def recompute(variables: Any, codes: Int[Array, "b n"], cell: Int[Array, ""]) -> Array:
        return prior.apply(variables, codes, condition)[:, cell]

    def read(matrix: Float[Array, "n m"], vector: Float[Array, "m"]) -> Float[Array, "n"]:
        return matrix @ vector

    width = 1024
    matrix, vector = jnp.ones((number // width, width)), jnp.ones(width)
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...], int]] = {
        "weights read once": (read, (matrix, vector), 1),
        "with the cache": (draw, (variables, key), cells),
        "prefix recomputed": (recompute, (variables, codes, jnp.int32(cells - 1)), 1),
    }
    programs = {name: compiled(case[0], *case[1]) for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(1 + REPEATS.value):
        for name, (_, arguments, steps) in cases.items():
            times[name].append(seconds(programs[name][0], *arguments) / steps)
    step = {name: statistics.median(values[1:]) for name, values in times.items()}

    device = jax.devices()[0].device_kind
    print(
        f"{device}, {cores} cores, jax {jax.__version__}; {LAYERS.value} layers of {DIM.value},"
        f" {number / 1e6:.1f} M parameters, {cells} codes of {CODES.value}, batch {batch}"
    )
    columns = ("ms a step", "tokens/s", "times the read", "compile s", "program MiB")
    print(f"{'':<20}" + "".join(column.rjust(16) for column in columns))
    for name, (program, compile_seconds) in programs.items():
        numbers = (
            1e3 * step[name],
            batch / step[name],
            step[name] / step["weights read once"],
            compile_seconds,
            program_memory(program),
        )
        print(f"{name:<20}" + "".join(f"{x:,.2f}".rjust(16) for x in numbers))
    ratio = step["prefix recomputed"] / step["with the cache"]
    print(
        f"the cache is worth a factor of {ratio:.1f}; the read is at"
        f" {4e-9 * number / step['weights read once']:.1f} GB/s"
    )


if __name__ == "__main__":
    command_line.run(main)
