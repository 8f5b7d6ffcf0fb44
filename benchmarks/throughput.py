"""Speed, compile time and memory of every program of a config; needs no data and no weights.

A class-conditional prior is measured with its condition where the data set is there to count its
classes, and without it, which the head says, where it is not.

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

from vqjax.conditions import Condition, NoCondition
from vqjax.errors import InputError, did_you_mean
from vqjax.parallel import batch_sharding, make_mesh, placed, process_rows
from vqjax.pixels import to_float
from vqjax.priors import Prior
from vqjax.programs import command_line
from vqjax.runs.build import build_sampling, build_stage_prior, build_stage_tokenizer
from vqjax.runs.description import as_text, describe, known_condition
from vqjax.runs.stages import all_stages, stages_of, tokenizer_of
from vqjax.runs.weights import prior_shapes
from vqjax.samplers import SAMPLERS
from vqjax.tokenizers import Tokenizer
from vqjax.tokenizers.base import tokenizer_shapes, tokens_shape
from vqjax.tokens import Tokens
from vqjax.training.loop import abstract_state, batch_shapes, jit_train_step
from vqjax.training.stage_kinds import build_stage
from vqjax.training.token_data import token_form

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


def train_step(
    config: ConfigDict, mesh: Mesh, condition: Condition, name: str, on_tokens: bool = False
) -> Program:
    """A stage's training step, on bytes as they come from the data pipeline, or on their tokens."""
    stage = build_stage(config, name, epath.Path(), condition)
    state = abstract_state(stage, mesh)
    side, form = config.data.resolution, None
    if on_tokens:
        form = token_form(build_stage_tokenizer(config, name), side, views=1)
    rest = (
        placed(stage.frozen_shapes(), mesh),
        batch_shapes(stage.settings.batch_size, side, condition.length, mesh, form),
    )
    key = stage.training_key

    def arguments() -> tuple[Any, ...]:
        init = jax.jit(stage.init, out_shardings=jax.tree.map(lambda x: x.sharding, state))
        return init(jax.random.key(0)), *random_arrays(rest), key

    return Program(
        jit_train_step(stage, mesh),
        (state, *rest, key),
        arguments,
        stage.settings.batch_size,
        config[name].model.get("dtype", "float32"),
        trains=True,
    )


def encode(config: ConfigDict, mesh: Mesh, condition: Condition, name: str) -> Program:
    """Bytes to tokens, by the tokenizer of a stage."""
    del condition
    tokenizer = build_stage_tokenizer(config, name)

    def function(variables: Any, images: UInt8[Array, "b H W 3"]) -> Any:
        return tokenizer.apply(variables, to_float(images), method="encode")

    side, batch_size = config.data.resolution, config[tokenizer_of(config, name)].batch_size
    variables = placed(tokenizer_shapes(tokenizer, side), mesh)
    images = batch_shapes(batch_size, side, 0, mesh)["image"]
    return _forward(function, (variables, images), batch_size, tokenizer)


def decode(config: ConfigDict, mesh: Mesh, condition: Condition, name: str) -> Program:
    """Tokens to pixels, by the tokenizer of a stage."""
    del condition
    tokenizer = build_stage_tokenizer(config, name)
    side, batch_size = config.data.resolution, config[tokenizer_of(config, name)].batch_size
    shape = tokens_shape(tokenizer, side)
    number = shape.codes.shape[1]

    def function(variables: Any, codes: Int[Array, "b n"]) -> Any:
        # Wherever they lie: a sparse tokenizer decodes the first cells.
        positions = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32), codes.shape)
        return tokenizer.apply(variables, Tokens(codes, positions, shape.grid), method="decode")

    variables = placed(tokenizer_shapes(tokenizer, side), mesh)
    codes = jax.ShapeDtypeStruct((batch_size, number), jnp.int32, sharding=batch_sharding(mesh))
    return _forward(function, (variables, codes), batch_size, tokenizer, tokenizer.num_codes)


def sample_tokens(config: ConfigDict, mesh: Mesh, condition: Condition, name: str) -> Program:
    """Nothing but a condition to tokens, by the sampler of a prior's stage."""
    prior = build_stage_prior(config, name, condition)
    tokenizer = build_stage_tokenizer(config, name)
    sampling = build_sampling(config, name, prior)
    sampler = SAMPLERS[config[name].model.name]

    def function(variables: Any, ids: Int[Array, "b c"], seed: Int[Array, ""]) -> Tokens:
        key = jax.random.key(seed)
        return sampler.sample(prior, variables, key, ids, None, sampling.sampler, prior.grid)

    tokens = tokens_shape(tokenizer, config.data.resolution).codes.shape[1]
    batch_size = sampling.generation.batch_size
    ids = jax.ShapeDtypeStruct(
        (batch_size, condition.length), jnp.int32, sharding=batch_sharding(mesh)
    )
    seed = placed(jax.ShapeDtypeStruct((), jnp.int32), mesh)
    variables = placed(prior_shapes(prior, tokens, condition.length), mesh)
    return _forward(function, (variables, ids, seed), batch_size, prior)


def _forward(
    function: Callable[..., Any],
    shapes: tuple[Any, ...],
    batch_size: int,
    model: Tokenizer | Prior,
    integers_below: int = 1,
) -> Program:
    """A program that uses a model: `shapes` are its variables, its batch and the rest."""
    return Program(
        jax.jit(function),
        shapes,
        lambda: random_arrays(shapes, integers_below),
        batch_size,
        getattr(model, "dtype", "float32"),
    )


def programs_of(config: ConfigDict) -> dict[str, Callable[[ConfigDict, Mesh, Condition], Program]]:
    """By name: a training step for every stage, and what the last stage needs to make images.

    A prior has another step, of tokens that are there.
    """
    stages, priors = all_stages(config), stages_of(config, "prior")
    found: dict[str, Callable[..., Program]] = {
        "encode": functools.partial(encode, name=stages[-1]),
        "decode": functools.partial(decode, name=stages[-1]),
    }
    found |= {f"{name}_step": functools.partial(train_step, name=name) for name in stages}
    found |= {
        f"{name}_step_on_tokens": functools.partial(train_step, name=name, on_tokens=True)
        for name in priors
    }
    if priors:
        found["sample"] = functools.partial(sample_tokens, name=priors[-1])
    return found


CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as of train.py")
WHAT = flags.DEFINE_list(
    "what",
    None,
    "Which programs: encode, decode, <stage>_step, <prior>_step_on_tokens, sample [all]",
)
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


def head(config: ConfigDict, mesh: Mesh, condition: Condition, note: str | None) -> str:
    """The head of the table: devices, stages, and how they are sampled."""
    device = mesh.devices.flat[0]
    mesh_shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    lines = [
        f"{mesh.size} x {device.device_kind} ({device.platform}), mesh {mesh_shape};"
        f" jax {jax.__version__}",
        as_text(describe(config, condition)),
    ]
    if note:
        lines.append(f"measured {note}")
    for name in stages_of(config, "prior")[-1:]:
        sampling = build_sampling(config, name, build_stage_prior(config, name, condition))
        settings = dataclasses.asdict(sampling.sampler).items()
        lines.append(f"sample, without decoding: {', '.join(f'{k}={v}' for k, v in settings)}")
    return "\n".join(
        [
            *lines,
            "a step is an update in a stage's last phase (with R1, where the discriminator has it);"
            " that of a prior encodes its images first, but for the one on tokens",
            "program MiB: a device's arguments, results and temporaries, less what they share,"
            " by XLA's plan",
            "allocator MiB: the highest that the device's allocator reports so far in this process"
            " (not on CPU)",
        ]
    )


def row(*cells: Any) -> str:
    """A line of the table; None is a number that there is not."""
    widths = (21, 10, 7, 11, 10, 11, 13, 15)

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
    there = programs_of(config)
    wanted = list(there) if WHAT.value is None else WHAT.value
    for what in wanted:
        if what not in there:
            raise InputError(f"--what has {what!r}: {did_you_mean(what, there)}")
    if REPEATS.value < 0:
        raise InputError(f"--repeats={REPEATS.value}: 0 (only compile) or more is needed")
    if BATCH_SIZE.value is not None:
        if BATCH_SIZE.value < 1:
            raise InputError(f"--batch_size={BATCH_SIZE.value}: at least 1 is needed")
        for part in (*all_stages(config), "sampling"):
            if part in config:
                config[part].batch_size = BATCH_SIZE.value
    mesh = make_mesh(config.mesh)
    condition, note = known_condition(config)
    if note:
        condition = NoCondition()
    programs = [there[what](config, mesh, condition) for what in wanted]
    for program in programs:
        process_rows(mesh, program.batch_size)

    print(head(config, mesh, condition, note))
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
    for what, program in zip(wanted, programs, strict=True):
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
