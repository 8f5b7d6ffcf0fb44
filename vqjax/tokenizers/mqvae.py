"""MQ-VAE: a VQGAN that keeps codes of the regions that count, and fills in the others.

A network scores every cell of the latent map, the highest scores are kept and quantized, and a
de-mask module infers the rest from them. So an image has fewer tokens than its grid has cells.

Source: paper 002, section 3.2.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqjax.errors import InputError, check_fields
from vqjax.nn.convolutional import Convolution, ResidualStage, SpatialAttention
from vqjax.nn.direction_constrained import key_weights
from vqjax.nn.linear import Dense, Embed
from vqjax.pixels import to_bytes
from vqjax.settings import Range, setting
from vqjax.tokenizers.base import Metrics, TokenKind
from vqjax.tokenizers.vqgan import VQGAN, Decoder, Encoder
from vqjax.tokens import Tokens

Demask = Literal["none", "self_attention", "direction_constrained", "mask_updating"]


class MLPScorer(nn.Module):
    """Scores of cells by two linear layers, each cell by itself. Source: paper 002, Eq. 2."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w"]:
        """The logits of the scores."""
        del train
        h = nn.relu(Dense(z.shape[-1], name="up")(z))
        return Dense(1, name="down")(h)[..., 0]


class ConvolutionScorer(nn.Module):
    """Scores of cells from those around them. Source: the authors' published code."""

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w"]:
        """The logits of the scores, normalised over the batch (on all devices) in training."""
        h = nn.standardize(z, axis=-1)
        h = nn.relu(Convolution(z.shape[-1], 3, padding=1, name="conv_1")(h))
        h = Convolution(1, 1, name="conv_2")(h)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")
        return norm(h)[..., 0]


SCORERS: dict[str, Callable[..., nn.Module]] = {"mlp": MLPScorer, "conv": ConvolutionScorer}


class DemaskModule(nn.Module):
    """Pairs of a residual block and attention over the whole map, then one more residual block.

    Attributes:
        num_blocks: H, the pairs.
        kind: see `MQVAE`.
        remat: see `ResidualStage`.
        dtype: compute dtype; parameters are float32.

    Source: paper 002, section 3.2, Eq. 5-8; the order is that of the authors' published code.
    """

    num_blocks: int
    kind: Demask
    remat: bool
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], kept: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """Fills in a map of which some cells have a code.

        Args:
            x: the map.
            kept: cells that have a code, in raster order.
        """
        attention = nn.remat(SpatialAttention) if self.remat else SpatialAttention
        for block in range(1, self.num_blocks + 1):
            x = self._residual(x, block)
            weights = None
            if self.kind != "self_attention":
                weights = key_weights(kept, block if self.kind == "mask_updating" else 1)
            x = attention(self.dtype, name=f"attention_{block}")(x, weights)
        return self._residual(x, self.num_blocks + 1)

    def _residual(self, x: Float[Array, "b h w c"], block: int) -> Float[Array, "b h w c"]:
        width = x.shape[-1]
        stage = ResidualStage(1, width, False, self.remat, self.dtype, name=f"residual_{block}")
        return stage(x)


class MQVAE(VQGAN):
    """A VQGAN with an adaptive mask between encoder and codebook and a de-mask module after it.

    With `mask="none"` every cell has its code, and the model is a VQGAN: that of the paper's
    comparisons without a de-mask module, or its VQGAN* with one of self-attention.

    The masks of an image are the same wherever it is encoded: random ones are drawn by its content,
    except in training, where they are drawn in every step (stream "mask").
    """

    whole_because: ClassVar[str] = "an MQ-VAE normalises over the whole image"

    mask: Literal["adaptive", "random", "none"] = setting(
        "adaptive", "which cells have no code: those of the lowest scores, any, or none"
    )
    mask_ratio: float = setting(
        0.25, "how many of the cells have no code, where there is a mask", Range(0, 1, below=True)
    )
    scorer: Literal["mlp", "conv"] = setting(
        "mlp", "the network that scores cells: the paper's, or that of the authors' code"
    )
    demask: Demask = setting(
        "mask_updating",
        "attention of the module that fills in: unconstrained, or masked cells weigh little as"
        " keys in all blocks alike, or more in each; none is the middle of a VQGAN",
    )
    demask_blocks: int = setting(8, "H, its pairs of residual block and attention", Range(1))

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or fields that contradict each other.
        """
        super().__post_init__()
        masks = self.demask in ("none", "self_attention") or self.mask != "none"
        expected = "none (a VQGAN) or self_attention (the paper's VQGAN*) where mask='none'"
        check_fields(self, [("demask", masks, expected)])

    @property
    def token_kind(self) -> TokenKind:
        """Dense where nothing is masked."""
        return "sparse" if self.mask != "none" and self.mask_ratio else "dense"

    @property
    def rngs(self) -> tuple[str, ...]:
        """Those of a VQGAN, and "mask" for random masks."""
        return (*super().rngs, *(("mask",) if self.mask == "random" else ()))

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """Those of a VQGAN, and what masked cells are filled with."""
        return (*super().decoder_parts, *(("mask_embedding",) if self.mask != "none" else ()))

    @property
    def code_parts(self) -> tuple[Any, ...]:
        """Those of a VQGAN, and what is masked."""
        return (*super().code_parts, self.mask, self.mask_ratio, self.scorer)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        shared = self.shared_fields
        code_dim = self.quantizer.code_dim if self.mask == "none" else None
        middle = None
        if self.demask != "none":
            middle = DemaskModule(
                self.demask_blocks, self.demask, self.remat, self.dtype, parent=None
            )
        return Encoder(code_dim=code_dim, **shared), Decoder(middle=middle, **shared)

    def setup(self) -> None:
        """Builds the networks, and those of the mask."""
        super().setup()
        if self.mask == "none":
            return
        if self.mask == "adaptive":
            self.scoring = SCORERS[self.scorer]()
        code_dim, scale = self.quantizer.code_dim, 1.0 / self.num_codes
        self.to_code = Dense(code_dim, use_bias=False, dtype=self.dtype)

        def uniform(key: Array, shape: Any, dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -scale, scale)

        self.mask_embedding = Embed(1, code_dim, embedding_init=uniform)

    def num_tokens(self, grid: tuple[int, int]) -> int:
        """N of a latent grid: the cells that have a code."""
        cells = grid[0] * grid[1]
        return cells if self.mask == "none" else round((1 - self.mask_ratio) * cells)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The latent grid of an image of `height` x `width` pixels.

        Raises:
            InputError: a side that does not fit; a mask that leaves nothing.
        """
        grid = super().grid(height, width)
        if not self.num_tokens(grid):
            raise InputError(
                f"mask_ratio={self.mask_ratio} keeps none of the {grid[0] * grid[1]} cells of an"
                f" image of {height}x{width} pixels: lower it"
            )
        return grid

    def encode(self, images: Float[Array, "b H W 3"]) -> Tokens:
        """Tokens of images in [-1, 1], in raster order.

        Raises:
            InputError: as `grid`.
        """
        vectors, positions, grid = self._kept(images, False)
        _, codes, _, _ = self.quantizer(vectors)
        return Tokens(codes, positions, grid)

    def decode(self, tokens: Tokens, tile: int = 0) -> Float[Array, "b H W 3"]:
        """Images of tokens, [-1, 1] up to the model's error.

        Args:
            tokens: of any grid that `grid` makes; any number, in any order.
            tile: 0, see `check_tile`.

        Raises:
            InputError: as `grid` and `check_tile`.
        """
        self.grid(*(side * self.downsampling for side in tokens.grid))
        self.check_tile(tile)
        z_q = self.quantizer.embed(tokens.codes)
        return self.to_pixels(self._filled_in(z_q, tokens.positions, tokens.grid))

    def latents(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b n d"]:
        """The vectors of images in [-1, 1] that are compared with the codes, one for each token.

        Raises:
            InputError: as `grid`.
        """
        return self.quantizer.compared(self._kept(images, False)[0])

    def scores(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w"]:
        """How much each cell of images in [-1, 1] counts, (0, 1), by a model with an adaptive mask.

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        return nn.sigmoid(self.scoring(self.encoder(images).astype(jnp.float32), False))

    def features(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> tuple[Float[Array, "b h w c"], Tokens, Float[Array, ""], Metrics]:
        """Encodes, quantizes what is kept and decodes, up to the last layer; see `Tokenizer`.

        Raises:
            InputError: as `grid`.
        """
        vectors, positions, grid = self._kept(images, train)
        z_q, codes, loss, metrics = self.quantizer(vectors, train)
        tokens = Tokens(codes, positions, grid)
        return self._filled_in(z_q, positions, grid), tokens, loss, metrics

    def _kept(
        self, images: Float[Array, "b H W 3"], train: bool
    ) -> tuple[Float[Array, "b n d"], Int[Array, "b n"], tuple[int, int]]:
        """The vectors that are to be quantized, their cells in raster order, and the grid."""
        grid = self.grid(*images.shape[1:3])
        z = self.encoder(images)
        cells = einops.rearrange(z, "b h w c -> b (h w) c")
        if self.mask == "none":
            return cells, _all_cells(cells), grid
        # In float32, as ties would be broken by position.
        cells = cells.astype(jnp.float32)
        normalized = nn.standardize(cells, axis=-1)
        if self.mask == "random":
            ranks = self._random_ranks(images, cells.shape[1], train)
        else:
            logits = self.scoring(cells.reshape(z.shape), train).reshape(cells.shape[:2])
            # Eq. 3: what gives the scores their gradient, through the cells that are kept.
            normalized = normalized * nn.sigmoid(logits)[..., None]
            ranks = jax.lax.stop_gradient(logits)
        _, positions = jax.lax.top_k(ranks, self.num_tokens(grid))
        positions = jnp.sort(positions.astype(jnp.int32), axis=-1)
        vectors = jnp.take_along_axis(normalized, positions[..., None], axis=1)
        return self.to_code(vectors), positions, grid

    def _random_ranks(
        self, images: Float[Array, "b H W 3"], cells: int, train: bool
    ) -> Float[Array, "b cells"]:
        """Random numbers of which the highest are kept."""
        if train and not self.is_initializing():
            return jax.random.uniform(self.make_rng("mask"), (len(images), cells))
        # A sum of products modulo 2^32: another one as soon as any byte is another.
        pixels = to_bytes(images).reshape(len(images), -1).astype(jnp.uint32)
        factors = 2 * jnp.arange(pixels.shape[1], dtype=jnp.uint32) + 1
        content = jnp.sum(pixels * factors, axis=1, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.key)(content)
        return jax.vmap(lambda key: jax.random.uniform(key, (cells,)))(keys)

    def _filled_in(
        self,
        z_q: Float[Array, "b n d"],
        positions: Int[Array, "b n"],
        grid: tuple[int, int],
    ) -> Float[Array, "b h w c"]:
        """The decoder's features of quantized vectors at their cells, and of nothing at others."""
        (b, _, d), n = z_q.shape, grid[0] * grid[1]

        # Image by image, so that a batch that is split over devices stays where it is.
        @jax.vmap
        def filled(cells: Array, positions: Array, values: Array) -> Array:
            return cells.at[positions].set(values, mode="drop")

        if self.mask == "none":
            empty = jnp.zeros((b, n, d), z_q.dtype)
        else:
            masked = self.mask_embedding(jnp.zeros((1, 1), jnp.int32))
            empty = jnp.broadcast_to(masked, (b, n, d)).astype(z_q.dtype)
        z_map = filled(empty, positions, z_q).reshape(b, *grid, d)
        if self.demask == "none":
            return self.decoder(z_map)
        kept = filled(jnp.zeros((b, n), bool), positions, jnp.ones_like(positions, bool))
        return self.decoder(z_map, kept)


def _all_cells(cells: Float[Array, "b n c"]) -> Int[Array, "b n"]:
    return jnp.broadcast_to(jnp.arange(cells.shape[1], dtype=jnp.int32), cells.shape[:2])
