"""The contexts that query blocks of the multi-grained prior are trained in: what is hidden of each.

Source: paper 000, section 3.3; the prefix contexts are ours.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.priors.block_layout import BlockLayout
from vqjax.priors.masking import MaskSchedule, mask_count, masked_fraction, random_mask

Context = Literal["mixed", "random", "prefix", "around"]
HaloMask = Literal["block", "own", "query"]
# A new random key at each call.
NewKey = Callable[[], Key[Array, ""]]


def draw_queries(new_key: NewKey, batch: int, blocks: int, drawn: int) -> Int[Array, "b s"]:
    """Query blocks of each image: all of them, or some at random.

    Args:
        new_key: of the draw.
        batch: images.
        blocks: of the grid.
        drawn: how many of these.
    """
    if drawn == blocks:
        return jnp.broadcast_to(jnp.arange(blocks), (batch, blocks))
    score = jax.random.uniform(new_key(), (batch, blocks))
    return jnp.argsort(score, axis=1)[:, :drawn]


class Masks(NamedTuple):
    """Query blocks of a batch, and what each of them is not shown.

    Attributes:
        queries: index of each query block.
        window: masked cells of its window, at least one of the block itself.
        blocks: masked blocks of the global map.
        frames: block (row, column) with which the frame of each query block begins.
    """

    queries: Int[Array, "b s"]
    window: Bool[Array, "b s n"]
    blocks: Bool[Array, "b s g"]
    frames: Int[Array, "b s 2"]


class Contexts(NamedTuple):
    """How contexts are drawn; for the two of training see `MultiGrainedPrior`.

    Attributes:
        prefix_context: part of the query blocks of "mixed" contexts that has a prefix.
        halo_mask: how the halo is masked in the others.
        mask_schedule: of the rates at which tokens are masked.
        frame_shift: part of the query blocks whose frame is displaced in training.
    """

    prefix_context: float
    halo_mask: HaloMask
    mask_schedule: MaskSchedule
    frame_shift: float

    def draw(
        self,
        new_key: NewKey,
        layout: BlockLayout,
        queries: Int[Array, "b s"],
        context: Context,
        mask_ratio: float | Float[Array, ""] | None,
        train: bool,
    ) -> Masks:
        """What is hidden from query blocks.

        Args:
            new_key: of each draw.
            layout: of the grid.
            queries: index of each query block.
            context: "mixed" draws one of "random" and "prefix" for each query block; "around" has
                everything known but the query block.
            mask_ratio: fraction of the query block that is masked, and all rates of a random
                context, (0, 1]; None draws each by `mask_schedule`.
            train: displace some of the frames.
        """

        def fraction() -> Float[Array, "b s"]:
            if mask_ratio is not None:
                return jnp.full(queries.shape, mask_ratio)
            return masked_fraction(jax.random.uniform(new_key(), queries.shape), self.mask_schedule)

        def bernoulli(rate: Float[Array, "b s"], size: int) -> Bool[Array, "b s size"]:
            return jax.random.uniform(new_key(), (*rate.shape, size)) < rate[..., None]

        query_fraction = fraction()
        inside = jnp.asarray(layout.block_inside)[queries]
        count = mask_count(query_fraction, jnp.sum(inside, axis=-1))
        query_mask = random_mask(new_key(), inside, count)
        halo_block = jnp.asarray(layout.window_block)[queries][..., inside.shape[-1] :]

        def random() -> tuple[Bool[Array, "b s h"], Bool[Array, "b s g"]]:
            blocks = bernoulli(fraction(), layout.num_blocks)
            rate = query_fraction if self.halo_mask == "query" else fraction()
            halo = bernoulli(rate, halo_block.shape[-1])
            if self.halo_mask == "block":
                halo &= jnp.take_along_axis(blocks, halo_block, axis=-1)
            return halo, blocks

        def prefix() -> tuple[Bool[Array, "b s h"], Bool[Array, "b s g"]]:
            blocks = jnp.arange(layout.num_blocks) > queries[..., None]
            return halo_block > queries[..., None], blocks

        if context == "around":
            halo_mask = jnp.zeros(halo_block.shape, bool)
            block_mask = jnp.zeros((*queries.shape, layout.num_blocks), bool)
        elif context == "prefix":
            halo_mask, block_mask = prefix()
        elif context == "random":
            halo_mask, block_mask = random()
        else:
            chosen = bernoulli(jnp.full(queries.shape, self.prefix_context), 1)
            halo_mask, block_mask = (
                jnp.where(chosen, a, b) for a, b in zip(prefix(), random(), strict=True)
            )
        window_mask = jnp.concatenate([query_mask, halo_mask], axis=-1)
        frames = self._draw_frames(new_key, layout, queries, train)
        return Masks(queries, window_mask, block_mask, frames)

    def _draw_frames(
        self, new_key: NewKey, layout: BlockLayout, queries: Int[Array, "b s"], train: bool
    ) -> Int[Array, "b s 2"]:
        """The frame of each query block: that of the image, but for some of a training step."""
        frames = jnp.asarray(layout.frame_place)[queries]
        if not train or not self.frame_shift:
            return frames
        shifted = jax.random.bernoulli(new_key(), self.frame_shift, queries.shape)
        place = jax.random.uniform(new_key(), frames.shape)
        place = jnp.floor(place * jnp.array(layout.frame_grid)).astype(jnp.int32)
        others = jnp.asarray(layout.block_place)[queries] - place
        return jnp.where(shifted[..., None], others, frames)
