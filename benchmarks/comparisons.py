"""The speed and memory that paper 000 compares: tables 2 and 6, figure 9. Needs no data.

    python benchmarks/comparisons.py --what=reconstruction --batch_size=2 [--resolution=512]
    python benchmarks/comparisons.py --what=sampling --batch_size=1
    python benchmarks/comparisons.py --what=attention --batch_size=1 --layers=6

- reconstruction: images/s of encoding and decoding, ours, the convolutional VQGAN of the same
  latents and, at f = 8 as in the paper, ViT-VQGAN Base (table 2); `--resolution=512` shows what
  global attention costs on larger images;
- sampling: seconds for a batch of latents by the side W_s of a block; W_s = 1 is autoregressive
  (figure 9); and for as many passes of full attention as MaskGIT takes;
- attention: a training step of the prior by latent size, beside a transformer of the same layers
  with full attention over all tokens (table 6).

The models are those of configs/ffhq_effvqgan.py with random weights; `--layers` makes the prior
shallower, `--repeats=0` only compiles. Rows of one run may be compared.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import flags
from jaxtyping import Array, Float, Int
from measuring import program_memory, seconds_per_call

from vqjax.errors import InputError, did_you_mean
from vqjax.losses.cross_entropy import cross_entropy
from vqjax.nn.positions import GridEmbedding
from vqjax.nn.transformer import Transformer
from vqjax.priors.base import init_prior
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.programs import command_line
from vqjax.runs.build import build_stage_tokenizer
from vqjax.samplers.multigrained import MultiGrainedSampling, sample
from vqjax.tokenizers.base import init_keys
from vqjax.tokens import Tokens

# Config files import each other as `configs.<name>`, from the root of the repository.
sys.path.append(str(Path(__file__).parents[1]))

from configs import ffhq_effvqgan

NUM_CODES = 1024
MASKGIT_PASSES = 12


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: what is measured.
        function: to be jitted.
        make_arguments: makes what it is called with; only its shapes are needed to compile.
        images: that a call works off.
        trains: the first result replaces the first argument: a training step.
    """

    name: str
    function: Callable[..., Any]
    make_arguments: Callable[[], tuple[Any, ...]]
    images: int
    trains: bool = False


class FullAttention(nn.Module):
    """A masked-token transformer over all tokens at once, as wide and deep as the prior."""

    grid: tuple[int, int]
    num_layers: int
    dim: int = 768
    num_heads: int = 16
    scan: bool = True

    @nn.compact
    def __call__(self, codes: Int[Array, "b n"]) -> Float[Array, "b n k"]:
        """Logits of all tokens."""
        x = nn.Embed(NUM_CODES + 1, self.dim)(codes)
        x = x + GridEmbedding(self.grid, self.dim)().reshape(-1, self.dim)
        return nn.Dense(NUM_CODES)(Transformer(self.num_layers, self.num_heads, scan=self.scan)(x))


def _grids() -> list[tuple[int, int]]:
    return [(int(side), int(side)) for side in LATENTS.value]


def reconstruction(batch: int, layers: int) -> Iterator[Row]:
    """Table 2: the tokenizers at their factors, in float32."""
    del layers
    side = RESOLUTION.value
    for f, names in ((16, ("efficient", "vqgan")), (8, ("efficient", "vqgan", "vit"))):
        for name in names:
            config = ffhq_effvqgan.get_config(f"f={f},res={side},tokenizer={name}")
            config.tokenizer.model.dtype = "float32"
            model = build_stage_tokenizer(config, "tokenizer")

            def make(model: Any = model) -> tuple[Any, ...]:
                images = jnp.zeros((batch, side, side, 3))
                return model.init(init_keys(model, jax.random.key(0)), images), images

            def run(variables: Any, images: Any, model: Any = model) -> Any:
                return model.apply(variables, images)[0]

            yield Row(f"f={f} {name}", run, make, batch)


def sampling(batch: int, layers: int) -> Iterator[Row]:
    """Figure 9: latents by the side of a block; at most as many steps as cells in a block.

    Beside it 12 passes of full attention, as MaskGIT takes them.
    """
    for grid, block in itertools.product(_grids(), (1, 2, 4, 8, 16)):
        if grid != (16, 16) and block < 8:
            continue  # hundreds of passes
        prior = MultiGrainedPrior(NUM_CODES, grid, block_size=block, num_layers=layers, dropout=0.0)
        steps = min(8, block**2)
        settings = MultiGrainedSampling(steps=steps)

        def make(prior: Any = prior, grid: Any = grid) -> tuple[Any, ...]:
            condition = jnp.zeros((batch, 0), jnp.int32)
            return init_prior(prior, math.prod(grid), 0, jax.random.key(0)), condition

        def run(variables: Any, condition: Any, prior: Any = prior, own: Any = settings) -> Any:
            key = jax.random.key(0)
            return sample(prior, variables, key, condition, None, own, prior.grid).codes

        forwards = steps * (grid[0] // block) ** 2
        yield Row(f"{grid[0]}x{grid[1]} W_s={block}, {forwards} passes", run, make, batch)
    for grid in _grids():
        full = FullAttention(grid, layers, scan=False)

        def make_full(full: Any = full, grid: Any = grid) -> tuple[Any, ...]:
            codes = jnp.full((batch, math.prod(grid)), NUM_CODES)
            return full.init(jax.random.key(0), codes), codes

        def run_full(variables: Any, codes: Any, full: Any = full) -> Any:
            def step(_: Any, codes: Any) -> Any:
                return jnp.argmax(full.apply(variables, codes), axis=-1).astype(codes.dtype)

            return jax.lax.fori_loop(0, MASKGIT_PASSES, step, codes)

        name = f"{grid[0]}x{grid[1]} full attention, {MASKGIT_PASSES} passes"
        yield Row(name, run_full, make_full, batch)


def attention(batch: int, layers: int) -> Iterator[Row]:
    """Table 6: a training step, float32, without rematerialisation."""
    for grid in _grids():
        side = grid[0]
        for drawn in (None, 4, 2):
            prior = MultiGrainedPrior(
                NUM_CODES,
                grid,
                num_layers=layers,
                dropout=0.0,
                label_smoothing=0.0,
                query_blocks_per_image=drawn,
            )

            def loss(params: Any, codes: Any, prior: Any = prior) -> Any:
                tokens = Tokens.dense(codes)
                rngs = {"mask": jax.random.key(0), "dropout": jax.random.key(1)}
                condition = tokens.codes[:, :0]
                nats, _, _ = prior.apply(
                    params, tokens, condition, train=True, method="loss", rngs=rngs
                )
                return nats

            def make(prior: Any = prior, grid: Any = grid) -> tuple[Any, ...]:
                codes = jnp.zeros((batch, *grid), jnp.int32)
                return fresh(init_prior(prior, math.prod(grid), 0, jax.random.key(0))), codes

            blocks = prior.layout(grid).num_blocks
            if drawn == blocks:
                continue  # that is all of them, again
            name = f"{side}x{side} multi-grained, {prior.drawn_blocks(grid)} of {blocks} blocks"
            yield Row(name, training_step(loss), make, batch, trains=True)

        full = FullAttention(grid, layers)

        def full_loss(params: Any, codes: Any, full: Any = full) -> Any:
            codes = codes.reshape(codes.shape[0], -1)
            mask = jax.random.bernoulli(jax.random.key(0), 0.5, codes.shape)
            logits = full.apply(params, jnp.where(mask, NUM_CODES, codes))
            return jnp.mean(mask * cross_entropy(logits, codes))

        def make_full(full: Any = full, grid: Any = grid) -> tuple[Any, ...]:
            codes = jnp.zeros((batch, *grid), jnp.int32)
            flat = codes.reshape(batch, -1)
            return fresh(full.init(jax.random.key(0), flat)), codes

        yield Row(f"{side}x{side} full attention", training_step(full_loss), make_full, batch, True)


OPTIMIZER = optax.adamw(1e-4)


def fresh(params: Any) -> tuple[Any, Any]:
    """Parameters and the state of their optimizer."""
    return params, OPTIMIZER.init(params)


def training_step(loss: Callable[..., Any]) -> Callable[..., Any]:
    """One update of (parameters, optimizer state)."""

    def step(state: Any, codes: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, codes)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


TABLES: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "reconstruction": reconstruction,
    "sampling": sampling,
    "attention": attention,
}

WHAT = flags.DEFINE_list("what", list(TABLES), f"Which tables: {', '.join(TABLES)}")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images a call")
RESOLUTION = flags.DEFINE_integer("resolution", 256, "Side of the images that are reconstructed")
LATENTS = flags.DEFINE_list("latents", ["16", "32", "64"], "Sides of the latents of the prior")
LAYERS = flags.DEFINE_integer("layers", 24, "Layers of the prior")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each row; 0 only compiles")


def measure(row: Row) -> str:
    """Seconds and images/s of a row, and the memory of its program."""
    shapes = jax.eval_shape(row.make_arguments)
    donated = (0,) if row.trains else ()
    compiled = jax.jit(row.function, donate_argnums=donated).lower(*shapes).compile()
    memory = program_memory(compiled) / 1024
    if not REPEATS.value:
        return f"{row.name:<44}{'-':>10}{'-':>10}{memory:>10.2f}"
    arguments = jax.jit(row.make_arguments)()
    seconds = seconds_per_call(compiled, arguments, REPEATS.value, row.trains)
    return f"{row.name:<44}{seconds:>10.2f}{row.images / seconds:>10.2f}{memory:>10.2f}"


def main() -> None:
    """Prints the tables, line by line as they are measured."""
    # What is compiled is timed and looked at, not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    for what in WHAT.value:
        if what not in TABLES:
            raise InputError(f"--what has {what!r}: {did_you_mean(what, TABLES)}")
    for name, value, least in (
        ("batch_size", BATCH_SIZE.value, 1),
        ("layers", LAYERS.value, 1),
        ("repeats", REPEATS.value, 0),
    ):
        if value < least:
            raise InputError(f"--{name}={value}: at least {least} is needed")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {BATCH_SIZE.value}")
    for what in WHAT.value:
        print(f"\n{what:<44}{'seconds':>10}{'images/s':>10}{'GiB':>10}", flush=True)
        for row in TABLES[what](BATCH_SIZE.value, LAYERS.value):
            print(measure(row), flush=True)


if __name__ == "__main__":
    command_line.run(main)
