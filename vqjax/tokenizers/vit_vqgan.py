"""ViT-VQGAN: a plain vision transformer on each side of the codebook, attention over all patches.

Source: Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN", section 3; paper 000
measures its tokenizer against this one in tables 1 and 2, and shows in figure 1 what its codes
reach.

The transformers map every patch from all others, so every pixel depends on every code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqjax.nn.attention import Implementation
from vqjax.nn.linear import Dense, add_parameter
from vqjax.nn.positions import GridEmbedding
from vqjax.nn.transformer import Transformer, check_heads
from vqjax.settings import Range, setting
from vqjax.tokenizers.base import Tokenizer


def to_patches(images: Float[Array, "b H W c"], side: int) -> Float[Array, "b h w p"]:
    """The pixels of each patch in raster order, with the channels of each pixel side by side."""
    return einops.rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=side, q=side)


def from_patches(patches: Float[Array, "b h w p"], side: int) -> Float[Array, "b H W c"]:
    """The inverse of `to_patches`."""
    return einops.rearrange(patches, "b h w (p q c) -> b (h p) (w q) c", p=side, q=side)


class Trunk(nn.Module):
    """The part that encoder and decoder share: positions, transformer, first layer of the head.

    The head of either is of two layers with a tanh between them; the second one is not here.
    Attributes: as of `ViTVQGAN`.
    """

    num_layers: int
    num_heads: int
    mlp_ratio: int
    grid_side: int
    scan: bool
    remat: bool
    dtype: str
    implementation: Implementation

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w hidden"]:
        """A map of the same size, in which every cell knows of all others."""
        _, h, w, dim = x.shape
        tables = (self.grid_side, self.grid_side)
        position = GridEmbedding(tables, dim, name="position")((h, w))
        x = einops.rearrange(add_parameter(x, position), "b h w d -> b (h w) d")
        x = Transformer(
            self.num_layers,
            self.num_heads,
            self.mlp_ratio,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            implementation=self.implementation,
            name="transformer",
        )(x)
        x = nn.tanh(Dense(self.mlp_ratio * dim, dtype=self.dtype, name="head")(x))
        return einops.rearrange(x, "b (h w) d -> b h w d", h=h)


class Encoder(nn.Module):
    """Patch embedding and transformer, then the head, down to the width of a code.

    Attributes:
        code_dim: width of a code.
        patch_size: as of `ViTVQGAN`.
        dim: as of `ViTVQGAN`.
        trunk: the fields of the `Trunk`.
        dtype: as of `ViTVQGAN`.
    """

    code_dim: int
    patch_size: int
    dim: int
    trunk: Mapping[str, Any]
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Latents, before quantization."""
        x = to_patches(images, self.patch_size)
        x = Dense(self.dim, dtype=self.dtype, name="patch_embedding")(x)
        x = Trunk(**self.trunk, name="trunk")(x)
        return Dense(self.code_dim, dtype=self.dtype, name="to_latent")(x)


class Decoder(nn.Module):
    """From the width of a code to that of the transformer, and the head but for its last layer.

    Attributes: as of `Encoder`.
    """

    dim: int
    trunk: Mapping[str, Any]
    dtype: str

    @nn.compact
    def __call__(self, z_q: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        """Features of the patches, which one more linear layer turns into their pixels."""
        x = Dense(self.dim, dtype=self.dtype, name="from_latent")(z_q)
        return Trunk(**self.trunk, name="trunk")(x)


class ViTVQGAN(Tokenizer):
    """Images to codes and back by two vision transformers with global attention.

    A patch is a token, so the downsampling factor f is its side. The published models have patches
    of 8 pixels, 8,192 codes of width 32 on the unit sphere (`latent_norm` "l2" of the quantizer),
    and these transformers, of which the default is the second:

        model    dim   num_layers   num_heads   mlp_ratio
        small    512            8           8           4
        base     768           12          12           4
        large  1,280           32          16           4

    The same weights take any resolution that f divides, in a time and a memory that grow with the
    square of the number of patches. Positions are learned tables, one for rows and one for columns,
    of `grid_side` cells, which are interpolated to any other number, as those of ViT are
    (Dosovitskiy et al. 2020, section 3.2); the grid in training is best.
    """

    last_layer: ClassVar[str] = "last_linear"
    whole_because: ClassVar[str] = "a ViT-VQGAN attends to the whole image"

    patch_size: int = setting(8, "side of a patch in pixels: the factor f", Range(1))
    dim: int = setting(768, "width of both transformers", Range(1))
    num_layers: int = setting(12, "transformer blocks on each side of the codebook", Range(1))
    num_heads: int = setting(12, "attention heads; divides the width", Range(1))
    mlp_ratio: int = setting(4, "hidden width of the MLPs and heads over `dim`", Range(1))
    grid_side: int = setting(
        32,
        "cells along each axis that positions are learned for; other grids interpolate",
        Range(1),
    )
    scan: bool = setting(True, "one scanned layer, compiled once, see `Transformer`")
    remat: bool = setting(False, "recompute each block in the backward pass")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters, pixels and quantization are float32"
    )
    implementation: Implementation = setting("xla", "of the attention, see `vqjax.nn.attention`")

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or heads that do not divide the width.
        """
        super().__post_init__()
        check_heads(self)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        trunk: dict[str, Any] = {
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "grid_side": self.grid_side,
            "scan": self.scan,
            "remat": self.remat,
            "dtype": self.dtype,
            "implementation": self.implementation,
        }
        shared: dict[str, Any] = {"dim": self.dim, "trunk": trunk, "dtype": self.dtype}
        encoder = Encoder(self.quantizer.code_dim, self.patch_size, **shared)
        return encoder, Decoder(**shared)

    def make_last_layer(self) -> nn.Module:
        """The second layer of the decoder's head: a linear one, to the pixels of a patch."""
        return Dense(3 * self.patch_size**2, dtype=jnp.float32)

    def to_pixels(self, features: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The last layer alone, and its patches put together."""
        return from_patches(self.last_linear(features), self.patch_size)

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        return self.patch_size
