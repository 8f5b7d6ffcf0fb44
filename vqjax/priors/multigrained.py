"""Efficient-VQGAN's prior: each block of tokens from its neighbourhood and a token per block.

Source: paper 000, sections 3.2 (multi-grained attention) and 3.3 (masked training).
"""

import math
from typing import ClassVar, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.losses.cross_entropy import cross_entropy
from vqjax.nn.linear import Dense, DenseGeneral, Embed, add_parameter
from vqjax.nn.positions import GridEmbedding
from vqjax.nn.transformer import INITIALIZER
from vqjax.priors.base import Sums
from vqjax.priors.block_layout import BlockLayout, Grid, block_layout
from vqjax.priors.condition import ConditionEmbedding
from vqjax.priors.contexts import Context, Contexts, HaloMask, Masks, draw_queries
from vqjax.priors.masking import MASK_RATIOS, MaskSchedule
from vqjax.priors.transformer import TransformerPrior
from vqjax.settings import Range, setting
from vqjax.tokens import Tokens

# Positions of all sequences of an image, at most, where query_blocks_per_image="auto": as many as
# full attention has on a grid of 32 x 32.
_MOST_POSITIONS = 1_024


class MultiGrainedPrior(TransformerPrior):
    """p(block of tokens | tokens around it, one token per block of the image, condition), masked.

    The sequence of a query block is [condition, global tokens, local tokens]. A global token is a
    strided convolution (kernel = stride = W_s) over the codes of one block; the local tokens are
    the query block and its halo, the (W_s + 2 E_s)^2 window around it as far as that is in the map.

    No leak: the query block's own global token is computed here, from the masked codes of the local
    window, so nothing that a caller passes can show it what is to be predicted.

    The mask token is code K. Query blocks of a training step are drawn at random, which leaves the
    loss unbiased; the paper takes all of them. "auto" is all while their sequences have 1,024
    positions or fewer in an image, else as many as have. The condition is dropped once for all
    query blocks of an image.

    Positions are those of cells and blocks in the frame of a training image. On a larger grid that
    frame slides (`vqjax.priors.block_layout`), and halos show what is known beyond it. So that
    training knows such places, the frame of some query blocks is displaced there, by whole blocks
    and at random. Where W_s does not divide the training grid, a larger one has cells at places
    that training did not know: those that were missing of its last blocks.

    A query block is trained in one of two contexts. *prefix* is what sampling sees: the blocks
    before it in raster order are known and those after it are not. *random* is all others, as in
    the paper, which has no prefix: blocks of the global map are masked at a rate of their own, and
    the halo by `halo_mask`: "query" masks its tokens at the rate of the query block, as in the
    paper; "own" at a rate of their own; "block" too, but only those of masked blocks, so that what
    the halo and the global map show is of one image with some blocks unknown or known in part.
    """

    any_grid: ClassVar[bool] = True
    known_tokens: ClassVar[bool] = True
    rngs: ClassVar[tuple[str, ...]] = ("mask", "dropout")

    # Narrower than `dim`, since the strided convolution has W_s^2 * embed_dim * dim weights.
    embed_dim: int = setting(256, "width of a code's embedding", Range(1))
    block_size: int = setting(8, "W_s, side of a query block", Range(1))
    halo: int = setting(2, "E_s, how far the local window reaches beyond it", Range(0))
    query_blocks_per_image: int | Literal["auto"] | None = setting(
        "auto", "blocks of each image that a training step predicts; None for all", Range(1)
    )
    prefix_context: float = setting(
        0.5, "part of the query blocks that is trained in the context of sampling", Range(0, 1)
    )
    halo_mask: HaloMask = setting("block", "how the halo is masked in the other contexts")
    frame_shift: float = setting(
        0.1, "part of the query blocks whose frame is displaced in training", Range(0, 1)
    )
    mask_schedule: MaskSchedule = setting("cosine", "of the rates at which tokens are masked")

    def setup(self) -> None:
        """Declares the embeddings, the transformer and the head."""
        self.code_embedding = Embed(
            self.num_codes + 1, self.embed_dim, dtype=self.dtype, embedding_init=INITIALIZER
        )
        self.block_convolution = DenseGeneral(self.dim, num_axes=2, dtype=self.dtype)
        self.local_projection = Dense(self.dim, dtype=self.dtype)
        blocks = self.layout(self.grid).frame_grid
        # Of the cells of a frame, in whole blocks, and those that a halo reaches around it.
        height, width = (self.block_size * side + 2 * self.halo for side in blocks)
        self.local_position = GridEmbedding((height, width), self.dim)
        self.global_position = GridEmbedding(blocks, self.dim)
        if self.num_ids:
            self.condition_embedding = ConditionEmbedding(self.num_ids, self.dim, self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.transformer = self.make_transformer("pre")
        self.head = Dense(self.num_codes, kernel_init=INITIALIZER)

    @property
    def mask_id(self) -> int:
        """The code that stands for an unknown token."""
        return self.num_codes

    def layout(self, grid: Grid, corner: Grid = (0, 0)) -> BlockLayout:
        """Blocks and windows of a latent grid.

        Args:
            grid: (h, w).
            corner: its cell at which the frame of a training image begins.
        """
        return block_layout(grid, self.block_size, self.halo, self.grid, corner)

    def drawn_blocks(self, grid: Grid, train: bool = True) -> int:
        """The number of query blocks of an image that are predicted.

        Args:
            grid: latent grid.
            train: in a training step; otherwise all where "auto" would take them, or as many as it
                would.
        """
        layout, drawn = self.layout(grid), self.query_blocks_per_image
        if train and drawn != "auto":
            return min(drawn or layout.num_blocks, layout.num_blocks)
        positions = math.prod(layout.frame_grid) + layout.window_cells.shape[1]
        return min(max(_MOST_POSITIONS // positions, 1), layout.num_blocks)

    def block_tokens(self, block_codes: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The global tokens of blocks, without their positions.

        Args:
            block_codes: codes of the W_s^2 cells of each block in raster order; unknown ones and
                cells outside the grid are `mask_id`.
        """
        return self.block_convolution(self.code_embedding(block_codes))

    def known_block_tokens(
        self, block_codes: Int[Array, "*b q"], inside: Bool[Array, "*#b q"]
    ) -> Float[Array, "*b d"]:
        """The global tokens of blocks as sampling sees them, without their positions.

        Args:
            block_codes: as in `block_tokens`, whatever outside the grid.
            inside: which of the cells are in the grid. A block is of its codes where all of these
                are known, else a masked one.
        """
        codes = jnp.where(inside, block_codes, self.mask_id)
        complete = jnp.all((codes != self.mask_id) | ~inside, axis=-1, keepdims=True)
        return self.block_tokens(jnp.where(complete, codes, self.mask_id))

    def __call__(
        self,
        window_codes: Int[Array, "b n"],
        query: Int[Array, "b"],
        block_tokens: Float[Array, "b g d"],
        condition: Int[Array, "b c"],
        grid: Grid,
        train: bool = False,
        corner: Grid = (0, 0),
        frames: Int[Array, "b 2"] | None = None,
    ) -> Float[Array, "b q k"]:
        """Logits of the codes of one query block a row.

        Args:
            window_codes: codes in the window around the query block, as `BlockLayout` lists them;
                unknown ones are `mask_id`.
            query: index of the query block, [0, g).
            block_tokens: `block_tokens` of every block as the query block may see it; its own entry
                is ignored.
            condition: see `vqjax.priors.condition`.
            grid: (h, w) of the latent map.
            train: dropout on (rng stream "dropout").
            corner: see `layout`.
            frames: block (row, column) with which the frame of each row begins, which may lie
                outside of the grid; None for `BlockLayout.frame_place`.

        Returns:
            Logits in float32 for the W_s^2 cells of the query block in raster order.
        """
        layout = self.layout(grid, corner)
        queried = self.block_size**2
        inside = jnp.asarray(layout.window_inside)[query]
        window_codes = jnp.where(inside, window_codes, self.mask_id)
        if frames is None:
            frames = jnp.asarray(layout.frame_place)[query]

        block = frames[:, None] + np.argwhere(np.ones(layout.frame_grid, bool))
        there = jnp.all((block >= 0) & (block < jnp.array(layout.block_grid)), axis=-1)
        seen = block[..., 0] * layout.block_grid[1] + block[..., 1]
        own = self.block_tokens(window_codes[:, :queried])
        # In float32, as what is spread over many tokens has its gradient summed over them.
        own, block_tokens = own[:, None].astype(jnp.float32), block_tokens.astype(jnp.float32)
        index = jnp.where(there, seen, 0)[..., None]
        global_tokens = jnp.take_along_axis(block_tokens, index, axis=1)
        is_own = there & (seen == query[:, None])
        global_tokens = jnp.where(is_own[..., None], own, global_tokens)
        global_tokens = global_tokens + self.global_position().reshape(-1, self.dim)
        global_tokens = global_tokens.astype(self.dtype)

        cell = jnp.stack(jnp.divmod(jnp.asarray(layout.window_cells)[query], grid[1]), axis=-1)
        frame_cell = layout.first_cell + self.block_size * frames
        table = self.local_position()
        cell = cell - frame_cell[:, None]
        frame = self.block_size * np.array(layout.frame_grid)
        in_frame = jnp.all((cell >= 0) & (cell < frame), axis=-1)
        # Beyond the frame, what is unknown is not seen, as in training.
        local_visible = inside & (in_frame | (window_codes != self.mask_id))
        # What lies further outside has no position of its own.
        cell = jnp.clip(cell + self.halo, 0, jnp.array(table.shape[:2]) - 1)
        local_tokens = add_parameter(
            self.local_projection(self.code_embedding(window_codes)),
            table.reshape(-1, self.dim)[cell[..., 0] * table.shape[1] + cell[..., 1]],
        )

        sequence = [global_tokens, local_tokens]
        visible = [there, local_visible]
        if self.num_ids and condition.shape[1]:
            embedded, there = self.condition_embedding(condition)
            sequence.insert(0, embedded)
            visible.insert(0, there)
        x = self.embedding_dropout(jnp.concatenate(sequence, axis=1), deterministic=not train)
        mask = jnp.concatenate(visible, axis=1)[:, None, None, :]
        x = self.transformer(x, mask, train)
        first = x.shape[1] - window_codes.shape[1]
        # Cast first: the gradient of what is picked out is a sum, in form.
        return self.head(x.astype(jnp.float32)[:, first : first + queried])

    def loss(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        train: bool,
        *,
        mask_ratio: float | Float[Array, ""] | None = None,
        context: Context = "mixed",
        valid: Bool[Array, "b"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of the masked tokens of query blocks.

        Args:
            tokens: dense tokens.
            condition: see `__call__`.
            train: label smoothing, dropout, of the condition too (rng stream "dropout"), and a draw
                of query blocks, see `drawn_blocks`.
            mask_ratio: fraction of the query block that is masked, and all rates of a random
                context, (0, 1]; None draws each by `mask_schedule`.
            context: "mixed" draws one of "random" and "prefix" for each query block; "around" has
                everything known but the query block.
            valid: images that count; None for all.

        Returns:
            The mean over the masked query tokens of the batch in nats (0 where there are none),
            their number, and a dict with "accuracy". Masks are drawn from the rng stream "mask".

        Source: paper 000, Eq. 2.
        """
        if train:
            condition = self.drop_condition(condition)
        masks = self._draw_masks(tokens, train, mask_ratio, context)
        return self._loss_of(masks, tokens, condition, train, valid)

    def _loss_of(
        self,
        masks: Masks,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        train: bool,
        valid: Bool[Array, "b"] | None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`loss` of given query blocks and masks."""
        layout = self.layout(tokens.grid)
        codes = tokens.code_map.reshape(tokens.codes.shape)
        queries, queried = masks.queries, self.block_size**2
        rows = jnp.arange(codes.shape[0])[:, None, None]
        window = codes[rows, jnp.asarray(layout.window_cells)[queries]]
        window_codes = jnp.where(masks.window, self.mask_id, window)

        block_codes = codes[:, layout.block_cells]
        clean = self.block_tokens(jnp.where(layout.block_inside, block_codes, self.mask_id))
        masked = self.block_tokens(jnp.full((codes.shape[0], queried), self.mask_id))
        # In float32, as in `__call__`.
        clean, masked = clean[:, None].astype(jnp.float32), masked.astype(jnp.float32)
        block_tokens = jnp.where(masks.blocks[..., None], masked[:, None, None], clean)

        logits = self(
            einops.rearrange(window_codes, "b s n -> (b s) n"),
            queries.reshape(-1),
            einops.rearrange(block_tokens, "b s g d -> (b s) g d"),
            jnp.repeat(condition, queries.shape[1], axis=0),
            tokens.grid,
            train,
            frames=einops.rearrange(masks.frames, "b s two -> (b s) two"),
        )
        target = einops.rearrange(window[..., :queried], "b s q -> (b s) q")
        predicted = einops.rearrange(masks.window[..., :queried], "b s q -> (b s) q")
        if valid is not None:
            predicted = predicted & jnp.repeat(valid, queries.shape[1])[:, None]
        nats = cross_entropy(logits, target, self.label_smoothing if train else 0.0)
        number = jnp.sum(predicted)
        hits = jnp.sum((jnp.argmax(logits, axis=-1) == target) & predicted)
        loss = jnp.sum(nats * predicted) / jnp.maximum(number, 1)
        metrics = {"accuracy": hits / jnp.maximum(number, 1)}
        return loss, number.astype(jnp.float32), metrics

    def held_out(
        self,
        tokens: Tokens,
        condition: Int[Array, "b c"],
        valid: Bool[Array, "b"],
        key: Key[Array, ""],
    ) -> Sums:
        """Nats of masked tokens, each as their sum and the number of masked tokens.

        "loss_at_<ratio>" is of query blocks that are masked in that part, in the context that
        sampling sees ("prefix"); "loss_inpaint" of wholly masked ones with everything around known.
        """
        unbound, variables = self.unbind()

        def draw(ratio: float, context: Context) -> Masks:
            call = {"method": "_draw_masks", "rngs": {"mask": key}}
            return unbound.apply(variables, tokens, False, ratio, context, **call)

        def loss_of(masks: Masks) -> tuple[Float[Array, ""], Float[Array, ""]]:
            loss, number, _ = unbound.apply(
                variables, masks, tokens, condition, False, valid, method="_loss_of"
            )
            return loss * number, number

        drawn = {f"loss_at_{ratio}": draw(ratio, "prefix") for ratio in MASK_RATIOS}
        drawn["loss_inpaint"] = draw(1.0, "around")
        # One after the other in a loop, which is compiled once.
        stacked = jax.tree.map(lambda *masks: jnp.stack(masks), *drawn.values())
        nats, numbers = jax.lax.map(loss_of, stacked)
        return {name: (nats[i], numbers[i]) for i, name in enumerate(drawn)}

    def _draw_masks(
        self,
        tokens: Tokens,
        train: bool,
        mask_ratio: float | Float[Array, ""] | None,
        context: Context,
    ) -> Masks:
        """Query blocks, and what is hidden from them, as `loss` describes it."""
        layout = self.layout(tokens.grid)

        def new_key() -> Key[Array, ""]:
            return self.make_rng("mask")

        drawn = self.drawn_blocks(tokens.grid, train)
        queries = draw_queries(new_key, len(tokens.codes), layout.num_blocks, drawn)
        contexts = Contexts(
            self.prefix_context, self.halo_mask, self.mask_schedule, self.frame_shift
        )
        return contexts.draw(new_key, layout, queries, context, mask_ratio, train)
