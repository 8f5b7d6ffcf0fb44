"""Sampling of the multi-grained prior: block by block in a fixed order, T parallel steps in each.

Source: paper 000, section 3.3 (autoregressive inference); inside a block MaskGIT (Chang et al.
2022), section 3.2.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.priors.masking import MaskSchedule
from vqjax.priors.multigrained import MultiGrainedPrior
from vqjax.samplers.confidence import ParallelSampling, parallel_step
from vqjax.samplers.guidance import step_logits
from vqjax.settings import Range, setting
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class MultiGrainedSampling(ParallelSampling):
    """The settings of the sampler: those of parallel decoding, of a block at a time.

    Raises:
        FieldError: a value out of its range.
    """

    steps: int = setting(8, "parallel steps in each block", Range(1))
    mask_schedule: MaskSchedule = setting(
        "cosine", "how the part of a block that is still masked falls over the steps"
    )


def sample(
    prior: MultiGrainedPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens | None,
    settings: MultiGrainedSampling,
    grid: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
) -> Tokens:
    """Samples the unknown tokens of a batch; a step costs one query block's sequence an image.

    A block whose tokens are known in all images is not visited; more steps than unknown tokens end
    early. Blocks are visited in raster order; on a canvas larger than a training image those of the
    image first, then outwards, so that each finds something to go on from. A block that is not yet
    complete is a masked one in the global map; its known tokens are seen where they lie in a halo.
    One compiled program, whatever is known.

    Args:
        prior: the model.
        variables: its variables.
        rng: a random key.
        condition: see `vqjax.priors.condition`.
        known: tokens that are given; they come back unchanged. None for none.
        settings: of the sampling.
        grid: (h, w) of the latent map.
        corner: its cell at which the frame of a training image begins.

    Returns:
        Dense tokens.
    """
    given = Tokens.none(len(condition), grid) if known is None else known
    return _sample(prior, variables, rng, condition, given, settings, corner)


@functools.partial(jax.jit, static_argnames=("prior", "settings", "corner"))
def _sample(
    prior: MultiGrainedPrior,
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Tokens,
    settings: MultiGrainedSampling,
    corner: tuple[int, int],
) -> Tokens:
    """`sample` with known tokens in the shape of dense ones."""
    grid, mask_id = known.grid, prior.mask_id
    layout = prior.layout(grid, corner)
    prior, variables = prior.unrolled(variables)
    batch = len(condition)
    last_step = layout.num_blocks * settings.steps - 1

    def logits_of(
        window: Int[Array, "b n"],
        query: Int[Array, "b"],
        global_tokens: Float[Array, "b g d"],
        condition: Int[Array, "b c"],
    ) -> Float[Array, "b q k"]:
        rows = window, query, global_tokens, condition
        return prior.apply(variables, *rows, grid, corner=corner)

    def seen(block_codes: Int[Array, "*b q"], inside: Bool[Array, "*#b q"]) -> Float[Array, "*b d"]:
        return prior.apply(variables, block_codes, inside, method="known_block_tokens")

    def visit(turn: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, global_tokens = carry
        block = jnp.asarray(layout.visits)[turn]
        cells = jnp.asarray(layout.block_cells)[block]
        inside = jnp.asarray(layout.block_inside)[block]
        window_cells = jnp.asarray(layout.window_cells)[block]
        query = jnp.full((batch,), block, jnp.int32)
        block_key = jax.random.fold_in(rng, block)

        def unknown_of(codes: Array) -> Bool[Array, "b q"]:
            return (codes[:, cells] == mask_id) & inside

        at_start = jnp.sum(unknown_of(codes), axis=-1)

        def more(state: tuple[Array, Array]) -> Bool[Array, ""]:
            step, codes = state
            return (step < settings.steps) & jnp.any(unknown_of(codes))

        def advance(state: tuple[Array, Array]) -> tuple[Array, Array]:
            step, codes = state
            unknown = unknown_of(codes)
            rows = codes[:, window_cells], query, global_tokens
            done = turn * settings.steps + step
            logits = step_logits(logits_of, rows, prior, condition, settings, done, last_step)
            key = jax.random.fold_in(block_key, step)
            drawn, fixed = parallel_step(key, logits, unknown, at_start, step, settings)
            # Cells outside the grid share an index with one inside: they must not write.
            target = jnp.where(inside, cells, codes.shape[1])
            value = jnp.where(fixed, drawn, codes[:, cells])
            return step + 1, codes.at[:, target].set(value, mode="drop")

        _, codes = jax.lax.while_loop(more, advance, (jnp.int32(0), codes))
        done = seen(codes[:, cells], inside)
        return codes, global_tokens.at[:, block].set(done)

    codes = known.scattered(mask_id)
    global_tokens = seen(codes[:, layout.block_cells], jnp.asarray(layout.block_inside))
    codes, _ = jax.lax.fori_loop(0, layout.num_blocks, visit, (codes, global_tokens))
    return Tokens.dense(codes.reshape(batch, *grid))
