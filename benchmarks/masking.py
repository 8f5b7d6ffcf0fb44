"""What a mask costs in training: an MQ-VAE's step against a VQGAN's and the blocks that it adds.

    python benchmarks/masking.py

Scoring, selecting, gathering and scattering should cost next to nothing: a step is predicted to
take as long as a VQGAN's, less its middle blocks, and the de-mask module in their place. A step is
the gradient of l1 and the quantizer's loss by all parameters. The programs take turns; a time is
the median of the repeats, after a first turn that is not counted. Random weights and images,
float32.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Float
from measuring import program_memory, take_cores

from vqjax.nn.convolutional import ResidualStage
from vqjax.programs import command_line
from vqjax.tokenizers import Tokenizer, build_tokenizer
from vqjax.tokenizers.base import init_keys, step_keys
from vqjax.tokenizers.mqvae import DemaskModule

SIDE = flags.DEFINE_integer("side", 64, "Of the images in pixels, a multiple of 8", lower_bound=8)
WIDTH = flags.DEFINE_integer("width", 64, "Of the first level", lower_bound=32)
BLOCKS = flags.DEFINE_integer("blocks", 8, "H, pairs of the de-mask module", lower_bound=1)
MASK_RATIO = flags.DEFINE_float("mask_ratio", 0.25, "Cells without a code")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images at a time", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 9, "Timed calls of each", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", None, "Processor cores to use [all]", lower_bound=1)

MULTIPLIERS = (1, 1, 2, 2)


class Middle(nn.Module):
    """The blocks of a VQGAN in whose place the de-mask module is."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Block, attention, block."""
        x = ResidualStage(1, x.shape[-1], True)(x)
        return ResidualStage(1, x.shape[-1])(x)


def tokenizer_step(**fields: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of a tokenizer's loss, and its arguments."""
    model: Tokenizer = build_tokenizer(
        "model",
        {
            "name": "mqvae",
            "width": WIDTH.value,
            "multipliers": MULTIPLIERS,
            "attention_factors": (8,),
            "demask_blocks": BLOCKS.value,
            "mask_ratio": MASK_RATIO.value,
            "quantizer": {"learning": "ema", "restart_below": 0.1},
            **fields,
        },
    )
    key = jax.random.key(0)
    images = jax.random.uniform(key, (BATCH_SIZE.value, SIDE.value, SIDE.value, 3), minval=-1.0)
    variables = jax.jit(lambda key: model.init(init_keys(model, key), images))(key)

    def loss(params: Any, state: Any, images: Any) -> tuple[Float[Array, ""], Any]:
        (pixels, _, loss, _), state = model.apply(
            {"params": params, **state},
            images,
            True,
            rngs=step_keys(model, key),
            mutable=list(state),
        )
        return loss + jnp.mean(jnp.abs(pixels - images)), state

    state = {name: value for name, value in variables.items() if name != "params"}
    return jax.grad(loss, has_aux=True), (variables["params"], state, images)


def module_step(module: nn.Module, *told: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The gradient of a module at the lowest resolution by its parameters and its input."""
    cells, width = SIDE.value // 8, WIDTH.value * MULTIPLIERS[-1]
    x = jax.random.normal(jax.random.key(0), (BATCH_SIZE.value, cells, cells, width))
    variables = jax.jit(module.init)(jax.random.key(0), x, *told)

    def loss(variables: Any, x: Any) -> Float[Array, ""]:
        return jnp.sum(jnp.square(module.apply(variables, x, *told)))  # type: ignore[arg-type]

    return jax.grad(loss, argnums=(0, 1)), (variables, x)


def main() -> None:
    """Prints the table."""
    cores = take_cores(THREADS.value)
    cells = (SIDE.value // 8) ** 2
    kept = jnp.arange(cells)[None] >= MASK_RATIO.value * cells
    kept = jnp.broadcast_to(kept, (BATCH_SIZE.value, cells))
    cases = {
        "VQGAN": tokenizer_step(mask="none", demask="none"),
        "its middle": module_step(Middle()),
        "de-mask module": module_step(
            DemaskModule(BLOCKS.value, "mask_updating", False, "float32"), kept
        ),
        "MQ-VAE": tokenizer_step(),
    }
    programs: dict[str, Any] = {
        name: jax.jit(function).lower(*arguments).compile()
        for name, (function, arguments) in cases.items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(1 + REPEATS.value):
        for name, (_, arguments) in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(programs[name](*arguments))
            times[name].append(time.perf_counter() - began)
    step = {name: statistics.median(values[1:]) for name, values in times.items()}

    device = jax.devices()[0].device_kind
    print(
        f"{device}, {cores} cores, jax {jax.__version__}; {BATCH_SIZE.value} images of"
        f" {SIDE.value}x{SIDE.value}, {cells} cells, width {WIDTH.value}, {BLOCKS.value} blocks,"
        f" mask ratio {MASK_RATIO.value}"
    )
    print(f"{'':<20}" + "".join(c.rjust(16) for c in ("ms", "GFLOP", "program MiB")))
    for name, program in programs.items():
        gflop = program.cost_analysis()["flops"] / 1e9
        numbers = (1e3 * step[name], gflop, program_memory(program))
        print(f"{name:<20}" + "".join(f"{x:,.2f}".rjust(16) for x in numbers))
    predicted = step["VQGAN"] - step["its middle"] + step["de-mask module"]
    print(
        f"predicted {1e3 * predicted:.1f} ms; the step takes {step['MQ-VAE'] / predicted:.2f} times"
        f" that, and {step['MQ-VAE'] / step['VQGAN']:.2f} times the VQGAN's"
    )


if __name__ == "__main__":
    command_line.run(main)
