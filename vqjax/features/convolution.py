"""The convolution of the frozen trunks."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqjax.nn.convolve import convolve


class Convolution(nn.Module):
    """A convolution with a bias on zero-padded maps, also on maps below its own size.

    Its parameters are those of `flax.linen.Conv`.

    Attributes:
        features: output channels.
        size: of the kernel, (height, width) or both.
        stride: of the kernel's positions.
        padding: zeros on each side, likewise.
        dtype: of the computation; the parameters are float32.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b _ _ _"]:
        """The map of every position whose kernel fits into the padded map."""
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolve(x, kernel, self.stride, self.padding) + bias
