"""The convolution of the networks that also see small maps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b _ _ c"],
    kernel: Float[Array, "size size c features"],
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "b _ _ features"]:
    """The map of every position whose square kernel fits into the map.

    Args:
        x: padded with `padding` zeros on each side.
        kernel: slid over the map, not flipped.
        stride: of the kernel's positions.
        padding: zeros on each side.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    margin = (padding, padding)
    if stride == 1 and min(x.shape[1:3]) + 2 * padding - size + 1 < size:
        # XLA's CPU convolution and its gradients are up to sixty times slower than this matrix
        # product where the kernel is larger than the resulting map.
        x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
        return _patches(x, size) @ kernel.reshape(-1, features)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(margin, margin),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _patches(x: Float[Array, "b _ _ _"], size: int) -> Float[Array, "b _ _ _"]:
    """The size x size neighbourhood of each position, row by row, along the channels."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    shifted = [
        x[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)
