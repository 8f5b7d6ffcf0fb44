"""The convolution of the frozen trunks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Convolution(nn.Module):
    """A square convolution with a bias on zero-padded maps, also on maps below its own size.

    Its parameters are those of `flax.linen.Conv`.

    Attributes:
        features: output channels.
        size: of the kernel.
        stride: of the kernel's positions.
        padding: zeros on each side.
        dtype: of the computation; the parameters are float32.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        """The map of every position whose kernel fits into the padded map."""
        _, height, width, channels = x.shape
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        margin = (self.padding, self.padding)
        if self.stride == 1 and min(height, width) < self.size:
            # XLA's CPU convolution is up to sixty times slower than this matrix product where the
            # kernel is larger than the map, as in the last layers for 32x32 images.
            x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
            return _patches(x, self.size) @ kernel.reshape(-1, self.features) + bias
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=(margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias


def _patches(x: Float[Array, "b _ _ _"], size: int) -> Float[Array, "b _ _ _"]:
    """The size x size neighbourhood of each position, row by row, along the channels."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    shifted = [
        x[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)
