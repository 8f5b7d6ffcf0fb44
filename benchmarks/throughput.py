"""Speed, compile time and memory of every program of a config; needs no data and no weights.

    python benchmarks/throughput.py --config=configs/openmoji_effvqgan.py:res=64,f=8
    python benchmarks/throughput.py --config=configs/ffhq_effvqgan.py --what=prior_step --repeats=0

The second line compiles only. A program runs on the mesh of the config with fresh random weights;
its time is the median of the repeats, after a first call that is not counted. Compiling is timed
apart, and never taken from a cache.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8
from measuring import MIB, program_memory, seconds_per_call
from ml_collections import ConfigDict, config_flags

from vqjax.conditions import NoCondition
from vqjax.errors import InputError, did_you_mean
from vqjax.parallel import batch_sharding, make_mesh, placed, process_rows
from vqjax.pixels import to_float
from vqjax.priors import Prior
from vqjax.programs import command_line
from vqjax.runs.build import build_sampling, build_stage_prior, build_stage_tokenizer
from vqjax.runs.weights import prior_shapes
from vqjax.samplers import SAMPLERS
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokenizer_shapes, tokens_shape
from vqjax.tokens import Tokens
from vqjax.training.loop import abstract_state, batch_shapes, jit_train_step
from vqjax.training.stage_kinds import build_stage

# Config files import each other as `configs.<name>`, from the root of the repository.
sys.path.append(str(Path(__file__).parents[1]))


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, and what it is called with.

    Attributes:
        function: takes `shapes`.
        shapes: shapes and shardings of its arguments.
        arguments: makes them.
        batch_size: images that a call works off.
        dtype: compute dtype.
        trains: the first argument is a state, which a call may overwrite; the first result is its
            successor.
    """

    function: Any
    shapes: tuple[Any, ...]
    arguments: Callable[[], tuple[Any, ...]]
    batch_size: int
    dtype: str
    trains: bool = False


def random_arrays(shapes: Any, integers_below: int = 1) -> Any:
    """Arrays for shapes, placed as their shardings say.

    Floats are small normal numbers, bytes uniform, other integers uniform in [0, integers_below).
    """

    def fill(shape: jax.ShapeDtypeStruct) -> Array:
        key = jax.random.key(0)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return 0.02 * jax.random.normal(key, shape.shape, shape.dtype)
        if shape.dtype == jnp.uint8:
            return jax.random.bits(key, shape.shape, jnp.uint8)
        return jax.random.randint(key, shape.shape, 0, integers_below).astype(shape.dtype)

    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: jax.tree.map(fill, shapes), out_shardings=shardings)()


def train_step(config: ConfigDict, mesh: Mesh, name: str) -> Program:
    """A stage's training step, on bytes as they come from the data pipeline."""
    stage = build_stage(config, name, epath.Path())
    state = abstract_state(stage, mesh)
    rest = (
        placed(stage.frozen_shapes(), mesh),
        batch_shapes(stage.config.batch_size, config.data.resolution, 0, mesh),
    )

    def arguments() -> tuple[Any, ...]:
        init = jax.jit(stage.init, out_shardings=jax.tree.map(lambda x: x.sharding, state))
        return init(jax.random.key(0)), *random_arrays(rest)

    return Program(
        jit_train_step(stage, mesh),
        (state, *rest),
        arguments,
        stage.config.batch_size,
        config[name].model.get("dtype", "float32"),
        trains=True,
    )


def encode(config: ConfigDict, mesh: Mesh) -> Program:
    """Bytes to tokens."""
    tokenizer = build_stage_tokenizer(config, "tokenizer")

    def function(variables: Any, images: UInt8[Array, "b H W 3"]) -> Any:
        return tokenizer.apply(variables, to_float(images), method="encode")

    side = config.data.resolution
    variables = placed(tokenizer_shapes(tokenizer, side), mesh)
    images = batch_shapes(config.tokenizer.batch_size, side, 0, mesh)["image"]
    return _forward(function, (variables, images), tokenizer)


def decode(config: ConfigDict, mesh: Mesh) -> Program:
    """Tokens to pixels."""
    tokenizer = build_stage_tokenizer(config, "tokenizer")

    def function(variables: Any, tokens: Tokens) -> Any:
        return tokenizer.apply(variables, tokens, method="decode")

    side = config.data.resolution
    variables = placed(tokenizer_shapes(tokenizer, side), mesh)
    shape = tokens_shape(tokenizer, side)
    batch = (config.tokenizer.batch_size, shape.codes.shape[1])
    share = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=batch_sharding(mesh))
    tokens: Any = jax.tree.map(lambda _: share, shape)
    return _forward(function, (variables, tokens), tokenizer)


def sample_tokens(config: ConfigDict, mesh: Mesh) -> Program:
    """Nothing to tokens, by the sampler of the prior, without a condition."""
    prior = build_stage_prior(config, "prior", NoCondition())
    tokenizer = build_stage_tokenizer(config, "prior")
    sampling = build_sampling(config, "prior", prior)
    sampler = SAMPLERS[config.prior.model.name]

    def function(variables: Any, condition: Int[Array, "b 0"], seed: Int[Array, ""]) -> Tokens:
        key = jax.random.key(seed)
        return sampler.sample(prior, variables, key, condition, None, sampling.sampler, prior.grid)

    tokens = tokens_shape(tokenizer, config.data.resolution).codes.shape[1]
    batch = sampling.generation.batch_size, 0
    condition = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=batch_sharding(mesh))
    seed = placed(jax.ShapeDtypeStruct((), jnp.int32), mesh)
    return _forward(
        function, (placed(prior_shapes(prior, tokens, 0), mesh), condition, seed), prior
    )


def _forward(
    function: Callable[..., Any], shapes: tuple[Any, ...], model: Tokenizer | Prior
) -> Program:
    """A program that uses a model: `shapes` are its variables, its batch and the rest."""
    return Program(
        jax.jit(function),
        shapes,
        lambda: random_arrays(shapes, model.num_codes),
        jax.tree.leaves(shapes[1])[0].shape[0],
        model.dtype,
    )


PROGRAMS: dict[str, Callable[[ConfigDict, Mesh], Program]] = {
    "encode": encode,
    "decode": decode,
    "tokenizer_step": functools.partial(train_step, name="tokenizer"),
    "prior_step": functools.partial(train_step, name="prior"),
    "sample": sample_tokens,
}

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as of train.py")
WHAT = flags.DEFINE_list("what", list(PROGRAMS), f"Which programs: {', '.join(PROGRAMS)}")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Global batch of every program [the config's]"
)
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls of each program; 0 only compiles")
flags.mark_flag_as_required("config")


def allocated_memory() -> float | None:
    """Peak memory of the allocator of the fullest device since the process began, MiB, or None."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks) / MIB if peaks else None


def describe(config: ConfigDict, mesh: Mesh) -> str:
    """The head of the table: devices, latent grid, and the work of a sampling and a prior step."""
    prior: Any = build_stage_prior(config, "prior", NoCondition())
    device, resolution = mesh.devices.flat[0], config.data.resolution
    blocks = prior.layout(prior.grid).num_blocks
    taken = prior.drawn_blocks(prior.grid)
    mesh_shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return "\n".join(
        [
            f"{mesh.size} x {device.device_kind} ({device.platform}), mesh {mesh_shape};"
            f" jax {jax.__version__}",
            f"{resolution}x{resolution} images, {prior.grid[0]}x{prior.grid[1]} latents;"
            f" sample: {config.sampling.steps} steps in each of {blocks} blocks, without decoding;"
            f" prior_step: {taken} of {blocks} query blocks an image, with encoding",
            "program MiB: a device's arguments, results and temporaries, less what they share,"
            " by XLA's plan",
            "allocator MiB: the highest that the device's allocator reports so far in this process"
            " (not on CPU)",
        ]
    )


def row(*cells: Any) -> str:
    """A line of the table; None is a number that there is not."""
    widths = (14, 10, 7, 11, 10, 11, 13, 15)

    def text(cell: Any) -> str:
        if cell is None:
            return "-"
        return f"{cell:,.1f}" if isinstance(cell, float) else str(cell)

    first, *rest = (text(cell) for cell in cells)
    return first.ljust(widths[0]) + "".join(
        cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)
    )


def main() -> None:
    """Prints the table, line by line as the programs are measured."""
    # A compile is timed, not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    config = CONFIG.value
    for what in WHAT.value:
        if what not in PROGRAMS:
            raise InputError(f"--what has {what!r}: {did_you_mean(what, PROGRAMS)}")
    if REPEATS.value < 0:
        raise InputError(f"--repeats={REPEATS.value}: 0 (only compile) or more is needed")
    if BATCH_SIZE.value is not None:
        if BATCH_SIZE.value < 1:
            raise InputError(f"--batch_size={BATCH_SIZE.value}: at least 1 is needed")
        for part in (config.tokenizer, config.prior, config.sampling):
            part.batch_size = BATCH_SIZE.value
    mesh = make_mesh(config.mesh)
    programs = [PROGRAMS[what](config, mesh) for what in WHAT.value]
    for program in programs:
        process_rows(mesh, program.batch_size)

    print(describe(config, mesh))
    print(
        row(
            "program",
            "dtype",
            "batch",
            "compile s",
            "call ms",
            "images/s",
            "program MiB",
            "allocator MiB",
        )
    )
    for what, program in zip(WHAT.value, programs, strict=True):
        began = time.perf_counter()
        compiled = program.function.lower(*program.shapes).compile()
        compile_seconds = time.perf_counter() - began
        milliseconds = speed = None
        if REPEATS.value:
            seconds = seconds_per_call(compiled, program.arguments(), REPEATS.value, program.trains)
            milliseconds, speed = 1e3 * seconds, program.batch_size / seconds
        measured = (compile_seconds, milliseconds, speed, program_memory(compiled))
        print(
            row(what, program.dtype, program.batch_size, *measured, allocated_memory()), flush=True
        )


if __name__ == "__main__":
    command_line.run(main)
