"""Efficient-VQGAN's tokenizer: a Swin encoder and decoder around a codebook.

Source: paper 000, section 3.1.

Everything works on a neighbourhood: windows of attention, LayerNorm per position, 3x3 convolutions.
So the same weights take any resolution that the downsampling factor and the windows divide.
"""

import math
from typing import Any, ClassVar, Literal

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqjax.errors import InputError
from vqjax.nn.attention import Implementation
from vqjax.nn.windows import PatchExpanding, PatchMerging, SwinStage
from vqjax.quantizers import VectorQuantizer
from vqjax.tokens import Tokens


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
        x = nn.Dense(self.widths[0], dtype=self.dtype, name="patch_embedding")(x)
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
        return nn.Dense(self.code_dim, dtype=self.dtype, name="to_latent")(x)


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

    @nn.compact
    def __call__(self, z_q: Float[Array, "b h w d"]) -> Float[Array, "b H W 3"]:
        """Images, [-1, 1] up to the model's error."""
        x = nn.Dense(self.widths[-1], dtype=self.dtype, name="from_latent")(z_q)
        for i in reversed(range(len(self.widths))):
            x = SwinStage(
                self.depths[i],
                self.widths[i] // self.head_dim,
                self.window,
                self.mlp_ratio,
                self.dtype,
                self.implementation,
                self.remat,
                name=f"stage_{i}",
            )(x)
            if i > 0:
                x = PatchExpanding(self.widths[i - 1], self.dtype, name=f"expand_{i}")(x)
        width = self.widths[0]
        for i in range(int(math.log2(self.patch_size)) - 1):
            width = max(width // 2, 16)
            x = PatchExpanding(width, self.dtype, name=f"expand_patch_{i}")(x)
        x = einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        x = nn.Conv(width, (3, 3), dtype=self.dtype, name="tail_conv")(x)
        x = nn.swish(nn.LayerNorm(dtype=self.dtype, name="tail_norm")(x))
        # Pixels in float32: this is the last layer, whose kernel the adaptive weight reads.
        return nn.Conv(3, (3, 3), dtype=jnp.float32, name="to_pixels")(x)


class EfficientVQGAN(nn.Module):
    """Images to codes and back, with local attention only.

    Attributes:
        quantizer: the codebook.
        patch_size: side of an embedded patch in pixels, a power of two from 2 (4 in the paper).
        widths: width of each level, finest first; each level after the first halves the map, so the
            downsampling factor f is patch_size * 2^(levels - 1).
        depths: Swin blocks of each level, in the encoder and in the decoder.
        head_dim: width of an attention head; divides the widths.
        window: side of the attention windows in cells.
        mlp_ratio: hidden width of the MLPs over the width of the level.
        remat: recompute Swin blocks in the backward pass.
        dtype: compute dtype; parameters, pixels and quantization are float32.
        implementation: see `vqjax.nn.attention.attention`.
    """

    token_kind: ClassVar[str] = "dense"

    quantizer: VectorQuantizer
    patch_size: int = 4
    widths: tuple[int, ...] = (128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 6)
    head_dim: int = 32
    window: int = 8
    mlp_ratio: int = 4
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    implementation: Implementation = "xla"

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InputError: fields out of their range or that contradict each other.
        """
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise InputError(
                f"tokenizer patch_size={self.patch_size}: a power of two from 2 is needed"
            )
        if self.window < 1:
            raise InputError(f"tokenizer window={self.window}: a side of at least 1 is needed")
        if len(self.widths) != len(self.depths) or not self.widths:
            raise InputError(
                f"tokenizer widths={self.widths} and depths={self.depths}:"
                " one depth a width is needed"
            )
        for width in self.widths:
            if self.head_dim < 1 or width % self.head_dim:
                raise InputError(
                    f"tokenizer width {width} is not a multiple of head_dim={self.head_dim}"
                )
        super().__post_init__()

    def setup(self) -> None:
        """Builds encoder and decoder."""
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
        self.encoder = Encoder(code_dim=self.quantizer.code_dim, **shared)
        self.decoder = Decoder(**shared)

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.quantizer.num_codes

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The latent grid of an image of `height` x `width` pixels.

        Raises:
            InputError: f or the window does not divide it; names the nearest sides that work.
        """
        for side in (height, width):
            if not self._fits(side):
                f = self.downsampling
                below = next((s for s in range(side // f * f, 0, -f) if self._fits(s)), None)
                above = next(s for s in range(-(-side // f) * f, 2**20, f) if self._fits(s))
                near = f"{below} or {above}" if below else f"{above}"
                raise InputError(
                    f"a side of {side} pixels does not fit a tokenizer with f={f} and"
                    f" window={self.window}: the nearest that works is {near}"
                )
        return height // self.downsampling, width // self.downsampling

    def _fits(self, side: int) -> bool:
        """Whether f divides a side, and the window every level's map that is larger than it."""
        if side < self.downsampling or side % self.downsampling:
            return False
        levels = [side // (self.patch_size * 2**i) for i in range(len(self.widths))]
        return all(cells <= self.window or cells % self.window == 0 for cells in levels)

    def encode(self, images: Float[Array, "b H W 3"]) -> Tokens:
        """Tokens of images in [-1, 1].

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        _, codes, _ = self.quantizer(self.encoder(images))
        return Tokens.dense(codes)

    def decode(self, tokens: Tokens) -> Float[Array, "b H W 3"]:
        """Images of dense tokens, [-1, 1] up to the model's error.

        Raises:
            InputError: as `grid`.
        """
        self.grid(*(side * self.downsampling for side in tokens.grid))
        return self.decoder(self.quantizer.embed(tokens.code_map))

    def __call__(
        self, images: Float[Array, "b H W 3"], train: bool = False
    ) -> tuple[Float[Array, "b H W 3"], dict[str, Array]]:
        """Encodes, quantizes and decodes.

        Args:
            images: [-1, 1].
            train: learn the codebook; see `VectorQuantizer.__call__` for collections and rngs.

        Returns:
            The reconstruction, and the quantizer's losses and statistics with "codes", the code
            map.

        Raises:
            InputError: as `grid`.
        """
        self.grid(*images.shape[1:3])
        z_q, codes, metrics = self.quantizer(self.encoder(images), train)
        code_map: Int[Array, "b h w"] = codes
        return self.decoder(z_q), {**metrics, "codes": code_map}
