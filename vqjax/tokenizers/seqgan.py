"""SeQ-GAN's tokenizer: convolutions alone in phase 1, a decoder with attention in phase 2.

Source: paper 001, sections 3.3.1 and 3.4, and table 7. Where the table leaves open what a block is,
it is as in the tokenizer of MaskGIT (Chang et al. 2022, published code), which has the published
number of parameters.

GroupNorm takes in the whole map. So every pixel depends on every code, with and without attention.
"""

from typing import Any, ClassVar, Literal

import flax.linen as nn
from einops import reduce
from jaxtyping import Array, Float

from vqjax.errors import check_fields
from vqjax.nn.attention import Implementation
from vqjax.nn.convolutional import (
    Convolution,
    MaskGITResidualBlock,
    Normalization,
    ResidualStage,
    Upsampling,
)
from vqjax.nn.regional import RegionalAttention
from vqjax.settings import Range, setting
from vqjax.tokenizers.base import Tokenizer

Enhancement = Literal["none", "attention", "attention_x2", "convolution_x2"]


class Encoder(nn.Module):
    """Residual stages with average pooling between them, and one more at the lowest resolution.

    Attributes: as of `SeQGAN`.
    """

    code_dim: int
    widths: tuple[int, ...]
    num_res_blocks: int
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Latents, before quantization."""
        x = Convolution(
            self.widths[0], 3, padding=1, use_bias=False, dtype=self.dtype, name="from_pixels"
        )(images)
        for i, width in enumerate(self.widths):
            if i > 0:
                x = reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)
            x = _residual_stage(self, self.num_res_blocks, width, f"stage_{i}")(x)
        x = _residual_stage(self, self.num_res_blocks, width, "middle")(x)
        x = nn.remat(_activated)(self, x)
        return Convolution(self.code_dim, 1, dtype=self.dtype, name="to_code")(x)


class Decoder(nn.Module):
    """The encoder mirrored, and in every stage what enhances it, after the blocks of phase 1.

    Attributes: as of `SeQGAN`.
    """

    widths: tuple[int, ...]
    num_res_blocks: int
    enhancement: Enhancement
    regions: tuple[int, ...]
    head_dim: int
    remat: bool
    dtype: str
    implementation: Implementation

    @nn.compact
    def __call__(self, z_q: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        """Features of the pixels, which one more convolution turns into colours."""
        blocks = self.num_res_blocks + 2 * (self.enhancement == "convolution_x2")
        pairs = {"attention": 1, "attention_x2": 2}.get(self.enhancement, 0)
        attention = nn.remat(RegionalAttention) if self.remat else RegionalAttention
        width = self.widths[-1]
        x = Convolution(width, 3, padding=1, dtype=self.dtype, name="from_code")(z_q)
        x = _residual_stage(self, self.num_res_blocks, width, "middle")(x)
        for i, width in reversed(list(enumerate(self.widths))):
            x = _residual_stage(self, blocks, width, f"stage_{i}")(x)
            for j in range(pairs):
                for kind in ("regional", "dilated"):
                    x = attention(
                        self.regions[i],
                        kind == "dilated",
                        width // self.head_dim,
                        self.dtype,
                        self.implementation,
                        name=f"{kind}_{i}_{j}",
                    )(x)
            if i > 0:
                x = Upsampling(self.dtype, name=f"upsampling_{i}")(x)
        return nn.remat(_activated)(self, x)


def _activated(network: Encoder | Decoder, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nn.swish(Normalization(network.dtype, name="norm")(x))


def _residual_stage(network: Encoder | Decoder, blocks: int, width: int, name: str) -> nn.Module:
    return ResidualStage(
        blocks,
        width,
        remat=network.remat,
        dtype=network.dtype,
        block=MaskGITResidualBlock,
        name=name,
    )


class SeQGAN(Tokenizer):
    """Images to codes and back by convolutions, and a decoder that may have more.

    Each level after the first halves the map, so the downsampling factor f is 2^(levels - 1). The
    defaults are the paper's model with 1,024 codes of width 256. What its decoder has after the
    residual blocks of every level, and millions of parameters, ours and those of the paper:

        enhancement        ours  paper
        none              54.52   54.5  phase 1, and the baseline of table 1
        attention         57.94   57.9  phase 2: a regional and a dilated attention
        convolution_x2    69.86   70.0  table 1: two more residual blocks
        attention_x2      61.36   61.4  table 1: the two attentions twice

    At a width of c an attention has 4 c^2 + 6 c parameters (query, key, value and output with
    biases, LayerNorm) and a residual block 18 c^2 + 4 c. Two of either at each of the widths 512,
    256, 256, 128 and 128 are 3.42 and 15.35 million. Table 7 has a width of 256 at the second of
    these 128, with which no number comes out.

    The parameters of "none" are those of the same name in every decoder, and attention starts as
    the identity: a phase 2 that starts from phase 1 first decodes as that does. The paper says of
    the attention that it is HiT's (`vqjax.nn.regional`), which at 256x256 pixels has regions of 4,
    8 and 8 cells on maps of 16, 32 and 64; larger maps go on so. There are no positions: the
    convolutions' zeros at the edge tell them.
    """

    whole_because: ClassVar[str] = "a SeQ-GAN normalises over the whole image"

    width: int = setting(128, "of the first level", Range(1))
    multipliers: tuple[int, ...] = setting(
        (1, 1, 2, 2, 4), "width of each level over that of the first, finest first", Range(1)
    )
    num_res_blocks: int = setting(
        2, "residual blocks of a level, and of one more stage beside the codebook", Range(1)
    )
    enhancement: Enhancement = setting(
        "none", "what the decoder has at every level, beside the residual blocks of phase 1"
    )
    regions: tuple[int, ...] = setting(
        (16, 16, 8, 8, 4),
        "side in cells of the decoder's attention regions at each level, finest first",
        Range(1),
    )
    head_dim: int = setting(64, "width of an attention head; divides the widths", Range(1))
    remat: bool = setting(
        False,
        "recompute residual blocks and attention in the backward pass; else norms and swishes",
    )
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
        levels = len(self.multipliers)
        check_fields(self, [("multipliers", levels > 0, "at least one level")])
        if self._attends:
            wide = f"a divisor of the widths ({', '.join(map(str, self._widths))})"
            divided = all(width % self.head_dim == 0 for width in self._widths)
            one_each = f"one region for each of {levels} levels"
            check_fields(
                self,
                [
                    ("regions", len(self.regions) == levels, one_each),
                    ("head_dim", divided, wide),
                ],
            )

    @property
    def _attends(self) -> bool:
        return self.enhancement in ("attention", "attention_x2")

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        shared: dict[str, Any] = {
            "widths": self._widths,
            "num_res_blocks": self.num_res_blocks,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        decoder = Decoder(
            enhancement=self.enhancement,
            regions=self.regions,
            head_dim=self.head_dim,
            implementation=self.implementation,
            **shared,
        )
        return Encoder(code_dim=self.quantizer.code_dim, **shared), decoder

    @property
    def downsampling(self) -> int:
        """The factor f between the sides of image and latent grid."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def granularity(self) -> str:
        """The numbers that decide which sides fit, for messages."""
        regions = f" and regions={self.regions}" if self._attends else ""
        return f"{super().granularity}{regions}"

    def fits(self, side: int) -> bool:
        """True if f divides a side, and the regions of attention the map of every level."""
        regions = self.regions if self._attends else ()
        return super().fits(side) and all(
            side // 2**i % region == 0 for i, region in enumerate(regions)
        )
