"""Sampling of the multi-grained prior: block by block in raster order, T parallel steps in each.

Source: paper 000, section 3.3 (autoregressive inference); inside a block MaskGIT (Chang et al.
2022), section 3.2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import InputError
from vqjax.priors.block_layout import block_layout
from vqjax.priors.masking import cosine_schedule
from vqjax.samplers.filtering import filter_logits
from vqjax.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class BlockwiseSampling:
    """What is sampled and how.

    Attributes:
        grid: (h, w) of the latent map.
        block_size: W_s of the prior.
        halo: E_s of the prior.
        mask_id: the prior's code for an unknown token.
        steps: T, parallel steps in each block, from 1.
        temperature: of the softmax that codes are drawn from, above 0.
        top_k: draw among the k most likely codes; 0 for all.
        top_p: draw among the most likely codes of this total probability, (0, 1]; 1 for all.
        choice_temperature: scale of the Gumbel noise on the confidence by which tokens are kept; it
            falls to 0 over the steps.
        guidance: weight of classifier-free guidance, 0 or more: the logits are those under the null
            condition, and this times what the condition adds to them. 1 is none, and costs nothing;
            any other doubles the batch of each step.
        guidance_schedule: "constant", or "linear": the weight grows from 1 to `guidance` while the
            image is sampled (Muse, Chang et al. 2023, section 2.7).

    Raises:
        InputError: a value out of its range.
    """

    grid: tuple[int, int]
    block_size: int
    halo: int
    mask_id: int
    steps: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    choice_temperature: float = 4.5
    guidance: float = 1.0
    guidance_schedule: str = "constant"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, good, expected in (
            ("steps", self.steps >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "above 0"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("choice_temperature", 0 <= self.choice_temperature < math.inf, "0 or more"),
            ("guidance", 0 <= self.guidance < math.inf, "0 or more"),
            (
                "guidance_schedule",
                self.guidance_schedule in ("constant", "linear"),
                "constant or linear",
            ),
        ):
            if not good:
                raise InputError(f"sampling {name}={getattr(self, name)}: {expected} is needed")


def still_masked(
    step: Int[Array, ""], steps: int, at_start: Int[Array, "b"], now: Int[Array, "b"]
) -> Int[Array, "b"]:
    """How many tokens stay masked: floor(start * cos(pi/2 ratio)), at least one fewer than now.

    Args:
        step: 0 for the first.
        steps: T.
        at_start: unknown tokens before the first step.
        now: unknown tokens before this step.

    Source: MaskGIT, section 3.2, per image and block.
    """
    ratio = (step + 1) / steps
    # The last step leaves none, whatever cos(pi/2) is rounded to.
    planned = jnp.where(step + 1 >= steps, 0, jnp.floor(at_start * cosine_schedule(ratio) + 1e-4))
    return jnp.clip(planned, 0, jnp.maximum(now - 1, 0)).astype(jnp.int32)


def choose(
    key: Key[Array, ""],
    logits: Float[Array, "b n k"],
    unknown: Bool[Array, "b n"],
    keep_masked: Int[Array, "b"],
    noise: Float[Array, ""],
    spec: BlockwiseSampling,
) -> tuple[Int[Array, "b n"], Bool[Array, "b n"]]:
    """Draws a code for every cell and chooses the unknown cells that are fixed by it.

    The confidence of a drawn code is its log-probability by these logits (guided, where there is
    guidance) before temperature and filters, plus `noise` times a Gumbel variable.

    Args:
        key: a random key.
        logits: of each cell.
        unknown: cells that are to be sampled.
        keep_masked: how many of them stay masked: those of least confidence.
        noise: scale of the Gumbel noise, 0 or more.
        spec: temperature and filters.

    Returns:
        The drawn codes, and the unknown cells that are fixed now, exactly (unknown - keep_masked)
        of them an image.
    """
    key_code, key_noise = jax.random.split(key)
    filtered = filter_logits(logits, spec.temperature, spec.top_k, spec.top_p)
    drawn = jax.random.categorical(key_code, filtered)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
    confidence = log_p + noise * jax.random.gumbel(key_noise, log_p.shape)
    # Known cells rank last, above every finite confidence.
    rank = jnp.argsort(jnp.argsort(jnp.where(unknown, confidence, jnp.inf), axis=-1), axis=-1)
    return drawn.astype(jnp.int32), unknown & (rank >= keep_masked[:, None])


def guidance_weight(
    block: Int[Array, ""], step: Int[Array, ""], num_blocks: int, spec: BlockwiseSampling
) -> Float[Array, ""]:
    """The weight of guidance at a step of a block, by the part of all steps that lies before it."""
    if spec.guidance_schedule == "constant":
        return jnp.float32(spec.guidance)
    last = max(num_blocks * spec.steps - 1, 1)
    progress = (block * spec.steps + step) / last
    return 1.0 + (spec.guidance - 1.0) * progress


def guided_logits(
    apply: Callable[..., Any],
    variables: Mapping[str, Any],
    window_codes: Int[Array, "b n"],
    query: Int[Array, "b"],
    block_tokens: Float[Array, "b g d"],
    condition: Int[Array, "b c"],
    grid: tuple[int, int],
    weight: Float[Array, ""],
) -> Float[Array, "b q k"]:
    """Logits under no condition, and `weight` times what the condition adds to them.

    Both come from one call on twice the rows. See `MultiGrainedPrior.__call__` for what is not said
    here.

    Args:
        apply: `MultiGrainedPrior.apply`.
        variables: its variables.
        window_codes: of the query blocks.
        query: their indices.
        block_tokens: of all blocks.
        condition: what the logits are to be guided to.
        grid: of the latent map.
        weight: 1 for the logits under the condition, 0 for those without.

    Source: classifier-free guidance (Ho and Salimans 2022), Eq. 6, on logits as in Muse.
    """
    null = apply(variables, condition, method="null_condition")
    # The two rows of an image side by side: a batch that is split over devices stays where it is.
    both = einops.rearrange(jnp.stack([null, condition]), "two b c -> (b two) c")
    twice = (jnp.repeat(x, 2, axis=0) for x in (window_codes, query, block_tokens))
    logits = apply(variables, *twice, both, grid)
    without, given = einops.rearrange(logits, "(b two) q k -> two b q k", two=2)
    return without + weight * (given - without)


@functools.partial(jax.jit, static_argnames=("apply", "spec"))
def sample(
    apply: Callable[..., Any],
    variables: Mapping[str, Any],
    rng: Key[Array, ""],
    condition: Int[Array, "b c"],
    known: Int[Array, "b n"],
    known_mask: Bool[Array, "b n"],
    spec: BlockwiseSampling,
) -> Tokens:
    """Samples the unknown tokens of a batch; a step costs one query block's sequence an image.

    A block whose tokens are known in all images is not visited; more steps than unknown tokens end
    early. A block that is not yet complete is a masked one in the global map; its known tokens are
    seen where they lie in a halo.

    Args:
        apply: `MultiGrainedPrior.apply`.
        variables: its variables.
        rng: a random key.
        condition: see `MultiGrainedPrior.__call__`.
        known: codes in raster order, read where `known_mask` is True.
        known_mask: tokens that are given; they come back unchanged.
        spec: the grid and the settings.

    Returns:
        Dense tokens.
    """
    layout = block_layout(spec.grid, spec.block_size, spec.halo)
    batch = known.shape[0]
    block_tokens = functools.partial(apply, variables, method="block_tokens")

    def seen(block_codes: Int[Array, "*b q"], inside: Bool[Array, "*#b q"]) -> Float[Array, "*b d"]:
        """A block's global token: of its codes where they are all known, else of a masked block."""
        codes = jnp.where(inside, block_codes, spec.mask_id)
        complete = jnp.all((codes != spec.mask_id) | ~inside, axis=-1, keepdims=True)
        return block_tokens(jnp.where(complete, codes, spec.mask_id))

    def visit(block: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, global_tokens = carry
        cells = jnp.asarray(layout.block_cells)[block]
        inside = jnp.asarray(layout.block_inside)[block]
        window_cells = jnp.asarray(layout.window_cells)[block]
        query = jnp.full((batch,), block, jnp.int32)
        block_key = jax.random.fold_in(rng, block)

        def unknown_of(codes: Array) -> Bool[Array, "b q"]:
            return (codes[:, cells] == spec.mask_id) & inside

        at_start = jnp.sum(unknown_of(codes), axis=-1)

        def more(state: tuple[Array, Array]) -> Bool[Array, ""]:
            step, codes = state
            return (step < spec.steps) & jnp.any(unknown_of(codes))

        def advance(state: tuple[Array, Array]) -> tuple[Array, Array]:
            step, codes = state
            unknown = unknown_of(codes)
            inputs = codes[:, window_cells], query, global_tokens, condition, spec.grid
            if spec.guidance == 1.0:
                logits = apply(variables, *inputs)
            else:
                weight = guidance_weight(block, step, layout.num_blocks, spec)
                logits = guided_logits(apply, variables, *inputs, weight)
            keep = still_masked(step, spec.steps, at_start, jnp.sum(unknown, axis=-1))
            noise = spec.choice_temperature * (1.0 - (step + 1) / spec.steps)
            key = jax.random.fold_in(block_key, step)
            drawn, fixed = choose(key, logits, unknown, keep, noise, spec)
            # Cells outside the grid share an index with one inside: they must not write.
            target = jnp.where(inside, cells, codes.shape[1])
            value = jnp.where(fixed, drawn, codes[:, cells])
            return step + 1, codes.at[:, target].set(value, mode="drop")

        _, codes = jax.lax.while_loop(more, advance, (jnp.int32(0), codes))
        done = seen(codes[:, cells], inside)
        return codes, global_tokens.at[:, block].set(done)

    codes = jnp.where(known_mask, known, spec.mask_id).astype(jnp.int32)
    global_tokens = seen(codes[:, layout.block_cells], jnp.asarray(layout.block_inside))
    codes, _ = jax.lax.fori_loop(0, layout.num_blocks, visit, (codes, global_tokens))
    return Tokens.dense(codes.reshape(batch, *spec.grid))
