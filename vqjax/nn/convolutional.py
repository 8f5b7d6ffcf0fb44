"""The convolution layer, and blocks of convolutional autoencoders: residual, attention, up, down.

Source: Esser et al. 2021 (VQGAN), appendix A, table 7; Ho et al. 2020 (DDPM), appendix B.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.nn.attention import MultiHeadAttention
from vqjax.nn.convolve import Padding, convolve

GROUPS = 32
# Name of a convolution's output, for what a backward pass keeps.
CONVOLVED = "convolved"


class Convolution(nn.Module):
    """`flax.linen.Conv` with zero padding; see `vqjax.nn.convolve`.

    Attributes:
        features: output channels.
        size: of the kernel, (height, width) or both.
        stride: of the kernel's positions.
        padding: zeros on each side, likewise; or before and after along each.
        use_bias: add a bias to each channel.
        kernel_init: initialiser of the kernel.
        dtype: of the computation; the parameters are float32.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: Padding = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        """Convolves the map."""
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = convolve(x.astype(self.dtype), kernel, bias, self.stride, self.padding)
        return checkpoint_name(y, CONVOLVED)


class Normalization(nn.Module):
    """GroupNorm in 32 groups; where 32 does not divide the width, in as many as divide both."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises over a group's channels and the whole map."""
        groups = math.gcd(GROUPS, x.shape[-1])
        return nn.GroupNorm(num_groups=groups, dtype=self.dtype, name="group_norm")(x)


class ResidualBlock(nn.Module):
    """A residual block: twice GroupNorm, swish and a 3x3 convolution, added to the input.

    Attributes:
        features: width of the output; a 1x1 convolution brings the input to it where it differs.
        dtype: compute dtype; parameters are float32.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        """Applies the block."""
        y = x
        for i in (1, 2):
            y = nn.swish(Normalization(self.dtype, name=f"norm_{i}")(y))
            y = Convolution(self.features, 3, padding=1, dtype=self.dtype, name=f"conv_{i}")(y)
        if x.shape[-1] != self.features:
            x = Convolution(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return x + y


class MaskGITResidualBlock(nn.Module):
    """The residual block of MaskGIT's tokenizer: `ResidualBlock` without biases.

    Where the width changes, the input cannot be added: a 1x1 convolution of the block's own output
    is, as in the published code, whose weights and number of parameters need that. Attributes: as
    of `ResidualBlock`.

    Source: Chang et al. 2022 (MaskGIT), published code.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        """Applies the block."""
        shared: dict[str, Any] = {"use_bias": False, "dtype": self.dtype}
        y = x
        for i in (1, 2):
            y = nn.swish(Normalization(self.dtype, name=f"norm_{i}")(y))
            y = Convolution(self.features, 3, padding=1, **shared, name=f"conv_{i}")(y)
        if x.shape[-1] != self.features:
            x = Convolution(self.features, 1, **shared, name="shortcut")(y)
        return x + y


class SpatialAttention(nn.Module):
    """Self-attention of one head over all cells of a map, after GroupNorm, added to the input."""

    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], key_weights: Float[Array, "b n"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Applies the block; `key_weights` of all cells as in `vqjax.nn.attention.attention`."""
        y = Normalization(self.dtype, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        attention = MultiHeadAttention(num_heads=1, dtype=self.dtype, name="attention")
        return x + attention(y, key_weights=key_weights).reshape(x.shape)


class ResidualStage(nn.Module):
    """Residual blocks at one resolution.

    Attributes:
        num_blocks: how many.
        features: width of the output.
        attention: attention after each block.
        remat: recompute the blocks in the backward pass; else only their norms and swishes.
        dtype: compute dtype.
        block: the class of the blocks.
    """

    num_blocks: int
    features: int
    attention: bool = False
    remat: bool = False
    dtype: str = "float32"
    block: type[ResidualBlock] | type[MaskGITResidualBlock] = ResidualBlock

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        """Applies the blocks."""
        attention = nn.remat(SpatialAttention) if self.remat else SpatialAttention
        # Norm and swish take no time beside the convolutions, and several times their memory.
        kept = () if self.remat else (CONVOLVED,)
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        residual = nn.remat(self.block, policy=policy)
        for i in range(self.num_blocks):
            x = residual(self.features, self.dtype, name=f"residual_{i}")(x)
            if self.attention:
                x = attention(self.dtype, name=f"attention_{i}")(x)
        return x


class Downsampling(nn.Module):
    """A 3x3 convolution of stride 2 that halves a map, padded below and to the right only."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
        """Halves both sides, which must be even."""
        padding = ((0, 1), (0, 1))
        return Convolution(x.shape[-1], 3, 2, padding, dtype=self.dtype, name="conv")(x)


class Upsampling(nn.Module):
    """Nearest-neighbour enlargement to twice the size, then a 3x3 convolution."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        """Doubles both sides."""
        x = repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        return Convolution(x.shape[-1], 3, padding=1, dtype=self.dtype, name="conv")(x)
