"""The convolutional VQGAN: residual blocks, and attention over the whole map at low resolution.

Source: Esser et al. 2021, section 3.1 and appendix A, table 7; paper 000 measures its tokenizer
against this one in table 2, and its prior in table 7.

GroupNorm and attention take in the whole map. So the same weights take any resolution that the
downsampling factor divides, but every pixel depends on every code.
"""

from typing import Any, ClassVar, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from vqjax.errors import check_fields
from vqjax.nn.convolutional import (
    Convolution,
    Downsampling,
    Normalization,
    ResidualStage,
    Upsampling,
)
from vqjax.settings import Range, setting
from vqjax.tokenizers.base import Tokenizer


class Encoder(nn.Module):
    """Residual stages with a downsampling between them, then the middle: block, attention, block.

    Attributes: as of `VQGAN`; `code_dim` None for latents of `latent_width`.
    """

    code_dim: int | None
    latent_width: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention_factors: tuple[int, ...]
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Latents, before quantization."""
        shared: dict[str, Any] = {"remat": self.remat, "dtype": self.dtype}
        x = Convolution(self.widths[0], 3, padding=1, dtype=self.dtype, name="from_pixels")(images)
        for i, width in enumerate(self.widths):
            if i > 0:
                x = Downsampling(self.dtype, name=f"downsampling_{i}")(x)
            attention = 2**i in self.attention_factors
            x = ResidualStage(self.num_res_blocks, width, attention, **shared, name=f"stage_{i}")(x)
        x = ResidualStage(1, width, True, **shared, name="middle_0")(x)
        x = ResidualStage(1, width, False, **shared, name="middle_1")(x)
        x = nn.swish(Normalization(self.dtype, name="norm")(x))
        x = Convolution(self.latent_width, 3, padding=1, dtype=self.dtype, name="to_latent")(x)
        if self.code_dim is None:
            return x
        return Convolution(self.code_dim, 1, dtype=self.dtype, name="to_code")(x)


class Decoder(nn.Module):
    """The encoder mirrored, with one residual block more in every stage.

    Attributes: as of `VQGAN`, and
        middle: at the lowest resolution in the place of block, attention, block.
    """

    latent_width: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention_factors: tuple[int, ...]
    remat: bool
    dtype: str
    middle: nn.Module | None = None

    @nn.compact
    def __call__(self, z_q: Float[Array, "b h w d"], *told: Array) -> Float[Array, "b H W c"]:
        """Features of the pixels, which one more convolution turns into colours.

        Args:
            z_q: quantized latents.
            told: what `middle` takes besides the map.
        """
        shared: dict[str, Any] = {"remat": self.remat, "dtype": self.dtype}
        x = Convolution(self.latent_width, 1, dtype=self.dtype, name="from_code")(z_q)
        x = Convolution(self.widths[-1], 3, padding=1, dtype=self.dtype, name="from_latent")(x)
        if self.middle is None:
            x = ResidualStage(1, self.widths[-1], True, **shared, name="middle_0")(x)
            x = ResidualStage(1, self.widths[-1], False, **shared, name="middle_1")(x)
        else:
            x = self.middle(x, *told)
        for i, width in reversed(list(enumerate(self.widths))):
            attention = 2**i in self.attention_factors
            blocks = self.num_res_blocks + 1
            x = ResidualStage(blocks, width, attention, **shared, name=f"stage_{i}")(x)
            if i > 0:
                x = Upsampling(self.dtype, name=f"upsampling_{i}")(x)
        return nn.swish(Normalization(self.dtype, name="norm")(x))


class VQGAN(Tokenizer):
    """Images to codes and back by convolutions and global attention.

    Each level after the first halves the map, so the downsampling factor f is 2^(levels - 1). The
    published configs name the levels with attention by the side of their map at the training
    resolution, which this model does not know: their 16 is a factor of 256 / 16.
    """

    whole_because: ClassVar[str] = "a convolutional VQGAN normalises over the whole image"

    width: int = setting(128, "of the first level", Range(1))
    multipliers: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4), "width of each level over that of the first, finest first", Range(1)
    )
    num_res_blocks: int = setting(
        2, "residual blocks of a level in the encoder; the decoder has one more", Range(1)
    )
    attention_factors: tuple[int, ...] = setting(
        (16,), "downsampling factors of the levels with attention after every block", Range(1)
    )
    latent_width: int = setting(
        256, "of the map between the two convolutions at each side of the codebook", Range(1)
    )
    remat: bool = setting(
        False,
        "recompute residual and attention blocks in the backward pass; else norms and swishes",
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute dtype; parameters, pixels and quantization are float32"
    )

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            FieldError: a value out of its range, or fields that contradict each other.
        """
        super().__post_init__()
        factors = [2**i for i in range(len(self.multipliers))]
        there = set(self.attention_factors) <= set(factors)
        expected = f"downsampling factors of levels ({', '.join(map(str, factors))})"
        check_fields(
            self,
            [
                ("multipliers", len(factors) > 0, "at least one level"),
                ("attention_factors", there, expected),
            ],
        )

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        shared = self.shared_fields
        return Encoder(code_dim=self.quantizer.code_dim, **shared), Decoder(**shared)

    @property
    def shared_fields(self) -> dict[str, Any]:
        """The fields that encoder and decoder both have."""
        return {
            "latent_width": self.latent_width,
            "widths": tuple(self.width * multiplier for multiplier in self.multipliers),
            "num_res_blocks": self.num_res_blocks,
            "attention_factors": self.attention_factors,
            "remat": self.remat,
            "dtype": self.dtype,
        }

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        return 2 ** (len(self.multipliers) - 1)
