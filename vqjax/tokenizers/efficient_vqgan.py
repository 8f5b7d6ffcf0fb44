"""Efficient-VQGAN's tokenizer: a Swin encoder and decoder around a codebook.

Source: paper 000, section 3.1.

Everything works on a neighbourhood: windows of attention, LayerNorm per position, 3x3 convolutions.
So the same weights take any resolution that the downsampling factor and the windows divide.
"""

import math
from typing import Any, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.errors import InputError, check_fields
from vqjax.nn.attention import Implementation
from vqjax.nn.convolutional import Convolution
from vqjax.nn.linear import Dense
from vqjax.nn.windows import PatchExpanding, PatchMerging, SwinStage
from vqjax.settings import Range, setting
from vqjax.tokenizers.base import Tokenizer
from vqjax.tokenizers.tiling import Tiling, swin_halo


class Encoder(nn.Module):
    """Patch embedding, then Swin stages with a patch merging between them.

    Attributes: as of `EfficientVQGAN`.
    """

    code_dim: int
    patch_size: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head_dim: int
    window: int
    mlp_ratio: int
    remat: bool
    dtype: str
    implementation: Implementation

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Latents, before quantization."""
        p = self.patch_size
        x = einops.rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        x = Dense(self.widths[0], dtype=self.dtype, name="patch_embedding")(x)
        x = nn.LayerNorm(dtype=self.dtype, name="patch_norm")(x)
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if i > 0:
                x = PatchMerging(width, self.dtype, name=f"merge_{i}")(x)
            x = SwinStage(
                depth,
                width // self.head_dim,
                self.window,
                self.mlp_ratio,
                self.dtype,
                self.implementation,
                self.remat,
                name=f"stage_{i}",
            )(x)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return Dense(self.code_dim, dtype=self.dtype, name="to_latent")(x)


class Decoder(nn.Module):
    """The encoder mirrored: Swin stages with a patch expanding between them, then up to the pixels.

    Patch expandings undo the mergings and all but one halving of the patch embedding; the last
    doubling is nearest-neighbour. Attributes: as of `EfficientVQGAN`.
    """

    patch_size: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head_dim: int
    window: int
    mlp_ratio: int
    remat: bool
    dtype: str
    implementation: Implementation

    def setup(self) -> None:
        """Declares the layers; those of a list are named <attribute>_<index>."""
        self.from_latent = Dense(self.widths[-1], dtype=self.dtype)
        self.stage = [
            SwinStage(
                depth,
                width // self.head_dim,
                self.window,
                self.mlp_ratio,
                self.dtype,
                self.implementation,
                self.remat,
            )
            for width, depth in zip(self.widths, self.depths, strict=True)
        ]
        self.expand = {
            str(i): PatchExpanding(self.widths[i - 1], self.dtype)
            for i in range(1, len(self.widths))
        }
        halvings = int(math.log2(self.patch_size)) - 1
        patch_widths = [max(self.widths[0] // 2**i, 16) for i in range(1, halvings + 1)]
        self.expand_patch = [PatchExpanding(width, self.dtype) for width in patch_widths]
        last_width = [self.widths[0], *patch_widths][-1]
        self.tail_conv = Convolution(last_width, 3, padding=1, dtype=self.dtype)
        self.tail_norm = nn.LayerNorm(dtype=self.dtype)

    def __call__(self, z_q: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        """Features of the pixels, which one more convolution turns into colours."""
        return self.finest(self.coarser(z_q))

    def coarser(self, z_q: Float[Array, "b h w d"]) -> Float[Array, "b hp wp c"]:
        """All levels but the finest: the map of the embedded patches."""
        x = self.from_latent(z_q)
        for i in reversed(range(1, len(self.widths))):
            x = self.expand[str(i)](self.stage[i](x))
        return x

    def finest(self, x: Float[Array, "b hp wp d"]) -> Float[Array, "b H W c"]:
        """The finest level, and the tail: the features of the pixels.

        Of the level's output, a pixel needs the cells that the tail's 3x3 convolution, and the one
        that makes colours of these features, see from it.
        """
        x = self.stage[0](x)
        for expand in self.expand_patch:
            x = expand(x)
        x = einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        return nn.swish(self.tail_norm(self.tail_conv(x)))


class EfficientVQGAN(Tokenizer):
    """Images to codes and back, with local attention only.

    Each level after the first halves the map, so the downsampling factor f is
    patch_size * 2^(levels - 1).
    """

    patch_size: int = setting(
        4, "side of an embedded patch in pixels, a power of two (4 in the paper)", Range(2)
    )
    widths: tuple[int, ...] = setting(
        (128, 256, 512), "width of each level, finest first", Range(1)
    )
    depths: tuple[int, ...] = setting(
        (2, 2, 6), "Swin blocks of each level, in the encoder and in the decoder", Range(0)
    )
    head_dim: int = setting(32, "width of an attention head; divides the widths", Range(1))
    window: int = setting(8, "side of the attention windows in cells", Range(1))
    mlp_ratio: int = setting(4, "hidden width of the MLPs over that of the level", Range(1))
    remat: bool = setting(False, "recompute Swin blocks in the backward pass")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters, pixels and quantization are float32"
    )
    implementation: Implementation = setting("xla", "of the attention, see `vqjax.nn.attention`")

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or fields that contradict each other.
        """
        super().__post_init__()
        levels, divided = len(self.widths), all(w % self.head_dim == 0 for w in self.widths)
        check_fields(
            self,
            [
                ("patch_size", self.patch_size.bit_count() == 1, "a power of two"),
                ("widths", levels > 0, "at least one width"),
                ("depths", len(self.depths) == levels, f"one depth for each of {levels} widths"),
                ("widths", divided, f"multiples of head_dim={self.head_dim}"),
            ],
        )

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        shared: dict[str, Any] = {
            "patch_size": self.patch_size,
            "widths": self.widths,
            "depths": self.depths,
            "head_dim": self.head_dim,
            "window": self.window,
            "mlp_ratio": self.mlp_ratio,
            "remat": self.remat,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        return Encoder(code_dim=self.quantizer.code_dim, **shared), Decoder(**shared)

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    @property
    def granularity(self) -> str:
        """The numbers that decide which sides fit, for messages."""
        return f"{super().granularity} and window={self.window}"

    def fits(self, side: int) -> bool:
        """True if f divides a side, and the window every level's map that is larger than it."""
        levels = [side // (self.patch_size * 2**i) for i in range(len(self.widths))]
        return super().fits(side) and all(
            cells <= self.window or cells % self.window == 0 for cells in levels
        )

    @property
    def shortest_side(self) -> int:
        """An attention window's at the resolution of the latents."""
        return self.downsampling * self.window

    @property
    def halo(self) -> int:
        """Cells of the finest level around a tile that its pixels depend on, in whole windows.

        A window for every two Swin blocks of that level: 8 cells, or 32 pixels, in the paper's
        models of f = 8 and 16.
        """
        # Two convolutions reach a pixel each, and a cell has at least two.
        tail = -(-2 // self.patch_size)
        return swin_halo(self.depths[0], self.window, tail)

    def check_tile(self, tile: int) -> None:
        """Checks the side in pixels of the tiles to decode in: whole windows of the finest level.

        Raises:
            InputError: it is not; names the nearest sides that work.
        """
        unit = self.patch_size * self.window
        if tile < 0 or tile % unit:
            below = max(tile // unit * unit, 0)
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise InputError(
                f"decoding in tiles of {tile} pixels: they consist of windows of {unit} pixels;"
                f" the nearest that works is {near}, and 0 decodes the whole image at once"
            )

    def _decode(self, z_q: Float[Array, "b h w d"], tile: int) -> Float[Array, "b H W 3"]:
        """Pixels, whole or in tiles.

        All but the finest level is small and is worked off whole. The finest one and the tail, in
        which a tile depends on `halo` cells around it, run crop by crop: the same pixels up to
        rounding.
        """
        if not tile:
            return super()._decode(z_q, tile)
        x = self.decoder.coarser(z_q)
        b, h, w, c = x.shape
        p = self.patch_size
        tiles = Tiling((h, w), tile // p, self.halo)

        def add_tile(model: EfficientVQGAN, image: Array, origins: Any) -> tuple[Array, None]:
            origin, crop_origin = origins
            crop = jax.lax.dynamic_slice(x, (0, *crop_origin, 0), (b, *tiles.crop_size, c))
            pixels = jax.lax.dynamic_slice(
                model.to_pixels(model.decoder.finest(crop)),
                (0, *(p * (origin - crop_origin)), 0),
                (b, *(p * side for side in tiles.tile_size), 3),
            )
            return jax.lax.dynamic_update_slice(image, pixels, (0, *(p * origin), 0)), None

        add_tiles = nn.scan(add_tile, variable_broadcast="params", split_rngs={"params": False})
        origins = jnp.asarray(tiles.tile_origins), jnp.asarray(tiles.crop_origins)
        image, _ = add_tiles(self, jnp.zeros((b, p * h, p * w, 3)), origins)
        return image
