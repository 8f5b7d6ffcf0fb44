"""Sampling with a mask: Stackformer at several mask ratios against codes of the whole grid.

    python benchmarks/stackformer.py

Paper 002, figure 6b: against an autoregressive transformer of the same size, a quarter of the cells
masked is 15 % faster, half of them 61 %. Both sample from caches; Stackformer has a quarter of its
layers in the Position-Transformer. The programs take turns; a time is the median of the repeats,
after a first turn that is not counted. Random weights, float32, nothing is filtered.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from measuring import take_cores

from vqjax.priors import build_prior
from vqjax.priors.base import init_prior
from vqjax.programs import command_line
from vqjax.samplers import SAMPLERS

LAYERS = flags.DEFINE_integer("layers", 24, "Of each prior, a multiple of 4", lower_bound=4)
DIM = flags.DEFINE_integer("dim", 512, "Width; 64 are a head", lower_bound=64)
SIDE = flags.DEFINE_integer("side", 16, "Of the latent map", lower_bound=2)
MASK_RATIOS = flags.DEFINE_list("mask_ratios", ["0", "0.25", "0.5"], "Of Stackformer")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images at a time", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", None, "Processor cores to use [all]", lower_bound=1)

CODES = 1024


def compiled(name: str, tokens: int, fields: dict[str, Any]) -> tuple[Any, tuple[Any, ...], int]:
    """The program that draws a batch, its arguments, and the number of the prior's parameters."""
    grid = (SIDE.value, SIDE.value)
    sizes = {"dim": DIM.value, "num_heads": DIM.value // 64}
    prior = build_prior("prior", {"name": name, **sizes, **fields}, CODES, grid, 0)
    condition = jnp.zeros((BATCH_SIZE.value, 0), jnp.int32)
    sampler, key = SAMPLERS[name], jax.random.key(0)
    variables = jax.jit(lambda key: init_prior(prior, tokens, 0, key))(key)

    def draw(variables: Any, key: Any) -> Any:
        return sampler.sample(prior, variables, key, condition, None, sampler.settings(), grid)

    program = jax.jit(draw).lower(variables, key).compile()
    return program, (variables, key), sum(leaf.size for leaf in jax.tree.leaves(variables))


def main() -> None:
    """Prints the table."""
    cores, cells = take_cores(THREADS.value), SIDE.value**2
    position_layers = LAYERS.value // 4
    layers = {
        "num_layers": LAYERS.value - position_layers,
        "num_position_layers": position_layers,
    }
    whole = "autoregressive"
    tokens = {whole: cells}
    programs = {whole: compiled(whole, cells, {"num_layers": LAYERS.value, "norm": "pre"})}
    for ratio in MASK_RATIOS.value:
        name = f"stackformer, {100 * float(ratio):g} %"
        tokens[name] = round((1 - float(ratio)) * cells)
        programs[name] = compiled("stackformer", tokens[name], layers)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + REPEATS.value):
        for name, (program, arguments, _) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}

    device = jax.devices()[0].device_kind
    print(
        f"{device}, {cores} cores, jax {jax.__version__}; {LAYERS.value} layers of {DIM.value},"
        f" {cells} cells, batch {BATCH_SIZE.value}"
    )
    columns = ("million", "tokens", "s a batch", "ms a token", "faster by")
    print(f"{'':<20}" + "".join(column.rjust(12) for column in columns))
    for name, (_, _, parameters) in programs.items():
        faster = f"{100 * (seconds[whole] / seconds[name] - 1):.1f} %"
        numbers = (seconds[name], 1e3 * seconds[name] / tokens[name])
        print(
            f"{name:<20}{parameters / 1e6:>12.1f}{tokens[name]:>12}"
            + "".join(f"{x:>12.2f}" for x in numbers)
            + f"{faster:>12}"
        )


if __name__ == "__main__":
    command_line.run(main)
