"""The convolution of the networks that also see small maps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b _ _ c"],
    kernel: Float[Array, "height width c features"],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> Float[Array, "b _ _ features"]:
    """The map of every position whose kernel fits into the map.

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
    """The neighbourhood of this size of each position, row by row, along the channels."""
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], size, strict=True))
    shifted = [
        x[:, row : row + height, column : column + width]
        for row in range(size[0])
        for column in range(size[1])
    ]
    return jnp.concatenate(shifted, axis=-1)
