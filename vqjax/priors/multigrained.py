"""Efficient-VQGAN's prior: each block of tokens from its neighbourhood and a token per block.

Source: paper 000, sections 3.2 (multi-grained attention) and 3.3 (masked training).
"""

import math
from typing import Any, ClassVar, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vqjax.errors import check_fields
from vqjax.losses.cross_entropy import cross_entropy
from vqjax.nn.attention import Implementation
from vqjax.nn.positions import GridEmbedding
from vqjax.nn.transformer import INITIALIZER, Transformer
from vqjax.priors.base import Prior, Sums
from vqjax.priors.block_layout import BlockLayout, block_layout
from vqjax.priors.condition import ConditionEmbedding
from vqjax.priors.masking import cosine_schedule, mask_count, random_mask
from vqjax.settings import Range, setting
from vqjax.tokens import Tokens

Context = Literal["mixed", "random", "prefix"]
# Fractions of a query block that are masked for the held-out losses.
MASK_RATIOS = (0.25, 0.5, 0.75, 1.0)
# Where query_blocks_per_image="auto" takes all blocks, and how many it takes elsewhere.
_SMALL_GRID, _FEW_BLOCKS = 32 * 32, 4


class MultiGrainedPrior(Prior):
    """p(block of tokens | tokens around it, one token per block of the image, condition), masked.

    The sequence of a query block is [condition, global tokens, local tokens]. A global token is a
    strided convolution (kernel = stride = W_s) over the codes of one block; the local tokens are
    the (W_s + 2 E_s)^2 window around the query block. Cells outside the map are masked as keys.

    No leak: the query block's own global token is computed here, from the masked codes of the local
    window, so nothing that a caller passes can show it what is to be predicted.

    The mask token is code K. Query blocks of a training step are drawn at random, which leaves the
    loss unbiased; the paper takes all of them. "auto" is all on grids of up to 32 x 32 cells and 4
    on larger ones, where the windows of all blocks cost more than full attention. The condition is
    dropped once for all query blocks of an image. On other grids than that of the training images
    positions interpolate.
    """

    any_grid: ClassVar[bool] = True
    known_tokens: ClassVar[bool] = True
    rngs: ClassVar[tuple[str, ...]] = ("mask", "dropout")

    dim: int = setting(768, "width of the transformer", Range(1))
    num_layers: int = setting(24, "its depth", Range(1))
    num_heads: int = setting(16, "its attention heads; a divisor of the width", Range(1))
    # Narrower than `dim`, since the strided convolution has W_s^2 * embed_dim * dim weights.
    embed_dim: int = setting(256, "width of a code's embedding", Range(1))
    block_size: int = setting(8, "W_s, side of a query block", Range(1))
    halo: int = setting(2, "E_s, how far the local window reaches beyond it", Range(0))
    dropout: float = setting(
        0.1, "rate on the embeddings and in the transformer", Range(0, 1, below=True)
    )
    label_smoothing: float = setting(
        0.1, "of the training loss; a held-out loss is never smoothed", Range(0, 1, below=True)
    )
    query_blocks_per_image: int | Literal["auto"] | None = setting(
        "auto", "blocks of each image that a training step predicts; None for all", Range(1)
    )
    scan: bool = setting(True, "one scanned layer, compiled once, see `Transformer`")
    remat: bool = setting(False, "recompute each layer in the backward pass")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters are float32"
    )
    implementation: Implementation = setting("xla", "of the attention, see `vqjax.nn.attention`")

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or heads that do not divide the width.
        """
        super().__post_init__()
        divides = self.dim % self.num_heads == 0
        check_fields(self, [("num_heads", divides, f"a divisor of dim={self.dim}")])

    def setup(self) -> None:
        """Declares the embeddings, the transformer and the head."""
        layout = self.layout(self.grid)
        embed: dict[str, Any] = {"embedding_init": INITIALIZER, "dtype": self.dtype}
        self.code_embedding = nn.Embed(self.num_codes + 1, self.embed_dim, **embed)
        self.block_convolution = nn.DenseGeneral(self.dim, axis=(-2, -1), dtype=self.dtype)
        self.local_projection = nn.Dense(self.dim, dtype=self.dtype)
        self.local_position = GridEmbedding(self.grid, self.dim)
        self.global_position = GridEmbedding(layout.block_grid, self.dim)
        if self.num_ids:
            self.condition_embedding = ConditionEmbedding(self.num_ids, self.dim, self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.transformer = Transformer(
            self.num_layers,
            self.num_heads,
            dropout=self.dropout,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            implementation=self.implementation,
        )
        self.head = nn.Dense(self.num_codes, dtype=self.dtype, kernel_init=INITIALIZER)

    @property
    def mask_id(self) -> int:
        """The code that stands for an unknown token."""
        return self.num_codes

    def layout(self, grid: tuple[int, int]) -> BlockLayout:
        """Blocks and windows of a latent grid."""
        return block_layout(grid, self.block_size, self.halo)

    def drawn_blocks(self, grid: tuple[int, int]) -> int:
        """The number of query blocks of an image that a training step on a grid predicts."""
        drawn, blocks = self.query_blocks_per_image, self.layout(grid).num_blocks
        if isinstance(drawn, int):
            return min(drawn, blocks)
        few = drawn == "auto" and math.prod(grid) > _SMALL_GRID
        return min(_FEW_BLOCKS, blocks) if few else blocks

    def block_tokens(self, block_codes: Int[Array, "*b q"]) -> Float[Array, "*b d"]:
        """The global tokens of blocks, without their positions.

        Args:
            block_codes: codes of the W_s^2 cells of each block in raster order; unknown ones and
                cells outside the grid are `mask_id`.
        """
        return self.block_convolution(self.code_embedding(block_codes))

    def __call__(
        self,
        window_codes: Int[Array, "b n"],
        query: Int[Array, "b"],
        block_tokens: Float[Array, "b g d"],
        condition: Int[Array, "b c"],
        grid: tuple[int, int],
        train: bool = False,
    ) -> Float[Array, "b q k"]:
        """Logits of the codes of one query block a row.

        Args:
            window_codes: codes in the window around the query block; unknown ones are `mask_id`.
            query: index of the query block, [0, g).
            block_tokens: `block_tokens` of every block as the query block may see it; its own entry
                is ignored.
            condition: see `vqjax.priors.condition`.
            grid: (h, w) of the latent map.
            train: dropout on (rng stream "dropout").

        Returns:
            Logits in float32 for the W_s^2 cells of the query block in raster order.
        """
        layout = self.layout(grid)
        slots = layout.query_slots
        inside = jnp.asarray(layout.window_inside)[query]
        window_codes = jnp.where(inside, window_codes, self.mask_id)

        own = self.block_tokens(window_codes[:, slots])
        is_own = jnp.arange(layout.num_blocks) == query[:, None]
        global_tokens = jnp.where(is_own[..., None], own[:, None], block_tokens)
        global_tokens = global_tokens + self.global_position(layout.block_grid).astype(self.dtype)

        position = self.local_position(grid).astype(self.dtype)
        local_tokens = self.local_projection(self.code_embedding(window_codes))
        local_tokens = local_tokens + position[jnp.asarray(layout.window_cells)[query]]

        sequence = [global_tokens, local_tokens]
        visible = [jnp.ones(global_tokens.shape[:2], bool), inside]
        if self.num_ids and condition.shape[1]:
            embedded, there = self.condition_embedding(condition)
            sequence.insert(0, embedded)
            visible.insert(0, there)
        x = self.embedding_dropout(jnp.concatenate(sequence, axis=1), deterministic=not train)
        mask = jnp.concatenate(visible, axis=1)[:, None, None, :]
        x = self.transformer(x, mask, train)
        x = x[:, x.shape[1] - window_codes.shape[1] :][:, slots]
        return self.head(x).astype(jnp.float32)

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

        A query block sees one of two contexts. *random*: its halo is masked token by token at the
        rate of the block, and the global map block by block. *prefix*, what block-by-block sampling
        sees: blocks before the query block in raster order are clean, those after it masked, in the
        global map and in the halo alike.

        Args:
            tokens: dense tokens.
            condition: see `__call__`.
            train: label smoothing, dropout, of the condition too (rng stream "dropout"), and a draw
                of query blocks; otherwise all are taken on grids of up to 32 x 32 cells.
            mask_ratio: fraction of the query block that is masked, (0, 1]; None draws it, by the
                cosine schedule.
            context: "mixed" draws one of the two for each query block.
            valid: images that count; None for all.

        Returns:
            The mean over the masked query tokens of the batch in nats (0 where there are none),
            their number, and a dict with "accuracy". Masks are drawn from the rng stream "mask".

        Source: paper 000, Eq. 2.
        """
        layout = self.layout(tokens.grid)
        codes = tokens.code_map.reshape(tokens.codes.shape)
        if train:
            condition = self.drop_condition(condition)
        queries = self._draw_queries(codes.shape[0], layout, train)
        token_mask, block_mask = self._draw_masks(queries, layout, mask_ratio, context)

        rows = jnp.arange(codes.shape[0])[:, None, None]
        window = codes[rows, jnp.asarray(layout.window_cells)[queries]]
        window_codes = jnp.where(token_mask, self.mask_id, window)

        block_codes = codes[:, layout.block_cells]
        clean = self.block_tokens(jnp.where(layout.block_inside, block_codes, self.mask_id))
        masked = self.block_tokens(jnp.full((layout.block_cells.shape[1],), self.mask_id))
        block_tokens = jnp.where(block_mask[..., None], masked, clean[:, None])

        logits = self(
            einops.rearrange(window_codes, "b s n -> (b s) n"),
            queries.reshape(-1),
            einops.rearrange(block_tokens, "b s g d -> (b s) g d"),
            jnp.repeat(condition, queries.shape[1], axis=0),
            tokens.grid,
            train,
        )
        target = einops.rearrange(window[..., layout.query_slots], "b s q -> (b s) q")
        predicted = einops.rearrange(token_mask[..., layout.query_slots], "b s q -> (b s) q")
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
        """Nats of masked tokens at fixed mask ratios, in the context that sampling sees.

        Blocks before the query block are known and those after it are not ("prefix"). Each
        "loss_at_<ratio>" comes as the sum of the nats and the number of masked tokens.
        """
        unbound, variables = self.unbind()

        def masked(ratio: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
            loss, number, _ = unbound.apply(
                variables,
                tokens,
                condition,
                train=False,
                mask_ratio=ratio,
                context="prefix",
                valid=valid,
                method="loss",
                rngs={"mask": key},
            )
            return loss * number, number

        # One after the other in a loop, which is compiled once.
        nats, numbers = jax.lax.map(masked, jnp.asarray(MASK_RATIOS))
        return {f"loss_at_{ratio}": (nats[i], numbers[i]) for i, ratio in enumerate(MASK_RATIOS)}

    def _draw_queries(self, batch: int, layout: BlockLayout, train: bool) -> Int[Array, "b s"]:
        """The blocks of each image that are predicted."""
        drawn = self.drawn_blocks(layout.grid)
        # On a large grid an evaluation of all blocks would take many times a step's memory.
        everything = not train and math.prod(layout.grid) <= _SMALL_GRID
        if everything or drawn == layout.num_blocks:
            return jnp.broadcast_to(jnp.arange(layout.num_blocks), (batch, layout.num_blocks))
        score = jax.random.uniform(self.make_rng("mask"), (batch, layout.num_blocks))
        return jnp.argsort(score, axis=1)[:, :drawn]

    def _draw_masks(
        self,
        queries: Int[Array, "b s"],
        layout: BlockLayout,
        mask_ratio: float | Float[Array, ""] | None,
        context: Context,
    ) -> tuple[Bool[Array, "b s n"], Bool[Array, "b s g"]]:
        """Masked cells of each window, at least one of its query block, and masked blocks."""

        def fraction() -> Float[Array, "b s"]:
            if mask_ratio is not None:
                return jnp.full(queries.shape, mask_ratio)
            return cosine_schedule(jax.random.uniform(self.make_rng("mask"), queries.shape))

        def bernoulli(rate: Float[Array, "b s"], size: int) -> Bool[Array, "b s size"]:
            key: Key[Array, ""] = self.make_rng("mask")
            return jax.random.uniform(key, (*rate.shape, size)) < rate[..., None]

        token_fraction, block_fraction = fraction(), fraction()
        inside = jnp.asarray(layout.block_inside)[queries]
        count = mask_count(token_fraction, jnp.sum(inside, axis=-1))
        query_mask = random_mask(self.make_rng("mask"), inside, count)

        window_block = jnp.asarray(layout.window_block)[queries]
        later_halo = window_block > queries[..., None]
        later_blocks = jnp.arange(layout.num_blocks) > queries[..., None]
        random_halo = bernoulli(token_fraction, layout.window_cells.shape[1])
        random_blocks = bernoulli(block_fraction, layout.num_blocks)
        prefix_rate = {"random": 0.0, "mixed": 0.5, "prefix": 1.0}[context]
        prefix = bernoulli(jnp.full(queries.shape, prefix_rate), 1)

        halo_mask = jnp.where(prefix, later_halo, random_halo)
        block_mask = jnp.where(prefix, later_blocks, random_blocks)
        return halo_mask.at[..., layout.query_slots].set(query_mask), block_mask
