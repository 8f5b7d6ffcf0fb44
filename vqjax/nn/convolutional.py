"""Convolutions, and the blocks of convolutional autoencoders: residual, attention, up and down.

Source: Esser et al. 2021 (VQGAN), appendix A, table 7; Ho et al. 2020 (DDPM), appendix B.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.nn.attention import MultiHeadAttention

GROUPS = 32


def convolve(
    x: Float[Array, "b _ _ c"],
    kernel: Float[Array, "height width c features"],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> Float[Array, "b _ _ features"]:
    """A convolution of a zero-padded map: one output for each position that the kernel fits in.

    Args:
        x: padded with `padding` zeros on each side.
        kernel: slid over the map, not flipped.
        stride: of the kernel's positions.
        padding: zeros on each side, along (height, width) or both.
    """
    size, features = kernel.shape[:2], kernel.shape[-1]
    paddings = (padding, padding) if isinstance(padding, int) else padding
    margins = [(p, p) for p in paddings]
    result = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[1:3], paddings, size, strict=True)]
    if stride == 1 and (size == (1, 1) or any(n < k for n, k in zip(result, size, strict=True))):
        # XLA's CPU convolution and its gradients are up to sixty times slower than this matrix
        # product where the kernel is larger than the resulting map, and slower for a 1x1 kernel.
        x = jnp.pad(x, ((0, 0), *margins, (0, 0)))
        return _patches(x, size) @ kernel.reshape(-1, features)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=margins,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(x: Float[Array, "b _ _ _"], size: tuple[int, ...]) -> Float[Array, "b _ _ _"]:
    """The neighbourhood of each position, row by row, along the channels."""
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], size, strict=True))
    shifted = [
        x[:, row : row + height, column : column + width]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(shifted, axis=-1)


class Convolution(nn.Module):
    """`flax.linen.Conv` with zero padding, fast on a CPU also on maps below the kernel's size.

    Attributes:
        features: output channels.
        size: of the kernel, (height, width) or both.
        stride: of the kernel's positions.
        padding: zeros on each side, likewise.
        use_bias: add a bias to each channel.
        kernel_init: initialiser of the kernel.
        dtype: of the computation; the parameters are float32.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        """Convolves the map; see `convolve`."""
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        kernel = self.param("kernel", self.kernel_init, (*size, x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve(x, kernel, self.stride, self.padding)
        return y if bias is None else y + bias


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
            y = nn.Conv(self.features, (3, 3), dtype=self.dtype, name=f"conv_{i}")(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + y


class SpatialAttention(nn.Module):
    """Self-attention of one head over all cells of a map, after GroupNorm, added to the input."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        y = Normalization(self.dtype, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        y = MultiHeadAttention(num_heads=1, dtype=self.dtype, name="attention")(y)
        return x + y.reshape(x.shape)


class ResidualStage(nn.Module):
    """Residual blocks at one resolution.

    Attributes:
        num_blocks: how many.
        features: width of the output.
        attention: attention after each block.
        remat: recompute the blocks in the backward pass.
        dtype: compute dtype.
    """

    num_blocks: int
    features: int
    attention: bool = False
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        """Applies the blocks."""
        residual, attention = ResidualBlock, SpatialAttention
        if self.remat:
            residual, attention = nn.remat(residual), nn.remat(attention)
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
        return nn.Conv(x.shape[-1], (3, 3), 2, padding, dtype=self.dtype, name="conv")(x)


class Upsampling(nn.Module):
    """Nearest-neighbour enlargement to twice the size, then a 3x3 convolution."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        """Doubles both sides."""
        x = repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(x)
